"""Predictions with one JSON record per image: category scores, or the IoU after each click. Read only. ::

    {"images": [{"file": "a.jpg", "classification": [{"category": "owl", "score": 0.9}, …]}, …]}
    {"images": [{"file": "a.jpg", "ious": [0.71, 0.86, 0.92]}, …]}

The first is what ``otus predict --json`` writes. The list may also be the whole document. Images are referred to by
unambiguous names. An image may have several records of clicks, one per object.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import msgspec
import numpy as np
from jaxtyping import Float

from otus.data.dataset import Dataset
from otus.data.formats.json_reader.stream import RecordReader
from otus.data.image_lookup import example_names, image_index_by_name
from otus.errors import DataError, Report, stop_at_first


class CategoryScore(msgspec.Struct):
    """A category and its score."""

    category: str
    score: float


class ImageClassification(msgspec.Struct):
    """The predicted categories of an image."""

    file: str
    classification: list[CategoryScore]


class ImageClicks(msgspec.Struct):
    """The IoU of an object's mask after each click."""

    file: str
    ious: list[float]


Record = TypeVar("Record", ImageClassification, ImageClicks)


def read_classifications(
    path: str | Path, dataset: Dataset, *, report: Report = stop_at_first
) -> Iterator[tuple[int, Float[np.ndarray, "k"]]]:
    """Yield the image's index and its scores (K,) for the K categories; -inf for categories that the file omits.

    Raises
    ------
    DataError
        Through ``report``: unknown images or categories, a second record of an image, a duplicate category.
    """
    label_of = {name: label for label, name in enumerate(dataset.categories)}
    read_indices: set[int] = set()
    for where, index, record in _records(Path(path), ImageClassification, dataset, report):
        scores = np.full(len(label_of), -np.inf)
        problem = ("", "a second record of the image", "duplicate_id") if index in read_indices else None
        for k, predicted in enumerate(record.classification):
            field = f".classification[{k}].category"
            if predicted.category not in label_of:
                problem = (field, f"{predicted.category!r} is not one of the categories", "unknown_category")
            elif scores[label_of[predicted.category]] > -np.inf:
                problem = (field, f"duplicate category {predicted.category!r}", "duplicate_id")
            else:
                scores[label_of[predicted.category]] = predicted.score
        if problem is not None:
            report(_fault(Path(path), where + problem[0], *problem[1:]))
            continue
        read_indices.add(index)
        yield index, scores


def read_click_curves(
    path: str | Path, dataset: Dataset, *, report: Report = stop_at_first
) -> Iterator[tuple[int, list[float]]]:
    """Yield image index and the IoU after each click, per object.

    Raises
    ------
    DataError
        Through ``report``: unknown images, an IoU outside 0..1, no click.
    """
    for where, index, record in _records(Path(path), ImageClicks, dataset, report):
        invalid = [iou for iou in record.ious if not 0 <= iou <= 1]
        if invalid or not record.ious:
            problem = f"expected an IoU in 0..1 after each click, got {invalid[0] if invalid else 'no click'}"
            report(_fault(Path(path), f"{where}.ious", problem, "bad_iou"))
            continue
        yield index, record.ious


def _records(path: Path, kind: type[Record], dataset: Dataset, report: Report) -> Iterator[tuple[str, int, Record]]:
    """Yield location, image index and record."""
    if path.is_dir():
        raise DataError("expected a JSON file, got a folder", file=path, remedy="give the file itself")
    find_index = image_index_by_name(dataset)
    reader = RecordReader(path, {"images": kind}, report, records_key="images")
    for batch in reader:
        for position, record in zip(batch.indices.tolist(), batch.records, strict=True):
            index = find_index(record.file)
            if index is None:
                problem = f"no image of the data has the name {record.file!r}; names are {example_names(dataset)}"
                report(_fault(path, f"images[{position}].file", problem, "unknown_image"))
            else:
                yield f"images[{position}]", index, record
    if "images" not in reader.found_arrays and not (path.exists() and path.stat().st_size == 0):
        report(_fault(path, "images", "expected a list of images, found none", "broken_json"))


def _fault(path: Path, where: str, problem: str, kind: str) -> DataError:
    return DataError(problem, file=path, where=where, remedy="correct the record or remove it", kind=kind)
