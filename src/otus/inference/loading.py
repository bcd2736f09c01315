"""``otus.load``: a trained model by name or from a file."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from otus.errors import CheckpointError, UsageError
from otus.inference.predictor import Predictor, choose_device, choose_precision
from otus.parts.preprocess import Preprocess
from otus.parts.system import BaseSystem
from otus.structures import Categories
from otus.zoo.checkpoint import below_prefix, load_into, prefixes_of
from otus.zoo.coco import COCO
from otus.zoo.models import build_model, model_entry
from otus.zoo.weights import FoundWeights, packaged_names, read_weights, read_weights_file, weights_file


def load(
    name_or_file: str | Path | None = None,
    *,
    weights: str | Path | None = None,
    system: BaseSystem[Any, Any] | None = None,
    categories: Categories | None = None,
    preprocess: Preprocess | None = None,
    device: str | int | torch.device = "auto",
    precision: str = "exact",
) -> Predictor:
    """A trained model, ready to predict.

    Parameters
    ----------
    name_or_file
        A name of the zoo (``otus models`` lists them), a checkpoint of Otus, or the folder of a training run, whose best
        weights are taken; without it the model in the package.
    weights
        Of a name: a file (ours or torchvision's), or the name of published weights; the best there is without it.
    system, preprocess
        Of a checkpoint of a model put together by hand: the same model, and how it wants images if the file does not say.
    categories
        What the labels mean, where the file does not say.
    device, precision
        See :class:`~otus.inference.predictor.Predictor`. The default gives its reference's figures;
        ``precision="auto"`` is faster.

    Raises
    ------
    UsageError
        If there is no such name, file, device or precision, the model has no trained weights, or weights are given beside a
        file.
    CheckpointError, FetchError
        If the weights are damaged, another model's, or cannot be fetched. Nothing is half-loaded.

    Examples
    --------
    >>> predictor = otus.load("mask_rcnn_resnet50_fpn", weights="maskrcnn.pth")  # doctest: +SKIP
    >>> predictor.predict("street.jpg")[0].instances  # doctest: +SKIP
    """
    choose_precision(precision, choose_device(device))  # what is wrong with them is said before anything is read
    if name_or_file is None:
        packaged = packaged_names()
        if not packaged:
            raise UsageError("no model comes in the package yet: name one (otus models), or a file of weights")
        name_or_file = packaged[0]
    own = weights_file(name_or_file)
    if own is not None:
        if weights is not None:
            raise UsageError(f"weights: {own} is a file of weights itself; leave out {weights}, or name the model")
        found = read_weights_file(own)
        name = str(found.builder or own.stem)
    elif str(name_or_file).endswith((".safetensors", ".pth", ".pt", ".bin")):
        raise CheckpointError(f"{name_or_file}: there is no such file of weights")
    else:
        name = str(name_or_file)
        model_entry(name)
        found = read_weights(weights, model=name)
    if system is None:
        if found.builder is None:
            raise CheckpointError(
                f"{found.source}: does not say of which model it is: name the model and give the file as weights, "
                "or pass the model as system=…"
            )
        categories = categories or found.categories or _numbered(found.arguments.get("class_indices"))
        if categories is None:
            _refuse_another_model(found)
            raise UsageError(f"{found.source}: does not say its categories; pass categories=…")
        system = build_model(found.builder, categories, found.arguments)
    prefixes = prefixes_of(found.state, system.state_dict())
    state = below_prefix(found.state, next(iter(prefixes), ""))
    load_into(system, state, source=found.source, model=name)
    preprocess = preprocess or found.preprocess or (model_entry(found.builder).preprocess if found.builder else None)
    if preprocess is None:
        raise UsageError(f"{found.source}: does not say how images are prepared; pass preprocess=…")
    return Predictor(
        system,
        preprocess=preprocess,
        name=name,
        device=device,
        precision=precision,
        score_thresholds=found.score_thresholds,
        training=found.training,
    )


def _refuse_another_model(found: FoundWeights) -> None:
    """CheckpointError where the names of the tensors alone tell, whatever the number of categories."""
    builder = str(found.builder)
    published = next(iter(model_entry(builder).weights.values()), None)
    usual = build_model(builder, COCO if published is None else published.categories, found.arguments)
    if found.state.keys() - usual.state_dict().keys():
        load_into(usual, found.state, source=found.source, model=builder)


def _numbered(class_indices: Sequence[int] | None) -> Categories | None:
    """Names for categories that nobody named."""
    return None if class_indices is None else Categories(tuple(f"category {slot}" for slot in class_indices))
