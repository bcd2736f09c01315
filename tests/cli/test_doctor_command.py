"""``otus doctor``: exit codes and output streams."""

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from otus.cli import app
from otus.data.image_writing import write_image


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Write two splits with one image each, of which that of val is missing."""
    rng = np.random.default_rng(0)
    write_image(tmp_path / "a.png", rng.integers(0, 256, (30, 40, 3), dtype=np.uint8))
    for split, name in (("train", "a.png"), ("val", "b.png")):
        document = {
            "images": [{"id": 1, "file_name": name, "width": 40, "height": 30}],
            "annotations": [
                {"id": 1, "image_id": 1, "category_id": 3, "bbox": [1, 2, 10, 10], "area": 100, "iscrowd": 0}
            ],
            "categories": [{"id": 3, "name": "owl"}],
        }
        (tmp_path / f"instances_{split}.json").write_text(json.dumps(document))
    return tmp_path


def run(path: Path, *options: str) -> Result:
    return CliRunner().invoke(app, ["doctor", str(path), *options])


def test_json_alone_on_stdout(folder):
    done = run(folder, "--json")
    assert done.exit_code == 1
    document = json.loads(done.stdout)
    assert {key: document[key] for key in ("data", "format", "splits", "images", "objects", "counts")} == {
        "data": str(folder),
        "format": "coco",
        "splits": ["train", "val"],
        "images": 2,
        "objects": 2,
        "counts": {"missing_image": 1},
    }
    assert document["per_category"] == {"owl": [1, 1]}
    (finding,) = document["findings"]
    assert finding.keys() == {"kind", "file", "where", "message"}
    assert (finding["kind"], finding["file"]) == ("missing_image", str(folder / "b.png"))


def test_table(folder):
    done = run(folder)
    assert done.exit_code == 1
    assert "coco train, coco val" in done.stdout
    words = [line.replace("│", " ").replace("┃", " ").split() for line in done.stdout.splitlines()]
    assert ["category", "train", "val"] in words
    assert ["owl", "1", "1"] in words
    assert any(line.split() == ["missing_image", "1"] for line in done.stdout.splitlines())
    assert f"{folder / 'b.png'}: there is no such file" in done.stdout


def test_nothing_is_wrong(folder):
    for options in (["--split", "train"], ["--ignore", "missing_image"]):
        done = run(folder, *options)
        assert done.exit_code == 0, done.output
        assert "no problems found" in done.stdout
        assert done.stderr == ""
    assert json.loads(run(folder, "--split", "train", "--json").stdout)["findings"] == []


def test_a_kind_to_ignore_that_is_misspelled_is_named(folder):
    done = run(folder, "--ignore", "missing_imgae", "--ignore", "dark_image")
    assert done.exit_code == 1
    assert done.stderr == "otus: --ignore missing_imgae: no finding is of this kind; did you mean 'missing_image'?\n"


def test_unreadable_files_are_findings(folder):
    (folder / "instances_val.json").write_text(
        (folder / "instances_train.json").read_text().replace("[1, 2,", "[1, NaN,")
    )
    document = json.loads(run(folder, "--json").stdout)
    assert document["counts"] == {"not_finite": 1, "shared_between_splits": 1}
    assert document["findings"][0]["file"] == str(folder / "instances_val.json")
    assert "annotations[0]" in document["findings"][0]["where"]


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--format", "voc"], 2, "--format coco"),
        (["--split", "test"], 2, "--split train"),
        (["--format", "x"], 2, "unknown format"),
    ],
)
def test_wrong_commands(folder, options, code, message):
    done = run(folder, *options)
    assert (done.exit_code, done.stdout) == (code, "")
    assert message in done.stderr


def test_no_data_set(tmp_path):
    for path in (tmp_path, tmp_path / "nowhere"):
        done = run(path)
        assert (done.exit_code, done.stdout) == (1, "")
        assert str(path) in done.stderr


def test_images_that_nothing_lists_are_a_note_and_no_failure(folder):
    rng = np.random.default_rng(1)
    for name in ("b.png", "c.png", "d.png", "e.png", "f.png", "g.png"):
        write_image(folder / name, rng.integers(0, 256, (30, 40, 3), dtype=np.uint8))
    done = run(folder)
    assert done.exit_code == 0
    assert "note: 5 more images" in done.stdout
    assert "c.png, d.png, e.png and 2 more" in done.stdout
    assert [Path(path).name for path in json.loads(run(folder, "--json").stdout)["unlisted"]] == [
        "c.png",
        "d.png",
        "e.png",
        "f.png",
        "g.png",
    ]


def test_a_folder_of_images_without_labels_suggests_what_to_do(folder):
    for file in folder.glob("*.json"):
        file.unlink()
    done = run(folder)
    assert done.exit_code == 1
    assert "holds images without labels (label some" in done.stderr
    assert done.stderr.count("\n") == 1
