"""Evaluate predictions per image: semantic and panoptic maps, classifications, clicks.

An image without a prediction counts as wrong: as an empty map, a wrong class, or IoU 0.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from jaxtyping import Float

from otus.data.dataset import Dataset
from otus.data.semantic_views import semantic_categories, with_semantic_maps
from otus.errors import DataError, Report, ShapeError, stop_at_first
from otus.evaluation.protocols import ProtocolResult
from otus.metrics.classification import ClassificationAccuracy
from otus.metrics.diagnosis.mismatches import category_notes
from otus.metrics.interactive import InteractiveQuality
from otus.metrics.panoptic import PanopticQuality
from otus.metrics.semantic import SemanticQuality
from otus.structures import IGNORE, Categories, Classification, PanopticMap, SemanticMap

Map = TypeVar("Map", SemanticMap, PanopticMap)

_BATCH = 256
"""Number of images whose scores are in memory together."""


def evaluate_semantic(
    dataset: Dataset,
    prediction_of: Callable[[int], SemanticMap | None],
    *,
    report: Report = stop_at_first,
) -> ProtocolResult:
    """Evaluate the semantic maps that ``prediction_of`` returns, for all images with a labelled map.

    ``report`` is called with the error of each invalid map, and its image is skipped.
    """
    dataset = with_semantic_maps(dataset)
    assert dataset.semantic is not None

    def empty_map(ground_truth: SemanticMap) -> SemanticMap:
        return SemanticMap(np.full(ground_truth.size_hw, IGNORE), ground_truth.categories)

    metric = SemanticQuality(dataset.semantic.categories)
    counts = _evaluate_maps(dataset, metric.update, dataset.semantic_map, prediction_of, empty_map, report)
    result = metric.compute()
    notes = category_notes(result.confusion[:, : len(result.categories)], result.categories)
    return ProtocolResult({"semantic": result}, *counts, notes=notes)


def evaluate_panoptic(
    dataset: Dataset,
    prediction_of: Callable[[int], PanopticMap | None],
    *,
    report: Report = stop_at_first,
) -> ProtocolResult:
    """Evaluate panoptic maps; as :func:`evaluate_semantic`."""
    assert dataset.panoptic is not None

    def empty_map(ground_truth: PanopticMap) -> PanopticMap:
        return PanopticMap(np.zeros(ground_truth.size_hw, dtype=np.int64), (), ground_truth.categories)

    metric = PanopticQuality(dataset.panoptic.categories)
    counts = _evaluate_maps(dataset, metric.update, dataset.panoptic_map, prediction_of, empty_map, report)
    return ProtocolResult(
        {"panoptic": metric.compute()}, *counts, notes=category_notes(metric.confusion, metric.categories)
    )


def _evaluate_maps(
    dataset: Dataset,
    update: Callable[[Map, Map], object],
    ground_truth_of: Callable[[int], Map | None],
    prediction_of: Callable[[int], Map | None],
    empty_map: Callable[[Map], Map],
    report: Report,
) -> tuple[int, int]:
    """Return the number of evaluated images, and how many of these have no prediction."""
    images = missing_predictions = 0
    for index in range(len(dataset)):
        try:
            ground_truth = ground_truth_of(index)
            if ground_truth is None:
                continue
            prediction = prediction_of(index)
            update(ground_truth, empty_map(ground_truth) if prediction is None else prediction)
        except DataError as error:
            report(error)
        except ShapeError as error:
            remedy = "correct or remove this prediction"
            report(DataError(str(error), file=dataset.images.files[index], remedy=remedy, kind="bad_map"))
        else:
            images += 1
            missing_predictions += prediction is None
    return images, missing_predictions


def evaluate_classifications(
    dataset: Dataset, predictions: Iterable[tuple[int, Float[np.ndarray, "k"]]]
) -> ProtocolResult:
    """Evaluate pairs of image index and scores by category, at most one pair per image."""
    assert dataset.image_labels is not None
    labels = dataset.image_labels
    metric = ClassificationAccuracy(dataset.categories)
    is_missing = np.ones(len(dataset), dtype=bool)
    batch: dict[int, np.ndarray] = {}
    for index, scores in predictions:
        batch[index] = scores
        is_missing[index] = False
        if len(batch) == _BATCH:
            metric.update(labels[list(batch)], np.stack(list(batch.values())))
            batch.clear()
    if batch:
        metric.update(labels[list(batch)], np.stack(list(batch.values())))
    missing = np.flatnonzero(is_missing)
    for first in range(0, len(missing), _BATCH):
        targets = labels[missing[first : first + _BATCH]]
        metric.update(targets, np.full((len(targets), len(dataset.categories)), -np.inf))
    return ProtocolResult({"classification": metric.compute()}, len(dataset), len(missing))


def category_scores(
    results: Mapping[int, Classification], categories: Categories
) -> Iterator[tuple[int, Float[np.ndarray, "k"]]]:
    """Yield image indices and scores for the categories of a data set; -inf for categories that the model lacks."""
    for index, classification in sorted(results.items()):
        scores_by_name = dict(
            zip(classification.categories, np.asarray(classification.scores, dtype=np.float64).tolist(), strict=True)
        )
        yield index, np.array([scores_by_name.get(name, -np.inf) for name in categories])


def remap_segments(panoptic: PanopticMap, categories: Categories) -> PanopticMap:
    """Return a map with the labels of other categories; segments of a category that is not among them become void."""
    if panoptic.categories.names == categories.names:
        return panoptic
    lookup = {label: categories.index(name) for label, name in enumerate(panoptic.categories) if name in categories}
    known = panoptic.select(lookup)
    segments = tuple(replace(segment, label=lookup[segment.label]) for segment in known.segments)
    return PanopticMap(known.ids, segments, categories)


def evaluate_clicks(dataset: Dataset, curves: Iterable[tuple[int, Sequence[float]]]) -> ProtocolResult:
    """Evaluate pairs of image index and IoU after each click; an image may have several objects."""
    curves = list(curves)
    missing = sorted(set(range(len(dataset))) - {index for index, _ in curves})
    metric = InteractiveQuality().update([curve for _, curve in curves]).update([[0.0]] * len(missing))
    return ProtocolResult({"interactive": metric.compute()}, len(dataset), len(missing))


def _semantic_files(path: str | Path, dataset: Dataset, report: Report) -> Callable[[int], SemanticMap | None]:
    from otus.data.formats.index_png_results import find_semantic_results, read_semantic_result

    semantic = with_semantic_maps(dataset).semantic
    assert semantic is not None
    files = find_semantic_results(path, dataset, report=report)

    def prediction_of(index: int) -> SemanticMap | None:
        file = files[index]
        return None if file is None else read_semantic_result(file, semantic, size_hw=dataset.images.size_hw(index))

    return prediction_of


def _semantic_results(results: Mapping[int, SemanticMap], dataset: Dataset) -> Callable[[int], SemanticMap | None]:
    categories = semantic_categories(dataset)
    return lambda index: results[index].relabelled(categories) if index in results else None


def _panoptic_files(path: str | Path, dataset: Dataset, report: Report) -> Callable[[int], PanopticMap | None]:
    from otus.data.formats.coco_panoptic import read_panoptic_results

    return replace(dataset, panoptic=read_panoptic_results(path, dataset, report=report)).panoptic_map


def _panoptic_results(results: Mapping[int, PanopticMap], dataset: Dataset) -> Callable[[int], PanopticMap | None]:
    assert dataset.panoptic is not None
    categories = dataset.panoptic.categories
    return lambda index: None if index not in results else remap_segments(results[index], categories)


def _classification_files(path: str | Path, dataset: Dataset, report: Report) -> Any:
    from otus.data.formats.image_results import read_classifications

    return read_classifications(path, dataset, report=report)


def _click_files(path: str | Path, dataset: Dataset, report: Report) -> Any:
    from otus.data.formats.image_results import read_click_curves

    return read_click_curves(path, dataset, report=report)


def _no_results(results: Mapping[int, Any], dataset: Dataset) -> Any:
    raise NotImplementedError  # models are evaluated by EvaluationProtocol.evaluate_system instead


class ImageProtocol(NamedTuple):
    """Functions of an :class:`~otus.evaluation.protocols.EvaluationProtocol` with one prediction per image."""

    read: Callable[[str | Path, Dataset, Report], Any]
    from_results: Callable[[Mapping[int, Any], Dataset], Any]
    evaluate: Callable[[Dataset, Any, Report], ProtocolResult]


IMAGE_PROTOCOLS: Mapping[str, ImageProtocol] = {
    "panoptic": ImageProtocol(
        _panoptic_files,
        _panoptic_results,
        lambda dataset, predicted, report: evaluate_panoptic(dataset, predicted, report=report),
    ),
    "semantic": ImageProtocol(
        _semantic_files,
        _semantic_results,
        lambda dataset, predicted, report: evaluate_semantic(dataset, predicted, report=report),
    ),
    "classification": ImageProtocol(
        _classification_files,
        lambda results, dataset: category_scores(results, dataset.categories),
        lambda dataset, predicted, report: evaluate_classifications(dataset, predicted),
    ),
    "interactive": ImageProtocol(
        _click_files, _no_results, lambda dataset, predicted, report: evaluate_clicks(dataset, predicted)
    ),
}
