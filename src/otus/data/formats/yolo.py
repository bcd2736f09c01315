"""YOLO: a text file of normalised coordinates per image, and a ``data.yaml`` of categories and image folders.

docs.ultralytics.com/datasets; nothing of that code is used. A line is a category's index and then one of ::

    cx cy w h                        a box
    x1 y1 x2 y2 x3 y3 …              a polygon of three points or more
    x1 y1 x2 y2 x3 y3 x4 y4          an oriented box, if every line of all splits has this form (else a polygon)
    cx cy w h  x1 y1 [v1] x2 y2 …    a box and keypoints, if data.yaml has kpt_shape: [K, 2] or [K, 3]

and in predictions a confidence at the end. All numbers are fractions of the image's width and height; they are read as
pixels. The labels of ``images/a/b.jpg`` are ``labels/a/b.txt``; without a folder ``images`` they are beside the image. An
image without a label file has no objects. Also read are folders without a data.yaml, images beside their label files
(labelImg), and the lists of Darknet and CVAT (``obj.data``, ``train.txt``).

Departures from Ultralytics: paths are relative to data.yaml, never to a settings folder, and may leave its folder only with
``allow_outside``; invalid lines are reported, not clipped; the parts of an object are not joined by bridges.
"""

import os
from contextlib import suppress
from itertools import chain
from pathlib import Path

from otus.data.dataset import Dataset, Images
from otus.data.formats.interface import (
    Layout,
)
from otus.data.formats.paths import (
    list_files,
    read_image_sizes,
    relative_name,
    report_unmatched_labels,
    resolve_inside,
)
from otus.data.formats.text_files import LabelLine, read_label_lines, read_name_list
from otus.data.formats.yolo_lines import have_four_points, parse_objects
from otus.data.formats.yolo_writing import write as write
from otus.data.formats.yolo_yaml import (
    MAX_CATEGORIES,
    YoloDescription,
    is_darknet,
    load_yaml,
    read_class_list,
    read_description,
    resolve_beside,
    split_folders,
    split_keys,
)
from otus.data.image_files import list_images
from otus.errors import DataError, Report, stop_at_first
from otus.structures import Categories


def find(path: Path) -> list[Layout]:
    """Find the splits of a data.yaml (or the folder that has it), else those of ``images`` and ``labels`` folders."""
    files = [path] if path.is_file() else [*list_files(path, "*.y*ml"), *list_files(path, "*.data")]
    for file in files:
        if is_darknet(file):
            return [Layout("yolo", file, split) for split in read_description(file).splits]
        if file.suffix not in (".yaml", ".yml"):
            continue
        try:
            content = load_yaml(file)
        except DataError:
            if path.is_file() or file.stem in ("data", "dataset"):
                return [Layout("yolo", file)]  # read reports the problem
            continue
        if "names" in content or "nc" in content:
            return [Layout("yolo", file, split) for split in split_keys(content)] or [Layout("yolo", file)]
    return [Layout("yolo", path, split or None) for split in split_folders(path)]


def read(layout: Layout, *, report: Report = stop_at_first, allow_outside: bool = False) -> Dataset:
    """Read a split: images, and objects with boxes, polygons, oriented boxes or keypoints.

    Without names, categories are those of ``classes.txt``, else ``0``, ``1`` …

    Parameters
    ----------
    allow_outside
        Whether paths in data.yaml and image lists may leave the folder of data.yaml (default: False).

    Raises
    ------
    DataError, ImageError
        Through ``report``. Raised directly: an invalid data.yaml.
    """
    description = read_description(layout.source, allow_outside=allow_outside)
    split = layout.split or ""
    if split not in description.splits:
        remedy = f"there are: {', '.join(description.splits)}" if description.splits else "add train: and val:"
        raise DataError(f"has no images for {split or 'any split'!r}", file=layout.source, remedy=remedy)
    paths: list[Path] = []
    for entry in description.splits[split]:
        images = _images(entry, description.root, layout.source, allow_outside, report)
        labels = _label_file(entry / "any", description.root).parent
        # If labels are in the folder of images, other text files there need no image.
        if os.path.isdir(entry) and labels != entry and labels.is_dir():
            files = [file for file in list_files(labels, "**/*.txt") if file.name != "classes.txt"]
            report_unmatched_labels(files, [_label_file(path, description.root) for path in images], report)
        paths += images
    paths, sizes = read_image_sizes(paths, report)
    lines = read_label_lines([_label_file(path, description.root) for path in paths], report)
    # The splits must agree on their categories, and on whether four points are an oriented box or a polygon.
    categories = description.categories or _listed_categories(description)
    if categories is None:
        categories = _numbered_categories([*lines, *_lines_of_other_splits(description, layout, allow_outside)])
    are_oriented = bool(lines) and have_four_points(lines)
    are_oriented = are_oriented and have_four_points(_lines_of_other_splits(description, layout, allow_outside))
    return Dataset(
        source=layout.source,
        format="yolo",
        split=layout.split,
        images=Images(
            root=description.root,
            files=tuple(relative_name(path, description.root) for path in paths),
            sizes_hw=sizes,
            ids=tuple(path.stem for path in paths),
        ),
        categories=categories,
        objects=parse_objects(lines, sizes, categories, description.keypoint_shape, report, are_oriented=are_oriented),
        unread=description.unread,
    )


def _images(entry: Path, root: Path, source: Path, allow_outside: bool, report: Report) -> list[Path]:
    """Return the images of a folder, or of a list of paths relative to the list or the root."""
    if os.path.isdir(entry):
        return list_images(entry, recursive=True)
    paths = []
    limit = source.parent if source.is_file() else source
    for number, name in read_name_list(entry):
        folder = entry.parent if os.path.exists(entry.parent / name) else root
        where = f"line {number}"
        try:
            if source.suffix == ".data":
                paths.append(resolve_beside(name, root, file=entry, where=where))
                continue
            path = resolve_inside(name, folder, within=limit, allow_outside=allow_outside, file=entry, where=where)
        except DataError as problem:
            report(problem)
        else:
            paths.append(path)
    return paths


def _label_file(image: Path, root: Path) -> Path:
    """Return the label file of an image."""
    parts = list(Path(relative_name(image, root)).with_suffix(".txt").parts)
    if "images" in parts:
        parts[len(parts) - 1 - parts[::-1].index("images")] = "labels"
    elif root.name == "images" and not os.path.isfile(root.joinpath(*parts)):
        parts = ["..", "labels", *parts]
    return root.joinpath(*parts)


def _listed_categories(description: YoloDescription) -> Categories | None:
    """Return the categories of ``classes.txt``, if there is one."""
    entries = [entry for split in description.splits.values() for entry in split]
    for folder in (description.root, description.root / "labels", *entries):
        if (folder / "classes.txt").is_file():
            return read_class_list(folder / "classes.txt")
    return None


def _lines_of_other_splits(description: YoloDescription, layout: Layout, allow_outside: bool) -> list[LabelLine]:
    """Return the lines of the other splits; what is invalid or missing is reported when its split is read."""
    paths: list[Path] = []
    others = [entries for split, entries in description.splits.items() if split != (layout.split or "")]
    for entry in chain.from_iterable(others):
        with suppress(DataError):
            paths += _images(entry, description.root, layout.source, allow_outside, lambda _: None)
    return read_label_lines([_label_file(path, description.root) for path in paths], lambda _: None)


def _numbered_categories(lines: list[LabelLine]) -> Categories:
    """Return categories named by their index, as many as the lines use."""
    words = {line.words[0] for line in lines}
    indices = [int(word) for word in words if word.isdecimal() and len(word) < 9]
    count = max((index for index in indices if index < MAX_CATEGORIES), default=-1) + 1
    return Categories(tuple(str(index) for index in range(count)))
