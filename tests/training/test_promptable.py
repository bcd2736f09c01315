"""Train a promptable model by name, validate it by clicks, evaluate it and predict with it."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

import otus
from otus.cli import app
from otus.data.scenes.files import write_scenes
from otus.errors import DataError, UsageError
from otus.parts.backbones import efficientnet_lite0_backbone
from otus.parts.preprocess import Preprocess
from otus.parts.tasks import OBJECT, PROMPTABLE
from otus.promptable.backbone_encoder import BackboneEncoder
from otus.promptable.sam import with_encoder
from otus.structures import Prompt
from otus.training.settings import TrainSettings
from otus.zoo.checkpoint import CheckpointHeader, save_checkpoint
from otus.zoo.models import MODELS, ModelEntry
from tiny_run import interrupt_at


def tiny_sam(categories):
    backbone = efficientnet_lite0_backbone(levels=(2, 3, 4, 5))
    return with_encoder(
        BackboneEncoder(backbone, image_size=64, pyramid_channels=8, out_channels=16), categories, ffn_dim=16
    )


@pytest.fixture
def scenes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    preprocess = Preprocess(shorter_side=64, longer_side=64)
    monkeypatch.setitem(MODELS, "tiny_sam", ModelEntry(tiny_sam, PROMPTABLE, "none", preprocess))
    write_scenes("scenes", 6, size_hw=(48, 64), seed=1)
    return Path("scenes/annotations.json")


def test_train_validate_evaluate_and_predict(scenes):
    data = otus.open_dataset(scenes)
    settings = TrainSettings(epochs=1, batch_size=2, workers=0)
    run = otus.train("tiny_sam", data, val=0.34, settings=settings, quiet=True)
    assert run.folder.parent.name == "promptable"
    assert "interactive/IoU@1" in (run.folder / "metrics.csv").read_text()
    report = otus.evaluate(data, model=run.best, protocol="interactive")
    assert 0 <= report.results["interactive"].figures["IoU@1"] <= 1
    predictor = otus.load(run.best)
    assert predictor.categories.names == ("object",)
    method = predictor.system.promptable_method(predictor.preprocess)
    candidates = method.segment(method.embed(data.image(0)), Prompt([[20, 20]], [1]))
    assert len(candidates.scores) == 3
    assert candidates.masks.size_hw == (48, 64)


def test_data_without_masks_are_an_error(scenes):
    data = otus.open_dataset(scenes)
    bare = replace(data, objects=replace(data.objects, segmentations=None))
    with pytest.raises(DataError, match="masks"):
        otus.train("tiny_sam", bare, quiet=True)


def test_a_detector_takes_no_prompts(scenes):
    predictor = otus.load("fcos_efficientnet_lite0_fpn")
    with pytest.raises(UsageError, match="takes no prompts"):
        predictor.system.promptable_method(predictor.preprocess)


def test_a_frozen_encoder_is_not_trained_when_resumed_either(scenes, monkeypatch):
    options = ["--epochs", 3, "--batch-size", 4, "--workers", 0, "--device", "cpu", "--frozen-encoder"]
    save_checkpoint("tiny.safetensors", tiny_sam(OBJECT).state_dict(), CheckpointHeader("tiny_sam", categories=OBJECT))
    command = ["train", "--weights", "tiny.safetensors", "--data", scenes, "--out", "runs", *options]
    with monkeypatch.context() as patch:
        interrupt_at(patch, 3)
        assert CliRunner().invoke(app, [str(part) for part in command]).exit_code == 130
    initial = otus.load("runs/promptable/tiny_sam").system.state_dict()
    resumed = CliRunner().invoke(app, ["train", "--resume", "runs/promptable/tiny_sam"])
    assert resumed.exit_code == 0, resumed.stderr
    config = json.loads(Path("runs/promptable/tiny_sam/config.json").read_text())
    assert config["frozen_encoder"] is True
    assert config["augment"] == "None"
    final = otus.load("runs/promptable/tiny_sam").system.state_dict()
    trained = {name.split(".")[0] for name, tensor in final.items() if not tensor.equal(initial[name])}
    assert "mask_decoder" in trained
    assert "image_encoder" not in trained


def test_only_promptable_models_have_an_encoder_to_freeze(scenes):
    with pytest.raises(UsageError, match="only promptable models have an image encoder"):
        otus.train("fcos_efficientnet_lite0_fpn", scenes, settings=TrainSettings(frozen_encoder=True), quiet=True)


def test_a_frozen_encoder_needs_weights(scenes):
    with pytest.raises(UsageError, match="frozen_encoder: random weights would stay as they are"):
        otus.train("tiny_sam", scenes, settings=TrainSettings(frozen_encoder=True), quiet=True)


def test_images_have_the_size_that_the_model_takes(scenes, monkeypatch):
    with pytest.raises(UsageError, match="image_size: this model takes images of 64 pixels only, got 96"):
        otus.train("tiny_sam", scenes, image_size=96, quiet=True)
    with pytest.raises(UsageError, match="scales: this model takes images of 64 pixels only"):
        otus.train("tiny_sam", scenes, settings=TrainSettings(scales=(0.5, 1.0)), quiet=True)
    with pytest.raises(UsageError, match="image_size: expected a multiple of 32, at least 64, got 100"):
        otus.train("sam_efficientnet_lite0", scenes, image_size=100, quiet=True)
    monkeypatch.setattr("otus.training.run.size_for_labels", lambda *_: pytest.fail("small objects enlarge the images"))
    settings = TrainSettings(epochs=1, batch_size=4, workers=0)
    run = otus.train("sam_efficientnet_lite0", scenes, image_size=96, settings=settings, quiet=True)
    assert otus.load(run.best).system.image_size == 96
