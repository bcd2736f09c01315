"""Several objects at once: the label of every pixel by alpha-expansion, so that no pixel is in two.

Shape shorthand: L labels, H x W the image, four planes of edges (:mod:`otus.interactive._grid_kernels`).

Paper: "Fast Approximate Energy Minimization via Graph Cuts" (Boykov, Veksler and Zabih, PAMI 2001), section 4, with the
Potts model. Departure: an expansion is written as arcs alone, no extra nodes, "What Energy Functions Can Be Minimized via
Graph Cuts?" (Kolmogorov and Zabih, PAMI 2004), section 4.2. The labels are within a factor of 2 of the best; of two labels
they are the best.
"""

import numpy as np
from jaxtyping import Int, Int32

from otus.interactive.max_flow import GridFlow, neighbor_pairs

MAX_SWEEPS = 2


def alpha_expansion(
    label_costs: Int32[np.ndarray, "l h w"],
    edge_costs: Int32[np.ndarray, "4 h w"],
    *,
    start: Int[np.ndarray, "h w"] | None = None,
) -> Int[np.ndarray, "h w"]:
    """Return the label of each pixel for which costs of labels and of edges between two labels are low.

    Parameters
    ----------
    label_costs
        What each label costs at each pixel.
    edge_costs
        What it costs that a neighbour in each of the directions right, down, down right and down left has another label.
    start
        Labels to start from (default: the cheapest of each pixel).

    >>> costs = np.array([[[0, 2, 9]], [[9, 3, 0]], [[9, 9, 9]]], np.int32)
    >>> alpha_expansion(costs, np.ones((4, 1, 3), np.int32)).tolist()
    [[0, 0, 1]]
    """
    labels = label_costs.argmin(axis=0) if start is None else start
    best = energy(labels, label_costs, edge_costs)
    for _ in range(MAX_SWEEPS):
        before = best
        for alpha in range(len(label_costs)):
            expanded = np.where(_expansion(labels, alpha, label_costs, edge_costs), alpha, labels)
            found = energy(expanded, label_costs, edge_costs)
            if found < best:
                labels, best = expanded, found
        if best == before:
            break
    return labels


def energy(
    labels: Int[np.ndarray, "h w"], label_costs: Int32[np.ndarray, "l h w"], edge_costs: Int32[np.ndarray, "4 h w"]
) -> int:
    """Return what a labelling costs."""
    total = np.take_along_axis(label_costs, labels[None], axis=0).sum(dtype=np.int64)
    for costs, here, there in neighbor_pairs(edge_costs):
        total += costs[here][labels[here] != labels[there]].sum(dtype=np.int64)
    return int(total)


def _expansion(
    labels: Int[np.ndarray, "h w"],
    alpha: int,
    label_costs: Int32[np.ndarray, "l h w"],
    edge_costs: Int32[np.ndarray, "4 h w"],
) -> np.ndarray:
    """The pixels that take a label in the best move in which any may take it and all others keep theirs.

    For a pair p, q with cost A where both keep, B where q alone moves, C where p alone does and 0 where both do:
    A + (C - A) x_p - C x_q + (B + C - A) (1 - x_p) x_q.
    """
    gain = np.take_along_axis(label_costs, labels[None], axis=0)[0].astype(np.int64) - label_costs[alpha]
    arcs = np.zeros((8, *labels.shape), np.int32)
    for k, (costs, here, there) in enumerate(neighbor_pairs(edge_costs)):
        cost, p, q = costs[here], labels[here], labels[there]
        both_keep, q_moves, p_moves = cost * (p != q), cost * (p != alpha), cost * (q != alpha)
        gain[here] -= p_moves - both_keep
        gain[there] += p_moves
        arcs[k + 4][there] = q_moves + p_moves - both_keep
    gain = gain.astype(np.int32)
    return GridFlow(arcs, neighbors=8).solve(np.maximum(gain, 0), np.maximum(-gain, 0)).source_side
