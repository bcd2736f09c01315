"""Explain detection as regression on one image, and why one box per image is not enough.

The network turns the whole image into one vector and predicts one class and one box from it, however many objects there
are. Applied to crops of the same image it predicts others, which is what a sliding window does.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from otus.detection.region_based.stages import RegionStages
from otus.inference.predictor import Predictor
from otus.reports.explain.explanation import Explanation, ImageArray, explain_fields
from otus.reports.explain.figures import activation_map, table_row
from otus.reports.page import Figure, Page, Section
from otus.structures import Instances
from otus.structures.boxes import pairwise_iou
from otus.visualization.drawing import draw

_LISTED = 10
_MATCH_IOU = 0.5


@dataclass(frozen=True, eq=False)
class RegressionExplanation(Explanation):
    """Stages of detection as regression on one image; see :func:`explain_regression`.

    Parameters
    ----------
    parts
        Boxes of crops of the image, xyxy in pixels.
    detections_per_crop
        Detections in each crop, in pixels of the image.
    """

    record: RegionStages
    parts: Float[np.ndarray, "p 4"]
    detections_per_crop: tuple[Instances, ...]

    def document(self) -> dict[str, Any]:
        """Return the members of the JSON document: what ``otus explain detection --json`` prints."""
        scores = self.record.scores[0][0].cpu().numpy()
        categories = self.system.categories
        order = np.argsort(-scores, kind="stable")
        return self.facts() | {
            "numbers": {"vector": self.system.cls_score.in_features, "scores": len(scores), "box": 4},
            "scores": [{"category": categories[i], "score": float(scores[i])} for i in order.tolist()],
            "detections": self._records(self.detections),
            "parts": [
                {"part_xyxy": part.tolist(), "detections": self._records(detections)}
                for part, detections in zip(self.parts, self.detections_per_crop, strict=True)
            ],
            "objects": self._objects(),
        }

    def page(self) -> Page:
        """Return the HTML page."""
        facts = self.document()
        return self.page_of(facts, self._sections(facts))

    def _sections(self, facts: dict[str, Any]) -> Iterator[Section]:
        yield Section("The image", "", [Figure.of(self.image, self.name)])
        x = self.record.features[-1]
        covered = self.unpadded_hw(x)
        yield Section(
            "1. One vector",
            f"The backbone's last feature map is flattened or pooled to one vector of {facts['numbers']['vector']} numbers.",
            [
                Figure.of(
                    activation_map(x[0], covered), f"{x.shape[-1]} x {x.shape[-2]}, {x.shape[1]} channels", width=220
                )
            ],
        )
        yield Section(
            "2. Class scores",
            f"A linear layer and softmax: {facts['numbers']['scores']} scores that sum to 1. There is no background class.",
            rows=facts["scores"][:_LISTED],
        )
        yield Section(
            "3. One box",
            "A second linear layer: four numbers, the box of the highest-scoring category. A second object cannot "
            "be predicted.",
            [Figure.of(draw(self.image, self.detections), "the prediction")],
            [table_row(record) for record in facts["detections"]],
        )
        if facts["objects"]:
            missed = sum(not record["found"] for record in facts["objects"])
            yield Section(
                "4. Ground truth",
                f"Objects in the ground truth: {len(facts['objects'])}; missed by this one box: {missed}.",
                [Figure.of(draw(self.image, self.ground_truth), "ground truth")]
                if self.ground_truth is not None
                else [],
                [table_row(record) for record in facts["objects"]],
            )
        categories = {record["category"] for part in facts["parts"] for record in part["detections"]}
        yield Section(
            "Why that is not enough",
            f"On {len(facts['parts'])} crops of the image the same network predicts {len(categories)} categories. A sliding "
            "window applies it to all crops, R-CNN to those that may contain an object.",
            [
                Figure.of(draw(self._part(part), self._within(part, detections)), self._caption(detections), width=240)
                for part, detections in zip(self.parts, self.detections_per_crop, strict=True)
            ],
        )

    def _records(self, objects: Instances) -> list[dict[str, Any]]:
        scores = np.zeros(len(objects)) if objects.scores is None else objects.scores
        return [
            {"category": self.system.categories[int(label)], "score": float(score), "box_xyxy": box.tolist()}
            for label, score, box in zip(objects.labels, scores, objects.boxes_xyxy, strict=True)
        ]

    def _objects(self) -> list[dict[str, Any]]:
        """Return the ground-truth objects, and whether the predicted box detects them (IoU 0.5 or more, same category)."""
        if self.ground_truth is None:
            return []
        overlaps = pairwise_iou(self.ground_truth.boxes_xyxy, self.detections.boxes_xyxy)
        same = self.ground_truth.labels[:, None] == self.detections.labels
        is_detected = ((overlaps >= _MATCH_IOU) & same).any(axis=1)
        return [
            {"category": self.system.categories[int(label)], "found": bool(hit), "box_xyxy": box.tolist()}
            for label, hit, box in zip(self.ground_truth.labels, is_detected, self.ground_truth.boxes_xyxy, strict=True)
        ]

    def _part(self, part: Float[np.ndarray, "4"]) -> ImageArray:
        x1, y1, x2, y2 = part.astype(int)
        return np.ascontiguousarray(self.image[y1:y2, x1:x2])

    def _within(self, part: Float[np.ndarray, "4"], detections: Instances) -> Instances:
        size_hw = self._part(part).shape[:2]
        boxes = detections.boxes_xyxy - np.tile(part[:2], 2)
        return Instances(
            boxes, detections.labels, (size_hw[0], size_hw[1]), detections.categories, scores=detections.scores
        )

    def _caption(self, detections: Instances) -> str:
        labels = [f"{record['category']} {record['score']:.2f}" for record in self._records(detections)]
        return ", ".join(labels) or "nothing above the score threshold"


def explain_regression(
    predictor: Predictor,
    image: ImageArray,
    *,
    name: str,
    score_threshold: float | None = None,
    ground_truth: Instances | None = None,
) -> RegressionExplanation:
    """Run detection as regression on one image and on four crops of it, and return the stages.

    Parameters
    ----------
    predictor
        Predictor of a :class:`~otus.detection.regression.SingleObjectDetector`.
    name
        Name of the image, for the page.
    score_threshold
        Minimum score (default: as ``predict``).
    ground_truth
        Labels of the image, with the model's categories (default: none are shown).
    """
    parts = _quarters((image.shape[0], image.shape[1]))
    detections_per_crop = []
    for x1, y1, x2, y2 in parts.astype(int):
        crop = np.ascontiguousarray(image[y1:y2, x1:x2])
        (prediction,) = predictor.predict(crop, score_threshold=score_threshold)
        instances = prediction.instances
        boxes = instances.boxes_xyxy + np.array([x1, y1, x1, y1])
        detections_per_crop.append(
            Instances(
                boxes, instances.labels, (image.shape[0], image.shape[1]), instances.categories, scores=instances.scores
            )
        )
    fields = explain_fields(predictor, image, name=name, score_threshold=score_threshold, ground_truth=ground_truth)
    return RegressionExplanation(**fields, parts=parts, detections_per_crop=tuple(detections_per_crop))


def _quarters(size_hw: tuple[int, int]) -> Float[np.ndarray, "p 4"]:
    """Return four overlapping crops, each 0.6 of the sides (one crop if the image is smaller than 4 pixels)."""
    height, width = size_hw
    if min(size_hw) < 4:
        return np.array([[0.0, 0.0, width, height]])
    h, w = round(height * 0.6), round(width * 0.6)
    corners = [(0, 0), (width - w, 0), (0, height - h), (width - w, height - h)]
    return np.array([[x, y, x + w, y + h] for x, y in corners], dtype=np.float64)
