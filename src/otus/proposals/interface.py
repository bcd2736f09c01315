"""Proposals, and the interface of proposers.

Shape shorthand: P proposals, H x W an image.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol, Self

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from otus.errors import ShapeError, UsageError
from otus.structures.boxes import as_boxes


@dataclass(frozen=True, eq=False)
class Proposals:
    """Boxes that may contain objects, the highest-scoring first.

    Parameters
    ----------
    boxes_xyxy
        float32 (P, 4).
    scores
        float32 (P,), in decreasing order; comparable within one image only.
    """

    boxes_xyxy: Float[np.ndarray, "p 4"]
    scores: Float[np.ndarray, "p"]

    def __post_init__(self) -> None:
        object.__setattr__(self, "boxes_xyxy", as_boxes(self.boxes_xyxy).astype(np.float32, copy=False))
        object.__setattr__(self, "scores", np.asarray(self.scores, dtype=np.float32))
        if self.scores.shape != (len(self.boxes_xyxy),):
            raise ShapeError(
                f"proposals: expected scores of shape ({len(self.boxes_xyxy)},), one per box, got {self.scores.shape}"
            )

    def __len__(self) -> int:
        return len(self.boxes_xyxy)

    def best(self, count: int | None) -> Self:
        """Return the ``count`` highest-scoring proposals; all if None."""
        if count is not None and count < 0:
            raise UsageError(f"count: expected a number >= 0, got {count}")
        return replace(self, boxes_xyxy=self.boxes_xyxy[:count], scores=self.scores[:count])


class Proposer(Protocol):
    """A proposal method: maps an image to proposals, e.g. :class:`~otus.proposals.selective_search.SelectiveSearch`.

    Proposers can be pickled, so that worker processes can run them.
    """

    @property
    def parameters(self) -> Mapping[str, Any]:
        """Everything besides the image that the proposals depend on, including method and version; JSON values."""

    def __call__(self, image: UInt8[np.ndarray, "h w 3"]) -> Proposals:
        """Return the proposals of an image."""


@dataclass(frozen=True)
class ResizedProposer:
    """A proposer that runs on large images downscaled to ``longer_side`` pixels; boxes are scaled back."""

    proposer: Proposer
    longer_side: int = 500

    @property
    def parameters(self) -> dict[str, Any]:
        """The proposer's parameters and the size."""
        return {**self.proposer.parameters, "longer_side": self.longer_side}

    def __call__(self, image: UInt8[np.ndarray, "h w 3"]) -> Proposals:
        """Return the proposals of an image."""
        height, width = image.shape[:2]
        scale = self.longer_side / max(height, width)
        if scale >= 1:
            return self.proposer(image)
        small_wh = (max(1, round(width * scale)), max(1, round(height * scale)))
        small = Image.fromarray(image).resize(small_wh, Image.Resampling.BILINEAR)
        proposals = self.proposer(np.asarray(small))
        return replace(proposals, boxes_xyxy=proposals.boxes_xyxy * np.tile(np.array([width, height]) / small_wh, 2))
