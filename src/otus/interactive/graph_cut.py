"""GraphCut: a mask from a few points or strokes, as the cheapest cut between object and background.

Shape shorthand: H x W the image as it is worked on, L labels (background and the objects), four planes of edges.

Paper: "Interactive Graph Cuts for Optimal Boundary & Region Segmentation of Objects in N-D Images" (Boykov and Jolly, ICCV
2001): seeds are hard, regions are told apart by histograms of the seeds' colours (section 2.4), edges cost
``lambda exp(-beta |difference in colour|^2) / distance``. beta is that of "GrabCut" (Rother, Kolmogorov and Blake, SIGGRAPH
2004), equation 5. Going on from the flow of the cut before: :class:`~otus.interactive.max_flow.GridFlow`.
Departures, each measured by ``benchmarks/interactive.py``: with a few clicks the colours of the seeds say little, so (1) a
location term compares the geodesic distances to the seeds of both sides, "Geodesic Graph Cut for Interactive Image
Segmentation" (Price, Morse and Cohen, CVPR 2010), equation 6; (2) colour models are fitted to the nearer side's pixels, then
once more to the mask of the cut, as GrabCut iterates; (3) the image's border counts as background, at a handicap. With
``location=0`` and ``rounds=1`` it is the paper's.
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
"""A larger image is cut reduced, and then again along the borders in full."""
COST_UNIT = 1000
"""Costs are whole numbers of thousandths: cuts are exact, and the same however they were come by."""
HARD = 10_000_000
"""What a seed of the other side costs."""
POINT_RADIUS = 0.015
"""Of the disc that a point marks, as a share of the longer side."""
_FIRST_SEED_WEIGHT, _SEED_WEIGHT = 30.0, 300.0  # of a marked pixel against one that is not, in the colour models
_BORDER = -1
_LEAST_REACH, _REACH = 3.0, 0.2  # pixels, and share of the root of a mask's area
_REFINED_PIXELS = 1
_TILE, _TILE_MARGIN = 512, 32


@dataclass(eq=False)
class GridEmbedding:
    """An image as a grid to be cut: its colours, edges, and the flow of the last cut.

    Parameters
    ----------
    image
        (H0, W0, 3) as it came.
    factor
        By which it is reduced: a pixel of the grid is so many pixels of the image wide.
    planes
        (3, H, W) its colours in CIE L*a*b*, each 0..255.
    squared_differences
        (4, H, W) of the colours at both ends of each edge.
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
    def of(cls, image: UInt8[np.ndarray, "h0 w0 3"], *, max_pixels: int = MAX_PIXELS) -> "GridEmbedding":
        """Of an RGB image, reduced to at most so many pixels.

        Raises
        ------
        ShapeError
            If it is no RGB image of at least one pixel.
        """
        image = np.asarray(image)
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
            raise ShapeError(f"image: expected uint8 (H, W, 3), got {image.dtype} {image.shape}")
        factor = math.ceil(math.sqrt(image.shape[0] * image.shape[1] / max_pixels))
        planes = np.ascontiguousarray(colour_planes(_reduced(image, factor), ColourSpace.LAB))
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
        """Return the geodesic distances to the seeds of a label; those of the last prompt are used again where they stay."""
        kept = self._distances.get((label, color_weight))
        if kept is None or not np.array_equal(kept[0], seeds):
            if color_weight not in self._lengths:
                self._lengths[color_weight] = edge_lengths(self.squared_differences, color_weight=color_weight)
            kept = self._distances[label, color_weight] = (
                seeds,
                geodesic_distances(seeds, self._lengths[color_weight]),
            )
        return kept[1]

    def flow(self, smoothness: float) -> GridFlow:
        """The flow on this image's grid, which each cut goes on from."""
        if smoothness not in self.flows:
            self.flows[smoothness] = GridFlow(edge_costs(self.squared_differences, smoothness), neighbors=8)
        return self.flows[smoothness]


class CutRound(NamedTuple):
    """One round: what colours were fitted to, and what came of it.

    ``near`` is the location term of each label, -1 to 1; ``weights`` what its colours were fitted to; ``likelier`` the
    colour term; ``gains`` what is gained where a pixel has a label rather than the best other; ``labels`` the cut.
    """

    near: Float32[np.ndarray, "l h w"]
    weights: Float32[np.ndarray, "l h w"]
    likelier: Float32[np.ndarray, "l h w"]
    gains: Float32[np.ndarray, "l h w"]
    labels: Int[np.ndarray, "h w"]


def edge_costs(squared_differences: Float32[np.ndarray, "4 h w"], smoothness: float) -> Int32[np.ndarray, "4 h w"]:
    """Return the cost of cutting each edge: smoothness * exp(-beta * difference^2) / distance.

    beta is 1 / (2 * mean of difference^2), so that it follows the contrast of the image.
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
        The paper's lambda: what a step across the border costs where colours are equal.
    color
        Weight of the colour term, log of how much likelier a colour is on the object.
    max_color
        Limit of that term: a colour alone counts no more.
    location
        Weight of the location term, -1 at a seed of the background to 1 at one of the object.
    color_distance
        How far a step in colour is in the geodesic distances of the location term, against one in the image.
    border_handicap
        How much farther than a seed of the background the image's border counts, as a share of the longer side.
    rounds
        How often colours are fitted and cut.
    """

    smoothness: float = 10.0
    color: float = 1.0
    max_color: float = 3.0
    location: float = 2.0
    color_distance: float = 0.1
    border_handicap: float = 0.02
    rounds: int = 2
    name = "graph-cut"

    def embed(self, image: UInt8[np.ndarray, "h w 3"]) -> GridEmbedding:
        """Return the colours and edges of an image; a large one is reduced."""
        return GridEmbedding.of(image)

    def segment(self, embedding: GridEmbedding, prompt: Prompt) -> MaskCandidates:
        """Return a mask for each object that is marked.

        Without a seed of the background the image's border stands for it; where everything is marked, the marks are the
        answer. A mask, that of the frame before of a video, marks what is well inside and what is well outside of it.

        Raises
        ------
        UsageError
            A prompt without any seed of an object, or with parts that this method does not use.
        ShapeError
            As of :meth:`Prompt.seeds`.
        """
        objects, marks = self.marks_of(embedding, prompt)
        grid_marks = reduced_marks(marks, embedding.factor)
        *_, last = self.rounds_of(embedding, grid_marks, len(objects) + 1, start=_start(embedding, prompt, objects))
        masks, scores = [], []
        for number in range(1, len(objects) + 1):
            mask = connected_to(last.labels == number, grid_marks == number)
            scores.append(confidence(mask, last.gains[number]))
            masks.append(refine(embedding, mask, last.gains[number], marks, number, smoothness=self.smoothness))
        return MaskCandidates(Masks.from_dense(apart(masks)), np.array(scores), objects.astype(np.int64))

    def marks_of(
        self, embedding: GridEmbedding, prompt: Prompt
    ) -> tuple[Int[np.ndarray, "objects"], Int[np.ndarray, "h0 w0"]]:
        """Return the numbers of the objects that are marked, and the marks: -1 for none, 0 background, 1 the first of
        them."""
        if prompt.text is not None or prompt.box_xyxy is not None:
            raise UsageError(f"{self.name}: takes points, strokes, scribbles and a mask, no box and no text")
        seeds = prompt.seeds(embedding.size_hw, point_radius=POINT_RADIUS * max(embedding.size_hw))
        if prompt.mask is not None:
            from_mask = marks_of_mask(prompt.mask)
            seeds = np.where(seeds == UNMARKED, from_mask, seeds)
        objects = np.unique(seeds[seeds > BACKGROUND])
        if not len(objects):
            raise UsageError(f"{self.name}: nothing is marked as object; give a point, stroke or scribble on it")
        marks = np.where(seeds == UNMARKED, UNMARKED, np.searchsorted([BACKGROUND, *objects], seeds))
        return objects, marks

    def rounds_of(
        self,
        embedding: GridEmbedding,
        marks: Int[np.ndarray, "h w"],
        count: int,
        *,
        start: Int[np.ndarray, "h w"] | None = None,
    ) -> Iterator[CutRound]:
        """Yield each round of fitting colours and cutting; the last is the answer.

        Parameters
        ----------
        marks
            -1 where nothing is marked, else a label from 0, background, to ``count`` - 1.
        start
            Labels whose colours are fitted first (default: those of the nearer marks).
        """
        near = self.nearness(embedding, marks, count)
        each = np.arange(count)[:, None, None]
        if start is None:
            labels, weights = near.argmax(axis=0), _with_seeds(np.maximum(near, 0), marks, _FIRST_SEED_WEIGHT)
        else:
            labels, weights = start, (start == each).astype(np.float32)
        for _ in range(self.rounds):
            likelier = np.empty_like(near)
            for label in range(count) if count > 2 else (1,):
                on_label = embedding.colors.log_likelihood(weights[label])
                others = weights[0] if count == 2 else weights.sum(axis=0) - weights[label]
                np.subtract(on_label, embedding.colors.log_likelihood(others), out=likelier[label])
            if count == 2:
                np.negative(likelier[1], out=likelier[0])
            np.clip(likelier, -self.max_color, self.max_color, out=likelier)
            gains = self.color * likelier + self.location * near
            if count == 2:
                labels = cut(embedding.flow(self.smoothness), gains[1], marks).astype(np.int64)
            else:
                costs = edge_costs(embedding.squared_differences, self.smoothness)
                labels = alpha_expansion(_as_costs(gains, marks), costs, start=labels)
            yield CutRound(near, weights, likelier, gains, labels)
            weights = _with_seeds((labels == each).astype(np.float32), marks, _SEED_WEIGHT)

    def nearness(
        self, embedding: GridEmbedding, marks: Int[np.ndarray, "h w"], count: int
    ) -> Float32[np.ndarray, "l h w"]:
        """Return for each label 1 at its seeds, 0 where another's are as near in the geodesic distance, -1 at these."""
        distances = np.stack(
            [embedding.distances(label, marks == label, color_weight=self.color_distance) for label in range(count)]
        )
        border = np.ones(embedding.grid_hw, dtype=bool)
        border[1:-1, 1:-1] = False
        border &= marks <= BACKGROUND
        to_border = embedding.distances(_BORDER, border, color_weight=self.color_distance)
        distances[0] = np.minimum(distances[0], to_border + np.float32(256 * self.border_handicap))
        near = np.empty_like(distances)
        for label in range(count):
            other = distances[1 - label] if count == 2 else np.delete(distances, label, axis=0).min(axis=0)
            near[label] = (other - distances[label]) / np.maximum(other + distances[label], np.float32(1e-6))
        return near


def _with_seeds(
    weights: Float32[np.ndarray, "l h w"], marks: Int[np.ndarray, "h w"], seed_weight: float
) -> Float32[np.ndarray, "l h w"]:
    """Add to the weights of each label that of its seeds, in place."""
    rows, columns = np.nonzero(marks != UNMARKED)
    weights[marks[rows, columns], rows, columns] += np.float32(seed_weight)
    return weights


def cut(
    flow: GridFlow, gain: Float[np.ndarray, "h w"], marks: Int[np.ndarray, "h w"], label: int = 1
) -> Bool[np.ndarray, "h w"]:
    """Return the best mask for what is gained where a pixel is in it; what is marked as ``label`` is, other marks are
    not."""
    costs = np.rint(gain * COST_UNIT).astype(np.int32)
    costs[marks != UNMARKED] = -HARD
    costs[marks == label] = HARD
    return flow.solve(np.maximum(costs, 0), np.maximum(-costs, 0)).source_side


def marks_of_mask(mask: Bool[np.ndarray, "h w"]) -> Int[np.ndarray, "h w"]:
    """Return marks for the object of a mask that has moved a little: what lies farther from its border stays as it is."""
    from scipy.ndimage import distance_transform_edt

    reach = max(_LEAST_REACH, _REACH * math.sqrt(float(mask.sum())))
    inside = distance_transform_edt(np.pad(mask, 1, mode="edge"))[1:-1, 1:-1]
    outside = distance_transform_edt(np.pad(~mask, 1, mode="edge"))[1:-1, 1:-1]
    reach_in = min(reach, 0.5 * float(inside.max()))  # of a thin object its middle stays
    return np.where(mask & (inside > reach_in), 1, np.where(~mask & (outside > reach), BACKGROUND, UNMARKED))


def reduced_marks(marks: Int[np.ndarray, "h0 w0"], factor: int) -> Int[np.ndarray, "h w"]:
    """Return the marks on the pixels of a reduced image; of several in one pixel that of the highest label counts."""
    if factor == 1:
        return marks
    reduced = np.full([-(-side // factor) for side in marks.shape], UNMARKED, marks.dtype)
    rows, columns = np.nonzero(marks != UNMARKED)
    np.maximum.at(reduced, (rows // factor, columns // factor), marks[rows, columns])
    return reduced


def connected_to(mask: Bool[np.ndarray, "h w"], seeds: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    """Return the parts of a mask in which there is a seed: parts of a like colour elsewhere are other objects."""
    from scipy.ndimage import label

    parts, count = label(mask, np.ones((3, 3)))
    keep = np.zeros(count + 1, dtype=bool)
    keep[parts[seeds]] = True
    keep[0] = False
    return keep[parts]


def confidence(mask: Bool[np.ndarray, "h w"], gain: Float[np.ndarray, "h w"]) -> float:
    """Return the mean over a mask of how likely its pixels are in it by their gain, the logistic function of it."""
    return float(np.exp(-np.logaddexp(0, -gain[mask].astype(np.float64))).mean()) if mask.any() else 0.0


def refine(
    embedding: GridEmbedding,
    mask: Bool[np.ndarray, "h w"],
    gain: Float32[np.ndarray, "h w"],
    marks: Int[np.ndarray, "h0 w0"],
    label: int,
    *,
    smoothness: float,
) -> Bool[np.ndarray, "h0 w0"]:
    """Return the mask in the frame of the image: its border is cut again in full, tile by tile, within a reduced pixel."""
    factor, (height, width) = embedding.factor, embedding.size_hw
    if factor == 1:
        return mask
    from scipy.ndimage import maximum_filter, minimum_filter

    square = 2 * _REFINED_PIXELS + 1
    free = maximum_filter(mask, square) & ~minimum_filter(mask, square)
    refined = _enlarged(mask, factor, (0, height), (0, width))
    for top in range(0, height, _TILE):
        for left in range(0, width, _TILE):
            rows = max(0, top - _TILE_MARGIN), min(height, top + _TILE + _TILE_MARGIN)
            columns = max(0, left - _TILE_MARGIN), min(width, left + _TILE + _TILE_MARGIN)
            open_ = _enlarged(free, factor, rows, columns)
            if not open_.any():
                continue
            part = slice(*rows), slice(*columns)
            planes = np.ascontiguousarray(colour_planes(embedding.image[part], ColourSpace.LAB))
            flow = GridFlow(edge_costs(kernels.squared_differences(planes), smoothness), neighbors=8)
            outside = np.where(_enlarged(mask, factor, rows, columns), label, UNMARKED - 1)
            marked = np.where((marks[part] == UNMARKED) & ~open_, outside, marks[part])
            found = cut(flow, _enlarged(gain, factor, rows, columns), marked, label)
            core = slice(top, top + _TILE), slice(left, left + _TILE)
            refined[core] = found[top - rows[0] :, left - columns[0] :][:_TILE, :_TILE]
    return refined


def apart(masks: Sequence[Bool[np.ndarray, "h w"]]) -> Bool[np.ndarray, "n h w"]:
    """Return the masks without the pixels that one before has: refined by themselves they may meet."""
    stack = np.stack(masks)
    taken = np.zeros(stack.shape[1:], dtype=bool)
    for mask in stack:
        mask &= ~taken
        taken |= mask
    return stack


def _start(
    embedding: GridEmbedding, prompt: Prompt, objects: Int[np.ndarray, "objects"]
) -> Int[np.ndarray, "h w"] | None:
    """The labels of a prompt's mask on the grid."""
    if prompt.mask is None or len(objects) > 1:
        return None
    rows, columns = (
        np.minimum(np.arange(side) * embedding.factor + embedding.factor // 2, whole - 1)
        for side, whole in zip(embedding.grid_hw, prompt.mask.shape, strict=True)
    )
    return prompt.mask[np.ix_(rows, columns)].astype(np.int64)


def _as_costs(gains: Float32[np.ndarray, "l h w"], marks: Int[np.ndarray, "h w"]) -> Int32[np.ndarray, "l h w"]:
    """What each label costs: half of what it does not gain, so that of two labels it is as in the cut."""
    costs = np.rint(gains * (-COST_UNIT / 2)).astype(np.int32)
    for label, plane in enumerate(costs):
        plane[(marks != UNMARKED) & (marks != label)] = HARD
    return costs


def _enlarged(plane: np.ndarray, factor: int, rows: tuple[int, int], columns: tuple[int, int]) -> np.ndarray:
    """Those rows and columns of an image of which each pixel of ``plane`` is ``factor`` pixels wide."""
    return plane[np.arange(*rows)[:, None] // factor, np.arange(*columns) // factor]


def _reduced(image: UInt8[np.ndarray, "h0 w0 3"], factor: int) -> UInt8[np.ndarray, "h w 3"]:
    """Means of squares of pixels."""
    from PIL import Image

    return image if factor == 1 else np.asarray(Image.fromarray(image).reduce(factor))
