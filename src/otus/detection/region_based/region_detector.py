"""The base of all region-based detectors: a proposer, region features, and heads.

Shape shorthand: B images, R regions of all images, N objects, S classes of the head, K keypoints.

R-CNN, SPP-net, Fast R-CNN, Faster R-CNN, Mask R-CNN and Keypoint R-CNN differ in these parts; the forward pass is the same.
It is recorded in :class:`~otus.detection.region_based.stages.RegionStages`, from which losses, predictions, explanations
and timings are read.
"""

from collections.abc import Sequence
from typing import Protocol, cast

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from otus.data.dataset import Dataset
from otus.detection.region_based.stages import RegionStages, to_instances
from otus.errors import UsageError
from otus.parts.batching import Batch, Target
from otus.parts.detections import Detections, postprocess_batch
from otus.parts.heads.box_head import Assignment, BoxHead
from otus.parts.inference_mode import Stopwatch
from otus.parts.postprocess import Postprocess
from otus.parts.regions.proposals import OriginalImageSearch, Proposals
from otus.parts.regions.roi_features import RoIFeatures
from otus.parts.system import BaseSystem
from otus.parts.tasks import DETECTION, INSTANCE, KEYPOINTS, Task
from otus.structures import Categories, Instances

MAX_REGIONS = 2**31
"""Maximum number of regions in a batch, as assumed when a model is exported."""


class Proposer(Protocol):
    """Proposes regions; the losses are empty if it is not trainable or ``targets`` is None.

    ``trainable`` is True for a region proposal network. ``original_image_search`` is the proposal method that must run on
    the original image, None if there is none.
    """

    @property
    def trainable(self) -> bool: ...

    @property
    def original_image_search(self) -> OriginalImageSearch | None: ...

    def propose(
        self,
        maps: list[Tensor],
        batch: Batch,
        targets: Sequence[Target] | None,
        *,
        generator: torch.Generator | None = None,
    ) -> tuple[Proposals, dict[str, Tensor]]: ...


class LearnedProposer(Proposer, Protocol):
    """A region proposal network; ``rois`` returns the proposals of a batch: the index of the image, then xyxy."""

    def rois(
        self, maps: list[Tensor], padded_hw: tuple[int, int], sizes_hw: Int[Tensor, "b 2"]
    ) -> Float[Tensor, "r 5"]: ...


class RegionFeatures(Protocol):
    """Computes the features of regions; ``prepare`` computes the feature maps that all regions share, if any.

    Images are padded to at least ``min_size``.
    """

    @property
    def min_size(self) -> int: ...

    def prepare(self, images: Float[Tensor, "b 3 h w"]) -> list[Tensor]: ...

    def extract(self, maps: list[Tensor], batch: Batch, boxes: Sequence[Float[Tensor, "_ 4"]]) -> Tensor: ...


class MapHead(Protocol):
    """A head that predicts the mask or the keypoints of each object from the feature maps that all regions share."""

    def losses(
        self, maps: list[Tensor], assignments: Sequence[Assignment], targets: Sequence[Target]
    ) -> dict[str, Tensor]: ...

    def predict(self, maps: list[Tensor], detections: Sequence[Detections]) -> list[Tensor]: ...

    def predict_rois(self, maps: list[Tensor], rois: Float[Tensor, "n 5"], labels: Int[Tensor, "n"]) -> Tensor: ...


class RegionDetector(BaseSystem[RegionStages, Instances]):
    """A detector composed of a proposer, region features and heads.

    Parameters
    ----------
    categories
        The categories, by label.
    proposer
        Proposes regions.
    region_features
        Computes the features of each region.
    box_head
        Predicts the class and the box of each region.
    mask_head, keypoint_head
        Predict the mask and the keypoints of each object (default: none).
    postprocess
        Score thresholds, NMS and maximum number of detections.
    size_divisor
        Batches are padded to multiples of this (default: 32, the coarsest stride of most backbones).

    Notes
    -----
    ``losses`` returns those of the proposer and of each head. All regions of an image without objects are negatives. Crowds
    are not matched; regions inside them are ignored. Samples without masks or keypoints do not contribute to the mask or
    keypoint loss.
    """

    postprocess: Postprocess
    region_features: RegionFeatures
    proposer: Proposer
    box_head: BoxHead
    mask_head: MapHead | None
    keypoint_head: MapHead | None

    def __init__(
        self,
        *,
        categories: Categories,
        proposer: Proposer,
        region_features: RegionFeatures,
        box_head: BoxHead,
        mask_head: MapHead | None = None,
        keypoint_head: MapHead | None = None,
        postprocess: Postprocess = Postprocess(),
        size_divisor: int = 32,
    ) -> None:
        super().__init__()
        self.categories = categories
        self.region_features = region_features
        self.proposer = proposer
        self.box_head = box_head
        self.mask_head = mask_head
        self.keypoint_head = keypoint_head
        self.postprocess = postprocess
        self.size_divisor = size_divisor

    def warnings(self, dataset: Dataset) -> list[str]:
        """Return warnings if a data set lacks the keypoints, or the masks of a category, that a head is trained on."""
        objects = dataset.objects
        if objects is None:
            return []
        lines = []
        if self.keypoint_head is not None and not objects.has_keypoints.any():
            lines.append(
                "warning: no object has keypoints: the keypoint head is not trained; choose a model without it"
            )
        if self.mask_head is not None:
            has_mask = objects.has_mask
            amodal = objects.amodal_segmentations
            has_mask = has_mask if amodal is None else has_mask | (amodal.kinds > 0)
            without_masks = np.setdiff1d(objects.labels[~objects.is_crowd], objects.labels[has_mask])
            names = ", ".join(dataset.categories[label] for label in without_masks)
            if not has_mask.any():
                lines.append("warning: no object has a mask: the mask head is not trained; choose a model without it")
            elif names:
                lines.append(f"warning: no object of {names} has a mask: masks predicted for them will be meaningless")
        return lines

    @property
    def task(self) -> Task:
        """Keypoints or instance segmentation if there is such a head, else detection."""
        if self.keypoint_head is not None:
            return KEYPOINTS
        return DETECTION if self.mask_head is None else INSTANCE

    @property
    def original_image_search(self) -> OriginalImageSearch | None:
        """The proposal method that must run on the original image; see :class:`Proposer`."""
        return self.proposer.original_image_search

    @property
    def has_rpn(self) -> bool:
        """Whether the proposer is a region proposal network."""
        return self.proposer.trainable

    @property
    def heavy_parts(self) -> tuple[str, ...]:
        """Region features, region proposal network (RPN), box head network and mask head if any; empty without an RPN."""
        if not self.proposer.trainable:
            return ()
        with_masks = () if self.mask_head is None else ("mask_head",)
        return ("region_features", "proposer", "box_head.network", *with_masks)

    @property
    def min_size(self) -> int:
        """Minimum height and width of a batch, in pixels: that of the region features."""
        return self.region_features.min_size

    def results(self, record: RegionStages) -> list[Instances]:
        """Return the detections of each image, with masks at low resolution."""
        return to_instances(record, self.categories)

    def tensors(self, record: RegionStages) -> dict[str, Tensor]:
        """Return :func:`~otus.parts.detections.as_tensors` of the detections, with ``masks`` and ``keypoints`` if any."""
        head_outputs = {"masks": record.masks, "keypoints": record.keypoints}
        return super().tensors(record) | {name: torch.cat(x) for name, x in head_outputs.items() if x is not None}

    def forward(self, images: Float[Tensor, "b 3 h w"], sizes_hw: Int[Tensor, "b 2"]) -> dict[str, Tensor]:
        """Return the detections of a batch, in the form of :meth:`tensors`."""
        if not self.proposer.trainable:
            return super().forward(images, sizes_hw)
        padded_hw = (images.shape[-2], images.shape[-1])
        features = self.region_features.prepare(images)
        rois = cast(LearnedProposer, self.proposer).rois(features, padded_hw, sizes_hw)
        torch._check(rois.shape[0] <= MAX_REGIONS)  # so that the exporter knows that regions x classes fit into int64
        logits, box_deltas = self.box_head(shared_roi_features(self).roi_pooler.pool(features, rois))
        region_image_index = rois[:, 0].long()
        candidates = self.box_head.candidates(
            logits.softmax(dim=1), box_deltas, rois[:, 1:], sizes_hw[region_image_index], postprocess=self.postprocess
        )
        image_index = region_image_index[candidates.origins]
        outputs = postprocess_batch(
            candidates, image_index, self.postprocess, num_images=images.shape[0], padded_hw=padded_hw
        )
        detected_rois = torch.cat([outputs["image_index"][:, None].to(rois), outputs["boxes"]], dim=1)
        for name, head in (("masks", self.mask_head), ("keypoints", self.keypoint_head)):
            if head is not None:
                outputs[name] = head.predict_rois(features, detected_rois, outputs["labels"])
        return outputs

    def compute_stages(
        self,
        batch: Batch,
        targets: list[Target] | None,
        *,
        postprocess: Postprocess | None,
        generator: torch.Generator | None,
        watch: Stopwatch,
    ) -> RegionStages:
        """Compute feature maps, proposals and box head; given ``targets``, losses; given ``postprocess``, detections."""
        with watch.time("maps"):
            features = self.region_features.prepare(batch.images)
        with watch.time("proposals"):
            proposals, losses = self.proposer.propose(features, batch, targets, generator=generator)
        with watch.time("regions"):
            assignments = None
            regions = proposals.boxes
            if targets is not None:
                assignments = self.box_head.assign(proposals.boxes, targets, generator=generator)
                regions = [assignment.regions for assignment in assignments]
            logits, box_deltas = self.box_head(self.region_features.extract(features, batch, regions))
        record = RegionStages(
            batch=batch,
            features=features,
            milliseconds=watch.milliseconds,
            proposals=proposals,
            logits=logits,
            box_deltas=box_deltas,
            assignments=assignments,
            losses=losses,
        )
        if targets is not None and assignments is not None:
            self._compute_losses(record, assignments, targets, watch)
        if postprocess is not None:
            self._postprocess(record, postprocess, watch)
        return record

    def _compute_losses(
        self, record: RegionStages, assignments: list[Assignment], targets: list[Target], watch: Stopwatch
    ) -> None:
        with watch.time("losses"):
            record.losses |= self.box_head.losses(record.logits, record.box_deltas, assignments, targets)
            for head in (self.mask_head, self.keypoint_head):
                if head is not None:
                    record.losses |= head.losses(record.features, assignments, targets)

    def _postprocess(self, record: RegionStages, postprocess: Postprocess, watch: Stopwatch) -> None:
        with watch.time("postprocess"):
            counts = [len(boxes) for boxes in record.proposals.boxes]
            record.scores = list(record.logits.softmax(dim=1).split_with_sizes(counts))
            for scores, box_deltas, regions, size_hw in zip(
                record.scores,
                record.box_deltas.split_with_sizes(counts),
                record.proposals.boxes,
                record.batch.sizes_hw,
                strict=True,
            ):
                candidates = self.box_head.candidates(scores, box_deltas, regions, size_hw, postprocess=postprocess)
                record.keep(candidates, postprocess)
        if self.mask_head is not None:
            with watch.time("masks"):
                record.masks = self.mask_head.predict(record.features, record.detections)
        if self.keypoint_head is not None:
            with watch.time("keypoints"):
                record.keypoints = self.keypoint_head.predict(record.features, record.detections)


def shared_roi_features(detector: RegionDetector) -> RoIFeatures:
    """Return the detector's region features, whose feature maps a mask or keypoint head can share.

    Raises
    ------
    UsageError
        If they are not :class:`~otus.parts.regions.roi_features.RoIFeatures`.
    """
    if not isinstance(detector.region_features, RoIFeatures):
        raise UsageError(
            "a mask or keypoint head needs RoIFeatures, which share feature maps, got "
            f"{type(detector.region_features).__name__}"
        )
    return detector.region_features


def with_heads(
    detector: RegionDetector, *, mask_head: MapHead | None = None, keypoint_head: MapHead | None = None
) -> RegionDetector:
    """Return a new detector with a mask or keypoint head added or replaced, sharing all other parts with ``detector``."""
    return RegionDetector(
        categories=detector.categories,
        proposer=detector.proposer,
        region_features=detector.region_features,
        box_head=detector.box_head,
        mask_head=detector.mask_head if mask_head is None else mask_head,
        keypoint_head=detector.keypoint_head if keypoint_head is None else keypoint_head,
        postprocess=detector.postprocess,
        size_divisor=detector.size_divisor,
    )
