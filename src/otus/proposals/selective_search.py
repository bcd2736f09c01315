"""Selective Search: region proposals by hierarchical grouping of an over-segmentation.

Shape shorthand: C channels, H x W the image, R regions, B bins of a region's histograms, K pairs of neighbours.

Paper: "Selective Search for Object Recognition" (Uijlings, van de Sande, Gevers and Smeulders, IJCV 2013): grouping in
section 3.1, similarities and colour spaces in 3.2, the order of the proposals in 3.3, the presets in section 5. The initial
regions are those of Felzenszwalb and Huttenlocher (:mod:`otus.proposals.oversegmentation`), sigma 0.8.
Departures: every channel is scaled to 0..255, hue too, which the paper leaves open; textures are Gaussian derivatives along
x and y, projected on the eight directions, and their bins reach to 30 per pixel; similarities are integers, 2^24 for 1; a
box that nearly coincides with an earlier one (IoU 0.85) is left out, while the paper leaves out equal ones only. OpenCV's
presets of the same names have other scales, 150 and 300 (fast) and 150 to 600 (quality), and another order: of its first
500 boxes with ``quality``, 45% are smaller than 32 x 32, of ours 18%. With few proposals it therefore has a higher recall
of small objects at IoU 0.5, and a lower recall of the others at IoU 0.7.
"""

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import Flag, auto
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt8

from otus.errors import ShapeError, UsageError
from otus.proposals import _selective_search_kernels as kernels
from otus.proposals.colour import ColourSpace, colour_planes
from otus.proposals.interface import Proposals
from otus.proposals.oversegmentation import PixelGraph, gaussian_derivatives

VERSION = 1
"""Increased whenever the same parameters give other proposals, which invalidates cached ones."""


MAX_DERIVATIVE = 30.0
"""Derivative, per pixel, up to which the texture bins reach; larger ones are in the last bin."""


class Similarity(Flag):
    """Similarity measures of two regions, each in [0, 1]; the chosen ones are added."""

    COLOUR = auto()
    """Intersection of their colour histograms: 25 bins per channel."""
    TEXTURE = auto()
    """Intersection of their histograms of derivatives: 8 directions with 10 bins each per channel."""
    SIZE = auto()
    """1 - (size(a) + size(b)) / size(image), so that small regions are merged early."""
    FILL = auto()
    """1 - (size(box around both) - size(a) - size(b)) / size(image), so that regions that fit into each other are merged."""


@dataclass(frozen=True)
class Strategies:
    """Complementary grouping strategies: every combination of colour space, scale and similarity."""

    spaces: tuple[ColourSpace, ...]
    scales: tuple[float, ...]
    similarities: tuple[Similarity, ...]


Mode = Literal["fast", "quality"]

_ALL = Similarity.COLOUR | Similarity.TEXTURE | Similarity.SIZE | Similarity.FILL
MODES: Mapping[str, Strategies] = {
    "fast": Strategies(
        (ColourSpace.HSV, ColourSpace.LAB),
        (50, 100),
        (_ALL, _ALL & ~Similarity.COLOUR),
    ),
    "quality": Strategies(
        (ColourSpace.HSV, ColourSpace.LAB, ColourSpace.RGI, ColourSpace.HUE, ColourSpace.GREY),
        (50, 100, 150, 300),
        (_ALL, _ALL & ~Similarity.COLOUR, Similarity.FILL, Similarity.SIZE),
    ),
}
"""The paper's two presets, with 8 and with 80 strategies."""


class Regions(NamedTuple):
    """The features of an image's R regions that grouping needs.

    Parameters
    ----------
    sizes
        (R,) number of pixels.
    boxes_xyxy
        (R, 4) bounding boxes.
    counts
        (R, B) number of pixels in each bin: per channel 25 bins of colour, then per channel 8 times 10 bins of texture.
    neighbours
        (K, 2) pairs of adjacent regions.
    """

    sizes: Int[np.ndarray, "r"]
    boxes_xyxy: Int[np.ndarray, "r 4"]
    counts: Int[np.ndarray, "r b"]
    neighbours: Int[np.ndarray, "k 2"]


@dataclass(frozen=True)
class SelectiveSearch:
    """Selective Search as a proposer; deterministic whatever the number of threads.

    Parameters
    ----------
    mode
        ``fast``, ``quality``, or custom strategies.
    seed
        Random seed of the order of the proposals.
    same_iou
        A box whose IoU with an earlier one is at least this is a duplicate and left out; 1 for equal boxes only, as in the
        paper.
    workers
        Number of threads.

    Examples
    --------
    >>> image = np.zeros((40, 60, 3), dtype=np.uint8)
    >>> image[10:30, 20:50] = 200, 30, 30
    >>> [20, 10, 50, 30] in SelectiveSearch()(image).boxes_xyxy.tolist()
    True
    """

    mode: Mode | Strategies = "fast"
    seed: int = 0
    same_iou: float = 0.85
    workers: int = 1

    def __post_init__(self) -> None:
        if not isinstance(self.mode, Strategies) and self.mode not in MODES:
            raise UsageError(f"mode: expected {' or '.join(MODES)}, got {self.mode!r}")
        if not 0 < self.same_iou <= 1:
            raise UsageError(f"same_iou: expected a number above 0 and at most 1, got {self.same_iou}")
        if self.seed < 0:
            raise UsageError(f"seed: expected a number >= 0, got {self.seed}")
        if self.workers < 1:
            raise UsageError(f"workers: expected a number >= 1, got {self.workers}")

    @property
    def strategies(self) -> Strategies:
        """The combined strategies."""
        return self.mode if isinstance(self.mode, Strategies) else MODES[self.mode]

    @property
    def parameters(self) -> dict[str, Any]:
        """Everything besides the image that the proposals depend on."""
        return {
            "method": "selective-search",
            "version": VERSION,
            "spaces": [space.value for space in self.strategies.spaces],
            "scales": list(self.strategies.scales),
            "similarities": [similarity.value for similarity in self.strategies.similarities],
            "seed": self.seed,
            "same_iou": self.same_iou,
        }

    def __call__(self, image: UInt8[np.ndarray, "h w 3"]) -> Proposals:
        """Return the boxes of all regions of all hierarchies, without near-duplicates of earlier ones.

        Boxes are sorted by position times a random number in [0, 1), the position counted from the last region merged, so
        that large regions tend to come first. The score is 1 / (1 + position * random number).

        Raises
        ------
        ShapeError
            If the image is not uint8 (H, W, 3) with pixels.
        """
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
            raise ShapeError(f"image: expected uint8 (H, W, 3) with pixels, got {image.dtype} {image.shape}")
        with ThreadPoolExecutor(self.workers) as pool:
            by_space = pool.map(lambda space: list(self._hierarchies(image, space)), self.strategies.spaces)
            hierarchies = [boxes for space_hierarchies in by_space for boxes in space_hierarchies]
        random = np.random.default_rng(self.seed)
        priorities = [np.arange(len(boxes), 0, -1) * random.random(len(boxes)) for boxes in hierarchies]
        priority = np.concatenate(priorities)
        order = np.argsort(priority, kind="stable")
        boxes = np.concatenate(hierarchies)[order]
        kept = kernels.distinct(boxes, self.same_iou)
        return Proposals(boxes[kept], 1 / (1 + priority[order[kept]]))

    def _hierarchies(
        self, image: UInt8[np.ndarray, "h w 3"], space: ColourSpace
    ) -> Iterator[Int[np.ndarray, "nodes 4"]]:
        planes = colour_planes(image, space)
        graph = PixelGraph(planes)
        bins = pixel_bins(planes)
        for scale in self.strategies.scales:
            regions = describe_regions(graph.regions(scale=scale, min_size=round(scale)), *bins)
            for similarity in self.strategies.similarities:
                yield hierarchical_grouping(regions, similarity)


def selective_search(
    image: UInt8[np.ndarray, "h w 3"],
    *,
    mode: Mode | Strategies = SelectiveSearch.mode,
    seed: int = SelectiveSearch.seed,
    same_iou: float = SelectiveSearch.same_iou,
    workers: int = SelectiveSearch.workers,
) -> Proposals:
    """Return the proposals of an image, see :class:`SelectiveSearch`."""
    return SelectiveSearch(mode, seed, same_iou, workers)(image)


def pixel_bins(planes: Float[np.ndarray, "c h w"]) -> tuple[UInt8[np.ndarray, "c h w"], Int[np.ndarray, "c4 h w"]]:
    """Return the colour bin and the signed texture bins (four directions per channel) of every pixel."""
    colours = np.clip(planes * np.float32(kernels.COLOUR_BINS / 256), 0, kernels.COLOUR_BINS - 1).astype(np.uint8)
    along_x, along_y = gaussian_derivatives(planes, sigma=1.0)
    return colours, kernels.texture_bins(along_x, along_y, kernels.TEXTURE_BINS / MAX_DERIVATIVE)


def describe_regions(
    labels: Int[np.ndarray, "h w"], colours: UInt8[np.ndarray, "c h w"], textures: Int[np.ndarray, "c4 h w"]
) -> Regions:
    """Compute the features of an over-segmentation's regions from the bins of their pixels."""
    count = int(labels.max()) + 1
    return Regions(*kernels.describe_regions(labels, count, colours, textures), kernels.neighbours(labels, count))


def hierarchical_grouping(regions: Regions, similarity: Similarity) -> Int[np.ndarray, "nodes 4"]:
    """Merge the two most similar neighbours repeatedly; return the boxes of all regions in order of creation."""
    flags = [
        measure in similarity for measure in (Similarity.COLOUR, Similarity.TEXTURE, Similarity.SIZE, Similarity.FILL)
    ]
    return kernels.group(*regions, int(regions.sizes.sum()), *flags)


def reference_hierarchical_grouping(regions: Regions, similarity: Similarity) -> Int[np.ndarray, "nodes 4"]:
    """Compute :func:`hierarchical_grouping` slowly and readably, as the reference for tests."""
    image_size = int(regions.sizes.sum())
    channels = regions.counts.shape[1] // (kernels.COLOUR_BINS + kernels.DIRECTIONS * kernels.TEXTURE_BINS)
    first_texture_bin = channels * kernels.COLOUR_BINS
    colours, textures = slice(first_texture_bin), slice(first_texture_bin, None)
    sizes, boxes, counts = list(regions.sizes), list(regions.boxes_xyxy), list(regions.counts)
    alive = set(range(len(sizes)))
    adjacent: dict[int, list[int]] = {region: [] for region in alive}
    similarities: dict[tuple[int, int], int] = {}  # in order of creation: of equal ones the first is merged

    def intersection(a: int, b: int, bins: slice, values_per_pixel: int) -> int:
        histograms = [
            (counts[r][bins] * (kernels.ONE / (sizes[r] * values_per_pixel))).astype(np.int64) for r in (a, b)
        ]
        return int(np.minimum(*histograms).sum())

    def add_pair(a: int, b: int) -> None:
        adjacent[a].append(b)
        adjacent[b].append(a)
        size = sizes[a] + sizes[b]
        total = 0
        if Similarity.COLOUR in similarity:
            total += intersection(a, b, colours, channels)
        if Similarity.TEXTURE in similarity:
            total += intersection(a, b, textures, channels * kernels.DIRECTIONS)
        if Similarity.SIZE in similarity:
            total += (image_size - size) * kernels.ONE // image_size
        if Similarity.FILL in similarity:
            x1, y1 = np.minimum(boxes[a][:2], boxes[b][:2])
            x2, y2 = np.maximum(boxes[a][2:], boxes[b][2:])
            total += (image_size - ((x2 - x1) * (y2 - y1) - size)) * kernels.ONE // image_size
        similarities[a, b] = int(total)

    for a, b in regions.neighbours.tolist():
        add_pair(a, b)
    while similarities:
        a, b = max(similarities, key=lambda pair: similarities[pair])
        new = len(sizes)
        alive = (alive - {a, b}) | {new}
        sizes.append(sizes[a] + sizes[b])
        boxes.append(np.concatenate([np.minimum(boxes[a][:2], boxes[b][:2]), np.maximum(boxes[a][2:], boxes[b][2:])]))
        counts.append(counts[a] + counts[b])
        adjacent[new] = []
        similarities = {pair: value for pair, value in similarities.items() if alive.issuperset(pair)}
        for neighbour in dict.fromkeys(adjacent[a] + adjacent[b]):
            if neighbour in alive:
                add_pair(neighbour, new)
    return np.array(boxes, dtype=np.int64)
