"""Outlines to pixels and their IoU, against COCO's mask API."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from otus.errors import DataError
from otus.metrics.detection import _mask_kernels as kernels
from otus.metrics.detection.mask_pairs import mask_areas
from otus.structures import Masks, Objects, SegmentationKind, Segmentations

codec = pytest.importorskip("pycocotools.mask", reason="pycocotools is the reference")

HEIGHT, WIDTH = 23, 31
coordinate = st.one_of(st.integers(-5, 40), st.floats(-8, 45).map(lambda v: round(v, 2)), st.just(HEIGHT), st.just(0.5))
ring = st.lists(st.tuples(coordinate, coordinate), min_size=3, max_size=9)


def rasterised(outlines: list, size_hw: tuple[int, int] = (HEIGHT, WIDTH)):
    """Return dense masks, boxes and areas of segmentations by the kernel."""
    columns = Segmentations.build(outlines)
    sizes = np.tile(size_hw, (len(outlines), 1)).astype(np.int64)
    offsets, intervals, boxes, areas, problem = kernels.segmentation_intervals(
        np.arange(len(outlines)), columns.kinds == SegmentationKind.RLE, columns.rings, columns.points, columns.points_xy,
        columns.counts, columns.counts_bytes, sizes,
    )  # fmt: skip
    assert problem[1] == kernels.VALID
    dense = np.zeros((len(outlines), size_hw[0] * size_hw[1]), dtype=bool)
    for i in range(len(outlines)):
        own = intervals[offsets[i] : offsets[i + 1]]
        assert (own[:, 0] < own[:, 1]).all()
        assert (own[1:, 0] > own[:-1, 1]).all(), "intervals must be sorted and apart"
        for start, end in own:
            dense[i, start:end] = True
    return dense.reshape(-1, size_hw[1], size_hw[0]).transpose(0, 2, 1), boxes, areas


@given(st.lists(ring, min_size=1, max_size=3))
@settings(max_examples=300, deadline=None)
def test_polygons_cover_the_pixels_of_the_mask_api(rings):
    flat = [np.array(one, dtype=np.float64).reshape(-1).tolist() for one in rings]
    expected = codec.decode(codec.merge(codec.frPyObjects(flat, HEIGHT, WIDTH))).astype(bool)
    dense, boxes, areas = rasterised([[np.array(one, dtype=np.float64) for one in rings]])
    np.testing.assert_array_equal(dense[0], expected)
    assert areas[0] == expected.sum()
    if expected.any():
        rows, columns = np.nonzero(expected)
        x1, y1, x2, y2 = boxes[0]
        assert (x1, x2) == (columns.min(), columns.max() + 1)
        assert y1 <= rows.min() < rows.max() + 1 <= y2


@given(st.integers(0, 2**32 - 1), st.floats(0, 1))
@settings(max_examples=100, deadline=None)
def test_run_lengths_are_read_as_written(seed, share):
    mask = np.random.default_rng(seed).random((HEIGHT, WIDTH)) < share
    dense, _, areas = rasterised([codec.encode(np.asfortranarray(mask, dtype=np.uint8))["counts"]])
    np.testing.assert_array_equal(dense[0], mask)
    assert areas[0] == mask.sum()


def test_long_runs():
    """An image of 40 million pixels, whose runs need five characters."""
    size_hw = (5000, 8000)
    counts = Masks.from_rle([[12_345_678, 20_000_000, 5_000_000, 2_654_322]], size_hw).rle()[0]["counts"]
    _, boxes, areas = rasterised([counts], size_hw)
    assert areas[0] == 22_654_322
    assert boxes[0].tolist() == [2469.0, 0.0, 8000.0, 5000.0]


def test_iou_is_that_of_the_mask_api():
    rng = np.random.default_rng(3)
    predictions, true = (rng.random((n, HEIGHT, WIDTH)) < rng.random((n, 1, 1)) for n in (6, 5))
    true[1] = False
    crowd = np.array([False, True, True, False, False])
    expected = Masks.from_dense(predictions).iou(Masks.from_dense(true), crowd=crowd)

    def intervals(masks):
        columns = Segmentations.build([one["counts"] for one in Masks.from_dense(masks).rle()])
        sizes = np.tile([HEIGHT, WIDTH], (len(masks), 1)).astype(np.int64)
        offsets, pixels, _, areas, _ = kernels.segmentation_intervals(
            np.arange(len(masks)), columns.kinds == SegmentationKind.RLE, columns.rings, columns.points, columns.points_xy,
            columns.counts, columns.counts_bytes, sizes,
        )  # fmt: skip
        return offsets, pixels, areas

    pairs = np.tile(np.arange(5), 6)
    ious = kernels.interval_ious(np.arange(0, 31, 5), pairs, *intervals(predictions), *intervals(true), crowd)
    np.testing.assert_array_equal(ious.reshape(6, 5), expected)


@pytest.mark.parametrize("broken", [b"\xff", b"0", b"P", b"PPPPPPPPPPPPPPPPPPPPPPPPPPPPPP", b"oooo", b""])
def test_broken_run_lengths_are_refused(broken):
    columns = Segmentations.build([broken])
    *_, (faulty, code) = kernels.segmentation_intervals(
        np.arange(1), columns.kinds == SegmentationKind.RLE, columns.rings, columns.points, columns.points_xy,
        columns.counts, columns.counts_bytes, np.array([[HEIGHT, WIDTH]]),
    )  # fmt: skip
    assert faulty == 0
    assert code != kernels.VALID


def test_sizes_that_disagree_are_both_said():
    dense = np.ones((6, 7), dtype=np.uint8, order="F")
    outlines = Segmentations.build([codec.encode(dense)["counts"]])
    one = Objects.build(image_index=[0], labels=[0], boxes_xyxy=[[0, 0, 7, 6]], segmentations=outlines)
    with pytest.raises(DataError, match=r"add up to 42 pixels, the image has 4 x 5 = 20"):
        mask_areas(one, sizes_hw=np.array([[4, 5]]), side="ground_truth")
