"""Mask R-CNN: Faster R-CNN with an additional head, which predicts the mask of each object.

Shape shorthand: R regions of all images, N objects of an image, S class indices, M = 28 the side of a mask.

Paper: "Mask R-CNN" (He, Gkioxari, Dollár, Girshick, ICCV 2017, arXiv:1703.06870), section 3: a mask for each class,
with a sigmoid per pixel, so that classes do not compete; trained on the positives only.
Reference: torchvision ``models.detection.mask_rcnn`` (BSD-3-Clause), whose layer names are kept.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import Conv2dNormActivation, roi_align

from otus.detection.region_based.faster_rcnn import (
    faster_rcnn_efficientnet_lite0_fpn,
    faster_rcnn_resnet50_fpn,
    faster_rcnn_resnet50_fpn_v2,
)
from otus.detection.region_based.region_detector import RegionDetector, shared_roi_features, with_heads
from otus.parts.backbones.freezing import Freezing
from otus.parts.batching import Target
from otus.parts.detections import Detections
from otus.parts.heads.box_head import Assignment
from otus.parts.heads.class_indices import class_index_tables
from otus.parts.losses import zero_loss
from otus.parts.regions.roi_features import RoIPooler, boxes_to_rois
from otus.structures import Categories


class MaskHead(nn.Module):
    """Predict a mask for each class from RoI features of 14x14: four convolutions, then a 2x transposed convolution.

    Parameters
    ----------
    in_channels
        Channels of the shared feature maps.
    class_indices
        Class index of each label, as in the box head; the mask of index 0, background, is never used.
    roi_pooler
        Pools the features of each region.
    hidden_channels
        Channels of the convolutions.
    norm_layer
        Normalisation after each convolution (default: none, as in the paper).
    max_masks_per_image
        Maximum number of positives per image that the loss is computed on, spaced evenly among them (default: all). For
        a small model, this head takes most of a training step, and overlapping positives are redundant.
    """

    index_of_label: Tensor

    def __init__(
        self,
        in_channels: int,
        class_indices: Sequence[int],
        roi_pooler: RoIPooler,
        *,
        hidden_channels: int = 256,
        norm_layer: type[nn.Module] | None = None,
        max_masks_per_image: int | None = None,
    ) -> None:
        super().__init__()
        label_of_index, index_of_label = class_index_tables(class_indices, background=True)
        self.register_buffer("index_of_label", index_of_label, persistent=False)
        self.roi_pooler = roi_pooler
        self.max_masks_per_image = max_masks_per_image
        inputs = (in_channels, hidden_channels, hidden_channels, hidden_channels)
        self.convs = nn.Sequential(
            *(Conv2dNormActivation(c, hidden_channels, 3, norm_layer=norm_layer) for c in inputs)
        )
        self.conv5_mask = nn.ConvTranspose2d(hidden_channels, hidden_channels, 2, stride=2)
        self.mask_fcn_logits = nn.Conv2d(hidden_channels, len(label_of_index), 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, roi_features: Float[Tensor, "r c _ _"]) -> Float[Tensor, "r s m m"]:
        """Return the mask logits of each class; float32."""
        return self.mask_fcn_logits(F.relu(self.conv5_mask(self.convs(roi_features)))).float()

    def losses(
        self, maps: list[Tensor], assignments: Sequence[Assignment], targets: Sequence[Target]
    ) -> dict[str, Float[Tensor, ""]]:
        """Return ``mask``: binary cross-entropy of each positive's mask of its own class.

        Positives whose object has no ground truth mask are left out.
        """
        boxes, class_indices, target_masks = [], [], []
        for assignment, target in zip(assignments, targets, strict=True):
            regions, matches = assignment.positives()
            # An image may have masks of no object or of some objects only: a missing mask is given as an empty mask.
            with_mask = matches[:0]
            if target.masks is not None:
                with_mask = self._subsample(torch.where(target.masks.flatten(start_dim=1).any(dim=1)[matches])[0])
            boxes.append(regions[with_mask])
            if target.masks is not None and len(with_mask):
                class_indices.append(assignment.class_indices[assignment.matches >= 0][with_mask])
                target_masks.append(
                    project_masks_on_boxes(
                        target.masks,
                        matches[with_mask],
                        regions[with_mask],
                        output_size=2 * self.roi_pooler.output_size,
                    )
                )
        if not target_masks:
            return {"mask": zero_loss(self)}
        logits = self(self.roi_pooler(maps, boxes))
        class_index = torch.cat(class_indices)
        class_logits = logits[torch.arange(len(class_index), device=class_index.device), class_index]
        return {"mask": F.binary_cross_entropy_with_logits(class_logits, torch.cat(target_masks))}

    def _subsample(self, positives: Int[Tensor, "p"]) -> Int[Tensor, "q"]:
        """Sample positives evenly; they are ordered by the score of their proposals, ground truth boxes last."""
        limit = self.max_masks_per_image
        if limit is None or len(positives) <= limit:
            return positives
        return positives[torch.linspace(0, len(positives) - 1, limit, device=positives.device).round().long()]

    def predict(self, maps: list[Tensor], detections: Sequence[Detections]) -> list[Float[Tensor, "_ m m"]]:
        """Return the mask probabilities of each detection (M x M, covering its box)."""
        rois = boxes_to_rois([x.boxes for x in detections])
        masks = self.predict_rois(maps, rois, torch.cat([x.labels for x in detections]))
        return list(masks.split_with_sizes([len(x) for x in detections]))

    def predict_rois(
        self, maps: list[Tensor], rois: Float[Tensor, "n 5"], labels: Int[Tensor, "n"]
    ) -> Float[Tensor, "n m m"]:
        """Return the mask probabilities of the detections of a batch, whose boxes are preceded by their image's index."""
        logits = self(self.roi_pooler.pool(maps, rois))
        return logits[torch.arange(labels.shape[0], device=labels.device), self.index_of_label[labels]].sigmoid()


def project_masks_on_boxes(
    masks: Tensor, matches: Tensor, regions: Float[Tensor, "r 4"], *, output_size: int
) -> Float[Tensor, "r side side"]:
    """Return the target mask of each region: the mask of its object, cropped and resized to the region, in [0, 1]."""
    objects, index = torch.unique(matches, return_inverse=True)  # converts only the masks that are needed to float
    rois = torch.cat([index[:, None].to(regions), regions], dim=1)
    return roi_align(masks[objects, None].to(regions), rois, output_size)[:, 0]


def mask_rcnn(
    detector: RegionDetector,
    *,
    hidden_channels: int = 256,
    norm_layer: type[nn.Module] | None = None,
    max_masks_per_image: int | None = None,
) -> RegionDetector:
    """Return a detector with a mask head that shares all parts of ``detector``, which is not changed.

    Parameters
    ----------
    detector
        A detector whose regions share feature maps, such as Faster R-CNN.
    hidden_channels, norm_layer, max_masks_per_image
        See :class:`MaskHead`.

    Raises
    ------
    UsageError
        If the detector's regions are crops, which share no feature maps.
    """
    features = shared_roi_features(detector)
    roi_pooler = RoIPooler(2 * features.roi_pooler.output_size, strides=features.roi_pooler.strides)
    mask_head = MaskHead(
        features.out_channels,
        detector.box_head.index_of_label.tolist(),
        roi_pooler,
        hidden_channels=hidden_channels,
        norm_layer=norm_layer,
        max_masks_per_image=max_masks_per_image,
    )
    return with_heads(detector, mask_head=mask_head)


def mask_rcnn_resnet50_fpn(
    categories: Categories,
    *,
    class_indices: Sequence[int] | None = None,
    freezing: Freezing = Freezing(),
) -> RegionDetector:
    """Build Mask R-CNN over ResNet-50 with FPN.

    See :func:`~otus.detection.region_based.faster_rcnn.faster_rcnn_resnet50_fpn` for the parameters.
    """
    return mask_rcnn(
        faster_rcnn_resnet50_fpn(
            categories,
            class_indices=class_indices,
            freezing=freezing,
        )
    )


def mask_rcnn_resnet50_fpn_v2(
    categories: Categories, *, class_indices: Sequence[int] | None = None, freezing: Freezing = Freezing(norms=False)
) -> RegionDetector:
    """Build Mask R-CNN, version 2: with batch normalisation in the mask head too.

    See :func:`~otus.detection.region_based.faster_rcnn.faster_rcnn_resnet50_fpn_v2` for the parameters.
    """
    detector = faster_rcnn_resnet50_fpn_v2(categories, class_indices=class_indices, freezing=freezing)
    return mask_rcnn(detector, norm_layer=nn.BatchNorm2d)


def mask_rcnn_efficientnet_lite0_fpn(
    categories: Categories,
    *,
    class_indices: Sequence[int] | None = None,
    freezing: Freezing = Freezing(),
) -> RegionDetector:
    """Build a small Mask R-CNN over EfficientNet-Lite0 with FPN.

    See :func:`~otus.detection.region_based.faster_rcnn.faster_rcnn_efficientnet_lite0_fpn` for the parameters.
    """
    detector = faster_rcnn_efficientnet_lite0_fpn(categories, class_indices=class_indices, freezing=freezing)
    # As many masks per image as the paper has positives among its 64 sampled regions.
    return mask_rcnn(detector, hidden_channels=shared_roi_features(detector).out_channels, max_masks_per_image=16)
