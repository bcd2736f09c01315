"""Detections as a batch leaves them, and as numpy values."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from otus.structures import Categories, Instances, oriented
from otus.structures.boxes import as_boxes


@dataclass(frozen=True)
class Detections:
    """Objects of one image as tensors; boxes xyxy or xywhr.

    ``origins`` says of which region, anchor, box of a cell or query each was made.
    """

    boxes: Float[Tensor, "n _"]
    scores: Float[Tensor, "n"]
    labels: Int[Tensor, "n"]
    origins: Int[Tensor, "n"]

    def __getitem__(self, index: Tensor) -> "Detections":
        return Detections(self.boxes[index], self.scores[index], self.labels[index], self.origins[index])

    def __len__(self) -> int:
        return len(self.boxes)


def as_tensors(detections: Sequence[Detections]) -> dict[str, Tensor]:
    """``boxes``, ``scores``, ``labels`` of all images, and ``image_index`` saying of which each is: what export sees."""
    counts = torch.tensor([len(one) for one in detections], device=detections[0].labels.device)
    answer = {"image_index": torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts)}
    return answer | {
        name: torch.cat([getattr(one, name) for one in detections]) for name in ("boxes", "scores", "labels")
    }


def as_instances(
    detections: Sequence[Detections], sizes_hw: Sequence[tuple[int, int]], categories: Categories
) -> list[Instances]:
    """The detections of each image as numpy values, in its own frame.

    Oriented boxes come with the boxes around them, inside the image.
    """
    values = []
    for found, size_hw in zip(detections, sizes_hw, strict=True):
        boxes = found.boxes.cpu().numpy()
        turned = None
        if boxes.shape[1] == 5:
            turned, limit = boxes, np.array([size_hw[1], size_hw[0]] * 2)
            boxes = as_boxes(oriented.enclosing_boxes(turned).clip(0, limit).astype(np.float32))
        values.append(
            Instances(
                boxes_xyxy=boxes,
                labels=found.labels.cpu().numpy(),
                size_hw=size_hw,
                categories=categories,
                scores=found.scores.cpu().numpy(),
                oriented_boxes_xywhr=turned,
            )
        )
    return values
