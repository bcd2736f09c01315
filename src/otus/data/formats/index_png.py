"""Semantic segmentation by label PNGs: a pixel's value is its category. Read only. ::

    train/*.jpg  trainannot/*.png  [train.txt]  [classes.txt]   CamVid as SegNet has it; likewise val, test
    images/[SPLIT/]*.jpg  masks/[SPLIT/]*.png  [classes.txt]    or annotations/ or labels/ instead of masks/
    JPEGImages/SEQUENCE/*.jpg  Annotations/SEQUENCE/*.png       DAVIS: the frames of videos

The lines of ``classes.txt`` have one of three forms, the same in all lines:

- a category name, whose pixel value is the line's number, from 0 (blank lines count);
- a pixel value and a name;
- red, green, blue and a name: the PNGs are then read as RGB, and a colour without a name is an error. With the other
  forms, the colours of a palette are not used.

Pixel values without a name are ignored, as are those named unlabelled, void, ignore or ignored. Without ``classes.txt``,
the PNGs must be binary masks: 0 for background and 255 for the object, with 128 for ignored pixels; or 0 and 1, with 255
for ignored pixels.
"""

from collections.abc import Set
from pathlib import Path

import numpy as np

from otus.data.dataset import Dataset, Images, SemanticFiles
from otus.data.formats.interface import Layout
from otus.data.formats.paths import (
    list_files,
    read_image_sizes,
    relative_name,
    resolve_inside,
    sample_files,
    subfolders,
)
from otus.data.formats.text_files import read_name_list, read_text
from otus.data.image_files import list_images
from otus.data.images import read_label_image
from otus.errors import DataError, Report, stop_at_first
from otus.structures import IGNORE, Categories

_CLASSES_FILE = "classes.txt"
_SPLITS = ("train", "val", "test")
_MASK_FOLDERS, _SEQUENCES = ("masks", "annotations", "labels"), "Annotations"
_VOID = frozenset(("unlabelled", "unlabeled", "void", "ignore", "ignored"))
_BINARY_VALUES = ({0, 255}, {0, 128, 255}, {0, 1}, {0, 1, 255})


def find(path: Path) -> list[Layout]:
    """Find images with label PNGs in one of the layouts above."""
    splits = [split for split in _SPLITS if (path / f"{split}annot").is_dir() and (path / split).is_dir()]
    if splits:
        return [Layout("index_png", path, split) for split in splits]
    masks = _mask_folder(path)
    if masks is None or not ((path / _CLASSES_FILE).is_file() or _are_binary_masks(masks)):
        return []
    splits = [folder.name for folder in subfolders(path / "images") if (masks / folder.name).is_dir()]
    return [Layout("index_png", path, split) for split in splits] or [Layout("index_png", path)]


def raise_if_names_missing(path: Path) -> None:
    """Raise if a folder in which :func:`find` finds nothing has images and label PNGs, but no ``classes.txt``."""
    if _mask_folder(path) is not None:
        raise _names_missing(path)


def _names_missing(path: Path) -> DataError:
    remedy = "write this file, with a line 'value name' for each category, or 'red green blue name' if the PNGs are RGB"
    return DataError(f"the label PNGs of {path} are not binary masks", file=path / _CLASSES_FILE, remedy=remedy)


def _mask_folder(path: Path) -> Path | None:
    """Return the folder of the label PNGs beside ``images``, or with the sequences of ``JPEGImages``; None if none."""
    names = _MASK_FOLDERS if (path / "images").is_dir() else ()
    if any((path / "JPEGImages" / folder.name).is_dir() for folder in subfolders(path / _SEQUENCES)):
        names = (*names, _SEQUENCES)
    return next((path / name for name in names if list_files(path / name, "**/*.png")), None)


def _are_binary_masks(masks: Path) -> bool:
    """Return whether the PNGs are binary masks, judged by a few of them."""
    try:
        return bool(_binary_values(sample_files(list_files(masks, "**/*.png"))))
    except DataError:
        return False


def _binary_values(files: list[Path]) -> set[int] | None:
    """Return the pixel values that occur in binary masks, None if the files are not binary masks."""
    values: set[int] = set()
    for file in files:
        values |= set(np.flatnonzero(np.bincount(read_label_image(file).ravel(), minlength=256)).tolist())
        if not any(values <= binary for binary in _BINARY_VALUES):
            return None
    return values


def read(layout: Layout, *, report: Report = stop_at_first) -> Dataset:
    """Read the images and the paths of their label PNGs.

    Raises
    ------
    DataError, ImageError
        Through ``report``: images that cannot be opened, have no label PNG, or are listed but missing; label PNGs
        without an image. Raised directly: an invalid ``classes.txt``, or, without it, label PNGs that are not binary
        masks.
    """
    root = layout.source
    folder, masks = _folders(layout)
    has_sequences = masks.name == _SEQUENCES

    def paths_by_name(folder: Path) -> dict[str, Path]:
        paths = list_images(folder, recursive=has_sequences)
        return {path.relative_to(folder).with_suffix("").as_posix(): path for path in paths}

    images = paths_by_name(folder)
    listed_names = _listed_stems(root / f"{layout.split}.txt", folder, images.keys(), report) if layout.split else None
    if listed_names is not None:
        images = {name: path for name, path in images.items() if name in listed_names}
    label_files = paths_by_name(masks)
    for name in sorted((listed_names or set()) - images.keys()):
        report(DataError("is listed but does not exist", file=folder / name, remedy="restore it", kind="missing_image"))
    for name in sorted(images.keys() - label_files.keys()):
        problem = f"has no label PNG in {masks}"
        report(DataError(problem, file=images.pop(name), remedy="add it or remove the image"))
    for name in sorted(label_files.keys() - images.keys()) if listed_names is None else ():
        remedy = f"put the image into {folder} or remove the label PNG"
        report(DataError("has no image of that name", file=label_files[name], remedy=remedy, kind="missing_image"))
    paths, sizes = read_image_sizes(list(images.values()), report)
    names = [path.relative_to(folder).with_suffix("").as_posix() for path in paths]
    semantic = _semantic_files(root, [label_files[name] for name in names])
    return Dataset(
        source=root,
        format="index_png",
        split=layout.split,
        images=Images(
            root=root,
            files=tuple(relative_name(path, root) for path in paths),
            sizes_hw=sizes,
            ids=tuple(names),
        ),
        categories=semantic.categories,
        semantic=semantic,
    )


def _folders(layout: Layout) -> tuple[Path, Path]:
    """Return the folders of images and label PNGs."""
    root, split = layout.source, layout.split or ""
    if split and (root / f"{split}annot").is_dir():
        return root / split, root / f"{split}annot"
    masks = _mask_folder(root)
    if masks is None:
        raise DataError(f"expected images and one of {_MASK_FOLDERS}", file=root, remedy="check the path")
    if masks.name == _SEQUENCES:
        return root / "JPEGImages", masks
    return root / "images" / split, masks / split


def _listed_stems(file: Path, folder: Path, known: Set[str], report: Report) -> set[str] | None:
    """Return the stems of the images in a list file, None if there is no such file.

    A line is the path of an image, which may contain spaces, or the paths of image and label PNG as in SegNet's CamVid.
    """
    if not file.is_file():
        return None
    stems = set()
    for number, line in read_name_list(file):
        name = line.rsplit("/", 1)[-1]  # after two paths, the label PNG's name, which has the image's stem
        if not {name, Path(name).stem} & known:
            name = line.split()[0].rsplit("/", 1)[-1]
        where = f"line {number}"
        try:
            stems.add(resolve_inside(name, folder, within=folder, allow_outside=False, file=file, where=where).stem)
        except DataError as problem:
            report(problem)
    return stems


def _semantic_files(root: Path, files: list[Path]) -> SemanticFiles:
    """Return the label PNGs with the categories of their pixel values or colours."""
    lookup = np.full(256, IGNORE)
    if (root / _CLASSES_FILE).is_file():
        names, colours = _class_names(root / _CLASSES_FILE)
        kept = [value for value in names if names[value].lower() not in _VOID]
        lookup[kept] = np.arange(len(kept))
        void = {IGNORE, *names} - set(kept)
        categories = Categories(tuple(names[value] for value in kept), ids=tuple(kept))
        return SemanticFiles(tuple(files), categories, lookup, tuple(sorted(void)), colours)
    values = _binary_values(files)
    if values is None:
        raise _names_missing(root)
    lookup[0] = 0
    lookup[1 if 1 in values else 255] = 1
    return SemanticFiles(tuple(files), Categories(("background", "object")), lookup, (128, 255))


def _class_names(file: Path) -> tuple[dict[int, str], tuple[tuple[int, int, int], ...]]:
    """Return the names by pixel value, in ascending order, and the colour of each value if the file has colours."""
    numbered = enumerate(map(str.strip, read_text(file).splitlines()), start=1)
    lines = {number: line for number, line in numbered if line}
    if not lines:
        raise DataError("has no categories", file=file, remedy="write a line 'value name' for each category")
    words = {number: line.split(maxsplit=3) for number, line in lines.items()}
    if all(len(parts) == 4 and all(part.isdecimal() for part in parts[:3]) for parts in words.values()):
        return _coloured_names(file, words)
    pairs = {number: line.split(maxsplit=1) for number, line in lines.items()}
    if not all(len(parts) == 2 and parts[0].isdecimal() for parts in pairs.values()):
        pairs = {number: [str(number - 1), line] for number, line in lines.items()}
    names: dict[int, str] = {}
    for number, (value, name) in pairs.items():
        if len(value) > 3 or int(value) > 255 or int(value) in names or name in names.values():
            problem = f"expected a new value 0..255 and a new name, got {value:.20} {name!r}"
            raise DataError(problem, file=file, where=f"line {number}", remedy="correct the line")
        names[int(value)] = name
    return dict(sorted(names.items())), ()


def _coloured_names(file: Path, lines: dict[int, list[str]]) -> tuple[dict[int, str], tuple[tuple[int, int, int], ...]]:
    """Return the names by index of their colour, and the colours, from numbered lines of red, green, blue and a name."""
    names: list[str] = []
    colours: list[tuple[int, int, int]] = []
    for number, (red, green, blue, name) in lines.items():
        colour = (int(red[:4]), int(green[:4]), int(blue[:4]))
        if (
            max(map(len, (red, green, blue))) > 3
            or max(colour) > 255
            or colour in colours
            or name in names
            or len(names) == IGNORE
        ):
            problem = f"expected a new colour of three numbers 0..255 and a new name, at most {IGNORE} of them"
            problem += f", got {' '.join(map(str, colour))} {name!r}"
            raise DataError(problem, file=file, where=f"line {number}", remedy="correct the line")
        names.append(name)
        colours.append(colour)
    return dict(enumerate(names)), tuple(colours)
