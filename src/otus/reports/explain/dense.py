"""Explain a dense detector (RetinaNet, FCOS, SSD, RPN) on one image: feature maps, anchors, assignment, scores, NMS.

JSON and page are made from one record of the pass (:class:`~otus.detection.single_stage.stages.DenseStages`). Anchors
are assigned to objects in training; here they are assigned to the ground truth if it is given, else to the detections.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from otus.detection.single_stage.dense_detector import DenseDetector
from otus.detection.single_stage.stages import DenseStages
from otus.inference.predictor import Predictor
from otus.parts.boxes.matching import NEGATIVE, NEUTRAL
from otus.parts.heads.dense_head import DenseAssignment
from otus.reports.explain.explanation import Explanation, ImageArray, explain_fields, prepared_target, trainable_objects
from otus.reports.explain.figures import (
    activation_map,
    colormapped,
    counts_by_category,
    faded,
    table_row,
)
from otus.reports.page import Figure, Page, Section
from otus.structures import Categories, Instances
from otus.visualization.drawing import draw

_ANCHOR = Categories(("anchor",))
_SIDE_BY_SIDE = 300  # CSS pixels
_DRAWN_ANCHORS = 60  # of per_location map, evenly spaced among its positive anchors


@dataclass(frozen=True, eq=False)
class DenseExplanation(Explanation):
    """Stages of a dense detector on one image; see :func:`explain_dense`.

    Parameters
    ----------
    objects
        Objects that ``assignment`` assigns anchors to: the ground truth, or the detections if there is none.
    assignment
        For every anchor: its object, negative or neutral.
    """

    record: DenseStages
    objects: Instances
    assignment: DenseAssignment

    def level_of(self, anchors: Tensor) -> Tensor:
        """Return the index of the feature map that each anchor index belongs to."""
        ends = torch.tensor([len(level) for level in self.record.anchors], device=anchors.device).cumsum(0)
        return torch.searchsorted(ends, anchors, right=True)

    def document(self) -> dict[str, Any]:
        """Return the members of the JSON document: what ``otus explain detection --json`` prints."""
        record = self.record
        return self.facts() | {
            "maps": list(self._map_facts()),
            "truth": "detections" if self.ground_truth is None else "labels",
            "matching": self._matching_facts(),
            "before_nms": list(self._with_anchors(self.candidates, record.candidates[0].origins)),
            "detections": list(self._with_anchors(self.detections, record.detections[0].origins)),
        }

    def page(self) -> Page:
        """Return the HTML page."""
        facts = self.document()
        return self.page_of(facts, self._sections(facts))

    def _sections(self, facts: dict[str, Any]) -> Iterator[Section]:
        maps, matching = facts["maps"], facts["matching"]
        yield Section("The image", "", [Figure.of(self.image, self.name)])
        yield Section(
            "1. Feature maps",
            "Computed once by the backbone; the head predicts at every location of every map. Shown: mean absolute "
            "activation over channels.",
            [
                Figure.of(activation_map(x[0], self.unpadded_hw(x)), _size(level), width=220)
                for x, level in zip(self.record.features, maps, strict=True)
            ],
            [{name: level[name] for name in ("width", "height", "channels", "anchors")} for level in maps],
        )
        yield Section(
            "2. Anchors",
            f"{sum(level['anchors'] for level in maps)} boxes of fixed size and shape, for each of which the head "
            "predicts class "
            "scores and box deltas. Shown: the anchors at the central location of each map.",
            [
                Figure.of(image, _size(level), width=_SIDE_BY_SIDE)
                for image, level in zip(self._central_anchors(), maps, strict=True)
            ],
        )
        source = "the detections, in place of ground truth" if self.ground_truth is None else "the ground truth"
        yield Section(
            "3. Assignment of anchors",
            f"To {source}: {matching['positive']} anchors are positive (trained to predict class and box of an object), "
            f"{matching['negative']} negative (background) and {matching['neutral']} neutral (ignored).",
            list(self._matched_figures(facts)),
            [table_row(record) for record in matching["objects"]],
        )
        yield Section(
            "4. Scores of each map",
            "Maximum score over anchors and categories at each location, from 0 (dark) to 1 (bright). "
            f"{sum(level['above_threshold'] for level in maps)} pairs of anchor and category score above "
            f"{facts['score_threshold']:g}.",
            [
                Figure.of(colormapped(image, 0, 1), f"{_size(level)}, best {level['best_score']:.2f}", width=220)
                for image, level in zip(self._best_scores(), maps, strict=True)
            ],
            [
                {"map": _size(level), "best score": level["best_score"], "above threshold": level["above_threshold"]}
                for level in maps
            ],
        )
        yield Section(
            "5. Candidates before NMS",
            f"The highest-scoring anchors, decoded with their predicted box deltas: {len(facts['before_nms'])} boxes.",
            [Figure.of(draw(faded(self.image), self.candidates, labels=False), "candidates before NMS")],
            counts_by_category(facts["before_nms"]),
        )
        yield Section(
            "6. Detections",
            f"After NMS at IoU {facts['nms_iou']} within each category, at most {facts['max_detections']} per image: "
            f"{len(facts['detections'])} boxes.",
            [Figure.of(draw(self.image, self.detections), "detections after NMS")],
            [table_row(record) for record in facts["detections"]],
        )

    def _map_facts(self) -> Iterator[dict[str, Any]]:
        thresholds = self.postprocess.thresholds(self.system.label_of_index)
        reported = thresholds.isfinite()
        scores_of_maps = self.system.scores.all_scores(self.record.outputs, 0)
        for x, anchors, scores in zip(self.record.features, self.record.anchors, scores_of_maps, strict=True):
            reported_scores = scores[:, reported]
            yield {
                "height": x.shape[-2],
                "width": x.shape[-1],
                "channels": x.shape[1],
                "anchors": len(anchors),
                "best_score": float(reported_scores.max()),
                "above_threshold": int((scores > thresholds).sum()),
            }

    def _matching_facts(self) -> dict[str, Any]:
        assignment, maps = self.assignment, len(self.record.features)
        objects = []
        levels = self.level_of(assignment.positives)
        matches = assignment.matches[assignment.positives]
        for i, label in enumerate(self.objects.labels):
            of_object = levels[matches == i]
            objects.append(
                {
                    "category": self.system.categories[int(label)],
                    "box_xyxy": self.objects.boxes_xyxy[i].tolist(),
                    "anchors": len(of_object),
                    **{f"map {level}": int((of_object == level).sum()) for level in range(maps)},
                }
            )
        return {
            "positive": len(assignment.positives),
            "negative": int((assignment.matches == NEGATIVE).sum()),
            "neutral": int((assignment.matches == NEUTRAL).sum()),
            "objects": objects,
            "anchors": [
                {"object": int(match), "map": int(level), "anchor": int(anchor)}
                for match, level, anchor in zip(matches, levels, assignment.positives, strict=True)
            ],
        }

    def _matched_figures(self, facts: dict[str, Any]) -> Iterator[Figure]:
        """Draw the objects, and for each map its positive anchors, in the colours of their categories."""
        all_boxes = self.boxes(torch.cat(self.record.anchors))
        yield Figure.of(draw(self.image, self.objects), "the objects", width=_SIDE_BY_SIDE)
        for index, level in enumerate(facts["maps"]):
            positives = [pair for pair in facts["matching"]["anchors"] if pair["map"] == index]
            if positives:
                drawn = positives[:: -(-len(positives) // _DRAWN_ANCHORS)]
                boxes = all_boxes[[pair["anchor"] for pair in drawn]]
                labels = self.objects.labels[[pair["object"] for pair in drawn]]
                matched = Instances(boxes, labels, self.size_hw, self.system.categories)
                image = draw(faded(self.image), matched, labels=False)
                yield Figure.of(
                    image, f"{_size(level)}: {len(positives)} anchors, {len(drawn)} drawn", width=_SIDE_BY_SIDE
                )

    def _with_anchors(self, instances: Instances, anchors: Tensor) -> Iterator[dict[str, Any]]:
        """Yield the objects by descending score, each with the anchor that predicted it."""
        origins, levels = self.boxes(torch.cat(self.record.anchors)[anchors]), self.level_of(anchors)
        assert instances.scores is not None
        oriented = instances.oriented_boxes_xywhr
        for i in np.argsort(-instances.scores, kind="stable"):
            yield {
                "category": self.system.categories[int(instances.labels[i])],
                "score": float(instances.scores[i]),
                "box_xyxy": instances.boxes_xyxy[i].tolist(),
                **({} if oriented is None else {"oriented_box_xywhr": oriented[i].tolist()}),
                "map": int(levels[i]),
                "anchor": int(anchors[i]),
                "anchor_box_xyxy": origins[i].tolist(),
            }

    def _best_scores(self) -> Iterator[Float[np.ndarray, "h w"]]:
        """Yield the maximum score at each location of each map, without padding."""
        thresholds = self.postprocess.thresholds(self.system.label_of_index)
        reported = thresholds.isfinite()
        scores_of_maps = self.system.scores.all_scores(self.record.outputs, 0)
        for x, scores in zip(self.record.features, scores_of_maps, strict=True):
            rows, columns = self.unpadded_hw(x)
            best = scores[:, reported].amax(dim=1).reshape(x.shape[-2], x.shape[-1], -1).amax(dim=2)
            yield best[:rows, :columns].cpu().numpy()

    def _central_anchors(self) -> Iterator[ImageArray]:
        for x, anchors in zip(self.record.features, self.record.anchors, strict=True):
            rows, columns = self.unpadded_hw(x)
            per_location = len(anchors) // (x.shape[-2] * x.shape[-1])
            first = (rows // 2 * x.shape[-1] + columns // 2) * per_location
            boxes = self.boxes(anchors[first : first + per_location])
            drawn = Instances(boxes, np.zeros(len(boxes), np.int64), self.size_hw, _ANCHOR)
            yield draw(faded(self.image), drawn, labels=False)


def explain_dense(
    predictor: Predictor,
    image: ImageArray,
    *,
    name: str,
    score_threshold: float | None = None,
    ground_truth: Instances | None = None,
) -> DenseExplanation:
    """Run a dense detector on one image and return its stages.

    Parameters
    ----------
    predictor
        Predictor of a :class:`~otus.detection.single_stage.dense_detector.DenseDetector`.
    name
        Name of the image, for the page.
    score_threshold
        Minimum score (default: as ``predict``).
    ground_truth
        Labels of the image, with the model's categories, to assign anchors to (default: the detections).
    """
    system: DenseDetector = predictor.system
    fields = explain_fields(predictor, image, name=name, score_threshold=score_threshold, ground_truth=ground_truth)
    objects = fields["detections"] if ground_truth is None else ground_truth
    target = system.target(prepared_target(predictor, image, name, objects))
    assignment = system.assign(torch.cat(fields["record"].anchors), target)
    return DenseExplanation(**fields, objects=trainable_objects(objects), assignment=assignment)


def _size(level: dict[str, Any]) -> str:
    return f"{level['width']} x {level['height']}"
