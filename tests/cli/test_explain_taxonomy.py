"""``otus explain taxonomy``."""

import json
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from otus.cli import app
from otus.data.scenes.files import write_scenes


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("taxonomy") / "scenes"
    write_scenes(folder, 3, size_hw=(60, 80))
    return folder


def explain(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["explain", "taxonomy", *map(str, arguments)])
    return result.exit_code, result.stdout, result.stderr


def test_a_drawing_is_written_and_its_path_printed(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, _ = explain("000001.jpg", "--data", scenes)
    assert code == 0
    assert "instance: labelled\n" in out
    assert "written to taxonomy-000001.png" in out
    with Image.open("taxonomy-000001.png") as page:
        assert page.width > 1000


def test_json_has_the_figures(scenes: Path, tmp_path: Path) -> None:
    code, out, _ = explain("000002", "--data", scenes / "panoptic", "--out", tmp_path / "deep" / "x.png", "--json")
    facts = json.loads(out)
    assert code == 0
    assert (facts["file"], facts["width"], facts["height"]) == ("000002.jpg", 80, 60)
    assert Path(facts["image"]).is_file()
    assert sum(one["pixels"] for one in facts["panoptic"]["segments"]) == 80 * 60
    assert facts["detection"]["origin"].startswith("derived")


def test_wrong_commands_end_with_2_and_write_nothing(scenes: Path, tmp_path: Path) -> None:
    code, out, err = explain("000009.jpg", "--data", scenes, "--out", tmp_path / "x.png")
    assert (code, out) == (2, "")
    assert "not one of the 3 images" in err
    assert "000001.jpg" in err
    code, _, err = explain("000001.jpg", "--data", scenes, "--out", tmp_path / "x.jpg")
    assert code == 2
    assert "ends in .png" in err
    assert not list(tmp_path.iterdir())
