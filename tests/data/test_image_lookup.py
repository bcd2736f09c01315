"""An image is found by what people call it."""

from pathlib import Path

import numpy as np
import pytest

from otus.data.dataset import Dataset, Images
from otus.data.image_lookup import find_image_index, image_index_by_name
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


def test_a_file_name_goes_before_the_id_of_another_image(tmp_path: Path) -> None:
    images = Images(tmp_path, ("1.png", "10.png", "2.png", "a/7.png", "b/7.png"), np.full((5, 2), 4), (1, 2, 3, 7, 8))
    dataset = Dataset(tmp_path, "coco", images, Categories(("owl",)))
    names = ("1", "10", "2", "10.png", "x/2", "3", "8")
    indices = [0, 1, 2, 1, 2, 2, 4]
    assert [find_image_index(dataset, name) for name in names] == indices
    assert list(map(image_index_by_name(dataset), names)) == indices
    assert image_index_by_name(dataset)("7") is None


def test_several_and_none(dataset: Dataset) -> None:
    with pytest.raises(UsageError, match=r"2 images of .* match: a/owl.jpg, b/owl.jpg \(give the path\)"):
        find_image_index(dataset, "owl.jpg")
    with pytest.raises(UsageError, match=r"doge.jpg: not one of the 4 images of .*; similar names: dog.jpg"):
        find_image_index(dataset, "doge.jpg")
    with pytest.raises(UsageError, match=r"for example: owl.jpg, owl.jpg, cat.png, dog.jpg"):
        find_image_index(dataset, "zzzzzzz")
