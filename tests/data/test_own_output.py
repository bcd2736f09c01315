"""What commands wrote into the data's own folder is not taken for data."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from otus.data.formats import classification_folders
from otus.data.image_files import list_images
from otus.data.open import open_dataset
from otus.data.sources import source_files

LEFT = {
    "otus-predictions": ("a.jpg", "predictions.json"),
    "otus-compare": ("images/a.jpg", "rows/fcos.json"),
    "otus-lineage": ("rcnn-12.json",),
    "runs": ("detection/fcos/batch.jpg", "detection/fcos/config.json"),
}


def write(folder: Path, *files: str, text: str = "{}") -> None:
    for file in files:
        path = folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".json":
            path.write_text(text)
        else:
            Image.fromarray(np.zeros((6, 9, 3), np.uint8)).save(path)


@pytest.mark.parametrize("name", LEFT)
def test_own_output_is_neither_a_image_nor_a_category(tmp_path: Path, name: str) -> None:
    write(tmp_path, "cat/1.png", "owl/1.png")
    write(tmp_path / name, *LEFT[name], text='{"data_digest": "12"}')
    assert source_files(tmp_path) == [tmp_path / "cat/1.png", tmp_path / "owl/1.png"]
    assert open_dataset(tmp_path).categories.names == ("cat", "owl")
    own = [file for file in LEFT[name] if file.endswith(".jpg")]
    assert list_images(tmp_path / name, recursive=True) == [tmp_path / name / file for file in own]  # asked for


@pytest.mark.parametrize("name", LEFT)
def test_folders_that_are_only_called_so_are_data(tmp_path: Path, name: str) -> None:
    write(tmp_path, "cat/1.png", f"{name}/1.png", f"{name}/site/camera/2.png", f"{name}/site/camera/config.json")
    assert source_files(tmp_path) == [
        tmp_path / "cat/1.png",
        tmp_path / name / "1.png",
        tmp_path / name / "site/camera/2.png",
    ]
    (layout,) = classification_folders.find(tmp_path)
    assert classification_folders.read(layout).categories.names == tuple(sorted(("cat", name)))
