"""What the tests of the yardstick share: made-up COCO files, our values made of them, and pycocotools' answer."""

import contextlib
import copy
import io
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from otus.structures import Categories, KeypointNames, Objects, Segmentations

KEYPOINTS = 17
Records = list[dict[str, Any]]


def _rle(mask: np.ndarray) -> dict[str, Any]:
    from pycocotools import mask as codec

    record = codec.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": record["size"], "counts": record["counts"].decode()}


def _blob(rng: np.random.Generator, box: list[float], height: int, width: int) -> np.ndarray:
    """Return an ellipse with a ragged border and holes inside a box."""
    x, y, w, h = box
    rows, columns = np.mgrid[:height, :width] + 0.5
    inside = ((columns - x - w / 2) / (w / 2)) ** 2 + ((rows - y - h / 2) / (h / 2)) ** 2 <= 1
    return inside & (rng.random((height, width)) < 0.97)


def make_scene(
    seed: int,
    *,
    image_count: int = 12,
    categories: int = 4,
    decimals: int | None = 0,
    score_steps: int = 20,
    first_id: int = 1,
    outlines: bool = False,
    keypoints: bool = False,
    detections: int = 14,
    side: int = 120,
) -> tuple[dict[str, Any], Records]:
    """A COCO annotation file and results with ties, crowds, near hits, duplicates, and images without either side."""
    rng = np.random.default_rng(seed)

    def number(value: float) -> float:
        return float(value) if decimals is None else round(float(value), decimals)

    def outline(box: list[float], crowd: bool) -> Any:
        if crowd or rng.random() < 0.5:
            return _rle(_blob(rng, box, side, side))
        x, y, w, h = box
        rings = [[x, y, x + w, y + h / 3, x + w / 2, y + h]]
        if rng.random() < 0.5:
            rings.append([x + w / 4, y, x + w, y + h / 8, x + w * 0.9, y + h * 0.8, x, y + h])
        return rings

    def points(box: list[float], *, noise: float) -> np.ndarray:
        x, y, w, h = box
        grid = np.stack([x + w * rng.random(KEYPOINTS), y + h * rng.random(KEYPOINTS)], axis=1)
        return np.round(grid + noise * rng.normal(size=grid.shape), 1)

    images = [{"id": int(i), "width": side, "height": side} for i in rng.permutation(image_count) * 3]
    annotations: Records = []
    results: Records = []
    for image in images:
        for _ in range(int(rng.integers(0, 7))):
            width, height = rng.integers(2, 70, 2) if rng.random() < 0.8 else rng.integers(90, 110, 2)
            box = [
                number(rng.random() * (side - width)),
                number(rng.random() * (side - height)),
                float(width),
                float(height),
            ]
            crowd = rng.random() < 0.15
            record = {
                "id": first_id + len(annotations),
                "image_id": image["id"],
                "category_id": int(rng.integers(1, categories + 1)) * 10,
                "bbox": box,
                "area": float(round(width * height * rng.uniform(0.5, 1), 2)),
                "iscrowd": int(crowd),
            }
            if outlines:
                record["segmentation"] = outline(box, crowd)
            true_points = points(box, noise=0)
            if keypoints:
                visibility = rng.integers(0, 3, KEYPOINTS) * (rng.random() < 0.8)
                record["keypoints"] = np.column_stack([true_points, visibility]).reshape(-1).tolist()
                record["num_keypoints"] = int((visibility > 0).sum())
            annotations.append(record)
            for _ in range(int(rng.integers(0, 4))):
                near = [
                    number(v + rng.normal() * 0.08 * (w + 1)) for v, w in zip(box, [*box[2:], *box[2:]], strict=True)
                ]
                near = [number(v) for v in (near[0], near[1], max(near[2], 1), max(near[3], 1))]
                if rng.random() < 0.2:
                    near = list(box)
                result = {"image_id": image["id"], "category_id": record["category_id"], "bbox": near}
                if rng.random() < 0.1:
                    result["category_id"] = 10
                if outlines:
                    result["segmentation"] = _rle(_blob(rng, near, side, side))
                if keypoints:
                    moved = true_points + rng.normal(size=true_points.shape) * rng.uniform(0, 0.15) * min(width, height)
                    result["keypoints"] = np.column_stack([np.round(moved, 1), np.ones(KEYPOINTS)]).reshape(-1).tolist()
                    del result["bbox"]
                results.append(result)
        for _ in range(int(rng.integers(0, detections))):
            box = [number(v) for v in (*(rng.random(2) * side * 0.8), *(1 + rng.random(2) * side * 0.5))]
            result = {"image_id": image["id"], "category_id": int(rng.integers(1, categories + 1)) * 10, "bbox": box}
            if outlines:
                result["segmentation"] = _rle(_blob(rng, box, side, side))
            if keypoints:
                result["keypoints"] = np.column_stack([points(box, noise=1), np.ones(KEYPOINTS)]).reshape(-1).tolist()
                del result["bbox"]
            results.append(result)
    for result in results:
        result["score"] = float(np.round(rng.random() * score_steps) / score_steps)
    order = rng.permutation(len(results))
    document = {
        "info": {},
        "images": images,
        "annotations": [annotations[i] for i in rng.permutation(len(annotations))],
        "categories": [{"id": 10 * (i + 1), "name": f"c{i}"} for i in range(categories)],
    }
    return document, [results[i] for i in order]


def _columns(records: Records, document: dict[str, Any], *, predictions: bool) -> Objects:
    """Return objects of COCO records, completed as by pycocotools' loadRes: a second, simple reader."""
    place = {image["id"]: i for i, image in enumerate(document["images"])}
    label = {c["id"]: i for i, c in enumerate(sorted(document["categories"], key=lambda c: c["id"]))}
    if not records:
        scores = {"scores": np.zeros(0)} if predictions else {}
        return Objects.build(image_index=[], labels=[], boxes_xyxy=[], **scores)
    boxes, areas = [], []
    for record in records:
        if "bbox" in record:
            box = record["bbox"]
        elif "keypoints" in record:
            x, y = record["keypoints"][0::3], record["keypoints"][1::3]
            box = [min(x), min(y), max(x) - min(x), max(y) - min(y)]
        else:
            from pycocotools import mask as codec

            box = codec.toBbox(record["segmentation"]).tolist()
            record = {**record, "area": float(codec.area(record["segmentation"]))}
        boxes.append(box)
        areas.append(
            record.get("area", box[2] * box[3]) if not predictions or "bbox" not in record else box[2] * box[3]
        )
    xywh = np.array(boxes, dtype=np.float64)
    others: dict[str, Any] = {"columns": {"box_sizes_wh": xywh[:, 2:]}}
    if predictions:
        others["scores"] = np.array([r["score"] for r in records])
    if any("segmentation" in r for r in records):
        outlines = []
        for record in records:
            outline = record["segmentation"]
            if isinstance(outline, dict):
                counts = outline["counts"]
                if isinstance(counts, list):
                    from pycocotools import mask as codec

                    counts = codec.frPyObjects(outline, *outline["size"])["counts"]
                outlines.append(counts.encode() if isinstance(counts, str) else counts)
            else:
                outlines.append([np.array(ring).reshape(-1, 2) for ring in outline])
        others["segmentations"] = Segmentations.build(outlines)
    if any("keypoints" in r for r in records):
        others["keypoints"] = np.array([r.get("keypoints", [0] * 51) for r in records], dtype=np.float64).reshape(
            -1, 17, 3
        )
    return Objects.build(
        image_index=[place[r["image_id"]] for r in records],
        labels=[label[r["category_id"]] for r in records],
        boxes_xyxy=np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1),
        ids=[r.get("id", i + 1) for i, r in enumerate(records)],
        areas=areas,
        is_crowd=[bool(r.get("iscrowd", 0)) for r in records],
        **others,
    )


def to_values(document: dict[str, Any], results: Records) -> SimpleNamespace:
    """``ground_truth``, ``predictions``, ``categories``, ``image_ids`` and ``sizes_hw`` of COCO records."""
    ordered = sorted(document["categories"], key=lambda c: c["id"])
    names = tuple(c["name"] for c in ordered)
    person = KeypointNames(tuple(f"p{i}" for i in range(KEYPOINTS)))
    return SimpleNamespace(
        ground_truth=_columns(document["annotations"], document, predictions=False),
        predictions=_columns(results, document, predictions=True),
        categories=Categories(names, ids=tuple(c["id"] for c in ordered), keypoints=tuple((n, person) for n in names)),
        image_ids=[image["id"] for image in document["images"]],
        sizes_hw=np.array([[image["height"], image["width"]] for image in document["images"]]),
    )


def evaluate_by_pycocotools(
    document: dict[str, Any],
    results: Records,
    kind: str,
    *,
    max_dets: list[int] | None = None,
    area_ranges: list[list[float]] | None = None,
    iou_thresholds: list[float] | None = None,
    recall_thresholds: list[float] | None = None,
) -> Any:
    """A COCOeval after evaluate, accumulate and, with its own parameters, summarize."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        ground_truth = COCO()
        ground_truth.dataset = copy.deepcopy(document)
        ground_truth.createIndex()
        if results:
            predictions = ground_truth.loadRes(copy.deepcopy(results))
        else:
            predictions = COCO()
            predictions.dataset = {**copy.deepcopy(document), "annotations": []}
            predictions.createIndex()
        evaluation = COCOeval(ground_truth, predictions, kind)
        if max_dets:
            evaluation.params.maxDets = max_dets
        if area_ranges:
            evaluation.params.areaRng = area_ranges
            evaluation.params.areaRngLbl = [str(i) for i in range(len(area_ranges))]
        if iou_thresholds:
            evaluation.params.iouThrs = np.array(iou_thresholds)
        if recall_thresholds:
            evaluation.params.recThrs = np.array(recall_thresholds)
        evaluation.evaluate()
        evaluation.accumulate()
        if not (max_dets or area_ranges or iou_thresholds or recall_thresholds):
            evaluation.summarize()
    return evaluation


@pytest.fixture(scope="session")
def coco_scene() -> Callable[..., tuple[dict[str, Any], Records]]:
    """:func:`make_scene`."""
    return make_scene


@pytest.fixture(scope="session")
def coco_values() -> Callable[..., SimpleNamespace]:
    """:func:`to_values`."""
    return to_values


@pytest.fixture(scope="session")
def pycocotools_evaluate() -> Callable[..., Any]:
    """:func:`evaluate_by_pycocotools`; skips where pycocotools is missing."""
    pytest.importorskip("pycocotools", reason="pycocotools is the reference")
    return evaluate_by_pycocotools
