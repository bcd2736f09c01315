"""GrabCut: a mask from a box, by alternating colour models of object and background with minimum cuts until convergence.

Shape shorthand: H x W the (possibly downsampled) grid.

Paper: "GrabCut: Interactive Foreground Extraction using Iterated Graph Cuts" (Rother, Kolmogorov and Blake, SIGGRAPH 2004),
sections 3.1 and 3.2: Gaussian mixtures; pixels outside the box are background, marks inside it are hard constraints.
Departures, each measured by ``benchmarks/interactive.py``: since boxes are loose, pixels far from the centre of the box have
lower weight in the initial mixture of the object, and the initial mixture of the background is fitted to a band around the
box; a location term favours the centre of the box; colours are in CIE L*a*b*; the image is downsampled to about 80,000
pixels, which is several times as fast and no worse, and the border of the mask is cut again at full resolution.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from otus.errors import UsageError
from otus.interactive.color_models import MixtureModel
from otus.interactive.graph_cut import GridEmbedding, confidence, cut, reduced_marks, refine
from otus.structures import MaskCandidates, Masks, Prompt
from otus.structures.prompt import BACKGROUND, UNMARKED

MAX_PIXELS = 80_000
"""Larger images are cut at reduced resolution, and then again at full resolution along the border of the mask."""
_BAND = 0.1
"""Width of the band of background around a box, as a fraction of the image's longer side."""


@dataclass(frozen=True)
class GrabCut:
    """A mask of the object in a box, optionally with points, strokes and scribbles.

    Parameters
    ----------
    smoothness
        The paper's gamma: cost of cutting an edge between equal colours.
    location
        Weight of the location term, which is 1 at the centre of the box, -1 at its sides and outside.
    max_rounds
        Maximum number of rounds of fitting colour models and cutting.
    """

    smoothness: float = 50.0
    location: float = 1.0
    max_rounds: int = 5
    name = "grabcut"

    def __post_init__(self) -> None:
        if self.max_rounds < 1:
            raise UsageError(f"max_rounds: expected at least 1, got {self.max_rounds}")

    def embed(self, image: UInt8[np.ndarray, "h w 3"]) -> GridEmbedding:
        """Return the grid of an image, downsampled if it has more than :data:`MAX_PIXELS`."""
        return GridEmbedding.from_image(image, max_pixels=MAX_PIXELS)

    def segment(self, embedding: GridEmbedding, prompt: Prompt) -> MaskCandidates:
        """Return the mask for a box.

        If there is no background around the box, as when it contains the whole image, the background's colour model is
        first fitted to a band along the image's border.

        Raises
        ------
        UsageError
            If the prompt has no box, marks several objects, or has parts that this method does not support.
        ShapeError
            See :meth:`Prompt.seeds`.
        """
        if prompt.box_xyxy is None or prompt.text is not None or prompt.mask is not None:
            raise UsageError(
                f"{self.name}: takes a box, optionally with points, strokes and scribbles, no mask and no text"
            )
        if prompt.num_objects > 1:
            raise UsageError(
                f"{self.name}: takes one object, got marks of {prompt.num_objects}; use graph-cut for several"
            )
        marks = prompt.seeds(embedding.size_hw)
        columns, rows = (np.arange(side) + 0.5 for side in embedding.size_hw[::-1])
        x1, y1, x2, y2 = np.asarray(prompt.box_xyxy)
        inside = ((rows > y1) & (rows < y2))[:, None] & ((columns > x1) & (columns < x2))
        marks[~inside & (marks == UNMARKED)] = BACKGROUND
        mask, region_term = self.cut(embedding, reduced_marks(marks, embedding.factor), np.asarray(prompt.box_xyxy))
        refined = refine(embedding, mask, region_term, marks, 1, smoothness=self.smoothness)
        return MaskCandidates(Masks.from_dense(refined[None]), np.array([confidence(mask, region_term)]), np.array([1]))

    def cut(
        self, embedding: GridEmbedding, marks: Int[np.ndarray, "h w"], box_xyxy: Float[np.ndarray, "4"]
    ) -> tuple[Bool[np.ndarray, "h w"], Float[np.ndarray, "h w"]]:
        """Return the mask on the grid, and the region term: how much each pixel favours the object.

        Parameters
        ----------
        embedding
            The image.
        marks
            Marks on the grid: -1 for none, 0 for background, 1 for the object.
        box_xyxy
            The box, in pixels of the image.
        """
        height, width = embedding.grid_hw
        rows, columns = np.ogrid[:height, :width]
        x1, y1, x2, y2 = box_xyxy / embedding.factor
        # Distances to the centre of the box, in half widths and half heights.
        x = np.abs(columns + 0.5 - (x1 + x2) / 2) / ((x2 - x1) / 2)
        y = np.abs(rows + 0.5 - (y1 + y2) / 2) / ((y2 - y1) / 2)
        location_term = self.location * (1 - 2 * np.minimum(np.maximum(x, y), 1) ** 2)
        band_width = _BAND * max(height, width)
        near_box = np.maximum(x - 1, 0) * (x2 - x1) / 2 + np.maximum(y - 1, 0) * (y2 - y1) / 2 <= band_width
        background = (marks == BACKGROUND) & near_box
        if not background.any():
            border_distance = np.minimum(np.minimum(rows, height - 1 - rows), np.minimum(columns, width - 1 - columns))
            background = (border_distance < band_width) & (marks != 1)
        object_weights = (marks != BACKGROUND) * np.exp(-(x**2) - y**2)
        background_weights = background.astype(np.float64)
        colors = MixtureModel(embedding.planes)
        mask = marks != BACKGROUND
        for _ in range(self.max_rounds):
            color_term = colors.log_likelihood(object_weights) - colors.log_likelihood(background_weights)
            region_term = color_term + location_term
            previous, mask = mask, cut(embedding.flow(self.smoothness), region_term, marks)
            # Cutting around a small object may cost more than its region term gains, but a box contains an object.
            if not mask.any():
                mask = previous
                break
            if (mask == previous).all():
                break
            object_weights, background_weights = mask.astype(np.float64), (~mask).astype(np.float64)
        return mask, region_term
