"""The packaged weights: files, model cards, and predictions on real photographs."""

from pathlib import Path

import pytest

import otus
from otus.cli._options import MODEL, PROMPTABLE_MODEL
from otus.data.open import open_dataset
from otus.inference.promptable import load_sam
from otus.interactive import methods
from otus.structures import Prompt
from otus.zoo.checkpoint import load_checkpoint
from otus.zoo.models import MODELS
from otus.zoo.weights import packaged_file, packaged_names


@pytest.mark.parametrize("name", packaged_names())
def test_packaged_weights_are_small_and_have_a_card(name):
    file = packaged_file(name)
    assert file.stat().st_size <= 20e6
    tensors, header = load_checkpoint(file)
    assert header.builder == name
    assert {str(tensor.dtype) for tensor in tensors.values() if tensor.is_floating_point()} == {"torch.float16"}
    card = file.with_suffix(".md").read_text()
    assert header.licence in card
    for figure, value in header.training["figures"].items():
        assert f"- {figure}: {value:.3f}" in card


def test_the_packaged_model_is_the_default():
    data = pytest.importorskip("skimage.data", reason="its photographs")
    predictor = otus.load()
    assert predictor.name == packaged_names()[0]
    for image, category in ((data.astronaut(), "person"), (data.chelsea(), "cat")):
        found = predictor.predict(image)[0].instances
        best = found.labels[found.scores.argmax()]
        assert predictor.categories[int(best)] == category
        assert found.masks.area()[found.scores.argmax()] > 0.1 * image.shape[0] * image.shape[1]


def test_fcos_is_smaller_and_predicts_boxes_only():
    data = pytest.importorskip("skimage.data", reason="its photographs")
    predictor = otus.load("fcos_efficientnet_lite0_fpn")
    assert sum(one.numel() for one in predictor.system.parameters()) < 0.6 * sum(
        one.numel() for one in otus.load().system.parameters()
    )
    for image, category in ((data.astronaut(), "person"), (data.chelsea(), "cat")):
        found = predictor.predict(image)[0].instances
        assert predictor.categories[int(found.labels[found.scores.argmax()])] == category
        assert found.masks is None


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [name for name in packaged_names() if MODELS[name].task.name in ("detection", "instance")]
)
def test_the_metrics_of_the_card_of_a_detector(shared_data: Path, name: str):
    file = packaged_file(name)
    report = otus.evaluate(
        open_dataset(shared_data / "voc2007", format="voc", split="val"), model=file, precision="auto", protocol="voc07"
    )
    recorded = load_checkpoint(file)[1].training["figures"]["VOC 2007 val bbox AP50-voc07"]
    assert report.results["bbox"].figures["AP"] == pytest.approx(recorded, abs=0.003)  # bfloat16 differs by chip


@pytest.mark.slow
def test_the_metrics_of_the_card_of_the_segmenter(shared_data: Path):
    file = packaged_file("semantic_fpn_efficientnet_lite0")
    report = otus.evaluate(
        shared_data / "voc2012", model=file, precision="auto", format="voc", split="val", protocol="semantic"
    )
    recorded = load_checkpoint(file)[1].training["figures"]["VOC 2012 val mIoU"]
    assert report.results["semantic"].figures["mIoU"] == pytest.approx(recorded, abs=0.003)


@pytest.mark.slow
def test_the_metrics_of_the_card_of_the_promptable_model(shared_data: Path):
    file = packaged_file(PROMPTABLE_MODEL)
    report = otus.evaluate(shared_data / "voc2012" / "instances_val.json", method=str(file))
    for name in ("NoC@85", "IoU@1", "IoU@5"):
        recorded = load_checkpoint(file)[1].training["figures"][f"VOC 2012 val clicks {name}"]
        assert report.results["interactive"].figures[name] == pytest.approx(recorded, abs=0.003)


def test_the_promptable_model_segments_what_is_clicked():
    data = pytest.importorskip("skimage.data", reason="its photographs")
    image, method = data.coffee(), load_sam(PROMPTABLE_MODEL)
    assert PROMPTABLE_MODEL == methods.PROMPTABLE_MODEL
    embedding = method.embed(image)
    found = method.segment(embedding, Prompt([[300, 160]], [1]))
    assert len(found) == 3
    assert found.best()[160, 300]
    boxed = method.segment(embedding, Prompt(box_xyxy=[90, 20, 500, 380])).best()
    assert boxed[200, 300]
    assert boxed.mean() > 0.2
    assert boxed[20:380, 90:500].sum() > 0.95 * boxed.sum()


def test_a_packaged_semantic_model_is_not_the_default(monkeypatch, tmp_path):
    monkeypatch.setattr("otus.zoo.weights.packaged_file", lambda name: tmp_path)
    assert list(MODELS).index("semantic_fpn_efficientnet_lite0") < list(MODELS).index(MODEL)
    assert packaged_names()[0] == MODEL
    assert set(packaged_names()) == set(MODELS)
