"""Predictions as a folder of text files: DOTA's, KITTI's and YOLO's. Read only. ::

    Task1_CATEGORY.txt   image score x1 y1 x2 y2 x3 y3 x4 y4                              DOTA, one file per category
    NAME.txt             type -1 -1 alpha  left top right bottom  h w l  x y z  ry  score   KITTI, one per image
    NAME.txt             label cx cy w h score, or label x1 y1 … x4 y4 score      YOLO, one per image, normalised

An image without a file, or with an empty one, has no predictions.
"""

from pathlib import Path

import numpy as np

from otus.data.dataset import Dataset
from otus.data.formats import kitti
from otus.data.formats.paths import list_files
from otus.data.formats.text_files import LabelLine, parse_numbers, read_label_lines
from otus.data.formats.yolo_lines import have_four_points, parse_objects
from otus.data.image_lookup import example_names, image_index_by_name
from otus.errors import DataError, Report, stop_at_first
from otus.structures import Objects
from otus.structures.oriented import areas_of_corners

_TASK = "Task1_"


def read_text_results(folder: str | Path, dataset: Dataset, *, report: Report = stop_at_first) -> Objects:
    """Read predictions for a data set, ordered by image.

    Parameters
    ----------
    folder
        The folder; its format is recognised by file names and first words.
    dataset
        The data set they were predicted for, with its image and category names.
    report
        Called with the error of each invalid file or line, which is skipped (default: raise the first).

    Raises
    ------
    DataError
        Through ``report``: files of unknown images or categories, invalid lines. Raised directly: missing scores, or a
        folder without text files.
    """
    folder = Path(folder)
    files = [file for file in list_files(folder, "**/*.txt") if file.name != "classes.txt"]
    if not files:
        remedy = "give COCO results (a JSON file), or a folder of DOTA's, KITTI's or YOLO's results"
        raise DataError("has no text files of predictions", file=folder, remedy=remedy)
    if any(file.stem.startswith(_TASK) for file in files):
        return _read_dota_results(files, dataset, report)
    find_index = image_index_by_name(dataset)
    file_of_image: list[Path] = [folder / "none"] * len(dataset)
    for file in files:
        index = find_index(file.relative_to(folder).with_suffix("").as_posix())
        if index is None:
            remedy = "name it like its image, or remove it"
            problem = f"is not the name of an image of the data; names are {example_names(dataset)}"
            report(DataError(problem, file=file, remedy=remedy, kind="unknown_image"))
        else:
            file_of_image[index] = file
    lines = read_label_lines(file_of_image, report)
    if lines and not lines[0].words[0].replace(".", "", 1).isdecimal():
        objects = kitti.parse_objects(lines, dataset.categories, report)
    else:
        has_masks = dataset.objects is not None and dataset.objects.segmentations is not None
        are_oriented = not has_masks and have_four_points(lines)
        objects = parse_objects(
            lines, dataset.images.sizes_hw, dataset.categories, None, report, are_oriented=are_oriented
        )
    if objects.scores is not None:
        return objects
    if len(objects):
        raise DataError(
            "predictions need a score, the last number of a line", file=folder, remedy="add the scores", kind="no_score"
        )
    return Objects.build(image_index=[], labels=[], boxes_xyxy=[], scores=np.zeros(0))


def _read_dota_results(files: list[Path], dataset: Dataset, report: Report) -> Objects:
    """Read DOTA's task 1: a file per category."""
    label_of = {name: label for label, name in enumerate(dataset.categories)}
    category_files: list[Path] = []
    for file in files:
        if file.stem.removeprefix(_TASK) in label_of:
            category_files.append(file)
            continue
        problem = f"{file.stem.removeprefix(_TASK)!r} is not one of the categories: {', '.join(label_of)}"
        report(DataError(problem, file=file, remedy="rename or remove it", kind="unknown_category"))
    find_index = image_index_by_name(dataset)
    lines, images = [], []
    for line in read_label_lines(category_files, report):  # here ``line.image`` is the index of the file
        index = find_index(line.words[0])
        if len(line.words) != 10:
            report(line.fault(f"expected an image, a score and 8 numbers, got {len(line.words)} words", "correct it"))
        elif index is None:
            report(line.fault(f"no image of the data has the name {line.words[0]!r}", "correct the line"))
        else:
            lines.append(line)
            images.append(index)
    image_of = {(line.file, line.number): index for line, index in zip(lines, images, strict=True)}
    lines, values = parse_numbers(lines, slice(1, None), report)
    rows = values.reshape(-1, 9)
    corners = rows[:, 1:].reshape(-1, 4, 2)
    return Objects.build(
        image_index=[image_of[line.file, line.number] for line in lines],
        labels=[label_of[_category(line)] for line in lines],
        boxes_xyxy=np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1),
        areas=areas_of_corners(corners),
        corners_xy=corners,
        scores=rows[:, 0],
    )


def _category(line: LabelLine) -> str:
    return line.file.stem.removeprefix(_TASK)
