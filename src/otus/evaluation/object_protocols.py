"""Evaluate predicted objects: what each protocol compares, and whether labels and predictions have it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from otus.data.dataset import Dataset
from otus.errors import UsageError
from otus.evaluation.protocols import Options, ProtocolResult, Result
from otus.metrics.detection.average_precision import AveragePrecision, DetectionProtocol, validate_objects
from otus.metrics.detection.coco import KINDS, CocoProtocol, Kind
from otus.metrics.detection.ignore_regions import complete_regions
from otus.metrics.detection.required_fields import require_field
from otus.metrics.detection.voc import VocProtocol
from otus.metrics.diagnosis.assignment import DetectionMatcher
from otus.metrics.diagnosis.mismatches import lowest_score_threshold, mismatch_notes, score_threshold_notes
from otus.structures import Categories, KeypointNames, Objects, SegmentationKind
from otus.structures.categories import COCO_PERSON_SIGMAS

Rules = Callable[[Sequence[Kind], tuple[int, ...]], Mapping[str, DetectionProtocol[Result]]]

_SUSPICIOUS_AP = 0.05
"""AP (recall for proposals) below which predictions and labels may be of different images or categories."""


def evaluate_objects(dataset: Dataset, predictions: Objects, protocol: str, options: Options) -> ProtocolResult:
    """Evaluate predicted objects against the ground truth of a data set.

    Parameters
    ----------
    dataset
        Data set with the labels that the protocol needs.
    predictions
        Objects with scores; image and class indices are those of the data set.
    protocol
        Name of a protocol that evaluates objects.
    options
        ``kinds`` (default: all that ground truth and predictions have for every object) and ``max_dets`` (default: the
        protocol's own).
    """
    assert dataset.objects is not None
    kinds, report = options.kinds, options.report
    threshold, threshold_notes = lowest_score_threshold(predictions), score_threshold_notes(predictions)
    counts = {"label_count": len(dataset.categories), "image_count": len(dataset)}
    ground_truth = validate_objects(dataset.objects, "ground_truth", **counts, report=report)
    predictions = validate_objects(predictions, "predictions", **counts, report=report)
    ground_truth = complete_regions(ground_truth)
    rules, field = _RULES[protocol]
    if field is not None:
        ground_truth = require_field(ground_truth, field, "ground_truth", report=report)
        predictions = require_field(predictions, field, "predictions", report=report)
    skipped_kinds: dict[str, str] = {}
    notes: list[str] = []
    categories = dataset.categories
    both = (ground_truth, predictions)
    with_keypoints = next((objects for objects in both if objects.keypoints is not None), ground_truth)
    if protocol == "coco" and categories.sigmas is None and with_keypoints.keypoints is not None:
        categories = _with_keypoints(categories, with_keypoints)
        points = with_keypoints.keypoints.shape[1]
        sigmas = "those of COCO's person" if points == len(COCO_PERSON_SIGMAS) else f"1 / {points} each"
        notes.append(
            f"the categories have no keypoint names: the sigmas of {points} keypoints are assumed to be {sigmas}"
        )
    if protocol == "coco" and kinds is None:
        reasons = {kind: _reason_to_skip(kind, ground_truth, predictions) for kind in KINDS}
        kinds = [kind for kind, reason in reasons.items() if reason is None]
        skipped_kinds = {kind: reason for kind, reason in reasons.items() if reason}
    elif protocol == "amodal":
        skipped_kinds = _amodal_reasons_to_skip(ground_truth, predictions)
    ids = dataset.image_numbers()
    results: dict[str, Result] = {}
    if protocol == "proposals":
        results["proposals"] = _evaluate_proposals(ground_truth, predictions, categories, ids, options.max_dets)
    for name, rule in rules(kinds or (), tuple(options.max_dets or ())).items():
        if name in skipped_kinds:
            continue
        metric: AveragePrecision[Result] = AveragePrecision(rule, categories)
        metric.update(ground_truth, predictions, image_ids=ids, sizes_hw=dataset.images.sizes_hw)
        results[name] = metric.compute()
    if any(not next(iter(result.figures.values())) >= _SUSPICIOUS_AP for result in results.values()):
        matcher = DetectionMatcher(ground_truth, predictions, categories, ids, dataset.images.sizes_hw)
        notes += mismatch_notes(matcher, by_category=protocol != "proposals")
    return ProtocolResult(
        results,
        len(dataset),
        skipped_kinds=skipped_kinds,
        notes=(*threshold_notes, *notes),
        prediction_threshold=threshold,
    )


def _with_keypoints(categories: Categories, objects: Objects) -> Categories:
    """Return the categories, with numbered keypoints for those whose objects have some (for all if none has)."""
    assert objects.keypoints is not None
    labels = np.unique(objects.labels[objects.keypoints.any(axis=(1, 2))]).tolist() or range(len(categories))
    unnamed = KeypointNames(tuple(map(str, range(objects.keypoints.shape[1]))))
    return replace(categories, keypoints=tuple((categories[label], unnamed) for label in labels))


def _evaluate_proposals(
    ground_truth: Objects,
    proposals: Objects,
    categories: Categories,
    image_ids: np.ndarray,
    counts: Sequence[int] | None,
) -> Result:
    from otus.metrics.proposals import ProposalProtocol, ProposalRecall

    if counts is not None and min(counts, default=1) < 1:
        raise UsageError(f"max_dets: expected 1 or more, got {min(counts)}")
    rules = ProposalProtocol() if counts is None else ProposalProtocol(tuple(sorted(set(counts))))
    return ProposalRecall(categories, rules).update(ground_truth, proposals, image_ids=image_ids).compute()


def _boundary(kinds: Sequence[Kind], max_dets: tuple[int, ...]) -> Mapping[str, DetectionProtocol[Result]]:
    from otus.metrics.detection.boundary import boundary_protocols

    return boundary_protocols(max_dets=max_dets)


def _oriented(kinds: Sequence[Kind], max_dets: tuple[int, ...]) -> Mapping[str, DetectionProtocol[Result]]:
    from otus.metrics.detection.oriented import oriented_protocols

    return oriented_protocols(max_dets=max_dets)


def _cuboid(kinds: Sequence[Kind], max_dets: tuple[int, ...]) -> Mapping[str, DetectionProtocol[Result]]:
    from otus.metrics.detection.cuboid import cuboid_protocols

    return cuboid_protocols(max_dets=max_dets)


def _amodal(kinds: Sequence[Kind], max_dets: tuple[int, ...]) -> Mapping[str, DetectionProtocol[Result]]:
    from otus.metrics.detection.amodal import amodal_protocols

    return amodal_protocols(max_dets=max_dets)


# The rules of each protocol, by name of the result, and the field that every object must have.
_RULES: Mapping[str, tuple[Rules, str | None]] = {
    "coco": (lambda kinds, max_dets: {kind: CocoProtocol(kind, max_dets=max_dets) for kind in kinds}, None),
    "voc07": (lambda kinds, max_dets: {"bbox": VocProtocol(2007)}, None),
    "voc12": (lambda kinds, max_dets: {"bbox": VocProtocol(2012)}, None),
    "boundary": (_boundary, "segmentations"),
    "oriented": (_oriented, "corners_xy"),
    "cuboid": (_cuboid, "cuboids"),
    "amodal": (_amodal, "amodal_boxes_xyxy"),
    "proposals": (lambda kinds, max_dets: {}, None),
}


def _count_masks(objects: Objects) -> int:
    """Return the number of objects with a mask."""
    return 0 if objects.segmentations is None else int((objects.segmentations.kinds != SegmentationKind.NONE).sum())


def _reason_to_skip(kind: Kind, ground_truth: Objects, predictions: Objects) -> str | None:
    """Return why a kind cannot be compared; None if it can, "" if neither labels nor predictions have it."""
    if kind == "bbox":
        return None
    both = {"labels": ground_truth, "predictions": predictions}
    if kind == "keypoints":
        has_kind = {name: objects.keypoints is not None for name, objects in both.items()}
    else:
        has_kind = {name: _count_masks(objects) > 0 for name, objects in both.items()}
    if not any(has_kind.values()):
        return ""
    for name, objects in both.items():
        if len(objects) and not has_kind[name]:
            return f"the {name} have no {'keypoints' if kind == 'keypoints' else 'masks'}"
        if kind == "segm" and _count_masks(objects) < len(objects):
            return f"{len(objects) - _count_masks(objects)} of {len(objects)} {name} have no mask"
    return None


def _amodal_reasons_to_skip(ground_truth: Objects, predictions: Objects) -> dict[str, str]:
    """Return why amodal boxes or masks cannot be compared, by kind."""
    reasons = {}
    if ground_truth.amodal_boxes_xyxy is None:
        reasons["amodal_bbox"] = "the labels have no amodal boxes"
    if ground_truth.amodal_segmentations is None:
        reasons["amodal_segm"] = "the labels have no amodal masks"
    elif len(predictions) and not _count_masks(predictions):
        reasons["amodal_segm"] = "the predictions have no masks"
    return reasons
