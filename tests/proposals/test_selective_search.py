"""Selective Search: the kernels against slow loops, and the properties of the paper's results."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from otus.errors import ShapeError, UsageError
from otus.proposals import _selective_search_kernels as kernels
from otus.proposals.colour import ColourSpace
from otus.proposals.selective_search import (
    MODES,
    Regions,
    SelectiveSearch,
    Similarity,
    Strategies,
    describe_regions,
    hierarchical_grouping,
    pixel_bins,
    reference_hierarchical_grouping,
    selective_search,
)
from otus.structures.boxes import pairwise_iou

similarities = st.lists(st.sampled_from(list(Similarity)), min_size=1, unique=True).map(
    lambda chosen: Similarity(sum(measure.value for measure in chosen))
)


@st.composite
def segmentations(draw):
    """Draw labels of arbitrary regions, connected or not, and bins of their pixels."""
    height, width, channels = draw(st.integers(1, 9)), draw(st.integers(1, 9)), draw(st.sampled_from([1, 3]))
    values = draw(hnp.arrays(np.int32, (height, width), elements=st.integers(0, draw(st.integers(0, 80)))))
    labels = np.unique(values, return_inverse=True)[1].reshape(height, width).astype(np.int32)
    colours = draw(hnp.arrays(np.uint8, (channels, height, width), elements=st.integers(0, 24)))
    textures = draw(hnp.arrays(np.int8, (4 * channels, height, width), elements=st.integers(-9, 9)))
    return labels, colours, textures


@given(segmentation=segmentations(), similarity=similarities)
def test_grouping_is_that_of_the_slow_reference(segmentation, similarity):
    regions = describe_regions(*segmentation)
    np.testing.assert_array_equal(
        hierarchical_grouping(regions, similarity), reference_hierarchical_grouping(regions, similarity)
    )


@given(segmentation=segmentations())
def test_regions_are_described_as_by_a_loop(segmentation):
    labels, colours, textures = segmentation
    channels = len(colours)
    regions = describe_regions(labels, colours, textures)
    pairs = []
    for y, x in np.ndindex(labels.shape):
        for v, u in ((y, x + 1), (y + 1, x)):
            if v < labels.shape[0] and u < labels.shape[1] and labels[y, x] != labels[v, u]:
                pairs.append(tuple(sorted((int(labels[y, x]), int(labels[v, u])))))
    assert list(map(tuple, regions.neighbours.tolist())) == list(dict.fromkeys(pairs))
    for label in range(labels.max() + 1):
        inside = labels == label
        y, x = np.nonzero(inside)
        assert regions.sizes[label] == len(y)
        assert regions.boxes_xyxy[label].tolist() == [x.min(), y.min(), x.max() + 1, y.max() + 1]
        expected = [np.bincount(plane[inside], minlength=25) for plane in colours]
        for c in range(channels):
            four = textures[4 * c : 4 * c + 4].astype(int)
            directions = np.maximum(np.concatenate([four, -four]), 0)
            expected += [np.bincount(along[inside], minlength=10) for along in directions]
        np.testing.assert_array_equal(regions.counts[label], np.concatenate(expected))


def test_many_crossing_neighbours():
    """Diagonal lines that all cross each other: as many pairs as there can be, whatever tables the kernel begins with."""
    y, x = np.mgrid[:40, :40]
    labels = np.where((x + y) % 2 == 0, (x + y) // 2, 40 + (x - y + 40) // 2)
    labels = np.unique(labels, return_inverse=True)[1].reshape(40, 40).astype(np.int32)
    flat = np.zeros((1, 40, 40), np.uint8), np.zeros((4, 40, 40), np.int8)
    regions = describe_regions(labels, *flat)
    assert len(regions.neighbours) > 8 * len(regions.sizes)
    for similarity in (Similarity.FILL, Similarity.SIZE | Similarity.COLOUR):
        np.testing.assert_array_equal(
            hierarchical_grouping(regions, similarity), reference_hierarchical_grouping(regions, similarity)
        )


def test_pixel_bins():
    planes = np.random.default_rng(0).uniform(0, 255, (3, 12, 15)).astype(np.float32)
    colours, textures = pixel_bins(planes)
    np.testing.assert_array_equal(colours, np.floor(planes.astype(float) * 25 / 256))
    assert abs(textures).max() == 9
    ramp = np.tile(24 * np.arange(20, dtype=np.float32), (20, 1))[
        None
    ]  # rises to the right only; 30 would fill all bins
    _, (along_0, along_45, along_90, along_135) = pixel_bins(ramp)
    assert np.isin(along_0[:, 6:-6], [7, 8]).all()  # 8, up to rounding
    assert (along_45[:, 6:-6] == 5).all()  # 8 / sqrt 2
    assert (along_90 == 0).all()
    assert (along_135[:, 6:-6] == -5).all()


@given(
    seed=st.integers(0, 10**6), side=st.integers(1, 40), same_iou=st.sampled_from([0.01, 0.3, 0.5, 0.8, 0.9, 0.97, 1.0])
)
def test_boxes_that_nearly_coincide_are_left_out_as_by_a_loop(seed, side, same_iou):
    low, size = np.random.default_rng(seed).integers((0, 1), (6, side + 1), (60, 2, 2)).transpose(2, 0, 1)
    boxes = np.concatenate([low, low + size], axis=1)
    kept: list[int] = []
    for i, box in enumerate(boxes.astype(float)):
        if not kept or pairwise_iou(box[None], boxes[kept].astype(float)).max() < same_iou:
            kept.append(i)
    assert kernels.distinct(boxes, same_iou).tolist() == kept


@pytest.fixture(scope="module")
def photo():
    """An image of three objects on a shaded background, one of them of two colours."""
    image = np.broadcast_to(np.linspace(40, 90, 160)[None, :, None], (120, 160, 3)).copy()
    image[20:60, 20:70] = 190, 40, 40
    image[60:90, 30:60] = 40, 40, 190
    image[30:100, 100:140] = 30, 170, 60
    image += np.random.default_rng(3).normal(0, 4, image.shape)
    return np.clip(image, 0, 255).astype(np.uint8)


def test_objects_are_found(photo):
    proposals = selective_search(photo)
    true = np.array(
        [[20, 20, 70, 60], [30, 60, 60, 90], [100, 30, 140, 100], [20, 20, 70, 90], [0, 0, 160, 120]], float
    )
    assert pairwise_iou(true, proposals.boxes_xyxy).max(axis=1).min() > 0.9


def test_boxes_are_inside_whole_once_and_ordered(photo):
    for mode in MODES:
        proposals = selective_search(photo, mode=mode)
        boxes = proposals.boxes_xyxy
        assert boxes.dtype == proposals.scores.dtype == np.float32
        assert len(np.unique(boxes, axis=0)) == len(boxes)
        assert (boxes == boxes.round()).all()
        assert (boxes[:, :2] >= 0).all()
        assert (boxes[:, 2:] <= (160, 120)).all()
        assert (boxes[:, 2:] > boxes[:, :2]).all()
        assert (np.diff(proposals.scores) <= 0).all()
        assert proposals.scores.max() <= 1
        assert proposals.scores.min() > 0
    assert len(proposals) > 2 * len(selective_search(photo))


def test_one_seed_one_answer_whatever_the_threads(photo):
    first, again = selective_search(photo, seed=5), selective_search(photo, seed=5, workers=3)
    np.testing.assert_array_equal(first.boxes_xyxy, again.boxes_xyxy)
    np.testing.assert_array_equal(first.scores, again.scores)
    first, other = (selective_search(photo, seed=seed, same_iou=1) for seed in (5, 6))
    assert not np.array_equal(first.boxes_xyxy, other.boxes_xyxy)
    assert set(map(tuple, first.boxes_xyxy.tolist())) == set(map(tuple, other.boxes_xyxy.tolist()))


def test_the_order_is_the_papers(photo):
    """Sort by position from the top of the hierarchy times a random number, the minimum for a box that occurs repeatedly."""
    strategy = Strategies((ColourSpace.RGB,), (80,), (Similarity.SIZE | Similarity.FILL,))
    search = SelectiveSearch(strategy, seed=9, same_iou=1)
    (hierarchy,) = search._hierarchies(photo, ColourSpace.RGB)
    random = np.random.default_rng(9).random(len(hierarchy))
    best: dict[tuple, float] = {}
    for position, (box, number) in enumerate(zip(hierarchy[::-1].tolist(), random[::-1], strict=True), start=1):
        best[tuple(box)] = min(position * number, best.get(tuple(box), np.inf))
    proposals = search(photo)
    assert [tuple(box) for box in proposals.boxes_xyxy.astype(int).tolist()] == sorted(best, key=best.__getitem__)
    np.testing.assert_allclose(proposals.scores, [1 / (1 + value) for value in sorted(best.values())], rtol=1e-6)


@pytest.mark.parametrize("mode", list(MODES))
@pytest.mark.parametrize("size_hw", [(1, 1), (1, 2000), (2000, 1), (2, 2), (30, 40)])
def test_an_image_of_one_colour_is_one_proposal(mode, size_hw):
    proposals = selective_search(np.full((*size_hw, 3), 77, np.uint8), mode=mode)
    assert proposals.boxes_xyxy.tolist() == [[0, 0, size_hw[1], size_hw[0]]]


@pytest.mark.parametrize("size_hw", [(1, 2000), (2000, 1)])
def test_a_line_of_noise_has_proposals(size_hw):
    image = np.random.default_rng(0).integers(0, 256, (*size_hw, 3)).astype(np.uint8)
    proposals = selective_search(image)
    assert len(proposals) > 10
    assert (proposals.boxes_xyxy[:, 2:] <= size_hw[::-1]).all()


def test_parameters_say_all_that_the_answer_depends_on():
    base = SelectiveSearch()
    assert base.parameters == replace(base, workers=4).parameters
    others = [
        SelectiveSearch("quality"),
        SelectiveSearch(seed=1),
        SelectiveSearch(replace(MODES["fast"], scales=(50,))),
    ]
    assert all(other.parameters != base.parameters for other in others)
    assert SelectiveSearch(MODES["fast"]).parameters == base.parameters


def test_bad_arguments_are_named():
    with pytest.raises(UsageError, match="fast or quality, got 'slow'"):
        SelectiveSearch(mode="slow")
    with pytest.raises(UsageError, match="workers"):
        SelectiveSearch(workers=0)
    with pytest.raises(UsageError, match="same_iou"):
        SelectiveSearch(same_iou=0)
    with pytest.raises(UsageError, match="seed"):
        SelectiveSearch(seed=-1)
    for image in (np.zeros((0, 5, 3), np.uint8), np.zeros((5, 5), np.uint8), np.zeros((5, 5, 3))):
        with pytest.raises(ShapeError, match="image"):
            selective_search(image)


def test_presets_are_the_papers():
    for mode, count in (("fast", 8), ("quality", 80)):
        preset = MODES[mode]
        assert len(preset.spaces) * len(preset.scales) * len(preset.similarities) == count
    assert isinstance(
        describe_regions(np.zeros((1, 1), np.int32), np.zeros((1, 1, 1), np.uint8), np.zeros((4, 1, 1), np.int8)),
        Regions,
    )
