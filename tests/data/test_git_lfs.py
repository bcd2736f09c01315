"""A Git LFS pointer in the place of any file is called one."""

from collections.abc import Callable
from pathlib import Path

import pytest

from otus.data.formats import coco, labelme, voc, yolo
from otus.data.formats.coco_results import read_results
from otus.data.images import read_image
from otus.data.open import open_dataset
from otus.data.scenes.files import write_scenes
from otus.data.video import Video
from otus.errors import DataError
from otus.zoo.checkpoint import CheckpointError, load_checkpoint
from otus.zoo.weights import read_weights_file

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22e\nsize 12345\n"
TOLD = r"is a Git LFS pointer, not the file itself.*git lfs pull"


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lfs") / "scenes"
    write_scenes(folder, 3, size_hw=(48, 64))
    return folder


@pytest.mark.parametrize(("write", "suffix"), [(coco, ".json"), (voc, ".xml"), (yolo, ".txt"), (labelme, ".json")])
@pytest.mark.parametrize("all_of_them", [True, False])
def test_annotations(scenes: Path, tmp_path: Path, write: object, suffix: str, all_of_them: bool) -> None:
    folder = tmp_path / "data"
    write.write(open_dataset(scenes, format="coco"), folder, images="copy")  # type: ignore[attr-defined]
    assert len(open_dataset(folder)) == 3
    files = sorted(folder.rglob(f"*{suffix}"))
    for file in files if all_of_them else files[-1:]:
        file.write_bytes(POINTER)
    with pytest.raises(DataError, match=TOLD):
        open_dataset(folder)


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("a.jpg", read_image),
        ("a.mp4", Video),
        ("a.json", open_dataset),
        ("a.safetensors", load_checkpoint),
        ("a.pth", read_weights_file),
    ],
)
def test_single_files(tmp_path: Path, name: str, read: Callable[[Path], object]) -> None:
    (tmp_path / name).write_bytes(POINTER)
    with pytest.raises((DataError, CheckpointError), match=rf"{name}: {TOLD}"):
        read(tmp_path / name)


def test_predictions(scenes: Path, tmp_path: Path) -> None:
    (tmp_path / "predictions.json").write_bytes(POINTER)
    with pytest.raises(DataError, match=TOLD):
        read_results(tmp_path / "predictions.json", open_dataset(scenes, format="coco"))


def test_images_of_a_folder(scenes: Path, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    yolo.write(open_dataset(scenes, format="coco"), folder, images="copy")
    for file in folder.rglob("*.jpg"):
        file.write_bytes(POINTER)
    with pytest.raises(DataError, match=TOLD):
        open_dataset(folder)
