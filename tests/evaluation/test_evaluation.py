"""``evaluate_predictions`` and its report."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import otus
from otus.data.dataset import Dataset, Images
from otus.data.formats import coco
from otus.data.formats.coco_results import write_results
from otus.errors import DataError, UsageError
from otus.evaluation.evaluate import evaluate_predictions
from otus.structures import Categories, KeypointNames, Objects, Segmentations

CATEGORIES = Categories(("owl", "mouse"), keypoints=(("owl", KeypointNames(("left_eye", "right_eye"))),))
SQUARE = [np.array([[2.0, 2], [12, 2], [12, 12], [2, 12]])]


def a_dataset(**changes) -> Dataset:
    objects = Objects.build(
        image_index=[0, 1],
        labels=[0, 1],
        boxes_xyxy=[[2, 2, 12, 12], [5, 5, 9, 19]],
        segmentations=Segmentations.build([SQUARE, SQUARE]),
        keypoints=np.array([[[4, 4, 2], [10, 4, 2]], [[0, 0, 0], [0, 0, 0]]], dtype=float),
    )
    images = Images(Path("images"), ("b.png", "a.png"), np.array([[20, 20], [20, 20]]), (9, 3))
    return Dataset(Path("labels.json"), "coco", images, CATEGORIES, replace(objects, **changes))


def perfect(dataset: Dataset, **changes) -> Objects:
    assert dataset.objects is not None
    return replace(dataset.objects, **{"scores": np.array([0.9, 0.8]), **changes})


def test_document_has_the_agreed_shape():
    dataset = a_dataset()
    document = evaluate_predictions(dataset, perfect(dataset)).document()
    assert list(document) == ["protocol", "data", "images", "bbox", "segm", "keypoints"]
    assert (document["protocol"], document["data"], document["images"]) == ("coco", "labels.json", 2)
    names = ["AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl"]
    assert list(document["bbox"]) == [*names, "per_category"]
    assert document["bbox"]["AP"] == pytest.approx(1)
    assert document["bbox"]["per_category"] == {
        name: dict.fromkeys(("AP", "AP50", "AP75"), pytest.approx(1)) for name in ("owl", "mouse")
    }
    assert document["keypoints"]["AP"] == pytest.approx(1)
    assert list(document["keypoints"]["per_category"]) == ["owl"]


def test_kinds_that_labels_or_predictions_lack_are_skipped_and_reported():
    dataset = a_dataset()
    report = evaluate_predictions(dataset, perfect(dataset, segmentations=None, keypoints=None))
    assert list(report.results) == ["bbox"]
    assert report.skipped_kinds == {
        "segm": "the predictions have no masks",
        "keypoints": "the predictions have no keypoints",
    }
    partly = a_dataset(segmentations=Segmentations.build([SQUARE, None]), keypoints=None)
    report = evaluate_predictions(partly, perfect(dataset))
    assert list(report.results) == ["bbox"]
    assert report.skipped_kinds["segm"] == "1 of 2 labels have no mask"
    assert report.skipped_kinds["keypoints"] == "the labels have no keypoints"
    with pytest.raises(DataError, match="expected a segmentation"):
        evaluate_predictions(partly, perfect(dataset), kinds=["segm"])


def test_no_predictions_give_0_for_all_that_the_labels_have():
    nothing = replace(Objects.empty(), scores=np.zeros(0))
    report = evaluate_predictions(a_dataset(), nothing)
    assert {kind: result.figures["AP"] for kind, result in report.results.items()} == {
        "bbox": 0,
        "segm": 0,
        "keypoints": 0,
    }


def test_faulty_records_are_reported_and_left_out():
    dataset = a_dataset()
    broken = perfect(dataset, scores=np.array([0.9, np.nan]))
    with pytest.raises(DataError, match=r"predictions\[1\] \(id 2\)\.scores"):
        evaluate_predictions(dataset, broken)
    problems: list[DataError] = []
    report = evaluate_predictions(dataset, broken, kinds=["bbox"], report=problems.append)
    assert [problem.kind for problem in problems] == ["bad_scores"]
    assert report.results["bbox"].figures["AP"] == pytest.approx(0.5)


@pytest.mark.parametrize("protocol", ["voc07", "voc12"])
def test_voc_counts_boxes_and_knows_difficult(protocol):
    dataset = a_dataset(columns={"difficult": np.array([False, True])})
    found = perfect(dataset).take(np.array([True, False]))
    document = evaluate_predictions(dataset, found, protocol=protocol).document()
    assert document["protocol"] == protocol
    assert document["bbox"]["AP"] == document["bbox"]["AP50"] == pytest.approx(1)
    assert document["bbox"]["per_category"]["owl"] == {"AP": pytest.approx(1), "AP50": pytest.approx(1)}
    assert np.isnan(document["bbox"]["per_category"]["mouse"]["AP"])


def test_file_names_as_ids_need_not_differ():
    dataset = a_dataset()
    dataset = replace(dataset, images=replace(dataset.images, ids=("1", "1")))
    assert evaluate_predictions(dataset, perfect(dataset)).results["bbox"].figures["AP"] == pytest.approx(1)


def test_invalid_calls_are_errors():
    dataset = a_dataset()
    with pytest.raises(UsageError, match="max_dets"):
        evaluate_predictions(dataset, perfect(dataset), protocol="voc12", max_dets=[10])
    with pytest.raises(UsageError, match="protocol"):
        evaluate_predictions(dataset, perfect(dataset), protocol="pascal")
    with pytest.raises(UsageError, match="no objects"):
        evaluate_predictions(replace(dataset, objects=None), perfect(dataset))


def test_evaluate_takes_files_and_values(tmp_path: Path):
    dataset = a_dataset()
    coco.write_json(dataset, tmp_path / "labels.json")
    (tmp_path / "images").mkdir()
    write_results(dataset, perfect(dataset), tmp_path / "found.json")
    of_files = otus.evaluate(tmp_path / "labels.json", predictions=str(tmp_path / "found.json"))
    of_values = otus.evaluate(dataset, predictions=perfect(dataset))
    assert of_files.results.keys() == of_values.results.keys()
    for kind, result in of_values.results.items():
        assert of_files.results[kind].figures == pytest.approx(result.figures, nan_ok=True)
    voc = otus.evaluate(tmp_path / "labels.json", predictions=tmp_path / "found.json", protocol="voc07")
    assert voc.document()["protocol"] == "voc07"


def test_incompatible_arguments_of_evaluate_are_errors():
    dataset = a_dataset()
    for wrong in ({}, {"predictions": perfect(dataset), "model": "any"}):
        with pytest.raises(UsageError, match="takes either predictions"):
            otus.evaluate(dataset, **wrong)
    with pytest.raises(UsageError, match="weights, device: only for a model"):
        otus.evaluate(dataset, predictions=perfect(dataset), weights="some", device="cpu")
    with pytest.raises(UsageError, match="is an open data set"):
        otus.evaluate(dataset, predictions=perfect(dataset), split="val")


@pytest.mark.parametrize(("count", "says"), [(17, "those of COCO's person"), (5, "1 / 5 each")])
def test_keypoints_without_names_are_evaluated_with_a_note(count: int, says: str):
    points = np.tile([10.0, 10, 2], (2, count, 1))
    unnamed = replace(a_dataset(keypoints=points), categories=Categories(("owl", "mouse")))
    named = KeypointNames(tuple(map(str, range(count))))
    known = replace(unnamed, categories=Categories(("owl", "mouse"), keypoints=(("owl", named), ("mouse", named))))
    off = perfect(unnamed, keypoints=points + np.array([0.7, 0, 0]))
    report, expected = evaluate_predictions(unnamed, off), evaluate_predictions(known, off)
    assert 0 < expected.results["keypoints"].figures["AP"] < 1
    figures = expected.results["keypoints"].figures
    assert report.results["keypoints"].figures == pytest.approx(figures, nan_ok=True)
    assert (len(report.notes), expected.notes) == (1, ())
    assert says in report.notes[0]
    assert report.document()["notes"] == list(report.notes)
    nothing = evaluate_predictions(replace(unnamed, objects=Objects.empty()), off)
    assert np.isnan(nothing.results["keypoints"].figures["AP"])
