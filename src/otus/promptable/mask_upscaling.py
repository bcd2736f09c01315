"""Upscaling of the decoder's low-resolution logits to masks of the image.

Shape shorthand: N masks, m x m logits, S x S the padded image, h x w the image.

As in the official code (github.com/facebookresearch/segment-anything, Apache-2.0) the logits are resized bilinearly to the
padded image, cropped to remove the padding, and resized to the image. Both steps are linear and separable, so each pixel is
a weighted sum of four rows and four columns of the logits. :func:`upscaled_masks` computes, thresholds and run-length
encodes the pixels in one pass, in memory that does not grow with their number.
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
    """Masks of an image, with their boxes, areas and stability scores.

    Parameters
    ----------
    masks
        N masks, as RLE.
    boxes_xyxy
        (N, 4) tight boxes, zeros for an empty mask; relative to the crop if the masks are those of a crop.
    areas
        (N,) areas, in pixels.
    stability
        (N,) IoU of the masks at threshold + offset and threshold - offset; NaN if both are empty.
    """

    masks: Masks
    boxes_xyxy: Int[np.ndarray, "n 4"]
    areas: Int[np.ndarray, "n"]
    stability: Float32[np.ndarray, "n"]


def upscale(logits: Float[Tensor, "b n m m"], image_size: int, size_hw: tuple[int, int]) -> Float[Tensor, "b n h w"]:
    """Return the logits of each pixel of an image, in O(N h w) memory."""
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
    crop: tuple[int, int, tuple[int, int]] | None = None,
) -> UpscaledMasks:
    """Return the masks where the logits, upscaled as by :func:`upscale`, exceed a threshold.

    Parameters
    ----------
    logits
        Low-resolution logits of the decoder.
    image_size, size_hw
        Side S of the padded image; height and width of the image.
    threshold, offset
        Threshold of the masks, and the offset from it at which the stability is measured.
    crop
        Top, left, and height and width of the full image, if this image is a crop (default: it is the full image).
    """
    unpadded_hw = resized_hw(size_hw, image_size)
    rows, row_weights = _taps(logits.shape[1], image_size, unpadded_hw[0], size_hw[0])
    columns, column_weights = _taps(logits.shape[2], image_size, unpadded_hw[1], size_hw[1])
    top, left, full_hw = crop or (0, 0, size_hw)
    frame = np.array([top, left, *full_hw], np.int64)
    thresholds = np.array([threshold, threshold - offset, threshold + offset], np.float32)
    measures = np.zeros((len(logits), 7), np.int64)
    counts = []
    for mask_logits, row in zip(np.ascontiguousarray(logits, np.float32), measures, strict=True):
        runs, row[:] = encode_upscaled(mask_logits, rows, row_weights, columns, column_weights, frame, thresholds)
        counts.append(runs.tolist())
    with np.errstate(invalid="ignore", divide="ignore"):
        stability = measures[:, 2].astype(np.float32) / measures[:, 1].astype(np.float32)
    return UpscaledMasks(Masks.from_rle(counts, full_hw), measures[:, 3:], measures[:, 0], stability)


def _taps(
    mask_size: int, image_size: int, unpadded_size: int, size: int
) -> tuple[Int32[np.ndarray, "size 4"], Float32[np.ndarray, "size 4"]]:
    """Return the indices of the four logits that each pixel along an axis is interpolated from, and their weights."""
    padded, padded_weights = _bilinear(np.arange(size), source=unpadded_size, size=size)
    indices, weights = _bilinear(padded, source=mask_size, size=image_size)
    taps = indices.reshape(size, 4).astype(np.int32)
    return taps, (padded_weights[..., None] * weights).reshape(size, 4).astype(np.float32)


def _bilinear(
    positions: Int[np.ndarray, "*n"], *, source: int, size: int
) -> tuple[Int[np.ndarray, "*n 2"], Float32[np.ndarray, "*n 2"]]:
    """Return the two source pixels of each resized pixel along an axis, and their weights; in float32, to round as torch.

    Parameters
    ----------
    positions
        Indices of resized pixels.
    source, size
        Number of pixels before and after resizing.
    """
    source_positions = np.maximum(
        (positions.astype(np.float32) + np.float32(0.5)) * (np.float32(source) / np.float32(size)) - np.float32(0.5), 0
    )
    lower = np.minimum(source_positions.astype(np.int64), source - 1)
    upper = np.minimum(lower + 1, source - 1)
    fraction = (source_positions - lower).astype(np.float32)
    return np.stack([lower, upper], axis=-1), np.stack([1 - fraction, fraction], axis=-1)
