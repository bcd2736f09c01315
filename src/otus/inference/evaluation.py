"""How good predictions for a data set are, as one report. Torch is not imported here."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from otus.data.dataset import Dataset
from otus.data.formats.coco_results import read_results
from otus.data.formats.contract import Report, stop_at_first
from otus.data.open import open_dataset
from otus.errors import UsageError
from otus.metrics.average_precision import AveragePrecision, sound_objects
from otus.metrics.coco import KINDS, CocoProtocol, CocoResult, Kind
from otus.metrics.voc import VocProtocol, VocResult
from otus.structures import Categories, Objects, Outline

if TYPE_CHECKING:
    from otus.inference.predictor import Predictor

_VOC = {"voc07": VocProtocol(2007), "voc12": VocProtocol(2012)}
PROTOCOLS = ("coco", *_VOC)
"""What :func:`evaluate_predictions` judges by."""


@dataclass(frozen=True, eq=False)
class EvaluationReport:
    """The figures of predictions for a data set, with the protocol that they were made by.

    Parameters
    ----------
    protocol
        Its name, e.g. ``coco``.
    data
        The file or folder of the labels.
    images
        How many pictures were judged.
    results
        Result by what was compared: ``bbox``, ``segm``, ``keypoints``.
    left_out
        What could not be compared, and why.
    unknown_categories
        Those of the data that the model judged does not know.
    """

    protocol: str
    data: str
    images: int
    results: Mapping[Kind, CocoResult | VocResult]
    left_out: Mapping[Kind, str]
    unknown_categories: tuple[str, ...] = ()

    def document(self) -> dict[str, Any]:
        """What ``otus evaluate --json`` says; figures that are not defined are NaN."""
        return {
            "protocol": self.protocol,
            "data": self.data,
            "images": self.images,
            **{
                kind: {**result.figures, "per_category": dict(result.per_category)}
                for kind, result in self.results.items()
            },
            **({"left_out": dict(self.left_out)} if self.left_out else {}),
            **({"unknown_categories": list(self.unknown_categories)} if self.unknown_categories else {}),
        }


def evaluate(
    data: str | Path | Dataset,
    *,
    predictions: str | Path | Objects | None = None,
    model: "str | Path | Predictor | None" = None,
    weights: str | Path | None = None,
    device: str | None = None,
    precision: str | None = None,
    format: str | None = None,
    split: str | None = None,
    protocol: str = "coco",
    kinds: Sequence[Kind] | None = None,
    max_dets: Sequence[int] | None = None,
    report: Report = stop_at_first,
    progress: Callable[[int, int], None] | None = None,
) -> EvaluationReport:
    """How good predictions, or those of a model, are by the labels of a data set.

    Parameters
    ----------
    data
        A folder, an annotation file, or a data set that is open; ``format`` and ``split`` choose where there are several.
    predictions
        COCO results, or objects with scores; this or ``model``.
    model
        A name or file for :func:`otus.load`, which ``weights``, ``device`` and ``precision`` are handed to; or a predictor.
    protocol, kinds, max_dets
        See :func:`evaluate_predictions`.
    report
        Gets each faulty record of labels and predictions; the default raises the first.
    progress
        Told while a model predicts how many pictures are done, and of how many.

    Raises
    ------
    UsageError
        Neither or both of ``predictions`` and ``model``, options that belong to neither, and as of the functions above.
    DataError
        Where ``report`` raises it.

    Examples
    --------
    >>> otus.evaluate("coco", predictions="results.json").results["bbox"].figures["AP"]  # doctest: +SKIP
    """
    if (predictions is None) == (model is None):
        raise UsageError("evaluate takes predictions or a model, one of them")
    options = {"weights": weights, "device": device, "precision": precision}
    typed = {name: value for name, value in options.items() if value is not None}
    if typed and not isinstance(model, str | Path):
        raise UsageError(f"{', '.join(typed)}: only of a model that is given by its name or file")
    if isinstance(data, Dataset) and (format or split):
        raise UsageError("format and split choose among the data sets of a path; this one is open")
    dataset = data if isinstance(data, Dataset) else open_dataset(data, format=format, split=split, report=report)
    unknown: tuple[str, ...] = ()
    if isinstance(predictions, Objects):
        found = predictions
    elif predictions is not None:
        found = read_results(predictions, dataset, report=report)
    else:
        predictor = _predictor(model, typed)
        unknown = tuple(name for name in dataset.categories if name not in predictor.categories)
        found = _predict(predictor, dataset, progress)
    judged = evaluate_predictions(dataset, found, protocol=protocol, kinds=kinds, max_dets=max_dets, report=report)
    return replace(judged, unknown_categories=unknown)


def _predictor(model: "str | Path | Predictor | None", options: dict[str, Any]) -> "Predictor":
    from otus.inference.loading import load

    return load(model, **options) if model is None or isinstance(model, str | Path) else model


def _predict(predictor: "Predictor", dataset: Dataset, progress: Callable[[int, int], None] | None) -> Objects:
    """What a model says of the data set's pictures."""
    from otus.inference.on_dataset import as_objects, predict_dataset

    def count(done: int) -> None:
        if progress is not None:
            progress(done, len(dataset))

    with predictor.autocast():
        found = predict_dataset(predictor.system, dataset, preprocess=predictor.preprocess, progress=count)
    return as_objects(found, categories=dataset.categories)


def evaluate_predictions(
    dataset: Dataset,
    predictions: Objects,
    *,
    protocol: str = "coco",
    kinds: Sequence[Kind] | None = None,
    max_dets: Sequence[int] | None = None,
    report: Report = stop_at_first,
) -> EvaluationReport:
    """Judge predictions by the labels of a data set.

    Parameters
    ----------
    dataset
        With objects.
    predictions
        Objects with scores; ``picture`` and ``labels`` count as the data set's do.
    protocol
        One of :data:`PROTOCOLS`.
    kinds
        What to compare; without it everything that both sides have throughout.
    max_dets
        Limits on the detections of a picture and category; the protocol's own without it.
    report
        Gets each record that cannot be; the record is left out.

    Raises
    ------
    UsageError
        An unknown protocol, a data set without objects, or kinds that one side does not have.
    DataError
        Where ``report`` raises it: a score or box that is not finite, a negative size, an unknown label or picture.
    """
    if protocol not in PROTOCOLS:
        raise UsageError(f"protocol: expected one of {', '.join(PROTOCOLS)}, got {protocol!r}")
    if protocol in _VOC and (max_dets is not None or (kinds is not None and list(kinds) != ["bbox"])):
        raise UsageError(f"protocol {protocol}: compares boxes (bbox) and has no limit on detections (max_dets)")
    if dataset.objects is None:
        raise UsageError(f"{dataset.source}: this data set has no objects to compare with")
    counts = {"label_count": len(dataset.categories), "picture_count": len(dataset)}
    truth = sound_objects(dataset.objects, "truth", **counts, report=report)
    predictions = sound_objects(predictions, "predictions", **counts, report=report)
    numbered = all(isinstance(one, int) for one in dataset.pictures.ids)  # file names may be the same in two folders
    picture_ids = np.array(dataset.pictures.ids if numbered else range(len(dataset)), dtype=np.int64)
    left_out: dict[Kind, str] = {}
    if protocol in _VOC:
        kinds = ["bbox"]
    elif kinds is None:
        obstacles = {kind: _obstacle(kind, truth, predictions, dataset.categories) for kind in KINDS}
        kinds = [kind for kind, obstacle in obstacles.items() if obstacle is None]
        left_out = {kind: obstacle for kind, obstacle in obstacles.items() if obstacle}
    results = {}
    for kind in kinds:
        rules = _VOC[protocol] if protocol in _VOC else CocoProtocol(kind, max_dets=tuple(max_dets or ()))
        metric: AveragePrecision[CocoResult | VocResult] = AveragePrecision(rules, dataset.categories)
        metric.update(truth, predictions, picture_ids=picture_ids, sizes_hw=dataset.pictures.sizes_hw)
        results[kind] = metric.compute()
    return EvaluationReport(protocol, str(dataset.source), len(dataset), results, left_out)


def _obstacle(kind: Kind, truth: Objects, predictions: Objects, categories: Categories) -> str | None:
    """Why a kind cannot be compared: None where it can, "" where neither side speaks of it."""
    if kind == "bbox":
        return None
    sides = {"labels": truth, "predictions": predictions}
    if kind == "keypoints":
        having = {side: one.keypoints is not None and categories.sigmas is not None for side, one in sides.items()}
    else:
        having = {side: _outlined(one) > 0 for side, one in sides.items()}
    if not any(having.values()):
        return ""
    for side, objects in sides.items():
        if len(objects) and not having[side]:
            return f"the {side} have no {'keypoints' if kind == 'keypoints' else 'outlines'}"
        if kind == "segm" and _outlined(objects) < len(objects):
            return f"{len(objects) - _outlined(objects)} of {len(objects)} {side} have no outline"
    return None


def _outlined(objects: Objects) -> int:
    return 0 if objects.segmentations is None else int((objects.segmentations.kinds != Outline.NONE).sum())
