"""The frame of every detector that looks at regions: where to look, what is there, what to say.

Shape shorthand: B images, R regions of all images, N objects, S classes of the head, K keypoints.

R-CNN, SPP-net, Fast R-CNN, Faster R-CNN, Mask R-CNN and Keypoint R-CNN fill it with different parts (proposer, region
features, heads); the order of events is the same. One pass leaves a record,
:class:`~otus.detection.region_based.stages.RegionStages`, and losses, predictions, explanations and timings are all
read from it.
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
"""Regions of a batch, of which no exported program takes more."""


class Proposer(Protocol):
    """Where to look. Losses are empty where nothing is learned, and where ``targets`` are None.

    ``learns`` says whether it is a network; ``original_image_search`` where it looks at proposals from outside.
    """

    @property
    def learns(self) -> bool: ...

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
    """A network that proposes; ``rois`` are the proposals of a whole batch, each after its image's index."""

    def rois(
        self, maps: list[Tensor], padded_hw: tuple[int, int], sizes_hw: Int[Tensor, "b 2"]
    ) -> Float[Tensor, "r 5"]: ...


class RegionFeatures(Protocol):
    """What each region looks like; ``prepare`` makes the maps that all regions share, if any.

    Smaller images are padded to ``min_size``.
    """

    @property
    def min_size(self) -> int: ...

    def prepare(self, images: Float[Tensor, "b 3 h w"]) -> list[Tensor]: ...

    def extract(self, maps: list[Tensor], batch: Batch, boxes: Sequence[Float[Tensor, "_ 4"]]) -> Tensor: ...


class MapHead(Protocol):
    """A further answer for each object, read from the shared maps: its mask, its keypoints."""

    def losses(
        self, maps: list[Tensor], assignments: Sequence[Assignment], targets: Sequence[Target]
    ) -> dict[str, Tensor]: ...

    def predict(self, maps: list[Tensor], detections: Sequence[Detections]) -> list[Tensor]: ...

    def answer(self, maps: list[Tensor], rois: Float[Tensor, "n 5"], labels: Int[Tensor, "n"]) -> Tensor: ...


class RegionDetector(BaseSystem[RegionStages, Instances]):
    """A detector composed of a proposer, region features and heads.

    Parameters
    ----------
    categories
        What the labels mean.
    proposer, region_features
        Where to look, and what is there.
    box_head
        What to say of each region.
    mask_head, keypoint_head
        What else to say of each object.
    postprocess
        Which boxes are reported.
    size_divisor
        Batches are padded to multiples of this, the coarsest stride of a usual backbone.

    Notes
    -----
    ``losses`` are those of the proposer and of each head. An image without objects teaches background. Crowds are no
    objects, and regions in them are not learned from. A sample without masks or keypoints adds none of that loss.
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
        """What a person should know before learning from a data set: masks and keypoints that nothing teaches."""
        objects = dataset.objects
        if objects is None:
            return []
        lines = []
        if self.keypoint_head is not None and not objects.has_keypoints.any():
            lines.append("warning: no object has keypoints: the keypoint head learns nothing, leave it out")
        if self.mask_head is not None:
            known = objects.has_mask
            whole = objects.amodal_segmentations
            known = known if whole is None else known | (whole.kinds > 0)
            never = np.setdiff1d(objects.labels[~objects.is_crowd], objects.labels[known])
            names = ", ".join(dataset.categories[label] for label in never)
            if not known.any():
                lines.append("warning: no object has a mask: the mask head learns nothing, leave it out")
            elif names:
                lines.append(f"warning: no mask to learn from of {names}: what the model draws for them means nothing")
        return lines

    @property
    def task(self) -> Task:
        """What the finest head predicts."""
        if self.keypoint_head is not None:
            return KEYPOINTS
        return DETECTION if self.mask_head is None else INSTANCE

    @property
    def original_image_search(self) -> OriginalImageSearch | None:
        """As of the proposer."""
        return self.proposer.original_image_search

    @property
    def learns_proposals(self) -> bool:
        """As of the proposer."""
        return self.proposer.learns

    @property
    def heavy_parts(self) -> tuple[str, ...]:
        """Shared maps, region proposal network, and the heads' networks; nothing of a detector that looks at crops."""
        if not self.proposer.learns:
            return ()
        with_masks = () if self.mask_head is None else ("mask_head",)
        return ("region_features", "proposer", "box_head.network", *with_masks)

    @property
    def min_size(self) -> int:
        """As of the region features."""
        return self.region_features.min_size

    def results(self, record: RegionStages) -> list[Instances]:
        """Return the detections of each image, masks at low resolution."""
        return to_instances(record, self.categories)

    def tensors(self, record: RegionStages) -> dict[str, Tensor]:
        """Return the detections as of :func:`~otus.parts.detections.as_tensors`, with ``masks`` and ``keypoints`` if any."""
        further = {"masks": record.masks, "keypoints": record.keypoints}
        return super().tensors(record) | {name: torch.cat(x) for name, x in further.items() if x is not None}

    def forward(self, images: Float[Tensor, "b 3 h w"], sizes_hw: Int[Tensor, "b 2"]) -> dict[str, Tensor]:
        """Return as :meth:`tensors` the detections of a batch."""
        if not self.proposer.learns:
            return super().forward(images, sizes_hw)
        padded_hw = (images.shape[-2], images.shape[-1])
        features = self.region_features.prepare(images)
        rois = cast(LearnedProposer, self.proposer).rois(features, padded_hw, sizes_hw)
        torch._check(rois.shape[0] <= MAX_REGIONS)  # so that the exporter can count regions times classes in 64 bits
        logits, box_deltas = self.box_head(shared_roi_features(self).roi_pooler.pool(features, rois))
        image_of_region = rois[:, 0].long()
        candidates = self.box_head.candidates(
            logits.softmax(dim=1), box_deltas, rois[:, 1:], sizes_hw[image_of_region], postprocess=self.postprocess
        )
        image_index = image_of_region[candidates.origins]
        found = postprocess_batch(
            candidates, image_index, self.postprocess, num_images=images.shape[0], padded_hw=padded_hw
        )
        rois = torch.cat([found["image_index"][:, None].to(rois), found["boxes"]], dim=1)
        for name, head in (("masks", self.mask_head), ("keypoints", self.keypoint_head)):
            if head is not None:
                found[name] = head.answer(features, rois, found["labels"])
        return found

    def compute_stages(
        self,
        batch: Batch,
        targets: list[Target] | None,
        *,
        postprocess: Postprocess | None,
        generator: torch.Generator | None,
        watch: Stopwatch,
    ) -> RegionStages:
        """Compute feature maps, proposals, and what the heads say of the regions."""
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
            self._learn(record, assignments, targets, watch)
        if postprocess is not None:
            self._postprocess(record, postprocess, watch)
        return record

    def _learn(
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
    """Return the features that a further head can read; UsageError where regions are crops that share nothing."""
    if not isinstance(detector.region_features, RoIFeatures):
        raise UsageError(f"a mask or keypoint head needs shared maps, not {type(detector.region_features).__name__}")
    return detector.region_features


def with_heads(
    detector: RegionDetector, *, mask_head: MapHead | None = None, keypoint_head: MapHead | None = None
) -> RegionDetector:
    """Return a detector of the same parts with a further head; the one given is not changed, but shares its weights."""
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
