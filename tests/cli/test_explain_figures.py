"""``otus explain ap|difference|errors`` and ``otus compare``: metrics equal those of evaluate; pages are self-contained."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from otus import open_dataset
from otus.cli import app
from otus.data.formats.coco_results import write_results
from otus.data.scenes.files import write_scenes
from otus.structures import Objects


def run(*arguments: object) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, [str(one) for one in arguments])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.stdout, done.stderr


def run_json(*arguments: object) -> dict:
    code, out, err = run(*arguments, "--json")
    assert code == 0, err
    return json.loads(out)


def predict_badly(labels: Path, target: Path, *, seed: int, noise: float) -> None:
    """Write predictions: noisy labels, some missing, some of a wrong category, duplicates and false positives."""
    rng = np.random.default_rng(seed)
    dataset = open_dataset(labels)
    ground_truth = dataset.objects
    found = ground_truth.take(np.sort(rng.choice(len(ground_truth), int(1.2 * len(ground_truth)))))
    sides = np.tile(found.boxes_xyxy[:, 2:] - found.boxes_xyxy[:, :2], 2)
    boxes = found.boxes_xyxy + rng.normal(scale=noise, size=sides.shape) * sides
    boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 1)
    away = rng.random(len(found)) < 0.15
    boxes[away] += 60
    labels_said = np.where(
        rng.random(len(found)) < 0.15, rng.integers(0, len(dataset.categories), len(found)), found.labels
    )
    scores = np.round(rng.random(len(found)), 3)
    objects = Objects.build(image_index=found.image_index, labels=labels_said, boxes_xyxy=boxes, scores=scores)
    write_results(dataset, objects, target)


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> tuple[Path, Path, Path]:
    folder = tmp_path_factory.mktemp("scenes")
    write_scenes(folder, 10)
    labels = folder / "annotations.json"
    for name, seed, noise in (("a", 0, 0.12), ("b", 1, 0.05)):
        predict_badly(labels, folder / f"{name}.json", seed=seed, noise=noise)
    return labels, folder / "a.json", folder / "b.json"


def assert_self_contained(page: Path) -> str:
    text = page.read_text()
    assert all(source.startswith("data:") for source in re.findall(r'src="([^"]*)', text))
    assert "<link" not in text
    assert "<script" not in text
    return text


@pytest.mark.parametrize(("protocol", "figure"), [("coco:max_dets=100", "AP50"), ("voc07", "AP"), ("voc12", "AP")])
def test_ap_equals_that_of_evaluate(protocol, figure, files, tmp_path):
    labels, found, _ = files
    sides = ("--data", labels, "--predictions", found)
    evaluated = run_json("evaluate", *sides, "--protocol", protocol.split(":")[0])["bbox"]["per_category"]
    categories = [name for name, row in evaluated.items() if row[figure] is not None]
    for category in categories[:2]:
        page = tmp_path / "ap.html"
        facts = run_json("explain", "ap", *sides, "--category", category, "--protocol", protocol, "--out", page)
        assert facts["AP"] == pytest.approx(evaluated[category][figure], abs=1e-12)
        assert facts["detections"][-1]["area_so_far"] == facts["AP"]
        true = 0
        for counted, one in enumerate((one for one in facts["detections"] if one["outcome"] != "ignored"), start=1):
            true += one["outcome"] == "true"
            assert one["precision"] == pytest.approx(true / counted)
            assert one["recall"] == pytest.approx(true / facts["objects"])
        scores = [one["score"] for one in facts["detections"]]
        assert scores == sorted(scores, reverse=True)
        assert facts["true"] == true
        text = assert_self_contained(page)
        assert f"AP of {category}: {facts['AP']:.4f}" in text
        for one in facts["detections"][: facts["shown"]]:
            assert f"area {one['area_so_far']:.3f}" in text


def test_ap_at_another_iou_is_evaluates(files, tmp_path):
    labels, found, _ = files
    sides = ("--data", labels, "--predictions", found)
    evaluated = run_json("evaluate", *sides)["bbox"]["per_category"]
    category = next(name for name, row in evaluated.items() if row["AP75"])
    facts = run_json("explain", "ap", *sides, "--category", category, "--iou", 0.75, "--out", tmp_path / "a.html")
    assert facts["AP"] == pytest.approx(evaluated[category]["AP75"], abs=1e-12)


def test_words_for_iou_and_reasons(tmp_path):
    """Three matches, a duplicate, one with a low IoU, one on background, one on a crowd."""
    write_scenes(tmp_path, 1)
    document = json.loads((tmp_path / "annotations.json").read_text())
    image = document["images"][0]["id"]
    category = document["categories"][0]
    boxes = [[10, 10, 40, 40], [60, 10, 40, 40], [110, 10, 40, 40], [10, 60, 40, 40]]
    document["annotations"] = [
        {"id": i, "image_id": image, "category_id": category["id"], "bbox": b, "area": 1600, "iscrowd": int(i == 3)}
        for i, b in enumerate(boxes)
    ]
    (tmp_path / "labels.json").write_text(json.dumps(document))
    predicted = [
        [10, 10, 40, 40], [60, 10, 40, 32], [110, 10, 40, 24], [10, 10, 40, 38], [110, 26, 40, 40], [120, 90, 20, 20],
        [10, 60, 20, 20],
    ]  # fmt: skip
    results = [
        {"image_id": image, "category_id": category["id"], "bbox": box, "score": 0.9 - 0.1 * i}
        for i, box in enumerate(predicted)
    ]
    (tmp_path / "found.json").write_text(json.dumps(results))
    sides = ("--data", tmp_path / "labels.json", "--predictions", tmp_path / "found.json")
    facts = run_json(
        "explain", "ap", *sides, "--category", category["name"], "--show", 2, "--out", tmp_path / "ap.html"
    )
    rows = facts["detections"]
    assert [one["outcome"] for one in rows] == ["true"] * 3 + ["false"] * 3 + ["ignored"]
    assert [one["word"] for one in rows[:3]] == ["almost perfect", "pretty good", "decent"]
    assert "matched by a higher-scoring" in rows[3]["why"]
    assert "IoU too low" in rows[4]["why"]
    assert rows[5]["why"] == f"overlaps no {category['name']}"
    assert "matches an ignored object" in rows[6]["why"]
    assert (facts["objects"], facts["objects_ignored"], facts["shown"]) == (3, 1, 2)
    assert sum(group["false"] for group in facts["groups"]) == 3
    text = (tmp_path / "ap.html").read_text()
    assert "The 2 highest-scoring; the other 5 are summarised below" in text


def test_ap_of_an_unknown_category(files, tmp_path):
    labels, found, _ = files
    code, _, err = run("explain", "ap", "--data", labels, "--predictions", found, "--category", "unicorn")
    assert code == 1
    assert "unicorn" in err
    empty = tmp_path / "none.json"
    empty.write_text("[]")
    document = json.loads(labels.read_text())
    name = document["categories"][0]["name"]
    sides = ("--data", labels, "--predictions", empty, "--category", name)
    facts = run_json("explain", "ap", *sides, "--out", tmp_path / "ap.html")
    assert (facts["AP"], facts["detections"], facts["groups"]) == (0, [], [])
    code, _, err = run("explain", "ap", *sides, "--protocol", "pascal")
    assert (code, "coco, voc07, voc12" in err) == (2, True)
    code, _, err = run("explain", "ap", *sides, "--show", -1)
    assert (code, "0 or more" in err) == (2, True)


def test_difference_adds_up(files, tmp_path):
    labels, found, _ = files
    sides = ("--data", labels, "--predictions", found)
    page = tmp_path / "difference.html"
    facts = run_json("explain", "difference", *sides, "--protocols", "coco,voc07", "--out", page)
    for side, protocol in (("a", "coco"), ("b", "voc07")):
        evaluated = run_json("evaluate", *sides, "--protocol", protocol)["bbox"]
        assert facts[side]["AP"] == pytest.approx(evaluated["AP"], abs=1e-12)
        for name, row in facts["per_category"].items():
            if row[side] is not None:
                assert row[side] == pytest.approx(evaluated["per_category"][name]["AP"], abs=1e-12)
    assert sum(step["change"] for step in facts["steps"]) == pytest.approx(facts["difference"], abs=1e-15)
    assert facts["difference"] == pytest.approx(facts["b"]["AP"] - facts["a"]["AP"], abs=1e-15)
    assert [step["rule"] for step in facts["steps"]] == [
        "max_dets", "matching", "difficult", "iou_thresholds", "interpolation"
    ]  # fmt: skip
    text = assert_self_contained(page)
    for step in facts["steps"]:
        assert f"{step['change']:+.6f}" in text


def test_each_setting_is_a_term(files, tmp_path):
    labels, found, _ = files
    b = (
        "coco:min_score=0.3:score_decimals=1:inclusive_boxes=yes:max_dets=1:matching=best_overlap:crowd=counted:"
        "difficult=dropped:area=medium:iou_thresholds=0.5:interpolation=area:average=with_objects_or_detections"
    )
    sides = ("--data", labels, "--predictions", found, "--out", tmp_path / "page.html")
    facts = run_json("explain", "difference", *sides, "--protocols", f"coco,{b}")
    assert len(facts["steps"]) == 11
    assert sum(abs(step["change"]) > 0 for step in facts["steps"]) >= 6
    assert sum(step["change"] for step in facts["steps"]) == pytest.approx(facts["difference"], abs=1e-15)
    limited = run_json("evaluate", "--data", labels, "--predictions", found, "--max-dets", "1")["bbox"]["AP"]
    facts = run_json("explain", "difference", *sides, "--protocols", "coco,coco:max_dets=1")
    assert facts["b"]["AP"] == pytest.approx(limited, abs=1e-12)
    same = run_json("explain", "difference", *sides, "--protocols", "coco,coco")
    assert (same["difference"], same["steps"]) == (0, [])
    code, _, err = run("explain", "difference", *sides, "--protocols", "coco")
    assert (code, "two" in err) == (2, True)
    document = json.loads(labels.read_text())
    (tmp_path / "bare.json").write_text(json.dumps({**document, "annotations": []}))
    bare = ("--data", tmp_path / "bare.json", "--predictions", found, "--out", tmp_path / "page.html")
    facts = run_json("explain", "difference", *bare, "--protocols", "coco,voc07")
    assert (facts["a"]["AP"], facts["difference"]) == (None, None)


def test_errors_page_equals_the_document(files, tmp_path):
    labels, found, _ = files
    sides = ("--data", labels, "--predictions", found)
    page = tmp_path / "errors.html"
    facts = run_json("explain", "errors", *sides, "--out", page)
    evaluated = run_json("evaluate", *sides)["bbox"]
    assert facts["AP"] == pytest.approx(evaluated["AP"], abs=1e-12)
    assert facts["AP_at_iou"] == pytest.approx(evaluated["AP50"], abs=1e-12)
    assert facts["AP_by_iou"]["0.75"] == pytest.approx(evaluated["AP75"], abs=1e-12)
    for name, row in facts["per_category"].items():
        if row["objects"]:
            assert row["AP"] == pytest.approx(evaluated["per_category"][name]["AP"], abs=1e-12)
    for name in ("classification", "localisation", "both", "duplicate", "background"):
        assert sum(row[name] for row in facts["per_category"].values()) == facts["errors"][name]["count"]
    text = assert_self_contained(page)
    for name, one in facts["errors"].items():
        assert name in text
        assert f"{one['cost']:.4g}" in text
    assert f"{facts['label_errors']['count']} labels" in text
    for one in facts["worst_images"]:
        assert (
            f"{one['file']}: {one['true_positives']} true, {one['false_positives']} false, {one['false_negatives']} missed"
            in text
        )
    counts = np.array(facts["confusion"]["counts"])
    assert counts[:-1].sum() == facts["objects"]
    assert facts["calibration"]["bins"][9]["to"] == 1


def test_errors_of_nothing_are_a_page(files, tmp_path):
    labels, _, _ = files
    (tmp_path / "none.json").write_text("[]")
    sides = ("--data", labels, "--predictions", tmp_path / "none.json", "--out", tmp_path / "errors.html")
    facts = run_json("explain", "errors", *sides)
    assert facts["AP"] == 0
    assert facts["best_threshold"] is None
    assert facts["calibration"]["ECE"] is None
    code, _, err = run("explain", "errors", *sides, "--iou", 0.05)
    assert (code, "background" in err) == (2, True)


def test_pages_are_made_without_images(files, tmp_path):
    labels, found, _ = files
    alone = tmp_path / "labels.json"
    alone.write_bytes(labels.read_bytes())
    sides = ("--data", alone, "--predictions", found)
    category = json.loads(labels.read_text())["categories"][0]["name"]
    for verb in (("ap", "--category", category), ("errors",)):
        page = tmp_path / "page.html"
        code, _, err = run("explain", *verb, *sides, "--out", page)
        assert code == 0, err
        assert "(cannot be read)" in page.read_text()


def test_a_fresh_process_does_not_import_torch(files, tmp_path):
    labels, found, _ = files
    code = (
        "import sys; from otus.cli import app; app(sys.argv[1:], standalone_mode=False); "
        "assert not {'torch', 'matplotlib.pyplot'} & set(sys.modules)"
    )
    sides = ("--data", labels, "--predictions", found, "--out", tmp_path / "page.html")
    done = subprocess.run(
        [sys.executable, "-c", code, "explain", "errors", *map(str, sides)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_compare_says_whose_figures_are_higher(files):
    labels, a, b = files
    facts = run_json("compare", "--data", labels, "--predictions", f"{a},{b}", "--resamples", 200)
    for side, path in (("a", a), ("b", b)):
        evaluated = run_json("evaluate", "--data", labels, "--predictions", path)["bbox"]
        for name in ("AP", "AP50", "AP75"):
            assert facts["figures"][name][side] == pytest.approx(evaluated[name], abs=1e-12)
        for name, row in facts["per_category"].items():
            if row[side] is not None:
                assert row[side] == pytest.approx(evaluated["per_category"][name]["AP"], abs=1e-12)
    row = facts["figures"]["AP"]
    assert row["low"] <= row["difference"] <= row["high"]
    assert row["difference"] == pytest.approx(row["b"] - row["a"])
    again = run_json("compare", "--data", labels, "--predictions", f"{a},{b}", "--resamples", 200)
    assert again == facts
    other = run_json("compare", "--data", labels, "--predictions", f"{a},{b}", "--resamples", 200, "--seed", 1)
    assert other["figures"]["AP"]["low"] != row["low"]
    code, out, _ = run("compare", "--data", labels, "--predictions", f"{a},{a}", "--resamples", 20)
    assert code == 0
    assert "may be chance" in out


@pytest.mark.parametrize(
    ("predictions", "options", "code", "words"),
    [
        ("{a}", (), 2, "two files"),
        ("{a},{a}no", (), 1, "no"),
        ("{a},{b}", ("--protocol", "pascal"), 2, "voc07"),
        ("{a},{b}", ("--confidence", "2"), 2, "confidence"),
    ],
)
def test_invalid_comparisons_are_errors(predictions, options, code, words, files):
    labels, a, b = files
    got, out, err = run("compare", "--data", labels, "--predictions", predictions.format(a=a, b=b), *options)
    assert (got, out) == (code, "")
    assert words in err
