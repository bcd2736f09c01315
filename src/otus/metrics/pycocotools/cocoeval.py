"""``COCOeval`` with pycocotools' interface over the evaluation of Otus, for code written for pycocotools.

    from otus.metrics.pycocotools.coco import COCO          # or pycocotools.coco
    from otus.metrics.pycocotools.cocoeval import COCOeval     # in place of pycocotools.cocoeval

``params``, ``eval`` (``precision``, ``recall``, ``scores``, ``counts``, ``params``), ``ious``, ``evalImgs``, ``stats`` and
the printed lines are pycocotools' (2.0, BSD), to the bit. For packages that import it themselves, such as torchmetrics, call
:func:`init_as_pycocotools` first.

Departures, each of which is a known fault there: an object with id 0 can be predictions; the summary honours any
``maxDets`` and ``areaRng`` (there AP is -1 where 100 is not among ``maxDets``); ``accumulate(p)`` on some of the images is
settings these images; ``params`` keeps its ``catIds`` where ``useCats`` is 0. What cannot be (a score that is not finite,
an id twice, a negative size) is an error that names the annotation.

Shape shorthand: T IoU thresholds, R recall thresholds, K categories, A area ranges, M limits on detections.
"""

# ruff: noqa: N802, N803 - pycocotools' names
import copy
import datetime
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pycocotools
from jaxtyping import Int

from otus.errors import UsageError
from otus.metrics.detection.average_precision import AveragePrecision
from otus.metrics.detection.coco import ALL, LARGE, MEDIUM, SMALL, AreaRange, CocoProtocol, CocoResult
from otus.metrics.detection.mask_pairs import mask_pairs
from otus.metrics.detection.matching import match_image
from otus.metrics.detection.pairs import RankedDetections, box_pairs, keypoint_pairs
from otus.metrics.pycocotools.coco import objects_of, sizes_hw_of
from otus.structures import Categories, KeypointNames, Objects
from otus.structures.categories import COCO_PERSON_SIGMAS

Record = dict[str, Any]


class Params:
    """The parameters of an evaluation, which may be changed before ``evaluate``.

    ``imgIds``, ``catIds``, ``iouThrs``, ``recThrs``, ``maxDets``, ``areaRng`` with ``areaRngLbl``, ``useCats`` (0:
    class-agnostic, as for proposals), and for keypoints ``kpt_oks_sigmas``.
    """

    def __init__(self, iouType: str = "segm") -> None:
        usual = CocoProtocol(iouType)  # type: ignore[arg-type]
        labels = {ALL: "all", SMALL: "small", MEDIUM: "medium", LARGE: "large"}
        self.iouType = iouType
        self.imgIds: list[Any] = []
        self.catIds: list[Any] = []
        self.iouThrs = np.array(usual.iou_thresholds)
        self.recThrs = np.array(usual.recall_thresholds)
        self.maxDets = list(usual.max_dets)
        self.areaRng = [[area.low, area.high] for area in usual.area_ranges]
        self.areaRngLbl = [labels[area] for area in usual.area_ranges]
        self.useCats = 1
        if iouType == "keypoints":
            self.kpt_oks_sigmas = np.array(COCO_PERSON_SIGMAS)

    @property
    def labels(self) -> list[Any]:
        """Categories that are evaluated separately."""
        return self.catIds if self.useCats else [-1]

    def protocol(self) -> CocoProtocol:
        """The same as a :class:`CocoProtocol`, with sorted thresholds."""
        return CocoProtocol(
            self.iouType,  # type: ignore[arg-type]
            max_dets=tuple(int(limit) for limit in self.maxDets),
            area_ranges=tuple(
                AreaRange(str(label), float(low), float(high))
                for label, (low, high) in zip(self.areaRngLbl, self.areaRng, strict=True)
            ),
            iou_thresholds=tuple(np.unique(self.iouThrs).tolist()),
            recall_thresholds=tuple(np.unique(self.recThrs).tolist()),
        )


@dataclass(frozen=True, eq=False)
class _Evaluation:
    """Ground truth and predictions as columns, by the parameters that select them, and their metric."""

    params: Params
    ground_truth: Objects
    predictions: Objects
    categories: Categories
    sizes_hw: Int[np.ndarray, "m 2"]
    metric: AveragePrecision[CocoResult]

    @classmethod
    def by(cls, coco_gt: Any, coco_dt: Any, params: Params) -> "_Evaluation":
        params = copy.deepcopy(params)
        sizes_hw = np.zeros((len(params.imgIds), 2), dtype=np.int64)
        if params.iouType == "segm":
            sizes_hw = sizes_hw_of(params.imgIds, (coco_dt, coco_gt))
        options: dict[str, Any] = {
            "kind": params.iouType,
            "image_ids": params.imgIds,
            "category_ids": params.catIds,
            "by_category": bool(params.useCats),
        }
        ground_truth = objects_of(coco_gt, "truth", **options)
        predictions = objects_of(coco_dt, "predictions", **options)
        names = tuple(str(label) for label in params.labels)
        keypoints: tuple[tuple[str, KeypointNames], ...] = ()
        if params.iouType == "keypoints":
            sigmas = tuple(np.asarray(params.kpt_oks_sigmas, dtype=np.float64).tolist())
            keypoints = tuple(
                (name, KeypointNames(tuple(map(str, range(len(sigmas)))), sigmas=sigmas)) for name in names
            )
        categories = Categories(names, keypoints=keypoints)
        metric = AveragePrecision(params.protocol(), categories)
        metric.update(ground_truth, predictions, image_ids=np.arange(len(params.imgIds)), sizes_hw=sizes_hw)
        return cls(params, ground_truth, predictions, categories, sizes_hw, metric)

    def similarities(self) -> dict[tuple[Any, Any], Any]:
        """Return IoU or OKS (D, G) of detections within the limit and objects, by image and category."""
        protocol = self.metric.protocol
        ranked = RankedDetections.build(
            self.ground_truth, self.predictions, label_count=len(self.categories), limit=protocol.detection_limit
        )
        if self.params.iouType == "bbox":
            pairs = box_pairs(self.ground_truth, self.predictions, ranked, min_similarity=0.0)
        elif self.params.iouType == "segm":
            pairs = mask_pairs(self.ground_truth, self.predictions, ranked, sizes_hw=self.sizes_hw, min_similarity=0.0)
        else:
            sigmas = self.categories.sigmas
            assert sigmas is not None
            pairs = keypoint_pairs(self.ground_truth, self.predictions, ranked, sigmas=sigmas, min_similarity=0.0)
        lines: dict[tuple[Any, Any], Any] = {
            (image, category): [] for image in self.params.imgIds for category in self.params.labels
        }
        starts = np.flatnonzero(ranked.ranks == 0)
        for first, last in zip(starts, np.append(starts[1:], len(ranked.ranks)), strict=True):
            one = ranked.detections[first]
            key = (
                self.params.imgIds[self.predictions.image_index[one]],
                self.params.labels[self.predictions.labels[one]],
            )
            values = pairs.similarities[pairs.offsets[first] : pairs.offsets[last]]
            lines[key] = values.reshape(last - first, -1) if len(values) else []
        return lines


class COCOeval:
    """Compare detections with the ground truth.

    Parameters
    ----------
    cocoGt, cocoDt
        Truth and detections: pycocotools' ``COCO``, ours, or any with ``getAnnIds``, ``loadAnns`` and ``imgs``.
    iouType
        ``segm``, ``bbox`` or ``keypoints``.

    Examples
    --------
    >>> from otus.metrics.pycocotools.coco import COCO
    >>> box = {"id": 1, "image_id": 7, "category_id": 1, "bbox": [0, 0, 10, 10], "area": 100, "iscrowd": 0}
    >>> ground_truth = COCO({"images": [{"id": 7}], "categories": [{"id": 1, "name": "owl"}], "annotations": [box]})
    >>> predictions = ground_truth.loadRes([{"image_id": 7, "category_id": 1, "bbox": [0, 0, 10, 8], "score": 0.9}])
    >>> evaluation = COCOeval(ground_truth, predictions, "bbox")
    >>> evaluation.evaluate()
    >>> evaluation.accumulate()
    >>> evaluation.lines()[0]
    ' Average Precision  (AP) @[ IoU=0.50:0.95 | area=   all | maxDets=100 ] = 0.700'
    """

    def __init__(self, cocoGt: Any = None, cocoDt: Any = None, iouType: str = "segm") -> None:
        self.cocoGt, self.cocoDt = cocoGt, cocoDt
        self.params = Params(iouType)
        self.eval: dict[str, Any] = {}
        self.stats: Any = []
        self._judged: _Evaluation | None = None
        if cocoGt is not None:
            self.params.imgIds = sorted(cocoGt.getImgIds())
            self.params.catIds = sorted(cocoGt.getCatIds())

    def evaluate(self) -> None:
        """Match all detections; ``imgIds``, ``catIds`` and ``maxDets`` are sorted."""
        p = self.params
        p.imgIds = np.unique(p.imgIds).tolist()
        if p.useCats:
            p.catIds = np.unique(p.catIds).tolist()
        p.maxDets = sorted(p.maxDets)
        self.eval = {}
        self._judged = _Evaluation.by(self.cocoGt, self.cocoDt, p)

    def accumulate(self, p: Params | None = None) -> None:
        """Compute the curves into ``eval``: precision (T, R, K, A, M), recall (T, K, A, M) and scores (T, R, K, A, M)."""
        evaluation = self._evaluated()
        p = self.params if p is None else p
        if _plain(p) != _plain(evaluation.params):
            evaluation = _Evaluation.by(self.cocoGt, self.cocoDt, p)
        curves = evaluation.metric.compute().curves
        ious, recalls = (np.unique(values, return_inverse=True)[1] for values in (p.iouThrs, p.recThrs))
        params = copy.copy(p)
        params.catIds = list(p.labels)
        self.eval = {
            "params": params,
            "counts": [len(p.iouThrs), len(p.recThrs), len(p.labels), len(p.areaRng), len(p.maxDets)],
            "date": f"{datetime.datetime.now():%Y-%m-%d %H:%M:%S}",
            "precision": np.ascontiguousarray(curves.precision[ious][:, recalls]),
            "recall": np.ascontiguousarray(curves.recall[ious]),
            "scores": np.ascontiguousarray(curves.scores[ious][:, recalls]),
        }

    def summarize(self) -> None:
        """Print the figures and keep them in ``stats``."""
        print("\n".join(self.lines()))
        self.stats = np.array([value for *_, value in self._figures()])

    def __str__(self) -> str:
        """The lines of the summary."""
        return "\n".join(self.lines())

    def lines(self) -> list[str]:
        """Return the lines of :meth:`summarize`: 12, for keypoints 10; others by ``maxDets`` and ``areaRng``."""
        p: Params = self._accumulated()["params"]
        lines = []
        for what, iou, area, limit, value in self._figures():
            title = "Average Precision  (AP)" if what == "precision" else "Average Recall     (AR)"
            ious = f"{p.iouThrs[0]:.2f}:{p.iouThrs[-1]:.2f}" if iou is None else f"{iou:.2f}"
            settings = f"IoU={ious:<9} | area={p.areaRngLbl[area]:>6} | maxDets={p.maxDets[limit]:>3}"
            lines.append(f" {title} @[ {settings} ] = {value:.3f}")
        return lines

    def _figures(self) -> list[tuple[str, float | None, int, int, float]]:
        """Precision or recall, the IoU threshold, the area range, the limit, and the mean; -1 where it is not defined."""
        p: Params = self._accumulated()["params"]
        areas, last = range(1, len(p.areaRng)), len(p.maxDets) - 1
        at_ious: list[float | None] = [None, 0.5, 0.75]
        entries = [("precision", iou, 0, last) for iou in at_ious]
        entries += [("precision", None, area, last) for area in areas]
        if p.iouType == "keypoints":
            entries += [("recall", iou, 0, last) for iou in at_ious]
        else:
            entries += [("recall", None, 0, limit) for limit in range(len(p.maxDets))]
        entries += [("recall", None, area, last) for area in areas]
        return [(*entry, self._mean(*entry)) for entry in entries]

    def _mean(self, what: str, iou: float | None, area: int, limit: int) -> float:
        values = self.eval[what][..., area, limit]
        if iou is not None:
            values = values[np.isclose(self.eval["params"].iouThrs, iou, rtol=0, atol=1e-9)]
        defined = values[values > -1]
        return float(np.mean(defined)) if defined.size else -1.0

    def _evaluated(self) -> _Evaluation:
        if self._judged is None:
            raise UsageError("nothing to accumulate: call evaluate() first")
        return self._judged

    def _accumulated(self) -> dict[str, Any]:
        if not self.eval:
            raise UsageError("there are no curves yet: call accumulate() first")
        return self.eval

    @property
    def ious(self) -> dict[tuple[Any, Any], Any]:
        """IoU (or OKS) of detections by falling score with objects, by (image id, category id); computed on access."""
        return self._evaluated().similarities()

    @property
    def evalImgs(self) -> list[Record | None]:
        """The match of each detection by category, area range and image, computed on access by the reference rule."""
        evaluation = self._evaluated()
        ious = evaluation.similarities()
        ground_truths = _by_image_and_label(evaluation.ground_truth)
        predictions = _by_image_and_label(evaluation.predictions)
        return [
            _evaluated_image(evaluation, area, image, label, ious, ground_truths, predictions)
            for label in range(len(evaluation.params.labels))
            for area in evaluation.params.areaRng
            for image in range(len(evaluation.params.imgIds))
        ]


def init_as_pycocotools() -> None:
    """Make ``import pycocotools.cocoeval`` return this module from now on, in this process.

    ``COCO`` and ``mask`` stay pycocotools' own. With it torchmetrics' ``MeanAveragePrecision`` runs on this evaluation.
    """
    here = sys.modules[__name__]
    sys.modules["pycocotools.cocoeval"] = here
    pycocotools.cocoeval = here


def _plain(params: Params) -> dict[str, Any]:
    """Return the parameters as plain values, for comparison."""
    return {name: np.asarray(value).tolist() for name, value in vars(params).items()}


def _by_image_and_label(objects: Objects) -> dict[tuple[int, int], list[int]]:
    lines: dict[tuple[int, int], list[int]] = {}
    for row, key in enumerate(zip(objects.image_index.tolist(), objects.labels.tolist(), strict=True)):
        lines.setdefault(key, []).append(row)
    return lines


def _evaluated_image(
    evaluation: _Evaluation,
    area: Sequence[float],
    image: int,
    label: int,
    ious: dict[tuple[Any, Any], Any],
    ground_truths_of: dict[tuple[int, int], list[int]],
    found_of: dict[tuple[int, int], list[int]],
) -> Record | None:
    """Return one record of ``evalImgs``; None if the image has neither objects nor detections of the category."""
    params, ground_truth, predictions = evaluation.params, evaluation.ground_truth, evaluation.predictions
    true = np.array(ground_truths_of.get((image, label), ()), dtype=np.int64)
    chosen = np.array(found_of.get((image, label), ()), dtype=np.int64)
    if not len(true) and not len(chosen):
        return None
    assert predictions.scores is not None
    limit = params.maxDets[-1]
    chosen = chosen[np.argsort(-predictions.scores[chosen], kind="stable")][:limit]
    ignored = ground_truth.is_crowd[true] | (ground_truth.areas[true] < area[0]) | (ground_truth.areas[true] > area[1])
    if ground_truth.keypoints is not None:
        ignored |= ~(ground_truth.keypoints[true, :, 2] > 0).any(axis=1)
    columns = np.argsort(ignored, kind="stable")
    true, ignored = true[columns], ignored[columns]
    key = params.imgIds[image], params.labels[label]
    similarities = np.reshape(ious[key], (len(chosen), len(columns)))[:, columns]
    outside = (predictions.areas[chosen] < area[0]) | (predictions.areas[chosen] > area[1])
    detection_matches = np.zeros((len(params.iouThrs), len(chosen)))
    gt_matches = np.zeros((len(params.iouThrs), len(true)))
    detection_ignored = np.zeros((len(params.iouThrs), len(chosen)), dtype=bool)
    for t, threshold in enumerate(params.iouThrs):
        match = match_image(similarities, threshold, ignored=ignored, crowd=ground_truth.is_crowd[true])
        matched = match >= 0
        detection_matches[t, matched] = ground_truth.ids[true[match[matched]]]
        gt_matches[t, match[matched]] = predictions.ids[chosen[matched]]
        detection_ignored[t] = np.where(matched, ignored[match] if len(ignored) else False, outside)
    return {
        "image_id": key[0],
        "category_id": key[1],
        "aRng": area,
        "maxDet": limit,
        "dtIds": predictions.ids[chosen].tolist(),
        "gtIds": ground_truth.ids[true].tolist(),
        "dtMatches": detection_matches,
        "gtMatches": gt_matches,
        "dtScores": predictions.scores[chosen].tolist(),
        "gtIgnore": ignored.astype(np.int64),
        "dtIgnore": detection_ignored,
    }
