"""Instances, objects, categories, maps, keypoints."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from otus.errors import ShapeError
from otus.structures import (
    IGNORE,
    Categories,
    Instances,
    KeypointNames,
    Masks,
    Objects,
    PanopticMap,
    Segment,
    Segmentations,
    SemanticMap,
)
from otus.structures.keypoints import pairwise_oks

CATEGORIES = Categories(("cat", "dog", "sky"), ids=(17, 18, 40), is_thing=(True, True, False))


def five_instances():
    boxes = np.arange(20.0).reshape(5, 4)
    dense = np.zeros((5, 6, 7), bool)
    dense[np.arange(5), np.arange(5), 0] = True
    return Instances(
        boxes,
        [0, 1, 1, 0, 2],
        size_hw=(6, 7),
        categories=CATEGORIES,
        scores=np.linspace(0.1, 0.9, 5),
        masks=Masks.from_dense(dense),
        keypoints=np.arange(30.0).reshape(5, 2, 3),
        oriented_boxes_xywhr=np.arange(25.0).reshape(5, 5),
        columns={"difficult": np.array([True, False, True, False, False])},
    )


@given(
    index=st.one_of(
        hnp.arrays(bool, 5), hnp.arrays(np.int64, st.integers(0, 6), elements=st.integers(-5, 4)), st.slices(5)
    )
)
def test_indexing_filters_all_columns_together(index):
    everything, some = five_instances(), five_instances()[index]
    chosen = np.arange(5)[index]
    assert len(some) == len(chosen)
    np.testing.assert_array_equal(some.boxes_xyxy, everything.boxes_xyxy[chosen])
    np.testing.assert_array_equal(some.labels, everything.labels[chosen])
    np.testing.assert_array_equal(some.scores, everything.scores[chosen])
    np.testing.assert_array_equal(some.masks.dense(), everything.masks.dense()[chosen])
    np.testing.assert_array_equal(some.keypoints, everything.keypoints[chosen])
    np.testing.assert_array_equal(some.oriented_boxes_xywhr, everything.oriented_boxes_xywhr[chosen])
    np.testing.assert_array_equal(some.columns["difficult"], everything.columns["difficult"][chosen])


@given(cut=st.integers(0, 5), at_rest=st.booleans())
def test_parts_put_together_are_the_whole(cut, at_rest):
    everything = five_instances()
    if at_rest:
        everything = replace(everything, masks=everything.masks.to_rle())
    again = Instances.concatenate([everything[:cut], everything[cut:]])
    np.testing.assert_array_equal(again.boxes_xyxy, everything.boxes_xyxy)
    np.testing.assert_array_equal(again.masks.dense(), everything.masks.dense())
    np.testing.assert_array_equal(again.columns["difficult"], everything.columns["difficult"])


def test_one_integer_is_still_instances():
    assert [len(one) for one in five_instances()] == [1] * 5
    assert five_instances()[-1].labels.tolist() == [2]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"scores": np.zeros(3)}, r"scores: expected shape \(2\), got \(3,\)"),
        ({"keypoints": np.zeros((2, 5))}, r"keypoints: expected shape \(2, K, 3\), got \(2, 5\)"),
        ({"oriented_boxes_xywhr": np.zeros((2, 4))}, r"oriented_boxes_xywhr: expected shape \(2, 5\)"),
        ({"labels": [0, 3]}, r"labels: expected 0..2, got 0..3"),
        ({"labels": [0]}, r"labels: expected shape \(2\), got \(1,\)"),
        ({"masks": Masks.empty((5, 5))}, r"masks: expected 2 of size \(5, 5\), got 0"),
        ({"columns": {"difficult": np.zeros(3)}}, r"columns\['difficult'\]"),
    ],
)
def test_wrong_columns_say_expected_and_actual(wrong, message):
    arguments = {"boxes_xyxy": np.zeros((2, 4)), "labels": [0, 1], "size_hw": (5, 5), "categories": CATEGORIES, **wrong}
    with pytest.raises(ShapeError, match=message):
        Instances(**arguments)


def test_no_objects():
    none = Instances.empty((3, 4), CATEGORIES, scores=[], keypoints=np.zeros((0, 17, 3)))
    assert len(none) == 0
    assert none[[]].scores.shape == (0,)
    assert none.column("difficult", False).shape == (0,)


def test_objects_are_ordered_by_image():
    held = Objects.build(
        image_index=[2, 0, 1, 0],
        labels=[0, 1, 2, 3],
        boxes_xyxy=np.tile([0, 0, 2, 3.0], (4, 1)),
        segmentations=Segmentations.build([None, [np.ones((3, 2))], None, None]),
        columns={"truncated": np.array([1, 2, 3, 4])},
    )
    assert held.image_index.tolist() == [0, 0, 1, 2]
    assert held.labels.tolist() == [1, 3, 2, 0]
    assert held.ids.tolist() == [2, 4, 3, 1]
    assert held.areas.tolist() == [6.0] * 4
    assert held.columns["truncated"].tolist() == [2, 4, 3, 1]
    assert held.segmentations.kinds.tolist() == [1, 0, 0, 0]
    with pytest.raises(ShapeError, match="expected 4 scores"):
        Objects.build(image_index=[0] * 4, labels=[0] * 4, boxes_xyxy=np.zeros((4, 4)), scores=np.zeros(3))


def test_categories():
    assert (CATEGORIES.index("dog"), CATEGORIES.label_of_id(40), list(CATEGORIES)) == (1, 2, ["cat", "dog", "sky"])
    with pytest.raises(ShapeError, match="'cow' is not one of: cat, dog, sky"):
        CATEGORIES.index("cow")
    with pytest.raises(ShapeError, match="names must differ, but cat"):
        Categories(("cat", "dog", "cat"))
    with pytest.raises(ShapeError, match="expected 2 ids"):
        Categories(("cat", "dog"), ids=(1, 2, 3))


def test_keypoint_names_pair_left_and_right():
    names = KeypointNames(("nose", "left_eye", "right_eye"), skeleton=((0, 1),))
    assert names.flip_pairs == ((1, 2),)
    assert names.flip_order() == [0, 2, 1]
    assert names.sigmas == (1 / 3,) * 3
    with pytest.raises(ShapeError, match=r"pair \(0, 3\)"):
        KeypointNames(("nose",), skeleton=((0, 3),))


def test_semantic_map():
    labels = np.array([[0, 1], [2, IGNORE]])
    assert SemanticMap(labels, CATEGORIES).mask_of("dog").tolist() == [[False, True], [False, False]]
    with pytest.raises(ShapeError, match=r"labels \[3\]"):
        SemanticMap(labels + (labels == 2), CATEGORIES)


def test_panoptic_map():
    ids = np.array([[7, 7, 0], [9, 9, 9]])
    panoptic = PanopticMap(ids, (Segment(7, 1), Segment(9, 2)), CATEGORIES)
    assert panoptic.semantic().labels.tolist() == [[1, 1, IGNORE], [2, 2, 2]]
    assert panoptic.mask_of(7).sum() == 2
    with pytest.raises(ShapeError, match=r"ids \[9\]"):
        PanopticMap(ids, (Segment(7, 1),), CATEGORIES)
    with pytest.raises(ShapeError, match="must differ"):
        PanopticMap(ids, (Segment(7, 1), Segment(7, 2), Segment(9, 1)), CATEGORIES)


@given(seed=st.integers(0, 10_000))
def test_oks_equals_pycocotools(seed):
    from pycocotools.cocoeval import COCOeval

    rng = np.random.default_rng(seed)
    evaluation = COCOeval(iouType="keypoints")
    count_true, count_found = rng.integers(1, 4, 2)
    ground_truth, predicted = rng.uniform(0, 50, (count_true, 17, 3)), rng.uniform(0, 50, (count_found, 17, 3))
    ground_truth[..., 2] = rng.integers(0, 3, (count_true, 17))
    ground_truth[0, :, 2] *= seed % 2  # half the time one object has no labelled keypoint
    boxes = np.concatenate([rng.uniform(0, 20, (count_true, 2)), rng.uniform(5, 30, (count_true, 2))], axis=1)
    areas = rng.uniform(30, 900, count_true)
    evaluation._gts[1, 1] = [
        {"keypoints": k.ravel().tolist(), "bbox": b.tolist(), "area": a}
        for k, b, a in zip(ground_truth, boxes, areas, strict=True)
    ]
    evaluation._dts[1, 1] = [{"keypoints": k.ravel().tolist(), "score": 1 - i / 9} for i, k in enumerate(predicted)]
    boxes[:, 2:] += boxes[:, :2]
    ours = pairwise_oks(
        predicted,
        ground_truth,
        ground_truth_areas=areas,
        ground_truth_boxes_xyxy=boxes,
        sigmas=evaluation.params.kpt_oks_sigmas,
    )
    np.testing.assert_allclose(ours, evaluation.computeOks(1, 1), atol=1e-12)
