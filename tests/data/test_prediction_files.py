"""Files of predictions: what they mean, and what is said of those that cannot be."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from otus.data.dataset import Dataset, Images, PanopticFiles, SemanticFiles
from otus.data.formats.coco_panoptic import ids_to_rgb, read_panoptic_results
from otus.data.formats.coco_results import read_results
from otus.data.formats.image_results import read_classifications, read_click_curves
from otus.data.formats.index_png_results import find_semantic_results, read_semantic_result
from otus.data.formats.text_results import read_text_results
from otus.data.image_lookup import image_index_by_name
from otus.errors import DataError
from otus.structures import Categories, Objects

CATEGORIES = Categories(("plane", "Car", "owl"), ids=(5, 6, 9))
FILES = ("val/cats/1.png", "val/dogs/1.png", "val/dogs/2.png")


def a_dataset(**others) -> Dataset:
    images = Images(Path("images"), FILES, np.array([[20, 40]] * 3), (101, 102, 103))
    return Dataset(Path("labels"), "made", images, CATEGORIES, **others)


def collect(read, *arguments) -> tuple[object, list[str]]:
    """What a reader gives, and the kinds of problems that it reported; the strict way raises the first of them."""
    problems: list[DataError] = []
    value = read(*arguments, report=problems.append)
    value = list(value) if not isinstance(value, Objects | tuple | PanopticFiles) else value
    if problems:
        with pytest.raises(DataError) as raised:
            list(read(*arguments))
        assert str(raised.value) == str(problems[0])
    return value, [str(problem) for problem in problems]


def test_a_image_is_meant_by_as_much_of_its_name_as_tells_it_apart():
    find = image_index_by_name(a_dataset())
    for name in ("val/dogs/1.png", "dogs/1", "dogs/1.png", "/home/me/val/dogs/1.png", "102"):
        assert find(name) == 1
    assert find("2") == find("2.png") == find("elsewhere/2.png") == 2
    for name in ("1", "1.png", "3", "", "birds/1.png"):
        assert find(name) is None


def write(folder: Path, **texts: str) -> Path:
    folder.mkdir(exist_ok=True)
    for name, text in texts.items():
        (folder / f"{name}.txt").write_text(text)
    return folder


def test_dota_has_a_file_a_category(tmp_path):
    square = "10 2 18 10 10 18 2 10"
    folder = write(tmp_path / "found", Task1_plane=f"2 0.9 {square}\n101 0.25 {square}\n", Task1_owl=f"2 1e-3 {square}")
    predictions, problems = collect(read_text_results, folder, a_dataset())
    assert problems == []
    assert predictions.image_index.tolist() == [0, 2, 2]
    assert predictions.labels.tolist() == [0, 0, 2] or predictions.labels.tolist() == [0, 2, 0]
    assert sorted(predictions.scores.tolist()) == [1e-3, 0.25, 0.9]
    assert predictions.boxes_xyxy.tolist() == [[2, 2, 18, 18]] * 3
    assert predictions.corners_xy[0].tolist() == [[10, 2], [18, 10], [10, 18], [2, 10]]
    assert predictions.areas.tolist() == [128] * 3
    folder = write(
        tmp_path / "faulty", Task1_ship="", Task1_plane=f"2 0.9 {square}\n3 0.9 {square}\n2 0.9 1 2\n2 nan {square}"
    )
    predictions, problems = collect(read_text_results, folder, a_dataset())
    assert len(predictions) == 1
    for problem, words in zip(
        problems, (["Task1_ship", "'ship'"], ["line 2", "'3'"], ["line 3", "4 words"], ["line 4", "nan"]), strict=True
    ):
        assert all(word in problem for word in words), problem


def test_kitti_has_cuboids_and_scores(tmp_path):
    line = "Car -1 -1 -1.5 1 2 30 18 1.5 1.6 4.0 2.0 1.7 20.0 -1.5707963"
    predictions, problems = collect(
        read_text_results, write(tmp_path / "found", **{"2": f"{line} 0.75\n"}), a_dataset()
    )
    assert (problems, predictions.image_index.tolist(), predictions.labels.tolist(), predictions.scores.tolist()) == (
        [],
        [2],
        [1],
        [0.75],
    )
    np.testing.assert_allclose(predictions.cuboids[0], [20, -2, -0.95, 4, 1.6, 1.5, 0], atol=1e-6)
    with pytest.raises(DataError, match="need a score"):
        read_text_results(write(tmp_path / "unscored", **{"2": f"{line}\n"}), a_dataset())
    folder = write(tmp_path / "faulty", **{"2": f"{line} 0.75\n{line.replace('Car', 'Cart')} 0.5\n", "9": ""})
    predictions, problems = collect(read_text_results, folder, a_dataset())
    assert len(predictions) == 1
    assert "9.txt" in problems[0]
    assert "line 2" in problems[1]
    assert "'Cart'" in problems[1]


def test_yolo_has_fractions(tmp_path):
    folder = write(tmp_path / "boxes", **{"2": "2 0.5 0.5 0.25 0.5 0.9\n", "103": ""})
    predictions, problems = collect(read_text_results, folder, a_dataset())
    assert len(problems) == 0
    assert (predictions.image_index.tolist(), predictions.labels.tolist(), predictions.scores.tolist()) == (
        [2],
        [2],
        [0.9],
    )
    assert predictions.boxes_xyxy.tolist() == [[15, 5, 25, 15]]
    folder = write(tmp_path / "turned", **{"2": "0 0.25 0.1 0.45 0.5 0.25 0.9 0.05 0.5 0.8\n"})
    predictions, _ = collect(read_text_results, folder, a_dataset())
    assert predictions.corners_xy[0].tolist() == [[10, 2], [18, 10], [10, 18], [2, 10]]
    empty, problems = collect(read_text_results, write(tmp_path / "nothing", **{"2": ""}), a_dataset())
    assert (len(empty), empty.scores.tolist(), problems) == (0, [], [])
    with pytest.raises(DataError, match="no text files"):
        read_text_results(write(tmp_path / "empty"), a_dataset())


def test_semantic_maps_by_name(tmp_path):
    lookup = np.full(256, 255)
    lookup[[5, 6, 9]] = 0, 1, 2
    semantic = SemanticFiles((None,) * 3, CATEGORIES, lookup, void_values=(11, 255))
    for name in ("dogs/1", "2", "9"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(np.full((20, 40), 6, np.uint8)).save(tmp_path / f"{name}.png")
    files, problems = collect(find_semantic_results, tmp_path, a_dataset(semantic=semantic))
    assert files == (None, tmp_path / "dogs/1.png", tmp_path / "2.png")
    assert len(problems) == 1
    assert "9.png: is not the name of an image of the data" in problems[0]
    (tmp_path / "9.png").rename(tmp_path / "dogs/2.png")
    _, problems = collect(find_semantic_results, tmp_path, a_dataset(semantic=semantic))
    assert "a second map of an image" in problems[0]
    values = np.full((20, 40), 6, np.uint8)
    values[0, :3] = 5, 11, 255
    Image.fromarray(values).save(tmp_path / "2.png")
    labels = read_semantic_result(tmp_path / "2.png", semantic, size_hw=(20, 40)).labels
    assert labels[0, :4].tolist() == [0, 255, 255, 1]
    values[5, 5] = 77
    Image.fromarray(values).save(tmp_path / "2.png")
    with pytest.raises(DataError, match=r"2\.png: has the values \[77\].*5 plane, 6 Car, 9 owl"):
        read_semantic_result(tmp_path / "2.png", semantic, size_hw=(20, 40))
    with pytest.raises(DataError, match=r"expected labels of 41 x 20 pixels.*got 40 x 20"):
        read_semantic_result(tmp_path / "2.png", semantic, size_hw=(20, 41))
    with pytest.raises(DataError, match="expected a folder of index PNGs"):
        find_semantic_results(tmp_path / "none", a_dataset(semantic=semantic))


def test_panoptic_maps(tmp_path):
    dataset = a_dataset(panoptic=PanopticFiles((None,) * 3, ((),) * 3, CATEGORIES))
    ids = np.ones((20, 40), dtype=np.int64)
    ids[:, 20:] = 70_000
    Image.fromarray(ids_to_rgb(ids)).save(tmp_path / "a.png")
    record = {
        "image_id": 102,
        "file_name": "a.png",
        "segments_info": [{"id": 1, "category_id": 9}, {"id": 70_000, "category_id": 5}],
    }
    (tmp_path / "found.json").write_text(json.dumps({"annotations": [record]}))
    for path in (tmp_path, tmp_path / "found.json"):
        files, problems = collect(read_panoptic_results, path, dataset)
        assert (problems, files.files) == ([], (None, tmp_path / "a.png", None))
    panoptic = replace(dataset, panoptic=files).panoptic_map(1)
    assert [(one.id, one.label) for one in panoptic.segments] == [(1, 2), (70_000, 0)]
    faulty = [
        {**record, "image_id": 1},
        record,
        record,
        {**record, "image_id": 103, "segments_info": [{"id": 1, "category_id": 2}]},
        {**record, "image_id": 103, "segments_info": [{"id": 1, "category_id": 5}] * 2},
        {**record, "image_id": 103, "file_name": "../a.png"},
    ]
    (tmp_path / "found.json").write_text(json.dumps(faulty))
    files, problems = collect(read_panoptic_results, tmp_path / "found.json", dataset)
    assert files.files[1] is not None
    places = (
        "[0].image_id",
        "[2].image_id",
        "[3].segments_info[0].category_id",
        "[4].segments_info[1].id",
        "[5].file_name",
    )
    for problem, place in zip(problems, places, strict=True):
        assert f"annotations{place}" in problem
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="found 0"):
        read_panoptic_results(tmp_path / "empty", dataset)


def answers(*scores: tuple[str, float]) -> list[dict]:
    return [{"category": category, "score": score} for category, score in scores]


def test_classifications(tmp_path):
    dataset = a_dataset(image_labels=np.array([0, 1, 2]))
    records = [
        {"file": "x/dogs/1.png", "seconds": 0.1, "classification": answers(("owl", 0.9), ("Car", 0.1))},
        {"file": "2.png", "classification": []},
    ]
    for document in ({"model": "m", "images": records}, records):
        (tmp_path / "found.json").write_text(json.dumps(document))
        predictions, problems = collect(read_classifications, tmp_path / "found.json", dataset)
        assert problems == []
        assert [(index, scores.tolist()) for index, scores in predictions] == [
            (1, [-np.inf, 0.1, 0.9]),
            (2, [-np.inf] * 3),
        ]
    records = [
        {"file": "1.png", "classification": []},
        {"file": "2.png", "classification": answers(("owl", 1), ("owl", 2))},
        {"file": "2.png", "classification": answers(("bear", 1))},
        {"file": "2.png", "classification": answers(("owl", float("nan")))},
        {"file": "2.png"},
        {"file": "2.png", "classification": []},
        {"file": "103", "classification": []},
    ]
    (tmp_path / "found.json").write_text(json.dumps(records))
    predictions, problems = collect(read_classifications, tmp_path / "found.json", dataset)
    assert [index for index, _ in predictions] == [2]
    assert len(problems) == 6
    assert all(f"images[{i}]" in "".join(problems) for i in (0, 1, 2, 3, 4, 6))
    for text, words in (("[]", None), ('{"images": []}', None), ('{"answers": []}', "expected a list of images")):
        (tmp_path / "found.json").write_text(text)
        predictions, problems = collect(read_classifications, tmp_path / "found.json", dataset)
        assert (predictions, len(problems)) == ([], words is not None)
        assert words is None or words in problems[0]


def test_clicks(tmp_path):
    records = [{"file": "2.png", "ious": [0.5, 0.9]}, {"file": "2.png", "ious": [1]}, {"file": "dogs/1", "ious": [0]}]
    (tmp_path / "clicks.json").write_text(json.dumps(records))
    predictions, problems = collect(read_click_curves, tmp_path / "clicks.json", a_dataset())
    assert (predictions, problems) == ([(2, [0.5, 0.9]), (2, [1.0]), (1, [0.0])], [])
    records = [{"file": "2.png", "ious": [1.5]}, {"file": "2.png", "ious": []}, {"file": "7", "ious": [0.5]}]
    (tmp_path / "clicks.json").write_text(json.dumps(records))
    predictions, problems = collect(read_click_curves, tmp_path / "clicks.json", a_dataset())
    assert predictions == []
    for problem, words in zip(
        problems,
        ("images[0].ious: expected an IoU in 0..1 after each click, got 1.5", "no click", "images[2].file"),
        strict=True,
    ):
        assert words in problem
    with pytest.raises(DataError, match="got a folder"):
        list(read_click_curves(tmp_path, a_dataset()))


def test_files_that_systems_leave_are_no_predictions(tmp_path):
    lookup = np.arange(256)
    semantic = SemanticFiles((None,) * 3, CATEGORIES, lookup, void_values=(255,))
    Image.fromarray(np.full((20, 40), 1, np.uint8)).save(tmp_path / "2.png")
    folder = write(tmp_path / "boxes", **{"2": "2 0.5 0.5 0.25 0.5 0.9\n"})
    for place, name in ((tmp_path, "2.png"), (folder, "2.txt")):
        (place / f"._{name}").write_bytes(b"\0\5\x16\7")
        (place / ".ipynb_checkpoints").mkdir()
        (place / ".ipynb_checkpoints" / name).write_bytes((place / name).read_bytes())
    files, problems = collect(find_semantic_results, tmp_path, a_dataset(semantic=semantic))
    assert (files, problems) == ((None, None, tmp_path / "2.png"), [])
    predictions, problems = collect(read_text_results, folder, a_dataset())
    assert (len(predictions), problems) == (1, [])


def test_coco_results_in_utf16(tmp_path):
    record = {"image_id": 101, "category_id": 5, "bbox": [1, 2, 3, 4], "score": 0.5}
    (tmp_path / "results.json").write_text(json.dumps([record]), encoding="utf-16")
    assert len(read_results(tmp_path / "results.json", a_dataset())) == 1
