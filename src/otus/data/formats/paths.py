"""Paths of images and label files: list them, name them, and keep them inside their folder."""

import fnmatch
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int

from otus.data.dataset import Dataset
from otus.data.image_files import is_system_file, walk_folders
from otus.data.images import image_size_hw
from otus.errors import DataError, ImageError, Report

SPLIT_FOLDERS = ("train", "training", "val", "valid", "validation", "test", "testing")
OUTSIDE_REMEDY = "write a path inside it; otus convert --allow-outside follows it, if you trust the file"


def list_files(folder: Path, pattern: str) -> list[Path]:
    """Return the files in a folder that match a pattern, sorted, without system files such as ``._a.xml``."""
    if pattern.startswith("**/"):  # Path.glob follows no links to folders
        walk = walk_folders(folder)
        files = sorted(Path(parent, name) for parent, _, names in walk for name in fnmatch.filter(names, pattern[3:]))
    else:
        files = sorted(folder.glob(pattern))
    return [file for file in files if not any(map(is_system_file, file.relative_to(folder).parts))]


def sample_files(files: Sequence[Path], count: int = 8) -> list[Path]:
    """Return a few files spread over a list, to recognise a format (the first file may be unrelated)."""
    step = max(1, len(files) // count)
    return list(files[::step])


def subfolders(path: Path) -> list[Path]:
    """Return the visible subfolders of a folder, sorted; none if it cannot be read."""
    try:
        return sorted(folder for folder in path.iterdir() if not is_system_file(folder.name) and folder.is_dir())
    except OSError:
        return []


def report_unmatched_labels(labels: Sequence[Path], expected: Sequence[Path], report: Report) -> None:
    """Report label files that belong to no image."""
    paths = {os.path.normpath(path) for path in expected}
    for file in labels:
        if os.path.normpath(file) not in paths:
            remedy = "restore the image or remove the labels"
            report(DataError("has no image of that name", file=file, remedy=remedy, kind="missing_image"))


def read_image_sizes(paths: Sequence[Path], report: Report) -> tuple[list[Path], Int[np.ndarray, "m 2"]]:
    """Return the images that can be opened, and their sizes (M, 2) from their headers; report the others."""
    kept, sizes = [], []
    for path in paths:
        try:
            sizes.append(image_size_hw(path))
        except ImageError as problem:
            report(problem)
            continue
        kept.append(path)
    return kept, np.array(sizes, dtype=np.int64).reshape(-1, 2)


def relative_name(path: Path, root: Path) -> str:
    """Return a path relative to a folder, with forward slashes, as data sets store it."""
    return Path(os.path.relpath(path, root)).as_posix()


def resolve_inside(name: str, folder: Path, *, within: Path, allow_outside: bool, file: Path, where: str) -> Path:
    """Resolve a path that ``file`` mentions, relative to ``folder``.

    Raises
    ------
    DataError
        If it is not a valid path, or leaves the folder ``within`` without ``allow_outside``. Symbolic links are not
        resolved.
    """
    path, limit = Path(os.path.normpath(folder.absolute() / name)), Path(os.path.normpath(within.absolute()))
    try:
        is_valid = "\0" not in name and max(len(os.fsencode(part)) for part in path.parts) <= 255
    except ValueError:  # e.g. half a surrogate pair
        is_valid = False
    if not is_valid:
        raise DataError(f"{name[:40]!r} cannot be a path", file=file, where=where, remedy="correct the name")
    if not allow_outside and not path.is_relative_to(limit):
        raise DataError(
            f"{name!r} leads outside the folder {limit}",
            file=file,
            where=where,
            remedy=OUTSIDE_REMEDY,
            kind="path_outside",
        )
    return path


def flat_names_per_split(splits: Sequence[Dataset]) -> list[list[str]]:
    """Return file names without folders for the images of each split; an image in two splits has one name."""
    if len(splits) == 1:
        return [flat_names(splits[0].images.files)]
    paths = [[os.path.abspath(dataset.images.path(i)) for i in range(len(dataset))] for dataset in splits]
    unique = list(dict.fromkeys(path for split_paths in paths for path in split_paths))
    root = os.path.commonpath([os.path.dirname(path) for path in unique]) if unique else ""
    names = flat_names([Path(os.path.relpath(path, root)).as_posix() for path in unique])
    name_of = dict(zip(unique, names, strict=True))
    return [[name_of[path] for path in split_paths] for split_paths in paths]


def flat_names(files: Sequence[str]) -> list[str]:
    """Return unique file names without folders; the stems are unique too, since label files are named after them."""
    names = [file.rsplit("/", 1)[-1] for file in files]
    if _stems_differ(names):
        return names
    joined = ["_".join(part for part in file.split("/") if part not in (".", "..")) for file in files]
    return joined if _stems_differ(joined) else [f"{index:06d}_{name}" for index, name in enumerate(names)]


def _stems_differ(names: Sequence[str]) -> bool:
    return max(Counter(Path(name).stem.casefold() for name in names).values(), default=0) <= 1
