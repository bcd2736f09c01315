"""Train semantic segmenters: loss and class weights, in the run's files, when resuming and repeating."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import otus
from otus.cli import app
from otus.errors import UsageError
from otus.parts.preprocess import Preprocess
from otus.parts.semantic_losses import cross_entropy, dice
from otus.parts.tasks import SEMANTIC
from otus.semantic.full_resolution import full_resolution
from otus.structures import IGNORE, Categories
from otus.training.progress import TrainProgress
from otus.training.run import repeat_run
from otus.training.semantic_loss import pixel_counts, set_criterion
from otus.training.settings import TrainSettings, make_settings
from otus.zoo.checkpoint import load_checkpoint
from otus.zoo.models import MODELS, ModelEntry
from tiny_run import TinyDetector, interrupt_at

QUIET = TrainProgress(quiet=True)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Register a tiny segmenter in the zoo."""
    entry = ModelEntry(lambda categories: full_resolution(categories, widths=(4, 4)), SEMANTIC, "none", Preprocess())
    monkeypatch.setitem(MODELS, "tiny_segmenter", entry)


@pytest.fixture(scope="module")
def halves(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight images, dark on the left and bright on the right, with a rare third category and ignored pixels."""
    folder, rng = tmp_path_factory.mktemp("halves"), np.random.default_rng(0)
    (folder / "images").mkdir()
    (folder / "masks").mkdir()
    (folder / "classes.txt").write_text("dark\nbright\nrare\n")
    for number in range(8):
        labels = np.zeros((16, 24), np.uint8)
        labels[:, 4 + number :] = 1
        labels[0, :2] = 2 if number == 0 else 0
        labels[-1] = IGNORE
        image = np.array([40, 200, 120, 0])[labels % 252][..., None] + rng.integers(0, 30, (16, 24, 3))
        Image.fromarray(image.astype(np.uint8)).save(folder / "images" / f"{number}.png")
        Image.fromarray(labels).save(folder / "masks" / f"{number}.png")
    return folder


def otus_train(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["train", "--device", "cpu", "--workers", "1", *map(str, arguments)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stderr


def test_loss_and_class_weights_are_recorded_resumed_and_repeated(tiny, halves, tmp_path, monkeypatch):
    start = ["--model", "tiny_segmenter", "--data", halves, "--val", 0.25, "--epochs", 2, "--batch-size", 3]
    start += ["--loss", "cross-entropy", "--loss", "dice", "--class-weights", "median-frequency"]
    code, output = otus_train(*start, "--out", tmp_path / "whole")
    assert code == 0, output
    assert "class weights: dark " in output
    with monkeypatch.context() as patch:
        interrupt_at(patch, 3)
        assert otus_train(*start, "--out", tmp_path / "parts")[0] == 130
    whole, parts = (tmp_path / one / "semantic" / "tiny_segmenter" for one in ("whole", "parts"))
    code, output = otus_train("--resume", parts, "--loss", "cross-entropy")
    assert code == 2
    assert "loss: was ['cross-entropy', 'dice'], is ['cross-entropy']" in output
    assert otus_train("--resume", parts)[0] == 0
    (expected, header), (found, _) = (load_checkpoint(one / "weights" / "last.safetensors") for one in (whole, parts))
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    for settings in (json.loads((whole / "config.json").read_text()), header.training["settings"]):
        assert settings["loss"] == ["cross-entropy", "dice"]
        assert settings["class_weights"] == "median-frequency"
    again = repeat_run(whole, out=tmp_path / "again", quiet=True)
    repeated = load_checkpoint(again.last)[0]
    assert all(torch.equal(repeated[name], expected[name]) for name in expected)


def test_the_criterion_is_the_sum_of_the_losses_with_weights_of_the_training_pixels(halves):
    dataset = otus.open_dataset(halves)
    labels = np.stack([sample.semantic.labels for sample in dataset])
    pixels, image_pixels = pixel_counts(dataset)
    assert pixels.tolist() == [int((labels == label).sum()) for label in range(3)]
    of_images = (labels != IGNORE).sum(axis=(1, 2))
    assert image_pixels.tolist() == [int(of_images[(labels == label).any(axis=(1, 2))].sum()) for label in range(3)]
    frequencies = pixels / image_pixels
    system = full_resolution(dataset.semantic.categories, widths=(4,))
    settings = make_settings({"loss": ["dice", "cross-entropy"], "class_weights": "median-frequency"})
    set_criterion(system, settings, dataset, QUIET)
    logits, target = torch.randn(2, 3, 4, 5), torch.randint(0, 3, (2, 4, 5))
    weights = torch.tensor(np.median(frequencies) / frequencies, dtype=torch.float32)
    expected = dice(logits, target) + cross_entropy(logits, target, weights=weights)
    torch.testing.assert_close(system.criterion(logits, target), expected)
    assert weights[2] > 5 * weights[0]


@pytest.mark.parametrize("name", ["cross-entropy", "focal", "dice", "lovasz", "ohem"])
def test_every_loss_teaches(name, halves):
    dataset = otus.open_dataset(halves)
    torch.manual_seed(0)
    system = full_resolution(dataset.semantic.categories, widths=(4,)).train()
    set_criterion(system, TrainSettings(loss=(name,)), dataset, QUIET)
    samples = [Preprocess().prepare(sample) for sample in dataset]
    optimizer = torch.optim.Adam(system.parameters(), lr=0.03)
    losses = []
    for _ in range(20):
        loss = system.losses(samples)["class"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0]


def test_invalid_losses_are_errors(tiny, halves):
    dataset = otus.open_dataset(halves)
    detector = TinyDetector(Categories(("owl",)))
    with pytest.raises(UsageError, match=r"loss: only for semantic segmentation; TinyDetector \(detection\) has"):
        set_criterion(detector, TrainSettings(loss=("dice",)), dataset, QUIET)
    with pytest.raises(UsageError, match="class_weights: only for semantic segmentation"):
        set_criterion(detector, TrainSettings(class_weights="median-frequency"), dataset, QUIET)
    with pytest.raises(UsageError, match="apply to cross-entropy only, but loss is focal"):
        TrainSettings(loss=("focal",), class_weights="median-frequency")
    code, output = otus_train("--model", "tiny_segmenter", "--data", halves, "--loss", "tversky")
    assert code == 2
    assert "'lovasz'" in output
    assert "'tversky'" in output
    with pytest.raises(UsageError, match="expected different losses"):
        TrainSettings(loss=("dice", "dice"))
