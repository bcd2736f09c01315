import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pycocotools import mask as coco_mask

from otus.errors import ShapeError
from otus.structures import Masks, SegmentationKind, Segmentations
from otus.structures.boxes import clip

masks = hnp.array_shapes(min_dims=3, max_dims=3, min_side=1, max_side=9).flatmap(lambda shape: hnp.arrays(bool, shape))


@given(dense=masks)
def test_run_lengths_round_trip(dense):
    at_rest = Masks.from_dense(dense).to_rle()
    assert at_rest.form == "rle"
    np.testing.assert_array_equal(at_rest.dense(), dense)
    np.testing.assert_array_equal(Masks.from_rle([r["counts"] for r in at_rest.rle()], at_rest.size_hw).dense(), dense)


@given(dense=masks)
def test_uncompressed_run_lengths(dense):
    def runs(mask):
        flat = mask.flatten(order="F")
        changes = np.flatnonzero(np.diff(flat)) + 1
        lengths = np.diff([0, *changes, len(flat)]).tolist()
        return [0, *lengths] if flat[0] else lengths

    again = Masks.from_rle([runs(mask) for mask in dense], dense.shape[1:])
    np.testing.assert_array_equal(again.dense(), dense)


@given(dense=masks)
def test_areas_and_boxes_equal_those_of_the_pixels(dense):
    for form in (Masks.from_dense(dense), Masks.from_dense(dense).to_rle()):
        np.testing.assert_array_equal(form.area(), dense.sum(axis=(1, 2)))
        for mask, box in zip(dense, form.boxes_xyxy(), strict=True):
            rows, columns = np.nonzero(mask)
            expected = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1] if len(rows) else [0, 0, 0, 0]
            assert box.tolist() == expected


@given(dense=masks, data=st.data())
def test_iou_equals_the_pixels(dense, data):
    other = data.draw(hnp.arrays(bool, st.tuples(st.integers(1, 4), *map(st.just, dense.shape[1:]))))
    crowd = data.draw(hnp.arrays(bool, len(other)))
    iou = Masks.from_dense(dense).iou(Masks.from_dense(other), crowd=crowd)
    for i, a in enumerate(dense):
        for j, b in enumerate(other):
            union = a.sum() if crowd[j] else (a | b).sum()
            # pycocotools says 0 where neither has a pixel
            assert iou[i, j] == pytest.approx((a & b).sum() / union if union else 0.0)


def test_holes_and_parts_survive():
    mask = np.zeros((12, 14), bool)
    mask[1:9, 1:9] = True
    mask[3:6, 3:6] = False
    mask[10:, 12:] = True
    assert (Masks.from_dense(mask[None]).to_rle().dense()[0] == mask).all()


def test_polygons_are_rasterised_as_coco_does():
    rng = np.random.default_rng(0)
    polygons = [[rng.uniform(0, 30, (5, 2)), rng.uniform(0, 30, (3, 2))] for _ in range(20)]
    ours = Masks.from_polygons(polygons, (32, 31)).dense()
    for mask, rings in zip(ours, polygons, strict=True):
        reference = coco_mask.merge(coco_mask.frPyObjects([ring.ravel().tolist() for ring in rings], 32, 31))
        np.testing.assert_array_equal(mask, coco_mask.decode(reference))


def test_pasting_equals_torchvision():
    torch = pytest.importorskip("torch")
    reference = pytest.importorskip("torchvision.models.detection.roi_heads").paste_masks_in_image
    rng = np.random.default_rng(1)
    corner = rng.uniform(-20, 90, (30, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(21, 70, (30, 2))], axis=1).astype(np.float32)
    boxes = clip(boxes, (80, 100))  # theirs raises for a box wholly outside
    probabilities = rng.uniform(size=(30, 28, 28)).astype(np.float32)
    expected = reference(torch.from_numpy(probabilities)[:, None], torch.from_numpy(boxes), (80, 100))[:, 0].numpy()
    small = Masks.from_probabilities(probabilities, boxes, (80, 100))
    np.testing.assert_allclose(small.probabilities(), expected, atol=1e-5)
    np.testing.assert_array_equal(small.dense(), small.probabilities() >= 0.5)
    np.testing.assert_array_equal(small.to_rle().dense(), small.dense())


def test_low_resolution_masks_stay_small():
    many = Masks.from_probabilities(np.ones((100, 28, 28), np.float32), np.tile([0, 0, 9, 9.0], (100, 1)), (4000, 6000))
    assert many[:3].form == "low_resolution"
    assert many.area()[0] == pytest.approx(81, abs=25)
    with pytest.raises(ShapeError, match="no probabilities"):
        Masks.empty((3, 3)).probabilities()


def test_masks_of_a_part_move_into_the_whole():
    rng = np.random.default_rng(3)
    probabilities = rng.uniform(size=(4, 7, 7)).astype(np.float32)
    part = Masks.from_probabilities(probabilities, np.tile([2, 3, 9, 8.0], (4, 1)), (10, 12))
    for form in (part, part.to_rle()):
        whole = form.moved(top=5, left=3, size_hw=(20, 30))
        expected = np.zeros((4, 20, 30), bool)
        expected[:, 5:15, 3:15] = part.dense()
        np.testing.assert_array_equal(whole.dense(), expected)
        assert Masks.concatenate([whole, whole[:1]], (20, 30)).form == form.form
        assert len(Masks.concatenate([whole, whole[:1]], (20, 30))) == 5
    assert Masks.concatenate([part, part.to_rle()], (10, 12)).form == "rle"


def test_boundary_iou_against_morphology():
    cv2 = pytest.importorskip("cv2", reason="the published boundary IoU erodes by OpenCV")
    rng = np.random.default_rng(2)
    size_hw = (60, 80)

    def blob():
        mask = np.zeros(size_hw, np.uint8)
        cv2.ellipse(
            mask, tuple(rng.integers(5, 60, 2).tolist()), tuple(rng.integers(5, 30, 2).tolist()), 30, 0, 360, 1, -1
        )
        return mask

    def published_boundary(mask):
        distance = max(1, round(0.02 * float(np.hypot(*size_hw))))
        padded = cv2.copyMakeBorder(mask, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
        eroded = cv2.erode(padded, np.ones((3, 3), np.uint8), iterations=distance)
        return mask - eroded[1:-1, 1:-1]

    a, b = [blob() for _ in range(6)], [blob() for _ in range(6)]
    bands = Masks.from_dense(np.stack(a)).boundary().dense()
    np.testing.assert_array_equal(bands, [published_boundary(mask) for mask in a])
    iou = Masks.from_dense(np.stack(a)).boundary_iou(Masks.from_dense(np.stack(b)))
    for i, one in enumerate(map(published_boundary, a)):
        for j, other in enumerate(map(published_boundary, b)):
            assert iou[i, j] == pytest.approx((one & other).sum() / max((one | other).sum(), 1))


def test_wrong_masks_are_refused():
    with pytest.raises(ShapeError, match=r"\(N, H, W\)"):
        Masks.from_dense(np.zeros((3, 3)))
    with pytest.raises(ShapeError, match="add up to 8, expected 9"):
        Masks.from_rle([[4, 4]], (3, 3))
    with pytest.raises(ShapeError, match="at least one ring"):
        Masks.from_polygons([[]], (3, 3))


def test_segmentations_give_back_what_came():
    square = np.array([[0, 0], [4, 0], [4, 4], [0, 4.0]])
    run_lengths = Masks.from_rle([[5, 3, 92]], (10, 10)).rle()[0]["counts"]
    outlines = [None, [square, square + 5], run_lengths, [square]]
    held = Segmentations.build(outlines)
    assert held.kinds.tolist() == [
        SegmentationKind.NONE,
        SegmentationKind.POLYGONS,
        SegmentationKind.RLE,
        SegmentationKind.POLYGONS,
    ]
    assert [len(held.polygons(i)) for i in range(4)] == [0, 2, 0, 1]
    assert held.segmentation(2) == run_lengths
    np.testing.assert_array_equal(held.take([3, 1]).segmentation(1)[1], square + 5)
    assert held.masks(range(4), (10, 10)).area().tolist() == [0, 32, 3, 16]
    assert held.masks([0], (10, 10)) is None
    assert held.masks([], (10, 10)) is None


@given(st.integers(0, 10_000), st.integers(1, 40), st.integers(1, 40), st.integers(1, 60), st.integers(1, 60))
@settings(max_examples=150, deadline=None)
def test_run_lengths_are_resized_without_being_made_dense(seed, height, width, new_height, new_width):
    rng = np.random.default_rng(seed)
    dense = rng.random((5, height, width)) < rng.choice([0.0, 0.02, 0.5, 1.0], size=(5, 1, 1))
    dense[4, height // 2 :, : width // 2] = True
    rows = np.arange(new_height) * height // new_height
    columns = np.arange(new_width) * width // new_width
    resized = Masks.from_dense(dense).to_rle().resized((new_height, new_width))
    np.testing.assert_array_equal(resized.dense(), dense[:, rows[:, None], columns])


def test_more_masks_than_the_codec_can_sum():
    dense = np.arange(300)[:, None, None] > np.arange(400).reshape(20, 20)
    masks = Masks.from_dense(dense).to_rle()
    np.testing.assert_array_equal(masks.area(), np.arange(300))
    assert masks.boxes_xyxy().shape == (300, 4)
