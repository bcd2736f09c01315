"""Keypoint R-CNN: Faster R-CNN with an additional head, which predicts the keypoints of each object.

Shape shorthand: R regions of all images, N objects of an image, K keypoints, M = 56 the side of a heatmap.

Paper: "Mask R-CNN" (arXiv:1703.06870), section 5: a heatmap for each keypoint, whose target is a single pixel, trained
by cross-entropy over all pixels of the heatmap.
Reference: torchvision ``models.detection.keypoint_rcnn`` (BSD-3-Clause), whose layer names are kept.

As in the reference, the score of a keypoint is the maximum of its resized heatmap, a logit and not a probability. All
predicted keypoints have the visibility 2 (visible).
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from otus.detection.region_based.faster_rcnn import faster_rcnn_resnet50_fpn
from otus.detection.region_based.region_detector import RegionDetector, shared_roi_features, with_heads
from otus.errors import ShapeError
from otus.parts.backbones.freezing import Freezing
from otus.parts.batching import Target
from otus.parts.detections import Detections
from otus.parts.heads.box_head import Assignment
from otus.parts.losses import zero_loss
from otus.parts.regions.roi_features import RoIPooler
from otus.structures import Categories

VISIBLE = 2


class KeypointHead(nn.Module):
    """Predict a heatmap for each keypoint from RoI features of 14x14: eight convolutions, then upsampling by 4.

    Parameters
    ----------
    in_channels
        Channels of the shared feature maps.
    num_keypoints
        K, number of keypoints of an object.
    roi_pooler
        Pools the features of each region.
    hidden_channels, num_convs
        Channels and number of the convolutions.
    """

    def __init__(
        self,
        in_channels: int,
        num_keypoints: int,
        roi_pooler: RoIPooler,
        *,
        hidden_channels: int = 512,
        num_convs: int = 8,
    ) -> None:
        super().__init__()
        self.roi_pooler = roi_pooler
        layers: list[nn.Module] = []
        for i in range(num_convs):
            layers += [
                nn.Conv2d(in_channels if i == 0 else hidden_channels, hidden_channels, 3, padding=1),
                nn.ReLU(inplace=True),
            ]
        self.convs = nn.Sequential(*layers)
        self.kps_score_lowres = nn.ConvTranspose2d(hidden_channels, num_keypoints, 4, stride=2, padding=1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, roi_features: Float[Tensor, "r c _ _"]) -> Float[Tensor, "r k m m"]:
        """Return the heatmap logits of each keypoint; float32."""
        maps = self.kps_score_lowres(self.convs(roi_features)).float()
        return F.interpolate(maps, scale_factor=2.0, mode="bilinear", align_corners=False)

    def losses(
        self, maps: list[Tensor], assignments: Sequence[Assignment], targets: Sequence[Target]
    ) -> dict[str, Float[Tensor, ""]]:
        """Return ``keypoints``: cross-entropy over the heatmap of each labelled keypoint inside its positive region."""
        boxes, target_pixels, valid = [], [], []
        for assignment, target in zip(assignments, targets, strict=True):
            regions, matches = assignment.positives()
            boxes.append(regions if target.keypoints is not None else regions[:0])
            if target.keypoints is not None:
                self._check(target.keypoints)
                pixel, inside = keypoints_to_heatmap(
                    target.keypoints[matches], regions, heatmap_size=4 * self.roi_pooler.output_size
                )
                target_pixels.append(pixel.flatten())
                valid.append(inside.flatten())
        if not valid or not torch.cat(valid).any():
            return {"keypoints": zero_loss(self)}
        logits = self(self.roi_pooler(maps, boxes)).flatten(0, 1).flatten(1)
        chosen = torch.cat(valid)
        return {"keypoints": F.cross_entropy(logits[chosen], torch.cat(target_pixels)[chosen])}

    def predict(self, maps: list[Tensor], detections: Sequence[Detections]) -> list[Float[Tensor, "_ k 4"]]:
        """Return x, y (in pixels), visibility and score of the keypoints of each detection."""
        logits = self(self.roi_pooler(maps, [x.boxes for x in detections]))
        heatmaps = logits.split_with_sizes([len(x) for x in detections])
        return [heatmaps_to_keypoints(x, of_image.boxes) for x, of_image in zip(heatmaps, detections, strict=True)]

    def predict_rois(
        self, maps: list[Tensor], rois: Float[Tensor, "n 5"], labels: Int[Tensor, "n"]
    ) -> Float[Tensor, "n k 4"]:
        """Return the same for the detections of a batch, whose boxes are preceded by the index of their image."""
        return heatmaps_to_keypoints(self(self.roi_pooler.pool(maps, rois)), rois[:, 1:])

    def _check(self, keypoints: Tensor) -> None:
        expected = self.kps_score_lowres.out_channels
        if keypoints.shape[1] != expected:
            raise ShapeError(
                f"keypoints: this model expects {expected} per object, the sample has {keypoints.shape[1]}"
            )


def keypoints_to_heatmap(
    keypoints: Float[Tensor, "r k 3"], regions: Float[Tensor, "r 4"], *, heatmap_size: int
) -> tuple[Int[Tensor, "r k"], Bool[Tensor, "r k"]]:
    """Convert keypoints to targets: their indices in the flattened heatmap of each region, and which of them are valid.

    The index is ``row * heatmap_size + column``. A keypoint is valid if it is labelled and inside the region.
    """
    corner, size = regions[:, None, :2], (regions[:, 2:] - regions[:, :2])[:, None]
    points = keypoints[..., :2]
    pixel = ((points - corner) * (heatmap_size / size)).floor().long()
    pixel = torch.where(points == regions[:, None, 2:], heatmap_size - 1, pixel)  # on the right or bottom border
    inside = ((pixel >= 0) & (pixel < heatmap_size)).all(dim=-1) & (keypoints[..., 2] > 0)
    return torch.where(inside, pixel[..., 1] * heatmap_size + pixel[..., 0], 0), inside


def heatmaps_to_keypoints(logits: Float[Tensor, "n k m m"], boxes: Float[Tensor, "n 4"]) -> Float[Tensor, "n k 4"]:
    """Return x, y, visibility and score of the maximum of each heatmap, resized to its box by bicubic interpolation."""
    keypoints = logits.new_zeros((*logits.shape[:2], 4))
    keypoints[..., 2] = VISIBLE
    sizes = (boxes[:, 2:] - boxes[:, :2]).clamp(min=1)
    for i, (width, height) in enumerate(sizes.ceil().long().tolist()):
        resized = F.interpolate(logits[i][:, None], (height, width), mode="bicubic", align_corners=False).flatten(1)
        score, index = resized.max(dim=1)
        pixel = torch.stack([index % width, index // width], dim=1)
        scale = sizes[i] / sizes.new_tensor([width, height])
        keypoints[i, :, :2] = (pixel + 0.5) * scale + boxes[i, :2]
        keypoints[i, :, 3] = score
    return keypoints


def keypoint_rcnn(detector: RegionDetector, *, hidden_channels: int = 512, num_convs: int = 8) -> RegionDetector:
    """Return a detector with a keypoint head that shares all parts of ``detector``, which is not changed.

    Parameters
    ----------
    detector
        A detector whose regions share feature maps, such as Faster R-CNN.
    hidden_channels, num_convs
        See :class:`KeypointHead`.

    Raises
    ------
    ShapeError
        If none of the detector's categories has keypoints, or their numbers of keypoints differ.
    UsageError
        If the detector's regions are crops, which share no feature maps.
    """
    counts = {name: len(points) for name, points in detector.categories.keypoints}
    if not counts:
        raise ShapeError(
            f"keypoints: expected a category with keypoints, got none among {', '.join(detector.categories)}"
        )
    if len(set(counts.values())) > 1:
        counts_text = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise ShapeError(
            f"keypoints: expected the same number for all categories that have keypoints, got {counts_text}"
        )
    features = shared_roi_features(detector)
    roi_pooler = RoIPooler(2 * features.roi_pooler.output_size, strides=features.roi_pooler.strides)
    num_keypoints = next(iter(counts.values()))
    keypoint_head = KeypointHead(
        features.out_channels, num_keypoints, roi_pooler, hidden_channels=hidden_channels, num_convs=num_convs
    )
    return with_heads(detector, keypoint_head=keypoint_head)


def keypoint_rcnn_resnet50_fpn(
    categories: Categories,
    *,
    class_indices: Sequence[int] | None = None,
    freezing: Freezing = Freezing(),
) -> RegionDetector:
    """Build Keypoint R-CNN over ResNet-50 with FPN.

    See :func:`~otus.detection.region_based.faster_rcnn.faster_rcnn_resnet50_fpn` for the parameters.
    """
    return keypoint_rcnn(
        faster_rcnn_resnet50_fpn(
            categories,
            class_indices=class_indices,
            freezing=freezing,
        )
    )
