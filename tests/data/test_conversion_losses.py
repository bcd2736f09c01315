"""What a target cannot hold is reported object by object."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np

from otus.data.dataset import Dataset, Images, UnreadField
from otus.data.formats.conversion_losses import LOSS_KINDS, find_losses
from otus.data.formats.interface import ConversionLoss
from otus.structures import Categories, KeypointNames, Masks, Objects, Segmentations


def everything() -> Dataset:
    """Return three objects of one image that together have everything that a file can state."""
    ring = np.ones((5, 5), dtype=bool)
    ring[2, 2] = False
    two = np.zeros((5, 5), dtype=bool)
    two[0, 0] = two[4, 4] = True
    counts = [r["counts"] for r in Masks.from_dense(np.stack([ring, two])).rle()]
    nan = np.nan
    return Dataset(
        source=Path("made-up"),
        format="coco",
        images=Images(Path("."), ("a.jpg",), np.array([[5, 5]]), (7,)),
        categories=Categories(
            ("cat", "sky"),
            ids=(3, 9),
            is_thing=(True, False),
            supercategories=("animal", ""),
            keypoints=(("cat", KeypointNames(("nose", "tail"), skeleton=((0, 1),))),),
        ),
        objects=Objects.build(
            image_index=[0, 0, 0],
            labels=[0, 0, 1],
            boxes_xyxy=[[0, 0, 5, 5], [0, 0, 5, 5], [1, 1, 2, 2]],
            ids=[10, 11, 12],
            areas=[24, 2, 1],
            is_crowd=[False, True, False],
            segmentations=Segmentations.build([*counts, None]),
            scores=np.array([nan, 0.5, nan]),
            keypoints=np.array([[[1, 1, 2], [2, 2, 1]], [[0, 0, 0]] * 2, [[0, 0, 0]] * 2], dtype=float),
            corners_xy=np.stack([np.full((4, 2), nan), np.full((4, 2), nan), np.ones((4, 2))]),
            cuboids=np.stack([np.full(7, nan), np.ones(7), np.full(7, nan)]),
            amodal_boxes_xyxy=np.array([[0, 0, 6, 6], [nan] * 4, [nan] * 4]),
            amodal_segmentations=Segmentations.build([None, None, [np.eye(3, 2)]]),
            columns={"difficult": np.array([0, 1, 0]), "predicted_iou": np.array([nan, nan, 0.9])},
        ),
    )


def losses_of(can_hold: frozenset[str]) -> set[tuple[str, int | None]]:
    return {(loss.kind, loss.object_id) for loss in find_losses(everything(), can_hold=can_hold)}


def test_a_format_that_holds_everything_loses_nothing() -> None:
    assert losses_of(LOSS_KINDS) == set()


def test_a_format_of_boxes_loses_the_rest_object_by_object() -> None:
    of_set = {"annotation_ids", "image_ids", "category_ids", "supercategories", "stuff", "keypoint_names", "skeleton"}
    assert losses_of(frozenset()) == {
        ("crowd", 11), ("score", 11), ("keypoints", 10), ("corners", 12), ("cuboid", 11), ("amodal_box", 10),
        ("amodal_outline", 12), ("outline", 10), ("outline", 11), ("difficult", 11), ("predicted_iou", 12),
        *((kind, None) for kind in of_set),
    }  # fmt: skip


def test_areas_are_lost_where_they_will_be_computed_otherwise() -> None:
    for computed, lost in (([24, 2, 1], []), ([24.00001, 2, 1], []), ([24, 2.1, 1.5], ["areas"])):
        losses = find_losses(everything(), can_hold=LOSS_KINDS, areas=np.array(computed, dtype=float))
        assert [loss.kind for loss in losses] == lost
    assert "2 objects" in losses[0].message
    assert "2 of object 11, which becomes 2.1" in losses[0].message


def test_what_was_not_read_is_told_of_every_format() -> None:
    dataset = replace(everything(), unread=(UnreadField("annotations[].caption", 12, "a cat"),))
    (loss,) = find_losses(dataset, can_hold=LOSS_KINDS)
    assert loss == ConversionLoss("unread_field", "", None, "annotations[].caption: 12 values, e.g. a cat")


def test_polygons_lose_holes_and_parts() -> None:
    # The two pixels of object 11 lie apart; object 10 has one hole.
    assert losses_of(LOSS_KINDS - {"holes", "parts"}) == {("holes", 10), ("parts", 11)}


def test_each_loss_names_its_image_and_can_be_counted() -> None:
    losses = find_losses(everything(), can_hold=LOSS_KINDS - {"columns", "outline"})
    assert Counter(loss.kind for loss in losses) == {"outline": 2, "difficult": 1, "predicted_iou": 1}
    assert {loss.image for loss in losses} == {"a.jpg"}
