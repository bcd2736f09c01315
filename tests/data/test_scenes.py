"""Made-up scenes: every label agrees with every other, and with the pixels."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from otus.data.scenes.generator import ALL_CATEGORIES, THING_CATEGORIES, Scenes
from otus.data.scenes.shapes import Pose
from otus.structures import boxes, oriented


@pytest.fixture(scope="module")
def scenes() -> Scenes:
    return Scenes(40, size_hw=(120, 160), seed=5)


def test_a_scene_depends_on_seed_and_index_alone(scenes: Scenes) -> None:
    again = Scenes(7, size_hw=(120, 160), seed=5)
    other = Scenes(7, size_hw=(120, 160), seed=6)
    for i in (6, 0):
        np.testing.assert_array_equal(scenes.scene(i).image, again.scene(i).image)
        assert (scenes.scene(i).image != other.scene(i).image).any()
    assert (scenes.scene(0).image != scenes.scene(1).image).any()
    assert [sample.key for sample in again][:2] == ["000000.jpg", "000001.jpg"]
    with pytest.raises(IndexError):
        again[7]


def test_a_crowd_of_small_objects() -> None:
    for sample in Scenes(3, size_hw=(240, 320), seed=2, min_objects=40, max_objects=40, object_sizes=(0.05, 0.1)):
        assert sample.instances is not None
        assert 35 <= len(sample.instances) <= 40
        sides = sample.instances.amodal_boxes_xyxy[:, 2:] - sample.instances.amodal_boxes_xyxy[:, :2]
        assert sides.prod(axis=1).max() ** 0.5 < 240 * 0.2
        assert np.median(sides) > 240 * 0.04


def test_boxes_masks_and_maps_agree(scenes: Scenes) -> None:
    for sample in scenes:
        instances = sample.instances
        assert instances is not None
        assert sample.semantic is not None
        assert sample.panoptic is not None
        assert len(instances) >= 1
        visible, whole = instances.masks.dense(), instances.amodal_masks.dense()
        assert visible.any(axis=(1, 2)).all(), "no object is wholly hidden"
        assert visible.sum(axis=0).max() == 1, "a pixel shows one object"
        assert (visible <= whole).all()
        np.testing.assert_array_equal(instances.boxes_xyxy, instances.masks.boxes_xyxy())
        np.testing.assert_array_equal(instances.amodal_boxes_xyxy, instances.amodal_masks.boxes_xyxy())
        hidden = 1 - visible.sum(axis=(1, 2)) / whole.sum(axis=(1, 2))
        np.testing.assert_allclose(instances.columns["occluded"], hidden)
        assert hidden.max() <= 0.8
        np.testing.assert_array_equal(sample.panoptic.semantic().labels, sample.semantic.labels)
        for i, mask in enumerate(visible):
            assert (sample.semantic.labels[mask] == instances.labels[i]).all()
            np.testing.assert_array_equal(sample.panoptic.mask_of(i + 1), mask)
        ground = sample.semantic.labels[~visible.any(axis=0)]
        assert not any(ALL_CATEGORIES.is_thing[label] for label in np.unique(ground))


def test_objects_hide_one_another_and_are_cut_by_the_border(scenes: Scenes) -> None:
    hidden = np.concatenate([s.instances.columns["occluded"] for s in scenes])
    outside = [
        (
            oriented.enclosing_boxes(s.instances.oriented_boxes_xywhr)
            - boxes.clip(s.instances.amodal_boxes_xyxy, (120, 160))
        )
        for s in scenes
    ]
    assert (hidden > 0.1).mean() > 0.1
    assert (np.abs(np.concatenate(outside)).max(axis=1) > 5).mean() > 0.1
    labels = np.concatenate([s.instances.labels for s in scenes])
    assert set(labels) == set(range(len(THING_CATEGORIES)))


def test_oriented_boxes_are_tight_about_whole_shapes(scenes: Scenes) -> None:
    """A corner box transformed into its own frame spans the mask's pixels to about a pixel."""
    checked = 0
    for sample in scenes:
        instances = sample.instances
        around = oriented.enclosing_boxes(instances.oriented_boxes_xywhr)
        inside = ((around >= 0) & (around <= (160, 120, 160, 120))).all(axis=1)
        for one in instances[inside]:
            x, y, w, h, angle = one.oriented_boxes_xywhr[0]
            rows, columns = np.nonzero(one.amodal_masks.dense()[0])
            dx, dy = columns + 0.5 - x, rows + 0.5 - y
            along, across = np.cos(angle) * dx + np.sin(angle) * dy, np.cos(angle) * dy - np.sin(angle) * dx
            blunt = THING_CATEGORIES[one.labels[0]] in ("circle", "ellipse", "ring", "rectangle", "cross")
            for reach, half in ((along, w / 2), (across, h / 2)):
                assert np.abs(reach).max() <= half + 0.75
                if blunt:  # other shapes end in tips thinner than a pixel
                    assert np.abs(reach).max() >= half - 1.25
            checked += 1
    assert checked > 40


def test_keypoints_lie_on_their_kite_and_say_whether_they_are_seen(scenes: Scenes) -> None:
    seen = {0: 0, 1: 0, 2: 0}
    kite = THING_CATEGORIES.index("kite")
    for sample in scenes:
        instances = sample.instances
        for i in range(len(instances)):
            keypoints = instances.keypoints[i]
            if instances.labels[i] != kite:
                assert not keypoints.any()
                continue
            for x, y, visibility in keypoints:
                seen[int(visibility)] += 1
                if visibility == 0:
                    assert x == y == 0
                    continue
                assert instances.masks.dense()[i, int(y), int(x)] == (visibility == 2)
            nose, left, right, _ = keypoints[:, :2]
            if (keypoints[:, 2] > 0).all():  # left is left when the nose is up, so this turn is one way for every kite
                a, b = left - nose, right - nose
                assert a[0] * b[1] - a[1] * b[0] < 0
    assert min(seen.values()) > 0


@given(seed=st.integers(0, 10_000), height=st.integers(24, 90), width=st.integers(24, 90), most=st.integers(1, 12))
@settings(max_examples=25, deadline=None)
def test_any_size_makes_a_valid_scene(seed: int, height: int, width: int, most: int) -> None:
    sample = Scenes(1, size_hw=(height, width), seed=seed, max_objects=most)[0]
    instances = sample.instances
    assert sample.image.shape == (height, width, 3)
    assert len(instances) <= most
    assert (instances.boxes_xyxy[:, 2:] <= (width, height)).all()
    assert (instances.masks.area() > 0).all()


def test_a_pose_turns_clockwise_on_the_screen() -> None:
    np.testing.assert_allclose(
        Pose(10, 20, 8, 4, np.pi / 2).to_image(np.array([[1.0, 0], [0, 1.0]])), [[10, 24], [8, 20]]
    )
    right, down = Pose(1.5, 0.5, 4, 4, np.pi / 2).to_local(0, 0, (2, 3))
    np.testing.assert_allclose([right[1, 1], down[1, 1]], [0.5, 0], atol=1e-7)
