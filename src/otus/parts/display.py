"""How results are shown: as JSON, as a table, as a short summary, and drawn on the image.

There is one :class:`Display` for each type of result; tasks refer to theirs (:mod:`otus.parts.tasks`). Torch is not
imported here.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from otus.structures import IGNORE, BoxFormat, Categories, Classification, Instances, Masks, PanopticMap, SemanticMap
from otus.structures.boxes import as_boxes, convert
from otus.visualization.drawing import Colours, ImageArray, Page, draw, draw_panoptic, draw_semantic, overlay
from otus.visualization.palette import category_colours

_TOP_CATEGORIES = 5


@dataclass(frozen=True)
class Display:
    """Functions that show one type of result.

    Parameters
    ----------
    records
        From ``(result, categories)`` to one JSON object per object or category, as listed in ``predictions.json``.
    document
        From these records to the entries of the ``otus predict --json`` document.
    summary
        From ``(result, categories)`` to a short text, such as ``3 person, 1 dog``.
    columns
        From ``(result, categories)`` to the columns of a table; ``category`` is one of them.
    objects
        From ``(result, size_hw)`` to objects in an image of that size, for tables and legends.
    above_score
        From ``(result, score threshold)`` to the part of the result that is drawn.
    draw
        From ``(image, result, labels=True)`` to a copy of the image, of the same size, with the result drawn on it.
    overlay
        From ``(image, result)`` to the image that ``otus predict`` writes, with a legend if needed.
    """

    records: Callable[[Any, Categories], Iterator[dict[str, Any]]]
    document: Callable[[Sequence[dict[str, Any]]], dict[str, Any]]
    summary: Callable[[Any, Categories], str]
    columns: Callable[[Any, Categories], dict[str, Any]]
    objects: Callable[[Any, tuple[int, int]], Instances]
    above_score: Callable[[Any, float], Any]
    draw: Callable[..., ImageArray]
    overlay: Callable[[ImageArray, Any], Page]


def instance_records(instances: Instances, categories: Categories) -> Iterator[dict[str, Any]]:
    """Yield each object as in ``otus predict --json``: ``category``, ``score``, ``bbox`` (xywh), RLE, keypoints."""
    boxes = convert(instances.boxes_xyxy, BoxFormat.XYXY, BoxFormat.XYWH)
    rles = None if instances.masks is None else instances.masks.rle_json()
    for i, label in enumerate(instances.labels):
        record: dict[str, Any] = {"category": categories[int(label)]}
        if instances.scores is not None:
            record["score"] = float(instances.scores[i])
        record["bbox"] = [float(value) for value in boxes[i]]
        if rles is not None:
            record["segmentation"] = rles[i]
        if instances.keypoints is not None:
            record["keypoints"] = [float(value) for value in instances.keypoints[i].reshape(-1)]
        yield record


def count_names(names: Sequence[str]) -> str:
    """Return counts such as ``3 person, 1 dog``, the most frequent first."""
    counts = Counter(names)
    return ", ".join(f"{count} {name}" for name, count in counts.most_common()) or "nothing"


def _instance_summary(instances: Instances, categories: Categories) -> str:
    return count_names([categories[int(label)] for label in instances.labels])


def _instance_columns(instances: Instances, categories: Categories) -> dict[str, Any]:
    columns: dict[str, Any] = {
        "category": [categories[int(label)] for label in instances.labels],
        "score": instances.scores,
    }
    columns |= dict(zip(("x1", "y1", "x2", "y2"), instances.boxes_xyxy.T, strict=True))
    return columns | ({} if instances.masks is None else {"mask_area": instances.masks.area()})


def _classification_columns(classification: Classification, categories: Categories) -> dict[str, Any]:
    order = classification.order()
    return {"category": [categories[int(label)] for label in order], "score": classification.scores[order]}


def _classification_records(classification: Classification, categories: Categories) -> Iterator[dict[str, Any]]:
    for label in classification.order()[:_TOP_CATEGORIES].tolist():
        yield {"category": categories[label], "score": float(classification.scores[label])}


def _classification_summary(classification: Classification, categories: Categories) -> str:
    records = _classification_records(classification, categories)
    return ", ".join(f"{record['category']} {record['score']:.2f}" for record in records)


def _classification_object(classification: Classification, size_hw: tuple[int, int]) -> Instances:
    """Return the highest-scoring category as one object whose box is the whole image."""
    best = classification.order()[:1]
    box = as_boxes([[0, 0, size_hw[1], size_hw[0]]])
    return Instances(box, best, size_hw, classification.categories, scores=classification.scores[best])


def _semantic_objects(semantic: SemanticMap, size_hw: tuple[int, int]) -> Instances:
    """Return one object per category present, whose mask has all pixels of that category; largest first."""
    semantic = semantic.resized(size_hw)
    names = _semantic_columns(semantic, semantic.categories)["category"]
    labels = np.array([semantic.categories.index(name) for name in names], dtype=np.int64)
    # One mask at a time: the masks of all categories of a large image would not fit into memory.
    counts = [Masks.from_dense(semantic.labels[None] == label).rle()[0]["counts"] for label in labels]
    masks = Masks.from_rle(counts, semantic.size_hw)  # type: ignore[arg-type]
    return Instances(masks.boxes_xyxy(), labels, size_hw, semantic.categories, masks=masks)


def _semantic_records(semantic: SemanticMap, categories: Categories) -> Iterator[dict[str, Any]]:
    objects = _semantic_objects(semantic, semantic.size_hw)
    assert objects.masks is not None
    for label, rle in zip(objects.labels, objects.masks.rle_json(), strict=True):
        yield {"category": categories[int(label)], "segmentation": rle}


def _semantic_columns(semantic: SemanticMap, categories: Categories) -> dict[str, Any]:
    """Return the categories present and their fractions of the pixels, largest first."""
    counts = np.bincount(semantic.labels.ravel(), minlength=IGNORE + 1)[: len(categories)]
    labels = np.argsort(-counts, kind="stable")[: np.count_nonzero(counts)]
    return {"category": [categories[int(label)] for label in labels], "share": counts[labels] / semantic.labels.size}


def _semantic_summary(semantic: SemanticMap, categories: Categories) -> str:
    shares = zip(*_semantic_columns(semantic, categories).values(), strict=True)
    return ", ".join(f"{name} {share:.0%}" for name, share in shares) or "nothing"


def _fixed_colours(categories: Categories) -> Colours:
    """Return a colour per category that does not depend on which categories occur, so that a video does not flicker."""
    return dict(zip(categories, category_colours(len(categories)), strict=True))


def _draw_semantic(image: ImageArray, semantic: SemanticMap, labels: bool = True) -> ImageArray:
    return draw_semantic(image, semantic, names=False, colours=_fixed_colours(semantic.categories))


def _panoptic_objects(panoptic: PanopticMap, size_hw: tuple[int, int]) -> Instances:
    """Return one object per segment, of stuff as well as of things."""
    panoptic = panoptic.resized(size_hw)
    masks, labels = panoptic.masks(), np.array([segment.label for segment in panoptic.segments], dtype=np.int64)
    return Instances(masks.boxes_xyxy(), labels, size_hw, panoptic.categories, masks=masks)


def _panoptic_records(panoptic: PanopticMap, categories: Categories) -> Iterator[dict[str, Any]]:
    """Yield each segment as in ``segments_info`` of COCO's panoptic format, with its category's name and its RLE."""
    masks = panoptic.masks()
    boxes = convert(masks.boxes_xyxy(), BoxFormat.XYXY, BoxFormat.XYWH)
    for segment, rle, box, area in zip(panoptic.segments, masks.rle_json(), boxes, masks.area(), strict=True):
        yield {
            "id": segment.id,
            "category": categories[segment.label],
            "category_id": categories.ids[segment.label],
            "isthing": categories.is_thing[segment.label],
            **({} if segment.score is None else {"score": segment.score}),
            "bbox": [int(value) for value in box],
            "area": int(area),
            "segmentation": rle,
        }


def _panoptic_summary(panoptic: PanopticMap, categories: Categories) -> str:
    """Return a summary such as ``2 person, 1 dog; sky, grass``: things are counted, stuff is listed."""
    names = [(categories[segment.label], categories.is_thing[segment.label]) for segment in panoptic.segments]
    things, stuff = ([name for name, is_thing in names if is_thing is kind] for kind in (True, False))
    return "; ".join([count_names(things)] * bool(things or not stuff) + [", ".join(stuff)] * bool(stuff))


def _panoptic_columns(panoptic: PanopticMap, categories: Categories) -> dict[str, Any]:
    return {
        "category": [categories[segment.label] for segment in panoptic.segments],
        "score": [segment.score for segment in panoptic.segments],
        "is_thing": [categories.is_thing[segment.label] for segment in panoptic.segments],
        "share": panoptic.masks().area() / panoptic.ids.size,
    }


def _draw_panoptic(image: ImageArray, panoptic: PanopticMap, labels: bool = True) -> ImageArray:
    return draw_panoptic(image, panoptic, names=False, colours=_fixed_colours(panoptic.categories))


INSTANCES_DISPLAY = Display(
    records=instance_records,
    document=lambda records: {"instances": list(records)},
    summary=_instance_summary,
    columns=_instance_columns,
    objects=Instances.resized,
    above_score=lambda objects, threshold: objects if objects.scores is None else objects[objects.scores >= threshold],
    draw=draw,
    overlay=overlay,
)
CLASSIFICATION_DISPLAY = Display(
    records=_classification_records,
    document=lambda records: {"classification": list(records)},
    summary=_classification_summary,
    columns=_classification_columns,
    objects=_classification_object,
    above_score=lambda classification, threshold: classification,
    draw=lambda image, result, labels=True: draw(image, _classification_object(result, image.shape[:2]), labels=labels),
    overlay=lambda image, result: overlay(image, _classification_object(result, image.shape[:2])),
)
SEMANTIC_DISPLAY = Display(
    records=_semantic_records,
    document=lambda records: {"semantic": {record["category"]: record["segmentation"] for record in records}},
    summary=_semantic_summary,
    columns=_semantic_columns,
    objects=_semantic_objects,
    above_score=lambda semantic, threshold: semantic,
    draw=_draw_semantic,
    overlay=draw_semantic,
)
PANOPTIC_DISPLAY = Display(
    records=_panoptic_records,
    document=lambda records: {"panoptic": {"segments_info": list(records)}},
    summary=_panoptic_summary,
    columns=_panoptic_columns,
    objects=_panoptic_objects,
    above_score=lambda panoptic, threshold: panoptic,
    draw=_draw_panoptic,
    overlay=draw_panoptic,
)
