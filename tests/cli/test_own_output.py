"""The output of commands in the folder of a data set does not make it unreadable."""

import inspect
from pathlib import Path

import numpy as np
from PIL import Image
from typer.testing import CliRunner

import otus
from otus.cli import app
from otus.data.image_files import is_own_output
from otus.experiments.compare import compare
from otus.experiments.lineage import measure_lineage


def test_a_run_beside_the_categories_is_no_category(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OTUS_RUNS", raising=False)
    for name in ("cat", "owl"):
        Path(name).mkdir()
        for number in range(2):
            Image.fromarray(np.full((40, 40, 3), 90 * number, np.uint8)).save(f"{name}/{number}.png")
    command = [
        "train",
        "--model",
        "classifier_efficientnet_lite0",
        "--data",
        ".",
        "--epochs",
        "1",
        "--image-size",
        "32",
    ]
    done = CliRunner().invoke(app, [*command, "--batch-size", "4", "--device", "cpu"])
    assert done.exit_code == 0, done.stderr or done.exception
    assert list(Path("runs").rglob("*.jpg"))
    dataset = otus.open_dataset(".")
    assert (dataset.categories.names, len(dataset)) == (("cat", "owl"), 4)


def test_the_folders_of_comparisons_and_timings_are_known(tmp_path):
    for function, name, file in ((compare, "out", "rows/a.json"), (measure_lineage, "folder", "a.json")):
        folder = tmp_path / inspect.signature(function).parameters[name].default
        (folder / file).parent.mkdir(parents=True)
        assert not is_own_output(folder)
        (folder / file).touch()
        assert is_own_output(folder)
