"""Find the image of a data set that a name, path or id refers to."""

import difflib
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath

from otus.data.dataset import Dataset
from otus.errors import UsageError

_MAX_NAMES = 5


def find_image_index(dataset: Dataset, name: str) -> int:
    """Return the index of the image with the given key, path, file name or stem, else of that with the given id.

    Raises
    ------
    UsageError
        If there is none (the message lists similar names) or more than one.
    """
    files = dataset.images.files
    if name in files:
        return files.index(name)
    if Path(name).is_file():
        path = Path(name).resolve()
        same_path = [
            i for i in range(len(files)) if files[i].endswith(path.name) and dataset.images.path(i).resolve() == path
        ]
        if same_path:
            return same_path[0]
    file_name = Path(name).name
    matches = [i for i, file in enumerate(files) if file_name in (Path(file).name, Path(file).stem)]
    matches = matches or [i for i, image_id in enumerate(dataset.images.ids) if file_name == str(image_id)]
    if len(matches) == 1:
        return matches[0]
    if matches:
        examples = ", ".join(files[i] for i in matches[:_MAX_NAMES])
        raise UsageError(f"{name}: {len(matches)} images of {dataset.source} match: {examples} (give the path)")
    similar = difflib.get_close_matches(file_name, [Path(file).name for file in files], n=_MAX_NAMES, cutoff=0.5)
    examples = ", ".join(similar or [Path(file).name for file in files[:_MAX_NAMES]])
    hint = "similar names" if similar else "for example"
    raise UsageError(f"{name}: not one of the {len(files)} images of {dataset.source}; {hint}: {examples}")


def example_names(dataset: Dataset) -> str:
    """Return the names of a few images, for error messages."""
    names = [PurePosixPath(file).stem for file in dataset.images.files[:3]]
    return f"{', '.join(names) or 'none'}{' …' if len(dataset) > len(names) else ''}"


def image_index_by_name(dataset: Dataset) -> Callable[[str], int | None]:
    """Return a function from an image's name to its index (None unless exactly one image matches), fast for many names.

    A name is an unambiguous end of an image's path with or without the suffix (``val/cats/1.jpg``, ``cats/1.jpg``,
    ``cats/1``, ``1`` …), else an image's id; further parent folders in front are ignored.
    """
    files, ids = dataset.images.files, dataset.images.ids
    index_of = _unambiguous((str(image_id), index) for index, image_id in enumerate(ids))
    index_of |= _unambiguous((name, index) for index, file in enumerate(files) for name in _names(file))

    def find(name: str) -> int | None:
        return next((index_of[end] for end in _path_ends(name) if end in index_of), None)

    return find


def _names(file: str) -> set[str]:
    """Return the names of an image: the ends of its path, with and without the suffix."""
    return {*_path_ends(file), *_path_ends(file.removesuffix(PurePosixPath(file).suffix))}


def _path_ends(path: str) -> list[str]:
    """Return a path without its first 0, 1, 2 … folders."""
    parts = PurePosixPath(path).parts
    return ["/".join(parts[first:]) for first in range(len(parts))]


def _unambiguous(names: Iterable[tuple[str, int]]) -> dict[str, int | None]:
    """Return the index of each name, None for the names of several images."""
    index_of: dict[str, int | None] = {}
    for name, index in names:
        index_of[name] = None if name in index_of else index
    return index_of
