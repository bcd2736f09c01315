"""Predictions that are one answer an image, judged by its labels: maps of pixels, categories, clicks.

What has no answer counts as missed: a map that says nothing, no category, no click that did any good.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
from jaxtyping import Float

from otus.data.dataset import Dataset
from otus.errors import DataError, Report, ShapeError, stop_at_first
from otus.metrics.classification import ClassificationAccuracy, ClassificationResult
from otus.metrics.diagnosis.mismatches import category_notes
from otus.metrics.interactive import InteractiveQuality, InteractiveResult
from otus.metrics.panoptic import PanopticQuality, PanopticResult
from otus.metrics.semantic import SemanticQuality, SemanticResult
from otus.structures import IGNORE, Categories, Classification, PanopticMap, SemanticMap

Map = TypeVar("Map", SemanticMap, PanopticMap)
ImageResult = SemanticResult | PanopticResult | ClassificationResult | InteractiveResult

_AT_ONCE = 256
"""Images whose scores are in memory together."""


@dataclass(frozen=True, eq=False)
class Judged:
    """A result, of how many images it is, how many of these had no prediction and counted as missed, and what to know."""

    result: ImageResult
    images: int
    without_prediction: int
    notes: Sequence[str] = ()


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
    return Judged(result, *counts, category_notes(result.confusion[:, : len(result.categories)], result.categories))


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
    return Judged(metric.compute(), *counts, category_notes(metric.confusion, metric.categories))


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
    return Judged(metric.compute(), len(dataset), len(missed))


def answers_of(shown: Iterable[Classification], categories: Categories) -> Iterator[tuple[int, Float[np.ndarray, "k"]]]:
    """What a model says of image after image, as scores of a data set's categories; those it does not know are -inf."""
    for index, one in enumerate(shown):
        said = dict(zip(one.categories, np.asarray(one.scores, dtype=np.float64).tolist(), strict=True))
        yield index, np.array([said.get(name, -np.inf) for name in categories])


def judge_clicks(dataset: Dataset, curves: Iterable[tuple[int, Sequence[float]]]) -> Judged:
    """Judge IoUs by clicks, which come with the index of their image; an image may have several objects."""
    several = list(curves)
    missed = sorted(set(range(len(dataset))) - {index for index, _ in several})
    metric = InteractiveQuality().update([curve for _, curve in several]).update([[0.0]] * len(missed))
    return Judged(metric.compute(), len(dataset), len(missed))


def judge_file(dataset: Dataset, path: str | Path, protocol: str, *, report: Report = stop_at_first) -> Judged:
    """Judge predictions from files by one of ``READERS``."""
    judged = READERS[protocol](dataset, path, report)
    if judged.images and judged.without_prediction == judged.images:
        example = dataset.images.files[0]
        note = f"not one of the {judged.images} images has a prediction: are these named as the images, e.g. {example}?"
        return replace(judged, notes=(note, *judged.notes))
    return judged


def _semantic(dataset: Dataset, path: str | Path, report: Report) -> Judged:
    from otus.data.formats.index_png_results import find_semantic_results, read_semantic_result

    semantic = dataset.semantic
    assert semantic is not None
    files = find_semantic_results(path, dataset, report=report)

    def prediction_of(index: int) -> SemanticMap | None:
        file = files[index]
        return None if file is None else read_semantic_result(file, semantic, size_hw=dataset.images.size_hw(index))

    return judge_semantic(dataset, prediction_of, report=report)


def _panoptic(dataset: Dataset, path: str | Path, report: Report) -> Judged:
    from otus.data.formats.coco_panoptic import read_panoptic_results

    found = replace(dataset, panoptic=read_panoptic_results(path, dataset, report=report))
    return judge_panoptic(dataset, found.panoptic_map, report=report)


def _classification(dataset: Dataset, path: str | Path, report: Report) -> Judged:
    from otus.data.formats.image_results import read_classifications

    return judge_classifications(dataset, read_classifications(path, dataset, report=report))


def _interactive(dataset: Dataset, path: str | Path, report: Report) -> Judged:
    from otus.data.formats.image_results import read_click_curves

    return judge_clicks(dataset, read_click_curves(path, dataset, report=report))


READERS: Mapping[str, Callable[[Dataset, str | Path, Report], Judged]] = {
    "panoptic": _panoptic,
    "semantic": _semantic,
    "classification": _classification,
    "interactive": _interactive,
}
"""What predictions from files are read and judged by, protocol by protocol."""
