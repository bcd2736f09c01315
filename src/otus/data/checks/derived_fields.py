"""Check derived numbers in COCO files: ``num_keypoints``, and ``area`` and ``bbox`` of panoptic segments.

Readers compute these numbers themselves and do not keep the stored ones, so the files are read a second time here.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TypeVar

import msgspec
import numpy as np
from jaxtyping import Int

from otus.data.checks.labels import Finding
from otus.data.dataset import Dataset
from otus.data.formats import coco, coco_panoptic
from otus.data.formats.json_reader.stream import RecordReader
from otus.data.formats.text_files import Int64, Number
from otus.structures import PanopticMap

Record = TypeVar("Record", bound=msgspec.Struct)

_BOX_SLACK_PX = 1.0  # tools differ in whether they count the last pixel


class _Points(msgspec.Struct):
    """The keypoint fields of an annotation."""

    id: Int64 | None = None
    keypoints: list[Number] | None = None
    num_keypoints: Number | None = None


class StatedSegment(msgspec.Struct):
    """A segment's area and box as stored in the file."""

    id: Int64
    area: Number | None = None
    bbox: tuple[Number, Number, Number, Number] | None = None


class _StatedMap(msgspec.Struct):
    image_id: Int64
    segments_info: list[StatedSegment]


StatedSegments = Mapping[int, tuple[int, list[StatedSegment]]]
"""For each image index: the index of its record in a panoptic file, and the segments stored there."""


def check_num_keypoints(dataset: Dataset) -> Iterator[Finding]:
    """Yield annotations whose ``num_keypoints`` differs from the number of labelled keypoints."""
    if dataset.format != coco.FORMAT or dataset.objects is None or dataset.objects.keypoints is None:
        return
    for index, record in _records(dataset.source, _Points):
        labelled = sum(visibility > 0 for visibility in (record.keypoints or ())[2::3])
        if record.num_keypoints is not None and record.num_keypoints != labelled:
            message = (
                f"num_keypoints is {record.num_keypoints:g}, but {labelled} are labelled "
                "(correct it: otus evaluate counts the labelled ones, pycocotools uses num_keypoints)"
            )
            yield Finding("num_keypoints_disagree", str(dataset.source), f"annotations[{index}].num_keypoints", message)


def stated_segments(dataset: Dataset) -> StatedSegments:
    """Return the stored segments of a panoptic data set by image; empty for other formats."""
    if dataset.format != coco_panoptic.FORMAT:
        return {}
    index_of_id = {image_id: index for index, image_id in enumerate(dataset.images.ids)}
    records = (
        (record_index, record)
        for record_index, record in _records(dataset.source, _StatedMap)
        if record.image_id in index_of_id
    )
    return {index_of_id[record.image_id]: (record_index, record.segments_info) for record_index, record in records}


def check_segments(panoptic: PanopticMap, stated: tuple[int, list[StatedSegment]], source: Path) -> Iterator[Finding]:
    """Yield segments without pixels, and areas and boxes that differ from those of the pixels."""
    record_index, segments = stated
    for k, segment in enumerate(segments):
        where = f"annotations[{record_index}].segments_info[{k}]"
        rows, columns = np.nonzero(panoptic.ids == segment.id)
        if not len(rows):
            message = f"segment {segment.id} has no pixel in the PNG (remove it, or draw it)"
            yield Finding("segment_without_pixels", str(source), where, message)
            continue
        if segment.area is not None and segment.area != len(rows):
            message = (
                f"area is {segment.area:g}, but segment {segment.id} has {len(rows)} pixels "
                "(correct it: metrics use the pixels)"
            )
            yield Finding("area_disagrees", str(source), f"{where}.area", message)
        box = _box_xywh(rows, columns)
        if segment.bbox is not None and np.abs(np.subtract(segment.bbox, box)).max() > _BOX_SLACK_PX:
            message = (
                f"bbox is {list(segment.bbox)}, but the pixels of segment {segment.id} fill {box.tolist()} (correct it)"
            )
            yield Finding("box_disagrees", str(source), f"{where}.bbox", message)


def _box_xywh(rows: Int[np.ndarray, "n"], columns: Int[np.ndarray, "n"]) -> Int[np.ndarray, "4"]:
    x, y = columns.min(), rows.min()
    return np.array([x, y, columns.max() + 1 - x, rows.max() + 1 - y])


def _records(file: Path, kind: type[Record]) -> Iterator[tuple[int, Record]]:
    """Yield index and record of ``annotations``; unreadable records were reported before."""
    for batch in RecordReader(file, {"annotations": kind}, report=lambda problem: None):
        yield from zip(batch.indices.tolist(), batch.records, strict=True)
