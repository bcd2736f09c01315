import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from otus.errors import ShapeError
from otus.structures.boxes import as_boxes, pairwise_iou
from otus.structures.oriented import (
    corners,
    enclosing_boxes,
    from_corners,
    pairwise_cuboid_iou,
    pairwise_oriented_iou,
)

place = st.floats(-20, 20)
size = st.floats(0.5, 15)
angle = st.floats(-7, 7)
oriented_box = st.tuples(place, place, size, size, angle)


def clipped_area(subject, clip):
    """Sutherland-Hodgman, the slow way: cut one convex outline by the other's sides, then the shoelace formula."""
    polygon = list(subject)
    for start, end in zip(clip, np.roll(clip, -1, axis=0), strict=True):
        side = end - start
        kept = []
        for here, there in zip(polygon, polygon[1:] + polygon[:1], strict=True):
            inside_here = side[0] * (here - start)[1] - side[1] * (here - start)[0]
            inside_there = side[0] * (there - start)[1] - side[1] * (there - start)[0]
            if inside_here >= 0:
                kept.append(here)
            if inside_here * inside_there < 0:
                kept.append(here + (there - here) * inside_here / (inside_here - inside_there))
        polygon = kept
        if not polygon:
            return 0.0
    x, y = np.array(polygon).T
    return 0.5 * abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1)))


def slow_iou(a, b):
    intersection = clipped_area(corners([a])[0], corners([b])[0])
    return intersection / (a[2] * a[3] + b[2] * b[3] - intersection)


@given(a=oriented_box, b=oriented_box)
def test_iou_equals_polygon_clipping(a, b):
    fast = pairwise_oriented_iou(np.array([a]), np.array([b]))[0, 0]
    assert fast == pytest.approx(slow_iou(a, b), abs=1e-6)
    assert 0 <= fast <= 1
    assert fast == pytest.approx(pairwise_oriented_iou(np.array([b]), np.array([a]))[0, 0], abs=1e-8)


@given(box=oriented_box, quarter=st.integers(-4, 4))
def test_a_box_turned_by_quarters_is_itself(box, quarter):
    x, y, width, height, turn = box
    if quarter % 2:
        width, height = height, width
    turned = (x, y, width, height, turn + quarter * np.pi / 2)
    assert pairwise_oriented_iou(np.array([box]), np.array([turned]))[0, 0] == pytest.approx(1, abs=1e-8)


@given(a=oriented_box, b=oriented_box)
def test_unturned_boxes_agree_with_axis_aligned_ones(a, b):
    a, b = np.array([(*a[:4], 0.0)]), np.array([(*b[:4], 0.0)])
    expected = pairwise_iou(enclosing_boxes(a), enclosing_boxes(b))
    np.testing.assert_allclose(pairwise_oriented_iou(a, b), expected, atol=1e-8)


def test_touching_boxes_do_not_overlap():
    boxes = np.array([[0, 0, 2, 2, 0.0], [2, 0, 2, 2, 0.0], [0, 2, 2, 2, np.pi / 2], [0, 0, 0, 2, 0.3]])
    iou = pairwise_oriented_iou(boxes, boxes)
    np.testing.assert_allclose(iou, np.diag([1.0, 1, 1, 0]), atol=1e-8)


@given(box=oriented_box)
def test_corners_and_back(box):
    again = from_corners(corners([box]))
    assert pairwise_oriented_iou(again, np.array([box]))[0, 0] == pytest.approx(1, abs=1e-8)


def test_published_rotated_ious(shared_data):
    cases = json.loads((shared_data / "metric_fixtures" / "rotated_iou" / "cases.json").read_text())["cases"]
    assert cases
    for case in cases:
        a, b = np.array(case["a"], dtype=np.float64), np.array(case["b"], dtype=np.float64)
        a[:, 4], b[:, 4] = -np.deg2rad(a[:, 4]), -np.deg2rad(b[:, 4])  # theirs turn counter-clockwise, in degrees
        np.testing.assert_allclose(pairwise_oriented_iou(a, b), case["iou"], atol=2e-3)


def test_cuboids_by_hand():
    unit = [0, 0, 0, 1, 1, 1, 0.0]
    raised, turned, beside = [0, 0, 0.5, 1, 1, 1, 0.0], [0, 0, 0, 1, 1, 1, np.pi / 4], [1, 0, 0, 1, 1, 1, 0.0]
    iou = pairwise_cuboid_iou(np.array([unit]), np.array([unit, raised, turned, beside]))
    octagon = 2 * (np.sqrt(2) - 1)
    np.testing.assert_allclose(iou, [[1, 1 / 3, octagon / (2 - octagon), 0]], atol=1e-9)


def test_no_boxes_and_wrong_corners():
    assert pairwise_oriented_iou(np.zeros((0, 5)), np.array([[0, 0, 1, 1, 0.0]])).shape == (0, 1)
    assert enclosing_boxes(np.zeros((0, 5))).shape == as_boxes([]).shape
    with pytest.raises(ShapeError, match=r"\(N, 4, 2\)"):
        from_corners(np.zeros((3, 8)))
