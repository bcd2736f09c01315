"""Panoptic FPN: Mask R-CNN and a semantic branch on one feature pyramid, whose outputs are merged.

Shape shorthand: B images, S classes of the semantic branch (each stuff category, and one for all things), H x W the batch.

Paper: "Panoptic Feature Pyramid Networks" (Kirillov, Girshick, He, Dollár, CVPR 2019, arXiv:1901.02446), section 3. Things
are predicted by Mask R-CNN; the semantic branch predicts the stuff categories, and one further class for all things, whose
pixels are void unless an instance covers them. Both are trained jointly: ``instance_weight`` times the losses of Mask R-CNN
plus ``semantic_weight`` times the per-pixel cross-entropy (the paper's lambda_i and lambda_s). The merge is that of
:mod:`otus.instance.panoptic`.

The objects, boxes and masks of the targets are the segments of the panoptic map. Departure: if the finest level of the
pyramid has stride 8, as over EfficientNet-Lite0, so has the semantic branch (the paper: 4).
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from otus.data.tensors import TensorSample
from otus.detection.region_based.region_detector import RegionDetector, shared_roi_features
from otus.detection.region_based.stages import RegionStages
from otus.errors import UsageError
from otus.instance.mask_rcnn import mask_rcnn_efficientnet_lite0_fpn, mask_rcnn_resnet50_fpn
from otus.instance.panoptic import PanopticOutputs
from otus.parts.backbones.freezing import Freezing
from otus.parts.batching import Batch, Target, make_target
from otus.parts.heads.semantic_fpn_head import SemanticFPNHead
from otus.parts.inference_mode import Stopwatch
from otus.parts.panoptic_targets import panoptic_ids, segments_as_objects
from otus.parts.postprocess import Postprocess
from otus.parts.semantic_losses import cross_entropy
from otus.parts.system import BaseSystem, Stages
from otus.parts.tasks import PANOPTIC, Task
from otus.parts.upsampling import interpolate
from otus.structures import IGNORE, Categories, SemanticScores

SCORE_THRESHOLD = 0.5
_ANY_THING = "any of the things"


class PanopticTarget(NamedTuple):
    """Training target of one image: its things, and the class of each pixel for the semantic branch."""

    things: Target
    semantic: Int[Tensor, "h w"]


@dataclass(kw_only=True)
class PanopticFPNStages(Stages):
    """The record of one forward pass: that of Mask R-CNN, the logits of the semantic branch and, in training, their target.

    ``labels`` are those that are reported, None for all.
    """

    regions: RegionStages
    semantic_logits: Float[Tensor, "b s h w"]
    semantic_target: Int[Tensor, "b h w"] | None = None
    labels: tuple[int, ...] | None = None


class PanopticFPN(BaseSystem[PanopticFPNStages, PanopticOutputs]):
    """A detector with masks for the things, and a semantic branch for the stuff, over the same feature maps.

    Parameters
    ----------
    categories
        Things and stuff, distinguished by ``is_thing``.
    detector
        Detector with a mask head, whose categories are the things, in their order (:func:`thing_categories`).
    semantic_head
        Computes one feature map from the finest levels of the pyramid, as many as it has.
    instance_weight, semantic_weight
        Weights of the losses.

    Notes
    -----
    ``losses`` are the detector's and ``semantic``. ``postprocess`` chooses the instances that are merged.
    """

    postprocess: Postprocess

    def __init__(
        self,
        *,
        categories: Categories,
        detector: RegionDetector,
        semantic_head: SemanticFPNHead,
        instance_weight: float = 1.0,
        semantic_weight: float = 0.5,
    ) -> None:
        super().__init__()
        things = thing_categories(categories)
        if detector.categories.names != things.names or detector.mask_head is None:
            without = " without a mask head" if detector.mask_head is None else ""
            raise UsageError(
                "Panoptic FPN: expected a detector with a mask head whose categories are its things, in their order: "
                f"{', '.join(things)}; got {', '.join(detector.categories)}{without}"
            )
        self.categories = categories
        self.detector, self.semantic_head = detector, semantic_head
        self.things = [label for label, is_thing in enumerate(categories.is_thing) if is_thing]
        self.stuff = [label for label, is_thing in enumerate(categories.is_thing) if not is_thing]
        self.semantic_logits = nn.Conv2d(semantic_head.out_channels, len(self.stuff) + 1, 1)
        self.instance_weight, self.semantic_weight = instance_weight, semantic_weight
        self.postprocess = replace(detector.postprocess, score_threshold=SCORE_THRESHOLD)
        self.size_divisor = detector.size_divisor

    @property
    def task(self) -> Task:
        """Panoptic segmentation."""
        return PANOPTIC

    @property
    def min_size(self) -> int:
        """Minimum height and width of a batch, in pixels: that of the detector."""
        return self.detector.min_size

    def target(self, sample: TensorSample) -> PanopticTarget:
        """Return the things of a sample, and the semantic class of each pixel: stuff, the last for things, void ignored."""
        ids = panoptic_ids(sample, category_count=len(self.categories)).to(self.device)
        objects = segments_as_objects(sample, ids, {label: i for i, label in enumerate(self.things)})
        semantic = torch.full_like(ids, IGNORE)
        for segment in sample["segments"]:
            is_thing = self.categories.is_thing[segment.label]
            semantic[ids == segment.id] = len(self.stuff) if is_thing else self.stuff.index(segment.label)
        return PanopticTarget(make_target(objects, category_count=len(self.things), device=self.device), semantic)

    def compute_stages(
        self,
        batch: Batch,
        targets: list[PanopticTarget] | None,
        *,
        postprocess: Postprocess | None,
        generator: torch.Generator | None,
        watch: Stopwatch,
    ) -> PanopticFPNStages:
        """Compute the forward pass of Mask R-CNN, and the semantic branch on its feature maps."""
        regions = self.detector.compute_stages(
            batch,
            None if targets is None else [target.things for target in targets],
            postprocess=None if postprocess is None else postprocess.for_labels(self.things),
            generator=generator,
            watch=watch,
        )
        with watch.time("semantic"):
            x = self.semantic_head(regions.features[: len(self.semantic_head.levels)])
            logits = interpolate(self.semantic_logits(x).float(), batch.padded_hw, mode="bilinear")
        record = PanopticFPNStages(
            batch=batch,
            features=regions.features,
            milliseconds=watch.milliseconds,
            candidates=regions.candidates,
            kept=regions.kept,
            detections=regions.detections,
            regions=regions,
            semantic_logits=logits,
            labels=None if postprocess is None else postprocess.labels,
        )
        if targets is not None:
            with watch.time("losses"):
                record.semantic_target = torch.full_like(logits[:, 0], IGNORE, dtype=torch.int64)
                for row, target in zip(record.semantic_target, targets, strict=True):
                    row[: target.semantic.shape[0], : target.semantic.shape[1]] = target.semantic
                record.losses = {name: self.instance_weight * loss for name, loss in regions.losses.items()}
                record.losses["semantic"] = self.semantic_weight * cross_entropy(logits, record.semantic_target)
        return record

    def results(self, record: PanopticFPNStages) -> list[PanopticOutputs]:
        """Return instances and semantic scores of each image, whose ``resized(size_hw)`` is the panoptic map."""
        classes = Categories((*(self.categories[label] for label in self.stuff), _ANY_THING))
        logits = record.semantic_logits.cpu().numpy()
        return [
            PanopticOutputs(
                instances,
                SemanticScores(image_logits[:, : instances.size_hw[0], : instances.size_hw[1]], classes),
                self.categories,
                record.labels,
            )
            for instances, image_logits in zip(self.detector.results(record.regions), logits, strict=True)
        ]

    def tensors(self, record: PanopticFPNStages) -> dict[str, Tensor]:
        """Return the detector's tensors and ``semantic_logits`` (B, S, H, W)."""
        return self.detector.tensors(record.regions) | {"semantic_logits": record.semantic_logits}


def thing_categories(categories: Categories) -> Categories:
    """Return the things among categories, in their order.

    Raises
    ------
    UsageError
        If no category is a thing.
    """
    things = tuple(name for name, is_thing in zip(categories, categories.is_thing, strict=True) if is_thing)
    if not things:
        raise UsageError(f"Panoptic FPN: expected a category that is a thing, got only stuff: {', '.join(categories)}")
    return Categories(things)


def panoptic_fpn(categories: Categories, detector: RegionDetector, *, semantic_weight: float = 0.5) -> PanopticFPN:
    """Build Panoptic FPN over a Mask R-CNN of the things among the categories, whose parts it shares.

    Parameters
    ----------
    categories, detector, semantic_weight
        See :class:`PanopticFPN`.

    Raises
    ------
    UsageError
        If the detector's regions share no feature pyramid.
    """
    features = shared_roi_features(detector)
    head = SemanticFPNHead(features.out_channels, features.backbone.strides)
    return PanopticFPN(categories=categories, detector=detector, semantic_head=head, semantic_weight=semantic_weight)


def panoptic_fpn_efficientnet_lite0(categories: Categories, *, freezing: Freezing = Freezing()) -> PanopticFPN:
    """Build a small Panoptic FPN for images of about 320 pixels, with the backbone and pyramid of the packaged Mask R-CNN.

    Parameters
    ----------
    categories
        Things and stuff.
    freezing
        Which weights of the backbone are frozen.
    """
    return panoptic_fpn(categories, mask_rcnn_efficientnet_lite0_fpn(thing_categories(categories), freezing=freezing))


def panoptic_fpn_resnet50(categories: Categories, *, freezing: Freezing = Freezing()) -> PanopticFPN:
    """Build the paper's model over ResNet-50; see :func:`panoptic_fpn_efficientnet_lite0` for the parameters."""
    return panoptic_fpn(categories, mask_rcnn_resnet50_fpn(thing_categories(categories), freezing=freezing))
