"""``otus segment --method`` with a promptable model of the zoo."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

pytest.importorskip("segment_anything", reason="the narrow SAM has its weights")

from otus.cli import app
from otus.data.image_writing import write_image
from otus.parts.preprocess import Preprocess
from otus.parts.tasks import OBJECT, PROMPTABLE
from otus.promptable.sam import Sam
from otus.structures import Categories
from otus.zoo.checkpoint import CheckpointHeader, save_checkpoint
from otus.zoo.models import MODELS, ModelEntry
from tiny_sam import narrow_sam, picture, reference


def build(categories: Categories) -> Sam:
    return narrow_sam(reference())


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setitem(MODELS, "narrow_sam", ModelEntry(build, PROMPTABLE, "none", Preprocess(fixed_hw=(192, 192))))
    path = tmp_path / "narrow.safetensors"
    save_checkpoint(path, build(OBJECT).state_dict(), CheckpointHeader(builder="narrow_sam", categories=OBJECT))
    write_image(tmp_path / "photos" / "a.png", picture(60, 80))
    write_image(tmp_path / "photos" / "b.png", picture(70, 50, seed=1))
    return path


def run(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["segment", *map(str, arguments)])
    assert result.exit_code == code, result.output
    return result.stdout if code == 0 else result.stderr


def test_one_candidate_or_all_of_them(weights: Path, tmp_path: Path) -> None:
    image = tmp_path / "photos" / "a.png"
    best = json.loads(run(image, "--point", "30,20,1", "--method", weights, "--json"))
    assert best["method"] == "narrow_sam"
    assert len(best["candidates"]) == 1
    options = ("--method", "narrow_sam", "--weights", weights, "--device", "cpu", "--json", "--all")
    every = json.loads(run(image, "--point", "30,20,1", *options))["candidates"]
    assert len(every) == 3
    assert every[0] == best["candidates"][0]
    assert len(json.loads(run(image, "--box", "10,10,50,40", *options))["candidates"]) == 3
    out = tmp_path / "mask.png"
    assert "(narrow_sam, " in run(image, "--points-for", "1:30,20", "--points-for", "2:70,50", "--method", weights,
                                  "--out", out, "--overlay", tmp_path / "overlay.png")  # fmt: skip
    assert out.exists()


def test_a_folder_and_its_answers_from_before(weights: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.json"
    prompts.write_text(json.dumps({name: {"points": [[20, 20, 1]]} for name in ("a.png", "b.png")}))
    arguments = (tmp_path / "photos", "--prompts", prompts, "--method", weights, "--out", tmp_path / "masks")
    assert "2 images in" in run(*arguments)
    assert "2 of them already there" in run(*arguments)
    document = json.loads((tmp_path / "masks" / "a.png.json").read_text())
    assert len(document["candidates"]) == 1
    run(*arguments, "--all")
    assert len(json.loads((tmp_path / "masks" / "a.png.json").read_text())["candidates"]) == 3


def test_what_is_wrong_is_named(weights: Path, tmp_path: Path) -> None:
    image = tmp_path / "photos" / "a.png"
    assert "(99, 20) lies outside" in run(image, "--point", "99,20,1", "--method", weights, code=1)
    assert "expected graph-cut, grabcut, sam_efficientnet_lite0, sam_vit_b" in run(
        image, "--point", "9,20,1", "--method", "sam_vit", code=2
    )
    assert "nothing is marked as object" in run(image, "--point", "9,20,0", "--method", weights, code=2)


def test_other_weights_are_asked_again(weights: Path, tmp_path: Path) -> None:
    arguments = (tmp_path / "photos", "--prompts", tmp_path / "prompts.json", "--out", tmp_path / "masks")
    (tmp_path / "prompts.json").write_text(json.dumps({"a.png": {"points": [[20, 20, 1]]}}))
    run(*arguments, "--method", weights)
    assert "1 of them already there" in run(*arguments, "--method", weights)
    other = weights.rename(tmp_path / "other.safetensors")
    assert "already there" not in run(*arguments, "--method", other)
