"""Detections as a batch leaves them, and as numpy values."""

from collections.abc import Sequence

from otus.parts.box_head import Detections
from otus.structures import Categories, Instances


def as_instances(
    detections: Sequence[Detections], sizes_hw: Sequence[tuple[int, int]], categories: Categories
) -> list[Instances]:
    """The detections of each picture as numpy values, in its own frame."""
    return [
        Instances(
            boxes_xyxy=found.boxes.cpu().numpy(),
            labels=found.labels.cpu().numpy(),
            size_hw=size_hw,
            categories=categories,
            scores=found.scores.cpu().numpy(),
        )
        for found, size_hw in zip(detections, sizes_hw, strict=True)
    ]
