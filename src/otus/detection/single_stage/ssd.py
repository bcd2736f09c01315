"""SSD: class logits and box deltas for default boxes of several sizes and shapes, on feature maps of several scales.

Shape shorthand: B images, A default boxes of all feature maps, S class logits (background included).

Paper: "SSD: Single Shot MultiBox Detector" (Liu et al., ECCV 2016, arXiv:1512.02325): default boxes and matching
(section 2.2), hard negatives three to one, losses (equations 1 to 3). Reference: torchvision ``models.detection.ssd``
(BSD-3-Clause), whose layers' names and defaults are kept.

Departures: random crops are left to the transforms; a ground truth box that overlaps no default box is not matched;
images may have any size: where a given stride does not fit, it becomes the image's side divided by the feature map's.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision import models
from torchvision.ops import box_iou

from otus.detection.single_stage.dense_detector import DenseDetector
from otus.detection.single_stage.interfaces import BoxCoder, FeatureExtractor
from otus.errors import ShapeError
from otus.parts.boxes.coding import DeltaBoxCoder
from otus.parts.boxes.matching import NEGATIVE, IoUMatcher
from otus.parts.heads.class_indices import class_indices_of
from otus.parts.heads.dense_head import DenseAssignment, DenseOutputs, permute_and_flatten
from otus.parts.heads.dense_scores import SoftmaxScores
from otus.parts.postprocess import Postprocess
from otus.structures import Categories


class DefaultBoxGenerator:
    """Generate default boxes centred at the locations of each feature map (section 2.2, equation 4).

    Parameters
    ----------
    aspect_ratios
        For each feature map, the aspect ratios besides 1; each ratio r gives two boxes, r and 1 / r.
    scales
        For each feature map, ``s[k]``, the side of the smaller square as a fraction of the image's side, and a last
        value after those; the larger square has the side ``sqrt(s[k] * s[k + 1])``. Boxes are clamped to the size of
        the image.
    steps
        Stride of each feature map in pixels (default: the image's side divided by the feature map's).
    """

    def __init__(
        self,
        aspect_ratios: Sequence[Sequence[float]],
        scales: Sequence[float],
        *,
        steps: Sequence[int] | None = None,
    ) -> None:
        if len(scales) != len(aspect_ratios) + 1 or (steps is not None and len(steps) != len(aspect_ratios)):
            raise ValueError(
                f"default boxes: expected {len(aspect_ratios) + 1} scales and one step per feature map, got {scales} and "
                f"{steps}"
            )
        self.steps = steps
        self.sizes_wh = []
        for ratios, scale, next_scale in zip(aspect_ratios, scales, scales[1:], strict=False):
            larger = math.sqrt(scale * next_scale)
            sizes = [(scale, scale), (larger, larger)]
            for root in map(math.sqrt, ratios):
                sizes += [(scale * root, scale / root), (scale / root, scale * root)]
            self.sizes_wh.append(torch.tensor(sizes, dtype=torch.float32).clamp(max=1))
        self.anchors_per_location = [len(sizes_wh) for sizes_wh in self.sizes_wh]

    def __call__(
        self, grids_hw: Sequence[tuple[int, int]], padded_hw: tuple[int, int], device: torch.device | str = "cpu"
    ) -> list[Float[Tensor, "_ 4"]]:
        """Return the default boxes of each feature map (xyxy, in pixels), ordered by row, column and shape."""
        if len(grids_hw) != len(self.sizes_wh):
            raise ShapeError(f"default boxes: expected {len(self.sizes_wh)} feature maps, got {len(grids_hw)}")
        side = torch.tensor([padded_hw[1], padded_hw[0]], dtype=torch.float32)
        boxes_per_map = []
        for i, (grid, sizes) in enumerate(zip(grids_hw, self.sizes_wh, strict=True)):
            y, x = (self._centres(i, count, length) for count, length in zip(grid, padded_hw, strict=True))
            centres = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1).reshape(-1, 1, 2)
            boxes = torch.cat([(centres - 0.5 * sizes) * side, (centres + 0.5 * sizes) * side], dim=-1)
            boxes_per_map.append(boxes.reshape(-1, 4).to(device))
        return boxes_per_map

    def _centres(self, index: int, count: int, length: int) -> Float[Tensor, "count"]:
        """Return the centres of the locations along an axis, as fractions of the image's side."""
        steps = length / self.steps[index] if self.steps is not None else count
        return (torch.arange(count) + 0.5) / (steps if math.ceil(steps) == count else count)


@dataclass(frozen=True)
class DefaultBoxMatcher:
    """Match default boxes to objects by an IoU threshold, and each object to its default box of highest IoU."""

    iou: float = 0.5

    def __call__(
        self,
        anchors: Float[Tensor, "a 4"],
        boxes: Float[Tensor, "n 4"],
        *,
        crowds: Float[Tensor, "c 4"] | None = None,
    ) -> Int[Tensor, "a"]:
        """Return the index of the object of each default box, or NEGATIVE, or NEUTRAL within ``crowds``."""
        matches = IoUMatcher(positive_iou=self.iou, negative_iou=self.iou)(anchors, boxes, crowds=crowds)
        if len(boxes):
            best, index = box_iou(boxes, anchors).max(dim=1)
            matches[index[best > 0]] = torch.where(best > 0)[0]
        return matches


@dataclass(frozen=True)
class HardNegativeLoss:
    """Compute ``class``, cross-entropy of positives and hard negatives, and ``box``, smooth L1 of the box deltas.

    Hard negatives are the negatives of highest loss, at most ``negatives_per_positive`` for each positive of the image.
    Both losses are sums, divided by the number of positives of the batch. Images without objects add none.
    """

    negatives_per_positive: float = 3.0

    def __call__(
        self,
        outputs: DenseOutputs,
        anchors: Float[Tensor, "a 4"],
        assignments: Sequence[DenseAssignment],
        box_coder: BoxCoder,
        *,
        generator: torch.Generator | None = None,
    ) -> dict[str, Tensor]:
        """Return the losses of the batch."""
        class_losses, box_losses = [], []
        for logits, box_deltas, assignment in zip(outputs.logits[0], outputs.box_deltas[0], assignments, strict=True):
            class_loss = F.cross_entropy(logits, assignment.class_indices.clamp(min=0), reduction="none")
            negative = torch.where(assignment.class_indices == NEGATIVE)[0]
            count = min(len(negative), int(self.negatives_per_positive * len(assignment.positives)))
            class_losses += [class_loss[assignment.positives].sum(), class_loss[negative].topk(count).values.sum()]
            target_deltas = box_coder.encode(assignment.boxes, anchors[assignment.positives])
            box_losses.append(F.smooth_l1_loss(box_deltas[assignment.positives], target_deltas, reduction="sum"))
        count = max(1, sum(len(assignment.positives) for assignment in assignments))
        return {"class": torch.stack(class_losses).sum() / count, "box": torch.stack(box_losses).sum() / count}


class SSDHead(nn.Module):
    """Predict class logits and box deltas, with separate convolutions for each feature map.

    Parameters
    ----------
    channels, anchors_per_location
        For each feature map, its number of channels and of default boxes per location.
    num_logits
        Class logits per default box, background included.
    """

    def __init__(self, channels: Sequence[int], anchors_per_location: Sequence[int], *, num_logits: int) -> None:
        super().__init__()
        self.num_logits = num_logits
        pairs = list(zip(channels, anchors_per_location, strict=True))
        self.classification = nn.ModuleList(self.predictor(inputs, num_logits * count) for inputs, count in pairs)
        self.regression = nn.ModuleList(self.predictor(inputs, 4 * count) for inputs, count in pairs)
        self.reset_parameters()

    def predictor(self, in_channels: int, out_channels: int) -> nn.Module:
        """Return the layer that predicts from one feature map."""
        return nn.Conv2d(in_channels, out_channels, 3, padding=1)

    def reset_parameters(self) -> None:
        """Initialise weights by Xavier, biases by 0."""
        _initialise(self)

    def forward(self, maps: list[Tensor]) -> DenseOutputs:
        """Return class logits and box deltas of the default boxes of each feature map."""
        return DenseOutputs(
            [
                permute_and_flatten(layer(x), self.num_logits)
                for layer, x in zip(self.classification, maps, strict=True)
            ],
            [permute_and_flatten(layer(x), 4) for layer, x in zip(self.regression, maps, strict=True)],
        )


class VGGExtractor(nn.Module):
    """Compute conv4_3 and fc7 of VGG-16, fc6 and fc7 being convolutions, and four smaller feature maps (figure 2)."""

    channels = (512, 1024, 512, 256, 256, 256)
    min_size = 268  # smaller images leave no input for the last 3x3 convolutions

    def __init__(self) -> None:
        super().__init__()
        layers = list(models.vgg16(weights=None).features)
        pools = [i for i, layer in enumerate(layers) if isinstance(layer, nn.MaxPool2d)]
        layers[pools[2]].ceil_mode = True  # a feature map of 38 x 38 for 300 pixels
        self.backbone = nn.Sequential(*layers[: pools[3]])
        self.scale_weight = nn.Parameter(torch.full((512,), 20.0))
        fully_connected = nn.Sequential(
            nn.MaxPool2d(3, stride=1, padding=1),
            nn.Conv2d(512, 1024, 3, padding=6, dilation=6),
            nn.ReLU(inplace=True),
            nn.Conv2d(1024, 1024, 1),
            nn.ReLU(inplace=True),
        )
        self.extra = nn.ModuleList(
            [
                nn.Sequential(*layers[pools[3] : -1], fully_connected),
                _smaller(1024, 256, 512, stride=2),
                _smaller(512, 128, 256, stride=2),
                _smaller(256, 128, 256),
                _smaller(256, 128, 256),
            ]
        )
        _initialise(fully_connected)
        _initialise(self.extra[1:])

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> list[Tensor]:
        """Return six feature maps, the first L2-normalized per location, with a learned scale (section 3.1)."""
        x = self.backbone(images)
        maps = [self.scale_weight[:, None, None] * F.normalize(x)]
        for block in self.extra:
            x = block(x)
            maps.append(x)
        return maps


def ssd(
    features: FeatureExtractor,
    channels: Sequence[int],
    anchors: DefaultBoxGenerator,
    categories: Categories,
    *,
    class_indices: Sequence[int] | None = None,
    head: Callable[..., SSDHead] = SSDHead,
    top_k_per_class: int = 400,
    postprocess: Postprocess = Postprocess(score_threshold=0.01, nms_iou=0.45, max_detections=200),
) -> DenseDetector:
    """Build SSD over any feature maps.

    Parameters
    ----------
    features, channels
        The feature extractor, and the number of channels of each of its feature maps.
    anchors
        Generator of the default boxes of each map.
    class_indices
        Index of each label among the class logits, 0 being background (default: 1, 2, 3 …).
    head
        Builds the head, with the arguments of :class:`SSDHead`.
    top_k_per_class
        Maximum number of candidates of each class before NMS.
    postprocess
        Score and NMS thresholds of the detections.
    """
    class_indices = class_indices_of(categories, class_indices, background=True)
    return DenseDetector(
        categories=categories,
        features=features,
        head=head(channels, anchors.anchors_per_location, num_logits=max(class_indices) + 1),
        anchors=anchors,
        assigner=DefaultBoxMatcher(),
        box_coder=DeltaBoxCoder((10.0, 10.0, 5.0, 5.0)),
        criterion=HardNegativeLoss(),
        scores=SoftmaxScores(top_k_per_class),
        class_indices=class_indices,
        postprocess=postprocess,
        size_divisor=1,
    )


def ssd300_vgg16(categories: Categories, *, class_indices: Sequence[int] | None = None) -> DenseDetector:
    """Build the paper's model over VGG-16, for images of 300x300; see :func:`ssd` for ``class_indices``."""
    anchors = DefaultBoxGenerator(
        [[2], [2, 3], [2, 3], [2, 3], [2], [2]],
        [0.07, 0.15, 0.33, 0.51, 0.69, 0.87, 1.05],
        steps=[8, 16, 32, 64, 100, 300],
    )
    maps = VGGExtractor()
    return ssd(maps, maps.channels, anchors, categories, class_indices=class_indices)


def _smaller(inputs: int, hidden: int, outputs: int, *, stride: int = 1) -> nn.Sequential:
    """Build a 1x1 and a 3x3 convolution, the latter padded with stride 2, or unpadded with stride 1."""
    return nn.Sequential(
        nn.Conv2d(inputs, hidden, 1),
        nn.ReLU(inplace=True),
        nn.Conv2d(hidden, outputs, 3, stride=stride, padding=stride - 1),
        nn.ReLU(inplace=True),
    )


def _initialise(module: nn.Module) -> None:
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
