"""Geodesic distances: sweeps against Dijkstra's algorithm."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from otus.interactive import _grid_kernels as kernels
from otus.interactive.geodesic import FAR, edge_lengths, geodesic_distances, reference_geodesic_distances


@given(st.integers(0, 2**32), st.integers(1, 12), st.integers(1, 12), st.sampled_from([0.0, 0.1, 2.0]))
def test_sweeps_reach_the_shortest_ways(seed: int, height: int, width: int, color_weight: float) -> None:
    rng = np.random.default_rng(seed)
    planes = rng.random((3, height, width), np.float32) * 255
    lengths = edge_lengths(kernels.squared_differences(planes), color_weight=color_weight)
    seeds = rng.random((height, width)) < 0.1
    seeds[rng.integers(height), rng.integers(width)] = True
    exact = reference_geodesic_distances(seeds, lengths)
    swept = np.where(seeds, np.float32(0), FAR)
    kernels.spread_distances(swept, lengths, 100)
    np.testing.assert_allclose(swept, exact, rtol=1e-5)
    few = geodesic_distances(seeds, lengths)
    assert (few >= exact * (1 - 1e-5)).all()
    assert np.median(few / np.maximum(exact, 1e-9)) < 1.01


def test_over_a_strong_edge_it_is_far() -> None:
    planes = np.zeros((3, 4, 10), np.float32)
    planes[:, :, 5:] = 200
    lengths = edge_lengths(kernels.squared_differences(planes), color_weight=1)
    seeds = np.zeros((4, 10), bool)
    seeds[:, 0] = True
    distances = geodesic_distances(seeds, lengths)[1]
    assert distances[4] == pytest.approx(4 * 25.6)
    assert distances[5] - distances[4] == pytest.approx(np.hypot(25.6, 200 * 3**0.5), rel=1e-5)


def test_without_a_seed_everything_is_far() -> None:
    lengths = edge_lengths(np.zeros((4, 3, 3), np.float32), color_weight=1)
    assert (geodesic_distances(np.zeros((3, 3), bool), lengths) == FAR).all()


def test_distances_do_not_depend_on_the_resolution() -> None:
    seeds = [np.eye(side, dtype=bool) & (np.arange(side) < side // 8) for side in (64, 128)]
    far = [
        geodesic_distances(one, edge_lengths(np.zeros((4, *one.shape), np.float32), color_weight=1)).max()
        for one in seeds
    ]
    assert far[0] == pytest.approx(far[1], rel=0.03)
