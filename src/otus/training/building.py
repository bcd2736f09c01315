"""What a run starts from: the system, its weights, and how images are prepared for it."""

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
from otus.zoo.checkpoint import CheckpointHeader, TensorMismatch
from otus.zoo.models import build_model, model_entry
from otus.zoo.weights import LoadedWeights

_SHOWN_LAYERS = 5
_ALL_LEARNS = {"freezing": {"norms": False, "level": 0}}


def task_of(model: str | BaseSystem[Any, Any] | None) -> Task:
    """Return the task of a model by its name, or of a system; without either, whose weights will say it, detection."""
    if model is None:
        return DETECTION
    return model_entry(model).task if isinstance(model, str) else model.task


def build_system(
    model: str | BaseSystem[Any, Any] | None,
    categories: Categories,
    found: LoadedWeights | None,
    before: Mapping[str, Any] | None,
    *,
    seed: int,
    given: Mapping[str, Any] | None = None,
) -> tuple[BaseSystem[Any, Any], CheckpointHeader]:
    """The system with random weights, and what makes its tensors a model again; ``given`` arguments of its builder."""
    if model is not None and not isinstance(model, str):
        return model, CheckpointHeader(categories=model.categories)
    builder = model or (None if found is None else found.builder)
    if builder is None:
        raise UsageError("model: expected a name (see otus models), or weights that say theirs")
    if before is not None:
        arguments: dict[str, Any] = before["arguments"]
    else:
        # The eps of norms belongs to the weights, class indices to other categories; random weights must all be trained.
        own_arguments = _ALL_LEARNS if found is None else found.arguments
        known = inspect.signature(model_entry(builder).builder).parameters.keys() - {"class_indices"}
        arguments = {name: value for name, value in own_arguments.items() if name in known} | dict(given or {})
    torch.manual_seed(seed)
    system = build_model(builder, categories, arguments)
    return system, CheckpointHeader(builder=builder, arguments=arguments, categories=categories)


def choose_preprocess(
    given: Preprocess | None, header: CheckpointHeader, found: LoadedWeights | None, *, image_size: int | None
) -> Preprocess:
    """Return the preprocessing: the one given, else that of the weights, else that of the model.

    Weights of another model say what its backbone is used to, mean and deviation, and not of which size images are.
    """
    learned, source = (None, None) if found is None else (found.preprocess, found.builder)
    own = None if header.builder is None else model_entry(header.builder).preprocess
    if learned is not None and own is not None and source not in (None, header.builder):
        learned = replace(own, mean=learned.mean, std=learned.std)
    preprocess = given or learned or own
    if preprocess is None:
        raise UsageError("preprocess: a system put together by hand needs one, e.g. Preprocess(fixed_hw=(224, 224))")
    if image_size is None:
        return preprocess
    if image_size < 1:
        raise UsageError(f"image_size: expected pixels, got {image_size}")
    if preprocess.fixed_hw is not None:
        return replace(preprocess, fixed_hw=(image_size, image_size))
    return replace(preprocess, shorter_side=image_size, longer_side=image_size)


def has_common_categories(found: LoadedWeights, header: CheckpointHeader, categories: Categories) -> bool:
    """Whether weights to start from are of the same model, and know one of the categories at least."""
    known = () if found.categories is None else found.categories.names
    return found.builder == header.builder and not set(known).isdisjoint(categories.names)


def fine_tune(system: BaseSystem[Any, Any], header: CheckpointHeader, found: LoadedWeights, say: TrainProgress) -> None:
    """Load what fits of weights to start from, and say what that is."""

    def build(categories: Categories) -> BaseSystem[Any, Any]:
        assert header.builder is not None
        return build_model(header.builder, categories, header.arguments)

    left = load_pretrained(system, found, build=None if header.builder is None else build)
    say.say(f"starting from {found.source}, {describe_mismatches(left)}")


def describe_mismatches(left: Sequence[TensorMismatch]) -> str:
    """Return what of the weights was loaded, in a few words: whole layers where tensors were left."""
    layers: dict[str, dict[str, None]] = {}
    for misfit in left:
        layers.setdefault(misfit.kind, {})[misfit.tensor.rsplit(".", 1)[0]] = None
    if not layers:
        return "all of it"
    lines = []
    for kind, names in layers.items():
        shown, hidden = list(names)[:_SHOWN_LAYERS], len(names) - _SHOWN_LAYERS
        lines.append(f"{kind} {', '.join(shown)}" + (f" and {hidden} more" if hidden > 0 else ""))
    return "but for layers " + "; ".join(lines)
