"""``otus.load``: load a trained model by name or from a file."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from otus.errors import CheckpointError, UsageError
from otus.inference.exported import load_exported
from otus.inference.predictor import Predictor, choose_device, choose_precision
from otus.inference.runtimes import NATIVE_RUNTIMES
from otus.parts.preprocess import Preprocess
from otus.parts.system import BaseSystem
from otus.structures import Categories
from otus.zoo.checkpoint import find_prefixes, load_into, sub_state
from otus.zoo.coco import COCO
from otus.zoo.models import build_model, model_entry
from otus.zoo.weights import LoadedWeights, packaged_names, read_weights, read_weights_file, weights_file


def load(
    name_or_file: str | Path | None = None,
    *,
    weights: str | Path | None = None,
    semantic_model: str | Path | None = None,
    system: BaseSystem[Any, Any] | None = None,
    categories: Categories | None = None,
    preprocess: Preprocess | None = None,
    device: str | int | torch.device = "auto",
    precision: str = "exact",
    runtime: str = "torch",
) -> Predictor:
    """Load a trained model for prediction.

    Parameters
    ----------
    name_or_file
        Name of a model in the zoo (``otus models`` lists them), a checkpoint of Otus, the folder of a training run,
        whose best weights are loaded, or a file of ``otus export`` (default: the model that is part of the package).
    weights
        Weights to load for a named model: a file of Otus or torchvision, or the name of published weights (default: the
        best available).
    semantic_model
        Name or file of a semantic model, whose maps are merged with the instances of this one: together they predict
        panoptic maps. Without a name, the packaged instance model is loaded beside it.
    system, preprocess
        For a checkpoint of a model assembled by hand: the same model, and its preprocessing if the file does not record
        it.
    categories
        Names of the class indices, if the file does not record them.
    device, precision
        See :class:`~otus.inference.predictor.Predictor`. The default reproduces the reference implementation;
        ``precision="auto"`` is faster.
    runtime
        What computes: ``torch``, ``onnxruntime``, ``openvino``, or ``auto``, the fastest on this machine; see
        :class:`~otus.inference.predictor.Predictor`. An exported file is run by the runtime of its suffix unless another is
        named.

    Raises
    ------
    UsageError
        If the name, file, device or precision does not exist, the model has no trained weights, ``weights`` are given
        together with a file, or ``semantic_model`` is no semantic model or the other has no masks.
    CheckpointError, FetchError
        If the weights are damaged, belong to another model, or cannot be fetched. Weights are never loaded in part.

    Examples
    --------
    >>> predictor = otus.load("mask_rcnn_resnet50_fpn", weights="maskrcnn.pth")  # doctest: +SKIP
    >>> predictor.predict("street.jpg")[0].instances  # doctest: +SKIP
    """
    chosen_precision = choose_precision(precision, choose_device(device))  # fail before anything is read
    if name_or_file is None:
        packaged = packaged_names()
        if not packaged:
            raise UsageError("no model comes in the package yet: name one (otus models), or a file of weights")
        name_or_file = packaged[0]
    own = weights_file(name_or_file)
    if own is not None:
        if weights is not None:
            raise UsageError(f"weights: {own} is a file of weights itself; leave out {weights}, or name the model")
        if own.suffix in NATIVE_RUNTIMES:
            if precision == "bfloat16" and chosen_precision == precision:
                raise UsageError(f"precision: {own} computes in float32; leave bfloat16 out")
            semantic = None if semantic_model is None else load(semantic_model, device=device, precision=precision)
            return _load_exported(own, device=device, runtime=runtime, semantic=semantic)
        found = read_weights_file(own)
        name = str(found.builder or own.stem)
    elif str(name_or_file).endswith((".safetensors", ".pth", ".pt", ".bin", *NATIVE_RUNTIMES)):
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
    prefixes = find_prefixes(found.state, system.state_dict())
    state = sub_state(found.state, next(iter(prefixes), ""))
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
        runtime=runtime,
        score_thresholds=found.score_thresholds,
        training=found.training,
        semantic=None if semantic_model is None else load(semantic_model, device=device, precision=precision),
    )


def _load_exported(
    file: Path, *, device: str | int | torch.device, runtime: str, semantic: Predictor | None
) -> Predictor:
    if str(device) not in ("auto", "cpu"):
        raise UsageError(f"device: {file} runs on the CPU, got {device}; leave the device out")
    system, facts = load_exported(file, runtime=None if runtime in ("torch", "auto") else runtime)
    return Predictor(
        system,
        preprocess=Preprocess.from_dict(facts.preprocess),
        name=facts.name,
        device="cpu",
        score_thresholds=facts.score_thresholds,
        semantic=semantic,
    )


def _refuse_another_model(found: LoadedWeights) -> None:
    """Raise CheckpointError if the tensor names do not match the model, whatever the number of categories."""
    builder = str(found.builder)
    published = next(iter(model_entry(builder).weights.values()), None)
    usual = build_model(builder, COCO if published is None else published.categories, found.arguments)
    if found.state.keys() - usual.state_dict().keys():
        load_into(usual, found.state, source=found.source, model=builder)


def _numbered(class_indices: Sequence[int] | None) -> Categories | None:
    """Return generated names for categories without names."""
    return None if class_indices is None else Categories(tuple(f"category {index}" for index in class_indices))
