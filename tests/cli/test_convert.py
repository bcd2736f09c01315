"""``otus convert``: exit codes, and what goes to stdout and stderr."""

import json
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from otus.cli import app


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    (folder / "images").mkdir(parents=True)
    Image.new("RGB", (8, 6)).save(folder / "images/a.jpg")
    content = {
        "images": [{"id": 1, "file_name": "a.jpg", "width": 8, "height": 6}],
        "categories": [{"id": 1, "name": "cat"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 4, 4], "iscrowd": 1}],
    }
    (folder / "annotations.json").write_text(json.dumps(content))
    return folder


def test_losses_are_reported_and_are_no_failure(source: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["convert", str(source), str(tmp_path / "out"), "--to", "yolo", "--json"])
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document["images"] == document["objects"] == document["losses"]["crowd"] == 1
    assert {"kind": "crowd", "image": "a.jpg", "object_id": 1, "message": "its crowd flag"} in document["lost"]
    text = CliRunner().invoke(app, ["convert", str(source), str(tmp_path / "out2"), "--to", "yolo"])
    assert "a.jpg, object 1: its crowd flag" in text.stdout


def test_a_fault_is_named_on_stderr_and_fails(source: Path, tmp_path: Path) -> None:
    (source / "images/a.jpg").write_bytes(b"")
    result = CliRunner().invoke(app, ["convert", str(source), str(tmp_path / "out"), "--to", "coco", "--json"])
    assert result.exit_code == 1
    assert "a.jpg" in result.stderr
    assert json.loads(result.stdout)["problems"][0]["kind"]


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--to", "nothing"], 2),
        (["--to", "coco", "--images", "move"], 2),
        (["--to", "coco", "--format", "x"], 2),
        ([], 2),
    ],
)
def test_a_wrong_command_ends_with_2(source: Path, tmp_path: Path, arguments: list[str], code: int) -> None:
    result = CliRunner().invoke(app, ["convert", str(source), str(tmp_path / "out"), *arguments])
    assert result.exit_code == code
    assert not (tmp_path / "out").exists()
