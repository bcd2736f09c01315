"""Over-segmentation: the kernels against the algorithm as it is read in the paper, scipy's filters, and plain cases."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage

from otus.errors import ShapeError, UsageError
from otus.proposals.oversegmentation import (
    PixelGraph,
    gaussian_derivatives,
    gaussian_smooth,
    oversegment,
    reference_regions,
)

shapes = st.tuples(st.sampled_from([1, 3]), st.integers(1, 9), st.integers(1, 9))
# few values: many equal weights, whose order must not matter less than in the reference
images = shapes.flatmap(lambda shape: hnp.arrays(np.float32, shape, elements=st.sampled_from([0, 1, 3, 40, 200, 255])))


@given(
    planes=images,
    scale=st.sampled_from([0, 1, 37.5, 300, 3000]),
    min_size=st.integers(0, 12),
    sigma=st.sampled_from([0, 0.8]),
)
def test_equal_to_the_slow_reference(planes, scale, min_size, sigma):
    graph = PixelGraph(planes, sigma=sigma)
    labels = graph.regions(scale=scale, min_size=min_size)
    np.testing.assert_array_equal(labels, reference_regions(graph.weights, scale=scale, min_size=min_size))


@given(planes=images)
def test_weights_are_distances_of_neighbours(planes):
    graph = PixelGraph(planes, sigma=0)
    _, height, width = planes.shape
    for d, (dy, dx) in enumerate([(0, 1), (1, 0), (1, 1), (1, -1)]):
        for y in range(height):
            for x in range(width):
                if y + dy < height and 0 <= x + dx < width:
                    distance = np.linalg.norm(planes[:, y, x].astype(float) - planes[:, y + dy, x + dx])
                    assert abs(graph.weights[d, y, x] - distance * 16) <= 1
                else:
                    assert graph.weights[d, y, x] == 65535


@pytest.mark.parametrize("shape", [(3, 17, 23), (1, 1, 1), (2, 1, 40), (1, 3, 2)])
@pytest.mark.parametrize("sigma", [0.8, 1.0, 2.5])
def test_filters_are_those_of_scipy(shape, sigma):
    planes = np.random.default_rng(0).uniform(0, 255, shape).astype(np.float32)
    options = {"mode": "nearest", "radius": int(np.ceil(4 * sigma))}
    along = [ndimage.gaussian_filter1d(planes.astype(float), sigma, axis=axis, **options) for axis in (1, 2)]
    np.testing.assert_allclose(
        gaussian_smooth(planes, sigma), ndimage.gaussian_filter1d(along[0], sigma, axis=2, **options), atol=1e-3
    )
    dx, dy = gaussian_derivatives(planes, sigma)
    np.testing.assert_allclose(dx, ndimage.gaussian_filter1d(along[0], sigma, axis=2, order=1, **options), atol=1e-3)
    np.testing.assert_allclose(dy, ndimage.gaussian_filter1d(along[1], sigma, axis=1, order=1, **options), atol=1e-3)


def test_regions_are_connected_large_enough_and_numbered_as_they_come():
    image = np.random.default_rng(1).integers(0, 256, (40, 50, 3))
    labels = oversegment(image, scale=50, min_size=20)
    first = [int(np.flatnonzero(labels.ravel() == label)[0]) for label in range(labels.max() + 1)]
    assert first == sorted(first)
    assert np.bincount(labels.ravel()).min() >= 20
    for label in range(labels.max() + 1):
        assert ndimage.label(labels == label, structure=np.ones((3, 3)))[1] == 1


def test_two_flat_halves_are_two_regions_and_larger_scales_make_fewer():
    image = np.zeros((30, 40, 3))
    image[:, 20:] = 200
    np.testing.assert_array_equal(oversegment(image, sigma=0), image[..., 0] > 0)
    noisy = np.random.default_rng(2).integers(0, 256, (60, 60, 3))
    counts = [oversegment(noisy, scale=scale, min_size=0).max() for scale in (10, 100, 1000)]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > counts[2]


@pytest.mark.parametrize("size_hw", [(1, 1), (1, 2000), (2000, 1), (7, 5)])
def test_a_image_of_one_colour_is_one_region(size_hw):
    assert not oversegment(np.full((*size_hw, 3), 90)).any()
    assert not oversegment(np.full(size_hw, 90)).any()


def test_bad_arguments_are_named():
    with pytest.raises(ShapeError, match="image"):
        oversegment(np.zeros((0, 4, 3)))
    with pytest.raises(UsageError, match="scale"):
        oversegment(np.zeros((4, 4)), scale=-1)
    with pytest.raises(UsageError, match="sigma"):
        oversegment(np.zeros((4, 4)), sigma=float("nan"))
