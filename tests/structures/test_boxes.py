import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from otus.errors import ShapeError
from otus.structures import BoxFormat
from otus.structures.boxes import area, as_boxes, clip, convert, pairwise_giou, pairwise_iou

coordinates = st.floats(-500, 500, width=32)


@st.composite
def boxes(draw, most=6):
    corners = draw(hnp.arrays(np.float64, st.tuples(st.integers(0, most), st.just(4)), elements=coordinates))
    return np.concatenate(
        [np.minimum(corners[:, :2], corners[:, 2:]), np.maximum(corners[:, :2], corners[:, 2:])], axis=1
    )


def iou_by_hand(a, b):
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    intersection = max(width, 0) * max(height, 0)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - intersection
    return intersection / union if union > 0 else 0.0


@pytest.mark.parametrize("other", list(BoxFormat))
@given(given_boxes=boxes())
def test_formats_invert(other, given_boxes):
    there_and_back = convert(convert(given_boxes, BoxFormat.XYXY, other), other, BoxFormat.XYXY)
    np.testing.assert_allclose(there_and_back, given_boxes, atol=1e-9)


def test_formats_by_hand():
    box = [[10.0, 20.0, 40.0, 60.0]]
    assert convert(box, BoxFormat.XYXY, BoxFormat.XYWH).tolist() == [[10, 20, 30, 40]]
    assert convert(box, BoxFormat.XYXY, BoxFormat.CXCYWH).tolist() == [[25, 40, 30, 40]]
    assert convert(box, BoxFormat.XYXY, BoxFormat.VOC).tolist() == [[11, 21, 40, 60]]


@given(a=boxes(), b=boxes())
def test_iou_equals_the_loop_and_is_symmetric(a, b):
    iou = pairwise_iou(a, b)
    assert iou.shape == (len(a), len(b))
    assert ((iou >= 0) & (iou <= 1 + 1e-12)).all()
    np.testing.assert_allclose(iou, pairwise_iou(b, a).T, atol=1e-12)
    expected = [[iou_by_hand(one, other) for other in b] for one in a]
    np.testing.assert_allclose(iou, np.reshape(expected, iou.shape), atol=1e-12)


@given(a=boxes(), b=boxes())
def test_giou_equals_torchvision(a, b):
    torch = pytest.importorskip("torch")
    ops = pytest.importorskip("torchvision.ops")
    # torchvision divides 0 by 0 for boxes without area; ours gives them IoU 0
    a, b = a[area(a) > 0], b[area(b) > 0]
    expected = ops.generalized_box_iou(torch.from_numpy(a), torch.from_numpy(b)).numpy()
    np.testing.assert_allclose(pairwise_giou(a, b), expected, atol=1e-9)


def test_boxes_without_area_have_no_overlap():
    point = as_boxes([[3, 3, 3, 3]])
    assert pairwise_iou(point, point).tolist() == [[0.0]]
    assert np.isfinite(pairwise_giou(point, point)).all()


@given(given_boxes=boxes())
def test_clipped_boxes_lie_in_the_image(given_boxes):
    clipped = clip(given_boxes, (100, 50))
    assert (clipped >= 0).all()
    assert (clipped[:, ::2] <= 50).all()
    assert (clipped[:, 1::2] <= 100).all()
    assert (area(clipped) <= area(given_boxes) + 1e-9).all()


def test_wrong_shapes_say_expected_and_actual():
    with pytest.raises(ShapeError, match=r"expected shape \(N, 4\), got \(2, 3\)"):
        as_boxes(np.zeros((2, 3)))
    assert as_boxes([]).shape == (0, 4)
    assert as_boxes(np.zeros((2, 4), np.float32)).dtype == np.float32
    assert as_boxes([[1, 2, 3, 4]]).dtype == np.float64
