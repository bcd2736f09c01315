"""GraphCut: a mask from a few points or strokes, by a minimum cut between object and background.

Shape shorthand: H0 x W0 the image, H x W the (possibly downsampled) grid, L labels (background and the objects); four planes
of edges, to the right, down, down right and down left.

Paper: "Interactive Graph Cuts for Optimal Boundary & Region Segmentation of Objects in N-D Images" (Boykov and Jolly, ICCV
2001): seeds are hard constraints, the region term compares histograms of the seeds' colours (section 2.4), the boundary term
is ``lambda exp(-beta |difference in colour|^2) / distance``. beta is that of "GrabCut" (Rother, Kolmogorov and Blake,
SIGGRAPH 2004), equation 5. Each cut starts from the flow of the previous one: :class:`~otus.interactive.max_flow.GridFlow`.
Departures, each measured by ``benchmarks/interactive.py``: a few clicks say little about colours, so (1) the region term has
a location term, which compares the geodesic distances to the seeds of both sides, "Geodesic Graph Cut for Interactive Image
Segmentation" (Price, Morse and Cohen, CVPR 2010), equation 6; (2) colour models are fitted to the pixels nearer to each
side's seeds, then again to the mask of the cut, as GrabCut iterates; (3) the image's border counts as background, with a
handicap. With ``location=0`` and ``rounds=1`` it is the paper's method.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float32, Int, Int32, UInt8

from otus.errors import ShapeError, UsageError
from otus.interactive import _grid_kernels as kernels
from otus.interactive.color_models import HistogramModel
from otus.interactive.geodesic import edge_lengths, geodesic_distances
from otus.interactive.max_flow import GridFlow
from otus.interactive.multi_object import alpha_expansion
from otus.proposals.colour import ColourSpace, colour_planes
from otus.structures import MaskCandidates, Masks, Prompt
from otus.structures.prompt import BACKGROUND, UNMARKED

MAX_PIXELS = 500_000
"""Larger images are cut at reduced resolution, and then again at full resolution along the border of the mask."""
COST_UNIT = 1000
"""Costs are integers, in thousandths: cuts are then exact, and do not depend on the flow that they start from."""
SEED_COST = 10_000_000
"""Cost of a label that contradicts a seed."""
POINT_RADIUS = 0.015
"""Radius of the disc that a point marks, as a fraction of the image's longer side."""
_FIRST_SEED_WEIGHT, _SEED_WEIGHT = 30.0, 300.0  # of a marked pixel in the colour models; other pixels weigh up to 1
_BORDER = -1
_MIN_MARGIN, _MARGIN = 3.0, 0.2  # of the unknown band around a mask's border: pixels, fraction of the root of its area
_REFINED_PIXELS = 1
_TILE, _TILE_MARGIN = 512, 32


@dataclass(eq=False)
class GridEmbedding:
    """An image as a grid for graph cuts: colours, edges, and the flow of the last cut.

    Parameters
    ----------
    image
        (H0, W0, 3) RGB image.
    factor
        Integer factor by which the grid is downsampled: a pixel of it is ``factor`` pixels of the image wide.
    planes
        (3, H, W) colours of the grid in CIE L*a*b*, each 0..255.
    squared_differences
        (4, H, W) squared colour difference of both ends of each edge.
    """

    image: UInt8[np.ndarray, "h0 w0 3"]
    factor: int
    planes: Float32[np.ndarray, "3 h w"]
    squared_differences: Float32[np.ndarray, "4 h w"]
    flows: dict[float, GridFlow] = field(default_factory=dict, repr=False)
    _lengths: dict[float, np.ndarray] = field(default_factory=dict, repr=False)
    _distances: dict[tuple[int, float], tuple[np.ndarray, np.ndarray]] = field(default_factory=dict, repr=False)
    colors: HistogramModel = field(init=False)

    def __post_init__(self) -> None:
        self.colors = HistogramModel(self.planes)

    @classmethod
    def from_image(cls, image: UInt8[np.ndarray, "h0 w0 3"], *, max_pixels: int = MAX_PIXELS) -> "GridEmbedding":
        """Return the grid of an RGB image, downsampled to at most ``max_pixels``.

        Raises
        ------
        ShapeError
            If it is not an RGB image of at least one pixel.
        """
        image = np.asarray(image)
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
            raise ShapeError(f"image: expected uint8 (H, W, 3), got {image.dtype} {image.shape}")
        factor = math.ceil(math.sqrt(image.shape[0] * image.shape[1] / max_pixels))
        planes = np.ascontiguousarray(colour_planes(_downsampled(image, factor), ColourSpace.LAB))
        return cls(image, factor, planes, kernels.squared_differences(planes))

    @property
    def size_hw(self) -> tuple[int, int]:
        """Height and width of the image."""
        return self.image.shape[0], self.image.shape[1]

    @property
    def grid_hw(self) -> tuple[int, int]:
        """Height and width of the grid."""
        return self.planes.shape[1], self.planes.shape[2]

    def distances(
        self, label: int, seeds: Bool[np.ndarray, "h w"], *, color_weight: float
    ) -> Float32[np.ndarray, "h w"]:
        """Return the geodesic distances to the seeds of a label; they are cached until its seeds change."""
        cached = self._distances.get((label, color_weight))
        if cached is None or not np.array_equal(cached[0], seeds):
            if color_weight not in self._lengths:
                self._lengths[color_weight] = edge_lengths(self.squared_differences, color_weight=color_weight)
            cached = self._distances[label, color_weight] = (
                seeds,
                geodesic_distances(seeds, self._lengths[color_weight]),
            )
        return cached[1]

    def flow(self, smoothness: float) -> GridFlow:
        """Return the flow on this grid, from which each cut starts."""
        if smoothness not in self.flows:
            self.flows[smoothness] = GridFlow(edge_costs(self.squared_differences, smoothness), neighbors=8)
        return self.flows[smoothness]


class CutRound(NamedTuple):
    """One round of fitting colour models and cutting.

    Parameters
    ----------
    location_terms
        Location term of each label, -1 to 1.
    weights
        Weights of the pixels that each label's colour model was fitted to.
    color_terms
        Colour term of each label: a log-likelihood ratio.
    region_terms
        Region term of each label: how much a pixel favours it over the best other label.
    labels
        The cut.
    """

    location_terms: Float32[np.ndarray, "l h w"]
    weights: Float32[np.ndarray, "l h w"]
    color_terms: Float32[np.ndarray, "l h w"]
    region_terms: Float32[np.ndarray, "l h w"]
    labels: Int[np.ndarray, "h w"]


def edge_costs(squared_differences: Float32[np.ndarray, "4 h w"], smoothness: float) -> Int32[np.ndarray, "4 h w"]:
    """Return the boundary term, the cost of cutting each edge: smoothness * exp(-beta * difference^2) / distance.

    beta is 1 / (2 * mean of difference^2), which adapts it to the contrast of the image.
    """
    distance = np.sqrt(np.array([1, 1, 2, 2], np.float32))[:, None, None]
    beta = 1 / max(2 * float(squared_differences.mean()), 1e-6)
    costs = np.exp(np.float32(-beta) * squared_differences) * (np.float32(COST_UNIT * smoothness) / distance)
    return np.rint(costs).astype(np.int32)


@dataclass(frozen=True)
class GraphCut:
    """Masks from points, strokes and scribbles, for one object or several.

    Parameters
    ----------
    smoothness
        The paper's lambda: cost of cutting an edge between equal colours.
    color
        Weight of the colour term, the log-likelihood ratio of a pixel's colour on the object and beside it.
    max_color
        Maximum absolute value of the colour term.
    location
        Weight of the location term, which is -1 at a seed of the background, 1 at a seed of the object.
    color_distance
        Weight of colour differences against distances in the image, in the geodesic distances of the location term.
    border_handicap
        Added to the geodesic distances to the image's border, which counts as background; as a fraction of the longer side.
    rounds
        Number of rounds of fitting colour models and cutting.
    """

    smoothness: float = 10.0
    color: float = 1.0
    max_color: float = 3.0
    location: float = 2.0
    color_distance: float = 0.1
    border_handicap: float = 0.02
    rounds: int = 2
    name = "graph-cut"

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise UsageError(f"rounds: expected at least 1, got {self.rounds}")

    def embed(self, image: UInt8[np.ndarray, "h w 3"]) -> GridEmbedding:
        """Return the grid of an image, downsampled if it has more than :data:`MAX_PIXELS`."""
        return GridEmbedding.from_image(image)

    def segment(self, embedding: GridEmbedding, prompt: Prompt) -> MaskCandidates:
        """Return a mask for each object that is marked.

        If no background is marked, the image's border stands for it; if every pixel is marked, the marks are the result. A
        mask, e.g. of the previous frame of a video, marks pixels well inside it as object and those well outside as
        background.

        Raises
        ------
        UsageError
            If no object is marked, or the prompt has parts that this method does not support.
        ShapeError
            See :meth:`Prompt.seeds`.
        """
        objects, marks = self.marks(embedding, prompt)
        grid_marks = reduced_marks(marks, embedding.factor)
        initial_labels = _initial_labels(embedding, prompt, objects)
        *_, last = self.cut_rounds(embedding, grid_marks, len(objects) + 1, start=initial_labels)
        masks, scores = [], []
        for label in range(1, len(objects) + 1):
            mask = components_with_seeds(last.labels == label, grid_marks == label)
            region_term = last.region_terms[label]
            scores.append(confidence(mask, region_term))
            masks.append(refine(embedding, mask, region_term, marks, label, smoothness=self.smoothness))
        return MaskCandidates(Masks.from_dense(without_overlaps(masks)), np.array(scores), objects.astype(np.int64))

    def marks(
        self, embedding: GridEmbedding, prompt: Prompt
    ) -> tuple[Int[np.ndarray, "objects"], Int[np.ndarray, "h0 w0"]]:
        """Return the numbers of the marked objects, and the label of each pixel's mark.

        Labels are -1 for no mark, 0 for background, and k for the k-th of the objects, from 1.
        """
        if prompt.text is not None or prompt.box_xyxy is not None:
            raise UsageError(f"{self.name}: takes points, strokes, scribbles and a mask, no box and no text")
        seeds = prompt.seeds(embedding.size_hw, point_radius=POINT_RADIUS * max(embedding.size_hw))
        if prompt.mask is not None:
            seeds = np.where(seeds == UNMARKED, marks_from_mask(prompt.mask), seeds)
        objects = np.unique(seeds[seeds > BACKGROUND])
        if not len(objects):
            raise UsageError(f"{self.name}: nothing is marked as object; give a point, stroke or scribble on it")
        marks = np.where(seeds == UNMARKED, UNMARKED, np.searchsorted([BACKGROUND, *objects], seeds))
        return objects, marks

    def cut_rounds(
        self,
        embedding: GridEmbedding,
        marks: Int[np.ndarray, "h w"],
        num_labels: int,
        *,
        start: Int[np.ndarray, "h w"] | None = None,
    ) -> Iterator[CutRound]:
        """Yield each round of fitting colour models and cutting; the last one is the result.

        Parameters
        ----------
        marks
            Marks on the grid: -1 for none, else a label from 0, background, to ``num_labels`` - 1.
        start
            Labels to which the first colour models are fitted (default: those of the nearest marks).
        """
        location_terms = self.location_terms(embedding, marks, num_labels)
        label_column = np.arange(num_labels)[:, None, None]
        if start is None:
            labels = location_terms.argmax(axis=0)
            weights = _with_seeds(np.maximum(location_terms, 0), marks, _FIRST_SEED_WEIGHT)
        else:
            labels, weights = start, (start == label_column).astype(np.float32)
        for _ in range(self.rounds):
            color_terms = np.empty_like(location_terms)
            for label in range(num_labels) if num_labels > 2 else (1,):
                log_likelihood = embedding.colors.log_likelihood(weights[label])
                others = weights[0] if num_labels == 2 else weights.sum(axis=0) - weights[label]
                np.subtract(log_likelihood, embedding.colors.log_likelihood(others), out=color_terms[label])
            if num_labels == 2:
                np.negative(color_terms[1], out=color_terms[0])
            np.clip(color_terms, -self.max_color, self.max_color, out=color_terms)
            region_terms = self.color * color_terms + self.location * location_terms
            if num_labels == 2:
                labels = cut(embedding.flow(self.smoothness), region_terms[1], marks).astype(np.int64)
            else:
                costs = edge_costs(embedding.squared_differences, self.smoothness)
                labels = alpha_expansion(_label_costs(region_terms, marks), costs, start=labels)
            yield CutRound(location_terms, weights, color_terms, region_terms, labels)
            weights = _with_seeds((labels == label_column).astype(np.float32), marks, _SEED_WEIGHT)

    def location_terms(
        self, embedding: GridEmbedding, marks: Int[np.ndarray, "h w"], num_labels: int
    ) -> Float32[np.ndarray, "l h w"]:
        """Return (d_other - d) / (d_other + d) for each label.

        d is the geodesic distance to the label's seeds, d_other that to the nearest seed of any other label: 1 at the
        label's seeds, 0 at equal distances, -1 at other seeds.
        """
        distances = np.stack(
            [
                embedding.distances(label, marks == label, color_weight=self.color_distance)
                for label in range(num_labels)
            ]
        )
        border = np.ones(embedding.grid_hw, dtype=bool)
        border[1:-1, 1:-1] = False
        border &= marks <= BACKGROUND
        to_border = embedding.distances(_BORDER, border, color_weight=self.color_distance)
        distances[0] = np.minimum(distances[0], to_border + np.float32(256 * self.border_handicap))
        terms = np.empty_like(distances)
        for label in range(num_labels):
            other = distances[1 - label] if num_labels == 2 else np.delete(distances, label, axis=0).min(axis=0)
            terms[label] = (other - distances[label]) / np.maximum(other + distances[label], np.float32(1e-6))
        return terms


def _with_seeds(
    weights: Float32[np.ndarray, "l h w"], marks: Int[np.ndarray, "h w"], seed_weight: float
) -> Float32[np.ndarray, "l h w"]:
    """Add ``seed_weight`` to the weights of each label at its seeds, in place, and return them."""
    rows, columns = np.nonzero(marks != UNMARKED)
    weights[marks[rows, columns], rows, columns] += np.float32(seed_weight)
    return weights


def cut(
    flow: GridFlow, region_term: Float[np.ndarray, "h w"], marks: Int[np.ndarray, "h w"], label: int = 1
) -> Bool[np.ndarray, "h w"]:
    """Return the mask of the minimum cut.

    Parameters
    ----------
    flow
        Flow on the grid, with the boundary term.
    region_term
        How much each pixel favours the object.
    marks
        Hard constraints: pixels marked ``label`` are in the mask, pixels with other marks are not.
    """
    costs = np.rint(region_term * COST_UNIT).astype(np.int32)
    costs[marks != UNMARKED] = -SEED_COST
    costs[marks == label] = SEED_COST
    return flow.solve(np.maximum(costs, 0), np.maximum(-costs, 0)).source_side


def marks_from_mask(mask: Bool[np.ndarray, "h w"]) -> Int[np.ndarray, "h w"]:
    """Return object and background marks from the mask of an object that has moved a little: a band at its border is
    left unmarked."""
    from scipy.ndimage import distance_transform_edt

    margin = max(_MIN_MARGIN, _MARGIN * math.sqrt(float(mask.sum())))
    inside = distance_transform_edt(np.pad(mask, 1, mode="edge"))[1:-1, 1:-1]
    outside = distance_transform_edt(np.pad(~mask, 1, mode="edge"))[1:-1, 1:-1]
    inner_margin = min(margin, 0.5 * float(inside.max()))  # so that the middle of a thin object is marked
    return np.where(mask & (inside > inner_margin), 1, np.where(~mask & (outside > margin), BACKGROUND, UNMARKED))


def reduced_marks(marks: Int[np.ndarray, "h0 w0"], factor: int) -> Int[np.ndarray, "h w"]:
    """Return the marks on the downsampled grid; the highest label counts if a pixel of it has several."""
    if factor == 1:
        return marks
    reduced = np.full([-(-side // factor) for side in marks.shape], UNMARKED, marks.dtype)
    rows, columns = np.nonzero(marks != UNMARKED)
    np.maximum.at(reduced, (rows // factor, columns // factor), marks[rows, columns])
    return reduced


def components_with_seeds(mask: Bool[np.ndarray, "h w"], seeds: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    """Return the connected components of a mask that contain a seed; other ones are other objects of similar colours."""
    from scipy.ndimage import label

    components, count = label(mask, np.ones((3, 3)))
    keep = np.zeros(count + 1, dtype=bool)
    keep[components[seeds]] = True
    keep[0] = False
    return keep[components]


def confidence(mask: Bool[np.ndarray, "h w"], region_term: Float[np.ndarray, "h w"]) -> float:
    """Return the mean over a mask of the logistic function of the region term, 0 for an empty mask."""
    return float(np.exp(-np.logaddexp(0, -region_term[mask].astype(np.float64))).mean()) if mask.any() else 0.0


def refine(
    embedding: GridEmbedding,
    mask: Bool[np.ndarray, "h w"],
    region_term: Float32[np.ndarray, "h w"],
    marks: Int[np.ndarray, "h0 w0"],
    label: int,
    *,
    smoothness: float,
) -> Bool[np.ndarray, "h0 w0"]:
    """Return a mask of the grid at the image's resolution: a band at its border is cut again, tile by tile."""
    factor, (height, width) = embedding.factor, embedding.size_hw
    if factor == 1:
        return mask
    from scipy.ndimage import maximum_filter, minimum_filter

    square = 2 * _REFINED_PIXELS + 1
    band = maximum_filter(mask, square) & ~minimum_filter(mask, square)
    refined = _upsampled(mask, factor, (0, height), (0, width))
    for top in range(0, height, _TILE):
        for left in range(0, width, _TILE):
            rows = max(0, top - _TILE_MARGIN), min(height, top + _TILE + _TILE_MARGIN)
            columns = max(0, left - _TILE_MARGIN), min(width, left + _TILE + _TILE_MARGIN)
            tile_band = _upsampled(band, factor, rows, columns)
            if not tile_band.any():
                continue
            tile = slice(*rows), slice(*columns)
            planes = np.ascontiguousarray(colour_planes(embedding.image[tile], ColourSpace.LAB))
            flow = GridFlow(edge_costs(kernels.squared_differences(planes), smoothness), neighbors=8)
            fixed = np.where(_upsampled(mask, factor, rows, columns), label, UNMARKED - 1)
            tile_marks = np.where((marks[tile] == UNMARKED) & ~tile_band, fixed, marks[tile])
            tile_mask = cut(flow, _upsampled(region_term, factor, rows, columns), tile_marks, label)
            without_margin = slice(top, top + _TILE), slice(left, left + _TILE)
            refined[without_margin] = tile_mask[top - rows[0] :, left - columns[0] :][:_TILE, :_TILE]
    return refined


def without_overlaps(masks: Sequence[Bool[np.ndarray, "h w"]]) -> Bool[np.ndarray, "n h w"]:
    """Return the masks without the pixels of previous ones: they may overlap, since each is refined separately."""
    stack = np.stack(masks)
    occupied = np.zeros(stack.shape[1:], dtype=bool)
    for mask in stack:
        mask &= ~occupied
        occupied |= mask
    return stack


def _initial_labels(
    embedding: GridEmbedding, prompt: Prompt, objects: Int[np.ndarray, "objects"]
) -> Int[np.ndarray, "h w"] | None:
    """Return a prompt's mask, sampled on the grid; None if there is no mask or there are several objects."""
    if prompt.mask is None or len(objects) > 1:
        return None
    rows, columns = (
        np.minimum(np.arange(grid_side) * embedding.factor + embedding.factor // 2, side - 1)
        for grid_side, side in zip(embedding.grid_hw, prompt.mask.shape, strict=True)
    )
    return prompt.mask[np.ix_(rows, columns)].astype(np.int64)


def _label_costs(
    region_terms: Float32[np.ndarray, "l h w"], marks: Int[np.ndarray, "h w"]
) -> Int32[np.ndarray, "l h w"]:
    """Return the cost of each label: minus half its region term, so that with two labels the energy is that of the cut."""
    costs = np.rint(region_terms * (-COST_UNIT / 2)).astype(np.int32)
    for label, plane in enumerate(costs):
        plane[(marks != UNMARKED) & (marks != label)] = SEED_COST
    return costs


def _upsampled(plane: np.ndarray, factor: int, rows: tuple[int, int], columns: tuple[int, int]) -> np.ndarray:
    """Return the given rows and columns of a plane of the grid, repeated to the image's resolution."""
    return plane[np.arange(*rows)[:, None] // factor, np.arange(*columns) // factor]


def _downsampled(image: UInt8[np.ndarray, "h0 w0 3"], factor: int) -> UInt8[np.ndarray, "h w 3"]:
    """Return the means of ``factor`` x ``factor`` pixels."""
    from PIL import Image

    return image if factor == 1 else np.asarray(Image.fromarray(image).reduce(factor))
