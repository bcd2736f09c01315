"""Maximum flow and minimum cut on pixel grids.

Shape shorthand: ``size`` is (H, W) or (D, H, W); K directions to the neighbours of a pixel, 4 or 8 in two dimensions, 6 or
26 in three.

Paper: "Maximum Flows by Incremental Breadth-First Search" (Goldberg, Hed, Kaplan, Tarjan and Werneck, ESA 2011), which ends
after O(n^2 m) steps for n pixels and m arcs whatever the capacities, where the paths of Boykov and Kolmogorov (PAMI 2004)
have no such bound. Going on from the flow of the solve before: "Dynamic Graph Cuts for Efficient Inference in Markov Random
Fields" (Kohli and Torr, PAMI 2007).
Departures: the trees start from every pixel that has excess, no source and sink are in the graph; paths of one arc are
pushed in a first pass; a cell cut off compares all its neighbours at once and keeps no current arc, with 8 that is faster;
after a change of terminal capacities the trees are grown anew.
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
    """Return the steps from a pixel to its neighbours; the second half are the opposites of the first, in its order.

    >>> neighbor_steps(2, 8).tolist()
    [[0, 1], [1, 0], [1, 1], [1, -1], [0, -1], [-1, 0], [-1, -1], [-1, 1]]
    """
    if neighbors not in _NEIGHBORS.get(ndim, ()):
        known = "4 or 8 neighbours in two dimensions, 6 or 26 in three"
        raise ShapeError(f"neighbors: expected {known}, got {neighbors} in {ndim}")
    steps = [step for step in product((0, 1, -1), repeat=ndim) if step > (0,) * ndim]
    forward = np.array(sorted(steps, key=lambda step: sum(map(abs, step)))[: neighbors // 2])
    return np.concatenate([forward, -forward])


@dataclass(frozen=True, eq=False)
class MinimumCut:
    """A minimum cut: its cost, which is the maximum flow, and the pixels on the source's side of it.

    Of several minimum cuts it is the one with the fewest pixels on the source's side: those that capacity left over
    reaches from the source.
    """

    flow: float
    source_side: Bool[np.ndarray, "*size"]


class GridFlow:
    """Maximum flow on a grid whose terminal capacities may change: each solve goes on from the flow of the one before.

    Parameters
    ----------
    capacities
        ``(K, *size)`` capacities of the arcs from each pixel in each direction of :func:`neighbor_steps`; or ``(K / 2,
        *size)`` of the first half of the directions, where the opposite arcs have the same. What leads out of the grid
        is not used. int32, int64, float32 and float64 are computed in as they are, other integers in int64, other
        floats in float64.
    neighbors
        4 or 8 in two dimensions, 6 or 26 in three.

    Raises
    ------
    ShapeError
        Another shape; capacities that are negative, not finite, or so large that their sums overflow.

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
            As for the capacities of the grid.
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
    """Return the sum of the capacities from the source's side of a cut to the sink's, which no flow exceeds.

    >>> cut_cost(np.array([[True, False]]), np.array([[5, 2]]), np.array([[1, 7]]), np.full((2, 1, 2), 3), neighbors=4)
    6
    """
    cost = source[~source_side].sum() + sink[source_side].sum()
    for step, plane in zip(neighbor_steps(source.ndim, neighbors), _directed(capacities, neighbors), strict=True):
        here, there = _pairs(source.shape, step)
        cost += plane[here][source_side[here] & ~source_side[there]].sum()
    return cost.item()


def reference_max_flow(
    source: Num[np.ndarray, "*size"],
    sink: Num[np.ndarray, "*size"],
    capacities: Num[np.ndarray, "directions *size"],
    *,
    neighbors: int,
) -> MinimumCut:
    """The same by shortest augmenting paths (Edmonds and Karp, 1972), slow and readable, for small grids."""
    number = np.arange(source.size).reshape(source.shape)
    start, end = source.size, source.size + 1
    residual: dict[tuple[int, int], float] = {}
    for pixel in range(source.size):
        residual[start, pixel], residual[pixel, end] = source.flat[pixel].item(), sink.flat[pixel].item()
    for step, plane in zip(neighbor_steps(source.ndim, neighbors), _directed(capacities, neighbors), strict=True):
        here, there = _pairs(source.shape, step)
        arcs = zip(number[here].ravel().tolist(), number[there].ravel().tolist(), strict=True)
        residual |= dict(zip(arcs, plane[here].ravel().tolist(), strict=True))
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
    """Yield each plane of edges, 8 neighbours or 26, with the pixels that have such a neighbour and these neighbours."""
    steps = neighbor_steps(planes.ndim - 1, max(_NEIGHBORS[planes.ndim - 1]))
    for step, plane in zip(steps, planes, strict=False):
        yield plane, *_pairs(plane.shape, step)


def _directed(capacities: Num[np.ndarray, "directions *size"], neighbors: int) -> Num[np.ndarray, "k *size"]:
    """All K planes; those of opposite arcs are moved to the pixel that these start from."""
    if len(capacities) == neighbors:
        return capacities
    back = np.zeros_like(capacities)
    steps = neighbor_steps(capacities.ndim - 1, neighbors)
    for step, plane, opposite in zip(steps, capacities, back, strict=False):
        here, there = _pairs(plane.shape, step)
        opposite[there] = plane[here]
    return np.concatenate([capacities, back])


def _pairs(size: tuple[int, ...], step: Int[np.ndarray, "ndim"]) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """The pixels that have a neighbour a step on, and these neighbours."""
    here = tuple(slice(max(0, -one), side - max(0, one)) for side, one in zip(size, step.tolist(), strict=True))
    there = tuple(slice(max(0, one), side - max(0, -one)) for side, one in zip(size, step.tolist(), strict=True))
    return here, there


def _limit(dtype: np.dtype) -> float:
    return float(np.iinfo(dtype).max if dtype.kind == "i" else np.finfo(dtype).max)


def _check(name: str, values: np.ndarray, limit: float) -> None:
    """ShapeError unless capacities are numbers from 0 to a limit that their sums need."""
    lowest, highest = values.min(), values.max()
    if not (lowest >= 0 and highest <= limit):  # also where one is NaN
        raise ShapeError(
            f"{name}: expected capacities from 0 to {limit:.6g} in {values.dtype}, got {lowest} to {highest}; "
            "scale them, or give int64 or float64"
        )
