"""KITTI object labels: a text file of boxes and cuboids per image. Read only.

Geiger et al., Are we ready for Autonomous Driving? The KITTI Vision Benchmark Suite, CVPR 2012; the development kit's
readme. ::

    image_2/NAME.png  label_2/NAME.txt

    type truncated occluded alpha  left top right bottom  height width length  x y z  rotation_y  [score]

Boxes are 0-based pixel coordinates and kept unchanged: as in the development kit, the width is right - left. Cuboids
are converted from KITTI's camera frame to the frame of Otus. KITTI: x right, y down, z forward, in metres; the location
is the centre of the bottom face; rotation_y is about the y axis, 0 if the object points along x. Otus: x forward, y
left, z up; the location is the centre of the cuboid::

    x, y, z = z_camera, -x_camera, -y_camera + height / 2        yaw = -rotation_y - pi / 2

``DontCare`` regions are crowds of a category of that name with the column ``ignored``; detections in them are ignored.
"""

from pathlib import Path

import numpy as np
from jaxtyping import Float

from otus.data.dataset import Dataset, Images
from otus.data.formats.interface import Layout
from otus.data.formats.paths import (
    list_files,
    read_image_sizes,
    relative_name,
    report_unmatched_labels,
    subfolders,
)
from otus.data.formats.text_files import LabelLine, parse_numbers, read_label_lines
from otus.data.image_files import list_images
from otus.errors import Report, stop_at_first
from otus.structures import Categories, Objects

IGNORED = "DontCare"
NAMES = ("Car", "Van", "Truck", "Pedestrian", "Person_sitting", "Cyclist", "Tram", "Misc", IGNORED)


def find(path: Path) -> list[Layout]:
    """Find a folder with ``image_2`` and ``label_2``, or subfolders with both (``training``), which are splits."""
    if _is_kitti(path):
        return [Layout("kitti", path)]
    return [Layout("kitti", path, folder.name) for folder in subfolders(path) if _is_kitti(folder)]


def _is_kitti(folder: Path) -> bool:
    return (folder / "image_2").is_dir() and (folder / "label_2").is_dir()


def read(layout: Layout, *, report: Report = stop_at_first) -> Dataset:
    """Read the images, boxes and cuboids (for their frame see the top of this file).

    ``truncated`` (0..1), ``occluded`` (0..3, 3: unknown), ``alpha`` (radians) and ``ignored`` are columns. The
    placeholders -1 and -10 of ``DontCare`` regions become 0.

    Raises
    ------
    DataError, ImageError
        Through ``report``.
    """
    folder = layout.source / (layout.split or "")
    paths = list_images(folder / "image_2")
    label_folder = folder / "label_2"
    files = [label_folder / f"{path.stem}.txt" for path in paths]
    report_unmatched_labels(list_files(label_folder, "*.txt"), files, report)
    paths, sizes = read_image_sizes(paths, report)
    lines = read_label_lines([label_folder / f"{path.stem}.txt" for path in paths], report)
    names = {line.words[0] for line in lines if len(line.words) in (15, 16)}
    categories = Categories(NAMES if names <= set(NAMES) else tuple(sorted(names | set(NAMES))))
    return Dataset(
        source=layout.source,
        format="kitti",
        split=layout.split,
        images=Images(
            root=layout.source,
            files=tuple(relative_name(path, layout.source) for path in paths),
            sizes_hw=sizes,
            ids=tuple(path.stem for path in paths),
        ),
        categories=categories,
        objects=parse_objects(lines, categories, report),
    )


def parse_objects(lines: list[LabelLine], categories: Categories, report: Report) -> Objects:
    """Parse label lines to objects; invalid lines and unknown categories are reported and skipped."""
    label_of = {name: label for label, name in enumerate(categories)}
    of_known_category = [line for line in lines if line.words[0] in label_of]
    for line in lines:
        if line.words[0] not in label_of:
            report(line.fault(f"{line.words[0]!r} is not one of the categories: {', '.join(categories)}", "correct it"))
    lines, values = _valid_lines(of_known_category, report)
    names = [line.words[0] for line in lines]
    ignored = np.array([name == IGNORED for name in names], dtype=bool)
    columns = {name: np.where(ignored, 0.0, values[:, i]) for i, name in enumerate(("truncated", "occluded", "alpha"))}
    return Objects.build(
        image_index=[line.image for line in lines],
        labels=[label_of[name] for name in names],
        boxes_xyxy=values[:, 3:7],
        is_crowd=ignored,
        scores=values[:, 14] if any(len(line.words) == 16 for line in lines) else None,
        cuboids=np.where(ignored[:, None], np.nan, _cuboids(values[:, 7:14])),
        columns={**columns, "ignored": ignored},
    )


def _valid_lines(lines: list[LabelLine], report: Report) -> tuple[list[LabelLine], Float[np.ndarray, "n v"]]:
    """Return the valid lines and their numeric fields: 14, or 15 with a score."""
    lengths = {len(line.words) for line in lines}
    length = 16 if lengths == {16} else 15
    kept = []
    for line in lines:
        if len(line.words) == length:
            kept.append(line)
        else:
            problem = f"expected a type and {length - 1} numbers, got {len(line.words)} words"
            report(line.fault(problem, "correct it; all lines need a score, or none"))
    kept, values = parse_numbers(kept, slice(1, None), report)
    rows = values.reshape(len(kept), length - 1)
    inverted = (rows[:, 5] < rows[:, 3]) | (rows[:, 6] < rows[:, 4])
    for i in np.flatnonzero(inverted):
        report(
            kept[i].fault(f"expected left <= right and top <= bottom, got {rows[i, 3:7].tolist()}", "correct the box")
        )
    return [line for line, wrong in zip(kept, inverted, strict=True) if not wrong], rows[~inverted]


def _cuboids(values: Float[np.ndarray, "n 7"]) -> Float[np.ndarray, "n 7"]:
    """Convert KITTI's (height, width, length, x, y, z, rotation_y) to (x, y, z, length, width, height, yaw), z up."""
    height, width, length, x, y, z, rotation = values.T
    yaw = -rotation - np.pi / 2
    yaw = np.pi - (np.pi - yaw) % (2 * np.pi)  # into (-pi, pi]
    return np.column_stack([z, -x, height / 2 - y, length, width, height, yaw])
