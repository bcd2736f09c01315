"""The panoptic merge on maps computed by hand, and against a slow loop over pixels."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from otus.errors import ShapeError, UsageError
from otus.instance.panoptic import merge_panoptic, panoptic_categories
from otus.structures import IGNORE, Categories, Instances, Masks, SemanticMap

THINGS = Categories(("owl", "mouse"))
LABELS = Categories(("background", "sky", "owl", "grass"))


def instances(masks: list, labels: list[int], scores: list[float] | None) -> Instances:
    dense = Masks.from_dense(np.array(masks, dtype=bool))
    return Instances(dense.boxes_xyxy(), labels, dense.size_hw, THINGS, scores=scores, masks=dense)


def semantic(labels: list) -> SemanticMap:
    return SemanticMap(np.array(labels), LABELS)


def segment_names(panoptic) -> dict[int, tuple[str, float | None]]:
    return {segment.id: (panoptic.categories[segment.label], segment.score) for segment in panoptic.segments}


def test_the_higher_score_takes_the_pixels_that_both_claim():
    things = instances([[[1, 1, 1, 0, 0, 0]], [[0, 0, 1, 1, 1, 0]]], [0, 1], [0.7, 0.9])
    merged = merge_panoptic(things, semantic([[1, 1, 1, 1, 1, 1]]), stuff_area_limit=0)
    assert merged.ids.tolist() == [[2, 2, 1, 1, 1, 3]]
    assert segment_names(merged) == {1: ("mouse", 0.9), 2: ("owl", 0.7), 3: ("sky", None)}
    assert merged.categories.names == ("owl", "mouse", "sky", "grass")
    assert merged.categories.is_thing == (True, True, False, False)


@pytest.mark.parametrize(("threshold", "kept"), [(0.5, True), (0.49, False), (0, False), (1, True)])
def test_an_instance_mostly_hidden_is_left_out(threshold, kept):
    things = instances([[[1, 1, 0, 0]], [[0, 1, 1, 0]]], [0, 0], [0.9, 0.8])
    merged = merge_panoptic(things, semantic([[0, 0, 0, 0]]), overlap_threshold=threshold)
    assert merged.ids.tolist() == [[1, 1, 2, 0] if kept else [1, 1, 0, 0]]


def test_an_instance_of_no_free_pixel_is_left_out_at_any_threshold():
    things = instances([[[1, 1, 1]], [[0, 1, 0]], [[0, 0, 0]]], [0, 1, 1], [0.9, 0.8, 0.7])
    assert segment_names(merge_panoptic(things, semantic([[0, 0, 0]]), overlap_threshold=1)) == {1: ("owl", 0.9)}


def test_things_of_the_semantic_map_background_and_what_is_ignored_are_void():
    merged = merge_panoptic(instances([[[1, 0, 0, 0, 0]]], [1], [0.9]), semantic([[2, 2, 0, IGNORE, 3]]))
    assert merged.ids.tolist() == [[1, 0, 0, 0, 2]]
    assert segment_names(merged)[2] == ("grass", None)


def test_stuff_under_the_limit_is_void_and_what_instances_hide_does_not_count():
    labels = semantic([[1, 1, 1, 3, 3, 3, 3, 3, 3, 3]])
    hidden = instances([[[1, 0, 0, 0, 0, 0, 0, 0, 0, 0]]], [0], [0.9])
    assert merge_panoptic(hidden, labels, stuff_area_limit=0.2).ids.tolist() == [[1, 2, 2, 3, 3, 3, 3, 3, 3, 3]]
    assert merge_panoptic(hidden, labels, stuff_area_limit=0.21).ids.tolist() == [[1, 0, 0, 2, 2, 2, 2, 2, 2, 2]]


def test_the_result_does_not_depend_on_the_size_of_the_image():
    things = instances([[[1, 0, 0, 0], [0, 0, 0, 0]]], [0], [0.9])
    labels = semantic([[1, 1, 1, 3], [1, 1, 1, 1]])
    small = merge_panoptic(things, labels, stuff_area_limit=0.13)
    large = merge_panoptic(things.resized((200, 400)), labels.resized((200, 400)), stuff_area_limit=0.13)
    assert segment_names(large) == segment_names(small)
    np.testing.assert_array_equal(large.ids, small.resized((200, 400)).ids)


def test_nothing_found_and_no_pixels_at_all():
    nothing = Instances.empty((2, 2), THINGS, scores=np.zeros(0))
    assert merge_panoptic(nothing, semantic([[0, 0], [0, 0]])).segments == ()
    assert merge_panoptic(nothing, semantic([[1, 1], [1, 1]])).ids.tolist() == [[1, 1], [1, 1]]
    assert merge_panoptic(Instances.empty((0, 0), THINGS), SemanticMap(np.zeros((0, 0), int), LABELS)).segments == ()


def test_other_categories_may_be_asked_for():
    categories = Categories(("grass", "mouse"), is_thing=(False, True))
    things = instances([[[1, 0, 0]], [[0, 1, 0]]], [0, 1], [0.9, 0.8])
    merged = merge_panoptic(things, semantic([[1, 3, 3]]), categories=categories)
    assert merged.categories is categories
    assert merged.ids.tolist() == [[0, 1, 2]]
    assert segment_names(merged) == {1: ("mouse", 0.8), 2: ("grass", None)}


def test_what_cannot_be_merged_is_refused():
    things = instances([[[1, 0]]], [0], [0.9])
    with pytest.raises(ShapeError, match=r"\(1, 2\), got \(1, 3\)"):
        merge_panoptic(things, semantic([[1, 1, 1]]))
    boxes = Instances(np.array([[0, 0, 1, 1]]), [0], (1, 2), THINGS)
    with pytest.raises(UsageError, match="expected instances with masks, got boxes only"):
        merge_panoptic(boxes, semantic([[1, 1]]))
    with pytest.raises(UsageError, match="expected instances with categories"):
        merge_panoptic(Instances.empty((1, 2)), semantic([[1, 1]]))
    with pytest.raises(UsageError, match="stuff_area_limit: expected 0 to 1, got 4096"):
        merge_panoptic(things, semantic([[1, 1]]), stuff_area_limit=4096)


@pytest.mark.parametrize("form", ["dense", "rle", "low_resolution"])
@given(seed=st.integers(0, 10_000))
def test_all_forms_of_masks_equal_a_loop_over_pixels(form, seed):
    rng = np.random.default_rng(seed)
    size_hw, count = tuple(rng.integers(1, 25, 2).tolist()), int(rng.integers(0, 6))
    corner = rng.uniform(-3, 25, (count, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(0, 15, (count, 2))], axis=1)
    masks = Masks.from_probabilities(rng.uniform(size=(count, 5, 5)), boxes, size_hw)
    masks = {"dense": Masks.from_dense(masks.dense()), "rle": masks.to_rle(), "low_resolution": masks}[form]
    scores = rng.integers(0, 4, count) / 4  # with ties
    things = Instances(boxes, rng.integers(0, 2, count), size_hw, THINGS, scores=scores, masks=masks)
    labels = SemanticMap(rng.choice([0, 1, 2, 3, IGNORE], size_hw), LABELS)
    merged = merge_panoptic(things, labels, overlap_threshold=0.4, stuff_area_limit=0.1)
    expected = np.zeros(size_hw, dtype=int)
    names = []
    for i in sorted(range(count), key=lambda i: -scores[i]):
        mask = masks[i].dense()[0]
        num_taken = sum(bool(expected[y, x]) for y, x in np.argwhere(mask))
        if mask.sum() == num_taken or num_taken > 0.4 * mask.sum():
            continue
        names.append(THINGS[things.labels[i]])
        for y, x in np.argwhere(mask):
            expected[y, x] = expected[y, x] or len(names)
    for label, name in ((1, "sky"), (3, "grass")):
        free = (expected == 0) & (labels.labels == label)
        if free.any() and free.sum() >= 0.1 * free.size:
            names.append(name)
            expected[free] = len(names)
    np.testing.assert_array_equal(merged.ids, expected)
    assert [name for name, _ in segment_names(merged).values()] == names


def test_categories_of_two_models():
    both = panoptic_categories(THINGS, LABELS)
    assert both.names == ("owl", "mouse", "sky", "grass")
