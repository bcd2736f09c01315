"""Sliding windows: inside the image, evenly spaced, without gaps and duplicates."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from otus.errors import UsageError
from otus.proposals.windows import SlidingWindows, sliding_windows
from otus.structures.boxes import pairwise_iou

sides = st.integers(1, 400)


@given(height=sides, width=sides, scale=st.floats(0.1, 1.5), ratio=st.floats(0.2, 5), stride=st.floats(0.1, 1))
def test_windows_of_one_shape_cover_the_image(height, width, scale, ratio, stride):
    windows = sliding_windows((height, width), scales=[scale], aspect_ratios=[ratio], stride=stride)
    assert (windows[:, :2] >= 0).all()
    assert (windows[:, 2] <= width).all()
    assert (windows[:, 3] <= height).all()
    side = scale * np.sqrt(height * width)
    size_wh = min(width, max(1, side / np.sqrt(ratio))), min(height, max(1, side * np.sqrt(ratio)))
    np.testing.assert_allclose(windows[:, 2:] - windows[:, :2], np.broadcast_to(size_wh, (len(windows), 2)), atol=1e-9)
    for low, high, length, extent in ((0, 2, width, size_wh[0]), (1, 3, height, size_wh[1])):
        starts = np.unique(windows[:, low])
        assert starts[0] == 0
        assert windows[:, high].max() == pytest.approx(length)
        step = max(1.0, stride * extent)
        assert (np.diff(starts) <= step + 1e-9).all()
        if len(starts) > 2:  # no more windows than the stride asks for
            assert (len(starts) - 2) * step < length - extent


@given(height=sides, width=sides)
def test_no_window_comes_twice_and_scales_come_in_order(height, width):
    windows = sliding_windows((height, width))
    assert len(np.unique(windows.round(9), axis=0)) == len(windows)
    assert len(windows) >= 1


def test_every_box_of_the_scales_and_shapes_has_a_window_that_overlaps_it():
    windows = sliding_windows((300, 400))
    rng = np.random.default_rng(0)
    side = rng.uniform(0.2, 0.8, 500) * np.sqrt(300 * 400)
    ratio = np.exp(rng.uniform(np.log(0.5), np.log(2), 500))
    w, h = np.minimum(side / np.sqrt(ratio), 400), np.minimum(side * np.sqrt(ratio), 300)
    x, y = rng.uniform(0, 400 - w), rng.uniform(0, 300 - h)
    best = pairwise_iou(np.stack([x, y, x + w, y + h], axis=1), windows).max(axis=1)
    assert best.min() > 0.45
    assert best.mean() > 0.7


@pytest.mark.parametrize("size_hw", [(1, 1), (1, 2000), (2000, 1)])
def test_thin_images_have_windows(size_hw):
    windows = sliding_windows(size_hw)
    assert len(windows) > 0
    assert ((windows[:, 2:] - windows[:, :2]) >= 1 - 1e-9).all()
    assert size_hw != (1, 1) or len(windows) == 1


@pytest.mark.parametrize(
    ("change", "field"),
    [({"scales": [0]}, "scales"), ({"aspect_ratios": [-1]}, "aspect_ratios"), ({"stride": float("nan")}, "stride")],
)
def test_what_is_no_positive_number_is_named(change, field):
    with pytest.raises(UsageError, match=field):
        sliding_windows((10, 10), **change)
    with pytest.raises(UsageError, match="size_hw"):
        sliding_windows((0, 10))


def test_as_proposals_the_largest_come_first():
    image = np.zeros((60, 80, 3), np.uint8)
    proposals = SlidingWindows(scales=(0.3, 0.6))(image)
    assert {tuple(box) for box in proposals.boxes_xyxy.tolist()} == {
        tuple(box) for box in sliding_windows((60, 80), scales=(0.3, 0.6)).astype(np.float32).tolist()
    }
    sides = proposals.boxes_xyxy[:, 2:] - proposals.boxes_xyxy[:, :2]
    np.testing.assert_allclose(proposals.scores, sides.prod(axis=1) / (60 * 80), rtol=1e-5)
    assert (np.diff(proposals.scores) <= 0).all()
    assert SlidingWindows(stride=0.5).parameters != SlidingWindows().parameters
