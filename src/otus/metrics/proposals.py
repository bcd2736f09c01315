"""Recall and average best overlap of class-agnostic proposals, by their number per image.

Shape shorthand: G ground truths, T IoU thresholds, C numbers of proposals, K categories.

Papers: recall by number of proposals and IoU, "What makes for effective detection proposals?" (Hosang et al., TPAMI
2016); average best overlap (ABO) of a category and its mean over categories (MABO), "Selective Search for Object
Recognition" (Uijlings et al., IJCV 2013), section 5.1. Proposals and objects are not matched one to one: a proposal may
cover several objects. Crowds and ``difficult`` objects are left out.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
from jaxtyping import Float, Int

from otus.errors import UsageError
from otus.metrics import _proposal_kernels as kernels
from otus.metrics.detection.average_precision import validate_objects
from otus.structures import Categories, Objects

COCO_THRESHOLDS = np.linspace(0.5, 0.95, 10)
"""IoU thresholds of average recall."""


@dataclass(frozen=True)
class ProposalProtocol:
    """Numbers of highest-scoring proposals per image and IoU thresholds at which recall is computed."""

    counts: tuple[int, ...] = (1, 10, 50, 100, 200, 300, 500, 1000, 2000)
    iou_thresholds: tuple[float, ...] = (0.5, 0.7)

    def __post_init__(self) -> None:
        if not self.counts or self.counts[0] < 1 or list(self.counts) != sorted(set(self.counts)):
            raise UsageError(f"counts: expected ascending integers from 1, got {self.counts}")
        if not self.iou_thresholds or not all(0 < iou <= 1 for iou in self.iou_thresholds):
            raise UsageError(f"iou_thresholds: expected numbers in (0, 1], got {self.iou_thresholds}")


@dataclass(frozen=True, eq=False)
class ProposalResult:
    """Figures by number of proposals; NaN without objects.

    Parameters
    ----------
    protocol, categories
        Protocol and categories of the evaluation.
    recall
        (T, C) fraction of the objects with a proposal of at least this IoU.
    average_recall
        (C,) mean recall over IoU thresholds 0.5, 0.55 … 0.95.
    abo
        (K, C) mean best overlap (IoU) of the objects of each category.
    mabo
        (C,) mean of ``abo`` over the categories that have objects.
    objects
        Number of objects.
    proposals_per_image
        Mean number of proposals per image.
    """

    protocol: ProposalProtocol
    categories: Categories
    recall: Float[np.ndarray, "t c"]
    average_recall: Float[np.ndarray, "c"]
    abo: Float[np.ndarray, "k c"]
    mabo: Float[np.ndarray, "c"]
    objects: int
    proposals_per_image: float
    figures: Mapping[str, float] = field(init=False)
    """``recall50@1000``, ``AR@1000``, ``MABO@1000`` … for each IoU threshold and number of proposals."""
    per_category: Mapping[str, Mapping[str, float]] = field(init=False)
    """``ABO@1000`` … by category name."""

    def __post_init__(self) -> None:
        figures: dict[str, float] = {}
        for c, count in enumerate(self.protocol.counts):
            for threshold, recalls in zip(self.protocol.iou_thresholds, self.recall, strict=True):
                figures[f"recall{round(100 * threshold, 2):g}@{count}"] = float(recalls[c])
            figures[f"AR@{count}"] = float(self.average_recall[c])
            figures[f"MABO@{count}"] = float(self.mabo[c])
        per_category = {
            name: {f"ABO@{count}": float(value) for count, value in zip(self.protocol.counts, overlaps, strict=True)}
            for name, overlaps in zip(self.categories, self.abo, strict=True)
        }
        object.__setattr__(self, "figures", figures)
        object.__setattr__(self, "per_category", per_category)

    def document(self) -> dict[str, Any]:
        """Return the figures as JSON values."""
        return {
            **self.figures,
            "objects": self.objects,
            "proposals_per_image": self.proposals_per_image,
            "per_category": {name: dict(figures) for name, figures in self.per_category.items()},
        }


class ProposalRecall:
    """Recall, ABO and MABO over any number of images and shards; keeps a few numbers per object.

    Examples
    --------
    >>> ground_truth = Objects.build(image_index=[0, 0], labels=[0, 0], boxes_xyxy=[[0, 0, 10, 10], [20, 0, 30, 10]])
    >>> proposals = Objects.build(
    ...     image_index=[0, 0], labels=[0, 0], boxes_xyxy=[[0, 0, 10, 8], [20, 0, 30, 10]], scores=np.array([0.9, 0.5])
    ... )
    >>> metric = ProposalRecall(Categories(("owl",)), ProposalProtocol(counts=(1, 2)))
    >>> result = metric.update(ground_truth, proposals, image_ids=[7]).compute()
    >>> result.recall.tolist(), result.mabo.round(3).tolist()
    ([[0.5, 1.0], [0.5, 1.0]], [0.4, 0.9])
    """

    def __init__(self, categories: Categories, protocol: ProposalProtocol = ProposalProtocol()) -> None:
        self.categories = categories
        self.protocol = protocol
        self._image_ids: list[np.ndarray] = []
        self._labels: list[Int[np.ndarray, "g"]] = []
        self._best: list[Float[np.ndarray, "g c"]] = []
        self._proposals = 0

    def update(
        self, ground_truth: Objects, proposals: Objects, *, image_ids: Sequence[int] | Sequence[str] | np.ndarray
    ) -> Self:
        """Add the proposals of M more images.

        Parameters
        ----------
        ground_truth, proposals
            Objects whose ``image_index`` is 0 to M - 1. Proposals are ranked by descending score (ties: in their
            order); without scores, in their order. Their labels must be valid but are not used.
        image_ids
            M ids, str or int.

        Raises
        ------
        DataError
            If a record is invalid: a box that is not finite, a negative size, an unknown label or image.
        UsageError
            If an image was added before.
        """
        ids = np.asarray(image_ids)
        validate_objects(ground_truth, "ground_truth", label_count=len(self.categories), image_count=len(ids))
        validate_objects(proposals, "proposals", label_count=len(self.categories), image_count=len(ids))
        self._add_ids([ids])
        scores = np.zeros(len(proposals)) if proposals.scores is None else proposals.scores
        order = np.lexsort((-scores, proposals.image_index))
        bounds = np.searchsorted(proposals.image_index, np.arange(len(ids) + 1))
        counted = ~ground_truth.is_crowd
        if "difficult" in ground_truth.columns:
            counted = counted & ~ground_truth.columns["difficult"].astype(bool)
        best = kernels.best_overlaps(
            proposals.boxes_xyxy[order].astype(np.float64, copy=False),
            np.stack([bounds[:-1], bounds[1:]], axis=1),
            ground_truth.boxes_xyxy[counted].astype(np.float64, copy=False),
            ground_truth.image_index[counted],
            np.array(self.protocol.counts, dtype=np.int64),
        )
        self._labels.append(ground_truth.labels[counted])
        self._best.append(best)
        self._proposals += len(proposals)
        return self

    def merge(self, other: "ProposalRecall") -> Self:
        """Add the counts of another metric, of other images and the same protocol."""
        if other.protocol != self.protocol or other.categories != self.categories:
            raise UsageError("only metrics of the same protocol and categories can be merged")
        self._add_ids(other._image_ids)
        self._labels += other._labels
        self._best += other._best
        self._proposals += other._proposals
        return self

    def _add_ids(self, new_ids: list[np.ndarray]) -> None:
        ids, counts = np.unique(np.concatenate([*self._image_ids, *new_ids, np.array([], int)]), return_counts=True)
        if (counts > 1).any():
            raise UsageError(f"image {ids[counts > 1][0]} was added before; each image counts once")
        self._image_ids += new_ids

    def compute(self) -> ProposalResult:
        """Compute the figures of all images so far."""
        if not self._image_ids:
            raise UsageError("nothing to compute: call update first (with no images for an empty data set)")
        best, labels = np.concatenate(self._best), np.concatenate(self._labels)
        abo = np.full((len(self.categories), best.shape[1]), np.nan)
        for label in np.unique(labels).tolist():
            abo[label] = best[labels == label].mean(axis=0)
        images = sum(len(ids) for ids in self._image_ids)
        return ProposalResult(
            protocol=self.protocol,
            categories=self.categories,
            recall=_recall(best, self.protocol.iou_thresholds),
            average_recall=_recall(best, COCO_THRESHOLDS).mean(axis=0),
            abo=abo,
            mabo=_mean(abo[np.isfinite(abo[:, 0])]),
            objects=len(best),
            proposals_per_image=self._proposals / images if images else float("nan"),
        )


def _recall(best: Float[np.ndarray, "g c"], thresholds: Sequence[float] | np.ndarray) -> Float[np.ndarray, "t c"]:
    return np.stack([_mean(best >= threshold) for threshold in thresholds])


def _mean(rows: np.ndarray) -> Float[np.ndarray, "c"]:
    return rows.mean(axis=0) if len(rows) else np.full(rows.shape[1], np.nan)
