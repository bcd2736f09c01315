"""Predictions that are one answer an image, judged by its labels: maps of pixels, categories, clicks.

What has no answer counts as missed: a map that says nothing, no category, no click that did any good.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from jaxtyping import Float

from otus.data.dataset import Dataset
from otus.errors import DataError, Report, ShapeError, stop_at_first
from otus.evaluation.protocols import Judged
from otus.metrics.classification import ClassificationAccuracy
from otus.metrics.diagnosis.mismatches import category_notes
from otus.metrics.interactive import InteractiveQuality
from otus.metrics.panoptic import PanopticQuality
from otus.metrics.semantic import SemanticQuality
from otus.structures import IGNORE, Categories, Classification, PanopticMap, SemanticMap

Map = TypeVar("Map", SemanticMap, PanopticMap)

_AT_ONCE = 256
"""Images whose scores are in memory together."""


def judge_semantic(
    dataset: Dataset,
    prediction_of: Callable[[int], SemanticMap | None],
    *,
    report: Report = stop_at_first,
) -> Judged:
    """Judge the semantic map that ``prediction_of`` gives for each image that has one in the data set.

    Maps that cannot be go to ``report``, and their images are left out.
    """
    assert dataset.semantic is not None

    def nothing(truth: SemanticMap) -> SemanticMap:
        return SemanticMap(np.full(truth.size_hw, IGNORE), truth.categories)

    metric = SemanticQuality(dataset.semantic.categories)
    counts = _judge_maps(dataset, metric.update, dataset.semantic_map, prediction_of, nothing, report)
    result = metric.compute()
    notes = category_notes(result.confusion[:, : len(result.categories)], result.categories)
    return Judged({"semantic": result}, *counts, notes=notes)


def judge_panoptic(
    dataset: Dataset,
    prediction_of: Callable[[int], PanopticMap | None],
    *,
    report: Report = stop_at_first,
) -> Judged:
    """The same of panoptic maps."""
    assert dataset.panoptic is not None

    def nothing(truth: PanopticMap) -> PanopticMap:
        return PanopticMap(np.zeros(truth.size_hw, dtype=np.int64), (), truth.categories)

    metric = PanopticQuality(dataset.panoptic.categories)
    counts = _judge_maps(dataset, metric.update, dataset.panoptic_map, prediction_of, nothing, report)
    return Judged({"panoptic": metric.compute()}, *counts, notes=category_notes(metric.confusion, metric.categories))


def _judge_maps(
    dataset: Dataset,
    update: Callable[[Map, Map], object],
    truth_of: Callable[[int], Map | None],
    prediction_of: Callable[[int], Map | None],
    nothing: Callable[[Map], Map],
    report: Report,
) -> tuple[int, int]:
    """How many images were judged, and how many of these without a prediction."""
    images = without_prediction = 0
    for index in range(len(dataset)):
        try:
            truth = truth_of(index)
            if truth is None:
                continue
            found = prediction_of(index)
            update(truth, nothing(truth) if found is None else found)
        except DataError as problem:
            report(problem)
        except ShapeError as error:
            remedy = "mend this prediction or take it out"
            report(DataError(str(error), file=dataset.images.files[index], remedy=remedy, kind="bad_map"))
        else:
            images += 1
            without_prediction += found is None
    return images, without_prediction


def judge_classifications(dataset: Dataset, answers: Iterable[tuple[int, Float[np.ndarray, "k"]]]) -> Judged:
    """Judge scores by category, which come with the index of their image, each image's at most once."""
    assert dataset.image_labels is not None
    labels = dataset.image_labels
    metric = ClassificationAccuracy(dataset.categories)
    unanswered = np.ones(len(dataset), dtype=bool)
    waiting: dict[int, np.ndarray] = {}
    for index, scores in answers:
        waiting[index] = scores
        unanswered[index] = False
        if len(waiting) == _AT_ONCE:
            metric.update(labels[list(waiting)], np.stack(list(waiting.values())))
            waiting.clear()
    if waiting:
        metric.update(labels[list(waiting)], np.stack(list(waiting.values())))
    missed = np.flatnonzero(unanswered)
    for first in range(0, len(missed), _AT_ONCE):
        some = labels[missed[first : first + _AT_ONCE]]
        metric.update(some, np.full((len(some), len(dataset.categories)), -np.inf))
    return Judged({"classification": metric.compute()}, len(dataset), len(missed))


def scores_of(
    results: Mapping[int, Classification], categories: Categories
) -> Iterator[tuple[int, Float[np.ndarray, "k"]]]:
    """Yield what a model says of each image as scores of a data set's categories; those it does not know are -inf."""
    for index, shown in sorted(results.items()):
        scores_by_name = dict(zip(shown.categories, np.asarray(shown.scores, dtype=np.float64).tolist(), strict=True))
        yield index, np.array([scores_by_name.get(name, -np.inf) for name in categories])


def with_labels_of(semantic: SemanticMap, categories: Categories) -> SemanticMap:
    """Return a map with its labels counted by another list of categories; what that does not know is ignored."""
    if semantic.categories.names == categories.names:
        return semantic
    lookup = np.full(IGNORE + 1, IGNORE)
    for label, name in enumerate(semantic.categories):
        if name in categories:
            lookup[label] = categories.index(name)
    return SemanticMap(lookup[semantic.labels], categories)


def judge_clicks(dataset: Dataset, curves: Iterable[tuple[int, Sequence[float]]]) -> Judged:
    """Judge IoUs by clicks, which come with the index of their image; an image may have several objects."""
    several = list(curves)
    missed = sorted(set(range(len(dataset))) - {index for index, _ in several})
    metric = InteractiveQuality().update([curve for _, curve in several]).update([[0.0]] * len(missed))
    return Judged({"interactive": metric.compute()}, len(dataset), len(missed))


def _semantic_files(path: str | Path, dataset: Dataset, report: Report) -> Callable[[int], SemanticMap | None]:
    from otus.data.formats.index_png_results import find_semantic_results, read_semantic_result

    semantic = dataset.semantic
    assert semantic is not None
    files = find_semantic_results(path, dataset, report=report)

    def prediction_of(index: int) -> SemanticMap | None:
        file = files[index]
        return None if file is None else read_semantic_result(file, semantic, size_hw=dataset.images.size_hw(index))

    return prediction_of


def _semantic_results(results: Mapping[int, SemanticMap], dataset: Dataset) -> Callable[[int], SemanticMap | None]:
    assert dataset.semantic is not None
    categories = dataset.semantic.categories
    return lambda index: None if index not in results else with_labels_of(results[index], categories)


def _panoptic_files(path: str | Path, dataset: Dataset, report: Report) -> Callable[[int], PanopticMap | None]:
    from otus.data.formats.coco_panoptic import read_panoptic_results

    return replace(dataset, panoptic=read_panoptic_results(path, dataset, report=report)).panoptic_map


def _classification_files(path: str | Path, dataset: Dataset, report: Report) -> Any:
    from otus.data.formats.image_results import read_classifications

    return read_classifications(path, dataset, report=report)


def _click_files(path: str | Path, dataset: Dataset, report: Report) -> Any:
    from otus.data.formats.image_results import read_click_curves

    return read_click_curves(path, dataset, report=report)


def _not_yet(results: Mapping[int, Any], dataset: Dataset) -> Any:
    raise NotImplementedError  # refused before: no system gives such results yet


class ImageProtocol(NamedTuple):
    """The functions of an :class:`~otus.evaluation.protocols.EvaluationProtocol` of which every image has one prediction."""

    read: Callable[[str | Path, Dataset, Report], Any]
    from_results: Callable[[Mapping[int, Any], Dataset], Any]
    judge: Callable[[Dataset, Any, Report], Judged]


IMAGE_PROTOCOLS: Mapping[str, ImageProtocol] = {
    "panoptic": ImageProtocol(
        _panoptic_files, _not_yet, lambda dataset, found, report: judge_panoptic(dataset, found, report=report)
    ),
    "semantic": ImageProtocol(
        _semantic_files, _semantic_results, lambda dataset, found, report: judge_semantic(dataset, found, report=report)
    ),
    "classification": ImageProtocol(
        _classification_files,
        lambda results, dataset: scores_of(results, dataset.categories),
        lambda dataset, found, report: judge_classifications(dataset, found),
    ),
    "interactive": ImageProtocol(_click_files, _not_yet, lambda dataset, found, report: judge_clicks(dataset, found)),
}
