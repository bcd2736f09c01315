"""Blend the scores of overlapping tiles into one semantic map, without visible seams.

Each tile's scores are resized to the tile's size in the image and weighted by a window that falls linearly to zero at the
tile's border, over the width of the overlap. A pixel's category is the one with the highest weighted sum. Only one row of
tiles is in memory at a time: ``K * tile height * W`` floats, 1 GB for tiles of 1000 pixels on 12,000 columns and 21
categories.

Shape shorthand: K categories, H x W the image.
"""

from collections.abc import Iterable

import numpy as np
from jaxtyping import Float

from otus.inference.tiling import Tiles, Window
from otus.structures import SemanticMap, SemanticScores

_ROWS_PER_CHUNK = 64  # rows whose labels are computed at once


def blended(
    tiles: Iterable[tuple[Window, SemanticScores]],
    settings: Tiles,
    size_hw: tuple[int, int],
    *,
    full_image: SemanticScores | None = None,
) -> SemanticMap:
    """Return the semantic map of an image of ``size_hw`` from the scores of its tiles.

    Parameters
    ----------
    tiles
        Rows and columns of each tile, in the order of :meth:`~otus.inference.tiling.Tiles.windows`, and its scores.
    settings
        Size and overlap of the tiles.
    full_image
        Scores of the full image, which are added with the same weight as those of the tiles (default: none).
    """
    height = min(settings.size, size_hw[0])
    labels = np.empty(size_hw, dtype=np.uint8)
    weights = np.zeros((height, size_hw[1]), np.float32)
    band: SemanticScores | None = None  # weighted sum of the scores of ``height`` rows of the image
    first = 0  # row of the image at which the band starts

    def finish(band: SemanticScores, count: int) -> None:
        """Compute the labels of the band's first ``count`` rows, to which no further tile contributes."""
        for start in range(0, count, _ROWS_PER_CHUNK):
            rows = slice(start, min(start + _ROWS_PER_CHUNK, count))
            scores = band.scores[:, rows]
            if full_image is not None:
                scores /= weights[rows]
                ones = np.ones(max(scores.shape[1:]), np.float32)
                weights_yx = (ones[: scores.shape[1]], ones[: size_hw[1]])
                full_image.add_resized(scores, size_hw, first_row=first + start, weights_yx=weights_yx)
            semantic = SemanticScores(scores, band.categories).resized((scores.shape[1], scores.shape[2]))
            labels[first + rows.start : first + rows.stop] = semantic.labels

    for (rows, columns), scores in tiles:
        if band is None:
            band = SemanticScores(np.zeros((len(scores.scores), *weights.shape), np.float32), scores.categories)
        if rows.start > first:
            count = rows.start - first
            finish(band, count)
            for values in (*band.scores, weights):
                values[: height - count] = values[count:].copy()
                values[height - count :] = 0
            first = rows.start
        tile_hw = (rows.stop - rows.start, columns.stop - columns.start)
        weights_y, weights_x = (_window(side, settings.overlap * settings.size) for side in tile_hw)
        scores.add_resized(band.scores[:, :, columns], tile_hw, weights_yx=(weights_y, weights_x))
        weights[:, columns] += weights_y[:, None] * weights_x
    assert band is not None
    finish(band, height)
    return SemanticMap(labels, band.categories)


def _window(length: int, ramp: float) -> Float[np.ndarray, "length"]:
    """Return the weights of pixels along a side: they rise from the border to 1 over ``ramp`` pixels, and are positive."""
    centres = np.arange(length) + 0.5
    return np.clip(np.minimum(centres, length - centres) / max(ramp, 0.5), 0, 1).astype(np.float32)
