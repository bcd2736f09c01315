"""One image with its labels: the input of systems for training and prediction."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import UInt8

from otus.errors import ShapeError
from otus.structures import Instances, PanopticMap, SemanticMap


@dataclass(frozen=True, eq=False)
class Sample:
    """An image, its target and its key.

    Parameters
    ----------
    image
        uint8 (H, W, 3), RGB.
    key
        Name of the image in its data set, unique there; used by caches and in error messages.
    instances, semantic, panoptic
        Ground truth; None if the image is not annotated (as opposed to annotated with no objects).
    label
        Class index of the whole image, for classification.
    columns
        Further arrays. Those whose name ends in ``_xyxy`` are (P, 4) boxes that every transform moves with the image,
        e.g. ``proposals_xyxy``.
    """

    image: UInt8[np.ndarray, "h w 3"]
    key: str
    instances: Instances | None = None
    semantic: SemanticMap | None = None
    panoptic: PanopticMap | None = None
    label: int | None = None
    columns: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.image.ndim != 3 or self.image.shape[2] != 3 or self.image.dtype != np.uint8:
            raise ShapeError(f"image {self.key}: expected uint8 (H, W, 3), got {self.image.dtype} {self.image.shape}")
        for name in ("instances", "semantic", "panoptic"):
            value = getattr(self, name)
            if value is not None and tuple(value.size_hw) != self.size_hw:
                raise ShapeError(f"{name} of {self.key}: expected the image's size {self.size_hw}, got {value.size_hw}")

    @property
    def size_hw(self) -> tuple[int, int]:
        """The image's height and width."""
        return self.image.shape[0], self.image.shape[1]
