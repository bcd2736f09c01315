"""Fine-tuning: load the tensors of pretrained weights that fit, and the head rows of categories in common."""

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from otus.errors import CheckpointError, UsageError, did_you_mean
from otus.structures import Categories
from otus.zoo.checkpoint import TensorMismatch, find_prefixes, match_tensors, sub_state
from otus.zoo.weights import LoadedWeights, packaged_names, read_weights, read_weights_file, weights_file

_CLASS_ROWS = re.compile(
    r"(?:detector\.)?(box_head\.cls_score|box_head\.(bbox_pred)|mask_head\.mask_fcn_logits|head\.classification\.cls_logits)\.(weight|bias)"
)
"""Head tensors with rows per class: grouped by class in ``bbox_pred``, grouped by anchor in the others."""

Build = Callable[[Categories], nn.Module]


def find_weights(weights: str | Path, *, model: str | None = None) -> LoadedWeights:
    """Return weights from a file of any model, or by name: ``packaged``, or published weights of ``model``.

    ``packaged`` without ``model`` stands for the model that is part of the package.

    Raises
    ------
    UsageError
        If ``weights`` is neither a file nor a known name; the message lists the names.
    CheckpointError, FetchError
        If the file is damaged or cannot be fetched.
    """
    file = weights_file(weights)
    if file is not None:
        return read_weights_file(file)
    if str(weights) != "packaged" and (hint := did_you_mean(str(weights), ["packaged"])):
        raise UsageError(f"weights {str(weights)!r}: there is no such file or name{hint}")
    if weights == "packaged" and model not in packaged_names():
        model = next(iter(packaged_names()), model)
    return read_weights(weights, model=model)


def load_pretrained(system: nn.Module, weights: LoadedWeights, *, build: Build | None = None) -> list[TensorMismatch]:
    """Load every tensor that fits, and return the tensors of the weights and of the system that do not match.

    Backbone and pyramid are loaded from weights of any system, whatever module contains them. If the categories differ,
    tensors that depend on the number of categories keep their initial values even if their shape fits; with ``build``
    they are identified by building the system for one more category. In the heads of region-based and dense detectors,
    the rows of categories with the same name in both are loaded.

    Raises
    ------
    CheckpointError
        If no tensor fits: the weights are of an unrelated model.
    """
    # The names as they are, without the prefix of a wrapper, or as those of a part of the system: whichever fits best.
    states = [weights.state]
    states += [sub_state(weights.state, prefix) for prefix in find_prefixes(weights.state, system.state_dict())[:1]]
    states += [
        {f"{part}.{key}": tensor for key, tensor in weights.state.items()} for part, _ in system.named_children()
    ]
    state = max(
        (_rename_parts(system, state) for state in states), key=lambda state: len(match_tensors(system, state)[0])
    )
    categories: Categories = system.categories  # type: ignore[assignment]
    rows_per_class: dict[str, int] = {}
    if build is not None and (weights.categories is None or weights.categories.names != categories.names):
        rows_per_class = _find_class_tensors(system, build, categories)
    partly_loaded = _copy_known_classes(system, rows_per_class, weights, state)
    fits, mismatches = match_tensors(system, {**state, **partly_loaded})
    other_classes = [name for name in fits if name in rows_per_class and name not in partly_loaded]
    mismatches += [
        TensorMismatch("of other categories", name, f" {tuple(fits.pop(name).shape)}") for name in other_classes
    ]
    shared = [name for name in categories if name in (weights.categories or ())]
    if len(shared) < len(categories):
        names = ", ".join(shared[:5]) + (" …" if len(shared) > 5 else "")
        kind = f"with new categories (known are {names})"
        mismatches += [TensorMismatch(kind, name, f" {tuple(tensor.shape)}") for name, tensor in partly_loaded.items()]
    if not any(name.endswith("weight") for name in fits):
        raise CheckpointError(
            f"{weights.source}: none of its tensors fits {type(system).__name__}; these are weights of an unrelated model "
            f"({'; '.join(map(str, mismatches[:3]))})"
        )
    system.load_state_dict(fits, strict=False)
    return mismatches


def _rename_parts(system: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename backbone and pyramid tensors to the system's names: ``region_features.backbone`` to ``features.backbone``."""
    new_prefixes = {}
    for part in ("backbone", "pyramid"):
        state_prefixes, system_prefixes = _prefixes(part, state), _prefixes(part, system.state_dict())
        if len(state_prefixes) == len(system_prefixes) == 1:
            new_prefixes[state_prefixes.pop()] = system_prefixes.pop()
    renamed = {}
    for name, tensor in state.items():
        prefix = next((prefix for prefix in new_prefixes if name.startswith(prefix)), "")
        renamed[new_prefixes.get(prefix, "") + name.removeprefix(prefix)] = tensor
    return renamed


def _prefixes(part: str, names: Iterable[str]) -> set[str]:
    """Return the prefixes of the names of a part's tensors, up to and including the part's name."""
    return {match[0] for name in names if (match := re.match(rf"(.*?\.)??{part}\.", name))}


def _find_class_tensors(system: nn.Module, build: Build, categories: Categories) -> dict[str, int]:
    """Return the rows per category of each tensor whose shape depends on the number of categories."""
    rows_per_class = {}
    for is_thing in sorted(set(categories.is_thing)):  # one more thing, and one more stuff category if there are any
        names, things = (*categories.names, "one more category"), (*categories.is_thing, is_thing)
        larger = build(Categories(names, is_thing=things, keypoints=categories.keypoints)).state_dict()
        for name, tensor in system.state_dict().items():
            if larger[name].shape != tensor.shape:
                rows_per_class[name] = len(larger[name]) - len(tensor)
    return rows_per_class


def _copy_known_classes(
    system: nn.Module, rows_per_class: Mapping[str, int], weights: LoadedWeights, state: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return the system's head tensors, with the pretrained rows for background and for categories of the same name."""
    detector: Any = getattr(system, "detector", system)  # Panoptic FPN: the detector of its things
    categories: Categories = detector.categories
    if weights.categories is None or weights.arguments.get("class_indices") is not None:
        return {}
    pairs = [
        (categories.index(name), weights.categories.index(name)) for name in categories if name in weights.categories
    ]
    copied = {}
    for name, tensor in system.state_dict().items():
        match = _CLASS_ROWS.fullmatch(name)
        pretrained = state.get(name)
        if match is None or not pairs or name not in rows_per_class:
            continue
        if pretrained is None or pretrained.shape[1:] != tensor.shape[1:]:
            continue
        background = len(tensor) // rows_per_class[name] - len(categories)  # 1 if there is a background class, else 0
        if len(pretrained) != rows_per_class[name] * (len(weights.categories) + background):
            continue
        grouped_by_class = match[2] is not None
        rows, pretrained_rows = (
            _rows_of_classes(len(head), rows_per_class[name], grouped_by_class=grouped_by_class)
            for head in (tensor, pretrained)
        )
        class_pairs = [(index, index) for index in range(background)]
        class_pairs += [(own + background, other + background) for own, other in pairs]
        target, source = (
            torch.cat([table[index] for index in indices])
            for table, indices in zip((rows, pretrained_rows), zip(*class_pairs, strict=True), strict=True)
        )
        copied[name] = tensor.clone().index_copy_(0, target, pretrained[source].to(tensor.dtype))
    return copied


def _rows_of_classes(num_rows: int, per_class: int, *, grouped_by_class: bool) -> Int[Tensor, "classes rows"]:
    """Return the row indices of each class in a head tensor."""
    rows = torch.arange(num_rows)
    return rows.view(-1, per_class) if grouped_by_class else rows.view(per_class, -1).T
