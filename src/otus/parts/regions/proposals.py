"""Proposals of a batch of images."""

from dataclasses import dataclass
from typing import Any, Protocol

from jaxtyping import Float, Int
from torch import Tensor


class OriginalImageSearch(Protocol):
    """A proposal method that must run on the original image, because its proposals would differ on a resized one.

    ``search`` maps an image, uint8 (H, W, 3), to :class:`otus.proposals.interface.Proposals`, of which the ``count`` best
    are used.
    """

    count: int

    @property
    def search(self) -> Any: ...


@dataclass(frozen=True)
class Proposals:
    """Regions of each image that may contain an object, highest score first.

    ``scores`` are in [0, 1]. ``levels`` (index of the feature map) and ``anchors`` are those that each proposal was
    predicted from, if it was predicted from an anchor.
    """

    boxes: list[Float[Tensor, "_ 4"]]
    scores: list[Float[Tensor, "_"]]
    levels: list[Int[Tensor, "_"]] | None = None
    anchors: list[Float[Tensor, "_ 4"]] | None = None
