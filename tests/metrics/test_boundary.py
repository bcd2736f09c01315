"""Boundary AP: pycocotools' code over similarities made as the paper says, faster-coco-eval's figures, a published case."""

import contextlib
import copy
import io
import json

import numpy as np
import pytest

from otus.errors import UsageError
from otus.metrics.detection.average_precision import AveragePrecision
from otus.metrics.detection.boundary import BoundaryMasks, boundary_protocols
from otus.metrics.detection.coco import CocoProtocol, CocoResult


def score(values, **options) -> CocoResult:
    metric = AveragePrecision(boundary_protocols(**options)["boundary"], values.categories)
    return metric.update(
        values.ground_truth, values.predictions, image_ids=values.image_ids, sizes_hw=values.sizes_hw
    ).compute()


def slow_boundary(rle: dict) -> dict:
    """Return the mask minus its erosion by a 3 x 3 square, once per pixel of distance; the image's border erodes too."""
    from pycocotools import mask as codec
    from scipy.ndimage import binary_erosion

    mask = codec.decode(rle).astype(bool)
    distance = max(1, round(0.02 * float(np.hypot(*mask.shape))))
    inner = binary_erosion(np.pad(mask, 1), np.ones((3, 3)), iterations=distance)[1:-1, 1:-1]
    return codec.encode(np.asfortranarray(mask & ~inner, dtype=np.uint8))


def similarities_of_the_paper(evaluation, image, category) -> np.ndarray | list:
    """Replace pycocotools' ``computeIoU``."""
    from pycocotools import mask as codec

    ground_truth, predictions = evaluation._gts[image, category], evaluation._dts[image, category]
    if not ground_truth and not predictions:
        return []
    order = np.argsort([-one["score"] for one in predictions], kind="mergesort")
    predictions = [predictions[i] for i in order][: evaluation.params.maxDets[-1]]
    crowd = [int(one["iscrowd"]) for one in ground_truth]
    masks = [one["segmentation"] for one in predictions], [one["segmentation"] for one in ground_truth]
    whole, bands = codec.iou(*masks, crowd), codec.iou(*([slow_boundary(m) for m in side] for side in masks), crowd)
    return (
        np.where(np.array(crowd, dtype=bool), whole, np.minimum(whole, bands))
        if ground_truth and predictions
        else whole
    )


@pytest.mark.parametrize("seed", range(3))
def test_equal_to_the_bit_over_slow_boundaries(seed, coco_scene, coco_values, pycocotools_evaluate, monkeypatch):
    from pycocotools.cocoeval import COCOeval

    scene = coco_scene(seed, outlines=True, image_count=8)
    plain = pycocotools_evaluate(*scene, "segm")
    monkeypatch.setattr(COCOeval, "computeIoU", similarities_of_the_paper)
    theirs = pycocotools_evaluate(*scene, "segm")
    result = score(coco_values(*scene))
    for name in ("precision", "recall", "scores"):
        np.testing.assert_array_equal(getattr(result.curves, name), theirs.eval[name], err_msg=name)
    np.testing.assert_array_equal(np.nan_to_num(list(result.figures.values()), nan=-1), theirs.stats)
    assert result.figures["AP"] < plain.stats[0]


def prepared(folder) -> tuple[dict, list]:
    """Each detection as one mask without its box, as the case says."""
    from pycocotools import mask as codec

    document = json.loads((folder / "gt_dataset.json").read_text())
    sizes = {image["id"]: (image["height"], image["width"]) for image in document["images"]}
    results = json.loads((folder / "dt_dataset.json").read_text())
    for result in results:
        outline = result["segmentation"]
        if isinstance(outline, list):
            outline = codec.merge(codec.frPyObjects(outline, *sizes[result["image_id"]]))
        elif isinstance(outline["counts"], list):
            outline = codec.frPyObjects(outline, *outline["size"])
        if isinstance(outline["counts"], bytes):
            outline["counts"] = outline["counts"].decode()
        result["segmentation"] = outline
        result.pop("bbox", None)
    return document, results


def test_figures_of_the_official_code_on_its_small_case(shared_data, coco_values):
    folder = shared_data / "metric_fixtures" / "coco_small"
    document, results = prepared(folder)
    expected = next(v for k, v in json.loads((folder / "expected.json").read_text()).items() if "segm (" in k)
    figures = score(coco_values(document, results)).figures  # "boundary IoU on the same masks: same 12 numbers as segm"
    assert np.nan_to_num(list(figures.values()), nan=-1) == pytest.approx(list(expected.values()), abs=1e-9)


def test_faster_coco_eval_says_the_same(coco_scene, coco_values):
    faster = pytest.importorskip("faster_coco_eval", reason="faster-coco-eval is a reference")
    document, results = coco_scene(5, outlines=True, image_count=20)
    with contextlib.redirect_stdout(io.StringIO()):
        ground_truth = faster.COCO(
            copy.deepcopy({**document, "images": [{**i, "file_name": "x"} for i in document["images"]]})
        )
        evaluation = faster.COCOeval_faster(
            ground_truth, ground_truth.loadRes(copy.deepcopy(results)), iouType="boundary"
        )
        evaluation.run()
    figures = score(coco_values(document, results)).figures
    assert np.nan_to_num(list(figures.values()), nan=-1) == pytest.approx(evaluation.stats[:12], abs=1e-9)


def test_a_coarse_outline_of_a_large_object_is_not_forgiven(coco_values):
    image = {"id": 1, "height": 400, "width": 400}
    square = [[50, 50, 350, 50, 350, 350, 50, 350]]
    smaller = [[58, 58, 342, 58, 342, 342, 58, 342]]
    document = {
        "images": [image],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 1, "bbox": [50, 50, 300, 300], "area": 9e4, "segmentation": square}
        ],
        "categories": [{"id": 1, "name": "a"}],
    }
    from pycocotools import mask as codec

    rle = codec.merge(codec.frPyObjects(smaller, 400, 400))
    rle["counts"] = rle["counts"].decode()
    values = coco_values(document, [{"image_id": 1, "category_id": 1, "score": 1.0, "segmentation": rle}])
    masks = AveragePrecision(CocoProtocol("segm"), values.categories).update(
        values.ground_truth, values.predictions, image_ids=[1], sizes_hw=values.sizes_hw
    )
    assert masks.compute().figures["AP75"] == pytest.approx(1)
    assert score(values).figures["AP50"] == 0


def test_wrong_calls_are_refused(coco_scene, coco_values):
    with pytest.raises(UsageError, match="dilation_ratio"):
        BoundaryMasks(dilation_ratio=0)
    with pytest.raises(UsageError, match="no masks"):
        score(coco_values(*coco_scene(1)))
