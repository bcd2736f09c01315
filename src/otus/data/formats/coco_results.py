"""Predictions as COCO's results: a list of ``{image_id, category_id, bbox, score, segmentation?, keypoints?}``.

https://cocodataset.org/#format-results. Boxes and areas that are not said follow pycocotools' ``COCO.loadRes``.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from otus.data.dataset import Dataset
from otus.data.formats.coco import picture_ids
from otus.data.formats.coco_objects import Annotation, ObjectColumns, annotation_records, number_fields
from otus.data.formats.contract import Report, staged_file, stop_at_first
from otus.data.formats.files import LARGEST
from otus.data.formats.json_stream import RecordReader, write_records
from otus.structures import Objects


def read_results(path: str | Path, dataset: Dataset, *, report: Report = stop_at_first) -> Objects:
    """Predictions for a data set, ordered by its pictures; ``ids`` number them as they stand in the file, from 1.

    Parameters
    ----------
    path
        A JSON array of predictions, or an object whose ``annotations`` are some.
    dataset
        The labels that they belong to: ``image_id`` and ``category_id`` are its pictures' and categories' ids.
    report
        Gets each problem; the faulty prediction is left out.

    Raises
    ------
    DataError
        Where ``report`` raises it: records without a finite score, unknown ids, ids that are not whole numbers, outlines
        of another size.
    """
    path = Path(path)
    columns = ObjectColumns(lambda index: (path, f"annotations[{index}]"), report, predictions=True)
    reader = RecordReader(
        path,
        {"annotations": Annotation},
        report,
        records_key="annotations",
        open_ended={"annotations"},
        number_fields={"annotations": number_fields(predictions=True)},
        largest=LARGEST,
    )
    for batch in reader:
        columns.extend(batch)
    return columns.finish(
        picture_ids=np.array(picture_ids(dataset), dtype=np.int64),
        sizes_hw=dataset.pictures.sizes_hw,
        category_ids=dataset.categories.ids,
    )


def write_results(dataset: Dataset, predictions: Objects, path: str | Path) -> None:
    """Predictions for a data set as a JSON array; the file appears when it is complete."""
    with staged_file(Path(path)) as stage, stage.open("wb") as file:
        write_records(file, _records(dataset, predictions))


def _records(dataset: Dataset, predictions: Objects) -> Iterator[dict[str, Any]]:
    for record in annotation_records(dataset, predictions, picture_ids(dataset)):
        for name in ("id", "area", "iscrowd", "num_keypoints"):
            record.pop(name, None)
        yield record
