"""Find the image of a data set that a name, path or id refers to."""

import difflib
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from otus.data.dataset import Dataset
from otus.errors import UsageError

_NEAR_NAMES = 5


def find_image_index(dataset: Dataset, name: str) -> int:
    """Return the index of the image with a given key, path, file name, stem or id.

    Raises
    ------
    UsageError
        If there is none, with the nearest names, or if there are several.
    """
    files = dataset.images.files
    if name in files:
        return files.index(name)
    if Path(name).is_file():
        path = Path(name).resolve()
        same = [
            i for i in range(len(files)) if files[i].endswith(path.name) and dataset.images.path(i).resolve() == path
        ]
        if same:
            return same[0]
    file_name = Path(name).name
    meant = [
        i for i, file in enumerate(files) if file_name in (Path(file).name, Path(file).stem, str(dataset.images.ids[i]))
    ]
    if len(meant) == 1:
        return meant[0]
    if meant:
        several = ", ".join(files[i] for i in meant[:_NEAR_NAMES])
        raise UsageError(f"{name}: {len(meant)} images of {dataset.source} are called so: {several} (give the path)")
    near = difflib.get_close_matches(file_name, [Path(file).name for file in files], n=_NEAR_NAMES, cutoff=0.5)
    known = ", ".join(near or [Path(file).name for file in files[:_NEAR_NAMES]])
    hint = "near are" if near else "there are"
    raise UsageError(f"{name}: not one of the {len(files)} images of {dataset.source}; {hint}: {known}")


def example_names(dataset: Dataset) -> str:
    """Return the names of a few images, for error messages."""
    names = [PurePosixPath(file).stem for file in dataset.images.files[:3]]
    return f"{', '.join(names) or 'none'}{' …' if len(dataset) > len(names) else ''}"


def image_index_by_name(dataset: Dataset) -> Callable[[str], int | None]:
    """Return a function from an image's name to its index, None for no image or several; fast for many names.

    A name is an image's id, or its file as far as it is needed to tell it from others, with or without its suffix:
    ``val/cats/1.jpg``, ``cats/1.jpg``, ``cats/1``, ``1`` …; folders before that do not matter.
    """
    meant: dict[str, int | None] = {}
    for index, (file, own) in enumerate(zip(dataset.images.files, dataset.images.ids, strict=True)):
        parts = PurePosixPath(file).parts
        names = {"/".join(parts[first:]) for first in range(len(parts))}
        names |= {name.removesuffix(PurePosixPath(file).suffix) for name in names} | {str(own)}
        for name in names:
            meant[name] = index if name not in meant else None

    def find(name: str) -> int | None:
        parts = PurePosixPath(name).parts
        endings = ("/".join(parts[first:]) for first in range(len(parts)))
        return next((meant[ending] for ending in endings if ending in meant), None)

    return find
