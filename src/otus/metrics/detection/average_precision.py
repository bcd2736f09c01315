"""Average precision by any protocol, over any number of images and shards.

``update`` matches the detections of some images and keeps a few numbers per detection; ``compute`` computes the curves.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Generic, Protocol, Self, TypeVar

import numpy as np
from jaxtyping import Int

from otus.errors import DataError, UsageError
from otus.metrics.detection.ignore_regions import repeat_ignore_regions
from otus.metrics.detection.matching import MatchResults
from otus.metrics.detection.pairs import RankedDetections
from otus.metrics.detection.precision_recall import WORKERS
from otus.structures import Categories, Objects

Result = TypeVar("Result", covariant=True)


class DetectionProtocol(Protocol[Result]):
    """The rules of an evaluation: how detections are matched, and which figures are computed."""

    @property
    def detection_limit(self) -> int | None:
        """Maximum number of detections per image and label, None for no limit."""

    def match(
        self,
        ground_truth: Objects,
        predictions: Objects,
        ranked: RankedDetections,
        categories: Categories,
        sizes_hw: Int[np.ndarray, "m 2"] | None,
    ) -> MatchResults:
        """Match the detections of ``ranked``."""

    def figures(self, matches: MatchResults, categories: Categories) -> Result:
        """Compute the figures from matches ordered by label, image and rank."""


@dataclass(frozen=True, eq=False)
class _Shard:
    image_ids: np.ndarray
    matches: MatchResults


class AveragePrecision(Generic[Result]):
    """Average precision by a protocol, e.g. :class:`~otus.metrics.detection.coco.CocoProtocol`.

    Memory grows with the detections. Shards of a data set, matched in any process, merge to the same figures.

    Examples
    --------
    >>> from otus.metrics.detection.coco import CocoProtocol
    >>> ground_truth = Objects.build(image_index=[0], labels=[0], boxes_xyxy=[[0, 0, 10, 10]])
    >>> predictions = Objects.build(image_index=[0], labels=[0], boxes_xyxy=[[0, 0, 10, 8]], scores=np.array([0.9]))
    >>> metric = AveragePrecision(CocoProtocol(), Categories(("owl",)))
    >>> round(metric.update(ground_truth, predictions, image_ids=[7]).compute().figures["AP"], 3)
    0.7
    """

    def __init__(self, protocol: DetectionProtocol[Result], categories: Categories) -> None:
        self.protocol = protocol
        self.categories = categories
        self._shards: list[_Shard] = []

    def update(
        self,
        ground_truth: Objects,
        predictions: Objects,
        *,
        image_ids: Sequence[int] | Sequence[str] | np.ndarray,
        sizes_hw: Int[np.ndarray, "m 2"] | None = None,
    ) -> Self:
        """Add ground truth and predictions of M more images.

        Parameters
        ----------
        ground_truth, predictions
            Objects whose ``image_index`` counts from 0 to M - 1.
        image_ids
            M ids, str or int; detections of equal score are ranked in the order of the ids of their images.
        sizes_hw
            (M, 2) heights and widths of the images, needed for masks.

        Raises
        ------
        DataError
            If a record is invalid: a score or box that is not finite, a negative size, an unknown label or image.
        UsageError
            If an image was added before, or the predictions have no scores.
        """
        ids = np.asarray(image_ids)
        for side, objects in (("ground_truth", ground_truth), ("predictions", predictions)):
            validate_objects(objects, side, label_count=len(self.categories), image_count=len(ids))
        if predictions.scores is None:
            raise UsageError("predictions: expected scores, got none")
        _, ground_truth = repeat_ignore_regions(ground_truth, predictions)
        ranked = RankedDetections.build(
            ground_truth, predictions, label_count=len(self.categories), limit=self.protocol.detection_limit
        )
        with ThreadPoolExecutor(WORKERS) as pool:
            parts = pool.map(
                lambda part: self.protocol.match(ground_truth, predictions, part, self.categories, sizes_hw),
                ranked.split(WORKERS),
            )
            self._add(_Shard(ids, MatchResults.merge(list(parts))))
        return self

    def merge(self, other: "AveragePrecision[Result]") -> Self:
        """Add the matches of another metric, of other images and the same protocol and categories."""
        if other.protocol != self.protocol or other.categories != self.categories:
            raise UsageError("only metrics of the same protocol and categories can be merged")
        for shard in other._shards:
            self._add(shard)
        return self

    def _add(self, shard: _Shard) -> None:
        ids, counts = np.unique(
            np.concatenate([*(s.image_ids for s in self._shards), shard.image_ids]), return_counts=True
        )
        if (counts > 1).any():
            raise UsageError(f"image {ids[counts > 1][0]} was added before; each image counts once")
        self._shards.append(shard)

    def compute(self) -> Result:
        """Compute the figures of all images so far."""
        if not self._shards:
            raise UsageError("nothing to compute: call update first (with no images for an empty data set)")
        ids = np.concatenate([shard.image_ids for shard in self._shards])
        first_images = np.cumsum([0, *(len(shard.image_ids) for shard in self._shards)])
        parts = [
            replace(shard.matches, image_index=shard.matches.image_index + first)
            for shard, first in zip(self._shards, first_images, strict=False)
        ]
        order = np.empty(len(ids), dtype=np.int64)
        order[np.argsort(ids, kind="stable")] = np.arange(len(ids))
        return self.protocol.figures(MatchResults.merge(parts).sort(order), self.categories)


def validate_objects(
    objects: Objects,
    side: str,
    *,
    label_count: int,
    image_count: int,
    report: Callable[[DataError], object] | None = None,
) -> Objects:
    """Drop objects with invalid records: numbers that are not finite, negative sizes, unknown labels or images.

    Parameters
    ----------
    side
        ``ground_truth`` or ``predictions``, for error messages.
    report
        Called with a DataError for each invalid record (default: the first is raised).
    """
    boxes = objects.boxes_xyxy
    if _all_valid(objects, label_count=label_count, image_count=image_count):
        return objects
    expectations: list[tuple[str, np.ndarray, str]] = [
        ("boxes_xyxy", np.isfinite(boxes).all(axis=1), "finite numbers"),
        ("boxes_xyxy", np.greater_equal(boxes[:, 2:], boxes[:, :2]).all(axis=1), "x1 <= x2 and y1 <= y2"),
        ("labels", (objects.labels >= 0) & (objects.labels < label_count), f"0..{label_count - 1}"),
        ("image_index", (objects.image_index >= 0) & (objects.image_index < image_count), f"0..{image_count - 1}"),
        ("areas", np.isfinite(objects.areas) & (objects.areas >= 0), "a finite number >= 0"),
    ]
    if objects.scores is not None:
        expectations.append(("scores", np.isfinite(objects.scores), "a finite number"))
    if objects.keypoints is not None:
        expectations.append(("keypoints", np.isfinite(objects.keypoints).all(axis=(1, 2)), "finite numbers"))
    valid = np.ones(len(objects), dtype=bool)
    for field, is_valid, expected in expectations:
        for record in np.flatnonzero(valid & ~is_valid).tolist():
            error = DataError(
                f"expected {expected}, got {np.asarray(getattr(objects, field)[record]).tolist()}",
                where=f"{side}[{record}] (id {objects.ids[record]}).{field}",
                remedy="correct or remove this record",
                kind=f"bad_{field}",
            )
            if report is None:
                raise error
            report(error)
        valid &= is_valid
    return objects if valid.all() else objects.take(valid)


def _all_valid(objects: Objects, *, label_count: int, image_count: int) -> bool:
    """Return whether all records are valid: the fast path, by minima and maxima of whole columns."""
    if not len(objects):
        return True
    boxes, labels, image = objects.boxes_xyxy, objects.labels, objects.image_index
    numbers = [column for column in (boxes, objects.areas, objects.scores, objects.keypoints) if column is not None]
    return bool(
        all(np.isfinite(column).all() for column in numbers)
        and (boxes[:, 2] >= boxes[:, 0]).all()
        and (boxes[:, 3] >= boxes[:, 1]).all()
        and objects.areas.min() >= 0
        and (labels.min() >= 0 and labels.max() < label_count)
        and (image[0] >= 0 and image[-1] < image_count)
    )
