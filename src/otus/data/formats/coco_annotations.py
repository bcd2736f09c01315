"""Annotations of COCO JSON files (labels, predictions, SA-1B) as columns.

Shape shorthand: N objects, M images, K keypoints. Annotations are decoded some thousand at a time and kept only as
numbers; faults that concern the whole file (unknown or duplicate ids, run lengths of another size) are checked at the
end, for all objects at once.

Beside COCO's own fields an annotation may have ``score``, ``amodal_bbox``, ``amodal_segmentation``, ``corners`` (x, y of
the 4 corners of an oriented box) and ``cuboid`` (7 numbers), for which COCO has no fields. Further fields whose values
are numbers, flags, or lists of numbers of one length become named columns.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, repeat
from operator import attrgetter
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from jaxtyping import Float, Int

from otus.data.dataset import Dataset
from otus.data.formats.coco_checks import Fault, ObjectChecks, are_repeated, find_record_faults, indices_of_ids
from otus.data.formats.json_reader.column_builders import (
    ColumnBuilder,
    JsonSegmentation,
    SegmentationBuilder,
)
from otus.data.formats.json_reader.number_records import NumberField
from otus.data.formats.json_reader.stream import RecordBatch
from otus.data.formats.text_files import Int64, Number
from otus.data.formats.unread_fields import UnreadFields
from otus.errors import DataError, Report
from otus.structures import BoxFormat, Objects, SegmentationKind, Segmentations, boxes

Four = tuple[Number, Number, Number, Number]


class Annotation(msgspec.Struct, gc=False):
    """A record of ``annotations``, or a prediction."""

    image_id: Int64
    category_id: Int64
    id: Int64 | None = None
    bbox: Four | None = None
    area: Number | None = None
    iscrowd: bool | Int64 | None = None
    segmentation: JsonSegmentation = None
    score: float | None = None
    keypoints: list[Number] | None = None
    num_keypoints: Int64 | None = None
    amodal_bbox: Four | None = None
    amodal_segmentation: JsonSegmentation = None
    corners: tuple[Number, Number, Number, Number, Number, Number, Number, Number] | None = None
    cuboid: tuple[Number, Number, Number, Number, Number, Number, Number] | None = None


_INTEGER_FIELDS = ("index", "id", "image_id", "category_id", "iscrowd")
_NO_ID = np.iinfo(np.int64).min
_FLOAT_FIELDS = {"bbox": 4, "area": 1, "score": 1, "amodal_bbox": 4, "corners": 8, "cuboid": 7}


def number_fields(*, predictions: bool = False) -> dict[str, NumberField]:
    """Return the numeric fields of annotations; records with only these, such as box results, are read as columns."""
    needed = {"image_id", "category_id", "bbox", *(("score",) if predictions else ())}
    integers = {name: NumberField(1, True, name in needed) for name in _INTEGER_FIELDS if name != "index"}
    return integers | {name: NumberField(width, False, name in needed) for name, width in _FLOAT_FIELDS.items()}


@dataclass
class ObjectColumns:
    """Collects batches of annotations and builds :class:`Objects`.

    Parameters
    ----------
    locate
        Function from an annotation's index to its file and record, for error messages.
    report
        Called with each problem; the invalid annotation is skipped.
    predictions
        Whether these are predictions: each must have a score, and areas are those of the boxes, whatever the file
        states.
    unread
        Counts the values that no column holds: strings, objects, lists of varying length.
    """

    locate: Callable[[int], tuple[Path, str]]
    report: Report
    predictions: bool = False
    unread: UnreadFields = field(default_factory=UnreadFields)
    _count: int = 0
    _integers: dict[str, ColumnBuilder] = field(
        default_factory=lambda: {name: ColumnBuilder(np.int64) for name in _INTEGER_FIELDS}
    )
    _optional: dict[str, ColumnBuilder] = field(default_factory=dict)
    _extras: dict[str, ColumnBuilder] = field(default_factory=dict)
    _extra_types: dict[str, set[type]] = field(default_factory=dict)
    _segmentations: dict[str, SegmentationBuilder] = field(default_factory=dict)
    _keypoints: ColumnBuilder | None = None
    _num_keypoints: int = 0

    def extend(self, batch: RecordBatch) -> None:
        """Add the valid annotations of a batch."""
        indices, count = batch.indices, len(batch.indices)
        if batch.columns is not None:
            self._extend_numbers(batch.columns, indices)
            return
        values = {name: list(map(attrgetter(attribute), batch.records)) for name, attribute in batch.attributes.items()}
        faulty = find_record_faults(values, count, predictions=self.predictions)
        for k in sorted(faulty):
            self._fault(int(indices[k]), faulty[k])
        if faulty:
            kept = [k for k in range(count) if k not in faulty]
            values = {name: [column[k] for k in kept] for name, column in values.items()}
            indices, count = indices[kept], len(kept)
        self._integers["index"].extend(indices)
        for name, default in (
            ("id", np.full(count, _NO_ID)),
            ("image_id", None),
            ("category_id", None),
            ("iscrowd", np.zeros(count)),
        ):
            self._integers[name].extend(_integer_column(values.get(name), default))
        for name in _FLOAT_FIELDS:
            if name in values:
                self._extend_floats(name, values[name])
        for name in ("segmentation", "amodal_segmentation"):
            if any(values.get(name, ())):
                column = self._segmentations.setdefault(name, SegmentationBuilder())
                column.pad(self._count)
                column.extend(values[name])
        if any(values.get("keypoints", ())):
            self._extend_keypoints(values["keypoints"])
        for name in values:
            if name not in Annotation.__struct_fields__:
                self._extend_extra(name, values[name])
        self._count += count

    def _extend_numbers(self, columns: Mapping[str, np.ndarray], indices: Int[np.ndarray, "b"]) -> None:
        """Add annotations that have numeric fields only."""
        self._integers["index"].extend(indices)
        for name, default in (("id", np.full(len(indices), _NO_ID)), ("iscrowd", np.zeros(len(indices)))):
            self._integers[name].extend(columns.get(name, default))
        for name in ("image_id", "category_id"):
            self._integers[name].extend(columns[name])
        for name in _FLOAT_FIELDS.keys() & columns.keys():
            self._float_column(name).extend(columns[name])
        self._count += len(indices)

    def _float_column(self, name: str) -> ColumnBuilder:
        """Return the column of a float field, padded to the annotations so far."""
        width = _FLOAT_FIELDS[name]
        column = self._optional.setdefault(
            name, ColumnBuilder(np.float64, *(() if width == 1 else (width,)), fill=np.nan)
        )
        column.pad(self._count)
        return column

    def _fault(self, index: int, fault: Fault) -> None:
        file, record = self.locate(index)
        field, problem, kind = fault
        remedy = "correct the record or remove it"
        self.report(DataError(problem, file=file, where=record + field, remedy=remedy, kind=kind))

    def _extend_floats(self, name: str, values: list[Any]) -> None:
        width = _FLOAT_FIELDS[name]
        if None in values:
            missing = np.nan if width == 1 else (np.nan,) * width
            values = [missing if value is None else value for value in values]
        numbers = values if width == 1 else chain.from_iterable(values)
        self._float_column(name).extend(np.fromiter(numbers, np.float64, len(values) * width))

    def _extend_keypoints(self, values: list[list[float] | None]) -> None:
        """Add keypoints; missing ones are NaN until the box is computed."""
        longest = max((len(value) // 3 for value in values if value), default=0)
        if longest > self._num_keypoints:  # the first keypoints, or a category with more of them
            previous, self._keypoints = self._keypoints, ColumnBuilder(np.float64, longest, 3, fill=np.nan)
            if previous is not None:
                values_so_far = previous.finish()
                padding = ((0, 0), (0, longest - values_so_far.shape[1]), (0, 0))
                self._keypoints.extend(np.pad(values_so_far, padding, constant_values=np.nan))
            self._num_keypoints = longest
        if self._keypoints is not None:
            self._keypoints.pad(self._count)
            block = np.full((len(values), 3 * self._num_keypoints), np.nan)
            for row, value in zip(block, values, strict=True):
                if value:
                    row[: len(value)] = value
            self._keypoints.extend(block)

    def _extend_extra(self, name: str, values: list[Any]) -> None:
        arrays = [_as_numbers(value) for value in values]
        first = next((array for array in arrays if array is not None), None)
        if name not in self._extras and first is not None:
            self._extras[name] = ColumnBuilder(np.float64, *np.shape(first), fill=np.nan)
        column = self._extras.get(name)
        is_held = [column is not None and array is not None and np.shape(array) == column.tail for array in arrays]
        self.unread.note(f"annotations[].{name}", (v for v, fits in zip(values, is_held, strict=True) if not fits))
        if column is None:
            return
        column.pad(self._count)
        missing = np.full(column.tail, np.nan)
        column.extend([array if fits else missing for array, fits in zip(arrays, is_held, strict=True)])
        types = self._extra_types.setdefault(name, set())
        types.update(type(value) for value, fits in zip(values, is_held, strict=True) if fits)

    def finish(
        self,
        *,
        image_ids: Int[np.ndarray, "m"],
        sizes_hw: Int[np.ndarray, "m 2"],
        category_ids: Sequence[int],
        rejected_ids: Int[np.ndarray, "r"] | None = None,
    ) -> Objects:
        """Build the objects, ordered by image, in file order within an image.

        Parameters
        ----------
        image_ids, sizes_hw
            Ids and sizes of the images, in the order of their indices.
        category_ids
            Ids of the categories, in the order of their labels.
        rejected_ids
            Ids of invalid images, which were reported already; their objects are dropped silently.
        """
        sizes_hw = sizes_hw if len(sizes_hw) else np.zeros((1, 2), dtype=np.int64)  # indexed below even without images
        integers = {name: column.finish() for name, column in self._integers.items()}
        image, known_image = indices_of_ids(integers["image_id"], image_ids)
        labels, known_category = indices_of_ids(integers["category_id"], np.asarray(category_ids, dtype=np.int64))
        missing = integers["id"] == _NO_ID  # numbered in file order, after the largest id of the file
        integers["id"][missing] = integers["index"][missing] + 1 + integers["id"].max(initial=0)
        keep = (
            np.ones(self._count, dtype=bool) if rejected_ids is None else ~np.isin(integers["image_id"], rejected_ids)
        )
        checks = ObjectChecks(integers["index"], keep, self._fault)
        for entity, name, known in (("image", "image_id", known_image), ("category", "category_id", known_category)):
            hint = ""
            if self.predictions and name == "category_id" and not known[checks.keep].all():
                from otus.metrics.diagnosis.mismatches import guess_id_convention  # slow to import, rarely needed

                convention = guess_id_convention(np.unique(integers[name][checks.keep]), category_ids)
                hint = f"; the file's ids seem to be {convention}" if convention else ""
            elif self.predictions and not known[checks.keep].any():
                hint = (
                    f", nor any other id of this file; ids of the data are {_examples(image_ids)}; "
                    "a file_name in each record can be used instead"
                )
            problems = (
                f"no {entity} has the id {unknown}{hint}" for unknown in integers[name][checks.keep & ~known].tolist()
            )
            checks.drop(~known, f".{name}", problems)
        checks.drop(are_repeated(integers["id"]), ".id", repeat("duplicate id"))
        for name in () if self.predictions else ("bbox", "amodal_bbox"):
            if name in self._optional:
                checks.drop_inverted_boxes(f".{name}", self._float_column(name).values)
        for name, column in self._segmentations.items():
            column.pad(self._count)
            checks.drop_wrong_rle(f".{name}", column, sizes_hw[image])
        rows = np.flatnonzero(checks.keep)
        order = rows[np.argsort(image[rows], kind="stable")]
        # Reorder one column at a time, so that only one is in memory twice.
        segmentations = {name: self._segmentations.pop(name).finish(order) for name in list(self._segmentations)}
        floats: dict[str, np.ndarray] = {}
        for name in list(self._optional):
            floats[name] = self._finish_column(self._optional.pop(name), order)
        keypoints = None if self._keypoints is None else self._finish_column(self._keypoints, order)
        image = image[order]
        xywh = floats.get("bbox", np.full((len(order), 4), np.nan))
        areas = floats.get("area", np.full(len(order), np.nan))
        if self.predictions:
            areas[:] = np.nan
        _fill_in_missing(
            xywh, areas, segmentations.get("segmentation"), keypoints, sizes_hw[image], predictions=self.predictions
        )
        if keypoints is not None:
            keypoints[np.isnan(keypoints)] = 0
        return Objects.build(
            image_index=image,
            labels=labels[order],
            boxes_xyxy=_xyxy(xywh),
            ids=integers["id"][order],
            areas=areas,
            is_crowd=integers["iscrowd"][order] != 0,
            segmentations=segmentations.get("segmentation"),
            scores=floats.get(
                "score", np.zeros(len(order)) if self.predictions else None
            ),  # no column if the list is empty
            keypoints=keypoints,
            corners_xy=floats["corners"].reshape(-1, 4, 2) if "corners" in floats else None,
            cuboids=floats.get("cuboid"),
            amodal_boxes_xyxy=_xyxy(floats["amodal_bbox"]) if "amodal_bbox" in floats else None,
            amodal_segmentations=segmentations.get("amodal_segmentation"),
            columns={
                name: self._typed(name, self._finish_column(column, order)) for name, column in self._extras.items()
            },
        )

    def _finish_column(self, column: ColumnBuilder, order: Int[np.ndarray, "n"]) -> np.ndarray:
        column.pad(self._count)
        return column.finish()[order]

    def _typed(self, name: str, values: np.ndarray) -> np.ndarray:
        """Convert a column to bool or int64 if every object has such a value."""
        types = self._extra_types[name]
        if types not in ({bool}, {int}) or np.isnan(values).any():
            return values
        return values.astype(bool if types == {bool} else np.int64)


def _examples(ids: Int[np.ndarray, "m"]) -> str:
    return ", ".join(map(str, ids[:3].tolist())) + (" …" if len(ids) > 3 else "")


def _integer_column(values: list[Any] | None, default: np.ndarray | None) -> np.ndarray:
    """Return an int64 column; ``default`` fills in missing values."""
    if values is None or None in values:
        assert default is not None
        return default if values is None else np.where([v is None for v in values], default, [v or 0 for v in values])
    return np.fromiter(values, np.int64, len(values))


def _xyxy(xywh: Float[np.ndarray, "n 4"]) -> Float[np.ndarray, "n 4"]:
    return boxes.convert(xywh, BoxFormat.XYWH, BoxFormat.XYXY)


def _as_numbers(value: Any) -> np.ndarray | float | None:
    """Return a number, flag or rectangular list of numbers as float64; None for anything else."""
    if isinstance(value, bool | int | float):
        return float(value)
    if isinstance(value, list | tuple) and value:
        try:
            array = np.array(value)
        except ValueError:  # rows of different lengths
            return None
        return array.astype(np.float64) if array.dtype.kind in "bif" else None
    return None


def _fill_in_missing(
    xywh: Float[np.ndarray, "n 4"],
    areas: Float[np.ndarray, "n"],
    segmentations: Segmentations | None,
    keypoints: Float[np.ndarray, "n k 3"] | None,
    sizes_hw: Int[np.ndarray, "n 2"],
    *,
    predictions: bool,
) -> None:
    """Compute missing (NaN) boxes and areas.

    A missing box encloses the segmentation, else the labelled keypoints (if none is labelled, all). A missing area is
    that of the segmentation, else of the box. For predictions, as in pycocotools' ``loadRes``, the area of the box and
    the box of all keypoints are used.
    """
    no_box, no_area = np.isnan(xywh[:, 0]), np.isnan(areas)
    has_segmentation = (
        np.zeros(len(xywh), dtype=bool) if segmentations is None else segmentations.kinds != SegmentationKind.NONE
    )
    from_segmentation = np.flatnonzero(has_segmentation & (no_box | (no_area & (not predictions))))
    for row in from_segmentation.tolist() if segmentations is not None else ():
        assert segmentations is not None
        masks = segmentations.masks([row], (int(sizes_hw[row, 0]), int(sizes_hw[row, 1])))
        if masks is not None and no_area[row]:
            areas[row] = masks.area()[0]
        if masks is not None and no_box[row]:
            points = np.concatenate([masks.boxes_xyxy().reshape(2, 2), *segmentations.polygons(row)])
            first = (
                2 if segmentations.kinds[row] == SegmentationKind.POLYGONS else 0
            )  # the box of polygons is that of their points, not of the mask
            xywh[row] = _box_around(points[first:])
    if keypoints is not None:
        for row in np.flatnonzero(no_box & ~has_segmentation).tolist():
            points = keypoints[row, ~np.isnan(keypoints[row, :, 0])]
            labelled = points[points[:, 2] > 0]
            xywh[row] = _box_around((points if predictions or not len(labelled) else labelled)[:, :2])
    missing = np.isnan(areas)
    areas[missing] = xywh[missing, 2] * xywh[missing, 3]


def _box_around(points_xy: Float[np.ndarray, "p 2"]) -> np.ndarray:
    low, high = points_xy.min(axis=0), points_xy.max(axis=0)
    return np.concatenate([low, high - low])


def annotation_records(dataset: Dataset, objects: Objects, image_ids: Sequence[int]) -> Iterator[dict[str, Any]]:
    """Yield one COCO record per object."""
    category_ids, sizes = dataset.categories.ids, boxes.written_sizes_wh(objects.boxes_xyxy)
    amodal = None if objects.amodal_boxes_xyxy is None else _xywh(objects.amodal_boxes_xyxy)
    columns = {
        "score": objects.scores,
        "amodal_bbox": amodal,
        "corners": None if objects.corners_xy is None else objects.corners_xy.reshape(-1, 8),
        "cuboid": objects.cuboids,
        **objects.columns,
    }
    floats = {name: values for name, values in columns.items() if values is not None}
    segmentations_by_name = {"segmentation": objects.segmentations, "amodal_segmentation": objects.amodal_segmentations}
    schemes = {label: dataset.categories.keypoints_of(name) for label, name in enumerate(dataset.categories)}
    keypoint_counts = {label: len(scheme) for label, scheme in schemes.items() if scheme is not None}
    for row in range(len(objects)):
        image, label = int(objects.image_index[row]), int(objects.labels[row])
        record: dict[str, Any] = {
            "id": int(objects.ids[row]),
            "image_id": image_ids[image],
            "category_id": category_ids[label],
            "bbox": [*objects.boxes_xyxy[row, :2].tolist(), *sizes[row].tolist()],
            "area": float(objects.areas[row]),
            "iscrowd": int(objects.is_crowd[row]),
        }
        for name, segmentations in segmentations_by_name.items():
            segmentation = (
                None
                if segmentations is None
                else segmentation_record(segmentations, row, dataset.images.size_hw(image))
            )
            if segmentation is not None:
                record[name] = segmentation
        for name, values in floats.items():
            if not np.isnan(values[row]).any():
                record[name] = values[row].tolist()
        if objects.keypoints is not None:
            # All rows are as long as the category with the most keypoints; beyond the names of their own they are zeros.
            keypoints, count = objects.keypoints[row], keypoint_counts.get(label, 0)
            keypoints = keypoints if keypoints[count:].any() else keypoints[:count]
            if len(keypoints):
                record["keypoints"] = keypoints.reshape(-1).tolist()
                record["num_keypoints"] = int((keypoints[:, 2] > 0).sum())
        yield record


def segmentation_record(segmentations: Segmentations, row: int, size_hw: tuple[int, int]) -> Any:
    """Return the value of COCO's field ``segmentation``; None for an object without a segmentation."""
    counts = segmentations.rle(row)
    if counts is not None:
        return {"size": list(size_hw), "counts": counts.decode("ascii")}
    return [ring.reshape(-1).tolist() for ring in segmentations.polygons(row)] or None


def _xywh(boxes_xyxy: Float[np.ndarray, "n 4"]) -> Float[np.ndarray, "n 4"]:
    return np.concatenate([boxes_xyxy[:, :2], boxes.written_sizes_wh(boxes_xyxy)], axis=1)
