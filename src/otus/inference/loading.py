"""``otus.load``: load a trained model by name or from a file."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from otus.errors import CheckpointError, UsageError
from otus.inference.devices import choose_device, choose_precision
from otus.inference.exported import load_exported
from otus.inference.predictor import Predictor
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
        Library that runs the network: ``torch``, ``onnxruntime``, ``openvino``, or ``auto``, the fastest on this machine;
        see :class:`~otus.inference.predictor.Predictor` (default of an exported file: the runtime of its suffix).

    Raises
    ------
    UsageError
        If the name, file, device or precision does not exist, the model has no trained weights, ``weights`` are given
        together with a file, or ``semantic_model`` is not a semantic model or the other model predicts no masks.
    CheckpointError, FetchError
        If the weights are damaged, belong to another model, or cannot be fetched. Weights are never loaded in part.

    Examples
    --------
    >>> predictor = otus.load("mask_rcnn_resnet50_fpn", weights="maskrcnn.pth")  # doctest: +SKIP
    >>> predictor.predict("street.jpg")[0].instances  # doctest: +SKIP
    """
    chosen_precision = choose_precision(precision, choose_device(device))  # fail before files are read
    if name_or_file is None:
        packaged = packaged_names()
        if not packaged:
            raise UsageError("this package contains no model: name one (otus models lists them), or a file of weights")
        name_or_file = packaged[0]
    file = weights_file(name_or_file)
    if file is not None:
        if weights is not None:
            raise UsageError(f"weights: {file} is a file of weights itself; leave out {weights}, or name the model")
        if file.suffix in NATIVE_RUNTIMES:
            if precision == "bfloat16" and chosen_precision == precision:
                raise UsageError(f"precision: {file} computes in float32; leave bfloat16 out")
            semantic = None if semantic_model is None else load(semantic_model, device=device, precision=precision)
            return _load_exported(file, device=device, runtime=runtime, semantic=semantic)
        loaded = read_weights_file(file)
        name = str(loaded.builder or file.stem)
    elif str(name_or_file).endswith((".safetensors", ".pth", ".pt", ".bin", *NATIVE_RUNTIMES)):
        raise CheckpointError(f"{name_or_file}: there is no such file of weights")
    else:
        name = str(name_or_file)
        model_entry(name)
        loaded = read_weights(weights, model=name)
    if system is None:
        if loaded.builder is None:
            raise CheckpointError(
                f"{loaded.source}: does not say of which model it is: name the model and give the file as weights, "
                "or pass the model as system=…"
            )
        categories = categories or loaded.categories or _numbered(loaded.arguments.get("class_indices"))
        if categories is None:
            _check_tensor_names(loaded)
            raise UsageError(f"{loaded.source}: does not say its categories; pass categories=…")
        system = build_model(loaded.builder, categories, loaded.arguments)
    prefixes = find_prefixes(loaded.state, system.state_dict())
    state = sub_state(loaded.state, next(iter(prefixes), ""))
    load_into(system, state, source=loaded.source, model=name)
    preprocess = preprocess or loaded.preprocess or (model_entry(loaded.builder).preprocess if loaded.builder else None)
    if preprocess is None:
        raise UsageError(f"{loaded.source}: does not say how images are preprocessed; pass preprocess=…")
    return Predictor(
        system,
        preprocess=preprocess,
        name=name,
        device=device,
        precision=precision,
        runtime=runtime,
        score_thresholds=loaded.score_thresholds,
        training=loaded.training,
        semantic=None if semantic_model is None else load(semantic_model, device=device, precision=precision),
    )


def _load_exported(
    file: Path, *, device: str | int | torch.device, runtime: str, semantic: Predictor | None
) -> Predictor:
    if str(device) not in ("auto", "cpu"):
        raise UsageError(f"device: {file} runs on the CPU, got {device}; leave the device out")
    system, description = load_exported(file, runtime=None if runtime in ("torch", "auto") else runtime)
    return Predictor(
        system,
        preprocess=Preprocess.from_dict(description.preprocess),
        name=description.name,
        device="cpu",
        score_thresholds=description.score_thresholds,
        semantic=semantic,
    )


def _check_tensor_names(loaded: LoadedWeights) -> None:
    """Raise CheckpointError if the tensor names do not match the model, whatever the number of categories."""
    builder = str(loaded.builder)
    published = next(iter(model_entry(builder).weights.values()), None)
    model = build_model(builder, COCO if published is None else published.categories, loaded.arguments)
    if loaded.state.keys() - model.state_dict().keys():
        load_into(model, loaded.state, source=loaded.source, model=builder)


def _numbered(class_indices: Sequence[int] | None) -> Categories | None:
    """Return generated names for categories without names."""
    return None if class_indices is None else Categories(tuple(f"category {index}" for index in class_indices))
