"""GrabCut: a mask from a box, by fitting colours to both sides of the cut and cutting again until nothing changes.

Shape shorthand: H x W the image as it is worked on.

Paper: "GrabCut: Interactive Foreground Extraction using Iterated Graph Cuts" (Rother, Kolmogorov and Blake, SIGGRAPH 2004),
sections 3.1 and 3.2: mixtures of Gaussians, background is what lies outside of the box, marks inside of it are hard.
Departures, each measured by ``benchmarks/interactive.py``: boxes are loose, so the first mixture of the object counts pixels
less the farther they are from the middle of the box, that of the background is fitted to a band around the box; a location
term prefers the middle to the sides; colours are those of CIE L*a*b*; the image is reduced to about 80,000 pixels, which is
several times as fast and no worse, and the border of the last cut is cut again in full.
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
"""A larger image is cut reduced, and then again along the border in full."""
_BAND = 0.1
"""Of the background around a box, as a share of the longer side."""


@dataclass(frozen=True)
class GrabCut:
    """A mask of what is in a box, with or without points, strokes and scribbles.

    Parameters
    ----------
    smoothness
        The paper's gamma: what a step across the border costs where colours are equal.
    location
        What is gained in the middle of the box, and lost at its sides.
    max_rounds
        Most often colours are fitted and cut.
    """

    smoothness: float = 50.0
    location: float = 1.0
    max_rounds: int = 5
    name = "grabcut"

    def embed(self, image: UInt8[np.ndarray, "h w 3"]) -> GridEmbedding:
        """Return the colours and edges of an image; one of more than 80,000 pixels is reduced."""
        return GridEmbedding.of(image, max_pixels=MAX_PIXELS)

    def segment(self, embedding: GridEmbedding, prompt: Prompt) -> MaskCandidates:
        """Return the mask for a box.

        Where the box holds the whole image, the band along the image's border stands for the background.

        Raises
        ------
        UsageError
            A prompt without a box, with marks of several objects, or with parts that this method does not use.
        ShapeError
            As of :meth:`Prompt.seeds`.
        """
        if prompt.box_xyxy is None or prompt.text is not None or prompt.mask is not None:
            raise UsageError(
                f"{self.name}: takes a box, with or without points, strokes and scribbles, no mask and no text"
            )
        if prompt.num_objects > 1:
            raise UsageError(
                f"{self.name}: takes one object, got marks of {prompt.num_objects}; graph-cut takes several"
            )
        marks = prompt.seeds(embedding.size_hw)
        columns, rows = (np.arange(side) + 0.5 for side in embedding.size_hw[::-1])
        x1, y1, x2, y2 = np.asarray(prompt.box_xyxy)
        inside = ((rows > y1) & (rows < y2))[:, None] & ((columns > x1) & (columns < x2))
        marks[~inside & (marks == UNMARKED)] = BACKGROUND
        mask, gain = self.cut(embedding, reduced_marks(marks, embedding.factor), np.asarray(prompt.box_xyxy))
        refined = refine(embedding, mask, gain, marks, 1, smoothness=self.smoothness)
        return MaskCandidates(Masks.from_dense(refined[None]), np.array([confidence(mask, gain)]), np.array([1]))

    def cut(
        self, embedding: GridEmbedding, marks: Int[np.ndarray, "h w"], box_xyxy: Float[np.ndarray, "4"]
    ) -> tuple[Bool[np.ndarray, "h w"], Float[np.ndarray, "h w"]]:
        """Return the mask on the grid, and what was gained where a pixel is in it."""
        height, width = embedding.grid_hw
        rows, columns = np.ogrid[:height, :width]
        x1, y1, x2, y2 = box_xyxy / embedding.factor
        across = np.abs(columns + 0.5 - (x1 + x2) / 2) / ((x2 - x1) / 2)
        down = np.abs(rows + 0.5 - (y1 + y2) / 2) / ((y2 - y1) / 2)
        nearness = self.location * (1 - 2 * np.minimum(np.maximum(across, down), 1) ** 2)
        band = _BAND * max(height, width)
        around = np.maximum(across - 1, 0) * (x2 - x1) / 2 + np.maximum(down - 1, 0) * (y2 - y1) / 2 <= band
        background = (marks == BACKGROUND) & around
        if not background.any():
            background = (
                np.minimum(np.minimum(rows, height - 1 - rows), np.minimum(columns, width - 1 - columns)) < band
            )
            background = background & (marks != 1)
        weights = (marks != BACKGROUND) * np.exp(-(across**2) - down**2), background.astype(np.float64)
        colors = MixtureModel(embedding.planes)
        mask = marks != BACKGROUND
        for _ in range(self.max_rounds):
            gain = colors.log_likelihood(weights[0]) - colors.log_likelihood(weights[1]) + nearness
            before, mask = mask, cut(embedding.flow(self.smoothness), gain, marks)
            if not mask.any():  # the border of a small object may cost more than it gains, but the box says it is there
                mask = before
                break
            if (mask == before).all():
                break
            weights = mask.astype(np.float64), (~mask).astype(np.float64)
        return mask, gain
