"""How a dense detector came to its answer on one image: every stage as facts and as a page.

Facts and page are made of the one record of the pass (:class:`~otus.detection.single_stage.stages.DenseStages`). Which anchors
match is a question of training: it is answered for labels where there are some, else for what was found, as if it were so.
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
from otus.reports.explain.one_pass import Explained, ImageArray, prepared_target, run, with_area
from otus.reports.explain.pieces import coloured, counts_by_category, covered_part, faded, heat, table_row
from otus.reports.page import Figure, Page, Section
from otus.structures import Categories, Instances
from otus.visualization.drawing import draw

_ANYTHING = Categories(("anchor",))
_SIDE_BY_SIDE = 300  # CSS pixels
_DRAWN_ANCHORS = 60
"""Of each object at most so many anchors are drawn, from all over its list."""


@dataclass(frozen=True, eq=False)
class DenseExplanation(Explained):
    """The record of one pass, with the image that it is about. Made by :func:`explain_dense`.

    ``objects`` are those that ``assignment`` is about: the labels, or what was found.
    """

    record: DenseStages
    objects: Instances
    assignment: DenseAssignment

    def map_of(self, anchors: Tensor) -> Tensor:
        """Of which map each anchor is."""
        ends = torch.tensor([len(of_map) for of_map in self.record.anchors], device=anchors.device).cumsum(0)
        return torch.searchsorted(ends, anchors, right=True)

    def document(self) -> dict[str, Any]:
        """All figures of the page, and more of them: what ``otus explain detection --json`` prints."""
        record = self.record
        return self.facts() | {
            "maps": list(self._map_facts()),
            "truth": "detections" if self.truth is None else "labels",
            "matching": self._matching_facts(),
            "before_nms": list(self._with_anchors(self.before, record.candidates[0].origins)),
            "detections": list(self._with_anchors(self.found, record.detections[0].origins)),
        }

    def page(self) -> Page:
        """The stages as one HTML page."""
        facts = self.document()
        return self.page_of(facts, self._sections(facts))

    def _sections(self, facts: dict[str, Any]) -> Iterator[Section]:
        maps, matching = facts["maps"], facts["matching"]
        yield Section("The image", "", [Figure.of(self.image, self.name)])
        yield Section(
            "1. Feature maps",
            "The backbone runs once, and every location of every map answers for itself. Shown is the mean strength of all "
            "channels.",
            [
                Figure.of(heat(x[0], self._covered(x)), _size(one), width=220)
                for x, one in zip(self.record.features, maps, strict=True)
            ],
            [{name: one[name] for name in ("width", "height", "channels", "anchors")} for one in maps],
        )
        yield Section(
            "2. Anchors",
            f"{sum(one['anchors'] for one in maps)} boxes in all, of fixed size and shape, which the head names and moves. "
            "Shown are those of one step in the middle of each map.",
            [
                Figure.of(image, _size(one), width=_SIDE_BY_SIDE)
                for image, one in zip(self._middle(), maps, strict=True)
            ],
        )
        told = "what was found, as if it were the truth" if self.truth is None else "the labels"
        yield Section(
            "3. Which anchors match",
            f"By {told}: {matching['positive']} anchors stand for an object, {matching['negative']} for background, "
            f"{matching['neutral']} for neither. In training the first learn name and place, the second to say nothing.",
            list(self._matched_figures(facts)),
            [table_row(one) for one in matching["objects"]],
        )
        yield Section(
            "4. Scores of each map",
            "At each location the best score of all its anchors and categories, from 0 (dark) to 1 (bright), before any "
            f"threshold. {sum(one['above_threshold'] for one in maps)} pairs of anchor and category score above "
            f"{facts['score_threshold']:g}.",
            [
                Figure.of(coloured(image, 0, 1), f"{_size(one)}, best {one['best_score']:.2f}", width=220)
                for image, one in zip(self._best(), maps, strict=True)
            ],
            [{"map": _size(one), "best": one["best_score"], "above": one["above_threshold"]} for one in maps],
        )
        yield Section(
            "5. Candidates before suppression",
            f"The best of them are moved to where they say the object is: {len(facts['before_nms'])} boxes.",
            [Figure.of(draw(faded(self.image), self.before, labels=False), "before suppression")],
            counts_by_category(facts["before_nms"]),
        )
        yield Section(
            "6. Detections",
            f"Of boxes of one category that overlap by more than {facts['nms_iou']} (IoU) the best stays, "
            f"of an image at most {facts['max_detections']}: {len(facts['detections'])}.",
            [Figure.of(draw(self.image, self.found), "the boxes that stay")],
            [table_row(one) for one in facts["detections"]],
        )

    def _map_facts(self) -> Iterator[dict[str, Any]]:
        thresholds = self.postprocess.thresholds(self.system.label_of_index)
        reported = thresholds.isfinite()
        every = self.system.scores.all_scores(self.record.outputs, 0)
        for x, anchors, scores in zip(self.record.features, self.record.anchors, every, strict=True):
            named = scores[:, reported]
            yield {
                "height": x.shape[-2],
                "width": x.shape[-1],
                "channels": x.shape[1],
                "anchors": len(anchors),
                "best_score": float(named.max()),
                "above_threshold": int((scores > thresholds).sum()),
            }

    def _matching_facts(self) -> dict[str, Any]:
        one, maps = self.assignment, len(self.record.features)
        objects = []
        levels = self.map_of(one.positives)
        matches = one.matches[one.positives]
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
            "positive": len(one.positives),
            "negative": int((one.matches == NEGATIVE).sum()),
            "neutral": int((one.matches == NEUTRAL).sum()),
            "objects": objects,
            "anchors": [
                {"object": int(match), "map": int(level), "anchor": int(anchor)}
                for match, level, anchor in zip(matches, levels, one.positives, strict=True)
            ],
        }

    def _matched_figures(self, facts: dict[str, Any]) -> Iterator[Figure]:
        """All objects, and for each map that speaks for some the anchors that do, coloured as their categories."""
        everywhere = self.boxes(torch.cat(self.record.anchors))
        yield Figure.of(draw(self.image, self.objects), "the objects", width=_SIDE_BY_SIDE)
        for level, one in enumerate(facts["maps"]):
            chosen = [pair for pair in facts["matching"]["anchors"] if pair["map"] == level]
            if chosen:
                shown = chosen[:: -(-len(chosen) // _DRAWN_ANCHORS)]
                boxes = everywhere[[pair["anchor"] for pair in shown]]
                labels = self.objects.labels[[pair["object"] for pair in shown]]
                matched = Instances(boxes, labels, self.size_hw, self.system.categories)
                image = draw(faded(self.image), matched, labels=False)
                yield Figure.of(image, f"{_size(one)}: {len(chosen)} anchors, {len(shown)} drawn", width=_SIDE_BY_SIDE)

    def _with_anchors(self, instances: Instances, anchors: Tensor) -> Iterator[dict[str, Any]]:
        """Objects, best first, each with the anchor that it was made of."""
        origins, levels = self.boxes(torch.cat(self.record.anchors)[anchors]), self.map_of(anchors)
        assert instances.scores is not None
        turned = instances.oriented_boxes_xywhr
        for i in np.argsort(-instances.scores, kind="stable"):
            yield {
                "category": self.system.categories[int(instances.labels[i])],
                "score": float(instances.scores[i]),
                "box_xyxy": instances.boxes_xyxy[i].tolist(),
                **({} if turned is None else {"oriented_box_xywhr": turned[i].tolist()}),
                "map": int(levels[i]),
                "anchor": int(anchors[i]),
                "anchor_box_xyxy": origins[i].tolist(),
            }

    def _best(self) -> Iterator[Float[np.ndarray, "h w"]]:
        """Of each map the best score at each location, the part that shows the image."""
        thresholds = self.postprocess.thresholds(self.system.label_of_index)
        reported = thresholds.isfinite()
        every = self.system.scores.all_scores(self.record.outputs, 0)
        for x, scores in zip(self.record.features, every, strict=True):
            rows, columns = self._covered(x)
            best = scores[:, reported].amax(dim=1).reshape(x.shape[-2], x.shape[-1], -1).amax(dim=2)
            yield best[:rows, :columns].cpu().numpy()

    def _middle(self) -> Iterator[ImageArray]:
        for x, anchors in zip(self.record.features, self.record.anchors, strict=True):
            rows, columns = self._covered(x)
            each = len(anchors) // (x.shape[-2] * x.shape[-1])
            first = (rows // 2 * x.shape[-1] + columns // 2) * each
            boxes = self.boxes(anchors[first : first + each])
            shown = Instances(boxes, np.zeros(len(boxes), np.int64), self.size_hw, _ANYTHING)
            yield draw(faded(self.image), shown, labels=False)

    def _covered(self, x: Tensor) -> tuple[int, int]:
        batch = self.record.batch
        return covered_part((x.shape[-2], x.shape[-1]), batch.sizes_hw[0], batch.padded_hw)


def explain_dense(
    predictor: Predictor,
    image: ImageArray,
    *,
    name: str,
    score_threshold: float | None = None,
    truth: Instances | None = None,
) -> DenseExplanation:
    """Run a dense detector on one image and keep all of its stages.

    Parameters
    ----------
    predictor
        Of a :class:`~otus.detection.single_stage.dense_detector.DenseDetector`.
    score_threshold
        What is shown scores above it; the model's own without it, as ``predict`` does.
    truth
        The image's labels, with the model's categories, to match anchors with; what is found is taken for them without.
    """
    system: DenseDetector = predictor.system
    fields = run(predictor, image, name=name, score_threshold=score_threshold, truth=truth)
    labelled = fields["found"] if truth is None else truth
    target = system.target(prepared_target(predictor, image, name, labelled))
    assignment = system.assign(torch.cat(fields["record"].anchors), target)
    return DenseExplanation(**fields, objects=with_area(labelled), assignment=assignment)


def _size(one: dict[str, Any]) -> str:
    return f"{one['width']} x {one['height']} steps"
