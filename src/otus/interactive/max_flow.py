"""Maximum flow and minimum cut on pixel grids.

Shape shorthand: ``size`` is (H, W) or (D, H, W); K directions to the neighbours of a pixel, 4 or 8 in two dimensions, 6 or
26 in three.

Paper: "Maximum Flows by Incremental Breadth-First Search" (Goldberg, Hed, Kaplan, Tarjan and Werneck, ESA 2011), which ends
after O(n^2 m) steps for n pixels and m arcs whatever the capacities, while the algorithm of Boykov and Kolmogorov (PAMI
2004) has no such bound. Starting from the flow of the previous solve: "Dynamic Graph Cuts for Efficient Inference in Markov
Random Fields" (Kohli and Torr, PAMI 2007).
Departures: the trees start from all pixels with excess, and the graph has no source and sink nodes; paths of a single arc
are pushed in a first pass; an orphan compares all its neighbours and keeps no current arc, which is faster with 8
neighbours; after a change of terminal capacities the trees are grown anew.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import numpy as np
from jaxtyping import Bool, Int, Num

from otus.errors import ShapeError
from otus.interactive import _max_flow_kernels as kernels

_NEIGHBORS = {2: (4, 8), 3: (6, 26)}


def neighbor_steps(ndim: int, neighbors: int) -> Int[np.ndarray, "k ndim"]:
    """Return the steps from a pixel to its neighbours; the second half are the negatives of the first, in the same order.

    >>> neighbor_steps(2, 8).tolist()
    [[0, 1], [1, 0], [1, 1], [1, -1], [0, -1], [-1, 0], [-1, -1], [-1, 1]]
    """
    if neighbors not in _NEIGHBORS.get(ndim, ()):
        raise ShapeError(
            f"neighbors: expected 4 or 8 neighbours in two dimensions, 6 or 26 in three, got {neighbors} in {ndim}"
        )
    steps = [step for step in product((0, 1, -1), repeat=ndim) if step > (0,) * ndim]
    forward = np.array(sorted(steps, key=lambda step: sum(map(abs, step)))[: neighbors // 2])
    return np.concatenate([forward, -forward])


@dataclass(frozen=True, eq=False)
class MinimumCut:
    """A minimum cut: its cost, which is the maximum flow, and the pixels on the source's side.

    If there are several minimum cuts, it is the one with the fewest pixels on the source's side: those that can be reached
    from the source over arcs with residual capacity.
    """

    flow: float
    source_side: Bool[np.ndarray, "*size"]


class GridFlow:
    """Maximum flow on a grid whose terminal capacities may change: each solve starts from the flow of the previous one.

    Parameters
    ----------
    capacities
        ``(K, *size)`` capacities of the arcs from each pixel in each direction of :func:`neighbor_steps`; or ``(K / 2,
        *size)`` capacities in the first half of the directions, if opposite arcs have the same capacity. Arcs that lead out
        of the grid are ignored. Flow is computed in the dtype of the capacities if it is int32, int64, float32 or float64;
        other integers are converted to int64, other floats to float64.
    neighbors
        4 or 8 in two dimensions, 6 or 26 in three.

    Raises
    ------
    ShapeError
        If capacities have another shape, are negative, not finite, or so large that their sums would overflow.

    Examples
    --------
    >>> flow = GridFlow(np.full((2, 1, 3), 2), neighbors=4)  # three pixels in a row
    >>> cut = flow.solve(source=np.array([[9, 0, 0]]), sink=np.array([[0, 1, 9]]))
    >>> cut.flow, cut.source_side.tolist()
    (2, [[True, False, False]])
    """

    def __init__(self, capacities: Num[np.ndarray, "directions *size"], *, neighbors: int) -> None:
        capacities = np.asarray(capacities)
        self.size = capacities.shape[1:]
        steps = neighbor_steps(len(self.size), neighbors)
        if len(capacities) not in (neighbors, neighbors // 2) or 0 in self.size:
            raise ShapeError(
                f"capacities: expected {neighbors} or {neighbors // 2} planes of at least one pixel for {neighbors} "
                f"neighbors, got shape {capacities.shape}"
            )
        if capacities.dtype not in (np.int32, np.int64, np.float32, np.float64):
            capacities = capacities.astype(np.float64 if capacities.dtype.kind == "f" else np.int64)
        self._limit = _limit(capacities.dtype)
        _check("capacities", capacities, self._limit / (2 * neighbors))
        padded = tuple(side + 2 for side in self.size)
        strides = np.array([int(np.prod(padded[axis + 1 :])) for axis in range(len(padded))])
        cells = int(np.prod(padded))
        self._offsets = steps @ strides
        self._residual = np.zeros((cells, neighbors), capacities.dtype)
        self._masks = np.zeros((2, cells), np.uint8 if neighbors <= 8 else np.uint32)
        missing = 3 - len(self.size)
        kernels.load(
            capacities.reshape(len(capacities), *(1,) * missing, *self.size),
            np.pad(steps, ((0, 0), (missing, 0))),
            np.pad(strides, (missing, 0)),
            int(strides.sum()),
            self._residual,
            self._masks,
        )
        self._excess = np.zeros(cells, capacities.dtype)
        self._label = np.zeros(cells, np.int32)
        self._parent = np.zeros(cells, np.int8)
        self._padded = padded
        self._terminal = np.zeros(self.size, capacities.dtype)

    def solve(self, source: Num[np.ndarray, "*size"], sink: Num[np.ndarray, "*size"]) -> MinimumCut:
        """Return the minimum cut for capacities from the source to each pixel and from each pixel to the sink.

        Raises
        ------
        ShapeError
            If they do not have the grid's shape, or are invalid as for the capacities of the grid.
        """
        source, sink = np.asarray(source), np.asarray(sink)
        for name, values in (("source", source), ("sink", sink)):
            if values.shape != self.size:
                raise ShapeError(f"{name}: expected shape {self.size}, that of the grid, got {values.shape}")
            _check(name, values, self._limit / 2)
        terminal = source.astype(self._terminal.dtype, copy=False) - sink.astype(self._terminal.dtype, copy=False)
        excess = self._inner(self._excess)
        excess += terminal - self._terminal
        self._terminal = terminal
        kernels.push_to_neighbors(self._residual, self._excess, self._offsets, self._masks)
        kernels.solve(self._residual, self._excess, self._offsets, self._masks, self._label, self._parent)
        total = np.int64 if terminal.dtype.kind == "i" else np.float64
        through = np.minimum(source, sink).sum(dtype=total)
        flow = through + np.maximum(terminal, 0).sum(dtype=total) - np.maximum(excess, 0).sum(dtype=total)
        return MinimumCut(flow.item(), self._inner(self._label) > 0)

    def _inner(self, cells: np.ndarray) -> np.ndarray:
        return cells.reshape(self._padded)[(slice(1, -1),) * len(self.size)]


def max_flow(
    source: Num[np.ndarray, "*size"],
    sink: Num[np.ndarray, "*size"],
    capacities: Num[np.ndarray, "directions *size"],
    *,
    neighbors: int,
) -> MinimumCut:
    """Return the maximum flow from source to sink over a grid, and the minimum cut; see :class:`GridFlow`.

    >>> two = np.full((2, 2, 2), 3)
    >>> max_flow(np.array([[8, 0], [0, 0]]), np.array([[0, 0], [0, 4]]), two, neighbors=4).flow
    4
    """
    return GridFlow(capacities, neighbors=neighbors).solve(source, sink)


def cut_cost(
    source_side: Bool[np.ndarray, "*size"],
    source: Num[np.ndarray, "*size"],
    sink: Num[np.ndarray, "*size"],
    capacities: Num[np.ndarray, "directions *size"],
    *,
    neighbors: int,
) -> float:
    """Return the cost of a cut: the sum of the capacities from the source's side to the sink's side.

    >>> cut_cost(np.array([[True, False]]), np.array([[5, 2]]), np.array([[1, 7]]), np.full((2, 1, 2), 3), neighbors=4)
    6
    """
    cost = source[~source_side].sum() + sink[source_side].sum()
    for step, plane in zip(neighbor_steps(source.ndim, neighbors), _directed(capacities, neighbors), strict=True):
        pixels, neighbors_of_pixels = _neighbor_slices(source.shape, step)
        cost += plane[pixels][source_side[pixels] & ~source_side[neighbors_of_pixels]].sum()
    return cost.item()


def reference_max_flow(
    source: Num[np.ndarray, "*size"],
    sink: Num[np.ndarray, "*size"],
    capacities: Num[np.ndarray, "directions *size"],
    *,
    neighbors: int,
) -> MinimumCut:
    """Return the same as :func:`max_flow` by shortest augmenting paths (Edmonds and Karp, 1972), for small grids."""
    number = np.arange(source.size).reshape(source.shape)
    start, end = source.size, source.size + 1
    residual: dict[tuple[int, int], float] = {}
    for pixel in range(source.size):
        residual[start, pixel], residual[pixel, end] = source.flat[pixel].item(), sink.flat[pixel].item()
    for step, plane in zip(neighbor_steps(source.ndim, neighbors), _directed(capacities, neighbors), strict=True):
        tails, heads_of_tails = _neighbor_slices(source.shape, step)
        arcs = zip(number[tails].ravel().tolist(), number[heads_of_tails].ravel().tolist(), strict=True)
        residual |= dict(zip(arcs, plane[tails].ravel().tolist(), strict=True))
    heads: dict[int, list[int]] = {}
    for tail, head in list(residual):
        heads.setdefault(tail, []).append(head)
        heads.setdefault(head, []).append(tail)
        residual.setdefault((head, tail), 0)
    flow: float = 0
    while True:
        came_from = {start: start}
        queue = deque([start])
        while queue and end not in came_from:
            tail = queue.popleft()
            reached = [head for head in heads[tail] if head not in came_from and residual[tail, head] > 0]
            came_from |= dict.fromkeys(reached, tail)
            queue += reached
        if end not in came_from:
            return MinimumCut(flow, np.isin(number, list(came_from)))
        path, head = [], end
        while head != start:
            path.append((came_from[head], head))
            head = came_from[head]
        pushed = min(residual[arc] for arc in path)
        for tail, head in path:
            residual[tail, head] -= pushed
            residual[head, tail] += pushed
        flow += pushed


def neighbor_pairs(
    planes: Num[np.ndarray, "directions *size"],
) -> Iterator[tuple[Num[np.ndarray, "*size"], tuple[slice, ...], tuple[slice, ...]]]:
    """Yield each plane of edges, of 8 or 26 neighbours, with the slices of its pixels and of their neighbours."""
    steps = neighbor_steps(planes.ndim - 1, max(_NEIGHBORS[planes.ndim - 1]))
    for step, plane in zip(steps, planes, strict=False):
        yield plane, *_neighbor_slices(plane.shape, step)


def _directed(capacities: Num[np.ndarray, "directions *size"], neighbors: int) -> Num[np.ndarray, "k *size"]:
    """Return the capacities in all K directions; if half of them are given, opposite arcs get the same capacity."""
    if len(capacities) == neighbors:
        return capacities
    opposite = np.zeros_like(capacities)
    steps = neighbor_steps(capacities.ndim - 1, neighbors)
    for step, plane, opposite_plane in zip(steps, capacities, opposite, strict=False):
        pixels, neighbors_of_pixels = _neighbor_slices(plane.shape, step)
        opposite_plane[neighbors_of_pixels] = plane[pixels]
    return np.concatenate([capacities, opposite])


def _neighbor_slices(
    size: tuple[int, ...], step: Int[np.ndarray, "ndim"]
) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Return the slices of the pixels that have a neighbour at ``step``, and of these neighbours."""
    axes = list(zip(size, step.tolist(), strict=True))
    pixels = tuple(slice(max(0, -offset), side - max(0, offset)) for side, offset in axes)
    neighbors = tuple(slice(max(0, offset), side - max(0, -offset)) for side, offset in axes)
    return pixels, neighbors


def _limit(dtype: np.dtype) -> float:
    return float(np.iinfo(dtype).max if dtype.kind == "i" else np.finfo(dtype).max)


def _check(name: str, values: np.ndarray, limit: float) -> None:
    """Raise ShapeError unless capacities are from 0 to a limit below which their sums do not overflow."""
    lowest, highest = values.min(), values.max()
    if not (lowest >= 0 and highest <= limit):  # also true for NaN
        raise ShapeError(
            f"{name}: expected capacities from 0 to {limit:.6g} in {values.dtype}, got {lowest} to {highest}; "
            "scale them, or give int64 or float64"
        )
