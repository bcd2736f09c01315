"""DOTA: a text file of oriented boxes per image, as four corners in pixels. Read only.

Xia et al., DOTA: A Large-scale Dataset for Object Detection in Aerial Images, CVPR 2018. ::

    images/NAME.png  labelTxt/NAME.txt      or annfiles/ as mmrotate has it, or both in one folder

    imagesource:GoogleEarth                 the first two lines may be missing
    gsd:0.1464
    x1 y1 x2 y2 x3 y3 x4 y4 category difficult

Categories are those of the first DOTA version (15, 16 or 18 categories) that includes all names in use, else the names
in use, sorted.
"""

from pathlib import Path

import numpy as np

from otus.data.dataset import Dataset, Images
from otus.data.formats.interface import Layout
from otus.data.formats.paths import (
    list_files,
    read_image_sizes,
    relative_name,
    report_unmatched_labels,
    sample_files,
    subfolders,
)
from otus.data.formats.text_files import LabelLine, parse_numbers, read_label_lines, read_text
from otus.data.formats.unread_fields import UnreadFields
from otus.data.image_files import IMAGE_SUFFIXES, list_images
from otus.errors import DataError, Report, stop_at_first
from otus.structures import Categories, Objects
from otus.structures.oriented import areas_of_corners

NAMES = (
    "plane", "baseball-diamond", "bridge", "ground-track-field", "small-vehicle", "large-vehicle", "ship", "tennis-court",
    "basketball-court", "storage-tank", "soccer-ball-field", "roundabout", "harbor", "swimming-pool", "helicopter",
    "container-crane", "airport", "helipad",
)  # fmt: skip
_VERSIONS = (15, 16, 18)
_LABEL_FOLDERS = ("labelTxt", "annfiles")
_HEADERS = ("imagesource:", "gsd:")


def find(path: Path) -> list[Layout]:
    """Find a folder with ``labelTxt``, subfolders with it (splits), or images mixed with such text files."""
    if _label_folder(path) is not None or _is_mixed(path):
        return [Layout("dota", path)]
    return [Layout("dota", path, folder.name) for folder in subfolders(path) if _label_folder(folder) is not None]


def _label_folder(folder: Path) -> Path | None:
    return next((part for part in subfolders(folder) if part.name.startswith(_LABEL_FOLDERS)), None)


def _is_mixed(folder: Path) -> bool:
    for file in sample_files(list_files(folder, "*.txt")):
        if any(file.with_suffix(suffix).is_file() for suffix in IMAGE_SUFFIXES):
            try:
                lines = [line.split() for line in read_text(file).splitlines() if not line.startswith(_HEADERS)]
            except DataError:
                continue
            if any(len(words) in (9, 10) and not _is_number(words[8]) for words in lines):
                return True
    return False


def _is_number(word: str) -> bool:
    return word.lstrip("-").replace(".", "", 1).isdecimal()


def read(layout: Layout, *, report: Report = stop_at_first) -> Dataset:
    """Read the images, the oriented boxes (``corners_xy``) and their enclosing boxes; ``difficult`` is a column.

    Raises
    ------
    DataError, ImageError
        Through ``report``: invalid lines, labels without an image, images that cannot be opened.
    """
    folder = layout.source / (layout.split or "")
    label_folder = _label_folder(folder) or folder
    image_folder = next((part for part in (folder / "images", folder) if part.is_dir() and list_images(part)), folder)
    paths = list_images(image_folder)
    if label_folder != folder:  # a folder of images may contain other text files
        files = [label_folder / f"{path.stem}.txt" for path in paths]
        report_unmatched_labels(list_files(label_folder, "*.txt"), files, report)
    paths, sizes = read_image_sizes(paths, report)
    unread = UnreadFields()
    lines = _boxes(read_label_lines([label_folder / f"{path.stem}.txt" for path in paths], report), report, unread)
    lines, values = parse_numbers(lines, slice(0, 8), report)
    corners = values.reshape(-1, 4, 2)
    names = [line.words[8] for line in lines]
    categories = Categories(_category_names(layout, set(names)))
    label_of = {name: label for label, name in enumerate(categories)}
    return Dataset(
        source=layout.source,
        format="dota",
        split=layout.split,
        images=Images(
            root=layout.source,
            files=tuple(relative_name(path, layout.source) for path in paths),
            sizes_hw=sizes,
            ids=tuple(path.stem for path in paths),
        ),
        categories=categories,
        objects=Objects.build(
            image_index=[line.image for line in lines],
            labels=[label_of[name] for name in names],
            boxes_xyxy=np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1),
            areas=areas_of_corners(corners),
            corners_xy=corners,
            columns={"difficult": np.array([line.words[9:] not in ([], ["0"]) for line in lines], dtype=bool)},
        ),
        unread=unread.finish(),
    )


def _boxes(lines: list[LabelLine], report: Report, unread: UnreadFields) -> list[LabelLine]:
    """Return the lines that have as many words as a box has fields."""
    kept = []
    for line in lines:
        if line.number <= 2 and line.words[0].startswith(_HEADERS):
            name, _, value = " ".join(line.words).partition(":")
            unread.note(name, [value])
            continue
        if len(line.words) not in (9, 10):
            report(
                line.fault(f"expected 8 numbers, a category and difficult, got {len(line.words)} words", "correct it")
            )
        elif not all(word.isdecimal() for word in line.words[9:]):
            report(line.fault(f"word 10: expected difficult, 0 or 1, got {line.words[9]!r}", "correct it"))
        else:
            kept.append(line)
    return kept


def _category_names(layout: Layout, names: set[str]) -> tuple[str, ...]:
    for count in _VERSIONS:
        if names <= set(NAMES[:count]):
            return NAMES[:count]
    if layout.split:  # include the other splits, so that class indices agree
        folders = [_label_folder(folder) or folder for folder in subfolders(layout.source)]
        files = [file for folder in folders for file in list_files(folder, "*.txt")]
        names |= {line.words[8] for line in read_label_lines(files, lambda _: None) if len(line.words) in (9, 10)}
    return tuple(sorted(names))
