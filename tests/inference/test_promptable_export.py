"""Exported promptable models: the masks of the model, for points, boxes, masks, and many prompts at once."""

from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

pytest.importorskip("onnxscript", reason="needs the extra: pip install 'otus[export]'")
pytest.importorskip("onnxruntime", reason="needs the extra: pip install 'otus[export]'")
pytest.importorskip("segment_anything", reason="the narrow SAM has its weights")

import otus
from otus.cli import app
from otus.data.image_writing import write_image
from otus.errors import CheckpointError, ExportError, UsageError
from otus.inference.export import export_model
from otus.inference.predictor import Predictor
from otus.inference.promptable import load_sam
from otus.parts.preprocess import Preprocess
from otus.parts.tasks import OBJECT, PROMPTABLE
from otus.promptable.automatic import SamAutomaticMaskGenerator
from otus.promptable.method import SamMethod
from otus.promptable.sam import sam_efficientnet_lite0
from otus.structures import Prompt
from otus.zoo.checkpoint import CheckpointHeader, save_checkpoint
from otus.zoo.models import MODELS, ModelEntry
from tiny_sam import narrow_sam, picture, reference

pytestmark = pytest.mark.timeout(1200)  # tracing takes half a minute of one core, and others may be at work
PREPROCESS = Preprocess(fixed_hw=(192, 192))
PROMPTS = [
    Prompt([[30, 20]], [1]),
    Prompt([[30, 20], [60, 50], [5, 5]], [1, 1, 0]),
    Prompt(box_xyxy=[10, 10, 50, 40]),
    Prompt([[20, 20]], [1], box_xyxy=[10, 10, 50, 40]),
]


def predictor_of(system, name: str) -> Predictor:
    return Predictor(system, preprocess=PREPROCESS, name=name, device="cpu")


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[SamMethod, Path]:
    predictor = predictor_of(narrow_sam(reference()), "narrow_sam")
    files = export_model(predictor, tmp_path_factory.mktemp("sam") / "narrow.onnx").files
    assert [file.name for file in files] == ["narrow.encoder.onnx", "narrow.decoder.onnx"]
    return SamMethod(predictor.system, preprocess=PREPROCESS), files[0]


def assert_same_masks(found, expected) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one.scores, other.scores, atol=1e-4)
        np.testing.assert_allclose(one.low_resolution_logits, other.low_resolution_logits, atol=2e-3)
        assert (one.masks.dense() != other.masks.dense()).mean() < 1e-3


def test_the_files_predict_the_masks_of_the_model(exported) -> None:
    method, file = exported
    loaded = load_sam(file)
    for size_hw in ((60, 80), (90, 40)):
        image = picture(*size_hw)
        embedding = loaded.embed(image)
        expected = method.embed(image)
        np.testing.assert_allclose(embedding.features, expected.features, atol=1e-3)
        prompts = PROMPTS if size_hw == (60, 80) else [Prompt([[x, 30]], [1]) for x in range(2, 38)]
        assert_same_masks(loaded.segment_many(embedding, prompts), method.segment_many(expected, prompts))
        first = method.segment(expected, prompts[0])
        logits = first.low_resolution_logits[0]
        refined = (one.segment(other, prompts[0], mask_logits=logits) for one, other in
                   ((loaded, embedding), (method, expected)))  # fmt: skip
        assert_same_masks([next(refined)], [next(refined)])
    with pytest.raises(UsageError, match="of another model"):
        method.segment(embedding, PROMPTS[0])


def test_everything_in_an_image(exported) -> None:
    method, file = exported
    settings = {"points_per_side": 4, "pred_iou_thresh": 0.0, "stability_score_thresh": 0.5}
    found, expected = (
        SamAutomaticMaskGenerator(one, **settings).generate(picture(60, 80)) for one in (load_sam(file), method)
    )
    assert len(found) == len(expected) > 0
    assert [record["area"] for record in found] == pytest.approx([record["area"] for record in expected], abs=2)


def test_the_command_and_the_method_of_the_verb_segment(exported, tmp_path: Path) -> None:
    write_image(tmp_path / "a.png", picture(60, 80))
    result = CliRunner().invoke(
        app, ["segment", str(tmp_path / "a.png"), "--point", "30,20,1", "--method", str(exported[1]), "--json"]
    )
    assert result.exit_code == 0, result.output
    assert '"method": "narrow_sam"' in result.stdout


@pytest.mark.parametrize("runtime", ["onnxruntime", "auto"])
def test_another_runtime_runs_the_image_encoder(
    exported, runtime: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTUS_CACHE", str(tmp_path))
    method, _ = exported
    predictor = Predictor(method.sam, preprocess=PREPROCESS, name="narrow_sam", device="cpu", runtime=runtime)
    accelerated = SamMethod(predictor.system, preprocess=PREPROCESS)
    image = picture(60, 80)
    found, expected = accelerated.embed(image).features, method.embed(image).features
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())
    entry = ModelEntry(lambda categories: narrow_sam(reference()), PROMPTABLE, "none", PREPROCESS)
    monkeypatch.setitem(MODELS, "narrow_sam", entry)
    save_checkpoint(
        tmp_path / "narrow.safetensors",
        method.sam.state_dict(),
        CheckpointHeader(builder="narrow_sam", categories=OBJECT),
    )
    assert load_sam(tmp_path / "narrow.safetensors", runtime=runtime).model_hash == method.model_hash
    assert list(tmp_path.rglob("image_encoder.onnx"))
    assert predictor.runtime == runtime or list(tmp_path.rglob("fastest-*.json"))


def test_openvino_and_a_convolutional_encoder(tmp_path: Path) -> None:
    pytest.importorskip("openvino", reason="needs the extra: pip install 'otus[export]'")
    predictor = predictor_of(sam_efficientnet_lite0(image_size=96), "small")
    done = export_model(predictor, tmp_path / "small", format="openvino")
    assert set(done.max_differences) == {"image_embeddings", "low_res_masks", "iou_predictions"}
    method = SamMethod(predictor.system, preprocess=PREPROCESS)
    image = picture(60, 80)
    loaded = load_sam(tmp_path / "small.encoder.xml")
    assert_same_masks(
        loaded.segment_many(loaded.embed(image), PROMPTS), method.segment_many(method.embed(image), PROMPTS)
    )


def test_files_that_predict_something_else_are_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = predictor_of(narrow_sam(reference()), "narrow_sam")
    decode = predictor.system.decode
    monkeypatch.setattr(predictor.system, "decode", lambda *args: tuple(x + 0.1 for x in decode(*args)))
    with pytest.raises(ExportError, match=r"low_res_masks of the exported file differ from the model's by up to 0.1"):
        export_model(predictor, tmp_path / "narrow.onnx")
    assert not list(tmp_path.iterdir())


def test_what_is_wrong_with_the_files_is_named(exported, tmp_path: Path) -> None:
    _, file = exported
    alone = tmp_path / "narrow.encoder.onnx"
    alone.write_bytes(file.read_bytes())
    with pytest.raises(CheckpointError, match="no such file, the decoder"):
        load_sam(alone)
    with pytest.raises(CheckpointError, match="is the encoder of a promptable model; use it with otus segment"):
        otus.load(alone)
    (tmp_path / "narrow.decoder.onnx").write_bytes(file.read_bytes())
    with pytest.raises(CheckpointError, match="is the encoder of a model, expected the decoder"):
        load_sam(alone)
    with pytest.raises(UsageError, match=r"device: .* is an exported file"):
        load_sam(file, device="cuda")
    other = tmp_path / "detector.onnx"
    other.write_bytes(file.read_bytes())
    with pytest.raises(CheckpointError, match="is not a promptable model, whose files are called"):
        load_sam(other)


def test_all_candidates_of_an_exported_file(exported) -> None:
    loaded = load_sam(exported[1], multimask=True)
    assert len(loaded.segment(loaded.embed(picture(60, 80)), PROMPTS[2])) == 3
