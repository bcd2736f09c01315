"""Explanations from regression to Fast R-CNN: what they say is what predict answers, and what an image costs."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from otus.cli import app
from otus.data.image_writing import write_image
from otus.data.scenes.files import write_scenes
from otus.data.scenes.generator import THING_CATEGORIES, Scenes
from otus.detection.region_based.fast_rcnn import fast_rcnn
from otus.detection.region_based.rcnn import rcnn
from otus.detection.region_based.sliding_window import sliding_window
from otus.detection.regression import SingleObjectDetector
from otus.inference.predictor import Predictor
from otus.parts.backbones import LayeredBackbone
from otus.parts.preprocess import Preprocess
from otus.parts.regions.crops import WarpedCrops
from otus.parts.regions.roi_features import RoIFeatures, RoIPooler
from otus.parts.tasks import DETECTION
from otus.proposals.interface import Proposals
from otus.proposals.proposers import PrecomputedProposals, SlidingWindowProposer
from otus.proposals.windows import sliding_windows
from otus.reports.explain.detection import explain_detection
from otus.reports.explain.regression import explain_regression
from otus.zoo.checkpoint import CheckpointHeader, save_checkpoint
from otus.zoo.models import MODELS, ModelEntry

SCENE = Scenes(1, size_hw=(90, 120), seed=3)[0]
PREPROCESS = Preprocess(shorter_side=60, longer_side=80)


def backbone() -> LayeredBackbone:
    layers = {
        "c1": nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ReLU()),
        "c2": nn.Sequential(nn.Conv2d(8, 8, 3, stride=2, padding=1), nn.ReLU()),
    }
    return LayeredBackbone(layers, levels=(2,))


class Windows:
    """Stands for a search."""

    parameters = {"method": "selective-search"}  # noqa: RUF012

    def __call__(self, image: np.ndarray) -> Proposals:
        boxes = sliding_windows(image.shape[:2], scales=(0.6, 0.4), stride=0.5)
        boxes[:, :2] += 5  # which tells how large the image was that it saw
        return Proposals(boxes, np.linspace(1, 0, len(boxes)))


def predictor_of(kind: str) -> Predictor:
    torch.manual_seed(0)
    given = PrecomputedProposals(30, search=Windows())
    crops = WarpedCrops(backbone(), crop_size=16, context=2)
    one = backbone()
    shared = RoIFeatures(one, RoIPooler(4, strides=one.strides, method="pool"))
    system = {
        "regression": lambda: SingleObjectDetector(backbone(), THING_CATEGORIES, representation_size=16),
        "sliding_window": lambda: sliding_window(
            crops, THING_CATEGORIES, proposer=SlidingWindowProposer(), representation_size=16
        ),
        "rcnn": lambda: rcnn(crops, THING_CATEGORIES, proposer=given, representation_size=16),
        "fast_rcnn": lambda: fast_rcnn(shared, THING_CATEGORIES, proposer=given, representation_size=16),
    }[kind]()
    head = system if kind == "regression" else system.box_head
    nn.init.normal_(head.cls_score.weight, std=2.0)
    if kind != "regression":
        nn.init.constant_(head.cls_score.bias[:1], -100.0)  # it never says background
    return Predictor(system, preprocess=PREPROCESS, name=kind, device="cpu")


@pytest.mark.parametrize("kind", ["sliding_window", "rcnn", "fast_rcnn"])
def test_regions_are_explained_and_crops_are_counted(kind):
    predictor = predictor_of(kind)
    stages = explain_detection(predictor, SCENE.image, name="a.jpg", score_threshold=0.1)
    document = json.loads(json.dumps(stages.document()))
    (found,) = predictor.predict(SCENE.image, score_threshold=0.1)
    assert [one["score"] for one in document["detections"]] == pytest.approx(found.instances.scores.tolist())
    assert len(found.instances) > 0
    count = len(document["proposals"])
    if kind != "sliding_window":  # they are of the image as it came, as in training
        expected = Windows()(SCENE.image).best(30).boxes_xyxy
        np.testing.assert_allclose([one["box_xyxy"] for one in document["proposals"]], expected, atol=1e-4)
    assert [one["rank"] for one in document["proposals"]] == list(range(1, count + 1))  # nobody learned a score
    page = stages.page().html()
    if kind == "fast_rcnn":
        assert document["crops"] is None
        assert "pooled from the feature maps, classified and refined by box regression." in page
        assert "selective search" in page
        return
    side = predictor.system.region_features.crop_size
    assert document["crops"] == {"count": count, "side": side, "context": 2}
    assert f"This image needs {count} crops" in page
    assert count == (len(sliding_windows((60, 80))) if kind == "sliding_window" else 30)
    assert page.count("crop of proposal") >= 1
    assert ("every window" in page) == (kind == "sliding_window")
    assert "Feature maps" not in page


def test_regression_is_shown_to_miss_what_is_more_than_one():
    predictor = predictor_of("regression")
    stages = explain_regression(
        predictor, SCENE.image, name="photos/a.jpg", score_threshold=0.0, ground_truth=SCENE.instances
    )
    document = json.loads(json.dumps(stages.document()))
    (found,) = predictor.predict(SCENE.image, score_threshold=0.0)
    assert len(document["detections"]) == 1
    assert document["detections"][0]["box_xyxy"] == pytest.approx(found.instances.boxes_xyxy[0].tolist())
    assert sum(one["score"] for one in document["scores"]) == pytest.approx(1, abs=1e-5)
    assert len(document["objects"]) == len(SCENE.instances) > 1
    missed = sum(not one["found"] for one in document["objects"])
    assert missed >= len(SCENE.instances) - 1
    page = stages.page().html()
    assert f"Objects in the ground truth: {len(SCENE.instances)}; missed by this one box: {missed}." in page
    assert len(document["parts"]) == 4
    for part in document["parts"]:
        x1, y1, x2, y2 = (int(value) for value in part["part_xyxy"])
        (alone,) = predictor.predict(np.ascontiguousarray(SCENE.image[y1:y2, x1:x2]), score_threshold=0.0)
        expected = alone.instances.boxes_xyxy[0] + np.array([x1, y1, x1, y1])
        assert part["detections"][0]["box_xyxy"] == pytest.approx(expected.tolist())


def saved(kind: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The command that explains an image with a model of that kind."""
    entry = ModelEntry(lambda categories: predictor_of(kind).system, DETECTION, "none", PREPROCESS)
    monkeypatch.setitem(MODELS, f"tiny_{kind}", entry)
    weights, image = folder / "tiny.safetensors", folder / "a.png"
    header = CheckpointHeader(builder=f"tiny_{kind}", categories=THING_CATEGORIES, preprocess=PREPROCESS.to_dict())
    save_checkpoint(weights, predictor_of(kind).system.state_dict(), header)
    write_image(image, SCENE.image)
    command = ["explain", "detection", image, "--model", weights, "--precision", "exact", "--device", "cpu"]
    return [*map(str, command), "--out", str(folder / "page.html"), "--json"]


def test_the_command_explains_regression(tmp_path, monkeypatch):
    result = CliRunner().invoke(app, saved("regression", tmp_path, monkeypatch))
    assert result.exit_code == 0, result.stderr
    words = CliRunner().invoke(app, [*saved("regression", tmp_path, monkeypatch)[:-1], "--score-threshold", "1"])
    assert "nothing scores above 1: try a lower --score-threshold" in words.stdout
    assert json.loads(result.stdout)["numbers"] == {"vector": 16, "scores": len(THING_CATEGORIES), "box": 4}
    assert (tmp_path / "page.html").is_file()


def test_labels_are_refused_where_they_would_not_be_drawn(tmp_path, monkeypatch):
    write_scenes(tmp_path / "data", 1, size_hw=(60, 80))
    command = saved("fast_rcnn", tmp_path, monkeypatch)
    command[2] = str(next((tmp_path / "data").rglob("000000.jpg")))
    result = CliRunner().invoke(app, [*command, "--data", str(tmp_path / "data")])
    assert result.exit_code == 2, result.stderr
    assert "--data" in result.stderr
    assert not (tmp_path / "page.html").exists()


@pytest.mark.parametrize("size_hw", [(1, 1), (3, 200)])
def test_small_images_are_not_cut(size_hw):
    stages = explain_regression(predictor_of("regression"), np.zeros((*size_hw, 3), np.uint8), name="dot")
    assert len(stages.document()["parts"]) == 1
    stages.page().html()
