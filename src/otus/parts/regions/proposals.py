"""Proposals of a batch, as region-based detectors pass them on."""

from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Proposals:
    """Regions of each image that may hold an object, the likeliest first.

    ``scores`` are in [0, 1]. ``levels`` and ``anchors`` say of which map and anchor each was made, where there are any.
    """

    boxes: list[Float[Tensor, "_ 4"]]
    scores: list[Float[Tensor, "_"]]
    levels: list[Int[Tensor, "_"]] | None = None
    anchors: list[Float[Tensor, "_ 4"]] | None = None
