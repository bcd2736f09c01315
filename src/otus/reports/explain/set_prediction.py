"""How a set detector (DETR and its successors) came to its answer on one image: its queries, and where each looked."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import Tensor

from otus.detection.set_prediction.set_detector import SetStages
from otus.inference.predictor import Predictor
from otus.parts.postprocess import Postprocess
from otus.parts.transformer.set_matching import Match, denormalize_boxes, inside_crowd
from otus.reports.explain.one_pass import Explained, ImageArray, overlaid, prepared_target, run
from otus.reports.explain.pieces import counts_by_category, covered_part, faded, heat, table_row, threshold_told
from otus.reports.page import Figure, Page, Section, numbered
from otus.structures import Categories, Instances
from otus.structures.boxes import pairwise_iou
from otus.visualization.drawing import draw

_QUERY = Categories(("query",))
_SHOWN = 12
_EVERYTHING = Postprocess(score_threshold=-1.0)
_SIDE_BY_SIDE = 300  # CSS pixels


@dataclass(frozen=True, eq=False)
class SetExplanation(Explained):
    """The record of one pass, with the image that it is about. Made by :func:`explain_set`.

    ``attention`` is (Q, h, w), the part of the map that shows the image; ``match`` pairs queries with ``truth``.
    ``queries_in_crowds`` are those that would learn nothing, since they answer inside a box of many objects.
    """

    record: SetStages
    attention: np.ndarray
    match: Match | None
    queries_in_crowds: int

    def document(self) -> dict[str, Any]:
        """All figures of the page, and more of them: what ``otus explain detection --json`` prints."""
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
        """The stages as one HTML page."""
        facts = self.document()
        return self.page_of(facts, numbered(self._sections(facts)))

    def _sections(self, facts: dict[str, Any]) -> Iterator[Section]:
        queries, detections = facts["queries"], facts["detections"]
        batch = self.record.batch
        yield Section("The image", "", [Figure.of(self.image, self.name)])
        yield Section(
            "Feature maps",
            "The backbone runs once; the encoder lets every step look at others. Shown is the mean strength of all channels.",
            [
                *(
                    Figure.of(
                        heat(x[0], covered_part((x.shape[-2], x.shape[-1]), batch.sizes_hw[0], batch.padded_hw)),
                        f"backbone, {x.shape[-1]} x {x.shape[-2]}",
                        width=220,
                    )
                    for x in self.record.features
                ),
                Figure.of(self._memory(), "after the encoder", width=220),
            ],
            facts["maps"],
        )
        everyone = Instances(
            np.array([one["box_xyxy"] for one in queries]).reshape(-1, 4),
            np.zeros(len(queries), np.int64),
            self.size_hw,
            _QUERY,
        )
        yield Section(
            "Queries",
            f"{len(queries)} queries answer at once, each with a class or none and a box, after {facts['layers']} layers of "
            f"looking at one another and at the image. {len(detections)} answers score above "
            f"{threshold_told(facts)}.",
            [Figure.of(draw(faded(self.image), everyone, labels=False), "the boxes of all queries")],
        )
        shown = detections[:_SHOWN]
        yield Section(
            "Where each query looked",
            "Attention of the last layer to the image, the mean of its heads: bright where the query gathered most. Shown "
            f"are the best {len(shown)}, each with the box that it says.",
            [Figure.of(self._looking(i, one), _told(one), width=_SIDE_BY_SIDE) for i, one in enumerate(shown)],
            [table_row(one) for one in shown],
        )
        if facts["matching"] is not None:
            yield Section(
                "The matching",
                f"In training each of the {facts['matching']['objects']} labelled objects would teach one query, so that "
                f"class, distance and overlap cost least in all; the other {facts['matching']['unmatched_queries']} would "
                f"learn to say nothing{_spared(facts['matching']['queries_in_crowds'])}. "
                f"{facts['matching']['unmatched_objects']} objects have no query.",
                [Figure.of(self._matched(facts), "labels, and the queries that learn them")],
                [table_row(one) for one in facts["matching"]["pairs"]],
            )
        suppressed = (
            "Nothing is suppressed: each object was taught to one query alone."
            if self.postprocess.nms_iou >= 1
            else f"Of boxes of one category that overlap by more than {facts['nms_iou']} (IoU) the best stays."
        )
        yield Section(
            "Detections",
            f"{suppressed} Of an image at most {facts['max_detections']} are reported: {len(detections)}.",
            [Figure.of(draw(self.image, self.found), "what is reported")],
            counts_by_category(detections),
        )

    def _boxes(self, shares: Tensor) -> np.ndarray:
        """Of queries, cut to the image."""
        return self.boxes(denormalize_boxes(shares, self.record.batch.sizes_hw[0]))

    def _query(self, index: int, box: np.ndarray) -> dict[str, Any]:
        """The best category of a query; its score is that of ``predict``, whatever the threshold."""
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
        assert self.found.scores is not None
        queries = self.record.detections[0].origins
        for i in range(len(self.found)):
            yield {
                "category": self.system.categories[int(self.found.labels[i])],
                "score": float(self.found.scores[i]),
                "box_xyxy": self.found.boxes_xyxy[i].tolist(),
                "query": int(queries[i]),
            }

    def _matching(self, boxes: np.ndarray) -> dict[str, Any] | None:
        if self.match is None or self.truth is None:
            return None
        pairs = []
        for query, thing in zip(self.match.queries.tolist(), self.match.objects.tolist(), strict=True):
            label = int(self.truth.labels[thing])
            _, named, score = self.system.head.candidates(
                self.record.outputs.logits[-1, 0, query : query + 1], postprocess=_EVERYTHING
            )
            says = int(named[int(score.argmax())])
            iou = pairwise_iou(boxes[query : query + 1], self.truth.boxes_xyxy[thing : thing + 1])[0, 0]
            pairs.append(
                {
                    "category": self.system.categories[label],
                    "object_box_xyxy": self.truth.boxes_xyxy[thing].tolist(),
                    "query": query,
                    "says": self.system.categories[says],
                    "score": float(score.max()),
                    "iou": float(iou),
                }
            )
        return {
            "objects": len(self.truth),
            "unmatched_objects": len(self.truth) - len(pairs),
            "unmatched_queries": len(boxes) - len(pairs) - self.queries_in_crowds,
            "queries_in_crowds": self.queries_in_crowds,
            "pairs": pairs,
        }

    def _memory(self) -> ImageArray:
        x, batch = self.record.outputs.memory, self.record.batch
        return heat(x[0], covered_part((x.shape[-2], x.shape[-1]), batch.sizes_hw[0], batch.padded_hw))

    def _looking(self, place: int, one: dict[str, Any]) -> ImageArray:
        return draw(overlaid(self.image, self.attention[one["query"]]), self.found[[place]], labels=False)

    def _matched(self, facts: dict[str, Any]) -> ImageArray:
        """Labels as they are, over them each matched query's box in its object's colour, both on a pale image."""
        assert self.truth is not None
        pairs = facts["matching"]["pairs"]
        said = np.array([facts["queries"][one["query"]]["box_xyxy"] for one in pairs]).reshape(-1, 4)
        labels = np.array([self.system.categories.index(one["category"]) for one in pairs], dtype=np.int64)
        queries = Instances(said, labels, self.size_hw, self.system.categories)
        under = draw(faded(self.image), queries, labels=False)
        return draw(under, replace(self.truth, scores=None, masks=None, keypoints=None))


def explain_set(
    predictor: Predictor,
    image: ImageArray,
    *,
    name: str,
    score_threshold: float | None = None,
    truth: Instances | None = None,
) -> SetExplanation:
    """Run a set detector on one image and keep all of its stages.

    Parameters
    ----------
    predictor
        Of a :class:`~otus.detection.set_prediction.set_detector.SetDetector`.
    score_threshold
        What is shown scores above it; the model's own without it, as ``predict`` does.
    truth
        The image's labels, with the model's categories, to match queries with.
    """
    fields = run(predictor, image, name=name, score_threshold=score_threshold, truth=truth)
    record: SetStages = fields["record"]
    with predictor.autocast():  # the weights are in its precision
        attention = record.outputs.attention()[0].float()
    rows, columns = covered_part(
        (attention.shape[1], attention.shape[2]), record.batch.sizes_hw[0], record.batch.padded_hw
    )
    match, in_crowds = None, 0
    if truth is not None:
        labelled = prepared_target(predictor, image, name, truth)
        (match,) = predictor.system.match(replace(record, batch=replace(record.batch, samples=[labelled])))
        size_hw = record.batch.sizes_hw[0]
        inside = inside_crowd(record.outputs.boxes[-1, 0], predictor.system.target(labelled), size_hw)
        inside[match.queries] = False
        in_crowds = int(inside.sum())
    attention = attention[:, :rows, :columns]
    return SetExplanation(**fields, attention=attention.cpu().numpy(), match=match, queries_in_crowds=in_crowds)


def _spared(queries: int) -> str:
    return f", but for {queries} that answer inside a box of many objects and learn nothing" if queries else ""


def _told(one: dict[str, Any]) -> str:
    return f"query {one['query']}: {one['category']} {one['score']:.2f}"
