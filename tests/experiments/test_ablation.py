"""``otus compare --vary``: every value is trained with every seed; mean and spread, verdict, and a crop per variant."""

import csv
import json
import math
import statistics
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import otus
from otus.cli import app
from otus.data.image_writing import write_image
from otus.data.images import read_image
from otus.data.scenes.generator import ALL_CATEGORIES, Scenes
from otus.errors import UsageError
from otus.experiments import compare as comparison
from otus.experiments.ablation import ablate, variants_of
from otus.parts.preprocess import Preprocess
from otus.parts.tasks import SEMANTIC
from otus.parts.upsampling import UPSAMPLINGS, Downsampling, Upsampling
from otus.reports.ablation import Ablation, Variant
from otus.reports.comparison import Comparison, Row
from otus.semantic.segmenter import Segmenter
from otus.semantic.segnet import segnet
from otus.structures import Categories
from otus.training.settings import TrainSettings
from otus.zoo.checkpoint import load_checkpoint
from otus.zoo.models import MODELS, ModelEntry, argument_values

QUICK = TrainSettings(epochs=1, batch_size=2, device="cpu", workers=0, warm_up_steps=0)


def tiny_segnet(
    categories: Categories, *, upsampling: Upsampling = "max-unpooling", downsampling: Downsampling = "max-pooling"
) -> Segmenter:
    return segnet(categories, widths=(4, 6), depths=(1, 1), upsampling=upsampling, downsampling=downsampling)


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = ModelEntry(tiny_segnet, SEMANTIC, "none", Preprocess(shorter_side=64, longer_side=64))
    monkeypatch.setitem(MODELS, "tiny", entry)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write label maps as PNGs, in the splits train and val."""
    folder = tmp_path_factory.mktemp("ablation")
    for split, count, seed in (("train", 4, 0), ("val", 2, 1)):
        for sample in Scenes(count, size_hw=(48, 64), seed=seed):
            assert sample.semantic is not None
            name = f"{split}/{Path(sample.key).stem}.png"
            write_image(folder / "images" / name, sample.image)
            (folder / "masks" / split).mkdir(parents=True, exist_ok=True)
            Image.fromarray(sample.semantic.labels.astype(np.uint8)).save(folder / "masks" / name)
    (folder / "classes.txt").write_text("\n".join(ALL_CATEGORIES))
    return folder


def test_each_value_is_trained_with_each_seed(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "table"
    command = ["compare", "--data", data, "--models", "tiny", "--vary", "upsampling=nearest,max-unpooling"]
    command += ["--seeds", 2, "--seed", 5, "--epochs", 1, "--batch-size", 2, "--image-size", 48, "--device", "cpu"]
    command += ["--precision", "exact", "--out", out]
    done = CliRunner().invoke(app, [*map(str, command), "--json"])
    assert done.exit_code == 0, done.stderr
    assert "using the splits train and val" in done.stderr
    document = json.loads(done.stdout)
    assert (document["varied"], document["seeds"], document["images"]) == ("upsampling", 2, 2)
    assert [one["name"] for one in document["variants"]] == ["nearest", "max-unpooling"]
    labels = [f"{kind}, seed {seed}" for kind in ("nearest", "max-unpooling") for seed in (5, 6)]
    assert [row["label"] for row in document["rows"]] == labels
    for number, one in enumerate(document["variants"]):
        values = [row["mIoU"] for row in document["rows"][2 * number : 2 * number + 2]]
        assert one["values"] == values
        assert one["mean"] == pytest.approx(statistics.fmean(values))
        assert one["deviation"] == pytest.approx(statistics.stdev(values))
    for row, label in zip(document["rows"], labels, strict=True):
        header = load_checkpoint(row["weights"])[1]
        kind, _, seed = label.partition(", seed ")
        assert header.arguments["upsampling"] == kind
        settings = header.training["settings"]
        assert (settings["seed"], settings["epochs"], settings["image_size"]) == (int(seed), 1, 48)
        report = otus.evaluate(data, split="val", model=otus.load(row["weights"], device="cpu"))
        assert report.results["semantic"].figures["mIoU"] == pytest.approx(row["mIoU"])

    assert json.loads((out / "ablation.json").read_text()) == document
    rows = list(csv.DictReader((out / "ablation.csv").read_text().splitlines()))
    assert [float(row["mean"]) for row in rows] == [one["mean"] for one in document["variants"]]
    text = (out / "ablation.md").read_text()
    assert text.splitlines()[2].startswith("| nearest | ")
    page = (out / "ablation.html").read_text()
    assert "The same crop under each" in page
    for one in document["variants"]:
        assert f"{one['mean']:.3f} ± {one['deviation']:.3f}" in page
        assert f"{one['mean']:.3f} ± {one['deviation']:.3f}" in text
    crop = read_image(out / "crop.png")
    assert crop.shape[1] > 3 * 256  # the image above the ground truth, and two variants beside them
    assert read_image(out / "ablation.png").std() > 5

    for name in ("_train", "_evaluate"):
        monkeypatch.setattr(comparison, name, lambda *arguments, **options: pytest.fail("computed again"))
    done = CliRunner().invoke(app, list(map(str, command)))
    assert done.exit_code == 0, done.stderr
    assert "nearest, seed 5: already done" in done.stderr
    assert "No order is claimed" in done.stdout


def ablation_of(values: dict[str, list[float]], folder: Path) -> Ablation:
    seconds = dict.fromkeys(("proposals", "network", "after"), 0.1)
    variants = [
        Variant(name, [Row("tiny", "w", None, {"mIoU": value}, seconds, 9, None) for value in own])
        for name, own in values.items()
    ]
    rows = [row for one in variants for row in one.rows]
    return Ablation("upsampling", variants, Comparison("data", ["a.png"], rows, folder, {}, SEMANTIC))


def test_an_order_is_claimed_only_where_no_seeds_overlap(tmp_path: Path) -> None:
    ablation = ablation_of({"a": [0.3, 0.31, 0.32], "b": [0.2, 0.21, 0.22], "c": [0.215, 0.4, 0.25]}, tmp_path)
    assert ablation.apart == [{"higher": "a", "lower": "b"}]
    assert ablation.by_chance == pytest.approx(2 / 20)  # 2 of the 20 ways to give 6 values to two variants
    assert "a above b" in ablation.verdict()
    assert "No order is claimed of the others" in ablation.verdict()
    overlapping = ablation_of({"a": [0.3, 0.1], "b": [0.2, 0.25]}, tmp_path)
    assert "The ranges overlap. No order is claimed of any two" in overlapping.verdict()
    alone = ablation_of({"a": [0.9], "b": [0.1]}, tmp_path)
    assert alone.apart == []
    assert alone.verdict() == "One seed each: no order is claimed."
    assert math.isnan(alone.summaries[0]["deviation"])
    assert [row["mIoU"] for row in alone.table()] == ["0.900", "0.100"]
    undefined = ablation_of({"a": [0.1, math.nan], "b": [0.2, 0.25]}, tmp_path)
    assert undefined.apart == []
    assert undefined.document()["variants"][0]["mean"] is None


def test_values_are_those_of_the_builders_types() -> None:
    assert argument_values("segnet_small")["upsampling"] == tuple(UPSAMPLINGS)
    assert "max-unpooling" not in argument_values("unet")["upsampling"]
    assert argument_values("unet")["downsampling"] == ("max-pooling", "strided-convolution")
    assert argument_values("fcn_resnet50") == {"auxiliary": (False, True)}
    assert "freezing" not in argument_values("fcn_efficientnet_lite0")


def test_unsupported_combinations_are_skipped_and_logged() -> None:
    messages: list[str] = []
    variants = variants_of("tiny", {"upsampling": [], "downsampling": ["strided-convolution"]}, log=messages.append)
    assert [one.arguments["upsampling"] for one in variants] == [
        kind for kind in UPSAMPLINGS if kind != "max-unpooling"
    ]
    assert len(messages) == 1
    assert "skipped: upsampling: max-unpooling needs an encoder with max pooling" in messages[0]
    both = variants_of("sliding_window_segmenter", {"shared": ["True"]})
    assert [(one.label, one.arguments) for one in both] == [("sliding_window_segmenter, shared=True", {"shared": True})]


def test_arguments_that_cannot_be_varied(data: Path, tmp_path: Path) -> None:
    options = {"settings": QUICK, "out": tmp_path}
    with pytest.raises(
        UsageError, match=r"tiny has no upsamplin to vary; did you mean 'upsampling'.*it has upsampling, down"
    ):
        ablate(["tiny"], data, vary={"upsamplin": []}, **options)
    with pytest.raises(UsageError, match=r"upsampling: expected bed-of-nails, .*got 'nearst'; did you mean 'nearest'"):
        ablate(["tiny"], data, vary={"upsampling": ["nearst"]}, **options)
    with pytest.raises(UsageError, match="expected at least two variants to compare, got tiny, nearest"):
        ablate(["tiny"], data, vary={"upsampling": ["nearest"]}, **options)
    with pytest.raises(UsageError, match="seeds: expected at least one, got 0"):
        ablate(["tiny"], data, vary={"upsampling": []}, seeds=0, **options)
    done = CliRunner().invoke(app, ["compare", "--data", str(data), "--models", "tiny", "--epochs", "1"])
    assert (done.exit_code, "--epochs: only with --vary or --seeds" in done.stderr) == (2, True)
    done = CliRunner().invoke(
        app, ["compare", "--data", str(data), "--models", "tiny", "--vary", "upsampling", "--minutes", "0"]
    )
    assert (done.exit_code, "minutes: " in done.stderr) == (2, True)
    done = CliRunner().invoke(app, ["compare", "--data", str(data), "--predictions", "a,b", "--vary", "upsampling"])
    assert (done.exit_code, "--vary: not with --predictions" in done.stderr) == (2, True)
