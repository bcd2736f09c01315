"""Recognise and open the data set at a path, whatever its format."""

import logging
from collections import Counter
from dataclasses import replace
from functools import cache
from itertools import islice
from pathlib import Path
from types import ModuleType

import msgspec

from otus.data.dataset import Dataset
from otus.data.formats import (
    classification_folders,
    coco,
    coco_panoptic,
    cvat,
    dota,
    index_png,
    kitti,
    label_studio,
    labelme,
    sa1b,
    voc,
    yolo,
)
from otus.data.formats.interface import Layout
from otus.data.formats.text_files import read_json_bytes
from otus.data.formats.unsupported import find_unsupported
from otus.data.git_lfs import raise_if_lfs_pointer
from otus.data.ignore_regions import with_ignore_regions
from otus.data.image_files import IMAGE_SUFFIXES, is_system_file
from otus.errors import DataError, Report, UsageError, did_you_mean, stop_at_first

# The most specific formats first: a folder of folders of images may be anything.
FORMATS: tuple[ModuleType, ...] = (
    coco,
    coco_panoptic,
    voc,
    cvat,
    yolo,
    labelme,
    label_studio,
    sa1b,
    dota,
    kitti,
    index_png,
    classification_folders,
)

_WITH_IMAGE_PATHS = (coco, coco_panoptic, cvat, yolo, labelme, sa1b)
_KNOWN_FORMATS = """\
COCO JSON (instances, keypoints, panoptic), Pascal VOC (Annotations/, JPEGImages/), YOLO (data.yaml, labels/, obj.data), \
LabelMe and SA-1B (one JSON per image), CVAT XML (for images), Label Studio JSON, DOTA (labelTxt/), KITTI (label_2/), \
images with index PNGs, one folder per category"""


def format_name(module: ModuleType) -> str:
    """Return the name of a format (for ``--format`` and ``Layout.format``): its module's name."""
    return module.__name__.rpartition(".")[2]


_MAX_FILES_INSPECTED = 1000  # in a folder in which no format was recognised
_MAX_CHECKED_BYTES = 1 << 26  # of a JSON file that no format recognised
# Files do not tell whether VOC counts pixels from 1 or from 0: the latter is read only when chosen by this name.
_BY_NAME = {format_name(module): module for module in FORMATS} | {voc.ZERO_BASED: voc}


def find_layouts(path: str | Path) -> list[Layout]:
    """Return every data set at a path (a file, or a folder and its usual subfolders), reading only first bytes.

    Raises
    ------
    DataError
        If there is no such path, or a file is empty.
    """
    path = Path(path)
    if not path.exists():
        raise DataError("there is no such file or folder", file=path, remedy="check the path")
    if path.is_file() and path.stat().st_size == 0:
        raise DataError("the file is empty", file=path, remedy="copy or write it again", kind="broken_json")
    if path.is_file():
        raise_if_lfs_pointer(path)
    layouts = [layout for module in FORMATS for layout in module.find(path)]
    return layouts


def open_dataset(
    path: str | Path,
    *,
    format: str | None = None,
    split: str | None = None,
    report: Report = stop_at_first,
    allow_outside: bool = False,
) -> Dataset:
    """Open the data set at a path.

    Parameters
    ----------
    path
        An annotation file, or a folder.
    format, split
        Format and split to open, if there are several (default: the only one).
    report
        Called with each problem of the labels (default: raise the first).
    allow_outside
        Whether paths in the files may lead outside their folder.

    Raises
    ------
    UsageError
        If several data sets match, or none: the message lists those there are.
    DataError
        If no known format is found, or the labels are invalid.

    Examples
    --------
    >>> otus.open_dataset("shared/data/voc2007", format="voc", split="val")  # doctest: +SKIP
    """
    layouts = choose_layouts(path, format=format, split=split)
    if len(layouts) > 1:
        raise UsageError(_list_choices(Path(path), f"holds {len(layouts)} data sets", layouts))
    return open_layout(layouts[0], report=report, allow_outside=allow_outside)


def open_splits(
    path: str | Path,
    *,
    format: str | None = None,
    split: str | None = None,
    report: Report = stop_at_first,
    allow_outside: bool = False,
) -> list[Dataset]:
    """Open the data set at a path with all of its splits.

    Raises
    ------
    UsageError
        If there are several data sets that are not splits of one format: the message lists them.
    """
    layouts = choose_layouts(path, format=format, split=split)
    splits = {layout.split for layout in layouts}
    if len(layouts) > 1 and (
        len(splits) < len(layouts) or None in splits or len({layout.format for layout in layouts}) > 1
    ):
        raise UsageError(_list_choices(Path(path), f"holds {len(layouts)} data sets", layouts))
    return [open_layout(layout, report=report, allow_outside=allow_outside) for layout in layouts]


def choose_layouts(
    path: str | Path, *, format: str | None = None, split: str | None = None, secondary: bool = False
) -> list[Layout]:
    """Return the data sets at a path, filtered by format and split; at least one.

    Data sets with other labels of the same images (``Layout.secondary``) are left out unless ``split`` names them or
    ``secondary`` is True, and so are files without objects (COCO's captions). Both are logged once, as warnings of the
    logger ``otus``.

    Raises
    ------
    UsageError
        If none has that format and split: the message lists those there are.
    DataError
        If no known format is found.
    """
    if format is not None and format not in _BY_NAME:
        raise UsageError(f"unknown format {format!r}; there are: {', '.join(_BY_NAME)}{did_you_mean(format, _BY_NAME)}")
    layouts = find_layouts(path)
    if format == voc.ZERO_BASED:
        layouts = [replace(layout, format=format) for layout in layouts if layout.format == "voc"]
    if not layouts:
        for file in islice(Path(path).rglob("*"), _MAX_FILES_INSPECTED):
            if file.is_file():
                raise_if_lfs_pointer(file)
        _check_json(Path(path))
        for file, tool, export in find_unsupported(Path(path)):
            problem = f"seems to be written by {tool}, whose format is not supported"
            raise DataError(problem, file=file, remedy=f"export {export} instead", kind="foreign_format")
        index_png.raise_if_names_missing(Path(path))
        if Path(path).is_dir() and _has_only_images(Path(path)):
            raise DataError(
                "holds images without labels",
                file=path,
                remedy="label some in a tool that writes COCO, VOC, YOLO or LabelMe files; otus predict finds objects on "
                "images without labels",
                kind="no_labels",
            )
        raise DataError("found no data set here", file=path, remedy=f"known formats: {_KNOWN_FORMATS}")
    matching = [layout for layout in layouts if format in (None, layout.format) and split in (None, layout.split)]
    if not matching:
        filters = " and ".join(f"{name} {value!r}" for name, value in (("format", format), ("split", split)) if value)
        splits = {layout.split for layout in layouts if layout.split} - {split}
        raise UsageError(
            _list_choices(Path(path), f"holds none of {filters}{did_you_mean(split or '', splits)}", layouts)
        )
    skipped = [] if secondary else [layout for layout in layouts if layout.secondary and layout not in matching]
    if split is None and not secondary and not all(layout.secondary for layout in matching):
        skipped += [layout for layout in matching if layout.secondary]
        matching = [layout for layout in matching if not layout.secondary]
    _log_skipped(Path(path), matching, skipped)
    return matching


def _log_skipped(path: Path, chosen: list[Layout], left_out: list[Layout]) -> None:
    """Log which annotation files are not read beside the chosen ones, and how to choose them."""
    if not any(layout.format == coco.FORMAT for layout in chosen):
        return
    names = ", ".join(layout.source.name for layout in chosen if layout.format == coco.FORMAT)
    splits = {layout.split for layout in chosen}
    other_splits = [layout.split for layout in left_out if layout.split and layout.split.rpartition("/")[2] in splits]
    if other_splits:
        _log_once(f"{path}: reading {names}; other labels of the same images by --split {', '.join(other_splits)}")
    if skipped := [file.name for file in coco.files_without_objects(path)]:
        _log_once(f"{path}: skipping files without categories or labels of objects: {', '.join(skipped)}")


@cache
def _log_once(message: str) -> None:
    logging.getLogger("otus").warning("otus: %s", message)


def open_layout(layout: Layout, *, report: Report = stop_at_first, allow_outside: bool = False) -> Dataset:
    """Read the data set of a layout; parameters as in :func:`open_dataset`."""
    module = _BY_NAME[layout.format]
    options = {"allow_outside": allow_outside} if module in _WITH_IMAGE_PATHS else {}
    return with_ignore_regions(module.read(layout, report=report, **options))


def _has_only_images(folder: Path) -> bool:
    names = [
        file.name
        for file in islice(folder.rglob("*"), _MAX_FILES_INSPECTED)
        if file.is_file() and not is_system_file(file.name)
    ]
    return bool(names) and all(Path(name).suffix.lower() in IMAGE_SUFFIXES for name in names)


def _check_json(path: Path) -> None:
    """Raise if a JSON file is broken: no format recognises a truncated one."""
    for file in coco.json_files(path):
        if file.stat().st_size > _MAX_CHECKED_BYTES:
            continue
        try:
            msgspec.json.decode(read_json_bytes(file))
        except (msgspec.MsgspecError, RecursionError) as error:
            remedy = "it may have been cut off; copy or write it again"
            raise DataError(f"broken JSON: {error}", file=file, remedy=remedy, kind="broken_json") from None


def _list_choices(path: Path, problem: str, layouts: list[Layout]) -> str:
    """Return the message that lists the data sets to choose from."""
    lines = [
        f"  --format {layout.format}" + (f" --split {layout.split}" if layout.split else "") + f"  ({layout.source})"
        for layout in layouts
    ]
    most_alike = max(Counter((layout.format, layout.split) for layout in layouts).values())
    remedy = "choose by --format and --split" + (", or give the file itself" if most_alike > 1 else "")
    return "\n".join([f"{path}: {problem}; {remedy}:", *lines])
