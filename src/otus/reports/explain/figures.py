"""Images and table rows that the explanations of several detectors use."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from matplotlib import colormaps
from PIL import Image
from torch import Tensor

_MAP_WIDTH = 440  # pixels of a map drawn as an image


def activation_map(x: Float[Tensor, "c h w"], size_hw: tuple[int, int]) -> UInt8[np.ndarray, "rows columns 3"]:
    """Draw the mean absolute activation over the channels of a feature map, cropped to its first ``size_hw`` locations."""
    mean = x.float().abs().mean(dim=0)[: size_hw[0], : size_hw[1]].cpu().numpy()
    return colormapped(mean, mean.min(), mean.max())


def unpadded_size(grid_hw: tuple[int, int], size_hw: tuple[int, int], padded_hw: tuple[int, int]) -> tuple[int, int]:
    """Return the numbers of rows and columns of a feature map that show the image, not the padding.

    Parameters
    ----------
    grid_hw
        Size of the feature map.
    size_hw, padded_hw
        Size of the preprocessed image before and after padding, in pixels.
    """
    rows, columns = (
        max(1, round(length * side / padded)) for length, side, padded in zip(grid_hw, size_hw, padded_hw, strict=True)
    )
    return rows, columns


def colormapped(values: Float[np.ndarray, "h w"], low: float, high: float) -> UInt8[np.ndarray, "rows columns 3"]:
    """Draw values with the colormap viridis, from ``low`` (dark) to ``high`` (bright), each as a square."""
    normalised = (values - low) / max(high - low, 1e-12)
    colours = (colormaps["viridis"](normalised)[..., :3] * 255).astype(np.uint8)
    size_wh = (_MAP_WIDTH, max(1, round(_MAP_WIDTH * values.shape[0] / values.shape[1])))
    return np.asarray(Image.fromarray(colours).resize(size_wh, Image.Resampling.NEAREST))


def attention_overlay(image: UInt8[np.ndarray, "h w 3"], attention: Float[np.ndarray, "r c"]) -> np.ndarray:
    """Draw an attention map over an image: bright at its maximum, the image darkened where it is 0."""
    normalised = attention / max(float(attention.max()), 1e-12)
    size_wh = (image.shape[1], image.shape[0])
    smooth = Image.fromarray(normalised.astype(np.float32)).resize(size_wh, Image.Resampling.BILINEAR)
    strength = np.clip(np.asarray(smooth), 0, 1)[..., None]
    colours = colormaps["inferno"](0.25 + 0.75 * strength[..., 0])[..., :3] * 255
    opacity = 0.9 * strength**0.6
    return (0.6 * image * (1 - opacity) + colours * opacity).clip(0, 255).astype(np.uint8)


def faded(image: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w 3"]:
    """Return the image with lower contrast and higher brightness, so that many thin boxes are visible on it."""
    return (image * 0.4 + 150).astype(np.uint8)


def threshold_text(facts: Mapping[str, Any]) -> str:
    """Return the score threshold as text: one value, or the range over categories."""
    values = facts.get("score_thresholds", {}).values()
    return (
        f"its category's threshold, {min(values):.2f} to {max(values):.2f}"
        if values
        else f"{facts['score_threshold']:g}"
    )


def table_row(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record as a row of a table, with boxes as four whole numbers."""
    return {
        name.removesuffix("_xyxy").replace("_", " "): " ".join(f"{v:.0f}" for v in value)
        if name.endswith("_xyxy")
        else value
        for name, value in record.items()
    }


def counts_by_category(records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return rows with the number of boxes and the best score of each category; ``records`` sorted by score."""
    counts = Counter(record["category"] for record in records)
    best = {record["category"]: record["score"] for record in reversed(records)}
    return [{"category": name, "boxes": count, "best score": best[name]} for name, count in counts.most_common()]
