"""Explain a set detector (DETR and its successors) on one image: feature maps, queries, attention, matching."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import Tensor

from otus.detection.set_prediction.set_detector import SetStages
from otus.inference.predictor import Predictor
from otus.parts.postprocess import Postprocess
from otus.parts.transformer.set_matching import Match, denormalize_boxes, inside_crowd
from otus.reports.explain.explanation import Explanation, ImageArray, explain_fields, prepared_target
from otus.reports.explain.figures import (
    activation_map,
    attention_overlay,
    counts_by_category,
    faded,
    table_row,
    threshold_text,
    unpadded_size,
)
from otus.reports.page import Figure, Page, Section, numbered
from otus.structures import Categories, Instances
from otus.structures.boxes import pairwise_iou
from otus.visualization.drawing import draw

_QUERY = Categories(("query",))
_SHOWN = 12
_EVERYTHING = Postprocess(score_threshold=-1.0)
_SIDE_BY_SIDE = 300  # CSS pixels


@dataclass(frozen=True, eq=False)
class SetExplanation(Explanation):
    """Stages of a set detector on one image; see :func:`explain_set`.

    Parameters
    ----------
    attention
        Cross-attention of the last decoder layer, mean over heads: (Q, h, w), without padding.
    match
        Hungarian matching of queries and ``ground_truth``; None without ground truth.
    queries_in_crowds
        Number of unmatched queries whose boxes lie in a crowd region, which training ignores.
    """

    record: SetStages
    attention: np.ndarray
    match: Match | None
    queries_in_crowds: int

    def document(self) -> dict[str, Any]:
        """Return the members of the JSON document: what ``otus explain detection --json`` prints."""
        outputs = self.record.outputs
        layers, _, queries, _ = outputs.logits.shape
        boxes = self._boxes(outputs.boxes[-1, 0])
        return self.facts() | {
            "maps": [
                {"height": x.shape[-2], "width": x.shape[-1], "channels": x.shape[1]} for x in self.record.features
            ],
            "layers": layers,
            "queries": [self._query(i, boxes[i]) for i in range(queries)],
            "matching": self._matching(boxes),
            "detections": list(self._detections()),
        }

    def page(self) -> Page:
        """Return the HTML page."""
        facts = self.document()
        return self.page_of(facts, numbered(self._sections(facts)))

    def _sections(self, facts: dict[str, Any]) -> Iterator[Section]:
        queries, detections = facts["queries"], facts["detections"]
        yield Section("The image", "", [Figure.of(self.image, self.name)])
        yield Section(
            "Feature maps",
            "Computed by the backbone; self-attention in the encoder relates all locations. Shown: mean absolute "
            "activation over "
            "channels.",
            [
                *(
                    Figure.of(
                        activation_map(x[0], self.unpadded_hw(x)),
                        f"backbone, {x.shape[-1]} x {x.shape[-2]}",
                        width=220,
                    )
                    for x in self.record.features
                ),
                Figure.of(self._memory(), "after the encoder", width=220),
            ],
            facts["maps"],
        )
        query_boxes = Instances(
            np.array([query["box_xyxy"] for query in queries]).reshape(-1, 4),
            np.zeros(len(queries), np.int64),
            self.size_hw,
            _QUERY,
        )
        yield Section(
            "Queries",
            f"After {facts['layers']} decoder layers of self-attention and cross-attention, each of {len(queries)} queries "
            f"predicts a class, or no object, and a box. {len(detections)} score above {threshold_text(facts)}.",
            [Figure.of(draw(faded(self.image), query_boxes, labels=False), "the boxes of all queries")],
        )
        best = detections[:_SHOWN]
        yield Section(
            "Cross-attention",
            "Attention weights of the last decoder layer, mean over heads, with the predicted box: the "
            f"{len(best)} highest-scoring queries.",
            [
                Figure.of(self._attended(i, record), _caption(record), width=_SIDE_BY_SIDE)
                for i, record in enumerate(best)
            ],
            [table_row(record) for record in best],
        )
        if facts["matching"] is not None:
            yield Section(
                "Hungarian matching",
                f"In training each of {facts['matching']['objects']} ground-truth objects is matched with one query, at the "
                f"lowest total cost of class, L1 distance and GIoU; {facts['matching']['unmatched_queries']} unmatched "
                f"queries are trained to predict no object{_ignored(facts['matching']['queries_in_crowds'])}. "
                f"{facts['matching']['unmatched_objects']} objects are not matched.",
                [Figure.of(self._matched(facts), "ground truth, and the boxes of the matched queries")],
                [table_row(record) for record in facts["matching"]["pairs"]],
            )
        suppression = (
            "No NMS: in training each object is matched with one query only."
            if self.postprocess.nms_iou >= 1
            else f"After NMS at IoU {facts['nms_iou']} within each category."
        )
        yield Section(
            "Detections",
            f"{suppression} At most {facts['max_detections']} per image: {len(detections)} boxes.",
            [Figure.of(draw(self.image, self.detections), "detections")],
            counts_by_category(detections),
        )

    def _boxes(self, shares: Tensor) -> np.ndarray:
        """Convert normalized cxcywh boxes of queries to xyxy in pixels of the image."""
        return self.boxes(denormalize_boxes(shares, self.record.batch.sizes_hw[0]))

    def _query(self, index: int, box: np.ndarray) -> dict[str, Any]:
        """Return a query's highest-scoring category, with the score of ``predict``, at any threshold."""
        logits = self.record.outputs.logits[-1, 0, index : index + 1]
        _, label, score = self.system.head.candidates(logits, postprocess=_EVERYTHING)
        best = int(score.argmax())
        y, x = np.unravel_index(int(self.attention[index].argmax()), self.attention.shape[1:])
        height, width = self.size_hw
        return {
            "category": self.system.categories[int(label[best])],
            "score": float(score[best]),
            "box_xyxy": box.tolist(),
            "looks_most_at": [
                (float(x) + 0.5) / self.attention.shape[2] * width,
                (float(y) + 0.5) / self.attention.shape[1] * height,
            ],
        }

    def _detections(self) -> Iterator[dict[str, Any]]:
        assert self.detections.scores is not None
        queries = self.record.detections[0].origins
        for i in range(len(self.detections)):
            yield {
                "category": self.system.categories[int(self.detections.labels[i])],
                "score": float(self.detections.scores[i]),
                "box_xyxy": self.detections.boxes_xyxy[i].tolist(),
                "query": int(queries[i]),
            }

    def _matching(self, boxes: np.ndarray) -> dict[str, Any] | None:
        if self.match is None or self.ground_truth is None:
            return None
        pairs = []
        for query, target in zip(self.match.queries.tolist(), self.match.objects.tolist(), strict=True):
            label = int(self.ground_truth.labels[target])
            _, label_of, score = self.system.head.candidates(
                self.record.outputs.logits[-1, 0, query : query + 1], postprocess=_EVERYTHING
            )
            predicted = int(label_of[int(score.argmax())])
            iou = pairwise_iou(boxes[query : query + 1], self.ground_truth.boxes_xyxy[target : target + 1])[0, 0]
            pairs.append(
                {
                    "category": self.system.categories[label],
                    "object_box_xyxy": self.ground_truth.boxes_xyxy[target].tolist(),
                    "query": query,
                    "says": self.system.categories[predicted],
                    "score": float(score.max()),
                    "iou": float(iou),
                }
            )
        return {
            "objects": len(self.ground_truth),
            "unmatched_objects": len(self.ground_truth) - len(pairs),
            "unmatched_queries": len(boxes) - len(pairs) - self.queries_in_crowds,
            "queries_in_crowds": self.queries_in_crowds,
            "pairs": pairs,
        }

    def _memory(self) -> ImageArray:
        x = self.record.outputs.memory
        return activation_map(x[0], self.unpadded_hw(x))

    def _attended(self, index: int, record: dict[str, Any]) -> ImageArray:
        return draw(
            attention_overlay(self.image, self.attention[record["query"]]), self.detections[[index]], labels=False
        )

    def _matched(self, facts: dict[str, Any]) -> ImageArray:
        """Draw the matched queries' boxes in their objects' colours, and the ground truth over them."""
        assert self.ground_truth is not None
        pairs = facts["matching"]["pairs"]
        boxes = np.array([facts["queries"][pair["query"]]["box_xyxy"] for pair in pairs]).reshape(-1, 4)
        labels = np.array([self.system.categories.index(pair["category"]) for pair in pairs], dtype=np.int64)
        queries = Instances(boxes, labels, self.size_hw, self.system.categories)
        under = draw(faded(self.image), queries, labels=False)
        return draw(under, replace(self.ground_truth, scores=None, masks=None, keypoints=None))


def explain_set(
    predictor: Predictor,
    image: ImageArray,
    *,
    name: str,
    score_threshold: float | None = None,
    ground_truth: Instances | None = None,
) -> SetExplanation:
    """Run a set detector on one image and return its stages.

    Parameters
    ----------
    predictor
        Predictor of a :class:`~otus.detection.set_prediction.set_detector.SetDetector`.
    name
        Name of the image, for the page.
    score_threshold
        Minimum score (default: as ``predict``).
    ground_truth
        Labels of the image, with the model's categories, to match queries with (default: no matching is shown).
    """
    fields = explain_fields(predictor, image, name=name, score_threshold=score_threshold, ground_truth=ground_truth)
    record: SetStages = fields["record"]
    with predictor.autocast():  # the weights are in its precision
        attention = record.outputs.attention()[0].float()
    rows, columns = unpadded_size(
        (attention.shape[1], attention.shape[2]), record.batch.sizes_hw[0], record.batch.padded_hw
    )
    match, in_crowds = None, 0
    if ground_truth is not None:
        labelled = prepared_target(predictor, image, name, ground_truth)
        (match,) = predictor.system.match(replace(record, batch=replace(record.batch, samples=[labelled])))
        size_hw = record.batch.sizes_hw[0]
        inside = inside_crowd(record.outputs.boxes[-1, 0], predictor.system.target(labelled), size_hw)
        inside[match.queries] = False
        in_crowds = int(inside.sum())
    attention = attention[:, :rows, :columns]
    return SetExplanation(**fields, attention=attention.cpu().numpy(), match=match, queries_in_crowds=in_crowds)


def _ignored(queries: int) -> str:
    return f", except {queries} in crowd regions, which are ignored" if queries else ""


def _caption(record: dict[str, Any]) -> str:
    return f"query {record['query']}: {record['category']} {record['score']:.2f}"
