"""How a region-based detector came to its answer on one image: every stage as facts and as a page.

Facts and page are made of the one record of the pass (:class:`~otus.detection.region_based.stages.RegionStages`), and boxes are
brought back to the image's own pixels as ``predict`` does.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import log2
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from otus.detection.region_based.region_detector import RegionDetector
from otus.detection.region_based.stages import RegionStages, to_instances
from otus.errors import UsageError
from otus.inference.prediction import instance_records, threshold_facts
from otus.inference.predictor import Predictor
from otus.parts.detections import Detections
from otus.parts.postprocess import Postprocess
from otus.parts.regions.crops import WarpedCrops, warp
from otus.proposals.proposers import PrecomputedProposals, SlidingWindowProposer
from otus.reports.explain.pieces import (
    coloured,
    counts_by_category,
    covered_part,
    faded,
    heat,
    table_row,
)
from otus.reports.page import Figure, Page, Section, numbered
from otus.structures import Categories, Instances
from otus.structures.boxes import as_boxes
from otus.visualization.drawing import draw

_ANYTHING = Categories(("proposal",))
_SHOWN_PROPOSALS = (10, 100)
_SHOWN_MASKS = 6
_SHOWN_CROPS = 6
_LISTED = 20
_SIDE_BY_SIDE = 300  # CSS pixels


@dataclass(frozen=True, eq=False)
class DetectionStages:
    """The record of one pass, with the image that it is about. Made by :func:`explain_detection`."""

    model: str
    name: str
    image: UInt8[np.ndarray, "h w 3"]
    record: RegionStages
    found: Instances
    system: RegionDetector
    postprocess: Postprocess

    @property
    def size_hw(self) -> tuple[int, int]:
        """Of the image as it came."""
        return self.image.shape[0], self.image.shape[1]

    def boxes(self, boxes: Tensor) -> Float[np.ndarray, "n 4"]:
        """Boxes of the prepared image in the pixels of the image as it came."""
        prepared = self.record.batch.sizes_hw[0]
        ratio = np.array(self.size_hw)[::-1] / np.array(prepared)[::-1]
        return boxes.cpu().numpy().astype(np.float64) * np.tile(ratio, 2)

    def document(self) -> dict[str, Any]:
        """All figures of the page, and more of them: what ``otus explain detection --json`` prints."""
        record, proposals, candidates = self.record, self.record.proposals, self.record.candidates[0]
        height, width = self.size_hw
        prepared = record.batch.sizes_hw[0]
        boxes, anchors = self.boxes(proposals.boxes[0]), self._anchor_facts()
        return {
            "model": self.model,
            "file": self.name,
            "width": width,
            "height": height,
            "prepared": {"width": prepared[1], "height": prepared[0]},
            "milliseconds": dict(record.milliseconds),
            "maps": [
                {
                    # Odd sides are rounded up on the way, the stride itself is a power of two.
                    "stride": 2 ** round(log2(record.batch.padded_hw[1] / x.shape[-1])),
                    "height": x.shape[-2],
                    "width": x.shape[-1],
                    "channels": x.shape[1],
                }
                for x in record.features or []
            ],
            "anchors": anchors,
            "proposals": [
                {
                    "box_xyxy": box.tolist(),
                    **({"objectness": float(score)} if anchors else {"rank": i + 1}),
                    **self._level(i),
                }
                for i, (box, score) in enumerate(zip(boxes, proposals.scores[0], strict=True))
            ],
            "crops": self._crop_facts(),
            **threshold_facts(self.postprocess, self.system.categories),
            "nms_iou": self.postprocess.nms_iou,
            "before_nms": list(self._with_proposals(candidates, self.boxes(candidates.boxes))),
            "detections": list(self._with_proposals(record.detections[0], self.found.boxes_xyxy)),
            "masks": list(self._mask_facts()),
            "keypoints": list(self._keypoint_facts()),
        }

    def page(self) -> Page:
        """The stages as one HTML page."""
        facts = self.document()
        milliseconds = facts["milliseconds"]
        took = ", ".join(f"{name} {value:.0f}" for name, value in milliseconds.items())
        title = f"How {self.model} sees {self.name.rsplit('/', 1)[-1]}"
        subtitle = (
            f"{facts['width']} x {facts['height']} pixels, prepared as "
            f"{facts['prepared']['width']} x {facts['prepared']['height']}; milliseconds: {took}"
        )
        return Page(title, subtitle, tuple(numbered(self._sections(facts))))

    def _sections(self, facts: dict[str, Any]) -> Iterator[Section]:
        yield Section("The image", "", [Figure.of(self.image, self.name)])
        if self.record.features:
            yield Section(
                "Feature maps",
                "The backbone runs once; everything that follows reads these maps. Shown is the mean strength of all channels.",
                [
                    Figure.of(
                        heat(x[0], self._covered(x)),
                        f"{one['width']} x {one['height']}, stride {one['stride']}",
                        width=220,
                    )
                    for x, one in zip(self.record.features, facts["maps"], strict=True)
                ],
                facts["maps"],
            )
        if facts["anchors"]:
            per_location = facts["anchors"]["per_location"]
            yield Section(
                "Anchors",
                f"At every step of every map the proposer judges K = {per_location} boxes of fixed size and shape, "
                f"{facts['anchors']['count']} in all. Shown are those of one step in the middle of each map.",
                [Figure.of(image, caption, width=_SIDE_BY_SIDE) for image, caption in self._anchor_images()],
            )
        yield Section(
            "Proposals",
            self._about_proposals(len(facts["proposals"])),
            [self._proposal_figure(count) for count in _SHOWN_PROPOSALS],
            [table_row(one) for one in facts["proposals"][:_LISTED]],
        )
        yield Section(
            "Scores before suppression",
            f"{self._about_regions(facts['crops'])} {len(facts['before_nms'])} pairs of proposal and category score above "
            f"{facts['score_threshold']:g}.",
            [
                *self._crop_figures(facts),
                Figure.of(
                    draw(self._faded, self._as_instances(facts["before_nms"]), labels=False), "before suppression"
                ),
            ],
            counts_by_category(facts["before_nms"]),
        )
        yield Section(
            "Detections",
            f"Of boxes of one category that overlap by more than {facts['nms_iou']} (IoU) the best stays, "
            f"of an image at most {self.postprocess.max_detections}: {len(facts['detections'])}.",
            [Figure.of(draw(self.image, replace(self.found, masks=None, keypoints=None)), "the boxes that stay")],
            [table_row(one) for one in facts["detections"]],
        )
        if self.found.masks is not None:
            yield Section(
                "Masks",
                "For each detection the mask head draws a small map of probabilities; enlarged into its box, the object is "
                f"where it is at least {self.found.masks.threshold}. Shown are those of the best {len(facts['masks'])}.",
                [
                    *(Figure.of(coloured(one["probabilities"], 0, 1), _told(one), width=160) for one in facts["masks"]),
                    Figure.of(draw(self.image, replace(self.found, keypoints=None), labels=False), "all masks, pasted"),
                ],
            )
        if self.found.keypoints is not None:
            yield Section(
                "Keypoints",
                "For each detection the keypoint head makes a map for each keypoint; the keypoint is at its highest place. "
                "Scores are the values there, logits.",
                [Figure.of(draw(self.image, replace(self.found, masks=None), labels=False), "the keypoints of all")],
                facts["keypoints"][:_LISTED],
            )

    @property
    def _faded(self) -> UInt8[np.ndarray, "h w 3"]:
        """The image so pale that many thin lines are seen on it."""
        return faded(self.image)

    def _level(self, index: int) -> dict[str, int]:
        levels = self.record.proposals.levels
        return {} if levels is None else {"map": int(levels[0][index])}

    def _with_proposals(self, detections: Detections, boxes: Float[np.ndarray, "n 4"]) -> Iterator[dict[str, Any]]:
        """Detections, best first, each with the proposal that it was made of."""
        origins = self.boxes(self.record.proposals.boxes[0])
        for i in detections.scores.argsort(descending=True, stable=True).tolist():
            region = int(detections.origins[i])
            yield {
                "category": self.system.categories[int(detections.labels[i])],
                "score": float(detections.scores[i]),
                "box_xyxy": boxes[i].tolist(),
                "proposal": region,
                "proposal_box_xyxy": origins[region].tolist(),
            }

    def _mask_facts(self) -> Iterator[dict[str, Any]]:
        """Of the best detections: the small map of probabilities, and the mask that it becomes in the image."""
        if self.record.masks is not None:
            shown = self.found[:_SHOWN_MASKS]
            records = instance_records(shown, self.system.categories)
            for i, (one, probabilities) in enumerate(zip(records, self.record.masks[0], strict=False)):
                outline = {"probabilities": probabilities.cpu().numpy(), "segmentation": one["segmentation"]}
                yield {"detection": i, "category": one["category"], "score": one["score"], **outline}

    def _keypoint_facts(self) -> Iterator[dict[str, Any]]:
        """Of each detection whose category has keypoints, every one: where it is, and the logit at its place."""
        points, scores = self.found.keypoints, self.found.keypoint_scores
        if points is not None and scores is not None:
            categories = self.system.categories
            for i, label in enumerate(self.found.labels):
                known = dict(categories.keypoints).get(categories[int(label)])
                names = () if known is None else known.names
                for name, (x, y, _), score in zip(names, points[i].tolist(), scores[i].tolist(), strict=False):
                    yield {"detection": i, "keypoint": name, "x": x, "y": y, "score": score}

    def _as_instances(self, records: list[dict[str, Any]]) -> Instances:
        categories = self.system.categories
        return Instances(
            as_boxes([one["box_xyxy"] for one in records]),
            np.array([categories.index(one["category"]) for one in records], dtype=np.int64),
            self.size_hw,
            categories,
            scores=np.array([one["score"] for one in records], dtype=np.float64),
        )

    def _proposal_figure(self, count: int) -> Figure:
        boxes = self.boxes(self.record.proposals.boxes[0][:count])
        shown = Instances(boxes, np.zeros(len(boxes), np.int64), self.size_hw, _ANYTHING)
        image = draw(self._faded, shown, labels=False)
        which = (
            f"the first {len(boxes)}"
            if self._anchor_facts() is None
            else f"the {len(boxes)} with the highest objectness"
        )
        return Figure.of(image, which, width=2 * _SIDE_BY_SIDE)

    def _about_proposals(self, count: int) -> str:
        proposer = self.system.proposer
        if isinstance(proposer, SlidingWindowProposer):
            return f"Nobody says where to look, so every window of the image is looked at: {count} of them."
        if isinstance(proposer, PrecomputedProposals):
            method = str(dict(proposer.search.parameters).get("method", "a search")).replace("-", " ")
            return (
                f"The {count} boxes that may hold something, whatever it is, found before the network runs ({method})."
            )
        return (
            f"The {count} boxes that may hold something, whatever it is, by objectness; the proposer has moved each from "
            "its anchor, and of those that overlap much kept the best."
        )

    def _crop_facts(self) -> dict[str, int] | None:
        """How many crops this image needs, and how large they are; None where regions share maps."""
        features = self.system.region_features
        if not isinstance(features, WarpedCrops):
            return None
        return {"count": len(self.record.proposals.boxes[0]), "side": features.crop_size, "context": features.context}

    def _about_regions(self, crops: dict[str, int] | None) -> str:
        moved = "named" if self.system.box_head.bbox_pred is None else "named and moved"
        if crops is None:
            return f"Each proposal is cut out of the maps, {moved}{' again' if self._anchor_facts() else ''}."
        return (
            f"This image needs {crops['count']} crops: each is stretched to {crops['side']} x {crops['side']} pixels, "
            f"goes through the whole network, and is {moved}."
        )

    def _crop_figures(self, facts: dict[str, Any]) -> list[Figure]:
        """The crops of the best detections as the network saw them."""
        crops = facts["crops"]
        if crops is None:
            return []
        best = (
            list(dict.fromkeys(one["proposal"] for one in facts["before_nms"]))[:_SHOWN_CROPS] or [0][: crops["count"]]
        )
        boxes = torch.from_numpy(self.boxes(self.record.proposals.boxes[0][best]))
        pixels = torch.from_numpy(self.image).permute(2, 0, 1).float()
        seen = warp(pixels, boxes, crop_size=crops["side"], context=crops["context"]).round().clamp(0, 255).byte()
        return [
            Figure.of(np.ascontiguousarray(one.permute(1, 2, 0).numpy()), f"crop of proposal {index}", width=160)
            for index, one in zip(best, seen, strict=True)
        ]

    def _anchors(self) -> list[Tensor]:
        """Of each map, if the proposer has anchors."""
        anchors: Any = getattr(self.system.proposer, "anchors", None)
        if anchors is None or self.record.features is None:
            return []
        grids = [(x.shape[-2], x.shape[-1]) for x in self.record.features]
        return list(anchors(grids, self.record.batch.padded_hw))

    def _anchor_facts(self) -> dict[str, Any] | None:
        of_maps = self._anchors()
        if not of_maps:
            return None
        proposer: Any = self.system.proposer
        return {
            "per_location": proposer.anchors.anchors_per_location,
            "count": sum(len(anchors) for anchors in of_maps),
            "count_by_map": [len(anchors) for anchors in of_maps],
        }

    def _anchor_images(self) -> Iterator[tuple[np.ndarray, str]]:
        facts = self._anchor_facts()
        assert facts is not None
        for x, anchors in zip(self.record.features or [], self._anchors(), strict=True):
            height, width = x.shape[-2:]
            first = (height // 2 * width + width // 2) * facts["per_location"]
            boxes = self.boxes(anchors[first : first + facts["per_location"]])
            shown = Instances(boxes, np.zeros(len(boxes), np.int64), self.size_hw, _ANYTHING)
            yield draw(self._faded, shown, labels=False), f"map of {width} x {height} steps"

    def _covered(self, x: Tensor) -> tuple[int, int]:
        """The part of a map that shows the image, without padding."""
        batch = self.record.batch
        return covered_part((x.shape[-2], x.shape[-1]), batch.sizes_hw[0], batch.padded_hw)


def explain_detection(
    predictor: Predictor, image: UInt8[np.ndarray, "h w 3"], *, name: str, score_threshold: float | None = None
) -> DetectionStages:
    """Run a region-based detector on one image and keep all of its stages.

    Raises
    ------
    UsageError
        If the model is of another kind, whose stages are others.
    """
    system: Any = predictor.system
    if not isinstance(system, RegionDetector):
        raise UsageError(
            f"{predictor.name} is not a region-based detector, nor another one whose stages can be explained: those are of "
            "models whose task is detection, instance or keypoints (otus models lists them)"
        )
    start = time.perf_counter()
    prepared = predictor.prepared(image, name)
    prepare_ms = (time.perf_counter() - start) * 1e3
    postprocess = predictor.postprocess(score_threshold)
    assert postprocess is not None  # a detector has one
    with predictor.autocast():
        record = system.stages([prepared], postprocess=postprocess)
    record.milliseconds = {"prepare": prepare_ms, **record.milliseconds}  # where given proposals take their time
    found = predictor.preprocess.undo(to_instances(record, system.categories)[0], (image.shape[0], image.shape[1]))
    return DetectionStages(predictor.name, name, image, record, found, system, postprocess)


def _told(one: dict[str, Any]) -> str:
    return f"{one['category']} {one['score']:.2f}"
