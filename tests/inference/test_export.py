"""Exported files: the same predictions as the model, for any number and size of images, and errors that say what to do."""

import json
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import otus
from otus.cli import app
from otus.data.scenes.files import write_scenes
from otus.data.scenes.generator import THING_CATEGORIES, Scenes
from otus.detection.region_based.faster_rcnn import RegionProposalNetwork, faster_rcnn
from otus.detection.single_stage.fcos import fcos
from otus.errors import CheckpointError, ExportError, MissingExtraError, UsageError
from otus.inference import acceleration
from otus.inference.export import export_model
from otus.inference.predictor import Predictor
from otus.inference.runtimes import open_session
from otus.instance.mask_rcnn import mask_rcnn
from otus.parts.backbones import LayeredBackbone
from otus.parts.backbones.feature_pyramid import FeaturePyramid
from otus.parts.backbones.with_fpn import BackboneWithFPN
from otus.parts.boxes.anchors import GridAnchorGenerator
from otus.parts.boxes.locations import location_generator
from otus.parts.boxes.nms import batched_nms, nms_per_image
from otus.parts.preprocess import Preprocess
from otus.parts.regions.roi_features import RoIFeatures, RoIPooler
from otus.semantic.segnet import segnet
from otus.zoo.models import build_model, model_entry

pytestmark = pytest.mark.timeout(1200)  # tracing takes half a minute of one core, and others may be at work

CATEGORIES = THING_CATEGORIES
PREPROCESS = Preprocess(shorter_side=96, longer_side=160)
SCENES = [Scenes(1, size_hw=size_hw, seed=7).scene(0).image for size_hw in ((120, 170), (170, 120), (96, 160))]


def tiny_backbone(levels):
    def block(inputs, outputs):
        return torch.nn.Sequential(torch.nn.Conv2d(inputs, outputs, 3, stride=2, padding=1), torch.nn.ReLU())

    layers = {"c1": block(3, 8), "c2": block(8, 16), "c3": block(16, 32), "c4": block(32, 32)}
    return LayeredBackbone(layers, levels=levels)


def predictor_of(system, name):
    system.postprocess = replace(system.postprocess, score_threshold=0.02, max_detections=20)
    return Predictor(system, preprocess=PREPROCESS, name=name, device="cpu", score_thresholds={"star": 0.4})


def tiny_fcos():
    torch.manual_seed(0)
    backbone = tiny_backbone((3, 4))
    system = fcos(
        BackboneWithFPN(backbone, FeaturePyramid(backbone.channels, 32)), location_generator((8, 16, 32)), CATEGORIES
    )
    torch.nn.init.normal_(system.head.classification["cls_logits"].weight, std=0.3)
    return predictor_of(system, "tiny_fcos")


def tiny_mask_rcnn():
    torch.manual_seed(0)
    backbone = tiny_backbone((2, 3, 4))
    features = RoIFeatures(
        backbone, RoIPooler(7, strides=backbone.strides), pyramid=FeaturePyramid(backbone.channels, 16)
    )
    proposer = RegionProposalNetwork(16, GridAnchorGenerator([[12], [24], [48], [96]]), post_nms_top_n=30)
    system = mask_rcnn(faster_rcnn(features, proposer, CATEGORIES, representation_size=32), hidden_channels=8)
    torch.nn.init.normal_(system.box_head.cls_score.weight, std=0.3)
    return predictor_of(system, "tiny_mask_rcnn")


MODELS = {"fcos": tiny_fcos, "mask_rcnn": tiny_mask_rcnn}


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Export a tiny model once; its predictor and the file."""
    pytest.importorskip("onnxscript", reason="needs the extra: pip install 'otus[export]'")
    pytest.importorskip("onnxruntime", reason="needs the extra: pip install 'otus[export]'")
    from otus.inference.export import export_model

    made = {}

    def of(name):
        if name not in made:
            predictor = MODELS[name]()
            made[name] = predictor, export_model(predictor, tmp_path_factory.mktemp(name) / f"{name}.onnx").file
        return made[name]

    return of


def assert_same(found, expected):
    assert len(found) == len(expected) >= 3
    np.testing.assert_array_equal(found.labels, expected.labels)
    np.testing.assert_allclose(found.boxes_xyxy, expected.boxes_xyxy, atol=2e-2)
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-4)
    assert (found.masks is None) == (expected.masks is None)
    if found.masks is not None:
        apart = found.masks.dense() != expected.masks.dense()
        assert apart.mean() < 1e-3


@pytest.mark.parametrize("name", MODELS)
def test_an_exported_file_predicts_as_its_model_at_every_size(name, exported):
    predictor, file = exported(name)
    loaded = otus.load(file)
    assert (loaded.name, loaded.task.name, loaded.categories) == (predictor.name, predictor.task.name, CATEGORIES)
    assert loaded.preprocess == PREPROCESS
    assert loaded.score_thresholds == {"star": 0.4}
    for image in SCENES:
        expected = predictor.predict(image, score_threshold=0.02)[0].instances
        assert_same(loaded.predict(image, score_threshold=0.02)[0].instances, expected)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("count", [1, 2, 7])
def test_an_exported_file_takes_any_number_of_images(name, count, exported):
    _, file = exported(name)
    loaded = otus.load(file)
    images = [np.roll(SCENES[0], 11 * i, axis=1) for i in range(count)]
    alone = [loaded.predict(image, score_threshold=0.02)[0].instances for image in images]
    together = loaded.predict(images, score_threshold=0.02, batch_size=count)
    for one, expected in zip(together, alone, strict=True):
        assert_same(one.instances, expected)


def test_images_of_several_sizes_in_a_batch_are_padded_as_the_model_pads_them(exported):
    predictor, file = exported("fcos")
    together = (way.predict(SCENES, score_threshold=0.02, batch_size=3) for way in (otus.load(file), predictor))
    for found, expected in zip(*together, strict=True):
        assert found.size_hw == expected.size_hw
        assert_same(found.instances, expected.instances)


def test_thresholds_and_categories_are_chosen_after_the_file_was_written(exported):
    predictor, file = exported("fcos")
    thresholds = dict.fromkeys(CATEGORIES, 0.02) | {"circle": 0.03}
    options = {"score_threshold": thresholds, "categories": list(CATEGORIES)[:-1]}
    expected = predictor.predict(SCENES[0], **options)[0].instances
    found = otus.load(file).predict(SCENES[0], **options)[0].instances
    shared = min(len(found), len(expected))  # of the file's 20 detections those of one category are gone
    np.testing.assert_array_equal(found.labels[:shared], expected.labels[:shared])
    np.testing.assert_allclose(found.scores[:shared], expected.scores[:shared], atol=1e-4)
    assert shared >= 3
    assert len(CATEGORIES) - 1 not in found.labels


def test_what_the_file_has_left_out_cannot_be_asked_for(exported):
    _, file = exported("fcos")
    loaded = otus.load(file)
    with pytest.raises(UsageError, match=r"score_threshold: .* reports scores above 0.02 only, got 0.01"):
        loaded.predict(SCENES[0], score_threshold=0.01)
    with pytest.raises(UsageError, match=r"nms_iou: is fixed to 0.6 in .*use the model it was exported from"):
        loaded.predict(SCENES[0], nms_iou=0.3)
    with pytest.raises(UsageError, match="does not record intermediate results"):
        loaded.system.stages([])


def test_openvino_predicts_the_same(exported, tmp_path):
    pytest.importorskip("openvino", reason="needs the extra: pip install 'otus[export]'")
    predictor, file = exported("fcos")
    from otus.inference.export import as_openvino

    copy = tmp_path / "model.onnx"
    copy.write_bytes(file.read_bytes())
    as_openvino(copy, tmp_path / "model.xml")
    expected = predictor.predict(SCENES[0], score_threshold=0.02)[0].instances
    for loaded in (otus.load(tmp_path / "model.xml"), otus.load(file, runtime="openvino")):
        assert_same(loaded.predict(SCENES[0], score_threshold=0.02)[0].instances, expected)
    with pytest.raises(UsageError, match=r"onnxruntime reads ….onnx, got .*model.xml"):
        otus.load(tmp_path / "model.xml", runtime="onnxruntime")


def test_predict_and_evaluate_take_an_exported_file(exported, tmp_path, capsys):
    predictor, file = exported("fcos")
    write_scenes(tmp_path / "data", 3, size_hw=(96, 128), seed=1)
    image = next((tmp_path / "data").rglob("*.jpg"), None) or next((tmp_path / "data" / "images").iterdir())
    command = ["predict", str(image), "--model", str(file), "--score-threshold", "0.02", "--json"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    assert document["model"] == "tiny_fcos"
    expected = predictor.predict(image, score_threshold=0.02)[0].instances
    assert [one["score"] for one in document["images"][0]["instances"]] == pytest.approx(expected.scores, abs=1e-4)
    figures = [
        otus.evaluate(tmp_path / "data", model=model).document()["bbox"]["AP50"]
        for model in (predictor, otus.load(file))
    ]
    assert figures[0] == pytest.approx(figures[1], abs=1e-3)


def test_a_file_that_predicts_something_else_is_not_written(exported, tmp_path, monkeypatch):
    predictor, file = exported("fcos")
    from otus.inference import export

    session = export.open_session(file)

    class Shifted:
        metadata = session.metadata

        def run(self, **inputs):
            outputs = session.run(**inputs)
            return outputs | {"boxes": outputs["boxes"] + 1}

    with pytest.raises(ExportError, match=r"the boxes of the exported file differ from the model's by up to 1,"):
        export.compare_outputs(predictor, Shifted(), SCENES[:1])

    class NotANumber(Shifted):
        def run(self, **inputs):
            return session.run(**inputs) | {"boxes": session.run(**inputs)["boxes"] * np.nan}

    with pytest.raises(ExportError, match=r"the boxes of the exported file differ from the model.s by up to nan"):
        export.compare_outputs(predictor, NotANumber(), SCENES[:1])

    class Fewer(Shifted):
        def run(self, **inputs):
            return {name: x[1:] for name, x in session.run(**inputs).items()}

    with pytest.raises(ExportError, match=r"detects \d+ objects and the exported file \d+ on the same image"):
        export.compare_outputs(predictor, Fewer(), SCENES[:1])

    class Saved:
        def save(self, target):
            target.write_bytes(file.read_bytes())

    monkeypatch.setattr(export, "_onnx_program", lambda predictor: Saved())
    monkeypatch.setattr(export, "open_session", lambda file: Shifted())
    with pytest.raises(ExportError):
        export.export_model(predictor, tmp_path / "out" / "model.onnx")
    assert list((tmp_path / "out").iterdir()) == []


def test_only_an_exact_model_on_the_cpu_is_exported(tmp_path):
    predictor = Predictor(tiny_fcos().system, preprocess=PREPROCESS, name="fcos", device="cpu", precision="float32")
    with pytest.raises(UsageError, match="in precision exact, run by torch, got cpu, float32, torch"):
        export_model(predictor, tmp_path / "fcos.onnx")


def exported_description(file):
    return open_session(file).metadata


def test_files_that_cannot_be_loaded_say_why(exported, tmp_path):
    _, file = exported("fcos")
    cut = tmp_path / "cut.onnx"
    cut.write_bytes(file.read_bytes()[:2000])
    with pytest.raises(CheckpointError, match=r"cut.onnx: onnxruntime cannot load it, it is damaged"):
        otus.load(cut)
    onnx = pytest.importorskip("onnx")
    foreign = onnx.load(str(file))
    del foreign.metadata_props[:]
    onnx.save(foreign, str(tmp_path / "foreign.onnx"))
    with pytest.raises(CheckpointError, match=r"foreign.onnx: was not exported by Otus"):
        otus.load(tmp_path / "foreign.onnx")
    foreign.metadata_props.add(key="otus", value='{"name": "x"}')
    onnx.save(foreign, str(tmp_path / "odd.onnx"))
    with pytest.raises(CheckpointError, match=r"odd.onnx: its description is damaged"):
        otus.load(tmp_path / "odd.onnx")
    for value, message in (
        (
            '{"name": "x", "role": "encoder"}',
            r"is the encoder of a promptable model; use it with otus segment --method",
        ),
        (json.dumps(json.loads(exported_description(file)) | {"version": 9}), "newer version of Otus, as version 9"),
        (json.dumps(json.loads(exported_description(file)) | {"task": "x"}), "newer version of Otus, .*of task x"),
    ):
        foreign.metadata_props[0].value = value
        onnx.save(foreign, str(tmp_path / "other.onnx"))
        with pytest.raises(CheckpointError, match=message):
            otus.load(tmp_path / "other.onnx")
    with pytest.raises(CheckpointError, match="there is no such file"):
        otus.load(tmp_path / "missing.onnx")
    for options, text in (
        ({"device": "cuda"}, "device"),
        ({"runtime": "tensorrt"}, "runtime: expected one of onnxruntime, openvino"),
        ({"weights": "packaged"}, "is a file of weights itself"),
    ):
        with pytest.raises(UsageError, match=text):
            otus.load(file, **options)


def test_a_missing_extra_is_named_with_its_pip_command(monkeypatch, tmp_path):
    from otus.inference.export import export_model

    monkeypatch.setitem(sys.modules, "onnxscript", None)
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(MissingExtraError, match=r"needs the package 'onnx': pip install 'otus\[export\]'"):
        export_model(tiny_fcos(), tmp_path / "model.onnx")


def test_a_model_that_cannot_be_exported_says_why(monkeypatch, tmp_path, capfd):
    pytest.importorskip("onnxscript", reason="needs the extra: pip install 'otus[export]'")
    from otus.inference import export

    predictor = tiny_fcos()

    class Searching(type(predictor.system)):
        original_image_search = object()

    predictor.system.__class__ = Searching
    with pytest.raises(ExportError, match=r"tiny_fcos cannot be exported: it needs proposals"):
        export.export_model(predictor, tmp_path / "model.onnx")

    class Looping(type(tiny_fcos().system)):
        def forward(self, images, sizes_hw):
            return {"boxes": torch.stack([image.mean() for image in images])}

    predictor = tiny_fcos()
    predictor.system.__class__ = Looping
    with pytest.raises(ExportError, match=r"fails on a batch of \d, so this model cannot be exported|would be fixed"):
        export.export_model(predictor, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("iou", [0.5, 1.0])
def test_nms_of_a_batch_is_that_of_each_image(iou):
    generator = torch.Generator().manual_seed(1)
    corners = torch.rand(300, 2, generator=generator) * 80
    boxes = torch.cat([corners, corners + 4 + torch.rand(300, 2, generator=generator) * 16], dim=1)
    scores, groups = torch.rand(300, generator=generator), torch.randint(3, (300,), generator=generator)
    image_index = torch.randint(4, (300,), generator=generator)
    image_index[image_index == 2] = 3  # an image without boxes
    kept = nms_per_image(
        boxes, scores, groups, image_index, num_images=4, padded_hw=(100, 100), iou_threshold=iou, limit=20
    )
    for i in range(4):
        of_image = torch.where(image_index == i)[0]
        expected = batched_nms(boxes[of_image], scores[of_image], groups[of_image], iou_threshold=iou, limit=20)
        assert kept[image_index[kept] == i].tolist() == of_image[expected].tolist()
    assert image_index[kept].tolist() == sorted(image_index[kept].tolist())


def test_the_command_refuses_a_wrong_file_name(tmp_path):
    done = CliRunner().invoke(app, ["export", "fcos_efficientnet_lite0_fpn", "--format", "coreml"])
    assert done.exit_code == 2
    assert "--format: expected onnx or openvino, got coreml" in done.output
    done = CliRunner().invoke(app, ["export", "fcos_efficientnet_lite0_fpn", "--out", str(tmp_path / "m.xml")])
    assert done.exit_code == 2
    assert "--out: expected a file that ends in .onnx" in done.output


RUNTIME_PARTS = {
    "fcos": {"features", "head"},
    "mask_rcnn": {"region_features", "proposer", "box_head.network", "mask_head"},
}


@pytest.mark.parametrize("name", ["fcos", pytest.param("mask_rcnn", marks=pytest.mark.slow)])
def test_another_runtime_runs_the_heavy_parts_and_nothing_else_changes(name, exported, tmp_path, monkeypatch):
    monkeypatch.setenv("OTUS_CACHE", str(tmp_path))
    predictor, _ = exported(name)
    way = Predictor(predictor.system, preprocess=PREPROCESS, name=name, device="cpu", runtime="onnxruntime")
    assert (way.runtime, way.precision) == ("onnxruntime", "float32")
    written = {file.stem for file in tmp_path.rglob("*.onnx")}
    assert written == RUNTIME_PARTS[name]
    for options in ({"score_threshold": 0.02}, {"score_threshold": 0.03, "nms_iou": 0.3}):
        expected = predictor.predict(SCENES[0], **options)[0].instances
        assert_same(way.predict(SCENES[0], **options)[0].instances, expected)
    assert len(way.predict(SCENES[0], score_threshold=1.0)[0].instances) == 0  # no region for the mask head
    monkeypatch.setattr(acceleration, "_write_part", None)  # the second time nothing is written
    Predictor(predictor.system, preprocess=PREPROCESS, name=name, device="cpu", runtime="onnxruntime")


def test_another_runtime_runs_a_segmenter(tmp_path, monkeypatch):
    monkeypatch.setenv("OTUS_CACHE", str(tmp_path))
    torch.manual_seed(0)
    system = segnet(CATEGORIES, widths=(4, 8), depths=(1, 2))  # indices of maxima go from the encoder to the decoder
    torch.nn.init.normal_(system.head.weight, std=3)
    expected, result = (
        Predictor(system, preprocess=PREPROCESS, name="segnet", device="cpu", runtime=runtime).predict(SCENES[0])[0]
        for runtime in ("torch", "onnxruntime")
    )
    assert {file.stem for file in tmp_path.rglob("*.onnx")} == {"encoder", "decoder", "head"}
    assert len(np.unique(expected.semantic.labels)) > 1
    assert (result.semantic.labels != expected.semantic.labels).mean() < 0.001


def test_auto_takes_the_fastest_runtime_and_measures_once(exported, tmp_path, monkeypatch):
    monkeypatch.setenv("OTUS_CACHE", str(tmp_path))
    predictor, _ = exported("fcos")
    monkeypatch.setattr(acceleration, "accelerated", lambda system, runtime: predictor.system)
    chosen = acceleration.choose_runtime("auto", predictor.system, PREPROCESS)
    assert chosen in acceleration.RUNTIMES
    (kept,) = tmp_path.rglob("fastest-*.json")
    kept.write_text('{"torch": 0.2, "openvino": 0.1, "onnxruntime": 0.3}')
    assert acceleration.choose_runtime("auto", predictor.system, PREPROCESS) == "openvino"
    kept.write_text('{"torch": 0.1, "openvino": null, "onnxruntime": 0.3}')
    assert acceleration.choose_runtime("auto", predictor.system, PREPROCESS) == "torch"
    kept.write_text('{"torch": 0.1, "removed": 0.01}')  # other runtimes were installed: it is measured again
    assert acceleration.choose_runtime("auto", predictor.system, PREPROCESS) in acceleration.RUNTIMES
    assert '"openvino"' in kept.read_text()
    monkeypatch.setattr(acceleration, "find_spec", lambda package: None if package == "onnxscript" else package)
    assert acceleration.choose_runtime("auto", predictor.system, PREPROCESS) == "torch"
    assert "openvino" not in kept.read_text()  # nothing can be exported, which is measured again once it can


def test_auto_leaves_out_a_runtime_that_cannot_run_the_model(exported, tmp_path, monkeypatch):
    monkeypatch.setenv("OTUS_CACHE", str(tmp_path))
    monkeypatch.setattr(torch.onnx, "export", lambda *_, **__: 1 / 0)
    predictor, _ = exported("fcos")
    with pytest.raises(
        ExportError, match=r"cannot be exported to onnxruntime: .*division by zero.*use --runtime torch"
    ):
        acceleration.accelerated(predictor.system, "onnxruntime")
    assert acceleration.choose_runtime("auto", predictor.system, PREPROCESS) == "torch"


def test_a_mask_head_is_traced_where_the_traced_images_have_no_object(tmp_path, monkeypatch):
    monkeypatch.setenv("OTUS_CACHE", str(tmp_path))
    system = tiny_mask_rcnn().system
    system.postprocess = replace(system.postprocess, score_threshold=0.9)
    inputs = acceleration._traced_inputs(system, ["mask_head"])["mask_head"]
    assert [len(x) for x in inputs] == [2]


def test_a_runtime_that_cannot_be_says_why(monkeypatch, tmp_path):
    monkeypatch.setenv("OTUS_CACHE", str(tmp_path))
    system = tiny_fcos().system
    for options, text in (
        (
            {"runtime": "onxruntime"},
            "expected one of auto, torch, onnxruntime, openvino, got 'onxruntime'; did you mean",
        ),
        ({"runtime": "onnxruntime", "precision": "bfloat16"}, "bfloat16"),
    ):
        with pytest.raises(UsageError, match=text):
            Predictor(system, preprocess=PREPROCESS, name="tiny", device="cpu", **options)
    monkeypatch.setattr(type(system), "heavy_parts", ())
    with pytest.raises(UsageError, match="runtime: this model has no parts that onnxruntime can run; use torch"):
        Predictor(system, preprocess=PREPROCESS, name="tiny", device="cpu", runtime="onnxruntime")
    assert Predictor(system, preprocess=PREPROCESS, name="tiny", device="cpu", runtime="auto").runtime == "torch"
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingExtraError, match=r"'openvino': pip install 'otus\[export\]'"):
        Predictor(system, preprocess=PREPROCESS, name="tiny", device="cpu", runtime="openvino")


@pytest.mark.slow
@pytest.mark.parametrize(
    "command", ["fcos_efficientnet_lite0_fpn", "mask_rcnn_efficientnet_lite0_fpn --format openvino --out mask_rcnn.xml"]
)
def test_the_examples_of_the_help_run(command, tmp_path, monkeypatch):
    pytest.importorskip("onnxscript", reason="needs the extra: pip install 'otus[export]'")
    pytest.importorskip("openvino", reason="needs the extra: pip install 'otus[export]'")
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["export", *command.split()])
    assert done.exit_code == 0, done.output
    assert "largest difference from the model" in done.stdout
    (file,) = [file for file in tmp_path.iterdir() if file.suffix in (".onnx", ".xml")]
    assert otus.load(file).predict(SCENES[0], score_threshold=0.05)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "retinanet_efficientnet_lite0_fpn",
        "ssdlite320_mobilenet_v3_large",
        "detr_efficientnet_lite0",
        "unet_efficientnet_lite0",
        "deeplabv3_mobilenet_v3_large",
    ],
)
def test_every_kind_of_model_exports(name, tmp_path):
    pytest.importorskip("onnxscript", reason="needs the extra: pip install 'otus[export]'")
    from otus.inference.export import export_model

    torch.manual_seed(0)
    entry = model_entry(name)
    system = build_model(name, CATEGORIES)
    if system.postprocess is not None:
        system.postprocess = replace(system.postprocess, score_threshold=0.0, max_detections=30)
    predictor = Predictor(system, preprocess=entry.preprocess, name=name, device="cpu")
    file = export_model(predictor, tmp_path / f"{name}.onnx").file
    for image in SCENES[:2]:
        found, expected = (way.predict(image)[0].result for way in (otus.load(file), predictor))
        if system.postprocess is None:
            assert (found.labels == expected.labels).mean() > 0.999
        else:
            assert len(found) == len(expected)
