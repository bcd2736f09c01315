"""Check COCO annotations: single records while reading, then ids, boxes and RLE of all objects at once."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from otus.data.formats.json_reader.column_builders import SegmentationBuilder, segmentation_problem
from otus.metrics.detection._rle_kernels import total_pixels
from otus.structures import SegmentationKind

_KINDS = {  # of faults, by field
    "image_id": "unknown_image",
    "category_id": "unknown_category",
    "id": "duplicate_id",
    "size": "bad_outline",
    "counts": "bad_outline",
    "bbox": "inverted_box",
    "amodal_bbox": "inverted_box",
}

Fault = tuple[str, str, str]
"""The field at fault (``.bbox``), the problem, and its kind."""


def find_record_faults(values: Mapping[str, list[Any]], count: int, *, predictions: bool) -> dict[int, Fault]:
    """Return the faults of single records, by row.

    Parameters
    ----------
    values
        The fields of the records, by name.
    count
        Number of records.
    predictions
        Whether each record must have a score.
    """
    faults: dict[int, Fault] = {}
    for name in ("segmentation", "amodal_segmentation"):
        for k, segmentation in enumerate(values.get(name, ())):
            problem = segmentation_problem(segmentation) if segmentation else None
            if problem is not None:
                faults[k] = (f".{name}{problem[0]}", problem[1], "bad_outline")
    for k, keypoints in enumerate(values.get("keypoints", ())):
        if keypoints and len(keypoints) % 3:
            problem_text = f"expected x, y, visibility of each keypoint, got {len(keypoints)} numbers"
            faults[k] = (".keypoints", problem_text, "bad_keypoints")
    if "bbox" not in values or None in values["bbox"]:
        missing = [None] * count
        records = zip(*(values.get(name, missing) for name in ("bbox", "segmentation", "keypoints")), strict=True)
        for k, (box, segmentation, keypoints) in enumerate(records):
            if box is None and not segmentation and not keypoints:
                faults[k] = ("", "expected a bbox, a segmentation or keypoints", "no_box")
    if predictions:
        for k, score in enumerate(values.get("score", [None] * count)):
            if score is None:
                faults[k] = (".score", "a prediction needs a score", "no_score")
    return faults


class ObjectChecks:
    """Checks over all N objects of a file. Each invalid object is reported once and removed from ``keep``.

    Parameters
    ----------
    index
        (N,) the index of each object's record in the file.
    keep
        (N,) the objects to check.
    report
        Called with the index of a record and its fault.
    """

    def __init__(
        self, index: Int[np.ndarray, "n"], keep: Bool[np.ndarray, "n"], report: Callable[[int, Fault], None]
    ) -> None:
        self.index, self.keep, self._report = index, keep, report

    def drop(self, faulty: Bool[np.ndarray, "n"], field: str, problems: Iterable[str]) -> None:
        """Report the faulty objects, each with the next of the problems."""
        kind = _KINDS[field.rsplit(".", 1)[-1]]
        for row, problem in zip(np.flatnonzero(self.keep & faulty), problems, strict=False):
            self._report(int(self.index[row]), (field, problem, kind))
        self.keep = self.keep & ~faulty

    def drop_inverted_boxes(self, field: str, boxes_xywh: Float[np.ndarray, "n 4"]) -> None:
        """Drop boxes of negative width or height, which pycocotools accepts."""
        sizes_wh = boxes_xywh[:, 2:]
        inverted = np.logical_or(sizes_wh[:, 0] < 0, sizes_wh[:, 1] < 0)
        sizes = sizes_wh[self.keep & inverted].tolist()
        problems = (f"expected a width and a height of 0 or more, got {size}" for size in sizes)
        self.drop(inverted, field, problems)

    def drop_wrong_rle(self, field: str, segmentations: SegmentationBuilder, sizes_hw: Int[np.ndarray, "n 2"]) -> None:
        """Drop RLEs whose size is not the image's, or whose runs do not add up to it."""
        kinds, stated_hw, counts_bytes, offsets = segmentations.run_lengths()
        is_rle = kinds == SegmentationKind.RLE
        if not is_rle.any():
            return
        has_wrong_size = is_rle & (stated_hw != sizes_hw).any(axis=1)
        sizes = zip(
            stated_hw[self.keep & has_wrong_size].tolist(), sizes_hw[self.keep & has_wrong_size].tolist(), strict=True
        )
        problems = (
            f"made for {a} x {b} pixels (height x width), but the image has {c} x {d}" for (a, b), (c, d) in sizes
        )
        self.drop(has_wrong_size, f"{field}.size", problems)
        pixels = total_pixels(counts_bytes, offsets)
        malformed = is_rle & (pixels != stated_hw.astype(np.int64).prod(axis=1))
        sums = zip(pixels[self.keep & malformed].tolist(), stated_hw[self.keep & malformed].tolist(), strict=True)
        problems = (
            f"the run lengths {f'add up to {total} pixels' if total >= 0 else 'are malformed'}, expected {h} x {w} = {h * w}"
            for total, (h, w) in sums
        )
        self.drop(malformed, f"{field}.counts", problems)


def indices_of_ids(ids: Int[np.ndarray, "n"], among: Int[np.ndarray, "m"]) -> tuple[np.ndarray, np.ndarray]:
    """Return the index of each id in a list of ids (0 if absent), and whether it is present."""
    if not len(among):
        return np.zeros(len(ids), dtype=np.int64), np.zeros(len(ids), dtype=bool)
    order = np.argsort(among, kind="stable")
    position = order[np.minimum(np.searchsorted(among, ids, sorter=order), len(among) - 1)]
    known = among[position] == ids
    return np.where(known, position, 0), known


def are_repeated(ids: Int[np.ndarray, "n"]) -> Bool[np.ndarray, "n"]:
    """Return a mask of the ids that occurred before."""
    repeated = np.ones(len(ids), dtype=bool)
    repeated[np.unique(ids, return_index=True)[1]] = False
    return repeated
