"""How detection as regression came to its answer on one image, and why that is not enough where there is more to see.

The network has one vector for the whole image, so it gives one answer, whatever is there. Asked for parts of the same
image, it gives others: that is what the sliding window makes of it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from otus.detection.region_based.stages import RegionStages
from otus.inference.predictor import Predictor
from otus.reports.explain.one_pass import Explained, ImageArray, run
from otus.reports.explain.pieces import covered_part, heat, table_row
from otus.reports.page import Figure, Page, Section
from otus.structures import Instances
from otus.structures.boxes import pairwise_iou
from otus.visualization.drawing import draw

_LISTED = 10
_DECENT_IOU = 0.5


@dataclass(frozen=True, eq=False)
class RegressionExplanation(Explained):
    """The record of one pass, with the image that it is about. Made by :func:`explain_regression`.

    ``parts`` are boxes of parts of the image, ``of_parts`` what the network answers for each, in the image's pixels.
    """

    record: RegionStages
    parts: Float[np.ndarray, "p 4"]
    of_parts: tuple[Instances, ...]

    def document(self) -> dict[str, Any]:
        """All figures of the page, and more of them: what ``otus explain detection --json`` prints."""
        scores = self.record.scores[0][0].cpu().numpy()
        categories = self.system.categories
        order = np.argsort(-scores, kind="stable")
        return self.facts() | {
            "numbers": {"vector": self.system.cls_score.in_features, "scores": len(scores), "box": 4},
            "scores": [{"category": categories[i], "score": float(scores[i])} for i in order.tolist()],
            "detections": self._records(self.found),
            "parts": [
                {"part_xyxy": part.tolist(), "answers": self._records(answer)}
                for part, answer in zip(self.parts, self.of_parts, strict=True)
            ],
            "objects": self._objects(),
        }

    def page(self) -> Page:
        """The stages as one HTML page."""
        facts = self.document()
        return self.page_of(facts, self._sections(facts))

    def _sections(self, facts: dict[str, Any]) -> Iterator[Section]:
        yield Section("The image", "", [Figure.of(self.image, self.name)])
        x = self.record.features[-1]
        covered = covered_part((x.shape[-2], x.shape[-1]), self.record.batch.sizes_hw[0], self.record.batch.padded_hw)
        yield Section(
            "1. One vector",
            f"The image goes through the backbone; its last map becomes one vector of {facts['numbers']['vector']} numbers.",
            [Figure.of(heat(x[0], covered), f"{x.shape[-1]} x {x.shape[-2]}, {x.shape[1]} channels", width=220)],
        )
        yield Section(
            "2. Class scores",
            f"Read from the vector once: {facts['numbers']['scores']} scores that add up to 1. Background is none of them.",
            rows=facts["scores"][:_LISTED],
        )
        yield Section(
            "3. One box",
            "Read from the vector a second time: four numbers, for the category above. There is room for no other object.",
            [Figure.of(draw(self.image, self.found), "the answer")],
            [table_row(one) for one in facts["detections"]],
        )
        if facts["objects"]:
            missed = sum(not one["found"] for one in facts["objects"])
            yield Section(
                "4. What the labels say",
                f"Objects that are labelled: {len(facts['objects'])}; not found by this one answer: {missed}.",
                [Figure.of(draw(self.image, self.truth), "labels")] if self.truth is not None else [],
                [table_row(one) for one in facts["objects"]],
            )
        several = {one["category"] for part in facts["parts"] for one in part["answers"]}
        yield Section(
            "Why that is not enough",
            f"The same network asked for parts of the image names {len(several)} categories in {len(facts['parts'])} "
            "parts. Looking at parts is what the sliding window does with every part there is, and R-CNN with those that "
            "may hold something.",
            [
                Figure.of(draw(self._part(part), self._within(part, answer)), self._told(answer), width=240)
                for part, answer in zip(self.parts, self.of_parts, strict=True)
            ],
        )

    def _records(self, found: Instances) -> list[dict[str, Any]]:
        scores = np.zeros(len(found)) if found.scores is None else found.scores
        return [
            {"category": self.system.categories[int(label)], "score": float(score), "box_xyxy": box.tolist()}
            for label, score, box in zip(found.labels, scores, found.boxes_xyxy, strict=True)
        ]

    def _objects(self) -> list[dict[str, Any]]:
        """Each labelled object, and whether the answer is about it."""
        if self.truth is None:
            return []
        overlaps = pairwise_iou(self.truth.boxes_xyxy, self.found.boxes_xyxy)
        same = self.truth.labels[:, None] == self.found.labels
        found = ((overlaps >= _DECENT_IOU) & same).any(axis=1)
        return [
            {"category": self.system.categories[int(label)], "found": bool(hit), "box_xyxy": box.tolist()}
            for label, hit, box in zip(self.truth.labels, found, self.truth.boxes_xyxy, strict=True)
        ]

    def _part(self, part: Float[np.ndarray, "4"]) -> ImageArray:
        x1, y1, x2, y2 = part.astype(int)
        return np.ascontiguousarray(self.image[y1:y2, x1:x2])

    def _within(self, part: Float[np.ndarray, "4"], answer: Instances) -> Instances:
        size_hw = self._part(part).shape[:2]
        boxes = answer.boxes_xyxy - np.tile(part[:2], 2)
        return Instances(boxes, answer.labels, (size_hw[0], size_hw[1]), answer.categories, scores=answer.scores)

    def _told(self, answer: Instances) -> str:
        told = [f"{one['category']} {one['score']:.2f}" for one in self._records(answer)]
        return ", ".join(told) or "nothing sure enough"


def explain_regression(
    predictor: Predictor,
    image: ImageArray,
    *,
    name: str,
    score_threshold: float | None = None,
    truth: Instances | None = None,
) -> RegressionExplanation:
    """Run detection as regression on one image and on its four quarters, and keep all of it.

    ``truth`` are labels of the image, in the model's categories, if there are any.
    """
    parts = _quarters((image.shape[0], image.shape[1]))
    answers = []
    for x1, y1, x2, y2 in parts.astype(int):
        part = np.ascontiguousarray(image[y1:y2, x1:x2])
        (found,) = predictor.predict(part, score_threshold=score_threshold)
        one = found.instances
        boxes = one.boxes_xyxy + np.array([x1, y1, x1, y1])
        answers.append(
            Instances(boxes, one.labels, (image.shape[0], image.shape[1]), one.categories, scores=one.scores)
        )
    fields = run(predictor, image, name=name, score_threshold=score_threshold, truth=truth)
    return RegressionExplanation(**fields, parts=parts, of_parts=tuple(answers))


def _quarters(size_hw: tuple[int, int]) -> Float[np.ndarray, "p 4"]:
    """Four parts that overlap a little; one where the image is too small to be cut."""
    height, width = size_hw
    if min(size_hw) < 4:
        return np.array([[0.0, 0.0, width, height]])
    h, w = round(height * 0.6), round(width * 0.6)
    corners = [(0, 0), (width - w, 0), (0, height - h), (width - w, height - h)]
    return np.array([[x, y, x + w, y + h] for x, y in corners], dtype=np.float64)
