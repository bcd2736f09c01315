"""Objects to supervision and torchvision and back: everything that both sides have stays, empty results too."""

import sys

import numpy as np
import pytest
import torch

from otus import Categories, Instances, KeypointNames, Masks, MissingExtraError, ShapeError
from otus.data.formats.supervision import from_supervision, to_supervision, to_supervision_keypoints
from otus.data.formats.torchvision import from_torchvision, to_torchvision

CATEGORIES = Categories(("cat", "dog", "owl"), ids=(17, 18, 25), keypoints=(("owl", KeypointNames(("beak", "tail"))),))


def instances(count: int = 2) -> Instances:
    dense = np.zeros((2, 8, 10), bool)
    dense[0, 1:4, 2:7] = dense[1, 5:8, 0:3] = True
    dense[0, 2, 4] = False  # a hole
    keypoints = np.array([[[2, 1, 2], [3, 3, 1]], [[0, 5, 2], [0, 0, 0]]], np.float32)
    return Instances(
        np.array([[2, 1, 7, 4], [0, 5, 3, 8]], np.float32),
        [2, 0],
        (8, 10),
        CATEGORIES,
        scores=np.array([0.75, 0.5], np.float32),
        masks=Masks.from_dense(dense).to_rle(),
        keypoints=keypoints,
        keypoint_scores=np.array([[0.5, 0.25], [0.75, 0.0]], np.float32),
        columns={"areas": np.array([14.0, 9.0], np.float32), "is_crowd": np.array([False, True])},
    )[:count]


def assert_same(ours: Instances, back: Instances, *columns: str) -> None:
    assert back.size_hw == ours.size_hw
    for name in ("boxes_xyxy", "labels", "scores", "keypoints", "keypoint_scores"):
        np.testing.assert_array_equal(getattr(back, name), getattr(ours, name), err_msg=name)
    np.testing.assert_array_equal(back.masks.dense(), ours.masks.dense())
    for name in columns:
        np.testing.assert_array_equal(back.columns[name], ours.columns[name])


@pytest.mark.parametrize("count", [2, 0])
def test_torchvision_and_back(count):
    ours = instances(count)
    theirs = to_torchvision(ours)
    assert theirs["labels"].tolist() == [3, 1][:count]
    assert (theirs["labels"].dtype, theirs["boxes"].dtype) == (torch.int64, torch.float32)
    assert (theirs["masks"].dtype, theirs["masks"].shape) == (torch.uint8, (count, 8, 10))
    back = from_torchvision(theirs, size_hw=(8, 10), categories=CATEGORIES)
    assert_same(ours, back, "areas", "is_crowd")


def test_torchvisions_own_detector_learns_from_the_dict_and_its_answer_is_read():
    from torchvision.models.detection import keypointrcnn_resnet50_fpn, maskrcnn_resnet50_fpn

    ours = instances()
    image = torch.rand(3, 8, 10)
    options = {"weights": None, "weights_backbone": None, "num_classes": 4, "min_size": 32, "max_size": 40}
    for build, extra in ((maskrcnn_resnet50_fpn, {}), (keypointrcnn_resnet50_fpn, {"num_keypoints": 2})):
        detector = build(**options, **extra, box_score_thresh=0.0)
        losses = detector([image], [to_torchvision(ours)])
        assert all(torch.isfinite(loss) for loss in losses.values())
        answer = detector.eval()([image])[0]
        assert len(answer["boxes"])
        read = from_torchvision(answer, size_hw=(8, 10), categories=CATEGORIES)
        assert len(read) == len(answer["boxes"])
        if extra:
            assert read.keypoints.shape[1:] == (2, 3)
            assert read.keypoint_scores.shape == (len(read), 2)
        else:
            np.testing.assert_array_equal(read.masks.dense(), answer["masks"][:, 0].numpy(force=True) >= 0.5)


def test_classes_of_coco_with_gaps_are_numbered_by_its_ids():
    ours = instances()
    theirs = to_torchvision(ours, class_indices=CATEGORIES.ids)
    assert theirs["labels"].tolist() == [25, 17]
    assert from_torchvision(theirs, size_hw=(8, 10), class_indices=CATEGORIES.ids).labels.tolist() == [2, 0]
    with pytest.raises(ShapeError, match=r"\[25\] are background or not in class_indices"):
        from_torchvision(theirs, size_hw=(8, 10), class_indices=(17, 18))
    with pytest.raises(ShapeError, match=r"class_indices: expected one per category, up to label 2, got 2"):
        to_torchvision(ours, class_indices=(17, 18))


def test_torchvision_dicts_that_do_not_fit_say_what_is_wrong():
    boxes = torch.tensor([[0.0, 0, 1, 1]])
    with pytest.raises(ShapeError, match=r"labels: \[0\] are background"):
        from_torchvision({"boxes": boxes, "labels": torch.tensor([0])}, size_hw=(8, 10))
    with pytest.raises(ShapeError, match=r"expected boxes and labels, got boxes"):
        from_torchvision({"boxes": boxes}, size_hw=(8, 10))


@pytest.mark.parametrize("count", [2, 0])
def test_supervision_and_back(count):
    pytest.importorskip("supervision")
    ours = instances(count)
    theirs = to_supervision(ours)
    assert theirs.data["class_name"].tolist() == ["owl", "cat"][:count]
    assert len(theirs[theirs.confidence > 0.6]) == (1 if count else 0)
    points = to_supervision_keypoints(ours)
    assert points.visible.tolist() == [[True, True], [True, False]][:count]
    back = from_supervision(theirs, size_hw=(8, 10), categories=CATEGORIES, keypoints=points)
    assert_same(ours, back, "areas", "is_crowd")


def test_supervision_draws_and_reads_its_own_values():
    supervision = pytest.importorskip("supervision")
    ours = instances()
    drawn = supervision.MaskAnnotator().annotate(np.zeros((8, 10, 3), np.uint8), to_supervision(ours))
    assert drawn.any()
    empty = from_supervision(supervision.Detections.empty(), size_hw=(8, 10), categories=CATEGORIES)
    assert len(empty) == 0
    tracked = supervision.Detections(np.array([[0.0, 0, 4, 4]]), class_id=np.array([1]), tracker_id=np.array([7]))
    read = from_supervision(tracked, size_hw=(8, 10), categories=CATEGORIES)
    assert (read.labels.tolist(), read.columns["tracker_id"].tolist(), read.scores) == ([1], [7], None)
    seen = supervision.KeyPoints(np.array([[[1, 2], [0, 0]]], np.float32))
    points = from_supervision(tracked, size_hw=(8, 10), keypoints=seen).keypoints
    assert points.tolist() == [[[1, 2, 2], [0, 0, 0]]]


def test_names_of_categories_go_before_ids_of_another_model():
    supervision = pytest.importorskip("supervision")
    theirs = supervision.Detections(
        np.array([[0.0, 0, 4, 4]]), class_id=np.array([15]), data={"class_name": np.array(["dog"])}
    )
    assert from_supervision(theirs, size_hw=(8, 10), categories=CATEGORIES).labels.tolist() == [1]
    theirs.data["class_name"] = np.array(["dgo"])
    with pytest.raises(ShapeError, match="did you mean 'dog'"):
        from_supervision(theirs, size_hw=(8, 10), categories=CATEGORIES)
    unnamed = supervision.Detections(np.array([[0.0, 0, 4, 4]]))
    with pytest.raises(ShapeError, match=r"expected class_id or data\['class_name'\]"):
        from_supervision(unnamed, size_hw=(8, 10))


def test_oriented_boxes_go_as_their_corners():
    pytest.importorskip("supervision")
    ours = Instances([[2, 2, 6, 6]], [0], (8, 10), oriented_boxes_xywhr=[[4, 4, 4, 2, 0.5]], scores=[0.5])
    theirs = to_supervision(ours)
    assert theirs.data["xyxyxyxy"].shape == (1, 4, 2)
    np.testing.assert_allclose(from_supervision(theirs, size_hw=(8, 10)).oriented_boxes_xywhr, [[4, 4, 4, 2, 0.5]])


def test_without_supervision_the_error_says_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "supervision", None)
    for adapter in (to_supervision, to_supervision_keypoints):
        with pytest.raises(MissingExtraError, match=r"pip install 'otus\[supervision\]'"):
            adapter(instances())
