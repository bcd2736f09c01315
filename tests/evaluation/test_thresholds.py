"""Score thresholds chosen on a data set are used by ``predict``, from the checkpoint or a JSON file."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import otus
from otus import open_dataset
from otus.cli import app
from otus.errors import CheckpointError, DataError, UsageError
from otus.evaluation.comparing import compare_with_labels
from otus.evaluation.thresholds import choose_thresholds, read_thresholds
from otus.inference.predictor import SCORE_THRESHOLD
from otus.parts.preprocess import Preprocess
from otus.structures import Categories, Objects
from otus.zoo.checkpoint import CheckpointHeader, load_checkpoint, save_checkpoint
from otus.zoo.models import build_model

NAME = "faster_rcnn_mobilenet_v3_large_320_fpn"
CATEGORIES = Categories(("cat", "dog"))


def run(*arguments: object):
    done = CliRunner().invoke(app, [str(one) for one in arguments])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """Write random weights of a detector whose boxes of both categories have scores from 0.1 to 0.9."""
    torch.manual_seed(0)
    system = build_model(NAME, CATEGORIES)
    torch.nn.init.normal_(system.box_head.cls_score.weight, std=0.3)
    torch.nn.init.zeros_(system.box_head.cls_score.bias)
    path = tmp_path_factory.mktemp("weights") / "mine.safetensors"
    preprocess = Preprocess(shorter_side=64, longer_side=96)
    header = CheckpointHeader(
        builder=NAME, categories=CATEGORIES, preprocess=preprocess.to_dict(), extra={"note": "kept"}
    )
    save_checkpoint(path, system.state_dict(), header)
    return path


@pytest.fixture
def data(weights, tmp_path) -> Path:
    """Write two images, labelled with the highest-scoring detections of the detector."""
    rng = np.random.default_rng(0)
    predictor = otus.load(weights, device="cpu")
    document = {"images": [], "annotations": [], "categories": [{"id": i, "name": n} for i, n in enumerate(CATEGORIES)]}
    for number in range(2):
        image = rng.integers(0, 255, (80, 110, 3), dtype=np.uint8)
        Image.fromarray(image).save(tmp_path / f"{number}.png")
        document["images"].append({"id": number, "file_name": f"{number}.png", "width": 110, "height": 80})
        found = predictor.predict(tmp_path / f"{number}.png", score_threshold=0.06)[0].instances
        for label in range(2):
            for box in found.boxes_xyxy[found.labels == label][:3]:
                x1, y1, x2, y2 = box.astype(float).tolist()
                document["annotations"].append(
                    {
                        "id": len(document["annotations"]),
                        "image_id": number,
                        "category_id": label,
                        "bbox": [x1, y1, x2 - x1, y2 - y1],
                        "area": (x2 - x1) * (y2 - y1),
                        "iscrowd": 0,
                    }
                )
    (tmp_path / "labels.json").write_text(json.dumps(document))
    return tmp_path / "labels.json"


def test_chosen_thresholds_go_into_the_model_and_predict_uses_them(weights, data, tmp_path):
    mine = tmp_path / "mine.safetensors"
    mine.write_bytes(weights.read_bytes())
    before, header_before = load_checkpoint(mine)
    done = run("evaluate", "--data", data, "--model", mine, "--choose-thresholds", "--device", "cpu", "--json")
    assert done.exit_code == 0, done.stderr
    chosen = json.loads(done.stdout)["score_thresholds"]
    assert chosen["written"] == str(mine)
    assert set(chosen["thresholds"]) == set(CATEGORIES)
    after, header = load_checkpoint(mine)
    assert header.extra["note"] == "kept"
    assert (header.builder, header.categories) == (header_before.builder, header_before.categories)
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    assert len(after) == len(before)
    predictor = otus.load(mine, device="cpu")
    assert predictor.score_thresholds == chosen["thresholds"]
    cut = np.array([chosen["thresholds"][name] for name in CATEGORIES])
    assert cut[0] != cut[1]
    everything = predictor.predict(data.parent / "0.png", score_threshold=float(cut.min()))[0].instances
    expected = everything.scores > cut[everything.labels]
    assert 0 < expected.sum() < len(expected)
    used = predictor.predict(data.parent / "0.png")[0].instances
    np.testing.assert_array_equal(used.boxes_xyxy, everything.boxes_xyxy[expected])
    same = otus.load(weights, device="cpu").predict(data.parent / "0.png", score_threshold=chosen["thresholds"])
    np.testing.assert_array_equal(used.boxes_xyxy, same[0].instances.boxes_xyxy)


def test_a_json_file_does_the_same(weights, data, tmp_path):
    path = tmp_path / "thresholds.json"
    asked = ("evaluate", "--data", data, "--model", weights, "--device", "cpu", "--choose-thresholds", "--out", path)
    done = run(*asked)
    assert done.exit_code == 0, done.stderr
    assert "highest F1 at IoU 0.5" in done.stdout
    assert str(path) in done.stdout
    assert "score_thresholds" not in load_checkpoint(weights)[1].extra
    done = run(
        "predict", data.parent / "0.png", "--model", weights, "--thresholds", path, "--json", "--precision", "exact"
    )
    assert done.exit_code == 0, done.stderr
    instances = json.loads(done.stdout)["images"][0]["instances"]
    thresholds = read_thresholds(path)
    loaded = otus.load(weights, device="cpu").predict(data.parent / "0.png", score_threshold=thresholds)[0]
    assert [one["score"] for one in instances] == pytest.approx(loaded.instances.scores.tolist())
    assert all(one["score"] > thresholds[one["category"]] for one in instances)
    done = run("predict", data, "--model", weights, "--thresholds", path, "--score-threshold", 0.3)
    assert (done.exit_code, "one of them" in done.stderr) == (2, True)


def test_categories_without_a_threshold_keep_the_usual_one(weights, data):
    predictor = otus.load(weights, device="cpu")
    image = data.parent / "1.png"
    everything = predictor.predict(image, score_threshold=0.06)[0].instances
    found = predictor.predict(image, score_threshold={"dog": 0.06})[0].instances
    expected = (everything.labels == 1) | (everything.scores > SCORE_THRESHOLD)
    assert 0 < expected.sum() < len(expected)
    np.testing.assert_array_equal(found.boxes_xyxy, everything.boxes_xyxy[expected])
    with pytest.raises(UsageError, match="does not know cow"):
        predictor.predict(image, score_threshold={"cow": 0.3})
    with pytest.raises(UsageError, match="0 to 1, got 3"):
        predictor.predict(image, score_threshold={"dog": 3.0})


def test_an_unreadable_image_is_named_or_left_out_of_a_models_evaluation(weights, data):
    file = data.parent / "0.png"
    file.write_bytes(file.read_bytes()[:2000])
    done = run("evaluate", "--data", data, "--model", weights)
    assert (done.exit_code, "0.png" in done.stderr) == (1, True)
    document = json.loads(run("evaluate", "--data", data, "--model", weights, "--skip-bad", "--json").stdout)
    assert document["skipped"] == {"unreadable_image": 1}
    assert document["images"] == 1
    readable = open_dataset(data).select([1])
    expected = otus.evaluate(readable, model=weights, device="cpu").results["bbox"].figures["AP"]
    assert document["bbox"]["AP"] == expected > 0


def test_categories_without_correct_detections_have_no_threshold(data):
    dataset = open_dataset(data)
    nothing = Objects.build(image_index=[], labels=[], boxes_xyxy=[], scores=np.zeros(0))
    chosen = choose_thresholds(compare_with_labels(dataset, nothing), data="here")
    assert chosen.thresholds == {}
    assert chosen.document()["without"] == ["cat", "dog"]


@pytest.mark.parametrize(("score", "expected"), [(0.0, None), (1.0, 0.5), (5.3, "got 5.3"), (-2.0, "got -2")])
def test_only_thresholds_that_predict_takes_are_chosen(data, score, expected, tmp_path):
    dataset = open_dataset(data)
    found = replace(dataset.objects, scores=np.full(len(dataset.objects), score))
    matcher = compare_with_labels(dataset, found)
    if isinstance(expected, str):
        with pytest.raises(UsageError, match=expected):
            choose_thresholds(matcher, data="here")
        return
    chosen = choose_thresholds(matcher, data="here")
    written = read_thresholds(chosen.write(tmp_path / "t.json"))
    assert written == ({} if expected is None else {"cat": expected, "dog": expected})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "is not JSON"),
        ("[]", "thresholds: expected an object"),
        ('{"thresholds": {"cat": "high"}}', "thresholds.cat: expected 0 to 1, got 'high'"),
        ('{"thresholds": {"cat": 1.5}}', "thresholds.cat: expected 0 to 1, got 1.5"),
    ],
)
def test_broken_files_are_named(text, words, tmp_path):
    path = tmp_path / "broken.json"
    path.write_text(text)
    with pytest.raises(DataError, match=r"broken\.json") as caught:
        read_thresholds(path)
    assert words in str(caught.value)
    with pytest.raises(DataError, match="no such file"):
        read_thresholds(tmp_path / "nowhere.json")


def test_other_files_are_no_checkpoints(data, tmp_path):
    dataset = open_dataset(data)
    nothing = Objects.build(image_index=[], labels=[], boxes_xyxy=[], scores=np.zeros(0))
    chosen = choose_thresholds(compare_with_labels(dataset, nothing), data="here")
    (tmp_path / "text.safetensors").write_text("text")
    with pytest.raises(CheckpointError, match="text"):
        chosen.write_into(tmp_path / "text.safetensors")
    assert (tmp_path / "text.safetensors").read_text() == "text"
    with pytest.raises(CheckpointError, match="--out"):
        chosen.write_into(tmp_path / "nowhere.safetensors")


def test_options_that_belong_together(data, tmp_path, monkeypatch):
    monkeypatch.setattr("otus.reports.analysis.THEMES", ("dark",))
    (tmp_path / "none.json").write_text("[]")
    done = run("evaluate", "--data", data, "--predictions", tmp_path / "none.json", "--out", tmp_path / "x.json")
    assert (done.exit_code, "--choose-thresholds" in done.stderr) == (2, True)
    done = run(
        "evaluate", "--data", data, "--predictions", tmp_path / "none.json", "--plots", tmp_path / "plots", "--json"
    )
    assert done.exit_code == 0, done.stderr
    written = json.loads(done.stdout)["plots"]
    assert {Path(one).suffix for one in written} == {".png", ".svg"}
    assert all(Path(one).is_file() for one in written)
