"""The explanations of segmenters and of the ways up: what predict and evaluate answer, no figure but the document's."""

import html
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from typer.testing import CliRunner

import otus
from otus.cli import app
from otus.data.image_writing import write_image
from otus.data.open import open_dataset
from otus.data.scenes.generator import ALL_CATEGORIES, Scenes
from otus.errors import UsageError
from otus.inference.predictor import Predictor
from otus.parts.preprocess import Preprocess
from otus.parts.upsampling import UPSAMPLINGS, MaxPooling, Pooled, make_upsampling
from otus.reports.explain.semantic import explain_semantic, semantic_ground_truth_of
from otus.reports.explain.upsampling import explain_upsampling, fitted_transposed_convolution
from otus.semantic.fcn import fcn_efficientnet_lite0
from otus.semantic.full_resolution import full_resolution
from otus.semantic.segnet import segnet
from otus.semantic.unet import unet_efficientnet_lite0
from otus.structures import IGNORE, SemanticMap
from otus.zoo.checkpoint import CheckpointHeader, save_checkpoint

SYSTEMS = {
    "SegNet": (lambda: segnet(ALL_CATEGORIES, widths=(4, 6, 8), depths=(1, 1, 2)), ["max-unpooling"] * 3),
    "FCN": (lambda: fcn_efficientnet_lite0(ALL_CATEGORIES, upsampling="nearest"), ["nearest"] * 2),
    "U-Net": (lambda: unet_efficientnet_lite0(ALL_CATEGORIES), ["bilinear"] * 4),
    "full resolution": (lambda: full_resolution(ALL_CATEGORIES, widths=(4, 4)), []),
}


def predictor_of(kind: str) -> Predictor:
    """Random weights whose scores differ from pixel to pixel."""
    torch.manual_seed(0)
    system = SYSTEMS[kind][0]()
    for layer in system.modules():
        if isinstance(layer, nn.Conv2d) and layer.out_channels == len(ALL_CATEGORIES):
            nn.init.normal_(layer.weight, std=0.5)
    return Predictor(system, preprocess=Preprocess(shorter_side=60, longer_side=70), name="tiny", device="cpu")


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Label maps as PNGs."""
    folder = tmp_path_factory.mktemp("semantic")
    for sample in Scenes(2, size_hw=(90, 120)):
        assert sample.semantic is not None
        write_image(folder / "images" / f"{Path(sample.key).stem}.png", sample.image)
        (folder / "masks").mkdir(exist_ok=True)
        Image.fromarray(sample.semantic.labels.astype(np.uint8)).save(folder / "masks" / f"{Path(sample.key).stem}.png")
    (folder / "classes.txt").write_text("\n".join(ALL_CATEGORIES))
    return folder


def figures_of(value: object) -> set[str]:
    """All numbers and words of a document, as a page writes them."""
    if isinstance(value, dict):
        return set().union(*(figures_of(one) for one in (*value, *value.values())))
    if isinstance(value, list | tuple):
        return set().union(*map(figures_of, value))
    if isinstance(value, float):
        return {f"{value:.4g}", f"{value:.0f}", f"{value:.2f}", f"{value:.3f}", f"{value:.1%}"[:-1], str(value)}
    return {str(value), f"{value:,}" if isinstance(value, int) else str(value)}


def assert_all_figures_are_known(page: str, document: dict[str, Any], *others: str) -> None:
    assert not re.search(r"https?://|<script|<link", page)
    known = figures_of(json.loads(json.dumps(document))) | set(others)
    tables = " ".join(re.findall("<td[^>]*>(.*?)</td>", page, flags=re.DOTALL))
    sentences = " ".join(re.findall(r"(?<=<p>)[^<]*|(?<=<figcaption>)[^<]*|(?<=\"quiet\">)[^<]*", page))
    for figure in re.findall(r"-?\d+(?:[.,]\d+)*(?:e-?\d+)?", html.unescape(f"{tables} {sentences}")):
        assert figure in known, figure


@pytest.mark.parametrize("kind", SYSTEMS)
def test_every_figure_of_a_segmenters_page_is_in_its_document(kind: str, scenes: Path) -> None:
    predictor, dataset = predictor_of(kind), open_dataset(scenes)
    sample = dataset[0]
    truth = semantic_ground_truth_of(dataset, sample.key, predictor)
    explanation = explain_semantic(predictor, sample.image, name="photos/owl.png", ground_truth=truth)
    document = explanation.document()
    assert_all_figures_are_known(explanation.page().html(), document, "0", "1")
    assert [one["map"] for one in document["up"]] == [*SYSTEMS[kind][1], "decoded"]
    assert len(document["down"]) == len(explanation.record.features)


def test_its_figures_are_those_of_predict_and_evaluate(scenes: Path) -> None:
    predictor, dataset = predictor_of("SegNet"), open_dataset(scenes)
    sample = dataset[1]
    truth = semantic_ground_truth_of(dataset, sample.key, predictor)
    document = explain_semantic(predictor, sample.image, name=sample.key, ground_truth=truth).document()
    found = predictor.predict(sample.image)[0].semantic
    counts = {name: int((found.labels == i).sum()) for i, name in enumerate(ALL_CATEGORIES)}
    assert {one["category"]: one["pixels"] for one in document["categories"]} == {n: c for n, c in counts.items() if c}
    judged = otus.evaluate(dataset.select([1]), model=predictor).results["semantic"]
    errors = document["errors"]
    assert errors["mIoU"] == pytest.approx(judged.figures["mIoU"])
    assert 1 - errors["wrong"] / errors["labelled"] == pytest.approx(judged.figures["aAcc"])
    assert {one["category"]: one["IoU"] for one in errors["categories"]} == pytest.approx(
        {one["category"]: judged.per_category[one["category"]]["IoU"] for one in errors["categories"]}
    )
    assert sum(one["right"] for one in errors["categories"]) == errors["labelled"] - errors["wrong"]
    assert sum(one["pixels"] for one in errors["confusions"]) <= errors["wrong"]


def test_confidence_and_scores_are_the_softmax() -> None:
    predictor = predictor_of("full resolution")
    image = np.random.default_rng(0).integers(
        0, 256, (60, 70, 3), dtype=np.uint8
    )  # the prepared size: nothing is resized
    explanation = explain_semantic(predictor, image, name="noise.png")
    probabilities = explanation.record.logits[0].softmax(dim=0).numpy()
    document = explanation.document()
    confidence = document["confidence"]
    assert confidence["mean"] == pytest.approx(probabilities.max(0).mean())
    assert confidence["unsure"] == pytest.approx((probabilities.max(0) < 0.5).mean())
    for one in document["categories"]:
        label = ALL_CATEGORIES.index(one["category"])
        own = probabilities[label][probabilities.argmax(0) == label]
        assert (one["pixels"], one["mean_score"]) == (len(own), pytest.approx(own.mean(), rel=1e-5))
    assert document["errors"] is None
    assert "<h2>6. Errors" not in explanation.page().html()


def test_errors_near_borders_and_what_is_not_labelled() -> None:
    predictor = predictor_of("full resolution")
    image = np.zeros((60, 70, 3), np.uint8)
    found = predictor.predict(image)[0].semantic.labels
    labels = np.full((60, 70), int(found[30, 35]))
    labels[:, 40:] = (found[30, 35] + 1) % len(ALL_CATEGORIES)
    labels[:10] = IGNORE
    truth = SemanticMap(labels, ALL_CATEGORIES)
    errors = explain_semantic(predictor, image, name="black.png", ground_truth=truth).document()["errors"]
    assert errors["labelled"] == 50 * 70
    assert errors["near_borders"] == 50 * 8  # 3 pixels and the one at the border itself, on both sides
    wrong = (labels != IGNORE) & (labels != found)
    assert errors["wrong"] == wrong.sum()
    assert errors["wrong_near_borders"] == wrong[:, 36:44].sum()
    nothing = SemanticMap(np.full((60, 70), IGNORE), ALL_CATEGORIES)
    unlabelled = explain_semantic(predictor, image, name="black.png", ground_truth=nothing)
    assert (unlabelled.document()["errors"]["labelled"], unlabelled.document()["errors"]["wrong"]) == (0, 0)
    assert "No pixel is labelled" in unlabelled.page().html()


def test_an_image_of_one_pixel() -> None:
    predictor = Predictor(SYSTEMS["SegNet"][0](), preprocess=Preprocess(), name="tiny", device="cpu")
    truth = SemanticMap(np.zeros((1, 1), int), ALL_CATEGORIES)
    explanation = explain_semantic(predictor, np.zeros((1, 1, 3), np.uint8), name="dot.png", ground_truth=truth)
    errors = explanation.document()["errors"]
    assert (errors["labelled"], errors["near_borders"]) == (1, 0)
    assert explanation.page().html()


def test_the_command_on_a_file_of_weights(scenes: Path, tmp_path: Path) -> None:
    predictor = predictor_of("U-Net")
    header = CheckpointHeader("unet_efficientnet_lite0", {}, ALL_CATEGORIES, predictor.preprocess.to_dict())
    save_checkpoint(tmp_path / "unet.safetensors", predictor.system.state_dict(), header)
    dataset = open_dataset(scenes)
    arguments = ["explain", "semantic", str(dataset.images.path(0)), "--model", str(tmp_path / "unet.safetensors")]
    arguments += ["--out", str(tmp_path / "page")]
    done = CliRunner().invoke(app, [*arguments, "--data", str(scenes), "--precision", "exact", "--json"])
    assert done.exit_code == 0, done.stderr
    document = json.loads(done.stdout)
    assert Path(document["page"]).read_text().startswith("<!doctype html>")
    assert document["errors"]["labelled"] == 90 * 120
    done = CliRunner().invoke(app, [*arguments, "--precision", "exact"])
    assert "Confidence: The highest probability of each pixel" in done.stdout
    done = CliRunner().invoke(app, [*arguments, "--split", "val"])
    assert (done.exit_code, "give --data too" in done.stderr) == (2, True)


def test_what_cannot_be_explained(scenes: Path) -> None:
    with pytest.raises(UsageError, match="expected a model of the task semantic"):
        explain_semantic(otus.load(), np.zeros((20, 20, 3), np.uint8), name="black.png")
    predictor = predictor_of("full resolution")
    with pytest.raises(UsageError, match="not one of the 2 images"):
        semantic_ground_truth_of(open_dataset(scenes), "nothing.jpg", predictor)
    predictor.system.categories = type(ALL_CATEGORIES)(tuple("abcdefghij"[: len(ALL_CATEGORIES)]))
    with pytest.raises(UsageError, match="has none of the model's categories"):
        semantic_ground_truth_of(open_dataset(scenes), "000000.png", predictor)


@pytest.mark.parametrize("size_hw", [(60, 80), (3, 200), (1, 1)])
def test_every_figure_of_the_page_on_ways_up_is_in_its_document(size_hw: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*size_hw, 3), dtype=np.uint8)
    explanation = explain_upsampling(predictor_of("SegNet"), image, name="photos/noise.png")
    document = explanation.document()
    assert list(document["kinds"]) == list(UPSAMPLINGS)
    text = explanation.page().html()
    # What the page says of the rules themselves.
    assert_all_figures_are_known(text, document, "2", "4", "16")
    fine, coarse = np.array(document["fine"]), np.array(document["coarse"])
    for values, places in zip(document["coarse"], document["maxima"], strict=True):
        for value, (row, column) in zip(values, places, strict=True):
            assert fine[row, column] == value
    nails = np.array(document["kinds"]["bed-of-nails"]["values"])
    assert (nails[::2, ::2] == coarse).all()
    assert (nails[1::2] == 0).all()
    unpooled = np.array(document["kinds"]["max-unpooling"]["values"])
    assert set(unpooled[unpooled != 0]) == set(coarse[coarse != 0])


def test_the_learned_kernel_is_the_one_that_made_the_map() -> None:
    torch.manual_seed(0)
    coarse = torch.randn(1, 1, 9, 7)
    known = make_upsampling("transposed-convolution", 1)
    nn.init.normal_(known.convolution.weight)
    nn.init.constant_(known.convolution.bias, 0.3)
    with torch.no_grad():
        fine = known(coarse, Pooled(coarse, coarse.new_zeros(1, 1, 17, 14)))
    found = fitted_transposed_convolution(Pooled(coarse, fine))
    torch.testing.assert_close(found.convolution.weight, known.convolution.weight, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.convolution.bias, known.convolution.bias, atol=1e-4, rtol=1e-4)


def test_a_learned_kernel_is_nearer_to_the_map_than_bilinear_interpolation() -> None:
    pooled = MaxPooling(2)(torch.rand(1, 1, 24, 31, generator=torch.Generator().manual_seed(1)))
    with torch.no_grad():
        learned, bilinear = (
            up(pooled.map, pooled) for up in (fitted_transposed_convolution(pooled), make_upsampling("bilinear", 1))
        )
    assert ((learned - pooled.fine) ** 2).mean() < ((bilinear - pooled.fine) ** 2).mean()


def test_the_command_on_ways_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_image(tmp_path / "owl.png", np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8))
    done = CliRunner().invoke(app, ["explain", "upsampling", "owl.png", "--json"])
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["page"] == "upsampling-owl.html"
    assert (tmp_path / "upsampling-owl.html").read_text().startswith("<!doctype html>")
    done = CliRunner().invoke(app, ["explain", "upsampling"])
    assert done.exit_code == 0, done.stderr
    assert "written to upsampling-scene.html" in done.stdout
