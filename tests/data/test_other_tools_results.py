"""Results as other tools write them: names for ids, ids that count otherwise, and results of other data."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from otus.cli import app
from otus.data.formats.coco import image_ids
from otus.data.formats.coco_results import read_results
from otus.data.image_writing import write_image, write_label_image
from otus.data.open import open_dataset
from otus.errors import DataError
from otus.metrics.diagnosis.mismatches import id_conventions
from otus.structures.categories import COCO_IDS

CENTRES = ((0.25, 0.25), (0.5, 0.5), (0.75, 0.5))
NAMES = ("img_a", "img_b")


def yolo_set(root: Path, names: tuple[str, ...] = NAMES) -> Path:
    """Two images with an object of each of three categories."""
    for part in ("images", "labels"):
        (root / part).mkdir(parents=True)
    (root / "data.yaml").write_text("train: images\nnames: [owl, mouse, cat]\n")
    for seed, name in enumerate(names):
        write_image(
            root / f"images/{name}.jpg", np.random.default_rng(seed).integers(0, 256, (40, 80, 3), dtype=np.uint8)
        )
        lines = [f"{label} {x} {y} 0.25 0.5" for label, (x, y) in enumerate(CENTRES)]
        (root / f"labels/{name}.txt").write_text("\n".join(lines))
    return root


def found_by(file: Path, *, shift: int = 0, **fields: Any) -> Path:
    """All objects of both images, perfect; each field may be a list, one an image."""
    records = []
    for image, name in enumerate(NAMES):
        for label, (x, y) in enumerate(CENTRES):
            record = {"image_id": name, "category_id": label + shift, "score": 0.9}
            record["bbox"] = [80 * x - 10, 40 * y - 10, 20, 20]
            record |= {field: value[image] if isinstance(value, list) else value for field, value in fields.items()}
            records.append(record)
    file.write_text(json.dumps(records))
    return file


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(one) for one in arguments])


def evaluated(data: Path, predictions: Path, *options: str) -> dict[str, Any]:
    done = run("evaluate", "--data", data, "--predictions", predictions, "--json", *options)
    assert done.exit_code == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"file_name": ["img_a.jpg", "img_b.jpg"]},
        {"image_id": ["img_a.jpg", "img_b.jpg"]},
        {"image_id": ["images/img_a", "/data/images/img_b.jpg"]},
        {"image_id": [5, 4], "file_name": ["img_a.jpg", "img_b.jpg"]},
    ],
)
def test_text_ids_are_names_of_images(tmp_path: Path, fields: dict[str, Any]) -> None:
    document = evaluated(yolo_set(tmp_path / "data"), found_by(tmp_path / "found.json", **fields))
    assert document["bbox"]["AP"] == pytest.approx(1)
    assert "notes" not in document


def test_a_text_that_names_nothing_is_named(tmp_path: Path) -> None:
    data = open_dataset(yolo_set(tmp_path / "data"))
    with pytest.raises(
        DataError, match=r"annotations\[3\].image_id: 'img_c' does not match exactly one image of the data"
    ):
        read_results(found_by(tmp_path / "found.json", image_id=["img_a", "img_c"]), data)


def test_numbers_are_those_of_the_names(tmp_path: Path) -> None:
    data = yolo_set(tmp_path / "data", ("000285", "000139"))
    assert image_ids(open_dataset(data)) == [139, 285]
    assert evaluated(data, found_by(tmp_path / "found.json", image_id=[285, 139]))["bbox"]["AP"] == pytest.approx(1)


@pytest.mark.parametrize(("shift", "says"), [(1, "the data's plus 1"), (-1, "the data's minus 1")])
def test_ids_that_count_otherwise_are_said_before_the_zeros(tmp_path: Path, shift: int, says: str) -> None:
    data, predictions = yolo_set(tmp_path / "data"), found_by(tmp_path / "found.json", shift=shift)
    done = run("evaluate", "--data", data, "--predictions", predictions)
    assert (done.exit_code, done.stdout) == (1, "")
    assert f"the file's ids seem to be {says}" in done.stderr
    records = [one for one in json.loads(predictions.read_text()) if 0 <= one["category_id"] <= 2]
    predictions.write_text(json.dumps(records))  # nobody found the last category, so every id is known
    (note,) = evaluated(data, predictions)["notes"]
    assert f"their category ids seem to be {says}" in note
    done = run("evaluate", "--data", data, "--predictions", predictions)
    assert note in done.stderr


@pytest.mark.parametrize(
    "command",
    [
        ("compare", "--resamples", "2"),
        ("explain", "errors"),
        ("explain", "ap", "--category", "owl"),
        ("explain", "difference", "--protocols", "coco,voc07"),
    ],
)
def test_other_commands_say_it_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]) -> None:
    monkeypatch.chdir(tmp_path)
    data, predictions = yolo_set(tmp_path / "data"), found_by(tmp_path / "found.json", shift=1)
    predictions.write_text(json.dumps([one for one in json.loads(predictions.read_text()) if one["category_id"] <= 2]))
    files = f"{predictions},{predictions}" if command[0] == "compare" else predictions
    done = run(*command, "--data", data, "--predictions", files, "--json")
    assert done.exit_code == 0, done.stderr
    (note,) = json.loads(done.stdout)["notes"]
    assert "the data's plus 1" in note
    assert note in done.stderr


def test_cocos_two_ways_of_counting() -> None:
    readings = id_conventions(COCO_IDS)
    assert readings["positions in the data's list of categories, from 0"].tolist() == list(range(80))
    assert id_conventions(range(80))["COCO's 1 to 90 of its 80 categories"].tolist() == list(COCO_IDS)
    assert len(COCO_IDS) == 80


def test_boxes_of_other_images_and_fractions_are_said(tmp_path: Path) -> None:
    data = yolo_set(tmp_path / "data")
    (note,) = evaluated(data, found_by(tmp_path / "found.json", bbox=[[0.1, 0.1, 0.2, 0.2]] * 2))["notes"]
    assert "none of the 6 predictions overlaps an object" in note
    assert "fractions of the image" in note
    moved = found_by(tmp_path / "found.json", bbox=[[70, 1, 5, 5]] * 2)
    (note,) = evaluated(data, moved)["notes"]
    assert "compare image ids" in note


def test_results_of_other_data_are_no_mere_zeros(tmp_path: Path) -> None:
    data, predictions = yolo_set(tmp_path / "data"), found_by(tmp_path / "found.json", image_id=[71, 72])
    done = run("evaluate", "--data", data, "--predictions", predictions)
    assert done.exit_code == 1
    assert "no image has the id 71, nor any other id of this file; ids of the data are 1, 2; a file_name" in done.stderr
    document = evaluated(data, predictions, "--skip-bad")
    assert document["notes"] == ["6 of 6 predictions were skipped (6 unknown_image): are they for this data set?"]


def test_text_files_of_another_counting(tmp_path: Path) -> None:
    data = yolo_set(tmp_path / "data")
    (tmp_path / "found").mkdir()
    for name in NAMES:
        (tmp_path / f"found/{name}.txt").write_text("1 0.25 0.25 0.25 0.5 0.9\n2 0.5 0.5 0.25 0.5 0.9\n")
    (note,) = evaluated(data, tmp_path / "found")["notes"]
    assert "the data's plus 1" in note
    for file in (tmp_path / "found").iterdir():
        file.rename(file.with_name(f"pred_{file.name}"))
    done = run("evaluate", "--data", data, "--predictions", tmp_path / "found")
    assert "is not the name of an image of the data; names are img_a, img_b" in done.stderr


def test_semantic_maps_of_another_counting(tmp_path: Path) -> None:
    for part in ("images", "masks", "found"):
        (tmp_path / part).mkdir()
    (tmp_path / "classes.txt").write_text("sky\nroad\ntree\n")
    true = np.repeat(np.array([0, 1, 1], dtype=np.uint8), 4)[None].repeat(9, axis=0)
    write_image(tmp_path / "images/a.png", np.full((9, 12, 3), 99, dtype=np.uint8))
    write_label_image(tmp_path / "masks/a.png", true)
    write_label_image(tmp_path / "found/a.png", true + 1)
    document = evaluated(tmp_path, tmp_path / "found", "--protocol", "semantic")
    assert document["semantic"]["mIoU"] == 0
    assert "the data's plus 1" in document["notes"][0]


def test_panoptic_maps_of_another_counting_and_text_ids(tmp_path: Path) -> None:
    ids = np.zeros((6, 8, 3), dtype=np.uint8)
    ids[:, :4, 0], ids[:, 4:, 0] = 1, 2
    categories = [{"id": one, "name": f"kind {one}", "isthing": 1} for one in (1, 2, 3)]

    def write(name: str, shift: int, image_id: int | str) -> Path:
        (tmp_path / name).mkdir()
        write_image(tmp_path / name / "7.png", ids)
        segments = [{"id": one, "category_id": one + shift} for one in (1, 2)]
        annotations = [{"image_id": image_id, "file_name": "7.png", "segments_info": segments}]
        images = [{"id": 7, "file_name": "7.jpg", "width": 8, "height": 6}]
        file = tmp_path / f"{name}.json"
        file.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
        return file

    labels = write("labels", 0, 7)
    named = evaluated(labels, write("named", 0, "7.jpg"), "--protocol", "panoptic")
    assert named["panoptic"]["PQ"] == 1
    assert "notes" not in named
    shifted = evaluated(labels, write("shifted", 1, 7), "--protocol", "panoptic")
    assert shifted["panoptic"]["PQ"] == 0
    assert "the data's plus 1" in shifted["notes"][0]
    nothing = evaluated(labels, write("nothing", 0, 8), "--protocol", "panoptic", "--skip-bad")
    assert "none of the 1 images has a prediction" in nothing["notes"][0]


def test_classifications_of_other_images(tmp_path: Path) -> None:
    for seed, name in enumerate(("owl", "mouse")):
        (tmp_path / "data" / name).mkdir(parents=True)
        write_image(tmp_path / "data" / name / f"{seed}.png", np.full((6, 8, 3), 40 * seed, dtype=np.uint8))
    answers = [{"file": "z.png", "classification": [{"category": "owl", "score": 1.0}]}]
    (tmp_path / "found.json").write_text(json.dumps(answers))
    document = evaluated(tmp_path / "data", tmp_path / "found.json", "--skip-bad")
    assert "none of the 2 images has a prediction" in document["notes"][0]
