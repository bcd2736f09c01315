"""``COCOeval`` with pycocotools' interface and the evaluation of Otus.

    from otus.metrics.pycocotools.coco import COCO          # or pycocotools.coco
    from otus.metrics.pycocotools.cocoeval import COCOeval     # in place of pycocotools.cocoeval

``params``, ``eval`` (``precision``, ``recall``, ``scores``, ``counts``, ``params``), ``ious``, ``evalImgs``, ``stats``
and the printed lines equal those of pycocotools (2.0, BSD) bit for bit. For packages that import pycocotools
themselves, such as torchmetrics, call :func:`init_as_pycocotools` first.

Departures, each a known bug of pycocotools: an object with id 0 can be matched; the summary uses any ``maxDets`` and
``areaRng`` (there, AP is -1 if 100 is not in ``maxDets``); ``accumulate(p)`` with some of the images evaluates these
images; ``params`` keeps its ``catIds`` if ``useCats`` is 0; an object is ignored if none of its keypoints is labelled,
whatever its ``num_keypoints``. Invalid input (a score that is not finite, a duplicate id,
a negative size) is an error that names the annotation.

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
        default = CocoProtocol(iouType)  # type: ignore[arg-type]
        labels = {ALL: "all", SMALL: "small", MEDIUM: "medium", LARGE: "large"}
        self.iouType = iouType
        self.imgIds: list[Any] = []
        self.catIds: list[Any] = []
        self.iouThrs = np.array(default.iou_thresholds)
        self.recThrs = np.array(default.recall_thresholds)
        self.maxDets = list(default.max_dets)
        self.areaRng = [[area.low, area.high] for area in default.area_ranges]
        self.areaRngLbl = [labels[area] for area in default.area_ranges]
        self.useCats = 1
        if iouType == "keypoints":
            self.kpt_oks_sigmas = np.array(COCO_PERSON_SIGMAS)

    @property
    def labels(self) -> list[Any]:
        """Categories that are evaluated separately."""
        return self.catIds if self.useCats else [-1]

    def protocol(self) -> CocoProtocol:
        """Return the parameters as a :class:`CocoProtocol`, with sorted thresholds."""
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
    """Ground truth and predictions selected by the parameters, as columns, and their metric."""

    params: Params
    ground_truth: Objects
    predictions: Objects
    categories: Categories
    sizes_hw: Int[np.ndarray, "m 2"]
    metric: AveragePrecision[CocoResult]

    @classmethod
    def build(cls, coco_gt: Any, coco_dt: Any, params: Params) -> "_Evaluation":
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
        ground_truth = objects_of(coco_gt, "ground_truth", **options)
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
        similarities: dict[tuple[Any, Any], Any] = {
            (image, category): [] for image in self.params.imgIds for category in self.params.labels
        }
        starts = np.flatnonzero(ranked.ranks == 0)
        for first, last in zip(starts, np.append(starts[1:], len(ranked.ranks)), strict=True):
            detection = ranked.detections[first]
            key = (
                self.params.imgIds[self.predictions.image_index[detection]],
                self.params.labels[self.predictions.labels[detection]],
            )
            values = pairs.similarities[pairs.offsets[first] : pairs.offsets[last]]
            similarities[key] = values.reshape(last - first, -1) if len(values) else []
        return similarities


class COCOeval:
    """Evaluate detections against the ground truth.

    Parameters
    ----------
    cocoGt, cocoDt
        Ground truth and detections: ``COCO`` of pycocotools or Otus, or any with ``getAnnIds``, ``loadAnns`` and
        ``imgs``.
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
        self._evaluation: _Evaluation | None = None
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
        self._evaluation = _Evaluation.build(self.cocoGt, self.cocoDt, p)

    def accumulate(self, p: Params | None = None) -> None:
        """Compute the curves into ``eval``: precision (T, R, K, A, M), recall (T, K, A, M) and scores (T, R, K, A, M)."""
        evaluation = self._evaluated()
        p = self.params if p is None else p
        if _plain_values(p) != _plain_values(evaluation.params):
            evaluation = _Evaluation.build(self.cocoGt, self.cocoDt, p)
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
        """Print the figures and store them in ``stats``."""
        print("\n".join(self.lines()))
        self.stats = np.array([value for *_, value in self._figures()])

    def __str__(self) -> str:
        """Return the lines of the summary."""
        return "\n".join(self.lines())

    def lines(self) -> list[str]:
        """Return the lines of :meth:`summarize`: by default 12, for keypoints 10."""
        p: Params = self._accumulated()["params"]
        lines = []
        for metric, iou, area, limit, value in self._figures():
            title = "Average Precision  (AP)" if metric == "precision" else "Average Recall     (AR)"
            ious = f"{p.iouThrs[0]:.2f}:{p.iouThrs[-1]:.2f}" if iou is None else f"{iou:.2f}"
            settings = f"IoU={ious:<9} | area={p.areaRngLbl[area]:>6} | maxDets={p.maxDets[limit]:>3}"
            lines.append(f" {title} @[ {settings} ] = {value:.3f}")
        return lines

    def _figures(self) -> list[tuple[str, float | None, int, int, float]]:
        """Return (precision or recall, IoU threshold, area range, limit, mean) per line; mean is -1 if undefined."""
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

    def _mean(self, metric: str, iou: float | None, area: int, limit: int) -> float:
        values = self.eval[metric][..., area, limit]
        if iou is not None:
            values = values[np.isclose(self.eval["params"].iouThrs, iou, rtol=0, atol=1e-9)]
        defined = values[values > -1]
        return float(np.mean(defined)) if defined.size else -1.0

    def _evaluated(self) -> _Evaluation:
        if self._evaluation is None:
            raise UsageError("nothing to accumulate: call evaluate() first")
        return self._evaluation

    def _accumulated(self) -> dict[str, Any]:
        if not self.eval:
            raise UsageError("there are no curves yet: call accumulate() first")
        return self.eval

    @property
    def ious(self) -> dict[tuple[Any, Any], Any]:
        """IoU or OKS (D, G) by (image id, category id), detections in descending order of score; computed on access."""
        return self._evaluated().similarities()

    @property
    def evalImgs(self) -> list[Record | None]:
        """The matches per category, area range and image; computed on access by the reference implementation."""
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

    ``COCO`` and ``mask`` remain those of pycocotools. torchmetrics' ``MeanAveragePrecision`` then uses this evaluation.
    """
    this_module = sys.modules[__name__]
    sys.modules["pycocotools.cocoeval"] = this_module
    pycocotools.cocoeval = this_module


def _plain_values(params: Params) -> dict[str, Any]:
    """Return the parameters as plain values, for comparison."""
    return {name: np.asarray(value).tolist() for name, value in vars(params).items()}


def _by_image_and_label(objects: Objects) -> dict[tuple[int, int], list[int]]:
    rows: dict[tuple[int, int], list[int]] = {}
    for row, key in enumerate(zip(objects.image_index.tolist(), objects.labels.tolist(), strict=True)):
        rows.setdefault(key, []).append(row)
    return rows


def _evaluated_image(
    evaluation: _Evaluation,
    area: Sequence[float],
    image: int,
    label: int,
    ious: dict[tuple[Any, Any], Any],
    ground_truths_of: dict[tuple[int, int], list[int]],
    predictions_of: dict[tuple[int, int], list[int]],
) -> Record | None:
    """Return one record of ``evalImgs``; None if the image has neither objects nor detections of the category."""
    params, ground_truth, predictions = evaluation.params, evaluation.ground_truth, evaluation.predictions
    ground_truths = np.array(ground_truths_of.get((image, label), ()), dtype=np.int64)
    detections = np.array(predictions_of.get((image, label), ()), dtype=np.int64)
    if not len(ground_truths) and not len(detections):
        return None
    assert predictions.scores is not None
    limit = params.maxDets[-1]
    detections = detections[np.argsort(-predictions.scores[detections], kind="stable")][:limit]
    ignored = (
        ground_truth.is_crowd[ground_truths]
        | (ground_truth.areas[ground_truths] < area[0])
        | (ground_truth.areas[ground_truths] > area[1])
    )
    if ground_truth.keypoints is not None:
        ignored |= ~(ground_truth.keypoints[ground_truths, :, 2] > 0).any(axis=1)
    columns = np.argsort(ignored, kind="stable")
    ground_truths, ignored = ground_truths[columns], ignored[columns]
    key = params.imgIds[image], params.labels[label]
    similarities = np.reshape(ious[key], (len(detections), len(columns)))[:, columns]
    is_outside = (predictions.areas[detections] < area[0]) | (predictions.areas[detections] > area[1])
    dt_matches = np.zeros((len(params.iouThrs), len(detections)))
    gt_matches = np.zeros((len(params.iouThrs), len(ground_truths)))
    dt_ignored = np.zeros((len(params.iouThrs), len(detections)), dtype=bool)
    for t, threshold in enumerate(params.iouThrs):
        match = match_image(similarities, threshold, ignored=ignored, crowd=ground_truth.is_crowd[ground_truths])
        matched = match >= 0
        dt_matches[t, matched] = ground_truth.ids[ground_truths[match[matched]]]
        gt_matches[t, match[matched]] = predictions.ids[detections[matched]]
        dt_ignored[t] = np.where(matched, ignored[match] if len(ignored) else False, is_outside)
    return {
        "image_id": key[0],
        "category_id": key[1],
        "aRng": area,
        "maxDet": limit,
        "dtIds": predictions.ids[detections].tolist(),
        "gtIds": ground_truth.ids[ground_truths].tolist(),
        "dtMatches": dt_matches,
        "gtMatches": gt_matches,
        "dtScores": predictions.scores[detections].tolist(),
        "gtIgnore": ignored.astype(np.int64),
        "dtIgnore": dt_ignored,
    }
