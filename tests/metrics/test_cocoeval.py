"""The drop-in door: what code written for pycocotools reads off it equals pycocotools', to the bit and to the letter."""

import contextlib
import copy
import io
import json
import sys

import numpy as np
import pycocotools
import pytest

from otus.errors import DataError, UsageError
from otus.metrics.pycocotools import cocoeval
from otus.metrics.pycocotools.coco import COCO
from otus.metrics.pycocotools.cocoeval import COCOeval, init_as_pycocotools

theirs_coco = pytest.importorskip("pycocotools.coco", reason="pycocotools is the reference")
theirs_eval = pytest.importorskip("pycocotools.cocoeval", reason="pycocotools is the reference")

KINDS = ("bbox", "segm", "keypoints")


def evaluated(scene, kind, *, coco, evaluator, **params):
    """Return an evaluation after all three steps, and the output of summarize ("" if it fails)."""
    document, results = copy.deepcopy(scene)
    printed = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()):
        ground_truth = coco()
        ground_truth.dataset = document
        ground_truth.createIndex()
        if results:
            predictions = ground_truth.loadRes(results)
        else:  # which their loadRes cannot
            predictions = coco()
            predictions.dataset = {**document, "annotations": []}
            predictions.createIndex()
        evaluation = evaluator(ground_truth, predictions, kind)
        for name, value in params.items():
            setattr(evaluation.params, name, copy.deepcopy(value))
        evaluation.evaluate()
        evaluation.accumulate()
    with contextlib.redirect_stdout(printed), contextlib.suppress(IndexError):
        evaluation.summarize()
    return evaluation, printed.getvalue()


def evaluated_by_both(scene, kind, **params):
    theirs = evaluated(scene, kind, coco=theirs_coco.COCO, evaluator=theirs_eval.COCOeval, **params)
    ours = evaluated(scene, kind, coco=COCO, evaluator=COCOeval, **params)
    return ours, theirs


def assert_same_curves(ours, theirs):
    for name in ("precision", "recall", "scores"):
        np.testing.assert_array_equal(ours.eval[name], theirs.eval[name], err_msg=name)
        assert ours.eval[name].flags["C_CONTIGUOUS"]
    assert ours.eval["counts"] == theirs.eval["counts"]
    assert ours.eval["params"].catIds == theirs.eval["params"].catIds


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(3))
def test_curves_figures_and_lines_are_theirs(kind, seed, coco_scene):
    scene = coco_scene(seed, outlines=kind == "segm", keypoints=kind == "keypoints", score_steps=8)
    (ours, text), (theirs, their_text) = evaluated_by_both(scene, kind)
    assert_same_curves(ours, theirs)
    np.testing.assert_array_equal(ours.stats, theirs.stats)
    assert text == their_text
    assert len(text.splitlines()) == (10 if kind == "keypoints" else 12)
    assert str(ours) == text.rstrip("\n")


@pytest.mark.parametrize("kind", KINDS)
def test_their_own_objects_are_taken(kind, coco_scene):
    scene = coco_scene(5, outlines=kind == "segm", keypoints=kind == "keypoints")
    theirs, _ = evaluated(scene, kind, coco=theirs_coco.COCO, evaluator=theirs_eval.COCOeval)
    ours, _ = evaluated(scene, kind, coco=theirs_coco.COCO, evaluator=COCOeval)
    assert_same_curves(ours, theirs)


@pytest.mark.parametrize("missing", ["detections", "objects", "both"])
def test_nothing_on_one_side(missing, coco_scene):
    document, results = coco_scene(3)
    if missing != "objects":
        results = []
    if missing != "detections":
        document["annotations"] = []
    (ours, text), (theirs, their_text) = evaluated_by_both((document, results), "bbox")
    assert_same_curves(ours, theirs)
    assert text == their_text


@pytest.mark.parametrize(
    "params",
    [
        {"useCats": 0},
        {"useCats": 0, "catIds": [30, 10]},
        {"catIds": [40, 20, 20]},
        {"catIds": [20, 999]},
        {"imgIds": [9, 3, 3, 0]},
        {"maxDets": [10, 1, 3]},
        {"maxDets": [7]},
        {"iouThrs": np.array([0.3])},
        {"iouThrs": np.array([0.9, 0.5, 0.75, 0.5])},
        {"recThrs": np.array([1, 0.5, 0, 0.25])},
        {"areaRng": [[0, 1e10], [100, 400], [900, 900]], "areaRngLbl": ["all", "thumbs", "none"]},
    ],
    ids=str,
)
def test_parameters_are_honoured(params, coco_scene):
    """Their recall thresholds must rise, else what follows the first that is not reached stays 0; ours may stand anyhow."""
    scene = coco_scene(11, detections=40, decimals=1)
    if "recThrs" in params:
        (ours, _), (theirs, _) = (
            evaluated(scene, "bbox", coco=COCO, evaluator=COCOeval, **params),
            evaluated(scene, "bbox", coco=COCO, evaluator=theirs_eval.COCOeval, recThrs=np.sort(params["recThrs"])),
        )
        order = np.argsort(np.argsort(params["recThrs"]))
        np.testing.assert_array_equal(ours.eval["precision"], theirs.eval["precision"][:, order])
        return
    (ours, _), (theirs, _) = evaluated_by_both(scene, "bbox", **params)
    assert_same_curves(ours, theirs)
    assert ours.params.imgIds == theirs.params.imgIds
    assert ours.params.maxDets == theirs.params.maxDets


def test_tolerances_of_keypoints_are_honoured(coco_scene):
    scene = coco_scene(4, keypoints=True, categories=2)
    (ours, _), (theirs, _) = evaluated_by_both(scene, "keypoints", kpt_oks_sigmas=np.linspace(0.01, 0.2, 17))
    (usual, _), _ = evaluated_by_both(scene, "keypoints")
    assert_same_curves(ours, theirs)
    assert (usual.eval["precision"] != ours.eval["precision"]).any()


def test_the_summary_honours_other_limits_and_ranges(coco_scene):
    scene = coco_scene(2, detections=40)
    params = {"maxDets": [1, 5], "areaRng": [[0, 1e10], [0, 500]], "areaRngLbl": ["all", "tiny"]}
    (ours, text), (theirs, _) = evaluated_by_both(scene, "bbox", **params)
    precision, recall = theirs.eval["precision"], theirs.eval["recall"]
    expected = [
        precision[..., 0, 1], precision[0, ..., 0, 1], precision[5, ..., 0, 1], precision[..., 1, 1],
        recall[..., 0, 0], recall[..., 0, 1], recall[..., 1, 1],
    ]  # fmt: skip
    assert ours.stats.tolist() == [np.mean(values[values > -1]) for values in expected]
    assert "Average Precision  (AP) @[ IoU=0.50:0.95 | area=  tiny | maxDets=  5 ]" in text
    assert "Average Recall     (AR) @[ IoU=0.50:0.95 | area=   all | maxDets=  1 ]" in text
    assert len(text.splitlines()) == 7
    one, text = evaluated(scene, "bbox", coco=COCO, evaluator=COCOeval, iouThrs=np.array([0.6]))
    assert one.stats[1] == one.stats[2] == -1
    assert "IoU=0.60:0.60" in text


def test_what_became_of_each_detection(coco_scene):
    """``evalImgs`` and ``ious`` as code that draws errors reads them, crowds and ties among them."""
    for kind in KINDS:
        scene = coco_scene(6, outlines=kind == "segm", keypoints=kind == "keypoints", score_steps=5)
        (ours, _), (theirs, _) = evaluated_by_both(scene, kind, maxDets=[1, 10, 15])
        assert ours.ious.keys() == theirs.ious.keys()
        for key, values in theirs.ious.items():
            assert np.size(ours.ious[key] if len(values) else []) == np.size(values), key
            if np.size(values):
                np.testing.assert_array_equal(ours.ious[key], values)
        records = ours.evalImgs
        assert len(records) == len(theirs.evalImgs)
        for one, other in zip(records, theirs.evalImgs, strict=True):
            assert (one is None) == (other is None)
            for name in other or ():
                np.testing.assert_array_equal(one[name], other[name], err_msg=name)


def test_curves_by_other_parameters_after_judging(coco_scene):
    scene = coco_scene(8, detections=40)
    evaluation, _ = evaluated(scene, "bbox", coco=COCO, evaluator=COCOeval)
    other = copy.deepcopy(evaluation.params)
    other.imgIds, other.maxDets = other.imgIds[4:], [2]
    evaluation.accumulate(other)
    expected, _ = evaluated(scene, "bbox", coco=COCO, evaluator=theirs_eval.COCOeval, imgIds=other.imgIds, maxDets=[2])
    assert_same_curves(evaluation, expected)


def test_object_with_id_0_can_be_found(coco_scene):
    document, results = coco_scene(7, image_count=3)
    first = next(a for a in document["annotations"] if not a["iscrowd"])
    for record in document["annotations"]:
        record["id"] = 0 if record is first else record["id"] + 1000
    results.append({key: first[key] for key in ("image_id", "category_id", "bbox")} | {"score": 0.999})
    (ours, _), (wrong, _) = evaluated_by_both((document, results), "bbox")
    first["id"] = 999
    (_, _), (right, _) = evaluated_by_both((document, results), "bbox")
    assert_same_curves(ours, right)
    assert (wrong.eval["precision"] != right.eval["precision"]).any()


@pytest.mark.parametrize("kind", KINDS)
def test_published_lines_from_the_files(kind, shared_data, capsys):
    folder = shared_data / "metric_fixtures" / "coco_fake100"
    name = "person_keypoints" if kind == "keypoints" else "instances"
    labels = folder / f"{name}_val2014_100.json"
    results = folder / f"{name}_val2014_fake{kind}100_results.json"
    texts = []
    for coco, evaluator in ((COCO, COCOeval), (theirs_coco.COCO, theirs_eval.COCOeval)):
        ground_truth = coco(str(labels))
        evaluation = evaluator(ground_truth, ground_truth.loadRes(str(results)), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        capsys.readouterr()
        evaluation.summarize()
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1]
    published = json.loads((folder / "expected.json").read_text())[kind]
    assert [float(line.rsplit("=", 1)[1]) for line in texts[0].splitlines()] == published


@pytest.fixture
def as_pycocotools(monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocotools.cocoeval", theirs_eval)  # put back at the end
    monkeypatch.setattr(pycocotools, "cocoeval", theirs_eval)
    init_as_pycocotools()


def test_imports_of_pycocotools_lead_here(as_pycocotools):
    assert __import__("pycocotools.cocoeval").cocoeval.COCOeval is COCOeval
    assert sys.modules["pycocotools.cocoeval"].Params is cocoeval.Params


def made_up_tensors(seed):
    import torch

    generator = torch.Generator().manual_seed(seed)
    preds, target = [], []
    for _ in range(6):
        objects, copies = int(torch.randint(0, 5, (1,), generator=generator)), 3
        low = torch.rand(objects, 2, generator=generator) * 60
        boxes = torch.cat([low, low + 5 + torch.rand(objects, 2, generator=generator) * 40], dim=1)
        labels = torch.randint(0, 3, (objects,), generator=generator)
        crowd = (torch.rand(objects, generator=generator) < 0.2).long()
        near = boxes.repeat(copies, 1) + torch.randn(copies * objects, 4, generator=generator)
        found_labels = labels.repeat(copies)
        scores = (torch.rand(copies * objects, generator=generator) * 10).round() / 10
        sides = [
            {"boxes": near, "scores": scores, "labels": found_labels},
            {"boxes": boxes, "labels": labels, "iscrowd": crowd},
        ]
        rows, columns = torch.meshgrid(torch.arange(110), torch.arange(110), indexing="ij")
        for side in sides:
            x1, y1, x2, y2 = side["boxes"].round().unbind(1)
            side["masks"] = (
                (columns >= x1[:, None, None]) & (columns < x2[:, None, None])
                & (rows >= y1[:, None, None]) & (rows < y2[:, None, None])
            )  # fmt: skip
        preds.append(sides[0])
        target.append(sides[1])
    return preds, target


@pytest.mark.parametrize("kinds", ["bbox", "segm", ("bbox", "segm")])
@pytest.mark.parametrize("average", ["macro", "micro"])
def test_torchmetrics_runs_on_it(kinds, average, request):
    detection = pytest.importorskip(
        "torchmetrics.detection", reason="torchmetrics is one of those who call pycocotools"
    )

    def figures(**options):
        metric = detection.MeanAveragePrecision(iou_type=kinds, average=average, class_metrics=True, **options)
        for seed in range(2):
            metric.update(*made_up_tensors(seed))
        return metric.compute()

    expected = figures(extended_summary=True)
    request.getfixturevalue("as_pycocotools")
    answer = figures(extended_summary=True)
    assert answer.keys() == expected.keys()
    for name, value in expected.items():
        if name.endswith("ious"):
            assert value.keys() == answer[name].keys()
        else:
            np.testing.assert_array_equal(np.asarray(answer[name]), np.asarray(value), err_msg=name)
    if average == "macro" and kinds == "bbox":  # there -1: their summary looks for 100 detections
        assert figures(max_detection_thresholds=[1, 5, 50])["map"] > 0


def test_what_cannot_be_is_named(coco_scene):
    document, results = coco_scene(1)
    ground_truth = COCO(document)
    for change, words in [
        ({"score": float("nan")}, ["predictions[", "scores", "nan"]),
        ({"bbox": [1, 2, 3]}, ["annotation 1.bbox", "4 numbers"]),
        ({"bbox": [1, 2, -3, 4], "area": 1}, ["predictions[", "boxes_xyxy"]),
        ({"score": "high"}, ["annotation 1.score", "'high'"]),
    ]:
        predictions = ground_truth.loadRes(results)
        predictions.anns[1].update(change)
        with pytest.raises(DataError) as caught:
            COCOeval(ground_truth, predictions, "bbox").evaluate()
        for word in words:
            assert word in str(caught.value)
    with pytest.raises(DataError, match=r"\[0\].image_id: no image has the id 77"):
        ground_truth.loadRes([{**results[0], "image_id": 77}])
    with pytest.raises(DataError, match="expected a bbox"):
        ground_truth.loadRes([{"image_id": document["images"][0]["id"], "score": 1}])
    with pytest.raises(DataError, match=r"annotation \d+.segmentation: expected polygons"):
        COCOeval(ground_truth, ground_truth.loadRes(results), "segm").evaluate()
    document["annotations"][1]["id"] = document["annotations"][0]["id"]
    document["annotations"] += [dict(document["annotations"][0])]
    with pytest.raises(DataError, match="have the id"):
        COCOeval(COCO(document), ground_truth.loadRes([]), "bbox").evaluate()
    with pytest.raises(DataError, match="expected a JSON object"):
        COCO([])


def test_steps_in_another_order_are_said(coco_scene):
    ground_truth = COCO(coco_scene(1)[0])
    evaluation = COCOeval(ground_truth, ground_truth.loadRes([]), "bbox")
    with pytest.raises(UsageError, match=r"evaluate\(\)"):
        evaluation.accumulate()
    with pytest.raises(UsageError, match=r"accumulate\(\)"):
        evaluation.summarize()
    with pytest.raises(UsageError, match="kind"):
        COCOeval(ground_truth, ground_truth, "boxes")


def test_the_index_answers_as_theirs(coco_scene):
    document, results = coco_scene(9, outlines=True)
    ours, theirs = COCO(document), theirs_coco.COCO()
    theirs.dataset = copy.deepcopy(document)
    with contextlib.redirect_stdout(io.StringIO()):
        theirs.createIndex()
        their_results = theirs.loadRes(copy.deepcopy(results))
    for name in ("anns", "imgs", "cats", "imgToAnns", "catToImgs"):
        assert getattr(ours, name) == getattr(theirs, name)
    some, first = sorted(ours.imgs)[:4], document["annotations"][0]["id"]
    for method, arguments in [
        ("getImgIds", {}), ("getImgIds", {"catIds": [10, 20]}), ("getImgIds", {"imgIds": some, "catIds": 10}),
        ("getCatIds", {}), ("getCatIds", {"catNms": ["c1", "c2"]}), ("getCatIds", {"catIds": 10}),
        ("getAnnIds", {}), ("getAnnIds", {"imgIds": some}), ("getAnnIds", {"imgIds": some[0], "catIds": [10, 30]}),
        ("getAnnIds", {"areaRng": [10, 900], "iscrowd": False}), ("getAnnIds", {"catIds": 20, "iscrowd": True}),
        ("loadAnns", {"ids": [first]}), ("loadAnns", {"ids": first}), ("loadCats", {"ids": 10}),
        ("loadImgs", {"ids": some}),
    ]:  # fmt: skip
        answers = [list(getattr(one, method)(**arguments)) for one in (ours, theirs)]
        if method == "getImgIds":  # theirs come out of a set
            answers = [sorted(one) for one in answers]
        assert answers[0] == answers[1], method
    before = copy.deepcopy(results)
    assert ours.loadRes(results).anns == their_results.anns
    assert results == before
    for one in document["annotations"]:
        np.testing.assert_array_equal(ours.annToMask(one), theirs.annToMask(one))
