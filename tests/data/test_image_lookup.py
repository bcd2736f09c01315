"""An image is found by what people call it."""

from pathlib import Path

import numpy as np
import pytest

from otus.data.dataset import Dataset, Images
from otus.data.image_lookup import find_image_index
from otus.errors import UsageError
from otus.structures import Categories

FILES = ("a/owl.jpg", "b/owl.jpg", "a/cat.png", "a/dog.jpg")


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    for file in FILES:
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).touch()
    images = Images(tmp_path, FILES, np.full((4, 2), 4), (7, 8, 9, 10))
    return Dataset(tmp_path, "coco", images, Categories(("owl",)))


@pytest.mark.parametrize(("name", "index"), [("b/owl.jpg", 1), ("cat.png", 2), ("cat", 2), ("10", 3), ("x/dog.jpg", 3)])
def test_by_key_file_stem_or_id(dataset: Dataset, name: str, index: int) -> None:
    assert find_image_index(dataset, name) == index


def test_by_path(dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_image_index(dataset, str(tmp_path / "b" / "owl.jpg")) == 1
    monkeypatch.chdir(tmp_path / "b")
    assert find_image_index(dataset, "owl.jpg") == 1


def test_several_and_none(dataset: Dataset) -> None:
    with pytest.raises(UsageError, match=r"2 images of .* match: a/owl.jpg, b/owl.jpg \(give the path\)"):
        find_image_index(dataset, "owl.jpg")
    with pytest.raises(UsageError, match=r"doge.jpg: not one of the 4 images of .*; similar names: dog.jpg"):
        find_image_index(dataset, "doge.jpg")
    with pytest.raises(UsageError, match=r"for example: owl.jpg, owl.jpg, cat.png, dog.jpg"):
        find_image_index(dataset, "zzzzzzz")
