"""Predictions that say the names of their images: the name counts, not a number that somebody gave in passing."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from otus.data.dataset import Dataset, Images
from otus.data.formats.coco_results import read_results
from otus.errors import DataError
from otus.structures import Categories

FILES = ("cats/1.jpg", "dogs/1.jpg", "b.png")
DATA = Dataset(
    Path("labels.json"),
    "coco",
    Images(Path("images"), FILES, np.full((3, 2), 50), (2, 3, 1)),
    Categories(("owl", "mouse"), ids=(7, 9)),
)


def written(folder: Path, *records: dict[str, Any]) -> Path:
    file = folder / "predictions.json"
    common = {"category_id": 7, "bbox": [1, 2, 3, 4], "score": 0.5}
    file.write_text(json.dumps([{**common, **record} for record in records]))
    return file


def test_names_say_which_images_are_meant(tmp_path: Path) -> None:
    records = [
        {"image_id": 1, "file_name": "../photos/cats/1.jpg"},
        {"image_id": 2, "file_name": "/tmp/b.png", "frame": 4},
    ]
    records += [{"image_id": 3}, {"image_id": 2, "file_name": None}]
    predictions = read_results(written(tmp_path, *records), DATA)
    assert [FILES[index] for index in predictions.image_index] == ["cats/1.jpg", "cats/1.jpg", "dogs/1.jpg", "b.png"]
    assert predictions.ids.tolist() == [1, 4, 3, 2]


@pytest.mark.parametrize("name", ["c.png", "1.jpg"])
def test_a_name_of_no_image_is_not_believed_its_number(tmp_path: Path, name: str) -> None:
    file = written(tmp_path, {"image_id": 1, "file_name": "b.png"}, {"image_id": 2, "file_name": name})
    problem = rf"annotations\[1\]\.file_name: '{name}' does not match exactly one image of the data"
    with pytest.raises(DataError, match=problem):
        read_results(file, DATA)
    problems: list[DataError] = []
    predictions = read_results(file, DATA, report=problems.append)
    assert [FILES[index] for index in predictions.image_index] == ["b.png"]
    assert [problem.kind for problem in problems] == ["unknown_image"]


def test_beside_them_names_of_categories_go_before_numbers_too(tmp_path: Path) -> None:
    named = [
        {"image_id": 1, "category_id": 9, "file_name": "b.png", "category": name} for name in ("mouse", "owl", "cow")
    ]
    file = written(tmp_path, *named, {"image_id": 1, "category": "a kind of owl"})
    problems: list[DataError] = []
    predictions = read_results(file, DATA, report=problems.append)
    assert [DATA.categories[label] for label in predictions.labels] == ["mouse", "owl", "owl"]
    assert [problem.kind for problem in problems] == ["unknown_category"]
    assert "annotations[2].category: 'cow' does not match exactly one category of the data" in str(problems[0])


def test_results_of_numbers_alone_never_ask_for_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("otus.data.formats.coco_results.image_index_by_name", None)
    assert len(read_results(written(tmp_path, {"image_id": 3}), DATA)) == 1
