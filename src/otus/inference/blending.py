"""One semantic map of overlapping tiles: their scores are blended, so that no seam shows where tiles meet.

Each tile's scores are interpolated to the image's size and weighted by a window that falls linearly to nothing at the
tile's border, over the width of the overlap; the category of the highest sum is the pixel's. Scores are there for one row
of tiles at a time, not for the image: ``K * tile height * W`` floats, 1 GB for tiles of 1000 pixels on 12,000 columns and
21 categories.

Shape shorthand: K categories, H x W the image.
"""

from collections.abc import Iterable

import numpy as np
from jaxtyping import Float

from otus.inference.tiling import Tiles, Window
from otus.structures import SemanticMap, SemanticScores

_ROWS_AT_ONCE = 64  # of the band, labelled together


def blended(
    tiles: Iterable[tuple[Window, SemanticScores]],
    settings: Tiles,
    size_hw: tuple[int, int],
    *,
    whole: SemanticScores | None = None,
) -> SemanticMap:
    """Blend the scores of tiles into the map of an image of ``size_hw``.

    Parameters
    ----------
    tiles
        Rows and columns of each tile, in the order of :meth:`~otus.inference.tiling.Tiles.windows`, and its scores.
    settings
        Size and overlap of the tiles.
    whole
        Scores of the whole image, which count as much as those of the tiles (default: none).
    """
    height = min(settings.size, size_hw[0])
    labels = np.empty(size_hw, dtype=np.uint8)
    weights = np.zeros((height, size_hw[1]), np.float32)
    band: SemanticScores | None = None  # the weighted sum, from the row ``first`` of the image on
    first = 0

    def finish(band: SemanticScores, count: int) -> None:
        """Label the first rows of the band, to which no further tile contributes."""
        for start in range(0, count, _ROWS_AT_ONCE):
            rows = slice(start, min(start + _ROWS_AT_ONCE, count))
            scores = band.scores[:, rows]
            if whole is not None:
                scores /= weights[rows]
                ones = np.ones(max(scores.shape[1:]), np.float32)
                weights_yx = (ones[: scores.shape[1]], ones[: size_hw[1]])
                whole.add_resized(scores, size_hw, first_row=first + start, weights_yx=weights_yx)
            chosen = SemanticScores(scores, band.categories).resized((scores.shape[1], scores.shape[2]))
            labels[first + rows.start : first + rows.stop] = chosen.labels

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
        down, across = (_window(side, settings.overlap * settings.size) for side in tile_hw)
        scores.add_resized(band.scores[:, :, columns], tile_hw, weights_yx=(down, across))
        weights[:, columns] += down[:, None] * across
    assert band is not None
    finish(band, height)
    return SemanticMap(labels, band.categories)


def _window(length: int, ramp: float) -> Float[np.ndarray, "length"]:
    """Weights of pixels along one side: rising over ``ramp`` pixels from the border to 1, positive everywhere."""
    place = np.arange(length) + 0.5
    return np.clip(np.minimum(place, length - place) / max(ramp, 0.5), 0, 1).astype(np.float32)
