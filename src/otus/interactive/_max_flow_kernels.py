"""Compiled maximum flow on a pixel grid. Arcs are implied by the grid: only their capacities by direction are stored.

Shape shorthand: N cells of the padded grid, flattened; K directions, of which k and (k + K / 2) mod K are opposite.

The *excess* of a cell is its residual capacity from the source (positive) or to the sink (negative); flow along an arc moves
excess from a cell to its neighbour. A change of terminal capacities thus changes the excess alone, and a solve starts from
any existing flow.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int, Int8, Int32, Num, UInt

from otus._numba import kernel

ROOT = 100
_ORPHAN = 101
_ALL_ONES = np.uint32(0xFFFFFFFF)
_SIGN = np.uint32(0x80000000)


class _Flow(NamedTuple):
    """The residual graph, and the K directions of its arcs."""

    residual: Num[np.ndarray, "n k"]
    excess: Num[np.ndarray, "n"]
    masks: UInt[
        np.ndarray, "2 n"
    ]  # bit k: the arc into a cell (0) or out of it (1) in direction k has residual capacity
    offsets: Int[np.ndarray, "k"]
    opposite: Int[np.ndarray, "k"]
    bit: UInt[np.ndarray, "k"]


class _Trees(NamedTuple):
    """The search trees of the source (labels 1, 2, … by level) and of the sink (-1, -2, …); 0 is in neither."""

    label: Int32[np.ndarray, "n"]
    parent: Int8[np.ndarray, "n"]  # direction to a cell's parent
    orphans: Int32[np.ndarray, "n"]
    queues: Int32[np.ndarray, "4 n"]  # ring buffers of the cells to grow: for each tree those of even and of odd levels
    spans: Int[np.ndarray, "4 2"]  # start and length of the queues
    queued: UInt[np.ndarray, "n"]  # bit q: the cell is in queue q


@kernel
def load(
    capacities: Num[np.ndarray, "directions d h w"],
    steps: Int[np.ndarray, "k 3"],
    strides: Int[np.ndarray, "3"],
    origin: int,
    residual: Num[np.ndarray, "n k"],
    masks: UInt[np.ndarray, "2 n"],
) -> None:
    """Fill ``residual`` and ``masks`` (see :class:`_Flow`) with the capacities of arcs that do not lead out of the grid.

    ``directions`` is K, or K / 2 if opposite arcs have the same capacity. Depth, height and width are those of the grid,
    ``strides`` those of the padded grid, in which ``origin`` is the index of the first pixel.
    """
    directions, depth, height, width = capacities.shape
    half = len(steps) // 2
    inward, outward = masks[0], masks[1]
    bit = np.empty(len(steps), masks.dtype)
    for k in range(len(steps)):
        bit[k] = 1 << k
    for z in range(depth):
        for y in range(height):
            start = origin + z * strides[0] + y * strides[1]
            for k in range(directions):
                z_to, y_to, right = z + steps[k, 0], y + steps[k, 1], steps[k, 2]
                if z_to < 0 or z_to >= depth or y_to < 0 or y_to >= height:
                    continue
                offset = steps[k, 0] * strides[0] + steps[k, 1] * strides[1] + right
                back = (k + half) % len(steps)
                for x in range(max(0, -right), min(width, width - right)):
                    capacity = capacities[k, z, y, x]
                    if capacity <= 0:
                        continue
                    u, v = start + x, start + x + offset
                    residual[u, k] = capacity
                    outward[u] |= bit[k]
                    inward[v] |= bit[back]
                    if directions == half:
                        residual[v, back] = capacity
                        outward[v] |= bit[back]
                        inward[u] |= bit[k]


@kernel
def push_to_neighbors(
    residual: Num[np.ndarray, "n k"],
    excess: Num[np.ndarray, "n"],
    offsets: Int[np.ndarray, "k"],
    masks: UInt[np.ndarray, "2 n"],
) -> None:
    """Push flow over paths of a single arc, in one pass: on images these are most of the augmenting paths."""
    flow = _flow(residual, excess, offsets, masks)
    bit = flow.bit
    for u in range(len(excess)):
        for k in range(len(offsets)):
            if excess[u] <= 0:
                break
            v = u + offsets[k]
            if masks[1, u] & bit[k] and excess[v] < 0:
                amount = min(excess[u], residual[u, k], -excess[v])
                _push(u, k, amount, flow)
                excess[u] -= amount
                excess[v] += amount


@kernel
def solve(
    residual: Num[np.ndarray, "n k"],
    excess: Num[np.ndarray, "n"],
    offsets: Int[np.ndarray, "k"],
    masks: UInt[np.ndarray, "2 n"],
    label: Int32[np.ndarray, "n"],
    parent: Int8[np.ndarray, "n"],
) -> int:
    """Push the maximum flow from positive to negative excess; return the number of augmenting paths.

    Incremental breadth-first search: one tree of shortest paths grows from the cells with positive excess, another from
    those with negative excess, alternately, a level at a time. Flow is pushed where they meet; a cell that is cut off from
    its tree (an orphan) takes the neighbour of lowest label as its new parent. At the end ``label`` is positive for cells
    that can be reached from the source.
    """
    cells, count = residual.shape
    flow = _flow(residual, excess, offsets, masks)
    trees = _Trees(
        label,
        parent,
        np.empty(cells, np.int32),
        np.empty((4, cells), np.int32),
        np.zeros((4, 2), np.int64),
        np.zeros(cells, np.uint8),
    )
    opposite, bit, spans = flow.opposite, flow.bit, trees.spans
    for u in range(cells):
        label[u] = 1 if excess[u] > 0 else (-1 if excess[u] < 0 else 0)
        if excess[u] != 0:
            parent[u] = ROOT
    can_grow = _can_grow(flow, label)
    for u in range(cells):
        if can_grow[u]:
            _enqueue(u, 1 if label[u] > 0 else 3, trees)
    level = np.ones(2, np.int64)  # to which each tree has grown
    limit = np.ones(2, np.int64)  # highest label that an orphan may take
    paths = 0
    while spans[level[0] & 1, 1] > 0:
        tree = 1 if level[1] < level[0] and spans[2 + (level[1] & 1), 1] > 0 else 0
        sign, depth = 1 - 2 * tree, level[tree]
        limit[tree] = depth + 1
        queue, next_queue = 2 * tree + (depth & 1), 2 * tree + ((depth + 1) & 1)
        open_arcs = masks[1 - tree]
        while spans[queue, 1] > 0:
            u = _dequeue(queue, trees)
            if label[u] * sign != depth:
                continue
            k = 0
            while k < count:
                v = u + offsets[k]
                if label[v] * sign > 0 or not open_arcs[u] & bit[k]:
                    k += 1
                elif label[v] == 0:
                    label[v] = sign * (depth + 1)
                    parent[v] = opposite[k]
                    _enqueue(v, next_queue, trees)
                    k += 1
                else:
                    paths += 1
                    tail, head, direction = (u, v, k) if tree == 0 else (v, u, opposite[k])
                    amount = _bottleneck(tail, head, direction, flow, parent)
                    _push(tail, direction, amount, flow)
                    for end in range(2):
                        num_orphans = _push_along(tail if end == 0 else head, end, amount, flow, trees)
                        _adopt(end, num_orphans, level[end], limit[end], flow, trees)
                    if label[u] * sign != depth:
                        break
        level[tree] += 1
        limit[tree] = level[tree]
    return paths


@kernel
def _can_grow(flow: _Flow, label: Int32[np.ndarray, "n"]) -> Bool[np.ndarray, "n"]:
    """Return which roots have an arc with residual capacity to a cell of another tree or of none.

    Most roots of an image have none, and nothing can grow from them.

    Directions are processed one after another over int8 arrays, so that the loop is vectorised.
    """
    tree = np.sign(label).astype(np.int8)
    arcs = np.where(tree > 0, flow.masks[1], np.where(tree < 0, flow.masks[0], flow.masks[0] & 0))
    can_grow = np.zeros(len(label), np.bool_)
    margin = np.abs(flow.offsets).max()  # cells of the padding have no arcs
    inner = slice(margin, len(label) - margin)
    own_tree, arcs, inner_can_grow = tree[inner], arcs[inner], can_grow[inner]
    for k in range(len(flow.offsets)):
        bit = flow.bit[k]
        neighbor_tree = tree[margin + flow.offsets[k] : len(label) - margin + flow.offsets[k]]
        for i in range(len(own_tree)):
            inner_can_grow[i] |= (arcs[i] & bit != 0) & (own_tree[i] != neighbor_tree[i])
    return can_grow


@kernel
def _flow(
    residual: Num[np.ndarray, "n k"],
    excess: Num[np.ndarray, "n"],
    offsets: Int[np.ndarray, "k"],
    masks: UInt[np.ndarray, "2 n"],
) -> _Flow:
    count = len(offsets)
    opposite, bit = np.empty(count, np.int64), np.empty(count, masks.dtype)
    for k in range(count):
        opposite[k] = (k + count // 2) % count
        bit[k] = 1 << k
    return _Flow(residual, excess, masks, offsets, opposite, bit)


@kernel
def _wrapped(index: int, length: int) -> int:
    """Return an index into a ring buffer, wrapped around once; cheaper than a remainder."""
    return index - length if index >= length else index


@kernel
def _enqueue(u: int, queue: int, trees: _Trees) -> None:
    """Append a cell to a queue unless it is in it."""
    if not trees.queued[u] & np.uint8(1 << queue):
        trees.queued[u] |= np.uint8(1 << queue)
        spans = trees.spans
        trees.queues[queue, _wrapped(spans[queue, 0] + spans[queue, 1], len(trees.queued))] = u
        spans[queue, 1] += 1


@kernel
def _dequeue(queue: int, trees: _Trees) -> int:
    u = int(trees.queues[queue, trees.spans[queue, 0]])
    trees.spans[queue, 0] = _wrapped(trees.spans[queue, 0] + 1, len(trees.queued))
    trees.spans[queue, 1] -= 1
    trees.queued[u] &= ~np.uint8(1 << queue)
    return u


@kernel
def _bottleneck(tail: int, head: int, direction: int, flow: _Flow, parent: Int8[np.ndarray, "n"]) -> float:
    """Return the bottleneck of the path from the root of ``tail`` over the arc to ``head`` to the root of ``head``."""
    residual, excess, offsets, opposite = flow.residual, flow.excess, flow.offsets, flow.opposite
    amount = residual[tail, direction]
    while parent[tail] != ROOT:
        step = parent[tail]
        tail += offsets[step]
        amount = min(amount, residual[tail, opposite[step]])
    while parent[head] != ROOT:
        step = parent[head]
        amount = min(amount, residual[head, step])
        head += offsets[step]
    return min(amount, excess[tail], -excess[head])


@kernel
def _push(u: int, k: int, amount: float, flow: _Flow) -> bool:
    """Push flow over an arc, and return whether that saturates it."""
    residual, bit = flow.residual, flow.bit
    v, back = u + flow.offsets[k], flow.opposite[k]
    residual[u, k] -= amount
    residual[v, back] += amount
    inward, outward = flow.masks[0], flow.masks[1]
    outward[v] |= bit[back]
    inward[u] |= bit[k]
    if residual[u, k] > 0:
        return False
    outward[u] &= ~bit[k]
    inward[v] &= ~bit[back]
    return True


@kernel
def _push_along(u: int, tree: int, amount: float, flow: _Flow, trees: _Trees) -> int:
    """Push flow from the root of the source's tree to ``u`` (tree 0), or from ``u`` to the root of the sink's (tree 1).

    Return the number of cells that this cuts off; they are written to ``trees.orphans``.
    """
    parent, orphans = trees.parent, trees.orphans
    offsets, opposite = flow.offsets, flow.opposite
    num_orphans = 0
    while parent[u] != ROOT:
        step = int(parent[u])
        next_cell = u + offsets[step]
        saturated = _push(next_cell, opposite[step], amount, flow) if tree == 0 else _push(u, step, amount, flow)
        if saturated:
            parent[u] = _ORPHAN
            orphans[num_orphans] = u
            num_orphans += 1
        u = next_cell
    flow.excess[u] -= amount if tree == 0 else -amount
    if flow.excess[u] == 0:
        parent[u] = _ORPHAN
        orphans[num_orphans] = u
        num_orphans += 1
    for i in range(num_orphans // 2):  # reversed: those nearest to the root are adopted first
        orphans[i], orphans[num_orphans - 1 - i] = orphans[num_orphans - 1 - i], orphans[i]
    return num_orphans


@kernel
def _adopt(tree: int, num_orphans: int, level: int, limit: int, flow: _Flow, trees: _Trees) -> None:
    """Find a new parent for every orphan of a tree, or remove it from the tree."""
    label, parent, orphans = trees.label, trees.parent, trees.orphans
    offsets, opposite, bit = flow.offsets, flow.opposite, flow.bit
    cells, count = len(label), len(offsets)
    sign = 1 - 2 * tree
    open_arcs = flow.masks[tree]
    first, pending = 0, num_orphans
    while pending > 0:
        v = int(orphans[first])
        first = _wrapped(first + 1, cells)
        pending -= 1
        depth = label[v] * sign
        # Neighbour of lowest label: (label - 1) << 5 | direction. The sign bit is set if it is not in the tree.
        best = _ALL_ONES
        for k in range(count):
            neighbor_level = np.uint32(np.int32(label[v + offsets[k]] * sign) - np.int32(1))
            key = (neighbor_level << np.uint32(5)) | np.uint32(k) | (neighbor_level & _SIGN)
            best = min(best, key if open_arcs[v] & bit[k] else _ALL_ONES)
        lowest, direction = int(best >> np.uint32(5)) + 1, int(best & np.uint32(31))
        if lowest < depth:
            parent[v] = direction
            continue
        for k in range(count):
            child = v + offsets[k]
            if parent[child] == opposite[k] and label[child] * sign == depth + 1:
                parent[child] = _ORPHAN
                orphans[_wrapped(first + pending, cells)] = child
                pending += 1
        if best & _SIGN or lowest >= limit:
            label[v] = 0
            continue
        label[v] = sign * (lowest + 1)
        parent[v] = direction
        if lowest + 1 >= level:
            _enqueue(v, 2 * tree + ((lowest + 1) & 1), trees)
