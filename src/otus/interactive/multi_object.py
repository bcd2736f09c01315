"""Segmentation of several objects at once by alpha-expansion: each pixel gets one label.

Shape shorthand: L labels, H x W the image, four planes of edges (:mod:`otus.interactive._grid_kernels`).

Paper: "Fast Approximate Energy Minimization via Graph Cuts" (Boykov, Veksler and Zabih, PAMI 2001), section 4, with the
Potts model. Departure: an expansion move needs no auxiliary nodes, by the construction of "What Energy Functions Can Be
Minimized via Graph Cuts?" (Kolmogorov and Zabih, PAMI 2004), section 4.2. The energy is within a factor of 2 of the minimum;
with two labels it is the minimum.
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
    """Return a labelling of low energy: the sum of the costs of labels and of edges between different labels.

    Parameters
    ----------
    label_costs
        Cost of each label at each pixel.
    edge_costs
        Cost of a different label at the neighbour to the right, down, down right and down left.
    start
        Initial labels (default: the label of lowest cost at each pixel).

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
            expanded_energy = energy(expanded, label_costs, edge_costs)
            if expanded_energy < best:
                labels, best = expanded, expanded_energy
        if best == before:
            break
    return labels


def energy(
    labels: Int[np.ndarray, "h w"], label_costs: Int32[np.ndarray, "l h w"], edge_costs: Int32[np.ndarray, "4 h w"]
) -> int:
    """Return the energy of a labelling."""
    total = np.take_along_axis(label_costs, labels[None], axis=0).sum(dtype=np.int64)
    for costs, pixels, neighbors in neighbor_pairs(edge_costs):
        total += costs[pixels][labels[pixels] != labels[neighbors]].sum(dtype=np.int64)
    return int(total)


def _expansion(
    labels: Int[np.ndarray, "h w"],
    alpha: int,
    label_costs: Int32[np.ndarray, "l h w"],
    edge_costs: Int32[np.ndarray, "4 h w"],
) -> np.ndarray:
    """Return the pixels that change to label ``alpha`` in the best expansion move (any pixel may change or keep its label).

    With x = 1 for pixels that change, the cost of an edge p, q is
    A + (C - A) x_p - C x_q + (B + C - A) (1 - x_p) x_q,
    where A is the cost if both keep their labels, B if only q changes, C if only p changes, and 0 if both change.
    """
    gain = np.take_along_axis(label_costs, labels[None], axis=0)[0].astype(np.int64) - label_costs[alpha]
    arcs = np.zeros((8, *labels.shape), np.int32)
    for k, (costs, pixels, neighbors) in enumerate(neighbor_pairs(edge_costs)):
        cost, p, q = costs[pixels], labels[pixels], labels[neighbors]
        both_keep, q_changes, p_changes = cost * (p != q), cost * (p != alpha), cost * (q != alpha)
        gain[pixels] -= p_changes - both_keep
        gain[neighbors] += p_changes
        arcs[k + 4][neighbors] = q_changes + p_changes - both_keep
    gain = gain.astype(np.int32)
    return GridFlow(arcs, neighbors=8).solve(np.maximum(gain, 0), np.maximum(-gain, 0)).source_side
