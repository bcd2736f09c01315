"""Simulated clicks: where they go, what they leave out, when they end."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from otus.errors import ShapeError
from otus.metrics.clicks import Click, next_click, simulate_clicks
from otus.structures import Prompt


def slow_next_click(prediction: np.ndarray, ground_truth: np.ndarray, ignore: np.ndarray) -> float:
    """Return the largest distance of an error pixel from the border of its error region, over both kinds of errors."""
    best = 0.0
    for error in (ground_truth & ~prediction & ~ignore, prediction & ~ground_truth & ~ignore):
        right = np.argwhere(np.pad(~error, 1, constant_values=True)) - 1
        for pixel in np.argwhere(error):
            best = max(best, float(np.hypot(*(right - pixel).T).min()))
    return best


@given(st.integers(0, 2**32), st.integers(1, 9), st.integers(1, 9), st.floats(0, 1))
def test_the_middle_of_the_largest_error(seed: int, height: int, width: int, share: float) -> None:
    rng = np.random.default_rng(seed)
    prediction, ground_truth, ignore = rng.random((3, height, width)) < np.array([share, 0.6, 0.1])[:, None, None]
    click = next_click(prediction, ground_truth, ignore=ignore)
    depth = slow_next_click(prediction, ground_truth, ignore)
    if depth == 0:
        assert click is None
        return
    assert click is not None
    row, column = int(click.y), int(click.x)
    assert ground_truth[row, column] == bool(click.label) != prediction[row, column]
    assert not ignore[row, column]
    error = (ground_truth != prediction) & ~ignore & (ground_truth == bool(click.label))
    right = np.argwhere(np.pad(~error, 1, constant_values=True)) - 1
    assert float(np.hypot(*(right - [row, column]).T).min()) == pytest.approx(depth)


def test_a_method_that_marks_what_is_clicked() -> None:
    ground_truth = np.zeros((9, 12), bool)
    ground_truth[2:7, 1:6] = ground_truth[4, 8] = True

    def segment(prompt: Prompt) -> np.ndarray:
        mask = np.zeros_like(ground_truth)
        points = np.asarray(prompt.points_xy)
        if any(x < 7 for x, _ in points):
            mask[1:7, 1:6] = True  # a row too much
        if any(y < 2 for _, y in points):
            mask[1] = False
        if any(x > 7 for x, _ in points):
            mask[4, 8] = True
        return mask

    record = simulate_clicks(segment, ground_truth)
    assert record.clicks == [Click(3.5, 4.5, 1), Click(8.5, 4.5, 1), Click(1.5, 1.5, 0)]
    assert record.ious == pytest.approx([25 / 31, 26 / 31, 1])
    np.testing.assert_array_equal(record.mask, ground_truth)
    assert len(simulate_clicks(segment, ground_truth, stop_at_iou=0.8).ious) == 1
    assert len(simulate_clicks(segment, ground_truth, max_clicks=2).ious) == 2


def test_a_method_that_never_learns_is_clicked_at_new_places() -> None:
    ground_truth = np.ones((4, 5), bool)
    record = simulate_clicks(lambda _: np.zeros_like(ground_truth), ground_truth)
    assert len(set(record.clicks)) == 20
    assert record.ious == [0.0] * 20


def test_nothing_to_click_at() -> None:
    nothing = np.zeros((4, 5), bool)
    assert simulate_clicks(lambda _: nothing, nothing).ious == []
    everything = np.ones_like(nothing)
    assert simulate_clicks(lambda _: nothing, everything, ignore=everything).ious == []


def test_masks_of_two_sizes() -> None:
    with pytest.raises(ShapeError, match=r"expected the shape of ground_truth, \(4, 5\)"):
        next_click(np.zeros((5, 4), bool), np.zeros((4, 5), bool))
