"""Colour spaces against Python's colorsys, scikit-image, and the formulas."""

import colorsys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from otus.proposals.colour import ColourSpace, colour_planes

colours = hnp.arrays(np.uint8, st.tuples(st.integers(1, 4), st.integers(1, 4), st.just(3)))


@given(image=colours)
def test_hsv_is_that_of_colorsys(image):
    planes = colour_planes(image, ColourSpace.HSV)
    for y, x in np.ndindex(image.shape[:2]):
        expected = np.array(colorsys.rgb_to_hsv(*(image[y, x] / 255))) * 255
        np.testing.assert_allclose(planes[:, y, x], expected, atol=1e-3)
    np.testing.assert_array_equal(colour_planes(image, ColourSpace.HUE), planes[:1])


def test_lab_is_that_of_scikit_image():
    color = pytest.importorskip("skimage.color", reason="scikit-image is the reference")
    step = np.arange(0, 256, 15, dtype=np.uint8)
    image = np.stack(np.meshgrid(step, step, step), axis=-1).reshape(-1, len(step), 3)
    ours = colour_planes(image, ColourSpace.LAB).transpose(1, 2, 0)
    np.testing.assert_allclose((ours - [0, 128, 128]) / [2.55, 1, 1], color.rgb2lab(image), atol=0.03)


@given(image=colours)
def test_shares_and_intensity(image):
    red, green, grey = colour_planes(image, ColourSpace.RGI)
    total = np.maximum(image.sum(axis=2), 1)
    np.testing.assert_allclose(red, image[..., 0] / total * 255, atol=1e-3)
    np.testing.assert_allclose(green, image[..., 1] / total * 255, atol=1e-3)
    np.testing.assert_allclose(grey, image @ [0.299, 0.587, 0.114], atol=1e-3)


@given(image=colours)
def test_every_channel_is_0_to_255(image):
    for space in ColourSpace:
        planes = colour_planes(image, space)
        assert planes.dtype == np.float32
        assert planes.shape[1:] == image.shape[:2]
        assert planes.min() >= 0
        assert planes.max() <= 255.01
