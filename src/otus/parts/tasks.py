"""Tasks as values: what a system is asked, and all that follows from it.

Training, validation, prediction, evaluation and reports ask the task of a system; none of them asks what kind of system it
is. A further task is one more value here, its results in :mod:`otus.structures`, and its protocol in
:mod:`otus.evaluation.protocols`. How geometry is undone belongs to the type of the result: ``result.resized(size_hw)``,
which ``Preprocess.undo`` calls. Torch is not imported here.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from otus.data.dataset import Dataset
from otus.data.merging import remap_categories, remap_semantic_categories
from otus.data.needed_labels import Labels
from otus.data.object_regions import objects_as_regions
from otus.data.sample import Sample
from otus.structures import (
    IGNORE,
    BoxFormat,
    Categories,
    Classification,
    Instances,
    Masks,
    SemanticMap,
)
from otus.structures.boxes import as_boxes, convert
from otus.visualization.drawing import ImageArray, Page, draw, draw_semantic, overlay

_SHOWN_CATEGORIES = 5


@dataclass(frozen=True)
class Task:
    """What a system is asked.

    Parameters
    ----------
    name
        ``detection``, ``semantic`` …, as ``otus models`` and the folders of runs say it.
    labels
        What it is learned from and judged by.
    result
        Type of the result of an image.
    answers
        What a result says, in words, for errors: ``where objects are``.
    protocol
        Name of the evaluation protocol by which it is validated, and judged unless another is named.
    scores
        Figures of that protocol and what they are called, the most telling first: the first that there is decides which
        weights are the best.
    compared
        Figures that a comparison of models lists: by the name in its documents that of the protocol, and the title.
    plotted
        Which of these it plots by seconds.
    records
        One JSON object for each thing in a result, as ``predictions.json`` lists them.
    document
        From those records to the members of the document of ``otus predict --json``.
    words
        What a result says in a few words.
    columns
        A result as the columns of a table, ``category`` among them.
    objects
        A result of an image of ``size_hw`` as objects, for tables and boxes.
    above
        What of a result scores at least so much, to be drawn.
    truth
        What a sample's labels say, as such a result; None where they say nothing.
    at_rest
        A result in little memory, to be kept for a whole data set.
    draw, overlay
        A result on a copy of its image, which keeps its size (``labels=False`` without names); and to be looked at, with a
        legend where there is need.
    head_labels, amodal_head_labels
        What a further head needs, without which the model's ``boxes_only`` is trained in its place; the second what
        serves it too where whole objects are learned.
    categories
        Those of a data set's labels for this task.
    remapped
        A data set with the labels for this task counted by another list of categories.
    validation_set
        From a data set to that whose images are predicted and judged.
    """

    name: str
    labels: Labels
    result: type
    answers: str
    protocol: str
    scores: Mapping[str, str]
    compared: Mapping[str, tuple[str, str]]
    plotted: str
    records: Callable[[Any, Categories], Iterator[dict[str, Any]]]
    document: Callable[[Sequence[dict[str, Any]]], dict[str, Any]]
    words: Callable[[Any, Categories], str]
    columns: Callable[[Any, Categories], dict[str, Any]]
    objects: Callable[[Any, tuple[int, int]], Instances]
    above: Callable[[Any, float], Any]
    truth: Callable[[Sample], Any]
    at_rest: Callable[[Any], Any]
    draw: Callable[..., ImageArray]
    overlay: Callable[[ImageArray, Any], Page]
    head_labels: Labels | None = None
    amodal_head_labels: Labels | None = None
    categories: Callable[[Dataset], Categories] = lambda dataset: dataset.categories
    remapped: Callable[[Dataset, Categories], Dataset] = remap_categories
    validation_set: Callable[[Dataset], Dataset] = lambda dataset: dataset

    def __repr__(self) -> str:
        return f"Task({self.name!r})"

    def score(self, figures: Mapping[str, float]) -> float:
        """Return the first of ``scores`` that there is among figures by ``kind/name``; 0 where it is not defined."""
        value = next(figures[name] for name in self.scores if name in figures)
        return 0.0 if np.isnan(value) else value


def instance_records(instances: Instances, categories: Categories) -> Iterator[dict[str, Any]]:
    """Each object as the ``predict`` document has it: ``category``, ``score``, ``bbox`` (xywh), outline, keypoints."""
    boxes = convert(instances.boxes_xyxy, BoxFormat.XYXY, BoxFormat.XYWH)
    outlines = None if instances.masks is None else instances.masks.rle_json()
    for i, label in enumerate(instances.labels):
        record: dict[str, Any] = {"category": categories[int(label)]}
        if instances.scores is not None:
            record["score"] = float(instances.scores[i])
        record["bbox"] = [float(value) for value in boxes[i]]
        if outlines is not None:
            record["segmentation"] = outlines[i]
        if instances.keypoints is not None:
            record["keypoints"] = [float(value) for value in instances.keypoints[i].reshape(-1)]
        yield record


def counts_in_words(names: Sequence[str]) -> str:
    """``3 person, 1 dog``, the most frequent first."""
    counts = Counter(names)
    return ", ".join(f"{count} {name}" for name, count in counts.most_common()) or "nothing"


def _instances_in_words(instances: Instances, categories: Categories) -> str:
    return counts_in_words([categories[int(label)] for label in instances.labels])


def _instance_columns(instances: Instances, categories: Categories) -> dict[str, Any]:
    columns: dict[str, Any] = {
        "category": [categories[int(label)] for label in instances.labels],
        "score": instances.scores,
    }
    columns |= dict(zip(("x1", "y1", "x2", "y2"), instances.boxes_xyxy.T, strict=True))
    return columns | ({} if instances.masks is None else {"mask_area": instances.masks.area()})


def _classification_columns(shown: Classification, categories: Categories) -> dict[str, Any]:
    order = shown.order()
    return {"category": [categories[int(label)] for label in order], "score": shown.scores[order]}


def _classification_records(shown: Classification, categories: Categories) -> Iterator[dict[str, Any]]:
    for label in shown.order()[:_SHOWN_CATEGORIES].tolist():
        yield {"category": categories[label], "score": float(shown.scores[label])}


def _classification_in_words(shown: Classification, categories: Categories) -> str:
    records = _classification_records(shown, categories)
    return ", ".join(f"{record['category']} {record['score']:.2f}" for record in records)


def _classified_object(shown: Classification, size_hw: tuple[int, int]) -> Instances:
    """The likeliest category around the whole image."""
    best = shown.order()[:1]
    box = as_boxes([[0, 0, size_hw[1], size_hw[0]]])
    return Instances(box, best, size_hw, shown.categories, scores=shown.scores[best])


def _semantic_objects(semantic: SemanticMap, size_hw: tuple[int, int]) -> Instances:
    """The pixels of each category that occurs as one object, the largest first."""
    semantic = semantic.resized(size_hw)
    names = _semantic_columns(semantic, semantic.categories)["category"]
    labels = np.array([semantic.categories.index(name) for name in names], dtype=np.int64)
    masks = Masks.from_dense(semantic.labels == labels[:, None, None])
    return Instances(masks.boxes_xyxy(), labels, size_hw, semantic.categories, masks=masks)


def _semantic_records(semantic: SemanticMap, categories: Categories) -> Iterator[dict[str, Any]]:
    objects = _semantic_objects(semantic, semantic.size_hw)
    assert objects.masks is not None
    for label, outline in zip(objects.labels, objects.masks.rle_json(), strict=True):
        yield {"category": categories[int(label)], "segmentation": outline}


def _semantic_columns(semantic: SemanticMap, categories: Categories) -> dict[str, Any]:
    """The categories that occur and their shares of the pixels, the largest first."""
    counts = np.bincount(semantic.labels.ravel(), minlength=IGNORE + 1)[: len(categories)]
    labels = np.argsort(-counts, kind="stable")[: np.count_nonzero(counts)]
    return {"category": [categories[int(label)] for label in labels], "share": counts[labels] / semantic.labels.size}


def _semantic_in_words(semantic: SemanticMap, categories: Categories) -> str:
    shares = zip(*_semantic_columns(semantic, categories).values(), strict=True)
    return ", ".join(f"{name} {share:.0%}" for name, share in shares) or "nothing"


def _with_rle(instances: Instances) -> Instances:
    return instances if instances.masks is None else replace(instances, masks=instances.masks.to_rle())


def _instances_as_they_are(instances: Instances, size_hw: tuple[int, int]) -> Instances:
    return instances.resized(size_hw)


def _has_amodal_masks(dataset: Dataset) -> bool:
    whole = None if dataset.objects is None else dataset.objects.amodal_segmentations
    return whole is not None and bool(whole.kinds.any())


_SCORES = {"keypoints/AP": "keypoint AP", "segm/AP": "mask AP", "bbox/AP": "box AP"}

DETECTION = Task(
    name="detection",
    labels=Labels("objects", lambda dataset: dataset.objects is not None),
    result=Instances,
    answers="where objects are",
    protocol="coco",
    scores=_SCORES,
    compared={"AP": ("bbox/AP", "AP"), "AP50": ("bbox/AP50", "AP50"), "AP_masks": ("segm/AP", "mask AP")},
    plotted="AP50",
    records=instance_records,
    document=lambda records: {"instances": list(records)},
    words=_instances_in_words,
    columns=_instance_columns,
    objects=_instances_as_they_are,
    above=lambda found, threshold: found if found.scores is None else found[found.scores >= threshold],
    truth=lambda sample: sample.instances,
    at_rest=_with_rle,
    draw=draw,
    overlay=overlay,
)
INSTANCE = replace(
    DETECTION,
    name="instance",
    head_labels=Labels("masks", lambda dataset: dataset.objects is not None and bool(dataset.objects.has_mask.any())),
    amodal_head_labels=Labels("masks", _has_amodal_masks),
)
KEYPOINTS = replace(
    DETECTION,
    name="keypoints",
    head_labels=Labels(
        "keypoints", lambda dataset: dataset.objects is not None and bool(dataset.objects.has_keypoints.any())
    ),
)
CLASSIFICATION = Task(
    name="classification",
    labels=Labels(
        "objects or categories", lambda dataset: dataset.objects is not None or dataset.image_labels is not None
    ),
    result=Classification,
    answers="what whole images show",
    protocol="classification",
    scores={"classification/top1": "top-1 accuracy"},
    compared={"top1": ("classification/top1", "top-1"), "top5": ("classification/top5", "top-5")},
    plotted="top1",
    records=_classification_records,
    document=lambda records: {"classification": list(records)},
    words=_classification_in_words,
    columns=_classification_columns,
    objects=_classified_object,
    above=lambda shown, threshold: shown,
    truth=lambda sample: None,
    at_rest=lambda shown: shown,
    draw=lambda image, shown, labels=True: draw(image, _classified_object(shown, image.shape[:2]), labels=labels),
    overlay=lambda image, shown: overlay(image, _classified_object(shown, image.shape[:2])),
    validation_set=lambda dataset: dataset if dataset.image_labels is not None else objects_as_regions(dataset),
)
SEMANTIC = Task(
    name="semantic",
    labels=Labels("semantic maps", lambda dataset: dataset.semantic is not None),
    result=SemanticMap,
    answers="the category of every pixel",
    protocol="semantic",
    scores={"semantic/mIoU": "mean IoU"},
    compared={"mIoU": ("semantic/mIoU", "mIoU"), "aAcc": ("semantic/aAcc", "pixel accuracy")},
    plotted="mIoU",
    records=_semantic_records,
    document=lambda records: {"semantic": {record["category"]: record["segmentation"] for record in records}},
    words=_semantic_in_words,
    columns=_semantic_columns,
    objects=_semantic_objects,
    above=lambda semantic, threshold: semantic,
    truth=lambda sample: sample.semantic,
    at_rest=lambda semantic: SemanticMap(semantic.labels.astype(np.uint8), semantic.categories),
    draw=lambda image, semantic, labels=True: draw_semantic(image, semantic, names=False),
    overlay=draw_semantic,
    categories=lambda dataset: dataset.categories if dataset.semantic is None else dataset.semantic.categories,
    remapped=remap_semantic_categories,
)
TASKS = (CLASSIFICATION, DETECTION, INSTANCE, KEYPOINTS, SEMANTIC)
"""Every task that a system has so far."""
