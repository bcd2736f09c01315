"""Detections as a batch leaves them, and as numpy values."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from otus.structures import Categories, Instances, oriented
from otus.structures.boxes import as_boxes


class Found(Protocol):
    """Objects of one picture as tensors; boxes xyxy or xywhr."""

    @property
    def boxes(self) -> Float[Tensor, "n _"]: ...

    @property
    def scores(self) -> Float[Tensor, "n"]: ...

    @property
    def labels(self) -> Int[Tensor, "n"]: ...


def as_tensors(detections: Sequence[Found]) -> dict[str, Tensor]:
    """``boxes``, ``scores``, ``labels`` of all pictures, and ``picture`` saying of which each is: what export sees."""
    counts = torch.tensor([len(one.labels) for one in detections], device=detections[0].labels.device)
    answer = {"picture": torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts)}
    return answer | {
        name: torch.cat([getattr(one, name) for one in detections]) for name in ("boxes", "scores", "labels")
    }


def as_instances(
    detections: Sequence[Found], sizes_hw: Sequence[tuple[int, int]], categories: Categories
) -> list[Instances]:
    """The detections of each picture as numpy values, in its own frame.

    Oriented boxes come with the boxes around them, inside the picture.
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
