"""``otus.train`` and ``otus train``: the run's folder, its files and messages, resuming, repeating, fine-tuning."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import otus
from otus.cli import app
from otus.data.dataset import Dataset
from otus.data.formats import coco
from otus.data.images import read_image
from otus.data.scenes import files as scene_files
from otus.errors import CheckpointError, DataError, UsageError
from otus.parts.tasks import DETECTION
from otus.structures import Categories, Objects, Segmentations
from otus.training.building import describe_mismatches
from otus.training.datasets import trainable_model
from otus.training.fine_tuning import find_weights, load_pretrained
from otus.training.run import resume_run, train
from otus.training.run_folder import RunFolder
from otus.training.settings import TrainSettings, make_settings
from otus.training.state import Validation
from otus.training.validation import Validator
from otus.zoo.checkpoint import CheckpointHeader, TensorMismatch, load_checkpoint, save_checkpoint
from otus.zoo.models import MODELS, ModelEntry, build_model
from otus.zoo.weights import read_weights
from tiny_run import PREPROCESS, TinyDetector, interrupt_at, write_scenes

QUICK = TrainSettings(epochs=1, batch_size=4, device="cpu", workers=1)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Register a tiny model in the zoo."""
    monkeypatch.setitem(MODELS, "tiny", ModelEntry(TinyDetector, DETECTION, "none", PREPROCESS))


@pytest.fixture(scope="module")
def coco_scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve scenes in COCO's format."""
    folder = tmp_path_factory.mktemp("coco") / "data"
    coco.write(write_scenes(tmp_path_factory.mktemp("made"), 12), folder, images="copy")
    return folder


def otus_train(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["train", "--device", "cpu", "--workers", "1", *map(str, arguments)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout, result.stderr


def test_the_command_writes_a_folder_that_loads(tiny: None, coco_scenes: Path, tmp_path: Path) -> None:
    code, out, err = otus_train(
        "--model", "tiny", "--data", coco_scenes, "--val", 0.25, "--epochs", 2, "--out", tmp_path
    )
    folder = tmp_path / "detection" / "tiny"
    assert code == 0
    assert out.startswith(str(folder / "weights" / "best.safetensors"))
    assert "training on 9 images" in err
    assert "epoch 2/2" in err
    files = {
        "batch.jpg",
        "config.json",
        "curves.png",
        "images.json",
        "metrics.csv",
        "metrics.jsonl",
        "run.json",
        "validation.jpg",
    }
    assert {file.name for file in folder.iterdir()} == files | {"weights"}
    assert read_image(folder / "validation.jpg").std() > 10
    record = json.loads((folder / "run.json").read_text())
    assert record["images"] == 9
    assert record["settings"]["seed"] == 0
    header = load_checkpoint(folder / "weights/best.safetensors")[1]
    assert header.builder == "tiny"
    enlarged = replace(PREPROCESS, shorter_side=48, longer_side=96)  # its objects are small
    assert "image size: 96 pixels instead of 64" in err
    assert header.preprocess == json.loads(json.dumps(enlarged.to_dict()))
    assert header.training["figures"].keys() >= {"bbox/AP", "bbox/AP50"}
    code, out, err = otus_train(
        "--model", "tiny", "--data", coco_scenes, "--epochs", 1, "--lr", "find", "--out", tmp_path
    )
    assert code == 0
    assert "the loss falls fastest" in err
    assert "tiny-2" in out
    config = json.loads((tmp_path / "detection" / "tiny-2" / "config.json").read_text())
    assert f"learning rate: {config['learning_rate']:.2g}, at which" in err


def test_the_command_resumes_and_refuses_other_settings(
    tiny: None, coco_scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = ("--model", "tiny", "--data", coco_scenes, "--epochs", 3, "--batch-size", 4, "--val", 0.25)
    assert otus_train(*start, "--out", tmp_path / "whole")[0] == 0
    with monkeypatch.context() as patch:
        interrupt_at(patch, 4)
        code, _, err = otus_train(*start, "--out", tmp_path / "parts")
    folder = tmp_path / "parts" / "detection" / "tiny"
    assert code == 130
    assert f"otus train --resume {folder}" in err
    code, _, err = otus_train("--resume", folder, "--epochs", 5, "--seed", 1)
    assert code == 2
    assert "epochs: was 3, is 5; seed: was 0, is 1" in err
    code, _, err = otus_train("--resume", folder, "--lr", "find")
    assert (code, "a resumed run keeps its rate" in err) == (2, True)
    assert otus_train("--resume", folder / "weights" / "last.safetensors", "--workers", 0)[0] == 0  # or the folder
    ours, theirs = (
        load_checkpoint(tmp_path / run / "detection/tiny/weights/last.safetensors")[0] for run in ("parts", "whole")
    )
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_run_that_got_no_better_is_not_continued(tiny: None, coco_scenes: Path, tmp_path: Path) -> None:
    settings = replace(QUICK, epochs=20, patience=1, learning_rate=1e-9)
    run = train("tiny", coco_scenes, val=0.25, settings=settings, out=tmp_path, quiet=True)
    assert run.result.ended == "no better"
    before = (run.folder / "metrics.jsonl").read_bytes()
    again = resume_run(run.folder)
    assert again.result.ended == "no better"
    assert (run.folder / "metrics.jsonl").read_bytes() == before


def test_only_the_first_of_several_processes_prints_the_result(
    tiny: None, coco_scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = train("tiny", coco_scenes, settings=QUICK, out=tmp_path, quiet=True)
    options = ("--model", "tiny", "--data", coco_scenes)
    for rank, expected in ((0, f"{trained.best}\n"), (1, "")):
        monkeypatch.setattr("otus.training.run.train", lambda *_, rank=rank, **__: replace(trained, rank=rank))
        assert otus_train(*options)[:2] == (0, expected)


@pytest.mark.parametrize("name", ["../x", "a/b", ".", ".."])
def test_names_of_runs_are_names_of_folders(tiny: None, coco_scenes: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="expected the name of a folder"):
        train("tiny", coco_scenes, settings=QUICK, out=tmp_path, name=name)


def test_other_data_are_not_resumed(tiny: None, coco_scenes: Path, tmp_path: Path) -> None:
    run = train("tiny", coco_scenes, settings=QUICK, out=tmp_path, quiet=True)
    assert run.result.ended == "done"
    other = write_scenes(tmp_path / "other", 12, seed=5)
    with pytest.raises(UsageError, match="data_digest: was"):
        train("tiny", other, settings=QUICK, resume=run.folder, quiet=True)


def test_a_run_that_had_not_begun_is_begun_by_resuming_it(tiny: None, scenes: Dataset, tmp_path: Path) -> None:
    first = train("tiny", scenes, settings=QUICK, out=tmp_path, quiet=True)
    run = train("tiny", scenes, weights=first.last, settings=QUICK, out=tmp_path, name="one", quiet=True)
    expected = load_checkpoint(run.last)[0]
    config = json.loads((run.folder / "config.json").read_text())
    for file in (run.folder / "weights").iterdir():  # as if it had been stopped before its first checkpoint
        file.unlink()
    del config["boxes"]  # and begun when there was no such setting
    (run.folder / "config.json").write_text(json.dumps(config))
    again = train("tiny", scenes, weights=first.last, settings=QUICK, resume=run.folder, quiet=True)
    assert again.folder == run.folder
    ours = load_checkpoint(again.last)[0]
    assert all(torch.equal(ours[name], tensor) for name, tensor in expected.items())
    for text, problem in (
        ("{", "is damaged"),
        ("[1]", "has no object"),
        ('{"model_type": "bert"}', "not of a training run of Otus: it has no preprocess"),
    ):
        (run.folder / "config.json").write_text(text)
        with pytest.raises(UsageError, match=rf"resume: .*config\.json.* {problem}"):
            resume_run(run.folder)
    (run.folder / "config.json").write_text("{")
    with pytest.raises(UsageError, match=r"config\.json is damaged"):
        train("tiny", scenes, settings=QUICK, resume=run.folder, quiet=True)


def test_invalid_validation_data_are_reported_before_training(tiny: None, scenes: Dataset, tmp_path: Path) -> None:
    nothing = scenes.select(np.zeros(0, dtype=np.int64))
    labelled = replace(scenes, objects=None, image_labels=np.zeros(len(scenes), dtype=np.int64))
    unknown = replace(scenes, categories=Categories(tuple(f"new {name}" for name in scenes.categories)))
    for val, message in (
        (nothing, "no images with objects or categories to validate on"),
        (labelled, "has no objects to validate on"),
        (unknown, "new "),
    ):
        with pytest.raises((DataError, UsageError), match=message):
            train("tiny", scenes, val=val, settings=QUICK, out=tmp_path / "runs", quiet=True)
    assert not (tmp_path / "runs").exists()


def test_data_without_any_category_are_named(tiny: None, scenes: Dataset, tmp_path: Path) -> None:
    nothing = replace(scenes, categories=Categories(()), objects=Objects.empty())
    with pytest.raises(DataError, match=f"{scenes.source}.*neither objects nor names of categories"):
        train("tiny", nothing, settings=QUICK, out=tmp_path / "runs", quiet=True)
    assert not (tmp_path / "runs").exists()


def test_names_that_are_not_utf8_are_written_as_json_escapes(tmp_path: Path) -> None:
    images = {"train": ["café.png", "caf\udce9.png"]}
    RunFolder(tmp_path, CheckpointHeader()).write_json("images.json", images)
    text = (tmp_path / "images.json").read_text()
    assert '"café.png"' in text
    assert json.loads(text) == images


def test_data_of_several_folders_and_the_notes_about_them(
    tiny: None, scenes: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    other = write_scenes(tmp_path / "other", 6, seed=5)
    assert other.objects is not None
    names = Categories(("unicorn", *reversed(other.categories.names)))
    labels = len(names) - 1 - other.objects.labels
    other = replace(other, categories=names, objects=replace(other.objects, labels=labels, segmentations=None))
    run = train("tiny", [scenes, other], val=scenes, settings=QUICK, out=tmp_path)
    stderr = capsys.readouterr().err
    assert "training on 18 images" in stderr
    assert "the training data have no object of unicorn" in stderr
    assert "all validation images are also training images" in stderr
    assert otus.load(run.best, device="cpu").categories.names == (*scenes.categories.names, "unicorn")


def test_a_system_put_together_by_hand(scenes: Dataset, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="preprocess"):
        train(TinyDetector(), scenes, settings=QUICK, out=tmp_path, quiet=True)
    run = train(TinyDetector(), scenes, preprocess=PREPROCESS, settings=QUICK, out=tmp_path, quiet=True)
    assert otus.load(run.best, system=TinyDetector(), device="cpu").preprocess == PREPROCESS


def test_invalid_models_and_data(tiny: None, scenes: Dataset, tmp_path: Path) -> None:
    assert otus_train("--data", tmp_path)[0] == 1, "there are no data"
    assert otus_train("--model", "tiny", "--data", tmp_path / "nowhere")[0] == 1
    assert otus_train("--resume", tmp_path)[0] == 2
    with pytest.raises(DataError, match="no images with objects"):
        train("tiny", replace(scenes, objects=None), settings=QUICK, out=tmp_path, quiet=True)
    with pytest.raises(UsageError, match=r"fraction between 0 and 1, got 1\.5"):
        train("tiny", scenes, val=1.5, settings=QUICK, out=tmp_path, quiet=True)
    with pytest.raises(UsageError, match=r"batch_size: .* got 0; optimizer: .* got 'adam'"):
        make_settings({"batch_size": 0, "optimizer": "adam"})


def test_pretrained_weights_fill_all_but_heads_of_other_categories(tmp_path: Path) -> None:
    one, same, other = (Categories(names) for names in (("a", "b"), ("a", "b"), ("c", "d")))
    source = TinyDetector(one)
    file = tmp_path / "one.safetensors"
    save_checkpoint(file, source.state_dict(), CheckpointHeader(categories=one))
    found = find_weights(file)

    system = TinyDetector(same)
    assert load_pretrained(system, found, build=TinyDetector) == []
    assert torch.equal(system.head.weight, source.head.weight)

    system = TinyDetector(other)
    before = system.head.weight.clone()
    left = load_pretrained(system, found, build=TinyDetector)
    assert [str(one) for one in left] == [
        "of other categories: head.weight (6, 8)",
        "of other categories: head.bias (6,)",
    ]
    assert torch.equal(system.head.weight, before)
    assert torch.equal(system.backbone[0].weight, source.backbone[0].weight)

    stranger = torch.nn.Linear(2, 2)
    stranger.categories = one
    with pytest.raises(CheckpointError, match="none of its tensors fits Linear"):
        load_pretrained(stranger, found)


@pytest.mark.parametrize(
    "model",
    ["mask_rcnn_efficientnet_lite0_fpn", "fcos_efficientnet_lite0_fpn", "retinanet_efficientnet_lite0_fpn"],
)
def test_rows_of_common_categories_are_loaded(model: str, tmp_path: Path) -> None:
    """Fine-tuned for three categories, one new, in another order: the outputs for the two known ones are unchanged."""
    old, new = Categories(("a", "b", "c", "d")), Categories(("d", "new", "b"))
    source, system = build_model(model, old).eval(), build_model(model, new).eval()
    save_checkpoint(tmp_path / "old.safetensors", source.state_dict(), CheckpointHeader(builder=model, categories=old))
    found = find_weights(tmp_path / "old.safetensors")
    left = load_pretrained(system, found, build=lambda categories: build_model(model, categories))
    assert left
    assert all(str(line).startswith("with new categories (known are d, b): ") for line in left), left
    if model.startswith("mask"):
        features = torch.randn(5, 512)
        mine, theirs = system.box_head, source.box_head
        scores, their_scores = mine.cls_score(features), theirs.cls_score(features)
        torch.testing.assert_close(scores[:, [0, 1, 3]], their_scores[:, [0, 4, 2]])
        boxes, their_boxes = (one.bbox_pred(features).view(5, -1, 4) for one in (mine, theirs))
        torch.testing.assert_close(boxes[:, [1, 3]], their_boxes[:, [4, 2]])
    else:
        level = torch.randn(1, 96, 4, 4)
        mine, theirs = (
            one.head.classification.cls_logits(level).unflatten(1, (-1, count))
            for one, count in ((system, 3), (source, 4))
        )
        torch.testing.assert_close(mine[:, :, [0, 2]], theirs[:, :, [3, 1]])


@pytest.mark.parametrize(
    ("model", "place", "pyramid"),
    [
        ("retinanet_efficientnet_lite0_fpn", "features.", "features."),
        ("ssdlite_efficientnet_lite0", "features.", None),
        ("query_selection_detr_efficientnet_lite0", "", None),
        ("fast_rcnn_efficientnet_lite0", "region_features.", None),
        ("mask_rcnn_efficientnet_lite0_fpn", "region_features.", "region_features."),
    ],
)
def test_backbone_and_pyramid_go_from_one_system_to_another(model: str, place: str, pyramid: str | None) -> None:
    found = find_weights("packaged", model=model)
    system = build_model(model, Categories(("a",)))
    left = load_pretrained(system, found, build=lambda categories: build_model(model, categories))
    own = system.state_dict()
    for theirs, tensor in found.state.items():
        name = theirs.removeprefix("region_features.")
        if name.startswith("backbone."):
            assert torch.equal(own[place + name], tensor.float())
        elif name.startswith("pyramid.") and pyramid is not None:
            assert torch.equal(own[pyramid + name], tensor.float())
    assert not any(one.kind == "missing" and "backbone." in one.tensor for one in left)


def test_weights_of_another_system_do_not_say_the_size_of_images(scenes: Dataset, tmp_path: Path) -> None:
    run = train("yolo_efficientnet_lite0", scenes, weights="packaged", settings=QUICK, out=tmp_path, quiet=True)
    assert otus.load(run.last, device="cpu").preprocess.fixed_hw == (224, 224)


def test_the_default_learning_rate_is_the_models_own(
    scenes: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = ModelEntry(TinyDetector, DETECTION, "none", PREPROCESS, learning_rate=3e-5)
    monkeypatch.setitem(MODELS, "slow", entry)

    for settings, rate in ((QUICK, 3e-5), (replace(QUICK, learning_rate=1e-3), 1e-3)):
        run = train("slow", scenes, settings=replace(settings, epochs=2, warm_up_steps=0), out=tmp_path, quiet=True)
        assert rate / 2 < run.result.history[0]["learning_rate"] < rate  # on its way down the cosine
        assert json.loads((run.folder / "config.json").read_text())["learning_rate"] == rate
    assert make_settings({}).peak_rate == ModelEntry(TinyDetector, DETECTION, "none", PREPROCESS).learning_rate


def test_a_model_without_weights_learns_in_all_its_layers(scenes: Dataset, tmp_path: Path) -> None:
    name = "mask_rcnn_efficientnet_lite0_fpn"
    run = train(name, scenes, image_size=32, settings=QUICK, out=tmp_path, quiet=True)
    tensors, header = load_checkpoint(run.last)
    assert header.arguments == {"freezing": {"norms": False, "level": 0}}
    learned = {key.removesuffix("/exp_avg") for key in tensors if key.endswith("/exp_avg")}
    assert learned == {f"optimizer/{key}" for key, _ in otus.load(run.last, device="cpu").system.named_parameters()}


def test_fine_tuning_takes_the_model_and_the_size_of_its_weights(tiny: None, scenes: Dataset, tmp_path: Path) -> None:
    first = train("tiny", scenes, image_size=24, settings=QUICK, out=tmp_path, quiet=True)
    second = train(
        None, scenes, weights=first.best, settings=replace(QUICK, learning_rate=1e-12), out=tmp_path, quiet=True
    )
    assert otus.load(second.best, device="cpu").preprocess.longer_side == 24
    ours, theirs = (load_checkpoint(run.best)[0] for run in (first, second))
    torch.testing.assert_close(ours["head.weight"], theirs["head.weight"])


def without_masks(dataset: Dataset) -> Dataset:
    assert dataset.objects is not None
    return replace(dataset, objects=replace(dataset.objects, segmentations=None))


def test_without_masks_there_is_no_mask_head(
    scenes: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    boxes = without_masks(scenes)
    run = train(None, boxes, val=scenes, weights="packaged", image_size=64, settings=QUICK, out=tmp_path)
    stderr = capsys.readouterr().err
    assert (
        "no object has masks to train on, so faster_rcnn_efficientnet_lite0_fpn is trained instead of mask_" in stderr
    )
    assert "the validation images have masks, the training images none" in stderr
    assert "mask_head" not in stderr
    assert run.folder == tmp_path / "detection" / "faster_rcnn_efficientnet_lite0_fpn"
    tensors, header = load_checkpoint(run.best)
    assert header.builder == "faster_rcnn_efficientnet_lite0_fpn"
    assert not [name for name in tensors if "mask" in name]
    assert not [name for name in header.training["figures"] if "segm" in name]
    predictor = otus.load(run.best, device="cpu")
    assert predictor.name == header.builder
    assert predictor.predict(scenes.image(0), score_threshold=0.0)[0].instances.masks is None


def test_masks_or_keypoints_of_some_objects_are_enough(scenes: Dataset) -> None:
    objects = scenes.objects
    assert objects is not None
    assert objects.segmentations is not None
    outlines = objects.segmentations
    one = Segmentations.build(outlines.segmentation(i) if i == 3 else None for i in range(len(objects)))
    crowds = replace(objects, segmentations=one, is_crowd=np.arange(len(objects)) == 3)
    whole = replace(objects, segmentations=None, amodal_segmentations=outlines)
    for some, boxes, name in (
        (replace(objects, segmentations=one), "modal", "mask_rcnn_resnet50_fpn"),
        (crowds, "modal", "faster_rcnn_resnet50_fpn"),
        (whole, "modal", "faster_rcnn_resnet50_fpn"),
        (whole, "amodal", "mask_rcnn_resnet50_fpn"),
    ):
        assert trainable_model("mask_rcnn_resnet50_fpn", replace(scenes, objects=some), boxes=boxes)[0] == name
    keypoints = np.zeros((len(objects), 2, 3))
    hidden = replace(scenes, objects=replace(objects, keypoints=keypoints))
    assert trainable_model("keypoint_rcnn_resnet50_fpn", hidden)[0] == "faster_rcnn_resnet50_fpn"
    assert trainable_model("keypoint_rcnn_resnet50_fpn", scenes)[0] == "faster_rcnn_resnet50_fpn"
    keypoints[4, 1, 2] = 1
    assert trainable_model("keypoint_rcnn_resnet50_fpn", hidden) == ("keypoint_rcnn_resnet50_fpn", [])
    assert trainable_model("fcos_efficientnet_lite0_fpn", without_masks(scenes)) == ("fcos_efficientnet_lite0_fpn", [])


def test_categories_without_masks_are_noted(scenes: Dataset) -> None:
    system = build_model("mask_rcnn_efficientnet_lite0_fpn", scenes.categories)
    assert system.warnings(scenes) == []
    assert "no object has a mask" in system.warnings(without_masks(scenes))[0]
    objects = scenes.objects
    assert objects is not None
    assert objects.segmentations is not None
    label = objects.labels[0]
    some = Segmentations.build(
        None if objects.labels[i] == label else objects.segmentations.segmentation(i) for i in range(len(objects))
    )
    warnings = system.warnings(replace(scenes, objects=replace(objects, segmentations=some)))
    assert f"no object of {scenes.categories[label]} has a mask" in warnings[0]


def test_data_are_looked_at_before_a_model_is_asked_for(coco_scenes: Path, tmp_path: Path) -> None:
    code, _, err = otus_train()
    assert (code, "train needs --data" in err) == (2, True)
    code, _, err = otus_train("--data", tmp_path / "nowhere")
    assert (code, "nowhere" in err) == (1, True)
    code, _, err = otus_train("--data", coco_scenes)
    assert (code, "--weights packaged" in err) == (2, True)


def test_a_run_is_repeated_by_its_config_and_stands_for_its_best_weights(
    tiny: None, coco_scenes: Path, tmp_path: Path
) -> None:
    one = ("--model", "tiny", "--data", coco_scenes, "--val", 0.25, "--epochs", 1, "--seed", 3, "--out", tmp_path)
    assert otus_train(*one)[0] == 0
    run = tmp_path / "detection" / "tiny"
    assert otus_train("--config", run / "config.json", "--out", tmp_path)[0] == 0
    assert otus_train("--config", run, "--out", tmp_path, "--name", "longer", "--epochs", 2)[0] == 0
    first, again = (
        load_checkpoint(run.parent / name / "weights" / "last.safetensors")[0] for name in ("tiny", "tiny-2")
    )
    assert all(torch.equal(first[name], again[name]) for name in first)
    config = json.loads((run.parent / "longer" / "config.json").read_text())
    assert (config["epochs"], config["seed"], config["val"]) == (2, 3, 0.25)
    assert otus_train("--config", run, "--resume", run)[0] == 2
    assert read_weights(run).source == run / "weights" / "best.safetensors"
    assert otus.load(run).name == "tiny"
    with pytest.raises(CheckpointError, match="expected the folder of a training run"):
        otus.load(coco_scenes)


@pytest.mark.parametrize("val", ["val", "validation"])
def test_train_and_val_are_taken_where_there_are_just_these(tiny: None, tmp_path: Path, val: str) -> None:
    for seed, split in enumerate(("train", val)):
        scene_files.write_scenes(tmp_path / "data" / split, 3 + seed, split=split, seed=seed)
    options = ("--model", "tiny", "--data", tmp_path / "data", "--format", "coco", "--epochs", 1)
    code, _, err = otus_train(*options, "--out", tmp_path / "runs")
    assert code == 0, err
    record = json.loads((tmp_path / "runs/detection/tiny/run.json").read_text())
    assert (record["images"], record["validation_images"]) == (3, 4)
    assert "using the splits train and val" in err
    assert record["validated_on"] == "val"
    assert otus.evaluate(run=tmp_path / "runs" / "detection" / "tiny").images == 4
    code, _, err = otus_train(*options, "--split", "val", "--out", tmp_path / "runs")
    assert (code, "no validation" in err) == (0, True)


def test_heads_that_change_are_one_line() -> None:
    left = [
        TensorMismatch("of another shape", "box_head.cls_score.weight", ": expected (10, 512), got (21, 512)"),
        TensorMismatch("of another shape", "box_head.cls_score.bias", ": expected (10,), got (21,)"),
        TensorMismatch("of another shape", "mask_head.logits.weight", ": expected (10, 96, 1, 1), got (21, 96, 1, 1)"),
        TensorMismatch("of other categories", "head.weight", " (6, 8)"),
        TensorMismatch("missing", "norm.running_mean", ""),
    ]
    assert describe_mismatches(left) == (
        "all layers except of another shape box_head.cls_score, mask_head.logits; of other categories head; missing norm"
    )
    assert describe_mismatches([]) == "all layers"
    assert "l4 and 3 more" in describe_mismatches([TensorMismatch("extra", f"l{i}.weight", " (1,)") for i in range(8)])


def test_faults_of_the_data_name_the_doctor(tiny: None, coco_scenes: Path, tmp_path: Path) -> None:
    folder = tmp_path / "my scenes"
    shutil.copytree(coco_scenes, folder)
    next(folder.rglob("*.png")).write_bytes(b"no image")
    done = CliRunner().invoke(app, ["train", "--model", "tiny", "--data", str(folder), "--out", str(tmp_path / "runs")])
    assert done.exit_code == 1
    assert done.stderr.splitlines()[-1] == f"otus doctor '{folder}' lists all problems of the data"


def test_a_wrong_name_of_weights_suggests_the_package(coco_scenes: Path) -> None:
    with pytest.raises(UsageError, match="did you mean 'packaged'"):
        train(None, coco_scenes, weights="packged", quiet=True)


@pytest.mark.parametrize(("scores", "is_worse"), [((0.4, 0.3, 0.35), True), ((0.4, 0.3, 0.4), False)])
def test_the_start_is_validated_and_compared_with(
    tiny: None,
    scenes: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    scores: tuple[float, ...],
    is_worse: bool,
) -> None:
    first = train("tiny", scenes, settings=QUICK, out=tmp_path, quiet=True)
    scores_left = iter(scores)
    monkeypatch.setattr(Validator, "__call__", lambda *_: Validation({"bbox/AP": (score := next(scores_left))}, score))
    run = train(
        "tiny", scenes, val=scenes, weights=first.best, settings=replace(QUICK, epochs=2), out=tmp_path, name="next"
    )
    stderr = capsys.readouterr().err
    assert [(row["epoch"], row["score"]) for row in run.result.history] == list(enumerate(scores))
    assert run.result.best_score == max(scores[1:])
    assert "before training: box AP 0.400" in stderr
    warning = "warning: box AP was 0.400 before training and is at most 0.350 after it: the initial weights are better"
    assert (warning in stderr) == is_worse
    header, start, *epochs = (run.folder / "metrics.csv").read_text().splitlines()
    assert header.startswith("epoch,step,learning_rate,loss,loss/box")
    assert start.startswith("0,0,,")
    assert [row.count(",") for row in (start, *epochs)] == [header.count(",")] * 3


def test_weights_of_other_categories_are_not_validated_before_training(
    tiny: None, scenes: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = train("tiny", scenes, settings=QUICK, out=tmp_path, quiet=True)
    names = tuple(f"new {name}" for name in scenes.categories)
    other = replace(scenes, categories=Categories(names))
    for weights, data in ((first.best, other), (None, scenes)):
        run = train("tiny", data, val=data, weights=weights, settings=QUICK, out=tmp_path)
        assert [row["epoch"] for row in run.result.history] == [1]
    assert "before training" not in capsys.readouterr().err
