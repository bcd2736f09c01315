"""SSD: default boxes of several sizes and shapes on maps of several scales, each named and moved at once.

Shape shorthand: B images, A default boxes of all maps, S class slots (background among them).

Paper: "SSD: Single Shot MultiBox Detector" (Liu et al., ECCV 2016, arXiv:1512.02325): default boxes and matching (section
2.2), hard negatives three to one, losses (equations 1 to 3).
Reference: torchvision ``models.detection.ssd`` (BSD-3-Clause), whose layers' names and defaults are kept.

Departures: images are not cropped at random for training here (a transform's matter); a box that overlaps no default box
at all is not forced on one; images of any size, where a step of 8 pixels becomes the image's side by the map's when
they do not agree.
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
    """Default boxes around the steps of each map, their sizes shares of the image's sides (section 2.2, equation 4).

    Parameters
    ----------
    aspect_ratios
        For each map, the shapes besides squares; each lying and standing.
    scales
        For each map and one beyond it, the sides of its smaller square; the larger one's is the root of the product with
        the next. They may not be larger than the image.
    steps
        Pixels between the steps of each map; the image's side by the map's without it.
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
                f"default boxes: expected {len(aspect_ratios) + 1} scales and a step a map, got {scales}, {steps}"
            )
        self.steps = steps
        self.sizes_wh = []
        for ratios, scale, following in zip(aspect_ratios, scales, scales[1:], strict=False):
            larger = math.sqrt(scale * following)
            shapes = [(scale, scale), (larger, larger)]
            for root in map(math.sqrt, ratios):
                shapes += [(scale * root, scale / root), (scale / root, scale * root)]
            self.sizes_wh.append(torch.tensor(shapes, dtype=torch.float32).clamp(max=1))
        self.anchors_per_location = [len(shapes) for shapes in self.sizes_wh]

    def __call__(
        self, grids_hw: Sequence[tuple[int, int]], padded_hw: tuple[int, int], device: torch.device | str = "cpu"
    ) -> list[Float[Tensor, "_ 4"]]:
        """For each map its default boxes xyxy, row by row, those of one location together."""
        if len(grids_hw) != len(self.sizes_wh):
            raise ShapeError(f"default boxes: made for {len(self.sizes_wh)} maps, but there are {len(grids_hw)}")
        side = torch.tensor([padded_hw[1], padded_hw[0]], dtype=torch.float32)
        found = []
        for i, (grid, sizes) in enumerate(zip(grids_hw, self.sizes_wh, strict=True)):
            y, x = (self._centres(i, count, length) for count, length in zip(grid, padded_hw, strict=True))
            centres = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1).reshape(-1, 1, 2)
            boxes = torch.cat([(centres - 0.5 * sizes) * side, (centres + 0.5 * sizes) * side], dim=-1)
            found.append(boxes.reshape(-1, 4).to(device))
        return found

    def _centres(self, index: int, count: int, length: int) -> Float[Tensor, "count"]:
        """Of the steps along one axis, as shares of the side."""
        steps = length / self.steps[index] if self.steps is not None else count
        return (torch.arange(count) + 0.5) / (steps if math.ceil(steps) == count else count)


@dataclass(frozen=True)
class DefaultBoxMatcher:
    """Match default boxes to the objects that they overlap by half, and each object's best default box to it."""

    iou: float = 0.5

    def __call__(
        self,
        anchors: Float[Tensor, "a 4"],
        boxes: Float[Tensor, "n 4"],
        *,
        crowds: Float[Tensor, "c 4"] | None = None,
    ) -> Int[Tensor, "a"]:
        """The index of the object of each default box, or NEGATIVE, or NEUTRAL within ``crowds``."""
        matches = IoUMatcher(positive_iou=self.iou, negative_iou=self.iou)(anchors, boxes, crowds=crowds)
        if len(boxes):
            best, index = box_iou(boxes, anchors).max(dim=1)
            matches[index[best > 0]] = torch.where(best > 0)[0]
        return matches


@dataclass(frozen=True)
class HardNegativeLoss:
    """``class``: cross-entropy of the positives and the worst answered negatives; ``box``: smooth L1 of the codes.

    Both are divided by the positives of the batch. An image without objects teaches nothing.
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
        """Of all images together."""
        class_losses, box_losses = [], []
        for logits, box_deltas, assignment in zip(outputs.logits[0], outputs.box_deltas[0], assignments, strict=True):
            wrong = F.cross_entropy(logits, assignment.class_indices.clamp(min=0), reduction="none")
            negative = torch.where(assignment.class_indices == NEGATIVE)[0]
            count = min(len(negative), int(self.negatives_per_positive * len(assignment.positives)))
            class_losses += [wrong[assignment.positives].sum(), wrong[negative].topk(count).values.sum()]
            truth = box_coder.encode(assignment.boxes, anchors[assignment.positives])
            box_losses.append(F.smooth_l1_loss(box_deltas[assignment.positives], truth, reduction="sum"))
        count = max(1, sum(len(assignment.positives) for assignment in assignments))
        return {"class": torch.stack(class_losses).sum() / count, "box": torch.stack(box_losses).sum() / count}


class SSDHead(nn.Module):
    """For each feature map of its own, a convolution to class logits and one to box deltas.

    Parameters
    ----------
    channels, anchors_per_location
        Of each feature map, its channels and its default boxes per location.
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
    """VGG-16 to conv4_3, its fully connected layers as dilated convolutions, four smaller maps on top (figure 2)."""

    channels = (512, 1024, 512, 256, 256, 256)
    min_size = 268  # below, the 3x3 convolutions of the last maps find nothing

    def __init__(self) -> None:
        super().__init__()
        layers = list(models.vgg16(weights=None).features)
        pools = [i for i, layer in enumerate(layers) if isinstance(layer, nn.MaxPool2d)]
        layers[pools[2]].ceil_mode = True  # 300 pixels become 38 steps
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
        """Six maps; the first brought to length 20 at each step, since it is stronger than the others (section 3.1)."""
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
        The feature extractor, and how many channels each of its maps has.
    anchors
        Generator of the default boxes of each map.
    class_indices
        Index of each label among the class logits, 0 being background (default: 1, 2, 3 …).
    head
        Makes the head; see :class:`SSDHead` for its arguments.
    top_k_per_class
        How many candidates of each class enter NMS.
    postprocess
        Which detections are reported.
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
    """The paper's own, for images of 300x300."""
    anchors = DefaultBoxGenerator(
        [[2], [2, 3], [2, 3], [2, 3], [2], [2]],
        [0.07, 0.15, 0.33, 0.51, 0.69, 0.87, 1.05],
        steps=[8, 16, 32, 64, 100, 300],
    )
    maps = VGGExtractor()
    return ssd(maps, maps.channels, anchors, categories, class_indices=class_indices)


def _smaller(inputs: int, inside: int, outputs: int, *, stride: int = 1) -> nn.Sequential:
    """A 1x1 convolution and a 3x3 one that halves the map, or, without a stride, takes its border."""
    return nn.Sequential(
        nn.Conv2d(inputs, inside, 1),
        nn.ReLU(inplace=True),
        nn.Conv2d(inside, outputs, 3, stride=stride, padding=stride - 1),
        nn.ReLU(inplace=True),
    )


def _initialise(module: nn.Module) -> None:
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
