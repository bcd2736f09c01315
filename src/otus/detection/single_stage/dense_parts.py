"""What fills the frame of dense detectors, as the frame sees it, and what several fillings share.

Shape shorthand: B pictures, A anchors of all maps, N objects, S class slots, D numbers of a box (4: xyxy, 5: xywhr).
"""

from collections.abc import Sequence
from typing import Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from otus.detection.single_stage.dense_stages import DenseAssignment
from otus.parts.backbones import Trunk
from otus.parts.backbones.feature_pyramid import FeaturePyramid
from otus.parts.heads.dense_head import Answers
from otus.parts.heads.dense_scores import Chosen


class Maps(Protocol):
    """Pictures in, maps out, fine to coarse; smaller pictures are padded to ``least_side``."""

    @property
    def least_side(self) -> int: ...

    def __call__(self, images: Float[Tensor, "b 3 h w"]) -> list[Tensor]: ...


class DenseHead(Protocol):
    """What is said of the anchors of each map."""

    def __call__(self, maps: list[Tensor]) -> Answers: ...


class AnchorMaker(Protocol):
    """The boxes or locations that answers are about, for each map, row by row."""

    def __call__(
        self, grids_hw: Sequence[tuple[int, int]], padded_hw: tuple[int, int], device: torch.device
    ) -> list[Float[Tensor, "_ 4"]]: ...


class Assigner(Protocol):
    """For which object each anchor should speak, or NEGATIVE or NEUTRAL."""

    def __call__(
        self,
        anchors: Float[Tensor, "a 4"],
        boxes: Float[Tensor, "n d"],
        /,
        *,
        crowds: Float[Tensor, "c 4"] | None = None,
    ) -> Int[Tensor, "a"]: ...


class Coder(Protocol):
    """Boxes to what the head says of them, and back."""

    def encode(self, boxes: Tensor, anchors: Tensor) -> Tensor: ...

    def decode(self, codes: Tensor, anchors: Tensor) -> Tensor: ...


class Criterion(Protocol):
    """The losses ``class``, ``box`` and perhaps more. ``answers`` has the maps one after the other."""

    def __call__(
        self,
        answers: Answers,
        anchors: Float[Tensor, "a 4"],
        assignments: Sequence[DenseAssignment],
        coder: Coder,
        *,
        generator: torch.Generator | None = None,
    ) -> dict[str, Tensor]: ...


class Scores(Protocol):
    """Which answers become candidates; ``background`` is its slot, if it has one."""

    @property
    def background(self) -> int | None: ...

    def choose(self, answers: Answers, picture: int, thresholds: Float[Tensor, "s"]) -> Chosen: ...

    def everywhere(self, answers: Answers, picture: int) -> list[Float[Tensor, "_ s"]]: ...


class PyramidMaps(nn.Module):
    """A trunk and the feature pyramid over it."""

    def __init__(self, trunk: Trunk, pyramid: FeaturePyramid) -> None:
        super().__init__()
        self.trunk = trunk
        self.pyramid = pyramid

    @property
    def least_side(self) -> int:
        """The trunk's."""
        return self.trunk.least_side

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> list[Tensor]:
        """The levels of the pyramid, fine to coarse."""
        return self.pyramid(self.trunk(images))
