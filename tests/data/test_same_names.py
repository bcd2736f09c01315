"""Images of one name in different folders: cat/1.jpg beside dog/1.jpg is nothing wrong, in any format of folders."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from otus.data.checks.doctor import check_path
from otus.data.formats import coco, voc
from otus.data.formats.interface import Layout
from otus.data.formats.text_results import read_text_results
from otus.data.image_writing import write_image, write_label_image
from otus.data.open import open_dataset


def noise(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_image(path, np.random.default_rng(seed).integers(0, 256, (40, 60, 3), dtype=np.uint8))


def classification(root: Path, part: str, seed: int) -> None:
    noise(root / "train" / part / "1.png", seed)


def yolo(root: Path, part: str, seed: int) -> None:
    noise(root / "images" / part / "1.png", seed)
    (root / "labels" / part).mkdir(parents=True)
    (root / "labels" / part / "1.txt").write_text(f"{seed} 0.5 0.5 0.2 0.2\n")


def yolo_named(root: Path, part: str, seed: int) -> None:
    root.mkdir(exist_ok=True)
    (root / "data.yaml").write_text("train: images\nnames: [cat, dog]\n")
    yolo(root, part, seed)


def davis(root: Path, part: str, seed: int) -> None:
    noise(root / "JPEGImages" / part / "1.png", seed)
    (root / "Annotations" / part).mkdir(parents=True)
    write_label_image(root / "Annotations" / part / "1.png", np.eye(40, 60, dtype=np.uint8))


def coco_json(root: Path, part: str, seed: int) -> None:
    noise(root / part / "1.png", seed)
    file = root / "annotations.json"
    content = {"images": [], "annotations": [], "categories": [{"id": 0, "name": "cat"}, {"id": 1, "name": "dog"}]}
    if file.is_file():
        content = json.loads(file.read_text())
    content["images"].append({"id": seed, "file_name": f"{part}/1.png", "width": 60, "height": 40})
    content["annotations"].append({"id": seed, "image_id": seed, "category_id": seed, "bbox": [1, 2, 30, 20]})
    file.write_text(json.dumps(content))


@pytest.mark.parametrize("make", [classification, yolo, yolo_named, davis, coco_json])
def test_the_doctor_finds_nothing(tmp_path: Path, make: Callable[[Path, str, int], None]) -> None:
    for seed, part in enumerate(("cat", "dog")):
        make(tmp_path, part, seed)
    examination = check_path(tmp_path)
    assert examination.image_count == 2
    assert examination.findings == ()


def test_images_that_share_their_labels_are_still_found(tmp_path: Path) -> None:
    for seed, part in enumerate(("cat", "dog")):
        yolo_named(tmp_path, part, seed)
    noise(tmp_path / "images/cat/1.jpg", 7)
    (finding,) = check_path(tmp_path).findings
    assert (finding.kind, finding.where) == ("duplicate_image_id", "images/cat/1")
    assert "2 images differ only in their suffix" in finding.message


def test_labels_of_a_name_that_another_folder_has_are_still_without_a_image(tmp_path: Path) -> None:
    for seed, part in enumerate(("cat", "dog")):
        yolo_named(tmp_path, part, seed)
    (tmp_path / "images/cat/1.png").unlink()
    findings = check_path(tmp_path).findings
    assert ("missing_image", str(tmp_path / "labels/cat/1.txt")) in [(one.kind, one.file) for one in findings]


def test_predictions_in_folders_belong_to_the_images_of_these(tmp_path: Path) -> None:
    for seed, part in enumerate(("cat", "dog")):
        yolo_named(tmp_path / "data", part, seed)
        (tmp_path / "found" / part).mkdir(parents=True)
        (tmp_path / "found" / part / "1.txt").write_text(f"{seed} 0.5 0.5 0.2 0.2 0.9\n")
    dataset = open_dataset(tmp_path / "data")
    predictions = read_text_results(tmp_path / "found", dataset)
    assert [dataset.images.files[i] for i in predictions.image_index] == ["images/cat/1.png", "images/dog/1.png"]
    assert predictions.labels.tolist() == [0, 1]


@pytest.mark.parametrize("name", ["images/a.png", "a.png"])
def test_the_path_of_a_missing_image_of_coco_is_not_doubled(tmp_path: Path, name: str) -> None:
    (tmp_path / "images").mkdir()
    file = tmp_path / "annotations.json"
    images = [{"id": 1, "file_name": name, "width": 6, "height": 4}]
    file.write_text(json.dumps({"images": images, "annotations": [], "categories": []}))
    assert coco.read(Layout("coco", file)).images.path(0) == tmp_path / "images/a.png"


@pytest.mark.parametrize("name", ["JPEGImages/a.png", "a.png"])
def test_nor_that_of_voc(tmp_path: Path, name: str) -> None:
    for part in ("JPEGImages", "Annotations"):
        (tmp_path / part).mkdir()
    size = "<size><width>6</width><height>4</height><depth>3</depth></size>"
    (tmp_path / "Annotations/a.xml").write_text(f"<annotation><filename>{name}</filename>{size}</annotation>")
    assert voc.read(Layout("voc", tmp_path)).images.path(0) == tmp_path / "JPEGImages/a.png"
