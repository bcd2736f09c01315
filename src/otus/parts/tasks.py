"""Tasks: what a model predicts, from which labels it is trained, and by which protocol it is evaluated.

Training, validation, prediction, evaluation and reports depend on the task of a system, never on the type of the system. A
new task needs one more value here, its result in :mod:`otus.structures` and its protocol in
:mod:`otus.evaluation.protocols`. How a result is mapped back to its image belongs to its type: ``result.resized(size_hw)``,
which ``Preprocess.undo`` calls. Torch is not imported here.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from otus.data.dataset import Dataset
from otus.data.merging import (
    merge_into_one_category,
    remap_categories,
    remap_panoptic_categories,
    remap_semantic_categories,
)
from otus.data.needed_labels import RequiredLabels
from otus.data.object_regions import objects_as_regions
from otus.data.sample import Sample
from otus.data.semantic_views import has_semantic_maps, semantic_categories
from otus.parts.display import CLASSIFICATION_DISPLAY, INSTANCES_DISPLAY, PANOPTIC_DISPLAY, SEMANTIC_DISPLAY, Display
from otus.structures import Categories, Classification, Instances, MaskCandidates, PanopticMap, SemanticMap

OBJECT = Categories(("object",))
"""The only category of promptable models, which segment objects without naming them."""


@dataclass(frozen=True)
class Task:
    """What a model predicts, with the labels, metrics and display that belong to it.

    Parameters
    ----------
    name
        Name such as ``detection`` or ``semantic``, as listed by ``otus models``; also the folder of its training runs.
    labels
        Labels needed for training and evaluation.
    result_type
        Type of the result for one image.
    predicts
        What a result contains, in words, for error messages.
    protocol
        Name of the protocol used in validation, and in evaluation unless another is named.
    validation_metrics
        Metrics of that protocol and their titles, in order of preference: the first available one selects the best
        weights.
    comparison_metrics
        Columns of a comparison of models: by name, the protocol's metric and the column's title.
    plotted_metric
        Name of the column that is plotted against seconds per image.
    display
        How results are shown.
    ground_truth
        Maps a sample to its ground truth as a result; None if it has none.
    compact
        Converts a result to a form that needs little memory, so that those of a whole data set can be kept.
    head_labels, amodal_head_labels
        Labels for the mask or keypoint head, without which the model's ``boxes_only`` is trained instead; with amodal boxes
        the second suffice too.
    categories
        Maps a data set to the categories of its labels for this task.
    remap
        Maps ``(data set, categories)`` to the data set with labels that index these categories.
    validation_set
        Maps a data set to the one whose images are predicted and evaluated.
    """

    name: str
    labels: RequiredLabels
    result_type: type
    predicts: str
    protocol: str
    validation_metrics: Mapping[str, str]
    comparison_metrics: Mapping[str, tuple[str, str]]
    plotted_metric: str
    display: Display
    ground_truth: Callable[[Sample], Any]
    compact: Callable[[Any], Any]
    head_labels: RequiredLabels | None = None
    amodal_head_labels: RequiredLabels | None = None
    categories: Callable[[Dataset], Categories] = lambda dataset: dataset.categories
    remap: Callable[[Dataset, Categories], Dataset] = remap_categories
    validation_set: Callable[[Dataset], Dataset] = lambda dataset: dataset

    def __repr__(self) -> str:
        return f"Task({self.name!r})"

    def score(self, figures: Mapping[str, float]) -> float:
        """Return the first of ``validation_metrics`` that is in ``figures``, metrics by ``kind/name``; 0 if it is NaN."""
        value = next(figures[name] for name in self.validation_metrics if name in figures)
        return 0.0 if np.isnan(value) else value


def _with_rle(instances: Instances) -> Instances:
    return instances if instances.masks is None else replace(instances, masks=instances.masks.to_rle())


def _has_amodal_masks(dataset: Dataset) -> bool:
    amodal = None if dataset.objects is None else dataset.objects.amodal_segmentations
    return amodal is not None and bool(amodal.kinds.any())


_MASKS = RequiredLabels("masks", lambda dataset: dataset.objects is not None and bool(dataset.objects.has_mask.any()))
_AVERAGE_PRECISIONS = {"keypoints/AP": "keypoint AP", "segm/AP": "mask AP", "bbox/AP": "box AP"}

DETECTION = Task(
    name="detection",
    labels=RequiredLabels("objects", lambda dataset: dataset.objects is not None),
    result_type=Instances,
    predicts="objects",
    protocol="coco",
    validation_metrics=_AVERAGE_PRECISIONS,
    comparison_metrics={"AP": ("bbox/AP", "AP"), "AP50": ("bbox/AP50", "AP50"), "AP_masks": ("segm/AP", "mask AP")},
    plotted_metric="AP50",
    display=INSTANCES_DISPLAY,
    ground_truth=lambda sample: sample.instances,
    compact=_with_rle,
)
INSTANCE = replace(
    DETECTION,
    name="instance",
    head_labels=_MASKS,
    amodal_head_labels=RequiredLabels("masks", _has_amodal_masks),
)
KEYPOINTS = replace(
    DETECTION,
    name="keypoints",
    head_labels=RequiredLabels(
        "keypoints", lambda dataset: dataset.objects is not None and bool(dataset.objects.has_keypoints.any())
    ),
)
PROMPTABLE = replace(
    DETECTION,
    name="promptable",
    labels=_MASKS,
    result_type=MaskCandidates,
    predicts="which pixels are the object that a prompt marks",
    protocol="interactive",
    validation_metrics={"interactive/IoU@1": "IoU after one click"},
    comparison_metrics={
        "NoC85": ("interactive/NoC@85", "NoC@85"),
        "NoC90": ("interactive/NoC@90", "NoC@90"),
        "IoU1": ("interactive/IoU@1", "IoU after one click"),
    },
    plotted_metric="IoU1",
    categories=lambda dataset: OBJECT,
    remap=merge_into_one_category,
)
CLASSIFICATION = Task(
    name="classification",
    labels=RequiredLabels(
        "objects or categories", lambda dataset: dataset.objects is not None or dataset.image_labels is not None
    ),
    result_type=Classification,
    predicts="the category of an image",
    protocol="classification",
    validation_metrics={"classification/top1": "top-1 accuracy"},
    comparison_metrics={"top1": ("classification/top1", "top-1"), "top5": ("classification/top5", "top-5")},
    plotted_metric="top1",
    display=CLASSIFICATION_DISPLAY,
    ground_truth=lambda sample: None,
    compact=lambda classification: classification,
    validation_set=lambda dataset: dataset if dataset.image_labels is not None else objects_as_regions(dataset),
)
SEMANTIC = Task(
    name="semantic",
    labels=RequiredLabels("semantic or panoptic maps, or outlines of objects,", has_semantic_maps),
    result_type=SemanticMap,
    predicts="the category of every pixel",
    protocol="semantic",
    validation_metrics={"semantic/mIoU": "mean IoU"},
    comparison_metrics={"mIoU": ("semantic/mIoU", "mIoU"), "aAcc": ("semantic/aAcc", "pixel accuracy")},
    plotted_metric="mIoU",
    display=SEMANTIC_DISPLAY,
    ground_truth=lambda sample: sample.semantic,
    compact=lambda semantic: SemanticMap(semantic.labels.astype(np.uint8), semantic.categories),
    categories=semantic_categories,
    remap=remap_semantic_categories,
)
PANOPTIC = Task(
    name="panoptic",
    labels=RequiredLabels("panoptic maps", lambda dataset: dataset.panoptic is not None),
    result_type=PanopticMap,
    predicts="the segment of every pixel",
    protocol="panoptic",
    validation_metrics={"panoptic/PQ": "PQ"},
    comparison_metrics={
        "PQ": ("panoptic/PQ", "PQ"),
        "SQ": ("panoptic/SQ", "SQ"),
        "RQ": ("panoptic/RQ", "RQ"),
        "PQ_things": ("panoptic/PQ_th", "PQ things"),
        "PQ_stuff": ("panoptic/PQ_st", "PQ stuff"),
    },
    plotted_metric="PQ",
    display=PANOPTIC_DISPLAY,
    ground_truth=lambda sample: sample.panoptic,
    compact=PanopticMap.compact,
    categories=lambda dataset: dataset.categories if dataset.panoptic is None else dataset.panoptic.categories,
    remap=remap_panoptic_categories,
)
TASKS = (CLASSIFICATION, DETECTION, INSTANCE, KEYPOINTS, PROMPTABLE, SEMANTIC, PANOPTIC)
"""All tasks for which there is a model."""
