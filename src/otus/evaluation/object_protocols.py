"""Predicted objects judged by those of a data set: what each protocol compares, and what of it can be compared."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np

from otus.data.dataset import Dataset
from otus.errors import Report
from otus.evaluation.protocols import outlined
from otus.metrics.detection.average_precision import AveragePrecision, DetectionProtocol, validate_objects
from otus.metrics.detection.coco import KINDS, CocoProtocol, Kind
from otus.metrics.detection.ignore_regions import complete_regions
from otus.metrics.detection.required_fields import require_field
from otus.metrics.detection.voc import VocProtocol
from otus.metrics.diagnosis.assignment import DetectionMatcher
from otus.metrics.diagnosis.mismatches import mismatch_notes
from otus.structures import Categories, KeypointNames, Objects
from otus.structures.categories import COCO_PERSON_SIGMAS

_COMPARED = {
    "boundary": ("segmentations",),
    "oriented": ("corners_xy",),
    "cuboid": ("cuboids",),
    "amodal": ("amodal_boxes_xyxy",),
}


_DOUBTFUL = 0.05
"""AP (of proposals recall) below which predictions and labels may be of different images or categories."""


class Result(Protocol):
    """Figures by name, in all and by category."""

    @property
    def figures(self) -> Mapping[str, float]: ...

    @property
    def per_category(self) -> Mapping[str, Mapping[str, float]]: ...


def judge_objects(
    dataset: Dataset,
    predictions: Objects,
    protocol: str,
    *,
    kinds: Sequence[Kind] | None,
    max_dets: Sequence[int] | None,
    report: Report,
) -> tuple[dict[str, Result], dict[str, str], list[str]]:
    """The results by what was compared; what could not be compared, and why; and what to know of the figures.

    Parameters as of :func:`otus.evaluation.evaluate.evaluate_predictions`, which has checked them.
    """
    assert dataset.objects is not None
    counts = {"label_count": len(dataset.categories), "image_count": len(dataset)}
    truth = validate_objects(dataset.objects, "truth", **counts, report=report)
    predictions = validate_objects(predictions, "predictions", **counts, report=report)
    numbered = all(isinstance(one, int) for one in dataset.images.ids)  # file names may be the same in two folders
    image_ids = np.array(dataset.images.ids if numbered else range(len(dataset)), dtype=np.int64)
    truth = complete_regions(truth)
    for compared in _COMPARED.get(protocol, ()):
        truth = require_field(truth, compared, "truth", report=report)
        predictions = require_field(predictions, compared, "predictions", report=report)
    left_out: dict[str, str] = {}
    notes: list[str] = []
    categories = dataset.categories
    pointed = next((side for side in (truth, predictions) if side.keypoints is not None), truth)
    if protocol == "coco" and categories.sigmas is None and pointed.keypoints is not None:
        categories = _with_keypoints(categories, pointed)
        points = pointed.keypoints.shape[1]
        usual = "COCO's of a person" if points == len(COCO_PERSON_SIGMAS) else f"1 / {points} for each"
        notes.append(f"the categories name no keypoints: the tolerances (sigmas) of {points} are taken to be {usual}")
    if protocol == "coco" and kinds is None:
        obstacles = {kind: _obstacle(kind, truth, predictions) for kind in KINDS}
        kinds = [kind for kind, obstacle in obstacles.items() if obstacle is None]
        left_out = {kind: obstacle for kind, obstacle in obstacles.items() if obstacle}
    elif protocol == "amodal":
        left_out = _amodal_obstacles(truth, predictions)
    results: dict[str, Result] = {}
    if protocol == "proposals":
        results["proposals"] = _judge_proposals(truth, predictions, categories, image_ids, max_dets)
    for name, rules in _rules(protocol, kinds or (), tuple(max_dets or ())).items():
        if name in left_out:
            continue
        metric: AveragePrecision[Result] = AveragePrecision(rules, categories)
        metric.update(truth, predictions, image_ids=image_ids, sizes_hw=dataset.images.sizes_hw)
        results[name] = metric.compute()
    if any(not next(iter(result.figures.values())) >= _DOUBTFUL for result in results.values()):
        sides = DetectionMatcher(truth, predictions, categories, image_ids, dataset.images.sizes_hw)
        notes += mismatch_notes(sides, by_category=protocol != "proposals")
    return results, left_out, notes


def _with_keypoints(categories: Categories, objects: Objects) -> Categories:
    """The categories with keypoints without names for those whose objects have some (for all if none has)."""
    assert objects.keypoints is not None
    having_some = np.unique(objects.labels[objects.keypoints.any(axis=(1, 2))]).tolist() or range(len(categories))
    unnamed = KeypointNames(tuple(map(str, range(objects.keypoints.shape[1]))))
    return replace(categories, keypoints=tuple((categories[label], unnamed) for label in having_some))


def _judge_proposals(
    truth: Objects,
    proposals: Objects,
    categories: Categories,
    image_ids: np.ndarray,
    counts: Sequence[int] | None,
) -> Result:
    from otus.metrics.proposals import ProposalProtocol, ProposalRecall

    rules = ProposalProtocol() if counts is None else ProposalProtocol(tuple(sorted(set(counts))))
    return ProposalRecall(categories, rules).update(truth, proposals, image_ids=image_ids).compute()


def _rules(protocol: str, kinds: Sequence[Kind], max_dets: tuple[int, ...]) -> Mapping[str, DetectionProtocol[Result]]:
    """What a protocol judges by, under the names of its results."""
    match protocol:
        case "voc07":
            return {"bbox": VocProtocol(2007)}
        case "voc12":
            return {"bbox": VocProtocol(2012)}
        case "boundary":
            from otus.metrics.detection.boundary import boundary_protocols

            return boundary_protocols(max_dets=max_dets)
        case "oriented":
            from otus.metrics.detection.oriented import oriented_protocols

            return oriented_protocols(max_dets=max_dets)
        case "cuboid":
            from otus.metrics.detection.cuboid import cuboid_protocols

            return cuboid_protocols(max_dets=max_dets)
        case "amodal":
            from otus.metrics.detection.amodal import amodal_protocols

            return amodal_protocols(max_dets=max_dets)
        case _:
            return {kind: CocoProtocol(kind, max_dets=max_dets) for kind in kinds}


def _obstacle(kind: Kind, truth: Objects, predictions: Objects) -> str | None:
    """Why a kind cannot be compared: None where it can, "" where neither side speaks of it."""
    if kind == "bbox":
        return None
    sides = {"labels": truth, "predictions": predictions}
    if kind == "keypoints":
        speaking = {side: one.keypoints is not None for side, one in sides.items()}
    else:
        speaking = {side: outlined(one) > 0 for side, one in sides.items()}
    if not any(speaking.values()):
        return ""
    for side, objects in sides.items():
        if len(objects) and not speaking[side]:
            return f"the {side} have no {'keypoints' if kind == 'keypoints' else 'outlines'}"
        if kind == "segm" and outlined(objects) < len(objects):
            return f"{len(objects) - outlined(objects)} of {len(objects)} {side} have no outline"
    return None


def _amodal_obstacles(truth: Objects, predictions: Objects) -> dict[str, str]:
    """Why amodal boxes or masks cannot be compared."""
    obstacles = {}
    if truth.amodal_boxes_xyxy is None:
        obstacles["amodal_bbox"] = "the labels have no amodal boxes"
    if truth.amodal_segmentations is None:
        obstacles["amodal_segm"] = "the labels have no amodal masks"
    elif len(predictions) and not outlined(predictions):
        obstacles["amodal_segm"] = "the predictions have no outlines"
    return obstacles
