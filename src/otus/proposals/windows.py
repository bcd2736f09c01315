"""Sliding windows: boxes at every location, scale and aspect ratio, as used before there were region proposals.

Shape shorthand: W windows.

Paper: "Robust Real-Time Face Detection" (Viola and Jones, IJCV 2004), section 4; "Histograms of Oriented Gradients for
Human Detection" (Dalal and Triggs, CVPR 2005).
Departures: windows of several aspect ratios instead of one; sides relative to the image instead of an image pyramid; the
last window of a row ends at the border, so all steps are slightly and equally shorter than ``stride``.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from otus.errors import UsageError
from otus.proposals.interface import Proposals
from otus.structures.boxes import area

SCALES = (0.9, 0.6, 0.4, 0.27, 0.18)
ASPECT_RATIOS = (0.5, 1.0, 2.0)
STRIDE = 0.25


def sliding_windows(
    size_hw: tuple[int, int],
    *,
    scales: Sequence[float] = SCALES,
    aspect_ratios: Sequence[float] = ASPECT_RATIOS,
    stride: float = STRIDE,
) -> Float[np.ndarray, "w 4"]:
    """Return the windows xyxy of an image, ordered by scale as given, unique and inside the image.

    Parameters
    ----------
    size_hw
        Height and width of the image.
    scales
        Square roots of the windows' areas, as fractions of the square root of the image's area.
    aspect_ratios
        Height / width. A side longer than the image's is shortened to it, one below a pixel is enlarged to a pixel.
    stride
        Maximum step between neighbouring windows, as a fraction of the window's side; at least one pixel.

    Raises
    ------
    UsageError
        If the image has no pixels or an argument is not a positive number.

    Examples
    --------
    >>> sliding_windows((10, 20), scales=[0.75], aspect_ratios=[1.0], stride=0.5).round(1).tolist()
    [[0.0, 0.0, 10.6, 10.0], [4.7, 0.0, 15.3, 10.0], [9.4, 0.0, 20.0, 10.0]]
    """
    height, width = size_hw
    for name, values in (
        ("size_hw", size_hw),
        ("scales", scales),
        ("aspect_ratios", aspect_ratios),
        ("stride", [stride]),
    ):
        if not all(math.isfinite(value) and value > 0 for value in values):
            raise UsageError(f"{name}: expected positive numbers, got {values}")
    windows = [np.zeros((0, 4))]
    previous_sizes = set()
    for scale in scales:
        for ratio in aspect_ratios:
            side = scale * math.sqrt(height * width)
            size_wh = min(width, max(1.0, side / math.sqrt(ratio))), min(height, max(1.0, side * math.sqrt(ratio)))
            if size_wh in previous_sizes:  # shortening to the image can make several sizes equal
                continue
            previous_sizes.add(size_wh)
            x1, y1 = _starts(width, size_wh[0], stride), _starts(height, size_wh[1], stride)
            y, x = (grid.reshape(-1) for grid in np.meshgrid(y1, x1, indexing="ij"))
            x2, y2 = np.minimum(x + size_wh[0], width), np.minimum(y + size_wh[1], height)
            windows.append(np.stack([x, y, x2, y2], axis=1))
    return np.concatenate(windows)


def _starts(length: int, side: float, stride: float) -> Float[np.ndarray, "steps"]:
    """Return the start positions of windows along one axis: evenly spaced, from 0 to ``length - side``."""
    last = length - side
    steps = math.ceil(last / max(stride * side, 1.0))
    return np.linspace(0, last, steps + 1)


@dataclass(frozen=True)
class SlidingWindows:
    """Sliding windows as proposals, large ones first; parameters as for :func:`sliding_windows`.

    All windows are equally likely to contain an object. The score is the fraction of the image that a window covers, so
    that the top-scoring windows cover the whole image.
    """

    scales: Sequence[float] = SCALES
    aspect_ratios: Sequence[float] = ASPECT_RATIOS
    stride: float = STRIDE

    @property
    def parameters(self) -> dict[str, Any]:
        """Everything besides the image that the windows depend on."""
        return {"method": "sliding-window", "version": 1, **asdict(self)}

    def __call__(self, image: UInt8[np.ndarray, "h w 3"]) -> Proposals:
        """Return the windows, the largest first."""
        height, width = image.shape[:2]
        windows = sliding_windows(
            (height, width), scales=self.scales, aspect_ratios=self.aspect_ratios, stride=self.stride
        )
        coverage = area(windows) / (height * width)
        order = np.argsort(-coverage, kind="stable")
        return Proposals(windows[order], coverage[order])
