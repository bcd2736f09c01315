"""Evaluate predictions, or a model, on a data set. Torch is imported only to run a model."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from otus.data.checks.images import count_training_images
from otus.data.dataset import Dataset
from otus.data.open import open_dataset
from otus.data.splitting import train_val_split
from otus.errors import DataError, Report, UsageError, stop_at_first
from otus.evaluation.protocols import (
    OBJECT_PROTOCOLS,
    PROTOCOLS,
    EvaluationProtocol,
    Options,
    ProtocolResult,
    Result,
    offered_protocols,
    protocol_of,
)
from otus.evaluation.runs import validation_images
from otus.metrics.detection.coco import Kind
from otus.structures import Objects, PromptableMethod

if TYPE_CHECKING:
    from otus.inference.averaging import Averaging
    from otus.inference.predictor import Predictor


_SUSPICIOUS_FRACTION = 0.9
"""Fraction of invalid predictions from which they may be those of another data set."""
_RESULT_TYPES = {
    "Instances": "objects",
    "SemanticMap": "semantic maps",
    "PanopticMap": "panoptic maps",
    "Classification": "classifications of images",
    "MaskCandidates": "masks by prompts",
}


@dataclass(frozen=True, eq=False)
class EvaluationReport:
    """Metrics of predictions on a data set by an evaluation protocol.

    Parameters
    ----------
    protocol
        Name of the protocol, e.g. ``coco``.
    data
        File or folder of the labels.
    images
        Number of evaluated images.
    results
        Result by kind of comparison (``bbox``, ``segm``, ``keypoints``), or by the name of the protocol.
    skipped_kinds
        Kinds that could not be compared, and the reasons.
    unknown_categories
        Categories of the data that the model does not know.
    prediction_threshold
        Score threshold that was applied when the predictions were written (None: no threshold).
    missing_predictions
        Number of images without a predicted map, class or click, which count as wrong.
    notes
        Warnings about the validity of the metrics.
    training_images
        Number of evaluated images that the model was trained on, if its file records them.
    evaluated
        The data set and the evaluated objects, for further analysis; None if whole images were evaluated.
    """

    protocol: str
    data: str
    images: int
    results: Mapping[str, Result]
    skipped_kinds: Mapping[str, str] = field(default_factory=dict)
    unknown_categories: tuple[str, ...] = ()
    prediction_threshold: float | None = None
    missing_predictions: int = 0
    notes: tuple[str, ...] = ()
    training_images: int = 0
    evaluated: tuple[Dataset, Objects] | None = None

    def __repr__(self) -> str:
        figures = (
            f"{kind} {name} {value:.3f}"
            for kind, result in self.results.items()
            for name, value in [next(iter(result.figures.items()))]
        )
        return f"EvaluationReport({self.protocol}, {self.data!r}, {self.images} images, {', '.join(figures)})"

    def document(self) -> dict[str, Any]:
        """Return the document of ``otus evaluate --json``; undefined metrics are NaN."""
        return {
            "protocol": self.protocol,
            "data": self.data,
            "images": self.images,
            **{
                kind: {**result.figures, "per_category": dict(result.per_category)}
                for kind, result in self.results.items()
            },
            **({"prediction_threshold": self.prediction_threshold} if self.prediction_threshold is not None else {}),
            **({"skipped_kinds": dict(self.skipped_kinds)} if self.skipped_kinds else {}),
            **({"unknown_categories": list(self.unknown_categories)} if self.unknown_categories else {}),
            **({"missing_predictions": self.missing_predictions} if self.missing_predictions else {}),
            **({"notes": list(self.notes)} if self.notes else {}),
            **({"training_images": self.training_images} if self.training_images else {}),
        }


def evaluate(
    data: str | Path | Dataset | None = None,
    *,
    predictions: str | Path | Objects | None = None,
    model: "str | Path | Predictor | None" = None,
    method: "str | Path | PromptableMethod[Any] | None" = None,
    run: str | Path | None = None,
    val: float | None = None,
    weights: str | Path | None = None,
    semantic_model: str | Path | None = None,
    device: str | None = None,
    precision: str | None = None,
    averaging: "Averaging | None" = None,
    runtime: str | None = None,
    zoom_in: bool | None = None,
    format: str | None = None,
    split: str | None = None,
    protocol: str | None = None,
    kinds: Sequence[Kind] | None = None,
    max_dets: Sequence[int] | None = None,
    report: Report = stop_at_first,
    progress: Callable[[int, int], None] | None = None,
) -> EvaluationReport:
    """Evaluate predictions, or those of a model, on a data set.

    Parameters
    ----------
    data
        A folder, an annotation file, or an opened data set; ``format`` and ``split`` select if a folder has several.
    predictions
        Objects with scores, or files, as an alternative to ``model``. Files of objects are COCO results, or a folder of
        text files of DOTA, KITTI or YOLO; of panoptic maps, COCO's JSON with its PNGs; of semantic maps, a folder of
        index PNGs; of classifications, the output of ``otus predict --json``; of clicks, a JSON list of curves
        (:mod:`otus.data.formats.image_results`).
    run
        Folder of a training run: evaluate on its validation images, with its best weights unless ``predictions`` or a
        ``model`` are given. ``data`` is then needed only if the data have moved.
    val
        Evaluate on this fraction of the images, the same images that ``otus train --val`` holds out.
    model
        A predictor, or a name or file for :func:`otus.load`, with ``weights``, ``semantic_model``, ``device``,
        ``precision`` and ``runtime``.
    averaging
        For a semantic segmenter: flips and scales whose probabilities are averaged (default: only the image itself).
    method
        An interactive method, evaluated with simulated clicks: one of :data:`~otus.interactive.methods.METHODS`, the name
        or file of a promptable model, or an implementation of :class:`~otus.structures.prompt.PromptableMethod`.
    zoom_in
        See :func:`otus.inference.promptable.load_method`.
    protocol
        One of :data:`~otus.evaluation.protocols.PROTOCOLS` (default: the first that the data set has labels for).
    kinds, max_dets
        See :func:`evaluate_predictions`.
    report
        Called with the error of each faulty record of labels or predictions (default: raise the first).
    progress
        Called with the numbers of finished and of all images while a model predicts.

    Raises
    ------
    UsageError
        If neither or both of ``predictions`` and ``model`` are given, or an option does not apply.
    DataError
        If ``report`` raises it.

    Examples
    --------
    >>> otus.evaluate("coco", predictions="results.json").results["bbox"].figures["AP"]  # doctest: +SKIP
    """
    if run is not None:
        if isinstance(data, Dataset) or val is not None or format is not None or split is not None:
            raise UsageError(
                "run: a run is evaluated on its validation images; leave out val, format, split and open data sets"
            )
        data = validation_images(run, data=data)
        model = run if predictions is None and model is None else model
    if data is None:
        raise UsageError("evaluate needs data, or the folder of a training run")
    if sum(source is not None for source in (predictions, model, method)) != 1:
        raise UsageError("evaluate takes either predictions, a model or an interactive method")
    options = {
        "weights": weights,
        "semantic_model": semantic_model,
        "device": device,
        "precision": precision,
        "runtime": runtime,
        "zoom_in": zoom_in,
    }
    load_options = {name: value for name, value in options.items() if value is not None}
    if load_options and not isinstance(model or method, str | Path):
        raise UsageError(f"{', '.join(load_options)}: only for a model given by name or file")
    if method is not None and semantic_model is not None:
        raise UsageError("semantic_model: only for a model, not for an interactive method; leave it out")
    if zoom_in and method is None:
        raise UsageError("zoom_in: only for an interactive method; leave it out")
    if averaging is not None and model is None:
        raise UsageError("averaging: flips and scales are only for a model; leave them out")
    if isinstance(data, Dataset) and (format or split):
        raise UsageError("format and split select a data set at a path, but data is an open data set; leave them out")
    dataset = data if isinstance(data, Dataset) else open_dataset(data, format=format, split=split, report=report)
    if val is not None:
        dataset = train_val_split(dataset, val)[1]
    protocol_options = Options(kinds, max_dets, report)
    default = "interactive" if method is not None else next(iter(offered_protocols(dataset)), next(iter(PROTOCOLS)))
    chosen = protocol_of(protocol or default)
    if protocol is not None or model is None:
        chosen.check(dataset, protocol_options)
    if method is not None:
        return _evaluate_method(dataset, method, load_options, chosen, report, progress)
    if model is not None:
        predictor = _predictor(model, load_options)
        return _evaluate_model(dataset, predictor, protocol, protocol_options, averaging, progress)
    notes: tuple[str, ...] = ()
    if isinstance(predictions, Objects):
        if chosen.result_type != "Instances":
            raise UsageError(
                f"protocol {chosen.name}: evaluates predictions from files; give their path as predictions"
            )
        predicted: Any = predictions
    else:
        assert predictions is not None
        if not Path(predictions).exists():
            raise DataError("there is no such file or folder", file=predictions, remedy="check the path")
        invalid = Counter[str]()
        predicted = chosen.read(predictions, dataset, _counting(report, invalid))
        if isinstance(predicted, Objects):
            notes = _warn_if_mostly_invalid(invalid, len(predicted))
    return _evaluate_results(dataset, chosen, predicted, protocol_options, notes=notes)


def _evaluate_model(
    dataset: Dataset,
    predictor: "Predictor",
    name: str | None,
    options: Options,
    averaging: "Averaging | None",
    progress: Callable[[int, int], None] | None,
) -> EvaluationReport:
    """Evaluate a model on a data set, by the protocol of its task unless another is given."""
    from otus.evaluation.on_dataset import predict_dataset

    task = predictor.task
    offered = offered_protocols(dataset)
    if name is None:
        name = task.protocol if task.protocol in offered else next(iter(offered), task.protocol)
    protocol = protocol_of(name)
    protocol.check(dataset, options)
    if protocol.result_type != task.result_type.__name__:
        raise UsageError(
            f"model: predicts {task.predicts}, but the protocol {name} evaluates {_RESULT_TYPES[protocol.result_type]}; "
            f"evaluate the model by the protocol {task.protocol}, on images with {protocol_of(task.protocol).labels.what}"
        )

    def count(done: int) -> None:
        if progress is not None:
            progress(done, len(dataset))

    unknown = tuple(category for category in task.categories(dataset) if category not in predictor.categories)
    pipeline = replace(predictor.pipeline, averaging=averaging)
    if protocol.evaluate_system is not None:
        result = protocol.evaluate_system(pipeline, dataset, options, progress)
        return _note_training_images(_make_report(dataset, protocol, result), dataset, predictor)
    results = predict_dataset(pipeline, dataset, progress=count, report=options.report)
    if len(results) < len(dataset):  # the others cannot be read
        dataset = dataset.select(sorted(results))
        results = dict(enumerate(results[index] for index in sorted(results)))
    report = _evaluate_results(dataset, protocol, protocol.from_results(results, dataset), options)
    return _note_training_images(replace(report, unknown_categories=unknown), dataset, predictor)


def _note_training_images(report: EvaluationReport, dataset: Dataset, predictor: "Predictor") -> EvaluationReport:
    """Add a note to the report if the model was trained on some of the evaluated images."""
    models = [predictor] if predictor.semantic is None else [predictor, predictor.semantic]
    count = max(count_training_images(model.training, dataset) for model in models)
    if not count:
        return report
    note = (
        f"the model was trained on {count} of the {len(dataset)} images, so the metrics are too high; "
        "to evaluate on the validation images of its training, give --run RUN, or --val with the same fraction"
    )
    return replace(report, training_images=count, notes=(*report.notes, note))


def _counting(report: Report, counts: Counter[str]) -> Report:
    """Return a function that counts errors by kind, and calls ``report``."""

    def count(error: DataError) -> None:
        counts[error.kind] += 1
        report(error)

    return count


def _warn_if_mostly_invalid(invalid: Counter[str], valid: int) -> tuple[str, ...]:
    """Return a warning if nearly all predictions were skipped, given their number by kind of error."""
    skipped = invalid.total()
    if skipped < _SUSPICIOUS_FRACTION * (skipped + valid) or not skipped:
        return ()
    kinds = ", ".join(f"{count} {kind}" for kind, count in invalid.most_common())
    return (f"{skipped} of {skipped + valid} predictions were skipped ({kinds}): are they for this data set?",)


def _evaluate_method(
    dataset: Dataset,
    method: "str | Path | PromptableMethod[Any]",
    load_options: Mapping[str, Any],
    protocol: EvaluationProtocol,
    report: Report,
    progress: Callable[[int, int], None] | None,
) -> EvaluationReport:
    from otus.evaluation.clicking import evaluate_method
    from otus.interactive.methods import METHODS, make_method

    if protocol.name != "interactive":
        raise UsageError(f"protocol {protocol.name}: an interactive method is evaluated by the protocol interactive")
    if isinstance(method, str | Path):
        if str(method) in METHODS and not load_options:  # at once, without torch
            method = make_method(str(method))
        else:
            from otus.inference.promptable import load_method

            method = load_method(method, **load_options)
    return _make_report(dataset, protocol, evaluate_method(dataset, method, report=report, progress=progress))


def _evaluate_results(
    dataset: Dataset, protocol: EvaluationProtocol, predicted: Any, options: Options, *, notes: tuple[str, ...] = ()
) -> EvaluationReport:
    """Evaluate predictions by a protocol and return the report."""
    report = _make_report(dataset, protocol, protocol.evaluate(dataset, predicted, options), notes=notes)
    return replace(report, evaluated=(dataset, predicted)) if isinstance(predicted, Objects) else report


def _make_report(
    dataset: Dataset, protocol: EvaluationProtocol, result: ProtocolResult, *, notes: tuple[str, ...] = ()
) -> EvaluationReport:
    notes = (*notes, *result.notes)
    if result.images and result.missing_predictions == result.images:
        note = (
            f"none of the {result.images} images has a prediction: do the names of the predictions match those of the "
            f"images, e.g. {dataset.images.files[0]}?"
        )
        notes = (note, *notes)
    return EvaluationReport(
        protocol.name,
        str(dataset.source),
        result.images,
        result.results,
        result.skipped_kinds,
        prediction_threshold=result.prediction_threshold,
        missing_predictions=result.missing_predictions,
        notes=notes,
    )


def _predictor(model: "str | Path | Predictor | None", options: dict[str, Any]) -> "Predictor":
    from otus.inference.loading import load

    return load(model, **options) if model is None or isinstance(model, str | Path) else model


def evaluate_predictions(
    dataset: Dataset,
    predictions: Objects,
    *,
    protocol: str = "coco",
    kinds: Sequence[Kind] | None = None,
    max_dets: Sequence[int] | None = None,
    report: Report = stop_at_first,
) -> EvaluationReport:
    """Evaluate predicted objects against the ground truth of a data set.

    Parameters
    ----------
    dataset
        Data set with objects.
    predictions
        Objects with scores; image and class indices are those of the data set.
    protocol
        One of :data:`~otus.evaluation.protocols.OBJECT_PROTOCOLS`.
    kinds
        Kinds that ``coco`` compares (default: all that ground truth and predictions have for every object).
    max_dets
        Limits on the detections per image and category, or for ``proposals`` per image (default: the protocol's own).
    report
        Called with the error of each invalid record, which is then skipped (default: raise the first).

    Raises
    ------
    UsageError
        If the protocol is unknown, the data set has no objects, or ground truth or predictions lack a kind.
    DataError
        If ``report`` raises it: for a score or box that is not finite, a negative size, an unknown class or image
        index.
    """
    options, chosen = Options(kinds, max_dets, report), protocol_of(protocol)
    chosen.check(dataset, options)
    if chosen.result_type != "Instances":
        raise UsageError(
            f"protocol {protocol}: does not evaluate objects; those that do: {', '.join(OBJECT_PROTOCOLS)}"
        )
    return replace(_evaluate_results(dataset, chosen, predictions, options), evaluated=None)
