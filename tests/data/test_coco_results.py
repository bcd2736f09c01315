"""Predictions: what pycocotools' loadRes makes of a file is what we make of it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO

from otus.data.dataset import Dataset
from otus.data.formats import coco
from otus.data.formats.coco_results import read_results, write_results
from otus.data.formats.interface import Layout


@pytest.fixture(scope="module")
def labels(shared_data: Path) -> tuple[Dataset, COCO]:
    file = shared_data / "coco/annotations.json"
    return coco.read(Layout("coco", file)), COCO(file)


def predictions(theirs: COCO, *fields: str) -> list[dict[str, Any]]:
    """Predictions from labels, in a shuffled order, with scores that repeat."""
    rng = np.random.default_rng(0)
    chosen = [one for one in theirs.anns.values() if all(one.get(name) for name in fields)]
    records = []
    for one in rng.permutation(np.array(chosen, dtype=object))[:600]:
        record = {name: one[name] for name in ("image_id", "category_id", *fields)}
        if "bbox" in fields:
            record["bbox"] = [float(np.float32(value)) for value in rng.normal(one["bbox"], 2)]
        if "segmentation" in fields:
            counts = theirs.annToRLE(one)
            record["segmentation"] = {"size": counts["size"], "counts": _text(counts["counts"])}
        records.append({**record, "score": round(float(rng.random()), 2)})
    return records


def _text(counts: str | bytes) -> str:
    return counts if isinstance(counts, str) else counts.decode()


@pytest.mark.parametrize("fields", [("bbox",), ("segmentation",), ("bbox", "segmentation"), ("keypoints",)])
def test_boxes_and_areas_are_those_of_load_res(
    labels: tuple[Dataset, COCO], tmp_path: Path, fields: tuple[str, ...]
) -> None:
    dataset, theirs = labels
    file = tmp_path / "results.json"
    file.write_text(json.dumps(predictions(theirs, *fields)))
    objects, loaded = read_results(file, dataset), theirs.loadRes(str(file))
    assert len(objects) == len(loaded.anns) > 100
    for row, prediction_id in enumerate(objects.ids.tolist()):
        one = loaded.anns[prediction_id]
        assert dataset.images.ids[objects.image_index[row]] == one["image_id"]
        assert dataset.categories.ids[objects.labels[row]] == one["category_id"]
        assert objects.scores is not None
        assert objects.scores[row] == one["score"]
        assert objects.areas[row] == one["area"]
        x, y, width, height = one["bbox"]
        assert objects.boxes_xyxy[row].tolist() == [x, y, x + width, y + height]


def test_what_is_written_reads_the_same(labels: tuple[Dataset, COCO], tmp_path: Path) -> None:
    dataset, theirs = labels
    file, again = tmp_path / "results.json", tmp_path / "again.json"
    file.write_text(json.dumps(predictions(theirs, "bbox", "segmentation")))
    first = read_results(file, dataset)
    write_results(dataset, first, again)
    second = read_results(again, dataset)
    assert first.segmentations is not None
    assert second.segmentations is not None
    for name in ("image_index", "labels", "boxes_xyxy", "scores"):
        np.testing.assert_array_equal(getattr(second, name), getattr(first, name))
    np.testing.assert_allclose(second.areas, first.areas, rtol=1e-12)
    np.testing.assert_array_equal(second.segmentations.counts_bytes, first.segmentations.counts_bytes)


def test_an_object_with_annotations_and_an_empty_list_are_accepted(
    labels: tuple[Dataset, COCO], tmp_path: Path
) -> None:
    dataset, theirs = labels
    file = tmp_path / "results.json"
    file.write_text(json.dumps({"annotations": predictions(theirs, "bbox")[:5]}))
    assert len(read_results(file, dataset)) == 5
    file.write_text("[]")
    assert len(read_results(file, dataset)) == 0


def test_an_empty_list_is_predictions_too(labels: tuple[Dataset, COCO], tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    file.write_text("[]")
    objects = read_results(str(file), labels[0])
    assert len(objects) == 0
    assert objects.scores is not None


def test_keypoints_of_two_categories_have_the_boxes_of_load_res(tmp_path: Path) -> None:
    file, results = tmp_path / "instances.json", tmp_path / "results.json"
    content = {
        "images": [{"id": 1, "file_name": "a.jpg", "width": 60, "height": 40}],
        "categories": [
            {"id": 1, "name": "p", "keypoints": ["a", "b", "c"]},
            {"id": 2, "name": "q", "keypoints": ["a", "b"]},
        ],
        "annotations": [],
    }
    file.write_text(json.dumps(content))
    points = {2: [20, 20, 2, 30, 25, 2], 1: [20, 20, 2, 30, 25, 2, 5, 6, 0]}
    results.write_text(
        json.dumps([{"image_id": 1, "category_id": k, "keypoints": v, "score": 0.5} for k, v in points.items()])
    )
    expected = [one["bbox"] for one in COCO(file).loadRes(str(results)).dataset["annotations"]]
    boxes = read_results(results, coco.read(Layout("coco", file))).boxes_xyxy
    assert [[x1, y1, x2 - x1, y2 - y1] for x1, y1, x2, y2 in boxes.tolist()] == expected


def test_predictions_of_negative_size_are_taken_as_load_res_does(labels: tuple[Dataset, COCO], tmp_path: Path) -> None:
    dataset, theirs = labels
    file = tmp_path / "results.json"
    file.write_text(json.dumps([{**one, "bbox": [5, 5, -2, 3]} for one in predictions(theirs, "bbox")[:2]]))
    assert len(read_results(file, dataset)) == 2
