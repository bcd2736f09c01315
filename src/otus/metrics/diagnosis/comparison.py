"""Predictions laid beside the labels of the same images: which detection takes which object, by any rules.

Shape shorthand: D detections that count, G true objects, T IoU thresholds, K categories.
"""

from dataclasses import dataclass, field, replace

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from otus.errors import UsageError
from otus.metrics.detection.ignore_regions import for_every_category, ignore_regions
from otus.metrics.detection.mask_pairs import mask_pairs
from otus.metrics.detection.matching import Verdict
from otus.metrics.detection.pairs import Pairs, RankedDetections, box_pairs
from otus.metrics.detection.rules import Rules
from otus.metrics.diagnosis import _taking_kernels as kernels
from otus.structures import Categories, Objects


@dataclass(frozen=True, eq=False)
class Comparison:
    """Truth and predictions of the same images.

    Parameters
    ----------
    truth, predictions
        Objects of sound records (:func:`otus.metrics.detection.average_precision.validate_objects`); predictions have scores.
    categories
        What their labels mean.
    image_ids
        A name or number for each image; detections of equal score count in the order of these.
    sizes_hw
        Of the images; needed for masks.
    """

    truth: Objects
    predictions: Objects
    categories: Categories
    image_ids: np.ndarray
    sizes_hw: Int[np.ndarray, "m 2"] | None = None

    def __post_init__(self) -> None:
        if self.predictions.scores is None:
            raise UsageError("predictions: expected scores, got none")

    @property
    def scores(self) -> Float[np.ndarray, "n"]:
        """Of all predictions."""
        assert self.predictions.scores is not None
        return self.predictions.scores.astype(np.float64, copy=False)

    def only(self, label: int) -> "Comparison":
        """The objects and predictions of one category, and regions to be ignored; labels and categories stay as they are."""
        return replace(
            self,
            truth=self.truth.take((self.truth.labels == label) | ignore_regions(self.truth)),
            predictions=self.predictions.take(self.predictions.labels == label),
        )

    def blind_to_categories(self) -> "Comparison":
        """All objects and predictions as if they were of the first category."""
        truth, predictions = self.truth, self.predictions
        return replace(
            self,
            truth=replace(truth, labels=np.zeros_like(truth.labels)),
            predictions=replace(predictions, labels=np.zeros_like(predictions.labels)),
        )

    def pairs(
        self, *, at_least: float, masks: bool = False
    ) -> tuple[Int[np.ndarray, "p"], Int[np.ndarray, "p"], Float[np.ndarray, "p"]]:
        """All pairs of a prediction and a true object of any category with so much IoU: their indices, and the IoU."""
        blind = self.blind_to_categories()
        order = RankedDetections.of(blind.truth, blind.predictions, label_count=1, limit=None)
        if masks:
            pairs = mask_pairs(blind.truth, blind.predictions, order, sizes_hw=self.sizes_hw, at_least=at_least)
        else:
            pairs = box_pairs(blind.truth, blind.predictions, order, at_least=at_least)
        detections = np.repeat(order.detections, np.diff(pairs.offsets))
        return detections, order.truths[pairs.truths], pairs.similarities

    def match(self, rules: Rules, *, masks: bool = False, at_least: float | None = None) -> "Matches":
        """What becomes of every detection by the rules.

        Parameters
        ----------
        masks
            Compare masks, not boxes.
        at_least
            Overlaps from this on are looked at for ``nearest``; those that can match without it.
        """
        truth_index, truth = _considered(self.truth, self.predictions, rules)
        scores = self.scores if rules.score_decimals is None else np.round(self.scores, rules.score_decimals)
        index = np.flatnonzero(scores >= rules.score_floor)
        predictions = self.predictions.take(index)
        predictions = replace(predictions, scores=scores[index])
        if rules.inclusive_boxes:
            truth, predictions = _a_pixel_more(truth), _a_pixel_more(predictions)
        order = RankedDetections.of(truth, predictions, label_count=len(self.categories), limit=rules.max_dets)
        least = min(*rules.iou_thresholds, 1 - 1e-10) if at_least is None else at_least
        if masks:
            pairs = mask_pairs(truth, predictions, order, sizes_hw=self.sizes_hw, at_least=least)
        else:
            pairs = box_pairs(truth, predictions, order, at_least=least)
        ignored, outside = _ignored(truth, rules), _outside(predictions.areas, rules)[order.detections]
        nearest, nearest_overlap = _nearest(pairs)
        if rules.matching == "greedy":
            taken, overlaps = kernels.assign_greedily(
                pairs.offsets, pairs.truths, pairs.similarities, np.array(rules.iou_thresholds),
                ignored[order.truths], truth.is_crowd[order.truths],
            )  # fmt: skip
        else:
            is_crowd = truth.is_crowd[order.truths]
            taken, overlaps = _take_by_best_overlap(pairs, rules, ignored[order.truths], is_crowd)
        # From places in the order to places in the objects that came, -1 staying -1.
        origin = np.append(truth_index[order.truths], -1)
        place = np.empty(len(self.image_ids), dtype=np.int64)
        place[np.argsort(self.image_ids, kind="stable")] = np.arange(len(place))
        labels, image_index = predictions.labels[order.detections], predictions.image_index[order.detections]
        by_id = np.lexsort((order.ranks, place[image_index], labels))
        counted = np.zeros(len(self.truth), dtype=bool)
        counted[truth_index[~ignored]] = True
        return Matches(
            rules=rules,
            detections=index[order.detections][by_id],
            labels=labels[by_id],
            image_index=image_index[by_id],
            scores=order.scores[by_id],
            taken=origin[taken][by_id],
            overlaps=overlaps[by_id],
            nearest=origin[nearest][by_id],
            nearest_overlaps=nearest_overlap[by_id],
            outside=outside[by_id],
            counted=counted,
            positives=np.bincount(self.truth.labels[counted], minlength=len(self.categories)),
        )


@dataclass(frozen=True, eq=False)
class Matches:
    """The D detections that count, by label, image and falling score, and what each takes.

    Parameters
    ----------
    rules
        What they were matched by.
    detections
        (D,) indices of the predictions.
    labels, image_index, scores
        (D,).
    taken
        (D, T) index of the true object that a detection takes at each threshold, -1 for none.
    overlaps
        (D, T) IoU with it, 0 for none.
    nearest, nearest_overlaps
        (D,) the object of its category that it overlaps most, taken or not; -1 and 0 where it overlaps none enough.
    outside
        (D,) whether it is of another area, so that unmatched it does not count.
    counted
        (G,) true objects that are to be found.
    positives
        (K,) how many.
    """

    rules: Rules
    detections: Int[np.ndarray, "d"]
    labels: Int[np.ndarray, "d"]
    image_index: Int[np.ndarray, "d"]
    scores: Float[np.ndarray, "d"]
    taken: Int[np.ndarray, "d t"]
    overlaps: Float[np.ndarray, "d t"]
    nearest: Int[np.ndarray, "d"]
    nearest_overlaps: Float[np.ndarray, "d"]
    outside: Bool[np.ndarray, "d"]
    counted: Bool[np.ndarray, "g"]
    positives: Int[np.ndarray, "k"]
    verdicts: UInt8[np.ndarray, "d t"] = field(init=False)
    """(D, T) of :class:`~otus.metrics.detection.matching.Verdict`."""

    def __post_init__(self) -> None:
        counted = np.append(self.counted, False)  # for those that take nothing
        unmatched = np.where(self.outside, Verdict.IGNORED, Verdict.FALSE)[:, None]
        matched = np.where(counted[self.taken], Verdict.TRUE, Verdict.IGNORED)
        verdicts = np.where(self.taken >= 0, matched, unmatched)
        object.__setattr__(self, "verdicts", verdicts.astype(np.uint8))

    def by_score(self, label: int) -> Int[np.ndarray, "n"]:
        """Where the detections of a category stand here, by falling score; of equal scores the first stays first."""
        here = np.arange(*np.searchsorted(self.labels, [label, label + 1]))
        return here[np.argsort(-self.scores[here], kind="stable")]

    def average_precision(self) -> Float[np.ndarray, "k t"]:
        """AP of each category at each threshold, NaN where there is nothing to find."""
        figures = np.full((len(self.positives), self.taken.shape[1]), np.nan)
        for label in np.flatnonzero(self.positives).tolist():
            verdicts = self.verdicts[self.by_score(label)]
            for t, column in enumerate(verdicts.T):
                true, false = column == Verdict.TRUE, column == Verdict.FALSE
                figures[label, t] = self.rules.average_precision(true, false, int(self.positives[label]))
        return figures

    def mean_average_precision(self) -> float:
        """The mean over thresholds and the categories that the rules count; NaN where there are none."""
        figures = self.average_precision()
        if self.rules.average == "with_objects_or_detections":
            without = np.isnan(figures).all(axis=1)
            without &= np.bincount(self.labels, minlength=len(self.positives)) > 0
            figures[without] = 0
        defined = figures[~np.isnan(figures)]
        return float(defined.mean()) if defined.size else float("nan")


def _considered(truth: Objects, predictions: Objects, rules: Rules) -> tuple[Int[np.ndarray, "n"], Objects]:
    """Which objects are there at all, and those; crowds that count as others are no crowds, but for ignore regions."""
    kept = np.ones(len(truth), dtype=bool)
    if rules.crowd == "dropped":
        kept &= ~truth.is_crowd
    if rules.difficult == "dropped":
        kept &= ~_difficult(truth)
    index = np.flatnonzero(kept)
    rows, truth = for_every_category(truth.take(index), predictions)
    if rules.crowd == "counted":
        truth = replace(truth, is_crowd=ignore_regions(truth))
    return index[rows], truth


def _difficult(truth: Objects) -> Bool[np.ndarray, "g"]:
    column = truth.columns.get("difficult")
    return np.zeros(len(truth), dtype=bool) if column is None else column.astype(bool)


def _ignored(truth: Objects, rules: Rules) -> Bool[np.ndarray, "g"]:
    ignored = truth.is_crowd | _outside(truth.areas, rules)
    return ignored | _difficult(truth) if rules.difficult == "ignored" else ignored


def _outside(areas: Float[np.ndarray, "n"], rules: Rules) -> Bool[np.ndarray, "n"]:
    low, high = rules.area_range.low, rules.area_range.high
    return np.less(areas, low) | np.greater(areas, high)


def _a_pixel_more(objects: Objects) -> Objects:
    columns = dict(objects.columns)
    if "box_sizes_wh" in columns:
        columns["box_sizes_wh"] = columns["box_sizes_wh"] + 1
    return replace(objects, boxes_xyxy=objects.boxes_xyxy + np.array([0, 0, 1, 1]), columns=columns)


def _nearest(pairs: Pairs) -> tuple[Int[np.ndarray, "d"], Float[np.ndarray, "d"]]:
    """The most similar object of each detection, of equals the first, and how similar it is; -1 and 0 for none."""
    counts = np.diff(pairs.offsets)
    detection = np.repeat(np.arange(len(counts)), counts)
    order = np.lexsort((-np.arange(len(detection)), pairs.similarities, detection))
    has_one = np.flatnonzero(counts)
    best = order[pairs.offsets[has_one + 1] - 1]  # the last of each detection
    nearest, overlap = np.full(len(counts), -1), np.zeros(len(counts))
    nearest[has_one], overlap[has_one] = pairs.truths[best], pairs.similarities[best]
    return nearest, overlap


def _take_by_best_overlap(
    pairs: Pairs,
    rules: Rules,
    ignored: Bool[np.ndarray, "g"],
    is_crowd: Bool[np.ndarray, "g"],
) -> tuple[Int[np.ndarray, "d t"], Float[np.ndarray, "d t"]]:
    """Each object goes to the first detection that is about it; detections about ignored objects all take theirs.

    Those that take none take the crowd that they lie in.
    """
    nearest, overlap = _nearest(pairs.where(~is_crowd[pairs.truths]))
    crowd, inside = _nearest(pairs.where(is_crowd[pairs.truths]))
    shape = (len(nearest), len(rules.iou_thresholds))
    taken, overlaps = np.full(shape, -1), np.zeros(shape)
    for t, threshold in enumerate(rules.iou_thresholds):
        about = np.flatnonzero((nearest >= 0) & (overlap >= threshold))
        first = about[np.unique(nearest[about], return_index=True)[1]]
        takes = np.union1d(first, about[ignored[nearest[about]]])
        taken[takes, t], overlaps[takes, t] = nearest[takes], overlap[takes]
        rest = np.flatnonzero((taken[:, t] < 0) & (crowd >= 0) & (inside >= threshold))
        taken[rest, t], overlaps[rest, t] = crowd[rest], inside[rest]
    return taken, overlaps
