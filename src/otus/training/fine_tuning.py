"""Starting from weights that were trained on something else: whatever fits is taken, heads of other categories are not."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from otus.errors import CheckpointError, UsageError
from otus.structures import Categories
from otus.zoo.checkpoint import checkpoint_part, load_checkpoint, matching, read_foreign
from otus.zoo.hub import fetch
from otus.zoo.models import model_entry
from otus.zoo.torchvision_checkpoints import is_torchvision_detector, read_torchvision_detector

Build = Callable[[Categories], nn.Module]


@dataclass(frozen=True)
class StartingWeights:
    """Tensors by name, and the categories that their heads know, None where nobody says."""

    source: str
    state: Mapping[str, Tensor]
    categories: Categories | None


def read_weights(name_or_file: str | Path, *, model: str | None = None) -> StartingWeights:
    """Weights from a file (ours, or others' safely read), or from a name of published weights of ``model``.

    Raises
    ------
    UsageError
        If it is neither a file nor a name; the message lists the names.
    CheckpointError, FetchError
        If the file is damaged or cannot be fetched.
    """
    path = Path(name_or_file)
    published = {} if model is None else model_entry(model).weights
    if not path.is_file() and str(name_or_file) not in published:
        names = ", ".join(published) or "none"
        raise UsageError(
            f"weights {str(name_or_file)!r}: there is no such file, and published for {model} are: {names}"
        )
    if not path.is_file():
        entry = published[str(name_or_file)]
        path = fetch(entry.url, sha256=entry.sha256)
        return StartingWeights(str(name_or_file), _translated(read_foreign(path)), entry.categories)
    try:
        state, header = load_checkpoint(path)
    except CheckpointError:  # somebody else's, or nobody's: the next reader says
        return StartingWeights(str(path), _translated(read_foreign(path)), None)
    return StartingWeights(str(path), checkpoint_part(state), header.categories)


def start_from(system: nn.Module, weights: StartingWeights, *, build: Build | None = None) -> list[str]:
    """Load every tensor that fits; a line for each of either side that does not.

    Where the categories differ, all tensors that depend on the categories stay as they are, also those whose shape happens
    to fit: with ``build`` they are found by building the system for one category more.

    Raises
    ------
    CheckpointError
        If nothing fits: these are the weights of something else.
    """
    fits, left = matching(system, weights.state)
    own: Categories = system.categories  # type: ignore[assignment]
    if weights.categories is not None and weights.categories.names != own.names and build is not None:
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


def _of_categories(system: nn.Module, build: Build, own: Categories) -> set[str]:
    """Tensors whose shape changes with the number of categories."""
    larger = build(Categories((*own.names, "one category more"), keypoints=own.keypoints)).state_dict()
    return {name for name, tensor in system.state_dict().items() if larger[name].shape != tensor.shape}


def _translated(state: dict[str, Tensor]) -> Mapping[str, Tensor]:
    return read_torchvision_detector(state).state if is_torchvision_detector(state) else state
