"""The interfaces of the parts that a dense detector is composed of.

Shape shorthand: B images, A anchors of all feature maps, N objects, C crowds, S class logits, D numbers per box
(4: xyxy, 5: xywhr).
"""

from collections.abc import Sequence
from typing import Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

from otus.parts.heads.dense_head import DenseAssignment, DenseOutputs
from otus.parts.heads.dense_scores import BatchCandidateIndices, CandidateIndices


class FeatureExtractor(Protocol):
    """Computes feature maps of images, fine to coarse; images are padded to at least ``min_size``."""

    @property
    def min_size(self) -> int: ...

    def __call__(self, images: Float[Tensor, "b 3 h w"]) -> list[Tensor]: ...


class DenseHead(Protocol):
    """Predicts class logits and box deltas of the anchors of each feature map."""

    def __call__(self, maps: list[Tensor]) -> DenseOutputs: ...


class AnchorGenerator(Protocol):
    """Generates the anchors (or locations, as squares) of each feature map, row by row."""

    def __call__(
        self, grids_hw: Sequence[tuple[int, int]], padded_hw: tuple[int, int], device: torch.device
    ) -> list[Float[Tensor, "_ 4"]]: ...


class Assigner(Protocol):
    """Assigns to each anchor the index of an object, or NEGATIVE or NEUTRAL of :mod:`otus.parts.boxes.matching`."""

    def __call__(
        self,
        anchors: Float[Tensor, "a 4"],
        boxes: Float[Tensor, "n d"],
        /,
        *,
        crowds: Float[Tensor, "c 4"] | None = None,
    ) -> Int[Tensor, "a"]: ...


class BoxCoder(Protocol):
    """Encodes boxes as deltas relative to anchors, and decodes them."""

    def encode(self, boxes: Tensor, anchors: Tensor) -> Tensor: ...

    def decode(self, box_deltas: Tensor, anchors: Tensor) -> Tensor: ...


class Criterion(Protocol):
    """Computes losses by name, at least ``class`` and ``box``; ``outputs`` are concatenated over the feature maps."""

    def __call__(
        self,
        outputs: DenseOutputs,
        anchors: Float[Tensor, "a 4"],
        assignments: Sequence[DenseAssignment],
        box_coder: BoxCoder,
        *,
        generator: torch.Generator | None = None,
    ) -> dict[str, Tensor]: ...


class Scores(Protocol):
    """Computes scores from logits and chooses the candidates for NMS.

    ``background`` is the class index of background, None if there is no such class. ``thresholds`` are the minimum scores of
    the class indices, infinity for those that are never reported.
    """

    @property
    def background(self) -> int | None: ...

    def choose(self, outputs: DenseOutputs, image: int, thresholds: Float[Tensor, "s"]) -> CandidateIndices: ...

    def choose_batch(self, outputs: DenseOutputs, thresholds: Float[Tensor, "s"]) -> BatchCandidateIndices: ...

    def all_scores(self, outputs: DenseOutputs, image: int | slice) -> list[Float[Tensor, "*b _ s"]]: ...
