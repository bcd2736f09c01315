"""One Sample becomes one dict of tensors."""

import numpy as np
import torch
from torchvision import tv_tensors

from otus.data.sample import Sample
from otus.data.tensors import object_keys, sample_generator, to_tensors
from otus.structures import Categories, Instances, KeypointNames, Masks, PanopticMap, Segment, SemanticMap, oriented

SIZE_HW = (6, 8)
CATEGORIES = Categories(("kite", "box"), keypoints=(("kite", KeypointNames(("left_wing", "right_wing", "tail"))),))


def two_objects() -> Instances:
    visible = np.zeros((2, *SIZE_HW), dtype=bool)
    visible[0, 1:3, 1:4] = True
    visible[1, 4:6, 5:8] = True
    whole = visible.copy()
    whole[0, 1:5, 1:4] = True
    whole[1] = False
    keypoints = np.zeros((2, 3, 3))
    keypoints[0] = [[1.5, 1.5, 2], [3.5, 2.5, 1], [0, 0, 0]]
    return Instances(
        [[1, 1, 4, 3], [5, 4, 8, 6]],
        [0, 1],
        SIZE_HW,
        CATEGORIES,
        masks=Masks.from_dense(visible).to_rle(),
        keypoints=keypoints,
        oriented_boxes_xywhr=[[2.5, 2.0, 3.0, 2.0, 0.3], [np.nan] * 5],
        amodal_boxes_xyxy=[[1, 1, 4, 5], [np.nan] * 4],
        amodal_masks=Masks.from_dense(whole),
        columns={"difficult": np.array([True, False]), "ids": np.array([7, 9]), "pose": np.array(["left", "right"])},
    )


def full_sample() -> Sample:
    image = np.arange(6 * 8 * 3, dtype=np.uint8).reshape(6, 8, 3)
    image.flags.writeable = False
    ids = np.zeros(SIZE_HW, dtype=np.int64)
    ids[2:] = 300
    return Sample(
        image,
        "a.png",
        instances=two_objects(),
        semantic=SemanticMap(np.full(SIZE_HW, 255, dtype=np.uint8), CATEGORIES),
        panoptic=PanopticMap(ids, (Segment(300, 1),), CATEGORIES),
        label=1,
        columns={"proposals_xyxy": np.array([[0, 0, 3, 3.5]]), "entropy": np.array([1.0])},
    )


def test_every_column_has_its_documented_type_and_shape() -> None:
    sample = full_sample()
    tensors = to_tensors(sample)
    expected = {
        "image": (tv_tensors.Image, torch.float32, (3, 6, 8)),
        "label": (torch.Tensor, torch.int64, ()),
        "semantic": (tv_tensors.Mask, torch.int64, (6, 8)),
        "panoptic": (tv_tensors.Mask, torch.int64, (6, 8)),
        "proposals": (tv_tensors.BoundingBoxes, torch.float32, (1, 4)),
        "boxes": (tv_tensors.BoundingBoxes, torch.float32, (2, 4)),
        "labels": (torch.Tensor, torch.int64, (2,)),
        "is_crowd": (torch.Tensor, torch.bool, (2,)),
        "areas": (torch.Tensor, torch.float32, (2,)),
        "masks": (tv_tensors.Mask, torch.bool, (2, 6, 8)),
        "keypoints": (tv_tensors.KeyPoints, torch.float32, (2, 3, 2)),
        "visibility": (torch.Tensor, torch.int64, (2, 3)),
        "flip_order": (torch.Tensor, torch.int64, (2, 3)),
        "corners": (tv_tensors.KeyPoints, torch.float32, (2, 4, 2)),
        "amodal_boxes": (tv_tensors.BoundingBoxes, torch.float32, (2, 4)),
        "amodal_masks": (tv_tensors.Mask, torch.bool, (2, 6, 8)),
        "difficult": (torch.Tensor, torch.bool, (2,)),
        "ids": (torch.Tensor, torch.int64, (2,)),
    }
    assert set(tensors) == {*expected, "key", "segments"}
    for key, (kind, dtype, shape) in expected.items():
        assert type(tensors[key]) is kind, key
        assert (tensors[key].dtype, tuple(tensors[key].shape)) == (dtype, shape), key
    assert tensors["boxes"].canvas_size == SIZE_HW
    assert tensors["flip_order"].tolist() == [[1, 0, 2], [0, 1, 2]]
    assert tensors["segments"] == [Segment(300, 1)]
    np.testing.assert_array_equal((tensors["image"].numpy() * 255).round().transpose(1, 2, 0), sample.image)
    np.testing.assert_array_equal(tensors["masks"].numpy(), two_objects().masks.dense())
    assert tensors["areas"].tolist() == [6, 6]
    np.testing.assert_allclose(
        tensors["corners"][0].numpy(), oriented.corners(np.array([[2.5, 2, 3, 2, 0.3]]))[0], rtol=1e-6
    )
    assert tensors["corners"][1].isnan().all()


def test_object_keys_are_those_with_a_row_an_object() -> None:
    tensors = to_tensors(full_sample())
    keys = object_keys(tensors)
    assert {"boxes", "labels", "amodal_masks", "visibility", "flip_order", "ids"} <= set(keys)
    assert {"proposals", "image", "semantic", "segments", "label"}.isdisjoint(keys)
    assert all(len(tensors[key]) == 2 for key in keys)


def test_amodal_boxes_and_masks_fall_back_to_the_visible_ones() -> None:
    tensors = to_tensors(full_sample(), boxes="amodal")
    assert tensors["boxes"].tolist() == [[1, 1, 4, 5], [5, 4, 8, 6]]
    assert tensors["areas"].tolist() == [12, 6]
    assert tensors["masks"].sum((1, 2)).tolist() == [12, 6]
    assert "amodal_boxes" not in tensors
    assert "amodal_masks" not in tensors


def test_what_is_not_known_is_absent_and_no_objects_are_empty_columns() -> None:
    image = np.zeros((4, 5, 3), dtype=np.uint8)
    assert set(to_tensors(Sample(image, "x"))) == {"image", "key"}
    tensors = to_tensors(Sample(image, "x", instances=Instances.empty((4, 5))))
    assert tensors["boxes"].shape == (0, 4)
    assert tensors["masks"].shape == (0, 4, 5)
    assert tensors["labels"].dtype == torch.int64
    assert set(to_tensors(Sample(image, "x", instances=Instances.empty((4, 5))), boxes="amodal")) == set(tensors)


def test_changing_the_tensors_leaves_the_sample_alone() -> None:
    sample = full_sample()
    tensors = to_tensors(sample)
    for key in object_keys(tensors):
        tensors[key].zero_()
    tensors["proposals"].zero_()
    assert sample.instances is not None
    assert sample.instances.boxes_xyxy[0].tolist() == [1, 1, 4, 3]
    assert sample.columns["proposals_xyxy"][0, 2] == 3


def test_sample_generators_differ_by_seed_epoch_and_index_only() -> None:
    def draw(*place: int) -> int:
        return int(torch.randint(2**62, (), generator=sample_generator(*place)))

    assert draw(0, 1, 2) == draw(0, 1, 2)
    places = [(s, e, i) for s in range(3) for e in range(3) for i in range(20)]
    assert len({draw(*place) for place in places}) == len(places)
