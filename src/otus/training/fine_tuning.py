"""Starting from weights that were trained on something else: whatever fits is taken, heads of other categories are not."""

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from torch import Tensor, nn

from otus.errors import CheckpointError
from otus.structures import Categories
from otus.zoo.checkpoint import below_prefix, matching, prefixes_of
from otus.zoo.weights import FoundWeights, packaged_names, read_weights, read_weights_file, weights_file

Build = Callable[[Categories], nn.Module]


def find_weights(weights: str | Path, *, model: str | None = None) -> FoundWeights:
    """Weights from a file of whatever model, or by name: ``packaged``, or one of the published ones of ``model``.

    ``packaged`` without a model is the model in the package.

    Raises
    ------
    UsageError
        If it is neither a file nor a name; the message lists the names.
    CheckpointError, FetchError
        If the file is damaged or cannot be fetched.
    """
    file = weights_file(weights)
    if file is not None:
        return read_weights_file(file)
    if weights == "packaged" and model not in packaged_names():
        model = next(iter(packaged_names()), model)
    return read_weights(weights, model=model)


def start_from(system: nn.Module, weights: FoundWeights, *, build: Build | None = None) -> list[str]:
    """Load every tensor that fits; a line for each of either side that does not.

    A trunk and a pyramid serve every system: they are found wherever in theirs the others keep them. Where the categories
    differ, all tensors that depend on the categories stay as they are, also those whose shape happens to fit: with
    ``build`` they are found by building the system for one category more.

    Raises
    ------
    CheckpointError
        If nothing fits: these are the weights of something else.
    """
    states = [weights.state]  # and without what a wrapper put before the names, where more fits then
    states += [below_prefix(weights.state, prefix) for prefix in prefixes_of(weights.state, system.state_dict())[:1]]
    matches = [matching(system, _named_as_in(system, state)) for state in states]
    fits, left = max(matches, key=lambda match: len(match[0]))
    own: Categories = system.categories  # type: ignore[assignment]
    if build is not None and (weights.categories is None or weights.categories.names != own.names):
        heads = _of_categories(system, build, own)
        left += [f"of other categories: {name} {tuple(fits[name].shape)}" for name in fits if name in heads]
        fits = {name: tensor for name, tensor in fits.items() if name not in heads}
    if not any(name.endswith("weight") for name in fits):
        raise CheckpointError(
            f"{weights.source}: nothing of it fits {type(system).__name__}; these are the weights of something else "
            f"({'; '.join(left[:3])})"
        )
    system.load_state_dict(fits, strict=False)
    return left


def _named_as_in(system: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state with its trunk and pyramid where the system has them: ``features.trunk`` for ``region_features.trunk``."""
    places = {}
    for part in ("trunk", "pyramid"):
        theirs, own = _places_of(part, state), _places_of(part, system.state_dict())
        if len(theirs) == len(own) == 1:
            places[theirs.pop()] = own.pop()
    named = {}
    for name, tensor in state.items():
        place = next((place for place in places if name.startswith(place)), "")
        named[places.get(place, "") + name.removeprefix(place)] = tensor
    return named


def _places_of(part: str, names: Iterable[str]) -> set[str]:
    """What the names of a part's tensors begin with."""
    return {match[0] for name in names if (match := re.match(rf"(.*?\.)??{part}\.", name))}


def _of_categories(system: nn.Module, build: Build, own: Categories) -> set[str]:
    """Tensors whose shape changes with the number of categories."""
    larger = build(Categories((*own.names, "one category more"), keypoints=own.keypoints)).state_dict()
    return {name for name, tensor in system.state_dict().items() if larger[name].shape != tensor.shape}
