"""Build the system of a run with its initial weights and preprocessing."""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from otus.errors import UsageError
from otus.parts.preprocess import Preprocess
from otus.parts.system import BaseSystem
from otus.parts.tasks import DETECTION, Task
from otus.structures import Categories
from otus.training.fine_tuning import load_pretrained
from otus.training.progress import TrainProgress
from otus.training.settings import TrainSettings
from otus.zoo.checkpoint import CheckpointHeader, TensorMismatch
from otus.zoo.models import build_model, model_entry
from otus.zoo.weights import LoadedWeights

_SHOWN_LAYERS = 5
_NOTHING_FROZEN = {"freezing": {"norms": False, "level": 0}}


def task_of(model: str | BaseSystem[Any, Any] | None) -> Task:
    """Return the task of a system or of a model of the zoo; detection for None, until the weights name the model."""
    if model is None:
        return DETECTION
    return model_entry(model).task if isinstance(model, str) else model.task


def build_system(
    model: str | BaseSystem[Any, Any] | None,
    categories: Categories,
    pretrained: LoadedWeights | None,
    resumed_config: Mapping[str, Any] | None,
    *,
    seed: int,
    builder_arguments: Mapping[str, Any] | None = None,
) -> tuple[BaseSystem[Any, Any], CheckpointHeader]:
    """Return the system with random weights, and the header of its checkpoints.

    Parameters
    ----------
    model
        Name of a model in the zoo, a system assembled by hand, or None for the model of ``pretrained``.
    categories
        Categories of the training data.
    pretrained
        Weights that will be loaded, whose builder arguments are used too.
    resumed_config
        Configuration of the run that is resumed, whose builder arguments are used instead.
    seed
        Seed of the random weights.
    builder_arguments
        Arguments of the builder that replace those of ``pretrained``.
    """
    if model is not None and not isinstance(model, str):
        return model, CheckpointHeader(categories=model.categories)
    builder = model or (None if pretrained is None else pretrained.builder)
    if builder is None:
        raise UsageError("model: expected a name (see otus models), or weights that record their model")
    if resumed_config is not None:
        arguments: dict[str, Any] = resumed_config["arguments"]
    else:
        # The weights determine the eps of norms, but not class indices, as the categories may differ. Without pretrained
        # weights nothing may be frozen.
        defaults = _NOTHING_FROZEN if pretrained is None else pretrained.arguments
        known = inspect.signature(model_entry(builder).builder).parameters.keys() - {"class_indices"}
        arguments = {name: value for name, value in defaults.items() if name in known} | dict(builder_arguments or {})
    torch.manual_seed(seed)
    system = build_model(builder, categories, arguments)
    return system, CheckpointHeader(builder=builder, arguments=arguments, categories=categories)


def choose_preprocess(
    given: Preprocess | None, header: CheckpointHeader, pretrained: LoadedWeights | None, *, image_size: int | None
) -> Preprocess:
    """Return the preprocessing: the one given, else that of the pretrained weights, else that of the model.

    From pretrained weights of another model, only mean and standard deviation are used, because the backbone expects them;
    the image size is that of the model.
    """
    of_weights, source = (None, None) if pretrained is None else (pretrained.preprocess, pretrained.builder)
    of_model = None if header.builder is None else model_entry(header.builder).preprocess
    if of_weights is not None and of_model is not None and source not in (None, header.builder):
        of_weights = replace(of_model, mean=of_weights.mean, std=of_weights.std)
    preprocess = given or of_weights or of_model
    if preprocess is None:
        raise UsageError("preprocess: a system assembled by hand needs one, e.g. Preprocess(fixed_hw=(224, 224))")
    if image_size is None:
        return preprocess
    if image_size < 1:
        raise UsageError(f"image_size: expected pixels, got {image_size}")
    if preprocess.fixed_hw is not None:
        return replace(preprocess, fixed_hw=(image_size, image_size))
    return replace(preprocess, shorter_side=image_size, longer_side=image_size)


def for_image_size(model: str, image_size: int, arguments: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the arguments of a promptable model's builder with the side of its padded images, if it takes one."""
    takes_size = "image_size" in inspect.signature(model_entry(model).builder).parameters
    return {**({"image_size": image_size} if takes_size else {}), **(arguments or {})}


def check_padded_size(system: Any, preprocess: Preprocess, settings: TrainSettings) -> None:
    """Raise UsageError unless images are resized to the side of a promptable model's padded images."""
    side = system.image_size
    resized = preprocess.longer_side if preprocess.fixed_hw is None else max(preprocess.fixed_hw)
    if resized != side:
        raise UsageError(f"image_size: this model takes images of {side} pixels only, got {resized}")
    if settings.scales != (1.0,):
        raise UsageError(f"scales: this model takes images of {side} pixels only; leave them out")


def has_common_categories(pretrained: LoadedWeights, header: CheckpointHeader, categories: Categories) -> bool:
    """Return whether pretrained weights are of the same model and have at least one of the categories."""
    known = () if pretrained.categories is None else pretrained.categories.names
    return pretrained.builder == header.builder and not set(known).isdisjoint(categories.names)


def fine_tune(
    system: BaseSystem[Any, Any], header: CheckpointHeader, pretrained: LoadedWeights, progress: TrainProgress
) -> None:
    """Load the pretrained weights that fit, and print which do not."""

    def build(categories: Categories) -> BaseSystem[Any, Any]:
        assert header.builder is not None
        return build_model(header.builder, categories, header.arguments)

    mismatches = load_pretrained(system, pretrained, build=None if header.builder is None else build)
    progress.log(f"initial weights: {pretrained.source}, {describe_mismatches(mismatches)}")


def freeze_encoder(system: BaseSystem[Any, Any]) -> None:
    """Freeze the image encoder of a promptable model.

    Raises
    ------
    UsageError
        If the system has no image encoder.
    """
    encoder = getattr(system, "image_encoder", None)
    if encoder is None:
        raise UsageError("frozen_encoder: only promptable models have an image encoder, e.g. sam_efficientnet_lite0")
    encoder.requires_grad_(False)


def describe_mismatches(mismatches: Sequence[TensorMismatch]) -> str:
    """Return a short description of the layers that do not match, by kind of mismatch."""
    layers: dict[str, dict[str, None]] = {}
    for mismatch in mismatches:
        layers.setdefault(mismatch.kind, {})[mismatch.tensor.rsplit(".", 1)[0]] = None
    if not layers:
        return "all layers"
    descriptions = []
    for kind, names in layers.items():
        shown, hidden = list(names)[:_SHOWN_LAYERS], len(names) - _SHOWN_LAYERS
        descriptions.append(f"{kind} {', '.join(shown)}" + (f" and {hidden} more" if hidden > 0 else ""))
    return "all layers except " + "; ".join(descriptions)
