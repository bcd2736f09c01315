"""COCO results: a JSON list of ``{image_id, category_id, bbox, score, segmentation?, keypoints?}``.

https://cocodataset.org/#format-results. Missing boxes and areas follow pycocotools' ``COCO.loadRes``.

Records may have a ``file_name`` and a ``category`` name, which take precedence over the ids: those of ``otus predict`` do,
because it does not know the ids of the data set. An ``image_id`` that is a string is a file name as well, with or without
suffix, as Ultralytics writes it.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from otus._files import staged_file
from otus.data.dataset import Dataset
from otus.data.formats.coco import image_ids
from otus.data.formats.coco_annotations import Annotation, ObjectColumns, annotation_records, number_fields
from otus.data.formats.json_reader.stream import RecordBatch, RecordReader, write_records
from otus.data.formats.text_files import MAX_NUMBER, Int64
from otus.data.image_lookup import example_names, image_index_by_name
from otus.errors import DataError, Report, stop_at_first
from otus.structures import Objects


class Prediction(Annotation):
    """A prediction; a string as ``image_id`` is the name of an image."""

    image_id: Int64 | str  # type: ignore[assignment]


Finders = Mapping[str, tuple[str, Callable[[str], int | None]]]


def read_results(path: str | Path, dataset: Dataset, *, report: Report = stop_at_first) -> Objects:
    """Read predictions for a data set, ordered by image; ``ids`` are the 1-based positions of the records in the file.

    Parameters
    ----------
    path
        A JSON array of predictions, or an object with such an array as ``annotations``.
    dataset
        The data set they were predicted for. ``image_id`` and ``category_id`` are its ids, unless the record has a
        ``file_name``, which takes precedence, as then does the name of its ``category``.
    report
        Called with the error of each invalid prediction, which is skipped (default: raise the first).

    Raises
    ------
    DataError
        Through ``report``: no list of predictions, missing or infinite scores, unknown ids or names, ids that are not
        integers, RLEs of another size.
    """
    path = Path(path)
    columns = ObjectColumns(lambda index: (path, f"annotations[{index}]"), report, predictions=True)
    reader = RecordReader(
        path,
        {"annotations": Prediction},
        report,
        records_key="annotations",
        open_ended={"annotations"},
        number_fields={"annotations": number_fields(predictions=True)},
        largest=MAX_NUMBER,
    )
    finders: Finders | None = None
    for batch in reader:
        if batch.columns is None and ("file_name" in batch.attributes or _has_text_ids(batch)):
            finders = finders or _finders(dataset)
            batch = _with_ids_by_name(batch, finders, example_names(dataset), columns.locate, report)
        columns.extend(batch)
    if "annotations" not in reader.found_arrays and not (path.exists() and path.stat().st_size == 0):
        problem = "expected a JSON list of predictions, or an object with one as annotations; found none"
        report(DataError(problem, file=path, remedy="check that it is a file of COCO results", kind="broken_json"))
    return columns.finish(
        image_ids=np.array(image_ids(dataset), dtype=np.int64),
        sizes_hw=dataset.images.sizes_hw,
        category_ids=dataset.categories.ids,
    )


def _has_text_ids(batch: RecordBatch) -> bool:
    return any(isinstance(record.image_id, str) for record in batch.records)


def _finders(dataset: Dataset) -> Finders:
    """Return, per field that holds a name, the id field it overrides and the function from name to id."""
    ids, find = image_ids(dataset), image_index_by_name(dataset)

    def find_image(name: str) -> int | None:
        index = find(name)
        return None if index is None else ids[index]

    categories = dict(zip(dataset.categories, dataset.categories.ids, strict=True))
    return {"file_name": ("image_id", find_image), "category": ("category_id", categories.get)}


def _with_ids_by_name(
    batch: RecordBatch, finders: Finders, examples: str, locate: Callable[[int], tuple[Path, str]], report: Report
) -> RecordBatch:
    """Replace names by ids; records with an unknown name are reported and left out.

    ``examples`` are names of images, for messages.
    """
    kept = []
    for k, record in enumerate(batch.records):
        is_named = isinstance(getattr(record, batch.attributes.get("file_name", ""), None), str)
        fields = finders if is_named else {"image_id": finders["file_name"]} if isinstance(record.image_id, str) else {}
        for field, (id_field, find) in fields.items():
            name = getattr(record, batch.attributes.get(field, field), None)
            matching_id = find(name) if isinstance(name, str) else getattr(record, id_field)
            if matching_id is None:
                file, where = locate(int(batch.indices[k]))
                entity = id_field.removesuffix("_id")
                problem = f"{name!r} does not match exactly one {entity} of the data"
                remedy = f"correct the record, or remove the name if {id_field} is an id of the data"
                if field == id_field:
                    remedy = f"correct it; names of images are {examples}"
                kind = f"unknown_{entity}"
                report(DataError(problem, file=file, where=f"{where}.{field}", remedy=remedy, kind=kind))
                break
            setattr(record, id_field, matching_id)
        else:
            kept.append(k)
    return replace(batch, indices=batch.indices[kept], records=[batch.records[k] for k in kept])


def write_results(dataset: Dataset, predictions: Objects, path: str | Path) -> None:
    """Write predictions as a COCO results file."""
    with staged_file(Path(path)) as stage, stage.open("wb") as file:
        write_records(file, _records(dataset, predictions))


def _records(dataset: Dataset, predictions: Objects) -> Iterator[dict[str, Any]]:
    for record in annotation_records(dataset, predictions, image_ids(dataset)):
        for name in ("id", "area", "iscrowd", "num_keypoints"):
            record.pop(name, None)
        yield record
