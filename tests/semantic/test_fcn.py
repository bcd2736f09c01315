"""Semantic segmentation as a task: learned, validated, predicted, judged and compared by verbs that know nothing of it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from typer.testing import CliRunner

import otus
from otus.cli import app
from otus.data.dataset import Dataset
from otus.data.sample import Sample
from otus.data.tensors import to_tensors
from otus.data.transforms.augmentation import HorizontalFlip
from otus.errors import ShapeError
from otus.parts.backbones import LayeredBackbone
from otus.parts.preprocess import Preprocess
from otus.parts.tasks import SEMANTIC
from otus.semantic.fcn import fcn
from otus.semantic.segmenter import Segmenter
from otus.structures import IGNORE, Categories, Masks, SemanticMap
from otus.training.run import train
from otus.training.settings import TrainSettings
from otus.zoo.models import MODELS, ModelEntry

CATEGORIES = Categories(("left", "right"))
PREPROCESS = Preprocess(shorter_side=32, longer_side=48)


def tiny_fcn(categories: Categories) -> Segmenter:
    def block(inputs: int, outputs: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride=2, padding=1), nn.GroupNorm(4, outputs), nn.ReLU())

    layers = {"c1": block(3, 8), "c2": block(8, 16), "c3": block(16, 16)}
    return fcn(LayeredBackbone(layers, levels=(1, 2, 3)), categories)


def halves(height: int = 21, width: int = 34) -> Sample:
    """Dark on the left, bright on the right; the top row is of no category."""
    labels = np.zeros((height, width), dtype=np.int64)
    labels[:, width // 2 :] = 1
    image = np.repeat((labels * 200 + 20).astype(np.uint8)[..., None], 3, axis=2)
    labels[0] = IGNORE
    return Sample(image, f"{height}x{width}", semantic=SemanticMap(labels, CATEGORIES))


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODELS, "tiny_fcn", ModelEntry(tiny_fcn, SEMANTIC, "", PREPROCESS, learning_rate=1e-2))


def test_a_small_set_is_learned_and_maps_have_the_size_of_their_image() -> None:
    torch.manual_seed(0)
    system = tiny_fcn(CATEGORIES).train()
    samples = [PREPROCESS.prepare(halves()), PREPROCESS.prepare(halves(40, 20))]
    optimizer = torch.optim.AdamW(system.parameters(), lr=0.02)
    first = float(system.losses(samples)["class"].detach())
    assert first == pytest.approx(np.log(2), abs=1e-5)  # all categories alike at first
    for _ in range(40):
        loss = system.losses(samples)["class"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    results = system.predict(samples)
    assert [one.size_hw for one in results] == [tuple(sample["image"].shape[1:]) for sample in samples]
    for result, sample in zip(results, (halves(), halves(40, 20)), strict=True):
        found = PREPROCESS.undo(result, sample.size_hw)
        assert sample.semantic is not None
        known = sample.semantic.labels != IGNORE
        assert found.size_hw == sample.size_hw
        assert (found.labels == sample.semantic.labels)[known].mean() > 0.93


def test_pixels_to_be_ignored_and_padding_teach_nothing() -> None:
    system = tiny_fcn(CATEGORIES).train()
    nn.init.normal_(system.decoder.classifiers[0].weight, generator=torch.Generator().manual_seed(0))
    sample, other = PREPROCESS.prepare(halves()), PREPROCESS.prepare(halves(40, 20))
    record = system.training_stages([sample, other])
    assert record.target is not None
    for target, one in zip(record.target, (sample, other), strict=True):
        height, width = one["image"].shape[1:]
        assert (target[height:] == IGNORE).all()
        assert (target[:, width:] == IGNORE).all()
        assert torch.equal(target[:height, :width], one["semantic"].as_subclass(torch.Tensor))
    known = record.target != IGNORE
    expected = nn.functional.cross_entropy(record.logits.permute(0, 2, 3, 1)[known], record.target[known])
    torch.testing.assert_close(record.losses["class"], expected)
    nothing = halves()
    nothing = Sample(nothing.image, "nothing", semantic=SemanticMap(np.full((21, 34), IGNORE), CATEGORIES))
    loss = system.losses([PREPROCESS.prepare(nothing)])["class"]
    assert float(loss.detach()) == 0
    loss.backward()
    with pytest.raises(ShapeError, match="expected a semantic map to train on"):
        system.losses([{"image": sample["image"], "key": "bare"}])


def test_maps_move_with_their_image() -> None:
    sample = to_tensors(halves())
    flipped = HorizontalFlip(1.0)(sample, generator=torch.Generator())
    dark = flipped["image"].mean(dim=0)[1:] < 0.5
    assert torch.equal(flipped["semantic"][1:] == 0, dark)
    prepared = Preprocess(fixed_hw=(42, 68), mean=(0.0,) * 3, std=(1.0,) * 3).sample(flipped)
    assert torch.equal(prepared["semantic"][2:] == 0, prepared["image"].mean(dim=0)[2:] < 0.5)


def run(*arguments: object) -> str:
    done = CliRunner().invoke(app, [*map(str, arguments)], catch_exceptions=False)
    assert done.exit_code == 0, done.stderr
    return done.stdout


@pytest.mark.usefixtures("tiny")
def test_twenty_images_through_every_verb(shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = shared_data / "camvid"
    whole = otus.open_dataset(data, split="train")
    some = whole.select(range(0, len(whole), len(whole) // 20)[:20])
    monkeypatch.setattr("otus.training.datasets.open_dataset", lambda *_, **__: some)
    monkeypatch.setattr("otus.evaluation.evaluate.open_dataset", lambda *_, **__: some)
    monkeypatch.setattr("otus.experiments.compare.open_dataset", lambda *_, **__: some)
    options = ["--epochs", 8, "--batch-size", 4, "--image-size", 48, "--val", 0.2, "--seed", 1]
    run("train", "--model", "tiny_fcn", "--data", data, "--split", "train", *options, "--out", tmp_path)
    (folder,) = (tmp_path / "semantic").iterdir()
    assert {"batch.jpg", "validation.jpg", "curves.png"} <= {file.name for file in folder.iterdir()}
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["score"] == rows[-1]["semantic/mIoU"] > rows[0]["semantic/mIoU"] >= 0
    assert rows[-1]["semantic/aAcc"] > 0.4

    weights = folder / "weights" / "best.safetensors"
    photo = some.images.path(0)
    (image,) = json.loads(run("predict", photo, "--model", weights, "--json", "--out", tmp_path / "out"))["images"]
    assert set(image["semantic"]) <= set(some.semantic.categories.names)
    masks = Masks.from_rle([one["counts"] for one in image["semantic"].values()], (image["height"], image["width"]))
    assert (masks.dense().sum(axis=0) == 1).all()  # each pixel is of one category
    (found,) = otus.load(weights, device="cpu").predict(photo)
    assert found.semantic is not None
    assert found.semantic.size_hw == found.image.shape[:2] == (image["height"], image["width"])
    for name, mask in zip(image["semantic"], masks, strict=True):
        assert np.array_equal(mask, found.semantic.mask_of(name))
    assert len(found.instances) == 0
    assert "%" in found.summary()
    assert repr(found).startswith("Prediction(")
    assert "\n" not in repr(found)
    with Image.open(tmp_path / "out" / f"{photo.stem}.jpg") as overlay:
        assert overlay.width == image["width"]
    assert (found.plot() != found.image).any()

    judged = json.loads(run("evaluate", "--data", data, "--model", weights, "--val", 0.2, "--json"))
    assert judged["protocol"] == "semantic"
    best = max(row["score"] for row in rows)
    assert judged["semantic"]["mIoU"] == pytest.approx(best, abs=1e-9)

    table = run(
        "compare", "--data", data, "--models", f"a={weights}", "--limit", 3, "--out", tmp_path / "table", "--json"
    )
    document = json.loads(table)
    assert document["protocol"] == "semantic"
    (row,) = document["rows"]
    assert 0 < row["mIoU"] <= 1
    assert (tmp_path / "table" / "index.html").is_file()


def test_labels_are_counted_by_the_model_that_goes_on_learning(shared_data: Path, tmp_path: Path, tiny: None) -> None:
    whole = otus.open_dataset(shared_data / "camvid", split="train")
    few: Dataset = whole.select(range(3))
    settings = TrainSettings(epochs=1, batch_size=3, device="cpu", workers=0)
    assert few.semantic is not None
    other = tiny_fcn(Categories(tuple(reversed(few.semantic.categories.names))))
    done = train(other, few, val=few, preprocess=PREPROCESS, settings=settings, out=tmp_path, quiet=True)
    assert done.result.history[-1]["semantic/mIoU"] >= 0
    assert done.folder.parent.name == "semantic"
