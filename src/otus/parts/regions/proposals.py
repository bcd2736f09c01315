"""Proposals of a batch, as region-based detectors pass them on."""

from dataclasses import dataclass
from typing import Any, Protocol

from jaxtyping import Float, Int
from torch import Tensor


class OriginalImageSearch(Protocol):
    """Finds proposals on the image as it came, before it is prepared: of a prepared one they would be others.

    ``search`` goes from an image uint8 (H, W, 3) to :class:`otus.proposals.interface.Proposals`, of which the ``count`` best
    are taken.
    """

    count: int

    @property
    def search(self) -> Any: ...


@dataclass(frozen=True)
class Proposals:
    """Regions of each image that may hold an object, the likeliest first.

    ``scores`` are in [0, 1]. ``levels`` and ``anchors`` say of which map and anchor each was made, where there are any.
    """

    boxes: list[Float[Tensor, "_ 4"]]
    scores: list[Float[Tensor, "_"]]
    levels: list[Int[Tensor, "_"]] | None = None
    anchors: list[Float[Tensor, "_ 4"]] | None = None
