"""Pieces that several explanations of a detector are made of: maps as images, rows of tables."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from matplotlib import colormaps
from PIL import Image
from torch import Tensor

SHOWN_WIDTH = 440


def heat(x: Float[Tensor, "c h w"], covered_hw: tuple[int, int]) -> UInt8[np.ndarray, "rows columns 3"]:
    """The mean strength of all channels of a map, of the part that shows the image."""
    strength = x.float().abs().mean(dim=0)[: covered_hw[0], : covered_hw[1]].cpu().numpy()
    return coloured(strength, strength.min(), strength.max())


def covered_part(grid_hw: tuple[int, int], size_hw: tuple[int, int], padded_hw: tuple[int, int]) -> tuple[int, int]:
    """How many rows and columns of a map show the image, and not the padding of its batch."""
    rows, columns = (
        max(1, round(g * side / padded)) for g, side, padded in zip(grid_hw, size_hw, padded_hw, strict=True)
    )
    return rows, columns


def coloured(values: Float[np.ndarray, "h w"], low: float, high: float) -> UInt8[np.ndarray, "rows columns 3"]:
    """From dark (``low``) to bright (``high``), each cell a square."""
    share = (values - low) / max(high - low, 1e-12)
    colours = (colormaps["viridis"](share)[..., :3] * 255).astype(np.uint8)
    size_wh = (SHOWN_WIDTH, max(1, round(SHOWN_WIDTH * values.shape[0] / values.shape[1])))
    return np.asarray(Image.fromarray(colours).resize(size_wh, Image.Resampling.NEAREST))


def faded(image: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w 3"]:
    """The image so pale that many thin lines are seen on it."""
    return (image * 0.4 + 150).astype(np.uint8)


def threshold_told(facts: Mapping[str, Any]) -> str:
    """The end of "scores above ...", from :func:`threshold_facts`."""
    values = facts.get("score_thresholds", {}).values()
    return (
        f"its category's threshold, {min(values):.2f} to {max(values):.2f}"
        if values
        else f"{facts['score_threshold']:g}"
    )


def table_row(one: Mapping[str, Any]) -> dict[str, Any]:
    """A line of a table: boxes by their numbers, in whole pixels."""
    return {
        name.removesuffix("_xyxy").replace("_", " "): " ".join(f"{v:.0f}" for v in value)
        if name.endswith("_xyxy")
        else value
        for name, value in one.items()
    }


def counts_by_category(records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """How many boxes of each category there are, and the best score; ``records`` best first."""
    counts = Counter(one["category"] for one in records)
    best = {one["category"]: one["score"] for one in reversed(records)}
    return [{"category": name, "boxes": count, "best score": best[name]} for name, count in counts.most_common()]
