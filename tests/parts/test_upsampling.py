"""Downsampling and upsampling: against slow loops and torch.nn.functional, gradients, factors, odd sizes, one pixel."""

import itertools
from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.autograd import gradcheck
from torch.nn import functional as F

from otus.errors import ShapeError, UsageError
from otus.parts.upsampling import (
    DOWNSAMPLINGS,
    UPSAMPLINGS,
    Downsampling,
    MaxPooling,
    MaxUnpooling,
    Pooled,
    StridedConvolution,
    TransposedConvolution,
    UnpairedUpsampling,
    Upsampling,
    bed_of_nails,
    interpolate,
    interpolation_weights,
    make_downsampling,
    make_upsampling,
    max_unpool,
    transposed_convolution_by_patches,
)

sides = st.integers(1, 7)
seeds = st.integers(0, 2**32 - 1)


def a_map(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@given(sides, sides, st.integers(1, 4), st.integers(1, 4), seeds)
def test_bed_of_nails_is_a_slow_loop(height, width, dy, dx, seed):
    x = a_map(2, 3, height, width, seed=seed)
    fine = bed_of_nails(x, (height * dy, width * dx))
    expected = torch.zeros(2, 3, height * dy, width * dx, dtype=x.dtype)
    for i, j in itertools.product(range(height), range(width)):
        expected[:, :, i * dy, j * dx] = x[:, :, i, j]
    assert torch.equal(fine, expected)


@pytest.mark.parametrize("mode", ["nearest", "bilinear", "bicubic"])
@given(sides, sides, st.integers(1, 19), st.integers(1, 19), st.booleans(), seeds)
def test_interpolation_is_the_product_with_its_weights(mode, height, width, rows, columns, align_corners, seed):
    x = a_map(1, 2, height, width, seed=seed)
    options = {"mode": mode, "align_corners": align_corners}
    down, across = interpolation_weights(height, rows, **options), interpolation_weights(width, columns, **options)
    torch.testing.assert_close(down.sum(1), torch.ones(rows, dtype=torch.float64))
    torch.testing.assert_close(interpolate(x, (rows, columns), **options), down @ x @ across.T)


@given(sides, sides, st.integers(1, 4), seeds)
def test_max_unpooling_undoes_max_pooling(height, width, factor, seed):
    x = a_map(2, 3, height, width, seed=seed)
    pooled = MaxPooling(factor)(x)
    assert pooled.map.shape[-2:] == (-(-height // factor), -(-width // factor))
    fine = MaxUnpooling()(pooled.map, pooled)
    expected = torch.zeros_like(x)
    for n, c, i, j in itertools.product(range(2), range(3), range(pooled.map.shape[2]), range(pooled.map.shape[3])):
        block = x[n, c, i * factor : (i + 1) * factor, j * factor : (j + 1) * factor]
        row, column = divmod(int(block.argmax()), block.shape[1])
        expected[n, c, i * factor + row, j * factor + column] = block.max()
    assert torch.equal(fine, expected)
    if height % factor == width % factor == 0:
        reference, indices = F.max_pool2d(x, factor, return_indices=True)
        assert torch.equal(fine, F.max_unpool2d(reference, indices, factor))


def test_max_unpooling_needs_maxima():
    with pytest.raises(ShapeError, match="max pooling"):
        MaxUnpooling()(a_map(1, 1, 2, 2), Pooled(a_map(1, 1, 2, 2), a_map(1, 1, 4, 4)))


@given(sides, sides, st.integers(1, 4), st.integers(1, 5), st.data())
def test_transposed_convolution_is_the_sum_of_patches(height, width, stride, size, data):
    padding = data.draw(st.integers(0, (size - 1) // 2))
    output_padding = data.draw(st.integers(0, stride - 1))
    x, weight = a_map(2, 3, height, width), a_map(3, 4, size, size, seed=1)
    rows, columns = (max((side - 1) * stride + size - 2 * padding + output_padding, 0) for side in (height, width))
    expected = F.conv_transpose2d(x, weight, stride=stride, padding=padding, output_padding=output_padding)
    fine = transposed_convolution_by_patches(x, weight, stride=stride, padding=padding, size_hw=(rows, columns))
    torch.testing.assert_close(fine, expected)
    slow = torch.zeros(2, 4, rows, columns, dtype=x.dtype)
    for i, j, di, dj in itertools.product(range(height), range(width), range(size), range(size)):
        row, column = i * stride - padding + di, j * stride - padding + dj
        if 0 <= row < rows and 0 <= column < columns:
            slow[:, :, row, column] += x[:, :, i, j] @ weight[:, :, di, dj]
    torch.testing.assert_close(fine, slow)


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_transposed_convolutions_begin_as_bilinear_interpolation(factor):
    x = a_map(1, 2, 5, 6).float()
    pooled = Pooled(x, x.new_zeros(1, 2, 5 * factor, 6 * factor))
    fine = TransposedConvolution(2, factor=factor)(x, pooled)
    inside = (slice(None), slice(None), slice(factor, -factor), slice(factor, -factor))
    torch.testing.assert_close(fine[inside], interpolate(x, pooled.size_hw, mode="bilinear")[inside])


@pytest.mark.parametrize("kind", UPSAMPLINGS)
@pytest.mark.parametrize("factor", [1, 2, 3, 4])
@pytest.mark.parametrize("size_hw", [(1, 1), (1, 5), (7, 4), (9, 11)])
def test_every_pair_comes_back_to_the_size_it_came_from(kind, factor, size_hw):
    x = a_map(2, 3, *size_hw).float()
    pooled = MaxPooling(factor)(x)
    up = UPSAMPLINGS[kind](3, factor)
    assert up(pooled.map, pooled).shape == x.shape
    strided = StridedConvolution(3, 3, factor=factor)(x)
    assert strided.map.shape == pooled.map.shape
    if kind != "max-unpooling":
        assert up(strided.map, strided).shape == x.shape


@pytest.mark.parametrize("kind", UPSAMPLINGS)
def test_gradients(kind):
    up = UPSAMPLINGS[kind](2, 2).double()

    def there_and_back(x: torch.Tensor) -> torch.Tensor:
        pooled = MaxPooling(2)(x)
        return up(pooled.map, pooled)

    assert gradcheck(there_and_back, a_map(1, 2, 5, 4).requires_grad_())


def test_gradients_of_the_functions():
    x = a_map(1, 2, 3, 2).requires_grad_()
    weight = a_map(2, 2, 3, 3, seed=1).requires_grad_()

    def by_patches(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return transposed_convolution_by_patches(x, weight, stride=2, padding=1, size_hw=(5, 3))

    assert gradcheck(by_patches, (x, weight))
    indices = torch.arange(6).reshape(1, 1, 3, 2).expand(1, 2, 3, 2) * 3
    assert gradcheck(lambda x: max_unpool(x, indices, (5, 4)), x)


def test_a_wrong_name_suggests_the_nearest():
    with pytest.raises(UsageError, match=r"expected one of bed-of-nails.*did you mean .bilinear"):
        make_upsampling("bilinaer", 3)
    with pytest.raises(
        UsageError, match=r"expected one of max-pooling, strided-convolution.*did you mean .max-pooling"
    ):
        make_downsampling("max-poling", 3)


def test_the_types_name_what_there_is():
    assert get_args(Upsampling) == tuple(UPSAMPLINGS)
    assert set(get_args(UnpairedUpsampling)) == UPSAMPLINGS.keys() - {"max-unpooling"}
    assert get_args(Downsampling) == tuple(DOWNSAMPLINGS)
