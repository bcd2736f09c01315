"""YOLO against a readable loop over cells, and on bad input."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision import tv_tensors

from otus.data.dataset import Dataset, Images
from otus.data.tensors import TensorSample, bounding_boxes
from otus.detection.single_stage.yolo import YOLO, yolo, yolo_backbone, yolo_efficientnet_lite0
from otus.parts.backbones import LayeredBackbone
from otus.structures import Categories, Objects

CATEGORIES = Categories(("cat", "dog", "owl"))
S, K, C = 4, 2, 3


def tiny() -> YOLO:
    torch.manual_seed(0)
    conv = nn.Sequential(nn.Conv2d(3, 8, 8, stride=8), nn.ReLU())
    backbone = LayeredBackbone({"c": conv}, levels=(3,))
    system = YOLO(
        categories=CATEGORIES,
        backbone=backbone,
        conv=nn.Identity(),
        in_channels=8,
        hidden_features=16,
        dropout=0.0,
        grid_size=S,
        boxes_per_cell=K,
    )
    nn.init.normal_(system.fc[3].weight, std=0.5)
    nn.init.normal_(system.fc[3].bias, mean=0.3, std=0.3)
    return system


def sample(
    boxes: list[list[float]], labels: list[int], *, size_hw: tuple[int, int] = (64, 96), **more: Tensor
) -> TensorSample:
    image = torch.rand(3, *size_hw, generator=torch.Generator().manual_seed(len(boxes)))
    array = np.array(boxes, dtype=np.float64).reshape(-1, 4)
    return {
        "image": tv_tensors.Image(image),
        "boxes": bounding_boxes(array, size_hw),
        "labels": torch.tensor(labels, dtype=torch.int64),
        **more,
    }


def iou(a: list[float], b: list[float]) -> float:
    """Return the IoU of two boxes cxcywh."""
    sides = []
    for axis in (0, 1):
        low = max(a[axis] - a[axis + 2] / 2, b[axis] - b[axis + 2] / 2)
        high = min(a[axis] + a[axis + 2] / 2, b[axis] + b[axis + 2] / 2)
        sides.append(max(0.0, high - low))
    overlap = sides[0] * sides[1]
    return overlap / (a[2] * a[3] + b[2] * b[3] - overlap)


def slow_losses(output: list, samples: list[TensorSample], size_hw: tuple[int, int]) -> dict[str, float]:
    """Compute equation 3 cell by cell, with responsibility and IoU as in section 2.2."""
    total = {"box": 0.0, "confidence": 0.0, "no_object": 0.0, "class": 0.0}
    for image_output, sample in zip(output, samples, strict=True):
        for row in range(S):
            for column in range(S):
                numbers = image_output[row][column]
                assigned = None
                for (x1, y1, x2, y2), label in zip(sample["boxes"].tolist(), sample["labels"].tolist(), strict=True):
                    x, y = (x1 + x2) / 2 / size_hw[1], (y1 + y2) / 2 / size_hw[0]
                    w, h = (x2 - x1) / size_hw[1], (y2 - y1) / size_hw[0]
                    in_cell = math.floor(x * S) == column and math.floor(y * S) == row
                    if in_cell and w * h > 0 and (assigned is None or w * h > assigned[0][2] * assigned[0][3]):
                        assigned = ([x, y, w, h], label)
                boxes = []
                for k in range(K):
                    dx, dy, dh, dw, _ = numbers[5 * k : 5 * k + 5]
                    boxes.append([(column + dx) / S, (row + dy) / S, dw**2, dh**2])
                responsible = None
                if assigned is not None:
                    ious = [iou(box, assigned[0]) for box in boxes]
                    responsible = ious.index(max(ious))
                    if max(ious) == 0:
                        distances = [sum((p - q) ** 2 for p, q in zip(box, assigned[0], strict=True)) for box in boxes]
                        responsible = distances.index(min(distances))
                    dx, dy, dh, dw, confidence = numbers[5 * responsible : 5 * responsible + 5]
                    x, y, w, h = assigned[0]
                    total["box"] += 5 * ((dx - (x * S - column)) ** 2 + (dy - (y * S - row)) ** 2)
                    total["box"] += 5 * ((dw - math.sqrt(w)) ** 2 + (dh - math.sqrt(h)) ** 2)
                    total["confidence"] += (confidence - ious[responsible]) ** 2
                    for c in range(C):
                        total["class"] += (numbers[5 * K + c] - (1.0 if c == assigned[1] else 0.0)) ** 2
                for k in range(K):
                    if k != responsible:
                        total["no_object"] += 0.5 * numbers[5 * k + 4] ** 2
    return {name: value / len(samples) for name, value in total.items()}


SAMPLES = [
    sample([[3, 5, 40, 30], [50, 10, 95, 60], [65, 40, 80, 44]], [0, 1, 2]),
    sample([[10, 10, 11, 12], [12, 9, 20, 15], [9, 9, 22, 14]], [2, 0, 1]),
    sample([], []),
]


def test_the_loss_is_that_of_a_loop_over_cells():
    system = tiny()
    losses = system.losses(SAMPLES)
    expected = slow_losses(system.stages(SAMPLES).output.tolist(), SAMPLES, (64, 96))
    assert expected["box"] > 0
    for name, value in expected.items():
        assert float(losses[name].detach()) == pytest.approx(value, rel=1e-4), name


def test_target_confidence_is_the_iou_and_only_the_responsible_box_has_a_box_loss():
    system = tiny()
    record = system.training_stages(SAMPLES[:1])
    index, overlaps = system.responsible(record.output, record.assignment)
    cell = (record.assignment.image, record.assignment.row, record.assignment.column)
    (box_gradient,) = torch.autograd.grad(record.losses["box"], record.output, retain_graph=True)
    (confidence_gradient,) = torch.autograd.grad(record.losses["confidence"], record.output)
    touched = box_gradient[..., : 5 * K].unflatten(3, (K, 5)).abs().sum(-1) > 0
    assert int(touched.sum()) == len(index) == 2
    assert touched[(*cell, index)].all()
    confidence = record.output[..., : 5 * K].unflatten(3, (K, 5))[(*cell, index)][:, 4]
    expected = 2 * (confidence - overlaps)
    torch.testing.assert_close(confidence_gradient[..., : 5 * K].unflatten(3, (K, 5))[(*cell, index)][:, 4], expected)


def test_objects_that_share_a_cell_are_counted_and_the_largest_is_learned():
    record = tiny().training_stages(SAMPLES)
    assert record.assignment.unassigned == (1, 2, 0)
    assert record.assignment.labels.tolist() == [0, 1, 1]
    objects = Objects.build(
        image_index=[0, 0, 0, 1, 1, 1, 1],
        labels=[0, 1, 2, 2, 0, 1, 0],
        boxes_xyxy=[*SAMPLES[0]["boxes"].tolist(), *SAMPLES[1]["boxes"].tolist(), [1, 1, 1, 9]],
        is_crowd=np.zeros(7, dtype=bool),
    )
    images = Images(root=".", files=("a", "b"), sizes_hw=np.array([[64, 96]] * 2), ids=(1, 2))
    dataset = Dataset(source=".", format="made", images=images, categories=CATEGORIES, objects=objects)
    (line,) = tiny().warnings(dataset)
    assert line.startswith("note: 3 of 6 objects are not learned: a cell of the 4 x 4 grid learns one object")


def test_predictions_are_decoded_from_the_output():
    system = tiny()
    (numbers,) = system.stages(SAMPLES[:1]).output.tolist()
    expected = []
    for row in range(S):
        for column in range(S):
            for k in range(K):
                dx, dy, dh, dw, confidence = numbers[row][column][5 * k : 5 * k + 5]
                x, y = (column + dx) / S * 96, (row + dy) / S * 64
                w, h = dw**2 * 96, dh**2 * 64
                for c in range(C):
                    score = min(max(confidence, 0), 1) * min(max(numbers[row][column][5 * K + c], 0), 1)
                    if score > 0.2:
                        box = [max(0, x - w / 2), max(0, y - h / 2), min(96, x + w / 2), min(64, y + h / 2)]
                        expected.append((score, c, *box))
    system.postprocess = type(system.postprocess)(score_threshold=0.2, nms_iou=1.0, max_detections=1000)
    (instances,) = system.predict(SAMPLES[:1])
    expected = sorted((row for row in expected if row[4] - row[2] > 0.01 and row[5] - row[3] > 0.01), reverse=True)
    assert len(instances) == len(expected) > 10
    predicted = np.column_stack([instances.scores, instances.labels, instances.boxes_xyxy])
    np.testing.assert_allclose(predicted, expected, atol=1e-4)


def test_a_crowd_teaches_neither_object_nor_emptiness():
    system = tiny()
    crowded = sample([[0, 0, 48, 64]], [0], is_crowd=torch.tensor([True]))
    losses = system.losses([crowded])
    assert float(losses["box"].detach()) == float(losses["class"].detach()) == 0
    confidence = system.stages([crowded]).output[..., : 5 * K].unflatten(3, (K, 5))[..., 4]
    assert float(losses["no_object"].detach()) == pytest.approx(
        0.5 * float(confidence[:, :, 2:].square().sum()), rel=1e-5
    )


@pytest.mark.parametrize(
    "samples",
    [
        [sample([], []), sample([], [])],
        [sample([[5, 5, 5, 20]], [0])],
        [sample([[95.9, 63.9, 96, 64]], [2])],
        [sample([[0, 0, 1, 1]], [0], size_hw=(1, 1))],
        [sample([[0, 0, 1, 300]], [1], size_hw=(300, 1)), sample([], [], size_hw=(1, 2))],
    ],
    ids=["no objects", "no area", "on the border", "one pixel", "thin"],
)
def test_losses_are_finite_on_any_input(samples):
    system = tiny()
    losses = system.train().losses(samples)
    assert all(value.isfinite() for value in losses.values())
    sum(losses.values()).backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in system.parameters())
    sizes_hw = [tuple(sample["image"].shape[1:]) for sample in samples]
    assert [instances.size_hw for instances in system.predict(samples)] == sizes_hw


def test_the_papers_network():
    with torch.device("meta"):
        system = yolo(Categories(tuple(f"c{i}" for i in range(20))))
    convolutions = [module for module in system.modules() if isinstance(module, nn.Conv2d)]
    assert len(convolutions) == 24
    assert [conv.out_channels for conv in convolutions] == [
        64, 192, 128, 256, 256, 512, *[256, 512] * 4, 512, 1024, *[512, 1024] * 2, 1024, 1024, 1024, 1024
    ]  # fmt: skip
    assert [conv.stride[0] for conv in convolutions].count(2) == 2
    hidden, output = system.fc[0], system.fc[3]
    assert (hidden.in_features, hidden.out_features) == (7 * 7 * 1024, 4096)
    assert output.out_features == 7 * 7 * (5 * 2 + 20)
    pooled = yolo_backbone().strides[0] * 2
    assert 448 // pooled == 7


def test_the_small_one_has_the_grid_at_its_own_size():
    system = yolo_efficientnet_lite0(CATEGORIES, grid_size=7, boxes_per_cell=3)
    shapes = []
    system.conv.register_forward_hook(lambda _, inputs, output: shapes.append(output.shape[-2:]))
    record = system.stages([{"image": torch.rand(3, 224, 224)}])
    assert shapes == [(7, 7)]
    assert record.output.shape == (1, 7, 7, 5 * 3 + 3)
    assert record.boxes.shape == (1, 7, 7, 3, 4)
