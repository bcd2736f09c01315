"""The six types of errors and what they cost: hotcoco live, the paper's own code by its figures, and by hand."""

import json
from dataclasses import replace

import numpy as np
import pytest

from otus.data.formats.coco_results import read_results
from otus.data.open import open_dataset
from otus.errors import UsageError
from otus.metrics.diagnosis.assignment import DetectionMatcher
from otus.metrics.diagnosis.tide import ERROR_TYPES, Error, Errors, find_errors
from otus.structures import Categories, Objects

SHORT = {
    Error.CLASSIFICATION: "Cls", Error.LOCALISATION: "Loc", Error.BOTH: "Both", Error.DUPLICATE: "Dupe",
    Error.BACKGROUND: "Bkg", Error.MISSED: "Miss",
}  # fmt: skip


def hotcoco_errors(folder, document, results, kind):
    hotcoco = pytest.importorskip("hotcoco", reason="hotcoco is the reference")
    (folder / "truth.json").write_text(json.dumps(document))
    (folder / "found.json").write_text(json.dumps(results))
    ground_truth = hotcoco.COCO(str(folder / "truth.json"))
    evaluation = hotcoco.COCOeval(ground_truth, ground_truth.loadRes(str(folder / "found.json")), kind)
    evaluation.evaluate()
    return evaluation.tide_errors()


def assert_equal(errors: Errors, theirs) -> None:
    assert {SHORT[one]: count for one, count in errors.counts.items()} == theirs["counts"]
    assert np.nanmean(errors.average_precision()) == pytest.approx(theirs["ap_base"], abs=1e-12)
    for one, cost in errors.delta_ap().items():
        assert cost == pytest.approx(theirs["delta_ap"][SHORT[one]], abs=1e-12), one
    assert errors.false_positive_cost() == pytest.approx(theirs["delta_ap"]["FP"], abs=1e-12)
    assert errors.false_negative_cost() == pytest.approx(theirs["delta_ap"]["FN"], abs=1e-12)


@pytest.mark.parametrize("kind", ["bbox", "segm"])
@pytest.mark.parametrize("seed", range(5))
def test_equals_hotcoco(seed, kind, tmp_path, coco_scene, coco_values):
    document, results = coco_scene(seed, outlines=kind == "segm", score_steps=10**9, image_count=20)
    for record in document["annotations"]:  # hotcoco also takes crowds for neighbours, the paper's code does not
        record["iscrowd"] = 0
    errors = find_errors(DetectionMatcher(**vars(coco_values(document, results))), masks=kind == "segm")
    assert all(errors.counts.values())
    assert_equal(errors, hotcoco_errors(tmp_path, document, results, kind))


def fixture(shared_data, kind):
    folder = shared_data / "metric_fixtures" / "coco_fake100"
    dataset = open_dataset(folder / "instances_val2014_100.json")
    predictions = read_results(folder / f"instances_val2014_fake{kind}100_results.json", dataset)
    ids = np.array(dataset.images.ids)
    return folder, DetectionMatcher(dataset.objects, predictions, dataset.categories, ids, dataset.images.sizes_hw)


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_equals_hotcoco_on_the_first_100_images(kind, shared_data, tmp_path):
    folder, matcher = fixture(shared_data, kind)
    document = json.loads((folder / "instances_val2014_100.json").read_text())
    results = json.loads((folder / f"instances_val2014_fake{kind}100_results.json").read_text())
    assert_equal(find_errors(matcher, masks=kind == "segm"), hotcoco_errors(tmp_path, document, results, kind))


def tidecv_average(points, positives):
    """Return AP by the paper's code: recalls x / 100, mean over categories with objects or detections, times 100."""
    figures = []
    for label, objects in enumerate(positives):
        here = sorted((point for point in points if point[0] == label), key=lambda point: -point[1])
        if not here and not objects:
            continue
        true = np.cumsum([point[2] for point in here])
        precision = np.maximum.accumulate((true / np.arange(1, len(here) + 1))[::-1])[::-1]
        place = np.searchsorted(true / max(objects, 1), [x / 100 for x in range(101)])
        figures.append(np.append(precision, 0)[np.minimum(place, len(here))].mean() if objects else 0.0)
    return 100 * np.mean(figures)


def tidecv_points(errors: Errors, fixed: Error | None):
    """Return (label, score, whether true) of each detection; ties: false ones first once something is fixed."""
    matches, best = errors.matches, errors._best_on_unmatched
    points, right = [], []
    for i in np.lexsort((-matches.scores, matches.image_index)):
        type_ = errors.types[i]
        if type_ == Error.NONE:
            (right if fixed is not None else points).append((matches.labels[i], matches.scores[i], True))
        elif type_ == fixed and best[i]:
            points.append((errors.gt_labels[errors.nearest_gt[i]], matches.scores[i], True))
        elif type_ not in (fixed, Error.IGNORED):
            points.append((matches.labels[i], matches.scores[i], False))
    return points + right


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_equals_the_papers_code_with_its_mean(kind, shared_data):
    path = shared_data / "metric_fixtures" / "tide" / "expected.json"
    name = "mask" if kind == "segm" else "bbox"
    expected = json.loads(path.read_text())["expected"][name]
    errors = find_errors(fixture(shared_data, kind)[1], masks=kind == "segm")
    positives = errors.matches.positives
    before = tidecv_average(tidecv_points(errors, None), positives)
    assert before == pytest.approx(expected["ap50"], abs=0.02)  # images of equal scores stand in another order there
    for one in ERROR_TYPES:
        left = positives
        if one is Error.MISSED:
            left = positives - np.bincount(errors.gt_labels[errors.missed], minlength=len(positives))
        cost = tidecv_average(tidecv_points(errors, one), left) - before
        assert max(cost, 0) == pytest.approx(expected["main"][name][SHORT[one]], abs=0.02), one


def by_hand() -> DetectionMatcher:
    """Return two cats and two dogs in an image, and detections in descending order of score (see the test)."""
    ground_truth = Objects.build(
        image_index=[0, 0, 0, 0],
        labels=[0, 0, 1, 1],
        boxes_xyxy=[[0, 0, 10, 10], [20, 0, 30, 10], [40, 0, 50, 10], [60, 0, 70, 10]],
    )
    predictions = Objects.build(
        image_index=[0] * 7,
        labels=[0, 0, 1, 0, 1, 1, 0],
        boxes_xyxy=[
            [0, 0, 10, 10], [0, 0, 10, 9], [20, 0, 30, 10], [40, 0, 44, 10], [80, 0, 90, 10], [40, 0, 44, 10],
            [20, 0, 23, 10],
        ],
        scores=np.array([0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3]),
    )  # fmt: skip
    return DetectionMatcher(ground_truth, predictions, Categories(("cat", "dog")), np.array([1]))


def test_by_hand():
    errors = find_errors(by_hand())
    by_prediction = dict(zip(errors.matches.detections.tolist(), errors.types.tolist(), strict=True))
    assert [Error(by_prediction[i]) for i in range(7)] == [
        Error.NONE, Error.DUPLICATE, Error.CLASSIFICATION, Error.BOTH, Error.BACKGROUND, Error.LOCALISATION,
        Error.LOCALISATION,
    ]  # fmt: skip
    assert errors.missed.tolist() == [False, False, False, True]
    # Of the two errors about the second cat the dog at 0.7 is the better: mending places alone does not find that cat.
    cat, dog = errors.average_precision(Error.CLASSIFICATION)
    assert (cat, dog) == (pytest.approx(51 / 101 + 50 / 101 * 2 / 3), 0)
    cat, dog = errors.average_precision(Error.LOCALISATION)
    assert (cat, dog) == (pytest.approx(51 / 101), pytest.approx(51 / 101 / 3))
    assert errors.average_precision(Error.MISSED)[1] == 0
    assert errors.false_positive_cost() == pytest.approx(0)
    assert errors.false_negative_cost() == pytest.approx((1 - 51 / 101) / 2)


def test_perfect_detections_cost_nothing():
    ground_truth = by_hand().ground_truth
    matcher = replace(by_hand(), predictions=replace(ground_truth, scores=np.ones(4)))
    errors = find_errors(matcher)
    assert set(errors.counts.values()) == {0}
    assert set(errors.delta_ap().values()) == {0}


def test_nothing_on_one_side():
    empty = Objects.build(image_index=[], labels=[], boxes_xyxy=[], scores=np.zeros(0))
    errors = find_errors(replace(by_hand(), predictions=empty))
    assert errors.counts[Error.MISSED] == 4
    assert errors.delta_ap()[Error.MISSED] == 0
    errors = find_errors(replace(by_hand(), ground_truth=Objects.empty()))
    assert errors.counts[Error.BACKGROUND] == 7
    assert np.isnan(list(errors.delta_ap().values())).all()


def test_wrong_thresholds_are_refused():
    for iou, background in ((0.5, 0.5), (0.1, 0.5), (1.2, 0.1), (0.5, 0)):
        with pytest.raises(UsageError, match="background"):
            find_errors(by_hand(), iou=iou, background_iou=background)
