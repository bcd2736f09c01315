"""Compiled maximum flow on a pixel grid. The arcs are implied by the grid: no pointers, only capacities by direction.

Shape shorthand: N cells of the padded grid, flat; K directions, of which k and (k + K / 2) mod K are opposite.

Flow along an arc moves *excess* from one cell to the next: what a cell can still take from the source (positive) or give to
the sink (negative). A change of terminal capacities is thus a change of the excess alone, and a solve goes on from whatever
flow there is.
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
    """What is left of the capacities, and what the K directions are."""

    residual: Num[np.ndarray, "n k"]
    excess: Num[np.ndarray, "n"]
    masks: UInt[np.ndarray, "2 n"]  # a bit per arc: which into a cell, and which out of it, have capacity left
    offsets: Int[np.ndarray, "k"]
    opposite: Int[np.ndarray, "k"]
    bit: UInt[np.ndarray, "k"]


class _Trees(NamedTuple):
    """The tree that grows from the source (labels 1, 2 …) and the one towards the sink (-1, -2 …); 0 is in neither."""

    label: Int32[np.ndarray, "n"]
    parent: Int8[np.ndarray, "n"]  # the direction of a cell's parent
    orphans: Int32[np.ndarray, "n"]
    waiting: Int32[
        np.ndarray, "4 n"
    ]  # for each tree the cells of even and of odd levels whose turn will come, as rings
    rings: Int[np.ndarray, "4 2"]  # first, how many
    queued: UInt[np.ndarray, "n"]  # a bit for each ring


@kernel
def load(
    capacities: Num[np.ndarray, "directions d h w"],
    steps: Int[np.ndarray, "k 3"],
    strides: Int[np.ndarray, "3"],
    origin: int,
    residual: Num[np.ndarray, "n k"],
    masks: UInt[np.ndarray, "2 n"],
) -> None:
    """Lay the capacities of every pixel's arcs beside each other, without those that lead out of the grid.

    Of ``masks`` a bit per arc says which arcs into a cell, and which out of it, have capacity left.

    ``directions`` is K, or K / 2 where opposite arcs have the same capacity. Depth, height and width are those of the grid,
    ``strides`` those of the padded one, in which ``origin`` is the index of the first pixel.
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
    """Push what goes along a single arc, in one pass: on images these are most of the paths."""
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
    """Push as much flow as can go from positive to negative excess; return the number of augmenting paths.

    Incremental breadth-first search: a tree of shortest paths grows from the cells with positive excess, another towards
    those with negative, in turn, a level at a time. Where they meet flow is pushed; a cell cut off from its tree takes the
    neighbour of the lowest label as its new parent. At the end ``label`` is positive where the source reaches.
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
    opposite, bit, rings = flow.opposite, flow.bit, trees.rings
    for u in range(cells):
        label[u] = 1 if excess[u] > 0 else (-1 if excess[u] < 0 else 0)
        if excess[u] != 0:
            parent[u] = ROOT
    growing = _growing_roots(flow, label)
    for u in range(cells):
        if growing[u]:
            _enqueue(u, 1 if label[u] > 0 else 3, trees)
    level = np.ones(2, np.int64)  # up to which each tree has grown
    limit = np.ones(2, np.int64)  # the highest label that a cell cut off may take
    paths = 0
    while rings[level[0] & 1, 1] > 0:
        tree = 1 if level[1] < level[0] and rings[2 + (level[1] & 1), 1] > 0 else 0
        side, depth = 1 - 2 * tree, level[tree]
        limit[tree] = depth + 1
        ring, next_ring = 2 * tree + (depth & 1), 2 * tree + ((depth + 1) & 1)
        open_arcs = masks[1 - tree]
        while rings[ring, 1] > 0:
            u = _dequeue(ring, trees)
            if label[u] * side != depth:
                continue
            k = 0
            while k < count:
                v = u + offsets[k]
                if label[v] * side > 0 or not open_arcs[u] & bit[k]:
                    k += 1
                elif label[v] == 0:
                    label[v] = side * (depth + 1)
                    parent[v] = opposite[k]
                    _enqueue(v, next_ring, trees)
                    k += 1
                else:
                    paths += 1
                    near, far, way = (u, v, k) if tree == 0 else (v, u, opposite[k])
                    amount = _bottleneck(near, far, way, flow, parent)
                    _push(near, way, amount, flow)
                    for end in range(2):
                        lost = _push_along(near if end == 0 else far, end, amount, flow, trees)
                        _adopt(end, lost, level[end], limit[end], flow, trees)
                    if label[u] * side != depth:
                        break
        level[tree] += 1
        limit[tree] = level[tree]
    return paths


@kernel
def _growing_roots(flow: _Flow, label: Int32[np.ndarray, "n"]) -> Bool[np.ndarray, "n"]:
    """Return which roots have an open arc out of their own tree; from the others, most of an image, nothing can grow.

    One direction after another over small numbers, which a processor compares many at a time.
    """
    tree = np.sign(label).astype(np.int8)
    arcs = np.where(tree > 0, flow.masks[1], np.where(tree < 0, flow.masks[0], flow.masks[0] & 0))
    growing = np.zeros(len(label), np.bool_)
    reach = np.abs(flow.offsets).max()  # no arc leads out of the padding
    inner = slice(reach, len(label) - reach)
    here, arcs, leaves = tree[inner], arcs[inner], growing[inner]
    for k in range(len(flow.offsets)):
        bit = flow.bit[k]
        there = tree[reach + flow.offsets[k] : len(label) - reach + flow.offsets[k]]
        for i in range(len(here)):
            leaves[i] |= (arcs[i] & bit != 0) & (here[i] != there[i])
    return growing


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
    """A place in a ring; a remainder would be a division."""
    return index - length if index >= length else index


@kernel
def _enqueue(u: int, ring: int, trees: _Trees) -> None:
    """Add a cell to a ring unless it waits there."""
    if not trees.queued[u] & np.uint8(1 << ring):
        trees.queued[u] |= np.uint8(1 << ring)
        rings = trees.rings
        trees.waiting[ring, _wrapped(rings[ring, 0] + rings[ring, 1], len(trees.queued))] = u
        rings[ring, 1] += 1


@kernel
def _dequeue(ring: int, trees: _Trees) -> int:
    u = int(trees.waiting[ring, trees.rings[ring, 0]])
    trees.rings[ring, 0] = _wrapped(trees.rings[ring, 0] + 1, len(trees.queued))
    trees.rings[ring, 1] -= 1
    trees.queued[u] &= ~np.uint8(1 << ring)
    return u


@kernel
def _bottleneck(near: int, far: int, way: int, flow: _Flow, parent: Int8[np.ndarray, "n"]) -> float:
    """What can go from the root above ``near`` over its arc ``way`` to the root above ``far``."""
    residual, excess, offsets, opposite = flow.residual, flow.excess, flow.offsets, flow.opposite
    amount = residual[near, way]
    while parent[near] != ROOT:
        step = parent[near]
        near += offsets[step]
        amount = min(amount, residual[near, opposite[step]])
    while parent[far] != ROOT:
        step = parent[far]
        amount = min(amount, residual[far, step])
        far += offsets[step]
    return min(amount, excess[near], -excess[far])


@kernel
def _push(u: int, k: int, amount: float, flow: _Flow) -> bool:
    """Push over an arc; whether that fills it."""
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
    """Push from the root of the source's tree to ``u``, or from ``u`` to that of the sink's; how many cells it cut off."""
    parent, orphans = trees.parent, trees.orphans
    offsets, opposite = flow.offsets, flow.opposite
    lost = 0
    while parent[u] != ROOT:
        step = int(parent[u])
        above = u + offsets[step]
        full = _push(above, opposite[step], amount, flow) if tree == 0 else _push(u, step, amount, flow)
        if full:
            parent[u] = _ORPHAN
            orphans[lost] = u
            lost += 1
        u = above
    flow.excess[u] -= amount if tree == 0 else -amount
    if flow.excess[u] == 0:
        parent[u] = _ORPHAN
        orphans[lost] = u
        lost += 1
    for i in range(lost // 2):  # those nearest to the root are adopted first
        orphans[i], orphans[lost - 1 - i] = orphans[lost - 1 - i], orphans[i]
    return lost


@kernel
def _adopt(tree: int, lost: int, level: int, limit: int, flow: _Flow, trees: _Trees) -> None:
    """Find a new parent for every cell cut off from a tree, or set it free."""
    label, parent, orphans = trees.label, trees.parent, trees.orphans
    offsets, opposite, bit = flow.offsets, flow.opposite, flow.bit
    cells, count = len(label), len(offsets)
    side = 1 - 2 * tree
    open_arcs = flow.masks[tree]
    first, pending = 0, lost
    while pending > 0:
        v = int(orphans[first])
        first = _wrapped(first + 1, cells)
        pending -= 1
        depth = label[v] * side
        best = _ALL_ONES  # label less one and direction of the best neighbour; the sign bit is set where there is none
        for k in range(count):
            near = np.uint32(np.int32(label[v + offsets[k]] * side) - np.int32(1))
            key = (near << np.uint32(5)) | np.uint32(k) | (near & _SIGN)
            best = min(best, key if open_arcs[v] & bit[k] else _ALL_ONES)
        nearest, way = int(best >> np.uint32(5)) + 1, int(best & np.uint32(31))
        if nearest < depth:
            parent[v] = way
            continue
        for k in range(count):
            child = v + offsets[k]
            if parent[child] == opposite[k] and label[child] * side == depth + 1:
                parent[child] = _ORPHAN
                orphans[_wrapped(first + pending, cells)] = child
                pending += 1
        if best & _SIGN or nearest >= limit:
            label[v] = 0
            continue
        label[v] = side * (nearest + 1)
        parent[v] = way
        if nearest + 1 >= level:
            _enqueue(v, 2 * tree + ((nearest + 1) & 1), trees)
