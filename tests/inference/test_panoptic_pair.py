"""A pair of an instance model and a semantic model, from the command line: predicted, written, judged."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from typer.testing import CliRunner, Result

import otus
from otus.cli import app
from otus.data.formats import coco_panoptic
from otus.errors import UsageError
from otus.instance.panoptic import merge_panoptic
from otus.parts.backbones import LayeredBackbone
from otus.parts.preprocess import Preprocess
from otus.parts.tasks import SEMANTIC
from otus.semantic.fcn import fcn
from otus.semantic.segmenter import Segmenter
from otus.structures import Categories, Masks
from otus.zoo.checkpoint import CheckpointHeader, save_checkpoint
from otus.zoo.models import MODELS, ModelEntry

INSTANCES = "mask_rcnn_efficientnet_lite0_fpn"
LABELS = Categories(("background", "sky-other-merged", "grass-merged", "person"))


def tiny_fcn(categories: Categories) -> Segmenter:
    def block(inputs: int, outputs: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride=2, padding=1), nn.ReLU())

    layers = {"c1": block(3, 8), "c2": block(8, 16), "c3": block(16, 16)}
    return fcn(LayeredBackbone(layers, levels=(1, 2, 3)), categories)


@pytest.fixture
def semantic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Weights of a small model that says sky, grass and person where chance wants it."""
    monkeypatch.setitem(MODELS, "tiny_fcn", ModelEntry(tiny_fcn, SEMANTIC, "", Preprocess(fixed_hw=(96, 96))))
    torch.manual_seed(3)
    system = tiny_fcn(LABELS)
    save_checkpoint(
        tmp_path / "tiny.safetensors", system.state_dict(), CheckpointHeader(builder="tiny_fcn", categories=LABELS)
    )
    return tmp_path / "tiny.safetensors"


@pytest.fixture(scope="module")
def data(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three images of COCO with people."""
    dataset = otus.open_dataset(shared_data / "coco_panoptic", split="val")
    person = dataset.panoptic.categories.index("person")
    shown = [i for i, many in enumerate(dataset.panoptic.segments) if person in {one.label for one in many}]
    folder = tmp_path_factory.mktemp("coco") / "few"
    coco_panoptic.write(dataset.select(shown[:3]), folder)
    return folder


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [*map(str, arguments), "--device", "cpu", "--precision", "exact"])


def test_a_pair_predicts_writes_and_is_judged(data, semantic, tmp_path):
    pair = ["--model", INSTANCES, "--semantic-model", semantic]
    photos = sorted((data / "images").rglob("*.jpg"))
    done = run("predict", *photos, *pair, "--json", "--page", "--out", tmp_path / "out")
    assert done.exit_code == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["model"] == f"{INSTANCES} + tiny_fcn"
    predictor = otus.load(INSTANCES, semantic_model=semantic, device="cpu")
    for photo, image in zip(photos, document["images"], strict=True):
        (found,) = predictor.predict(photo)
        segments, file = image["panoptic"]["segments_info"], image["panoptic"]["file"]
        ids = np.array(Image.open(file)).astype(int) @ [1, 256, 256**2]
        np.testing.assert_array_equal(ids, found.panoptic.ids)
        outlines = Masks.from_rle([one["segmentation"]["counts"] for one in segments], ids.shape)
        for one, mask in zip(segments, outlines, strict=True):
            np.testing.assert_array_equal(ids == one["id"], mask)
            assert one["area"] == mask.sum()
        # Each model alone, merged, says the same.
        alone = otus.load(INSTANCES, device="cpu").predict(photo)[0].instances
        labels = otus.load(semantic, device="cpu").predict(photo)[0].semantic
        np.testing.assert_array_equal(merge_panoptic(alone, labels).ids, ids)
        assert set(image["milliseconds"]) == {"prepare", "network", "undo", "merge"}
        assert "person" in found.summary()
        assert (tmp_path / "out" / f"{photo.stem}.jpg").is_file()

    judged = run("evaluate", "--data", data, *pair, "--json")
    assert judged.exit_code == 0, judged.stderr
    assert "does not predict" in judged.stderr
    figures = json.loads(judged.stdout)["panoptic"]
    assert 0 < figures["PQ"] < figures["PQ_th"] < 1
    assert figures["per_category"]["person"]["PQ"] == pytest.approx(
        figures["per_category"]["person"]["SQ"] * figures["per_category"]["person"]["RQ"]
    )
    # What was written is judged alike, where no category is found that these data call otherwise.
    dataset = otus.open_dataset(data)
    known = ",".join(name for name in predictor.categories if name in dataset.panoptic.categories)
    in_order = [dataset.images.path(index) for index in range(3)]  # in one batch, whose padding affects rounding
    options = ["--categories", known, "--batch-size", 4, "--out", tmp_path / "known"]
    done = run("predict", *in_order, *pair, *options)
    assert done.exit_code == 0, done.stderr
    command = ["evaluate", "--data", data, "--protocol", "panoptic", "--json", "--predictions"]
    again = CliRunner().invoke(app, [*map(str, command), str(tmp_path / "known")])
    assert again.exit_code == 0, again.stderr
    assert json.loads(again.stdout)["panoptic"] == figures
    (tmp_path / "known" / "predictions.json").write_text(
        (tmp_path / "known" / "predictions.json").read_text().replace('"person"', '"persona"')
    )
    wrong = CliRunner().invoke(app, [*map(str, command), str(tmp_path / "known")])
    assert wrong.exit_code == 1
    assert re.search(r"segments_info\[\d+\].category.*'persona' is not a category of the data.*person", wrong.stderr)


def test_only_categories_that_are_asked_for_are_in_the_map(data, semantic):
    predictor = otus.load(INSTANCES, semantic_model=semantic, device="cpu")
    photo = sorted((data / "images").rglob("*.jpg"))[0]
    for name in ("person", "sky-other-merged"):
        (found,) = predictor.predict(photo, categories=name, score_threshold=0.1)
        assert {found.categories[one.label] for one in found.panoptic.segments} <= {name}
    assert len(found.instances) == 0
    assert found.to_pandas().columns.tolist() == ["image", "category", "score", "is_thing", "share"]


@pytest.mark.parametrize(
    ("model", "semantic_model", "message"),
    [
        ("fcos_efficientnet_lite0_fpn", None, "task instance, got one of the task detection"),
        (INSTANCES, INSTANCES, "task semantic, got one of the task instance"),
    ],
)
def test_what_is_no_pair_is_refused(model, semantic_model, message, semantic):
    with pytest.raises(UsageError, match=message):
        otus.load(model, semantic_model=semantic_model or semantic, device="cpu").predict(np.zeros((8, 8, 3), np.uint8))


def test_tiles_are_refused(semantic):
    predictor = otus.load(INSTANCES, semantic_model=semantic, device="cpu")
    with pytest.raises(UsageError, match=r"tiles: .*the segment of every pixel"):
        predictor.predict(np.zeros((8, 8, 3), np.uint8), tiles=4)


def test_a_pixel_and_an_image_of_nothing(semantic):
    predictor = otus.load(INSTANCES, semantic_model=semantic, device="cpu")
    for image in (np.zeros((1, 1, 3), np.uint8), np.zeros((40, 30, 3), np.uint8)):
        (found,) = predictor.predict(image)
        assert found.panoptic.size_hw == image.shape[:2]
        assert found.plot().shape == image.shape
        json.loads(found.to_json())


def test_explained_it_is_what_is_predicted(data, semantic, tmp_path):
    photo = sorted((data / "images").rglob("*.jpg"))[0]
    pair = ["--model", INSTANCES, "--semantic-model", semantic, "--score-threshold", 0.2]
    done = run("explain", "panoptic", photo, *pair, "--out", tmp_path / "page", "--json")
    assert done.exit_code == 0, done.stderr
    document = json.loads(done.stdout)
    predictor = otus.load(INSTANCES, semantic_model=semantic, device="cpu")
    found = predictor.predict(photo, score_threshold=0.2)[0].panoptic
    assert [(one["id"], one["category"]) for one in document["segments"]] == [
        (one.id, found.categories[one.label]) for one in found.segments
    ]
    assert [one["pixels"] for one in document["segments"]] == found.masks().area().tolist()
    assert document["void_pixels"] == (found.ids == 0).sum()
    assert sum(one["pixels"] for one in document["semantic"]) == found.ids.size
    fates = [one["fate"] for one in document["instances"]]
    assert sum(fate.startswith("segment") for fate in fates) == sum(one.score is not None for one in found.segments)
    html = Path(document["page"]).read_text()
    assert html.count("<img") == 4
    assert all(fate in html for fate in fates)
    alone = run("explain", "panoptic", photo, "--model", INSTANCES, "--out", tmp_path / "page")
    assert alone.exit_code == 2
    assert "does not merge instances and a semantic map; give --semantic-model" in alone.stderr
