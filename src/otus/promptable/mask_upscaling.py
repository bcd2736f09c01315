"""From the decoder's small logits to masks of the image.

Shape shorthand: N masks, m x m logits, S x S the padded image, h x w the image.

As in the official code (github.com/facebookresearch/segment-anything, Apache-2.0) the logits are resized bilinearly to the
padded image, cut to the image's part, and resized to the image. Both steps are linear and separable, so that each pixel is
a mix of four rows and four columns of the logits: :func:`upscaled_masks` thresholds and encodes it at once, in memory that
does not grow with the number of pixels.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32, Int, Int32
from torch import Tensor
from torch.nn import functional as F

from otus.promptable._upscaling_kernels import encode_upscaled
from otus.promptable.sam import resized_hw
from otus.structures import Masks


@dataclass(frozen=True)
class UpscaledMasks:
    """Masks of an image, and what is measured on the way.

    Parameters
    ----------
    masks
        N, as RLE.
    boxes_xyxy
        (N, 4) tight ones, zeros for an empty mask; of a crop in its own frame.
    areas
        (N,) in pixels.
    stability
        (N,) IoU of the masks by the threshold plus and minus the offset; NaN where both are empty.
    """

    masks: Masks
    boxes_xyxy: Int[np.ndarray, "n 4"]
    areas: Int[np.ndarray, "n"]
    stability: Float32[np.ndarray, "n"]


def upscale(logits: Float[Tensor, "b n m m"], image_size: int, size_hw: tuple[int, int]) -> Float[Tensor, "b n h w"]:
    """Return the logits of each pixel of an image: all of them at once, in the memory that takes."""
    height, width = resized_hw(size_hw, image_size)
    padded = F.interpolate(logits, (image_size, image_size), mode="bilinear", align_corners=False)
    return F.interpolate(padded[..., :height, :width], size_hw, mode="bilinear", align_corners=False)


def upscaled_masks(
    logits: Float32[np.ndarray, "n m m"],
    image_size: int,
    size_hw: tuple[int, int],
    *,
    threshold: float = 0.0,
    offset: float = 1.0,
    placed: tuple[int, int, tuple[int, int]] | None = None,
) -> UpscaledMasks:
    """Return the masks of :func:`upscale`'s logits above a threshold.

    Parameters
    ----------
    logits
        Of the decoder.
    image_size, size_hw
        S, and height and width of the image.
    threshold, offset
        Of the masks, and how much more and less the stability asks for.
    placed
        Top, left, and height and width of the image that this one is a crop of (default: it is whole).
    """
    used = resized_hw(size_hw, image_size)
    rows, row_weights = _taps(logits.shape[1], image_size, used[0], size_hw[0])
    columns, column_weights = _taps(logits.shape[2], image_size, used[1], size_hw[1])
    top, left, whole_hw = placed or (0, 0, size_hw)
    place = np.array([top, left, *whole_hw], np.int64)
    thresholds = np.array([threshold, threshold - offset, threshold + offset], np.float32)
    measures = np.zeros((len(logits), 7), np.int64)
    counts = []
    for one, row in zip(np.ascontiguousarray(logits, np.float32), measures, strict=True):
        runs, row[:] = encode_upscaled(one, rows, row_weights, columns, column_weights, place, thresholds)
        counts.append(runs.tolist())
    with np.errstate(invalid="ignore", divide="ignore"):
        stability = measures[:, 2].astype(np.float32) / measures[:, 1].astype(np.float32)
    return UpscaledMasks(Masks.from_rle(counts, whole_hw), measures[:, 3:], measures[:, 0], stability)


def _taps(
    mask_size: int, image_size: int, used: int, size: int
) -> tuple[Int32[np.ndarray, "size 4"], Float32[np.ndarray, "size 4"]]:
    """Return the four logits that each pixel along an axis is mixed of, and their weights."""
    near, weights = _bilinear(np.arange(size), source=used, size=size)
    inner, inner_weights = _bilinear(near, source=mask_size, size=image_size)
    taps = inner.reshape(size, 4).astype(np.int32)
    return taps, (weights[..., None] * inner_weights).reshape(size, 4).astype(np.float32)


def _bilinear(
    positions: Int[np.ndarray, "*n"], *, source: int, size: int
) -> tuple[Int[np.ndarray, "*n 2"], Float32[np.ndarray, "*n 2"]]:
    """Return the two neighbours of pixels of an axis that was resized, and their weights; in float32, as torch rounds."""
    place = np.maximum(
        (positions.astype(np.float32) + np.float32(0.5)) * (np.float32(source) / np.float32(size)) - np.float32(0.5), 0
    )
    lower = np.minimum(place.astype(np.int64), source - 1)
    upper = np.minimum(lower + 1, source - 1)
    share = (place - lower).astype(np.float32)
    return np.stack([lower, upper], axis=-1), np.stack([1 - share, share], axis=-1)
