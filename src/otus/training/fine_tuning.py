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
    if str(weights) != "packaged" and (meant := did_you_mean(str(weights), ["packaged"])):
        raise UsageError(f"weights {str(weights)!r}: there is no such file or name{meant}")
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
    states = [
        weights.state
    ]  # and without the prefix of a wrapper, or as a part of the system, if more tensors fit then
    states += [sub_state(weights.state, prefix) for prefix in find_prefixes(weights.state, system.state_dict())[:1]]
    states += [
        {f"{part}.{key}": tensor for key, tensor in weights.state.items()} for part, _ in system.named_children()
    ]
    state = max(
        (_named_as_in(system, state) for state in states), key=lambda state: len(match_tensors(system, state)[0])
    )
    own: Categories = system.categories  # type: ignore[assignment]
    heads: dict[str, int] = {}
    if build is not None and (weights.categories is None or weights.categories.names != own.names):
        heads = _of_categories(system, build, own)
    known = _known_classes(system, heads, weights, state)
    fits, left = match_tensors(system, {**state, **known})
    new = [name for name in fits if name in heads and name not in known]
    left += [TensorMismatch("of other categories", name, f" {tuple(fits.pop(name).shape)}") for name in new]
    shared = [name for name in own if name in (weights.categories or ())]
    if len(shared) < len(own):
        names = ", ".join(shared[:5]) + (" …" if len(shared) > 5 else "")
        kind = f"with categories that are new (known are {names})"
        left += [TensorMismatch(kind, name, f" {tuple(tensor.shape)}") for name, tensor in known.items()]
    if not any(name.endswith("weight") for name in fits):
        raise CheckpointError(
            f"{weights.source}: nothing of it fits {type(system).__name__}; these are the weights of something else "
            f"({'; '.join(map(str, left[:3]))})"
        )
    system.load_state_dict(fits, strict=False)
    return left


def _named_as_in(system: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename backbone and pyramid tensors to the system's names: ``region_features.backbone`` to
    ``features.backbone``."""
    places = {}
    for part in ("backbone", "pyramid"):
        theirs, own = _places_of(part, state), _places_of(part, system.state_dict())
        if len(theirs) == len(own) == 1:
            places[theirs.pop()] = own.pop()
    named = {}
    for name, tensor in state.items():
        place = next((place for place in places if name.startswith(place)), "")
        named[places.get(place, "") + name.removeprefix(place)] = tensor
    return named


def _places_of(part: str, names: Iterable[str]) -> set[str]:
    """Return the prefixes of the names of a part's tensors."""
    return {match[0] for name in names if (match := re.match(rf"(.*?\.)??{part}\.", name))}


def _of_categories(system: nn.Module, build: Build, own: Categories) -> dict[str, int]:
    """Return the tensors whose shape depends on the number of categories, with their rows per category."""
    rows = {}
    for is_thing in sorted(set(own.is_thing)):  # one thing more, and one kind of stuff where there is any
        names, things = (*own.names, "one category more"), (*own.is_thing, is_thing)
        larger = build(Categories(names, is_thing=things, keypoints=own.keypoints)).state_dict()
        for name, tensor in system.state_dict().items():
            if larger[name].shape != tensor.shape:
                rows[name] = len(larger[name]) - len(tensor)
    return rows


def _known_classes(
    system: nn.Module, heads: Mapping[str, int], weights: LoadedWeights, state: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return the head tensors with the weights' rows for categories of the same name and for background."""
    detector: Any = getattr(system, "detector", system)  # of Panoptic FPN that of the things
    own: Categories = detector.categories
    theirs = weights.categories
    if theirs is None or weights.arguments.get("class_indices") is not None:
        return {}
    pairs = [(own.index(name), theirs.index(name)) for name in own if name in theirs]
    known = {}
    for name, tensor in system.state_dict().items():
        found = _CLASS_ROWS.fullmatch(name)
        other = state.get(name)
        if found is None or not pairs or name not in heads or other is None or other.shape[1:] != tensor.shape[1:]:
            continue
        background = len(tensor) // heads[name] - len(own)
        if len(other) != heads[name] * (len(theirs) + background):
            continue
        together = found[2] is not None
        rows, their_rows = (_rows(len(one), heads[name], together=together) for one in (tensor, other))
        pairs_of_rows = [(row, row) for row in range(background)] + [(a + background, b + background) for a, b in pairs]
        to, source = (
            torch.cat([table[row] for row in column])
            for table, column in zip((rows, their_rows), zip(*pairs_of_rows, strict=True), strict=True)
        )
        known[name] = tensor.clone().index_copy_(0, to, other[source].to(tensor.dtype))
    return known


def _rows(count: int, per_class: int, *, together: bool) -> Int[Tensor, "classes rows"]:
    """Return the row indices of each class in a head tensor."""
    numbers = torch.arange(count)
    return numbers.view(-1, per_class) if together else numbers.view(per_class, -1).T
