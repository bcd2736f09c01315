"""Maximum flow on grids, against scipy's on the same graph and against shortest augmenting paths."""

import time
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_flow

from otus.errors import ShapeError
from otus.interactive.max_flow import GridFlow, cut_cost, max_flow, neighbor_steps, reference_max_flow

GRIDS = [(2, 4), (2, 8), (3, 6), (3, 26)]


@st.composite
def grids(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    ndim, neighbors = draw(st.sampled_from(GRIDS))
    size = draw(st.tuples(*[st.integers(1, 7 if ndim == 2 else 4)] * ndim))
    planes = draw(st.sampled_from([neighbors, neighbors // 2]))
    highest, share = draw(st.sampled_from([1, 5, 1000])), draw(st.sampled_from([0.3, 1.0]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    source, sink, capacities = (
        rng.integers(0, highest, shape, endpoint=True) * (rng.random(shape) < share)
        for shape in (size, size, (planes, *size))
    )
    return source, sink, capacities, neighbors


def scipy_flow(source: np.ndarray, sink: np.ndarray, capacities: np.ndarray, neighbors: int) -> int:
    number = np.arange(source.size).reshape(source.shape)
    graph = np.zeros((source.size + 2, source.size + 2), np.int32)
    graph[-2, :-2], graph[:-2, -1] = source.ravel(), sink.ravel()
    steps = neighbor_steps(source.ndim, neighbors)
    for k, plane in enumerate(capacities):
        for pixel in np.ndindex(*source.shape):
            other = tuple(np.add(pixel, steps[k]).tolist())
            if all(0 <= at < side for at, side in zip(other, source.shape, strict=True)):
                graph[number[pixel], number[other]] += plane[pixel]
                if len(capacities) < neighbors:
                    graph[number[other], number[pixel]] += plane[pixel]
    return maximum_flow(csr_array(graph), source.size, source.size + 1).flow_value


@given(grids())
def test_flow_is_scipys_and_the_cost_of_its_cut(grid: tuple[np.ndarray, np.ndarray, np.ndarray, int]) -> None:
    source, sink, capacities, neighbors = grid
    cut = max_flow(source, sink, capacities, neighbors=neighbors)
    assert cut.flow == scipy_flow(*grid)
    assert cut.flow == cut_cost(cut.source_side, source, sink, capacities, neighbors=neighbors)


@given(grids())
def test_flow_and_cut_are_those_of_shortest_augmenting_paths(
    grid: tuple[np.ndarray, np.ndarray, np.ndarray, int],
) -> None:
    *values, neighbors = grid
    cut, reference = max_flow(*values, neighbors=neighbors), reference_max_flow(*values, neighbors=neighbors)
    assert cut.flow == reference.flow
    np.testing.assert_array_equal(cut.source_side, reference.source_side)


@given(grids(), st.integers(0, 2**32))
def test_solving_on_is_solving_anew(grid: tuple[np.ndarray, np.ndarray, np.ndarray, int], seed: int) -> None:
    source, sink, capacities, neighbors = grid
    rng = np.random.default_rng(seed)
    flow = GridFlow(capacities, neighbors=neighbors)
    for _ in range(4):
        cut, anew = flow.solve(source, sink), max_flow(source, sink, capacities, neighbors=neighbors)
        assert cut.flow == anew.flow
        np.testing.assert_array_equal(cut.source_side, anew.source_side)
        source, sink = (
            np.where(rng.random(one.shape) < 0.4, rng.integers(0, 900, one.shape), one) for one in (source, sink)
        )


@pytest.mark.parametrize(("ndim", "neighbors"), GRIDS[:3])  # each type of the masks is compiled anew
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int32, np.int64])
def test_floats_and_integers(ndim: int, neighbors: int, dtype: type) -> None:
    rng = np.random.default_rng(neighbors)
    size = (9,) * ndim
    values = [rng.integers(0, 2**12, shape).astype(dtype) for shape in (size, size, (neighbors, *size))]
    cut = max_flow(*values, neighbors=neighbors)
    assert cut.flow == scipy_flow(*[one.astype(np.int64) for one in values], neighbors)  # float32 is exact up to 2^24
    assert isinstance(cut.flow, float if np.dtype(dtype).kind == "f" else int)


def test_fractions_cost_what_their_cut_does() -> None:
    rng = np.random.default_rng(3)
    for dtype, tolerance in ((np.float32, 1e-5), (np.float64, 1e-12)):
        values = [
            (rng.random(shape) * scale).astype(dtype)
            for shape, scale in (((40, 50), 1), ((40, 50), 1), ((4, 40, 50), 0.1))
        ]
        cut = max_flow(*values, neighbors=8)
        assert cut.flow == pytest.approx(cut_cost(cut.source_side, *values, neighbors=8), rel=tolerance)
        assert 0 < cut.source_side.mean() < 1


def test_one_long_way_and_whole_numbers_that_are_large() -> None:
    """A corridor that winds through the grid: the longest paths that there are."""
    walls = np.zeros((41, 41), bool)
    walls[1::4, :-1] = walls[3::4, 1:] = True
    pixels = np.where(walls, 0, 2**40)
    capacities = np.stack([np.minimum(pixels, np.roll(pixels, -1, axis)) for axis in (1, 0)])
    source, sink = np.zeros((2, 41, 41), np.int64)
    source[0, 0] = sink[-1, -1] = 2**50
    assert max_flow(source, sink, capacities, neighbors=4).flow == 2**40


def test_work_grows_with_the_grid_not_with_the_capacities() -> None:
    """Random capacities everywhere and terminals far apart: hard for augmenting paths; the bound is that of the paper."""
    rng = np.random.default_rng(0)
    seconds = []
    for scale in (1, 2**40, 2**40):
        capacities = rng.integers(1, 100, (8, 120, 120)) * scale
        source, sink = np.zeros((2, 120, 120), np.int64)
        source[:, 0] = sink[:, -1] = 2**50
        start = time.thread_time()
        cut = max_flow(source, sink, capacities, neighbors=8)
        seconds.append(time.thread_time() - start)
        assert cut.flow == cut_cost(cut.source_side, source, sink, capacities, neighbors=8)
    assert all(b < 10 * a + 1 for a, b in pairwise(seconds))


def test_of_several_minimum_cuts_it_is_the_one_nearest_to_the_source() -> None:
    source, sink, even = np.array([[1, 0, 0, 0]]), np.array([[0, 0, 0, 1]]), np.ones((2, 1, 4), np.int64)
    assert not max_flow(source, sink, even, neighbors=4).source_side.any()
    assert max_flow(source * 2, sink * 2, even, neighbors=4).source_side.tolist() == [[True, False, False, False]]


def test_what_leads_out_of_the_grid_is_not_used() -> None:
    source, sink = np.array([[5, 0], [0, 0]]), np.array([[0, 0], [0, 5]])
    inside = np.zeros((8, 2, 2), np.int64)
    inside[2, 0, 0] = 3  # down and right
    outside = inside.copy()
    outside[[0, 1, 2, 3], 1, 1] = 7
    outside[[4, 5, 6], 0, 0] = 7
    assert [max_flow(source, sink, one, neighbors=8).flow for one in (inside, outside)] == [3, 3]


@pytest.mark.parametrize(
    ("capacities", "neighbors", "message"),
    [
        (np.ones((3, 4, 4)), 8, "expected 8 or 4 planes"),
        (np.ones((2, 0, 4)), 4, "at least one pixel"),
        (np.ones((4, 4, 4)), 6, "4 or 8 neighbours in two dimensions"),
        (np.ones((4, 4)), 4, "4 or 8 neighbours in two dimensions, 6 or 26 in three, got 4 in 1"),
        (np.full((2, 4, 4), -1.0), 4, "from 0 to"),
        (np.full((2, 4, 4), np.nan), 4, "got nan"),
        (np.full((2, 4, 4), np.inf), 4, "got inf"),
        (np.full((2, 4, 4), 2**30, np.int32), 4, "give int64 or float64"),
    ],
)
def test_capacities_that_cannot_be(capacities: np.ndarray, neighbors: int, message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        GridFlow(capacities, neighbors=neighbors)


@pytest.mark.parametrize("name", ["source", "sink"])
def test_terminals_that_cannot_be(name: str) -> None:
    flow = GridFlow(np.ones((2, 3, 3)), neighbors=4)
    sound = np.ones((3, 3))
    for wrong in (np.ones((3, 4)), -sound, sound * np.inf, sound * np.nan):
        with pytest.raises(ShapeError, match=name):
            flow.solve(**{"source": sound, "sink": sound, name: wrong})
    assert flow.solve(sound, sound).flow == 9  # what was refused has changed nothing
