"""Train the small single-stage detectors by name, by the recipe, and load their weights."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

import otus
from otus.experiments.recipes import single_stage
from otus.training.run import train
from otus.training.settings import TrainSettings
from otus.zoo.checkpoint import load_checkpoint
from otus.zoo.models import MODELS
from tiny_run import write_scenes

QUICK = TrainSettings(epochs=1, batch_size=2, device="cpu", workers=1)


@pytest.mark.parametrize("model", single_stage.SETTINGS)
def test_a_run_by_name_leaves_a_file_that_loads(model: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    scenes = write_scenes(tmp_path / "scenes", 4)
    settings = replace(single_stage.SETTINGS[model], epochs=1, batch_size=2, device="cpu", workers=1)
    run = train(
        model, scenes, val=0.5, settings=settings, augment=single_stage.augmentation(model), image_size=64, out=tmp_path
    )
    figures = load_checkpoint(run.best)[1].training["figures"]
    assert "bbox/AP50" in figures
    predictor = otus.load(run.best)
    assert predictor.preprocess.size_of((100, 100)) == (64, 64)
    image = scenes[0].image
    assert predictor.predict(image, score_threshold=0)[0].instances.size_hw == image.shape[:2]
    assert "training on 2 images" in capfd.readouterr().err


def test_objects_that_a_grid_cannot_represent_are_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    entry = MODELS["yolo_efficientnet_lite0"]
    one_cell = replace(entry, builder=lambda categories: entry.builder(categories, grid_size=1))
    monkeypatch.setitem(MODELS, "one_cell", one_cell)
    scenes = write_scenes(tmp_path / "scenes", 4)
    train("one_cell", scenes, settings=QUICK, image_size=32, out=tmp_path)
    found = re.search(r"note: (\d+) of (\d+) objects are not learned: a cell of the 1 x 1 grid", capfd.readouterr().err)
    assert found is not None
    crowds = int(scenes.objects.is_crowd.sum())
    assert int(found[2]) == len(scenes.objects) - crowds
    assert int(found[1]) == int(found[2]) - len(set(scenes.objects.image_index[~scenes.objects.is_crowd].tolist()))
