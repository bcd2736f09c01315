"""The assignment of detections to ground truths, by any :class:`~otus.metrics.detection.rules.Rules`.

Shape shorthand: D detections after the rules' limits, G ground truths, P pairs, T IoU thresholds, K categories.
"""

from dataclasses import dataclass, field, replace

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from otus.errors import UsageError
from otus.metrics.detection import _matching_kernels as kernels
from otus.metrics.detection.ignore_regions import ignore_regions, repeat_ignore_regions
from otus.metrics.detection.mask_pairs import mask_pairs
from otus.metrics.detection.matching import Outcome
from otus.metrics.detection.pairs import Pairs, RankedDetections, box_pairs
from otus.metrics.detection.rules import Rules
from otus.structures import Categories, Objects


@dataclass(frozen=True, eq=False)
class DetectionMatcher:
    """Ground truth and predictions of the same images, to be matched by one or several sets of rules.

    Parameters
    ----------
    ground_truth, predictions
        Valid objects (:func:`otus.metrics.detection.average_precision.validate_objects`); predictions have scores.
    categories
        The K categories.
    image_ids
        (M,) ids of the images, str or int; detections of equal score are ranked by them.
    sizes_hw
        (M, 2) heights and widths of the images, needed for masks.
    """

    ground_truth: Objects
    predictions: Objects
    categories: Categories
    image_ids: np.ndarray
    sizes_hw: Int[np.ndarray, "m 2"] | None = None

    def __post_init__(self) -> None:
        if self.predictions.scores is None:
            raise UsageError("predictions: expected scores, got none")

    @property
    def scores(self) -> Float[np.ndarray, "n"]:
        """(N,) float64 scores of all predictions."""
        assert self.predictions.scores is not None
        return self.predictions.scores.astype(np.float64, copy=False)

    def of_category(self, label: int) -> "DetectionMatcher":
        """Return ground truth and predictions of one category, with all ignore regions; labels do not change."""
        return replace(
            self,
            ground_truth=self.ground_truth.take(
                (self.ground_truth.labels == label) | ignore_regions(self.ground_truth)
            ),
            predictions=self.predictions.take(self.predictions.labels == label),
        )

    def class_agnostic(self) -> "DetectionMatcher":
        """Return the same with every label 0."""
        ground_truth, predictions = self.ground_truth, self.predictions
        return replace(
            self,
            ground_truth=replace(ground_truth, labels=np.zeros_like(ground_truth.labels)),
            predictions=replace(predictions, labels=np.zeros_like(predictions.labels)),
        )

    def pairs(
        self, *, min_iou: float, masks: bool = False
    ) -> tuple[Int[np.ndarray, "p"], Int[np.ndarray, "p"], Float[np.ndarray, "p"]]:
        """Return the P pairs of any categories with at least ``min_iou``: prediction and ground truth indices, IoUs."""
        agnostic = self.class_agnostic()
        ranked = RankedDetections.build(agnostic.ground_truth, agnostic.predictions, label_count=1, limit=None)
        pairs = self._pairs(agnostic.ground_truth, agnostic.predictions, ranked, min_iou, masks)
        detections = np.repeat(ranked.detections, np.diff(pairs.offsets))
        return detections, ranked.ground_truths[pairs.ground_truths], pairs.similarities

    def _pairs(
        self, ground_truth: Objects, predictions: Objects, ranked: RankedDetections, min_iou: float, masks: bool
    ) -> Pairs:
        if masks:
            return mask_pairs(ground_truth, predictions, ranked, sizes_hw=self.sizes_hw, min_similarity=min_iou)
        return box_pairs(ground_truth, predictions, ranked, min_similarity=min_iou)

    def match(self, rules: Rules, *, masks: bool = False, min_iou: float | None = None) -> "Assignment":
        """Match every detection by the rules.

        Parameters
        ----------
        masks
            Whether to compare masks instead of boxes.
        min_iou
            Lowest IoU of ``Assignment.best_gt`` (default: the rules' lowest threshold).
        """
        gt_index, ground_truth = _select_ground_truth(self.ground_truth, self.predictions, rules)
        scores = self.scores if rules.score_decimals is None else np.round(self.scores, rules.score_decimals)
        index = np.flatnonzero(scores >= rules.min_score)
        predictions = self.predictions.take(index)
        predictions = replace(predictions, scores=scores[index])
        if rules.inclusive_boxes:
            ground_truth, predictions = _with_inclusive_corners(ground_truth), _with_inclusive_corners(predictions)
        ranked = RankedDetections.build(
            ground_truth, predictions, label_count=len(self.categories), limit=rules.max_dets
        )
        lowest_iou = min(*rules.iou_thresholds, 1 - 1e-10) if min_iou is None else min_iou
        pairs = self._pairs(ground_truth, predictions, ranked, lowest_iou, masks)
        ignored, outside_area = (
            _is_ignored(ground_truth, rules),
            _outside_area(predictions.areas, rules)[ranked.detections],
        )
        best_gt, best_ious = _best_pairs(pairs)
        assign = _assign_greedily if rules.matching == "greedy" else _assign_by_best_overlap
        matched, ious = assign(pairs, rules, ignored[ranked.ground_truths], ground_truth.is_crowd[ranked.ground_truths])
        # Map indices into ``ranked.ground_truths`` to indices into ``self.ground_truth``; -1 stays -1.
        original_index = np.append(gt_index[ranked.ground_truths], -1)
        id_rank = np.empty(len(self.image_ids), dtype=np.int64)
        id_rank[np.argsort(self.image_ids, kind="stable")] = np.arange(len(id_rank))
        labels, image_index = predictions.labels[ranked.detections], predictions.image_index[ranked.detections]
        by_id = np.lexsort((ranked.ranks, id_rank[image_index], labels))
        is_positive = np.zeros(len(self.ground_truth), dtype=bool)
        is_positive[gt_index[~ignored]] = True
        return Assignment(
            rules=rules,
            detections=index[ranked.detections][by_id],
            labels=labels[by_id],
            image_index=image_index[by_id],
            scores=ranked.scores[by_id],
            matched=original_index[matched][by_id],
            ious=ious[by_id],
            best_gt=original_index[best_gt][by_id],
            best_ious=best_ious[by_id],
            outside_area=outside_area[by_id],
            is_positive=is_positive,
            positives=np.bincount(self.ground_truth.labels[is_positive], minlength=len(self.categories)),
        )


@dataclass(frozen=True, eq=False)
class Assignment:
    """The D detections, ordered by label, image and descending score, and the ground truth that each is matched to.

    Parameters
    ----------
    rules
        Rules of the matching.
    detections
        (D,) indices of the predictions.
    labels, image_index, scores
        (D,) label, image and score of each detection.
    matched, ious
        (D, T) index of the ground truth matched at each threshold, -1 for none, and the IoU with it, 0 for none.
    best_gt, best_ious
        (D,) index of the ground truth of the same category with the highest IoU, matched or not, and that IoU; -1 and 0
        if none reaches the lowest IoU.
    outside_area
        (D,) bool, true if the detection's area is outside the rules' area range: it is ignored if unmatched.
    is_positive
        (G,) bool, true for ground truths that are not ignored.
    positives
        (K,) number of positives per category.
    """

    rules: Rules
    detections: Int[np.ndarray, "d"]
    labels: Int[np.ndarray, "d"]
    image_index: Int[np.ndarray, "d"]
    scores: Float[np.ndarray, "d"]
    matched: Int[np.ndarray, "d t"]
    ious: Float[np.ndarray, "d t"]
    best_gt: Int[np.ndarray, "d"]
    best_ious: Float[np.ndarray, "d"]
    outside_area: Bool[np.ndarray, "d"]
    is_positive: Bool[np.ndarray, "g"]
    positives: Int[np.ndarray, "k"]
    outcomes: UInt8[np.ndarray, "d t"] = field(init=False)
    """(D, T) values of :class:`~otus.metrics.detection.matching.Outcome`."""

    def __post_init__(self) -> None:
        is_positive = np.append(self.is_positive, False)  # index -1, for unmatched detections
        unmatched = np.where(self.outside_area, Outcome.IGNORED, Outcome.FALSE_POSITIVE)[:, None]
        matched = np.where(is_positive[self.matched], Outcome.TRUE_POSITIVE, Outcome.IGNORED)
        outcomes = np.where(self.matched >= 0, matched, unmatched)
        object.__setattr__(self, "outcomes", outcomes.astype(np.uint8))

    def by_score(self, label: int) -> Int[np.ndarray, "n"]:
        """Return the rows of one category's detections in descending order of score; equal scores keep their order."""
        rows = np.arange(*np.searchsorted(self.labels, [label, label + 1]))
        return rows[np.argsort(-self.scores[rows], kind="stable")]

    def average_precision(self) -> Float[np.ndarray, "k t"]:
        """Return AP (K, T) of each category at each threshold; NaN without positives."""
        figures = np.full((len(self.positives), self.matched.shape[1]), np.nan)
        for label in np.flatnonzero(self.positives).tolist():
            outcomes = self.outcomes[self.by_score(label)]
            for t, column in enumerate(outcomes.T):
                is_true, is_false = column == Outcome.TRUE_POSITIVE, column == Outcome.FALSE_POSITIVE
                figures[label, t] = self.rules.average_precision(is_true, is_false, int(self.positives[label]))
        return figures

    def mean_average_precision(self) -> float:
        """Return mAP: the mean over thresholds and the categories that ``rules.average`` includes; NaN if none."""
        figures = self.average_precision()
        if self.rules.average == "with_objects_or_detections":
            has_only_detections = np.isnan(figures).all(axis=1)
            has_only_detections &= np.bincount(self.labels, minlength=len(self.positives)) > 0
            figures[has_only_detections] = 0
        defined = figures[~np.isnan(figures)]
        return float(defined.mean()) if defined.size else float("nan")


def _select_ground_truth(
    ground_truth: Objects, predictions: Objects, rules: Rules
) -> tuple[Int[np.ndarray, "n"], Objects]:
    """Return the ground truths that are not dropped, after their indices; ``crowd="counted"`` clears ``is_crowd``."""
    kept = np.ones(len(ground_truth), dtype=bool)
    if rules.crowd == "dropped":
        kept &= ~ground_truth.is_crowd
    if rules.difficult == "dropped":
        kept &= ~_is_difficult(ground_truth)
    index = np.flatnonzero(kept)
    rows, ground_truth = repeat_ignore_regions(ground_truth.take(index), predictions)
    if rules.crowd == "counted":
        ground_truth = replace(ground_truth, is_crowd=ignore_regions(ground_truth))
    return index[rows], ground_truth


def _is_difficult(ground_truth: Objects) -> Bool[np.ndarray, "g"]:
    column = ground_truth.columns.get("difficult")
    return np.zeros(len(ground_truth), dtype=bool) if column is None else column.astype(bool)


def _is_ignored(ground_truth: Objects, rules: Rules) -> Bool[np.ndarray, "g"]:
    ignored = ground_truth.is_crowd | _outside_area(ground_truth.areas, rules)
    return ignored | _is_difficult(ground_truth) if rules.difficult == "ignored" else ignored


def _outside_area(areas: Float[np.ndarray, "n"], rules: Rules) -> Bool[np.ndarray, "n"]:
    low, high = rules.area_range.low, rules.area_range.high
    return np.less(areas, low) | np.greater(areas, high)


def _with_inclusive_corners(objects: Objects) -> Objects:
    """Return the objects with boxes one pixel wider and higher."""
    columns = dict(objects.columns)
    if "box_sizes_wh" in columns:
        columns["box_sizes_wh"] = columns["box_sizes_wh"] + 1
    return replace(objects, boxes_xyxy=objects.boxes_xyxy + np.array([0, 0, 1, 1]), columns=columns)


def _best_pairs(pairs: Pairs) -> tuple[Int[np.ndarray, "d"], Float[np.ndarray, "d"]]:
    """Return each detection's ground truth of highest similarity (the first of ties) and that similarity; -1 and 0."""
    counts = np.diff(pairs.offsets)
    detection = np.repeat(np.arange(len(counts)), counts)
    order = np.lexsort((-np.arange(len(detection)), pairs.similarities, detection))
    candidates = np.flatnonzero(counts)
    last = order[pairs.offsets[candidates + 1] - 1]  # the best pair of each candidate
    best_gt, best = np.full(len(counts), -1), np.zeros(len(counts))
    best_gt[candidates], best[candidates] = pairs.ground_truths[last], pairs.similarities[last]
    return best_gt, best


def _assign_greedily(
    pairs: Pairs, rules: Rules, ignored: Bool[np.ndarray, "g"], is_crowd: Bool[np.ndarray, "g"]
) -> tuple[Int[np.ndarray, "d t"], Float[np.ndarray, "d t"]]:
    """Assign by COCO's rule (:func:`otus.metrics.detection.matching.match_image`); -1 and 0 for unmatched detections."""
    count = len(pairs.offsets) - 1
    matched_pairs = np.full((count, 1, len(rules.iou_thresholds)), -1, dtype=np.int64)
    kernels.match_greedily(
        pairs.offsets, pairs.ground_truths, pairs.similarities, np.array(rules.iou_thresholds),
        ignored[:, None], is_crowd, np.zeros((count, 1), dtype=bool), matched_pairs,
    )  # fmt: skip
    rows = matched_pairs[:, 0]
    return np.append(pairs.ground_truths, -1)[rows], np.append(pairs.similarities, 0.0)[rows]


def _assign_by_best_overlap(
    pairs: Pairs, rules: Rules, ignored: Bool[np.ndarray, "g"], is_crowd: Bool[np.ndarray, "g"]
) -> tuple[Int[np.ndarray, "d t"], Float[np.ndarray, "d t"]]:
    """Assign by Pascal VOC's rule: a ground truth is matched by the first detection for which it has the highest IoU.

    An ignored ground truth is matched by all such detections; unmatched detections are matched to a crowd that they lie
    in.
    """
    best_gt, best_ious = _best_pairs(pairs.select(~is_crowd[pairs.ground_truths]))
    crowd, crowd_ious = _best_pairs(pairs.select(is_crowd[pairs.ground_truths]))
    shape = (len(best_gt), len(rules.iou_thresholds))
    matched, ious = np.full(shape, -1), np.zeros(shape)
    for t, threshold in enumerate(rules.iou_thresholds):
        candidates = np.flatnonzero((best_gt >= 0) & (best_ious >= threshold))
        first = candidates[np.unique(best_gt[candidates], return_index=True)[1]]
        rows = np.union1d(first, candidates[ignored[best_gt[candidates]]])
        matched[rows, t], ious[rows, t] = best_gt[rows], best_ious[rows]
        unmatched = np.flatnonzero((matched[:, t] < 0) & (crowd >= 0) & (crowd_ious >= threshold))
        matched[unmatched, t], ious[unmatched, t] = crowd[unmatched], crowd_ious[unmatched]
    return matched, ious
