"""YOLO: one forward pass per image, in which each cell of a coarse grid predicts the object whose centre it contains.

Shape shorthand: B images, S cells along a side of the grid, K boxes per cell, C categories, N assigned objects.

Paper: "You Only Look Once: Unified, Real-Time Object Detection" (Redmon, Divvala, Girshick, Farhadi, CVPR 2016,
arXiv:1506.02640), section 2. Official code: github.com/pjreddie/darknet (public domain), which decides where the paper
is silent: square roots of widths and heights are predicted, and where no box of a cell overlaps its object, the box
nearest to it is responsible.

The output is S x S x (5 K + C): for each of K boxes dx, dy (the centre, from 0 to 1 across its cell), dh, dw (square
roots of height and width as fractions of the image) and a confidence; then C class scores, conditional on an object.
There is **no background class among the C**: lectures that include one depart from the paper, in which the confidence
alone separates objects from background. The K boxes of a cell have no prior shapes (they are not anchors): they
specialise in training, because only the box with the highest IoU with the object is responsible for it.

A cell has a single set of class scores, so it is assigned a single object: the largest whose centre it contains.
Objects that are not assigned are counted (:meth:`YOLO.warnings`, :class:`GridAssignment`); darknet keeps an arbitrary
object.

Departures: losses are means over the images of a batch; confidences and class scores are clamped to [0, 1] before they
are multiplied; cells inside a crowd add no ``no_object`` loss; feature maps that are not S x S are average-pooled to it
before the fully connected layers, so images may have any size. The grid spans the padded batch: preprocess images with
``Preprocess(fixed_hw=…)``.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import box_convert, clip_boxes_to_image, remove_small_boxes

from otus.data.dataset import Dataset
from otus.parts.backbones import Backbone, LayeredBackbone, efficientnet_lite0_backbone
from otus.parts.backbones.freezing import Freezing
from otus.parts.batching import Batch, Target
from otus.parts.boxes.matching import paired_iou
from otus.parts.detections import Detections
from otus.parts.inference_mode import Stopwatch, seeded_generator
from otus.parts.postprocess import Postprocess
from otus.parts.system import BaseSystem, Stages
from otus.structures import Categories, Instances

COORDINATE_WEIGHT, NO_OBJECT_WEIGHT = 5.0, 0.5
"""The paper's lambda_coord and lambda_noobj."""
LEAK = 0.1
"""Negative slope of the leaky ReLU."""


@dataclass(frozen=True)
class GridAssignment:
    """The objects of a batch that are assigned to a cell, and their cells.

    Parameters
    ----------
    image, row, column
        (N,) image index, row and column of the cell.
    boxes, labels
        (N, 4) cxcywh as fractions of the padded width and height, and (N,).
    unassigned
        Number of objects of each image without a cell, because a larger object's centre lies in the same cell.
    """

    image: Int[Tensor, "n"]
    row: Int[Tensor, "n"]
    column: Int[Tensor, "n"]
    boxes: Float[Tensor, "n 4"]
    labels: Int[Tensor, "n"]
    unassigned: tuple[int, ...]


@dataclass(kw_only=True)
class YOLOStages(Stages):
    """The record of one pass.

    ``output`` is the output of the network, ``boxes`` its boxes (xyxy, in pixels, unclipped). ``Detections.origins``
    are indices of boxes in the order of rows, columns and the K boxes of a cell. In training, ``assignment`` is set.
    """

    output: Float[Tensor, "b s s o"]
    boxes: Float[Tensor, "b s s k 4"]
    assignment: GridAssignment | None = None


class YOLO(BaseSystem[YOLOStages, Instances]):
    """A backbone, convolutions, and two fully connected layers over the whole image.

    Parameters
    ----------
    categories
        Names of the labels.
    backbone, conv
        ``conv`` is applied to the coarsest feature map of ``backbone`` and returns ``in_channels`` channels.
    hidden_features, dropout
        Output features and dropout probability of the first fully connected layer.
    grid_size, boxes_per_cell
        S and K.
    postprocess
        Score and NMS thresholds of the detections.

    Notes
    -----
    ``losses`` are the terms of the paper's equation 3 with their weights: ``box``, ``confidence``, ``no_object``,
    ``class``. An image without objects adds only ``no_object``, with target confidences of 0.
    """

    postprocess: Postprocess

    def __init__(
        self,
        *,
        categories: Categories,
        backbone: Backbone,
        conv: nn.Module,
        in_channels: int,
        hidden_features: int = 4096,
        dropout: float = 0.5,
        grid_size: int = 7,
        boxes_per_cell: int = 2,
        postprocess: Postprocess = Postprocess(score_threshold=0.01),
    ) -> None:
        super().__init__()
        self.categories = categories
        self.backbone = backbone
        self.conv = conv
        self.grid_size, self.boxes_per_cell = grid_size, boxes_per_cell
        self.fc = nn.Sequential(
            nn.Linear(in_channels * grid_size**2, hidden_features),
            nn.LeakyReLU(LEAK),
            nn.Dropout(dropout),
            nn.Linear(hidden_features, grid_size**2 * (5 * boxes_per_cell + len(categories))),
        )
        nn.init.normal_(self.fc[3].weight, std=0.001)  # type: ignore[arg-type]
        nn.init.zeros_(self.fc[3].bias)  # type: ignore[arg-type]
        self.postprocess = postprocess

    @property
    def min_size(self) -> int:
        """Minimum image side of the backbone, in pixels."""
        return self.backbone.min_size

    def warnings(self, dataset: Dataset) -> list[str]:
        """Return notes on a data set before training: the number of objects that share a cell with a larger object."""
        objects = dataset.objects
        if objects is None:
            return []
        valid = ~objects.is_crowd & (objects.boxes_xyxy[:, 2:] > objects.boxes_xyxy[:, :2]).all(axis=1)
        image, boxes = objects.image_index[valid], objects.boxes_xyxy[valid]
        centres = (boxes[:, :2] + boxes[:, 2:]) / 2 / dataset.images.sizes_hw[image, ::-1]
        cells = np.clip((centres * self.grid_size).astype(np.int64), 0, self.grid_size - 1)
        unassigned = len(cells) - len(np.unique(np.column_stack([image, cells]), axis=0))
        if not unassigned:
            return []
        return [
            f"note: {unassigned} of {len(cells)} objects are not learned: a cell of the {self.grid_size} x "
            f"{self.grid_size} grid learns one object, the largest whose centre it contains"
        ]

    def assign(self, targets: Sequence[Target], padded_hw: tuple[int, int]) -> GridAssignment:
        """Assign each object to the cell that contains its centre; the largest object of a cell is kept."""
        height, width = padded_hw
        images, cells, boxes, labels, unassigned = [], [], [], [], []
        for i, target in enumerate(targets):
            normalized = box_convert(target.boxes, "xyxy", "cxcywh") / target.boxes.new_tensor([width, height] * 2)
            grid_xy = (normalized[:, :2] * self.grid_size).long().clamp(0, self.grid_size - 1)
            cell = grid_xy[:, 1] * self.grid_size + grid_xy[:, 0]
            largest = normalized[:, 2:].prod(dim=1).argsort(descending=True, stable=True)
            sorted_cells, order = cell[largest].sort(stable=True)
            first = torch.ones_like(sorted_cells, dtype=torch.bool)
            first[1:] = sorted_cells[1:] != sorted_cells[:-1]
            chosen = largest[order[first]]
            images.append(torch.full_like(chosen, i))
            cells.append(cell[chosen])
            boxes.append(normalized[chosen])
            labels.append(target.labels[chosen])
            unassigned.append(len(cell) - len(chosen))
        cell = torch.cat(cells)
        return GridAssignment(
            torch.cat(images),
            cell // self.grid_size,
            cell % self.grid_size,
            torch.cat(boxes),
            torch.cat(labels),
            tuple(unassigned),
        )

    def responsible(
        self, output: Float[Tensor, "b s s o"], assignment: GridAssignment
    ) -> tuple[Int[Tensor, "n"], Float[Tensor, "n"]]:
        """Return the index of the responsible box of each assigned cell, of its K, and the IoU with the object."""
        boxes = self._normalized_boxes(output)[assignment.image, assignment.row, assignment.column]
        target_boxes = assignment.boxes[:, None]
        iou = paired_iou(box_convert(boxes, "cxcywh", "xyxy"), box_convert(target_boxes, "cxcywh", "xyxy"))
        best, index = iou.max(dim=1)
        nearest = (boxes - target_boxes).square().sum(dim=2).argmin(dim=1)
        index = torch.where(best > 0, index, nearest)
        return index, iou.gather(1, index[:, None])[:, 0]

    def compute_stages(
        self,
        batch: Batch,
        targets: list[Target] | None,
        *,
        postprocess: Postprocess | None,
        generator: torch.Generator | None,
        watch: Stopwatch,
    ) -> YOLOStages:
        """Compute feature maps, and the boxes and class scores of each cell."""
        with watch.time("maps"):
            features = self.backbone(batch.images)
        with watch.time("grid"), seeded_generator(generator):
            x = self.conv(features[-1])
            if x.shape[-2:] != (self.grid_size, self.grid_size):
                x = F.adaptive_avg_pool2d(x, self.grid_size)
            output = self.fc(x.flatten(start_dim=1)).float().unflatten(1, (self.grid_size, self.grid_size, -1))
            height, width = batch.padded_hw
            normalized = self._normalized_boxes(output.detach())
            boxes = box_convert(normalized, "cxcywh", "xyxy") * normalized.new_tensor([width, height] * 2)
        record = YOLOStages(batch=batch, features=features, milliseconds=watch.milliseconds, output=output, boxes=boxes)
        if targets is not None:
            with watch.time("losses"):
                record.assignment = self.assign(targets, batch.padded_hw)
                record.losses = self._losses(output, record.assignment, self._in_crowds(targets, batch.padded_hw))
        if postprocess is not None:
            with watch.time("postprocess"):
                self._postprocess(record, postprocess)
        return record

    def split(self, output: Float[Tensor, "*b s s o"]) -> tuple[Float[Tensor, "*b s s k 5"], Float[Tensor, "*b s s c"]]:
        """Split the output into boxes (dx, dy, dh, dw, confidence) and class scores."""
        boxes, classes = torch.split(output, [5 * self.boxes_per_cell, len(self.categories)], dim=-1)
        return torch.unflatten(boxes, -1, (self.boxes_per_cell, 5)), classes

    def _normalized_boxes(self, output: Float[Tensor, "b s s o"]) -> Float[Tensor, "b s s k 4"]:
        """Return all boxes as cxcywh, as fractions of the padded width and height."""
        dx, dy, dh, dw, _ = self.split(output)[0].unbind(-1)
        cell_index = torch.arange(self.grid_size, device=output.device)
        x, y = (dx + cell_index[:, None]) / self.grid_size, (dy + cell_index[:, None, None]) / self.grid_size
        return torch.stack([x, y, dw.square(), dh.square()], dim=-1)

    def _in_crowds(self, targets: Sequence[Target], padded_hw: tuple[int, int]) -> Float[Tensor, "b s s"]:
        """Return 1 for cells whose centre lies in a crowd box, else 0."""
        height, width = padded_hw
        cell_centres = (torch.arange(self.grid_size, device=self.device) + 0.5) / self.grid_size
        inside = torch.zeros(len(targets), self.grid_size, self.grid_size, device=self.device)
        for mask, target in zip(inside, targets, strict=True):
            for x1, y1, x2, y2 in target.crowds:
                rows, columns = (
                    (cell_centres * height > y1) & (cell_centres * height < y2),
                    (cell_centres * width > x1) & (cell_centres * width < x2),
                )
                mask[rows[:, None] & columns] = 1.0
        return inside

    def _losses(
        self, output: Float[Tensor, "b s s o"], assignment: GridAssignment, crowds: Float[Tensor, "b s s"]
    ) -> dict[str, Float[Tensor, ""]]:
        boxes, classes = self.split(output)
        cell = (assignment.image, assignment.row, assignment.column)
        with torch.no_grad():
            index, iou = self.responsible(output, assignment)
        no_object = (1 - crowds)[..., None].repeat(1, 1, 1, self.boxes_per_cell)
        no_object[cell] = 1.0
        no_object[(*cell, index)] = 0.0
        dx, dy, dh, dw, confidence = boxes[(*cell, index)].unbind(-1)
        x, y, width, height = assignment.boxes.unbind(-1)
        target_dx, target_dy = x * self.grid_size - assignment.column, y * self.grid_size - assignment.row
        box = (dx - target_dx).square() + (dy - target_dy).square()
        box = box + (dh - height.sqrt()).square() + (dw - width.sqrt()).square()
        target_classes = F.one_hot(assignment.labels, len(self.categories))
        count = len(output)
        return {
            "box": COORDINATE_WEIGHT * box.sum() / count,
            "confidence": (confidence - iou).square().sum() / count,
            "no_object": NO_OBJECT_WEIGHT * (boxes[..., 4].square() * no_object).sum() / count,
            "class": (classes[cell] - target_classes).square().sum() / count,
        }

    def _postprocess(self, record: YOLOStages, postprocess: Postprocess) -> None:
        cell_boxes, classes = self.split(record.output)
        confidence = cell_boxes[..., 4].clamp(0, 1)
        scores = (confidence[..., None] * classes.clamp(0, 1)[..., None, :]).flatten(1, 3)
        thresholds = postprocess.thresholds(torch.arange(len(self.categories), device=scores.device))
        for boxes, image_scores, size_hw in zip(record.boxes.flatten(1, 3), scores, record.batch.sizes_hw, strict=True):
            index, label = torch.where(image_scores > thresholds)
            clipped = clip_boxes_to_image(boxes[index], size_hw)
            candidates = Detections(clipped, image_scores[index, label], label, index)
            record.keep(candidates[remove_small_boxes(clipped, 1e-2)], postprocess)


def yolo(categories: Categories, *, grid_size: int = 7, boxes_per_cell: int = 2) -> YOLO:
    """Build the paper's model: 24 convolutions and two fully connected layers, for images of 448 x 448.

    Parameters
    ----------
    grid_size, boxes_per_cell
        S, cells along a side of the grid, and K (default: 7 and 2, as in the paper).
    """
    layers = [_convolve(1024, 1024, 3, stride) for stride in (1, 2, 1, 1)]
    return YOLO(
        categories=categories,
        backbone=yolo_backbone(),
        conv=nn.Sequential(*layers),
        in_channels=1024,
        grid_size=grid_size,
        boxes_per_cell=boxes_per_cell,
    )


def yolo_efficientnet_lite0(
    categories: Categories,
    *,
    grid_size: int = 7,
    boxes_per_cell: int = 2,
    freezing: Freezing = Freezing(),
) -> YOLO:
    """Build a small YOLO over EfficientNet-Lite0, with 1024 hidden features.

    For images of 224 x 224, where a cell is a location of the backbone's last feature map.
    """
    backbone = efficientnet_lite0_backbone(levels=(5,), freezing=freezing)
    return YOLO(
        categories=categories,
        backbone=backbone,
        conv=nn.Sequential(_convolve(backbone.channels[-1], 256, 3), _convolve(256, 256, 3)),
        in_channels=256,
        hidden_features=1024,
        grid_size=grid_size,
        boxes_per_cell=boxes_per_cell,
    )


def yolo_backbone() -> LayeredBackbone:
    """Build the first 20 convolutions of the paper's figure 3, pretrained there on ImageNet; stride 32."""
    layers = [_convolve(3, 64, 7, 2), nn.MaxPool2d(2), _convolve(64, 192, 3), nn.MaxPool2d(2)]
    for inputs, narrow, outputs in ((192, 128, 256), (256, 256, 512)):
        layers += [_convolve(inputs, narrow, 1), _convolve(narrow, outputs, 3)]
    layers.append(nn.MaxPool2d(2))
    for inputs, narrow, outputs in (*[(512, 256, 512)] * 4, (512, 512, 1024)):
        layers += [_convolve(inputs, narrow, 1), _convolve(narrow, outputs, 3)]
    layers.append(nn.MaxPool2d(2))
    for _ in range(2):
        layers += [_convolve(1024, 512, 1), _convolve(512, 1024, 3)]
    return LayeredBackbone({f"{number}": layer for number, layer in enumerate(layers)}, levels=(5,))


def _convolve(inputs: int, outputs: int, size: int, stride: int = 1) -> nn.Module:
    conv = nn.Conv2d(inputs, outputs, size, stride, padding=size // 2)
    nn.init.kaiming_normal_(conv.weight, a=LEAK, nonlinearity="leaky_relu")
    nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
    return nn.Sequential(conv, nn.LeakyReLU(LEAK, inplace=True))
