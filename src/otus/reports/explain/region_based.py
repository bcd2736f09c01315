"""Explain a region-based detector (sliding window, R-CNN, Fast, Faster and Mask R-CNN) on one image, stage by stage.

JSON and page are made from one record of the pass (:class:`~otus.detection.region_based.stages.RegionStages`): feature
maps, anchors, proposals, class scores, NMS, masks and keypoints.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import log2
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from otus.detection.region_based.region_detector import RegionDetector
from otus.detection.region_based.stages import RegionStages, to_instances
from otus.errors import UsageError
from otus.inference.predictor import Predictor
from otus.parts.detections import Detections
from otus.parts.display import instance_records
from otus.parts.regions.crops import WarpedCrops, warp
from otus.proposals.proposers import PrecomputedProposals, SlidingWindowProposer
from otus.reports.explain.explanation import Explanation, ImageArray, explain_fields
from otus.reports.explain.figures import (
    activation_map,
    colormapped,
    counts_by_category,
    faded,
    table_row,
)
from otus.reports.page import Figure, Page, Section, numbered
from otus.structures import Categories, Instances
from otus.structures.boxes import as_boxes
from otus.visualization.drawing import draw

_PROPOSAL = Categories(("proposal",))
_SHOWN_PROPOSALS = (10, 100)
_SHOWN_MASKS = 6
_SHOWN_CROPS = 6
_LISTED = 20
_SIDE_BY_SIDE = 300  # CSS pixels


@dataclass(frozen=True, eq=False)
class RegionExplanation(Explanation):
    """Stages of a region-based detector on one image; see :func:`explain_region_based`."""

    record: RegionStages
    system: RegionDetector

    def document(self) -> dict[str, Any]:
        """Return the members of the JSON document: what ``otus explain detection --json`` prints."""
        record, proposals, candidates = self.record, self.record.proposals, self.record.candidates[0]
        boxes, anchors = self.boxes(proposals.boxes[0]), self._anchor_facts()
        return self.facts() | {
            "maps": [
                {
                    # Odd sides are rounded up in each stage; the stride itself is a power of two.
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
            "before_nms": list(self._with_proposals(candidates, self.boxes(candidates.boxes))),
            "detections": list(self._with_proposals(record.detections[0], self.detections.boxes_xyxy)),
            "masks": list(self._mask_facts()),
            "keypoints": list(self._keypoint_facts()),
        }

    def page(self) -> Page:
        """Return the HTML page."""
        facts = self.document()
        return self.page_of(facts, numbered(self._sections(facts)))

    def _sections(self, facts: dict[str, Any]) -> Iterator[Section]:
        yield Section("The image", "", [Figure.of(self.image, self.name)])
        if self.record.features:
            yield Section(
                "Feature maps",
                "Computed once by the backbone and shared by all stages below. Shown: mean absolute activation "
                "over channels.",
                [
                    Figure.of(
                        activation_map(x[0], self.unpadded_hw(x)),
                        f"{level['width']} x {level['height']}, stride {level['stride']}",
                        width=220,
                    )
                    for x, level in zip(self.record.features, facts["maps"], strict=True)
                ],
                facts["maps"],
            )
        if facts["anchors"]:
            per_location = facts["anchors"]["per_location"]
            yield Section(
                "Anchors",
                f"K = {per_location} boxes of fixed size and shape at every location of every map, "
                f"{facts['anchors']['count']} in "
                "all, for which the RPN predicts objectness and box deltas. Shown: the anchors at the central location of "
                "each map.",
                [Figure.of(image, caption, width=_SIDE_BY_SIDE) for image, caption in self._anchor_images()],
            )
        yield Section(
            "Proposals",
            self._describe_proposals(len(facts["proposals"])),
            [self._proposal_figure(count) for count in _SHOWN_PROPOSALS],
            [table_row(record) for record in facts["proposals"][:_LISTED]],
        )
        yield Section(
            "Candidates before NMS",
            f"{self._describe_regions(facts['crops'])} "
            f"{len(facts['before_nms'])} pairs of proposal and category score above "
            f"{facts['score_threshold']:g}.",
            [
                *self._crop_figures(facts),
                Figure.of(
                    draw(faded(self.image), self._as_instances(facts["before_nms"]), labels=False),
                    "candidates before NMS",
                ),
            ],
            counts_by_category(facts["before_nms"]),
        )
        yield Section(
            "Detections",
            f"After NMS at IoU {facts['nms_iou']} within each category, at most {facts['max_detections']} per image: "
            f"{len(facts['detections'])} boxes.",
            [Figure.of(draw(self.image, replace(self.detections, masks=None, keypoints=None)), "detections after NMS")],
            [table_row(record) for record in facts["detections"]],
        )
        if self.detections.masks is not None:
            yield Section(
                "Masks",
                "For each detection the mask head predicts a low-resolution probability map, which is resized to "
                "the box and "
                f"thresholded at {self.detections.masks.threshold}. Shown: the {len(facts['masks'])} highest-scoring.",
                [
                    *(
                        Figure.of(colormapped(mask["probabilities"], 0, 1), _caption(mask), width=160)
                        for mask in facts["masks"]
                    ),
                    Figure.of(
                        draw(self.image, replace(self.detections, keypoints=None), labels=False),
                        "all masks, pasted into the image",
                    ),
                ],
            )
        if self.detections.keypoints is not None:
            yield Section(
                "Keypoints",
                "For each detection the keypoint head predicts a heatmap per keypoint; the keypoint is at its "
                "maximum, and its "
                "score is the logit there.",
                [
                    Figure.of(
                        draw(self.image, replace(self.detections, masks=None), labels=False),
                        "keypoints of all detections",
                    )
                ],
                facts["keypoints"][:_LISTED],
            )

    def _level(self, index: int) -> dict[str, int]:
        levels = self.record.proposals.levels
        return {} if levels is None else {"map": int(levels[0][index])}

    def _with_proposals(self, detections: Detections, boxes: Float[np.ndarray, "n 4"]) -> Iterator[dict[str, Any]]:
        """Yield the detections by descending score, each with its proposal."""
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
        """Yield, for the highest-scoring detections, the predicted probability map and the mask in the image."""
        if self.record.masks is not None:
            detections = self.detections[:_SHOWN_MASKS]
            records = instance_records(detections, self.system.categories)
            for i, (record, probabilities) in enumerate(zip(records, self.record.masks[0], strict=False)):
                mask = {"probabilities": probabilities.cpu().numpy(), "segmentation": record["segmentation"]}
                yield {"detection": i, "category": record["category"], "score": record["score"], **mask}

    def _keypoint_facts(self) -> Iterator[dict[str, Any]]:
        """Yield every keypoint of the detections: position in pixels of the image, and logit."""
        points, scores = self.detections.keypoints, self.detections.keypoint_scores
        if points is not None and scores is not None:
            categories = self.system.categories
            for i, label in enumerate(self.detections.labels):
                scheme = dict(categories.keypoints).get(categories[int(label)])
                names = () if scheme is None else scheme.names
                for name, (x, y, _), score in zip(names, points[i].tolist(), scores[i].tolist(), strict=False):
                    yield {"detection": i, "keypoint": name, "x": x, "y": y, "score": score}

    def _as_instances(self, records: list[dict[str, Any]]) -> Instances:
        categories = self.system.categories
        return Instances(
            as_boxes([record["box_xyxy"] for record in records]),
            np.array([categories.index(record["category"]) for record in records], dtype=np.int64),
            self.size_hw,
            categories,
            scores=np.array([record["score"] for record in records], dtype=np.float64),
        )

    def _proposal_figure(self, count: int) -> Figure:
        boxes = self.boxes(self.record.proposals.boxes[0][:count])
        instances = Instances(boxes, np.zeros(len(boxes), np.int64), self.size_hw, _PROPOSAL)
        image = draw(faded(self.image), instances, labels=False)
        caption = (
            f"the first {len(boxes)}"
            if self._anchor_facts() is None
            else f"the {len(boxes)} with the highest objectness"
        )
        return Figure.of(image, caption, width=2 * _SIDE_BY_SIDE)

    def _describe_proposals(self, count: int) -> str:
        proposer = self.system.proposer
        if isinstance(proposer, SlidingWindowProposer):
            return f"The sliding window proposes every window of its sizes and shapes: {count} of them."
        if isinstance(proposer, PrecomputedProposals):
            method = str(dict(proposer.search.parameters).get("method", "precomputed")).replace("-", " ")
            return f"{count} class-agnostic boxes, computed before the network runs ({method})."
        return (
            f"{count} class-agnostic boxes with the highest objectness: anchors decoded with the RPN's box deltas, "
            "after the "
            "RPN's own NMS."
        )

    def _crop_facts(self) -> dict[str, int] | None:
        """Return number and size of the crops; None if regions are pooled from shared feature maps."""
        features = self.system.region_features
        if not isinstance(features, WarpedCrops):
            return None
        return {"count": len(self.record.proposals.boxes[0]), "side": features.crop_size, "context": features.context}

    def _describe_regions(self, crops: dict[str, int] | None) -> str:
        refined = "" if self.system.box_head.bbox_pred is None else " and refined by box regression"
        if crops is None:
            return f"Each proposal is pooled from the feature maps, classified{refined}."
        return (
            f"This image needs {crops['count']} crops: each is warped to {crops['side']} x {crops['side']} pixels, passed "
            f"through the whole network, classified{refined}."
        )

    def _crop_figures(self, facts: dict[str, Any]) -> list[Figure]:
        """Draw the crops of the highest-scoring candidates as the network gets them."""
        crops = facts["crops"]
        if crops is None:
            return []
        best = (
            list(dict.fromkeys(record["proposal"] for record in facts["before_nms"]))[:_SHOWN_CROPS]
            or [0][: crops["count"]]
        )
        boxes = torch.from_numpy(self.boxes(self.record.proposals.boxes[0][best]))
        pixels = torch.from_numpy(self.image).permute(2, 0, 1).float()
        inputs = warp(pixels, boxes, crop_size=crops["side"], context=crops["context"]).round().clamp(0, 255).byte()
        return [
            Figure.of(np.ascontiguousarray(crop.permute(1, 2, 0).numpy()), f"crop of proposal {index}", width=160)
            for index, crop in zip(best, inputs, strict=True)
        ]

    def _anchors(self) -> list[Tensor]:
        """Return the anchors of each feature map; an empty list if the proposer has none."""
        anchors: Any = getattr(self.system.proposer, "anchors", None)
        if anchors is None or self.record.features is None:
            return []
        grids = [(x.shape[-2], x.shape[-1]) for x in self.record.features]
        return list(anchors(grids, self.record.batch.padded_hw))

    def _anchor_facts(self) -> dict[str, Any] | None:
        anchors = self._anchors()
        if not anchors:
            return None
        proposer: Any = self.system.proposer
        return {
            "per_location": proposer.anchors.anchors_per_location,
            "count": sum(map(len, anchors)),
            "count_by_map": [len(level) for level in anchors],
        }

    def _anchor_images(self) -> Iterator[tuple[np.ndarray, str]]:
        facts = self._anchor_facts()
        assert facts is not None
        for x, anchors in zip(self.record.features or [], self._anchors(), strict=True):
            height, width = x.shape[-2:]
            first = (height // 2 * width + width // 2) * facts["per_location"]
            boxes = self.boxes(anchors[first : first + facts["per_location"]])
            instances = Instances(boxes, np.zeros(len(boxes), np.int64), self.size_hw, _PROPOSAL)
            yield draw(faded(self.image), instances, labels=False), f"map of {width} x {height}"


def explain_region_based(
    predictor: Predictor,
    image: ImageArray,
    *,
    name: str,
    score_threshold: float | None = None,
    ground_truth: Instances | None = None,
) -> RegionExplanation:
    """Run a region-based detector on one image and return its stages.

    Parameters
    ----------
    predictor
        Predictor of a :class:`~otus.detection.region_based.region_detector.RegionDetector`.
    name
        Name of the image, for the page.
    score_threshold
        Minimum score (default: as ``predict``).
    ground_truth
        Must be None: regions are not compared with labels.

    Raises
    ------
    UsageError
        If there is ground truth.
    """
    if ground_truth is not None:
        raise UsageError(
            f"--data: {predictor.name} detects by regions, which are not compared with labels; leave it out"
        )
    fields = explain_fields(predictor, image, name=name, score_threshold=score_threshold)
    with_masks = to_instances(fields["record"], predictor.categories)[0]
    fields["detections"] = predictor.preprocess.undo(with_masks, (image.shape[0], image.shape[1]))
    return RegionExplanation(**fields)


def _caption(record: dict[str, Any]) -> str:
    return f"{record['category']} {record['score']:.2f}"
