"""Train the systems of the lineage: proposals from the cache, and classifiers on folders and crops."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from typer.testing import CliRunner

import otus
from otus.classification.classifier import ImageClassifier
from otus.cli import app
from otus.data.dataset import Dataset
from otus.data.tensors import to_tensors
from otus.detection.region_based.fast_rcnn import fast_rcnn
from otus.detection.region_based.region_detector import RegionDetector
from otus.errors import DataError, ShapeError
from otus.parts.backbones import LayeredBackbone
from otus.parts.inference_mode import inference_mode
from otus.parts.preprocess import Preprocess
from otus.parts.regions.crops import WarpedCrops
from otus.parts.regions.roi_features import RoIFeatures, RoIPooler
from otus.parts.system import BaseSystem
from otus.parts.tasks import CLASSIFICATION, DETECTION
from otus.proposals.cache import ProposedDataset
from otus.proposals.proposers import PrecomputedProposals, with_proposals
from otus.proposals.selective_search import SelectiveSearch
from otus.structures import Categories
from otus.training.run import train
from otus.training.settings import TrainSettings
from otus.zoo.models import MODELS, ModelEntry

PREPROCESS = Preprocess(shorter_side=48, longer_side=64)
QUICK = TrainSettings(epochs=1, batch_size=4, device="cpu", workers=1)


def backbone() -> LayeredBackbone:
    layers = {
        "c1": nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ReLU()),
        "c2": nn.Sequential(nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.ReLU()),
    }
    return LayeredBackbone(layers, levels=(2,))


def tiny_detector(categories: Categories) -> RegionDetector:
    one = backbone()
    maps = RoIFeatures(one, RoIPooler(4, strides=one.strides, method="pool"))
    return fast_rcnn(maps, categories, proposer=PrecomputedProposals(50), representation_size=16)


def tiny_classifier(categories: Categories, *, side: int = 24) -> ImageClassifier:
    crops = WarpedCrops(backbone(), crop_size=side)
    network = nn.Sequential(nn.Flatten(), nn.Linear(crops.out_features, 16), nn.ReLU())
    return ImageClassifier(crops, network, in_features=16, categories=categories)


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OTUS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(MODELS, "tiny_fast_rcnn", ModelEntry(tiny_detector, DETECTION, "none", PREPROCESS))
    monkeypatch.setitem(MODELS, "tiny_classifier", ModelEntry(tiny_classifier, CLASSIFICATION, "none", PREPROCESS))


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """Write twelve bright and twelve dark training images, and four of each for validation."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 12), ("val", 4)):
        for name, level in (("bright", 200), ("dark", 40)):
            folder = tmp_path / "folders" / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = np.clip(rng.normal(level, 25, (30 + i, 40, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.png")
    return tmp_path / "folders"


def test_proposals_are_found_once_and_travel_with_the_images(scenes: Dataset, tmp_path: Path) -> None:
    system = tiny_detector(scenes.categories)
    counts = []
    proposed = with_proposals(scenes, system, workers=1, report=lambda done, total: counts.append((done, total)))
    assert counts[-1] == (12, 12)
    files = sorted((tmp_path / "cache" / "proposals").rglob("*.npz"))
    assert len(files) == 12
    assert isinstance(proposed, ProposedDataset)
    assert with_proposals(proposed, system) is proposed
    sample = PREPROCESS.sample(to_tensors(proposed[0]))
    searched = SelectiveSearch()(scenes.image(0)).boxes_xyxy[:50]
    scale = np.array(sample["image"].shape[:0:-1]) / np.array(scenes.image(0).shape[1::-1])
    np.testing.assert_allclose(sample["proposals"], searched * np.tile(scale, 2), rtol=1e-5)
    assert with_proposals(scenes, BaseSystem()) is scenes


def test_a_detector_of_proposals_is_trained_evaluated_and_asked(scenes: Dataset, tmp_path: Path) -> None:
    run = train("tiny_fast_rcnn", scenes, val=0.25, settings=QUICK, out=tmp_path, quiet=True)
    assert run.result.ended == "done"
    assert "bbox/AP50" in run.result.history[-1]
    predictor = otus.load(run.best, device="cpu")
    report = otus.evaluate(scenes, model=predictor)
    assert report.results["bbox"].figures.keys() >= {"AP", "AP50"}
    assert len(list((tmp_path / "cache" / "proposals").rglob("*.npz"))) == 12
    (found,) = predictor.predict(scenes.image(0), score_threshold=0.0)  # Selective Search on the spot
    assert len(found.instances) > 0


def test_a_data_set_without_a_positive_region_teaches_background(scenes: Dataset, tmp_path: Path) -> None:
    assert scenes.objects is not None
    points = scenes.objects.boxes_xyxy.copy()
    points[:, 2:] = points[:, :2]
    none = replace(scenes, objects=replace(scenes.objects, boxes_xyxy=points, segmentations=None))
    run = train("tiny_fast_rcnn", none, settings=QUICK, out=tmp_path, quiet=True)
    assert run.result.history[-1]["loss/box"] == 0
    assert run.result.history[-1]["loss/class"] > 0


def test_a_classifier_learns_folders(folders: Path, tmp_path: Path) -> None:
    arguments = [
        "--model",
        "tiny_classifier",
        "--data",
        folders,
        "--split",
        "train",
        "--val-split",
        "val",
        "--lr",
        0.01,
    ]
    arguments += ["--epochs", 6, "--batch-size", 4, "--device", "cpu", "--workers", 1, "--out", tmp_path / "runs"]
    result = CliRunner().invoke(app, ["train", *map(str, arguments)])
    assert result.exit_code == 0, result.stderr
    assert "top-1 accuracy 1.000" in result.stdout
    weights = tmp_path / "runs" / "classification" / "tiny_classifier" / "weights" / "best.safetensors"
    photo = folders / "val" / "dark" / "1.png"
    out = tmp_path / "predicted"
    result = CliRunner().invoke(app, ["predict", str(photo), "--model", str(weights), "--json", "--out", str(out)])
    assert result.exit_code == 0, result.stderr
    (image,) = json.loads(result.stdout)["images"]
    assert [one["category"] for one in image["classification"]] == ["dark", "bright"]
    assert sum(one["score"] for one in image["classification"]) == pytest.approx(1, abs=1e-5)
    assert "instances" not in image
    assert json.loads((out / "predictions.json").read_text())[0]["category_id"] == 1
    result = CliRunner().invoke(app, ["predict", str(photo), "--model", str(weights), "--out", str(out)])
    assert "dark 1.00, bright 0.00" in result.stdout


def test_a_classifier_learns_the_objects_of_a_detection_set(scenes: Dataset, tmp_path: Path) -> None:
    run = train("tiny_classifier", scenes, val=scenes, settings=QUICK, out=tmp_path, quiet=True)
    row = run.result.history[-1]
    assert row["score"] == row["classification/top1"]
    assert scenes.objects is not None
    system = tiny_classifier(scenes.categories)
    with inference_mode(system) as inference_system:
        record = inference_system.training_stages([PREPROCESS.sample(to_tensors(sample)) for sample in scenes])
    assert record.labels is not None
    np.testing.assert_array_equal(torch.cat(record.labels), scenes.objects.labels)
    whole = system.stages([PREPROCESS.sample(to_tensors(scenes[0]))])
    assert whole.crops[0].tolist() == [[0, 0, *whole.batch.images.shape[:1:-1]]]


def test_classifiers_bear_odd_sizes_and_nothing_to_learn() -> None:
    torch.manual_seed(0)
    system = tiny_classifier(Categories(("bright", "dark")))
    for size_hw in ((1, 1), (1, 300), (33, 7)):
        (shown,) = system.predict([{"image": torch.rand(3, *size_hw)}])
        assert shown.scores.sum() == pytest.approx(1)
    together = system.predict([{"image": torch.ones(3, 8, 8)}, {"image": torch.ones(3, 20, 30)}])
    np.testing.assert_allclose(together[0].scores, together[1].scores, atol=1e-5)
    empty = {"image": torch.rand(3, 9, 9), "boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    loss = system.losses([empty])["class"]
    assert float(loss.detach()) == 0
    loss.backward()
    assert all(one.grad is not None for one in system.parameters())
    with pytest.raises(ShapeError, match="expected boxes and labels to learn from, got"):
        system.losses([{"image": torch.rand(3, 9, 9)}])
    with pytest.raises(ShapeError, match=r"expected a label 0\.\.1, got 2"):
        system.losses([{"image": torch.rand(3, 9, 9), "label": torch.tensor(2)}])


def test_images_of_categories_teach_no_detector(folders: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no objects to train on"):
        train("tiny_fast_rcnn", folders, split="train", settings=QUICK, out=tmp_path, quiet=True)
    unknown = otus.open_dataset(folders, split="val")
    other = replace(unknown, categories=Categories(("bright", "night")))
    with pytest.raises(DataError, match="has images of night, expected only"):
        train("tiny_classifier", folders, split="train", val=other, settings=QUICK, out=tmp_path, quiet=True)
