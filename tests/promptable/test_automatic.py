"""Everything in an image: the records of segment-anything's generator with the same weights."""

from typing import Any

import numpy as np
import pytest
from torch import Tensor

pytest.importorskip("segment_anything", reason="records are compared with segment-anything's")

import segment_anything
from segment_anything.utils import amg

from otus.errors import UsageError
from otus.promptable.automatic import (
    AutomaticMasks,
    SamAutomaticMaskGenerator,
    crop_boxes,
    point_grid,
    remove_small_regions,
)
from otus.promptable.mask_decoder import MaskDecoder, ProjectedImage
from otus.promptable.method import SamMethod
from tiny_sam import narrow_sam, picture, reference

OFFICIAL = reference()
METHOD = SamMethod(narrow_sam(OFFICIAL))
LOOSE = {"points_per_side": 6, "points_per_batch": 7, "pred_iou_thresh": 0, "stability_score_thresh": 0}


def check_records(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one.keys() == other.keys()
        for name in ("predicted_iou", "stability_score", "point_coords"):
            np.testing.assert_allclose(one[name], other[name], atol=2e-3 if name == "stability_score" else 1e-4)
        for name in ("bbox", "crop_box"):
            assert one[name] == other[name]
            assert all(isinstance(value, int) for value in one[name])
        assert abs(one["area"] - other["area"]) <= 2
        assert isinstance(one["area"], int)


@pytest.mark.parametrize(
    ("options", "size_hw"),
    [
        ({}, (100, 140)),
        ({"pred_iou_thresh": 0.01, "stability_score_thresh": 0.1, "box_nms_thresh": 1.0}, (150, 60)),
        ({"crop_n_layers": 1, "crop_n_points_downscale_factor": 2, "stability_score_offset": 0.5}, (100, 140)),
        ({"min_mask_region_area": 40, "box_nms_thresh": 0.95}, (150, 60)),
    ],
)
def test_records_are_the_official_ones(options: dict[str, Any], size_hw: tuple[int, int]) -> None:
    image = picture(*size_hw)
    options = LOOSE | options
    found = SamAutomaticMaskGenerator(METHOD, **options).generate(image)
    expected = segment_anything.SamAutomaticMaskGenerator(OFFICIAL, **options).generate(image)
    assert len(expected) >= 3
    check_records(found, expected)
    for one, other in zip(found, expected, strict=True):
        assert one["segmentation"].dtype == other["segmentation"].dtype
        assert (one["segmentation"] != other["segmentation"]).sum() <= 2


@pytest.mark.parametrize("mode", ["uncompressed_rle", "coco_rle"])
def test_both_forms_of_run_lengths(mode: str) -> None:
    image = picture(80, 90)
    found = SamAutomaticMaskGenerator(METHOD, **LOOSE, output_mode=mode).generate(image)
    expected = segment_anything.SamAutomaticMaskGenerator(OFFICIAL, **LOOSE, output_mode=mode).generate(image)
    check_records(found, expected)
    same = [one["segmentation"] == other["segmentation"] for one, other in zip(found, expected, strict=True)]
    assert np.mean(same) > 0.8  # a pixel at the threshold may differ
    assert found[0]["segmentation"].keys() == expected[0]["segmentation"].keys()


def test_points_of_ones_own_and_images_in_which_nothing_is_found() -> None:
    image = picture(80, 90)
    grids = [np.array([[0.5, 0.5], [0.2, 0.8]])]
    options = {"points_per_side": None, "point_grids": grids, "pred_iou_thresh": 0, "stability_score_thresh": 0}
    found = SamAutomaticMaskGenerator(METHOD, **options).generate(image)
    check_records(found, segment_anything.SamAutomaticMaskGenerator(OFFICIAL, **options).generate(image))
    for layers in (0, 1):
        none = SamAutomaticMaskGenerator(METHOD, points_per_side=3, pred_iou_thresh=99, crop_n_layers=layers)
        assert none.generate(image) == []
        assert none.masks(image).boxes_xyxy.shape == (0, 4)
    assert len(SamAutomaticMaskGenerator(METHOD, **options).generate(picture(1, 1))) >= 0


def test_only_what_survives_is_upscaled(monkeypatch: pytest.MonkeyPatch) -> None:
    upscaled: list[int] = []
    logits = MaskDecoder.logits

    def counted(decoder: MaskDecoder, image: ProjectedImage, tokens: Tensor, locations: Tensor) -> Tensor:
        upscaled.append(len(tokens))
        return logits(decoder, image, tokens, locations)

    monkeypatch.setattr(MaskDecoder, "logits", counted)
    image = picture(100, 140)
    SamAutomaticMaskGenerator(METHOD, points_per_side=6, pred_iou_thresh=0, stability_score_thresh=0).masks(image)
    assert sum(upscaled) == 36
    upscaled.clear()
    SamAutomaticMaskGenerator(METHOD, points_per_side=6, pred_iou_thresh=99).masks(image)
    assert sum(upscaled) == 0


def test_parameters_that_cannot_be() -> None:
    for options, message in (
        ({"points_per_side": None}, "points_per_side, point_grids: expected one of them"),
        ({"point_grids": [point_grid(2)]}, "points_per_side, point_grids: expected one of them"),
        ({"points_per_side": 0}, "points_per_side: expected 1 or more, got 0"),
        ({"points_per_batch": 0}, "points_per_batch"),
        ({"crop_n_layers": -1}, "crop_n_layers: expected 0 or more"),
        ({"points_per_side": None, "point_grids": [point_grid(0)]}, "expected points for the image itself"),
        ({"output_mode": "png"}, "output_mode: expected one of binary_mask, uncompressed_rle, coco_rle, got 'png'"),
        (
            {"points_per_side": None, "point_grids": [point_grid(2)], "crop_n_layers": 1},
            "expected one per layer, 2, got 1",
        ),
    ):
        with pytest.raises(UsageError, match=message):
            SamAutomaticMaskGenerator(METHOD, **options)


def test_crops_grids_and_regions_are_the_official_ones() -> None:
    for size_hw in ((480, 640), (61, 7), (1, 1)):
        boxes, layers = amg.generate_crop_boxes(size_hw, 3, 512 / 1500)
        assert crop_boxes(size_hw, 3, 512 / 1500) == list(zip(map(tuple, boxes), layers, strict=True))
    assert np.array_equal(point_grid(5), amg.build_point_grid(5))
    rng = np.random.default_rng(0)
    for share in (0.02, 0.5, 0.98):
        mask = rng.random((40, 50)) < share
        for mode in ("holes", "islands"):
            for area in (1, 3, 30, 5000):
                found, changed = remove_small_regions(mask, area, mode=mode)
                expected, expected_changed = amg.remove_small_regions(mask, area, mode)
                assert changed == expected_changed
                assert np.array_equal(found, expected)


def test_masks_are_one_value() -> None:
    found = SamAutomaticMaskGenerator(METHOD, **LOOSE).masks(picture(80, 90))
    assert isinstance(found[:2], AutomaticMasks)
    assert len(found[:2]) == 2
    assert found.masks.form == "rle"


@pytest.mark.parametrize(
    ("size_hw", "layers", "side"),
    [((1, 1), 1, 2), ((5, 40), 2, 4), ((60, 80), 3, 4)],
    ids=["1 pixel", "low", "no points"],
)
def test_crops_without_pixels_and_layers_without_points_are_left_out(
    size_hw: tuple[int, int], layers: int, side: int
) -> None:
    generator = SamAutomaticMaskGenerator(
        SamMethod(narrow_sam(reference())),
        points_per_side=side,
        crop_n_layers=layers,
        crop_n_points_downscale_factor=2,
        pred_iou_thresh=0,
        stability_score_thresh=0,
    )
    assert all(mask.shape == size_hw for mask in generator.masks(picture(*size_hw)).masks)
