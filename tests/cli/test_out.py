"""``--out``: a folder for several files, else a file, to which a missing suffix is added."""

from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from otus.cli import app
from otus.cli._common import output_file, output_folder
from otus.data.image_writing import write_image
from otus.data.scenes.files import write_scenes
from otus.errors import UsageError


def test_a_missing_suffix_is_added_and_a_folder_gets_the_default_name(tmp_path):
    assert output_file(None, "errors.html") == Path("errors.html")
    assert output_file(tmp_path / "mine", "errors.html") == tmp_path / "mine.html"
    assert output_file(tmp_path / "ap-0.5", "ap.html") == tmp_path / "ap-0.5.html"
    assert output_file(tmp_path / "mine.HTML", "errors.html") == tmp_path / "mine.HTML"
    assert output_file(tmp_path, "errors.html") == tmp_path / "errors.html"
    with pytest.raises(UsageError, match=r"--out: expected a file that ends in \.png, got seen\.jpg"):
        output_file(Path("seen.jpg"), "seen.png")


def test_a_folder_is_not_named_like_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "odd.json").mkdir()
    for folder in (tmp_path / "new", tmp_path, tmp_path / "odd.json", tmp_path / "v1.2"):
        assert output_folder(folder, "overlays") == folder
    for file in (tmp_path / "file", tmp_path / "found.jpg"):
        with pytest.raises(UsageError, match="--plots: expected a folder, for overlays, got"):
            output_folder(file, "overlays", option="--plots")


FOLDERS = {
    "predict": ["predict", "owl.png"],
    "train": ["train", "--data", "photos", "--model", "yolo"],
    "compare": ["compare", "--data", "photos", "--models", "yolo"],
    "benchmark": ["benchmark", "lineage"],
    "plots": ["evaluate", "--data", "photos", "--predictions", "found.json"],
}


@pytest.mark.parametrize("verb", FOLDERS)
def test_verbs_that_write_several_files_refuse_a_file_before_they_work(verb, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    option = "--plots" if verb == "plots" else "--out"
    done = CliRunner().invoke(app, [*FOLDERS[verb], option, "found.png"])
    assert done.exit_code == 2
    assert f"{option}: expected a folder, for " in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_verbs_that_write_one_file_add_its_suffix(tmp_path):
    write_scenes(tmp_path / "scenes", 2)
    labels = tmp_path / "scenes" / "annotations.json"
    (tmp_path / "found.json").write_text("[]")
    write_image(tmp_path / "flat.png", np.full((40, 60, 3), 90, np.uint8))
    sides = ["--data", labels, "--predictions", tmp_path / "found.json"]
    one = ["--data", labels]
    commands = {
        "errors.html": ["explain", "errors", *sides],
        "difference.html": ["explain", "difference", *sides, "--protocols", "coco,voc07"],
        "taxonomy.png": ["explain", "taxonomy", "000000", *one],
        "proposals.png": ["propose", tmp_path / "flat.png", "--method", "sliding-window"],
    }
    for name, command in commands.items():
        done = CliRunner().invoke(app, [*map(str, command), "--out", str(tmp_path / Path(name).stem)])
        assert done.exit_code == 0, done.output
        assert (tmp_path / name).stat().st_size > 0
