"""Tracing is the inverse of COCO's rasteriser, and finds the parts and holes that scipy's labelling finds."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy.ndimage import label

from otus.data.formats.polygons import mask_to_polygons, object_polygons
from otus.structures import Masks, SegmentationKind, Segmentations

masks = arrays.arrays(bool, st.tuples(st.integers(1, 12), st.integers(1, 12)))


def rasterised(ring: np.ndarray, size_hw: tuple[int, int]) -> np.ndarray:
    return Masks.from_polygons([[ring]], size_hw).dense()[0]


@given(masks)
@settings(max_examples=300, deadline=None)
def test_rings_give_back_the_same_pixels(mask: np.ndarray) -> None:
    painted = np.zeros_like(mask)
    for part in mask_to_polygons(mask):
        one = rasterised(part.outer, mask.shape)
        for hole in part.holes:
            one &= ~rasterised(hole, mask.shape)
        assert not (painted & one).any()
        painted |= one
    np.testing.assert_array_equal(painted, mask)


@given(masks)
@settings(max_examples=300, deadline=None)
def test_counts_of_parts_and_holes_are_those_of_labelling(mask: np.ndarray) -> None:
    parts = mask_to_polygons(mask)
    assert len(parts) == label(mask, structure=np.ones((3, 3)))[1]
    background = label(~np.pad(mask, 1))[1]
    assert sum(len(part.holes) for part in parts) == background - 1


def test_only_turning_corners_are_given() -> None:
    ring = np.ones((5, 5), dtype=bool)
    ring[1:4, 1:4] = False
    (part,) = mask_to_polygons(ring)
    assert part.outer.tolist() == [[0, 0], [5, 0], [5, 5], [0, 5]]
    assert len(part.holes) == 1
    assert sorted(part.holes[0].tolist()) == [[1, 1], [1, 4], [4, 1], [4, 4]]


def test_polygons_are_kept_and_run_lengths_traced() -> None:
    mask = np.zeros((4, 6), dtype=bool)
    mask[1:3, 2:5] = True
    triangle = np.array([[0.5, 0.5], [3.0, 0.5], [0.5, 2.0]])
    rle = Masks.from_dense(mask[None]).rle()[0]["counts"]
    outlines = Segmentations.build([[triangle, triangle + 1], rle, None])
    assert outlines.kinds.tolist() == [SegmentationKind.POLYGONS, SegmentationKind.RLE, SegmentationKind.NONE]
    np.testing.assert_array_equal(
        [part.outer for part in object_polygons(outlines, 0, (4, 6))], [triangle, triangle + 1]
    )
    assert [part.outer.tolist() for part in object_polygons(outlines, 1, (4, 6))] == [[[2, 1], [5, 1], [5, 3], [2, 3]]]
    assert object_polygons(outlines, 2, (4, 6)) == []


@pytest.mark.parametrize("shape", [(1, 1), (3, 7)])
def test_no_pixels_no_parts(shape: tuple[int, int]) -> None:
    assert mask_to_polygons(np.zeros(shape, dtype=bool)) == []
