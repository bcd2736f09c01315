"""How good predictions for a data set are, as one report. Torch is not imported here."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from otus.data.dataset import Dataset
from otus.data.formats.coco_results import read_results
from otus.data.formats.contract import Report, stop_at_first
from otus.data.open import open_dataset
from otus.errors import DataError, UsageError
from otus.metrics.average_precision import AveragePrecision, DetectionProtocol, sound_objects
from otus.metrics.coco import KINDS, CocoProtocol, Kind
from otus.metrics.required import having
from otus.metrics.voc import VocProtocol
from otus.structures import Categories, Classification, Objects, Outline

if TYPE_CHECKING:
    from otus.inference.picture_protocols import Judged
    from otus.inference.predictor import Predictor


class Result(Protocol):
    """Figures by name, in all and by category."""

    @property
    def figures(self) -> Mapping[str, float]: ...

    @property
    def per_category(self) -> Mapping[str, Mapping[str, float]]: ...


@dataclass(frozen=True)
class _Labels:
    """What a protocol needs: in words, and whether a data set has it. ``field`` is that of the objects."""

    what: str
    in_dataset: Callable[[Dataset], bool]
    field: str | None = None


def _of_objects(what: str, *fields: str) -> _Labels:
    def in_dataset(dataset: Dataset) -> bool:
        objects = dataset.objects
        return objects is not None and (not len(objects) or any(getattr(objects, one) is not None for one in fields))

    return _Labels(what, in_dataset, fields[0] if len(fields) == 1 else None)


_OBJECTS = _Labels("objects", lambda dataset: dataset.objects is not None)
_NEEDS: Mapping[str, _Labels] = {
    "coco": _OBJECTS,
    "voc07": _OBJECTS,
    "voc12": _OBJECTS,
    "boundary": _of_objects("outlines of objects", "segmentations"),
    "oriented": _of_objects("oriented boxes", "corners_xy"),
    "cuboid": _of_objects("cuboids", "cuboids"),
    "amodal": _of_objects("amodal boxes or masks", "amodal_boxes_xyxy", "amodal_segmentations"),
    "proposals": _OBJECTS,
    "panoptic": _Labels("panoptic maps", lambda dataset: dataset.panoptic is not None),
    "semantic": _Labels("semantic maps", lambda dataset: dataset.semantic is not None),
    "classification": _Labels("categories of whole pictures", lambda dataset: dataset.picture_labels is not None),
    "interactive": _Labels(
        "masks to click at",
        lambda dataset: (
            dataset.semantic is not None or (dataset.objects is not None and _outlined(dataset.objects) > 0)
        ),
    ),
}
PROTOCOLS = tuple(_NEEDS)
"""What predictions are judged by."""
OBJECT_PROTOCOLS = PROTOCOLS[: PROTOCOLS.index("panoptic")]
"""Those of them that judge objects: boxes, masks, keypoints, oriented boxes, cuboids."""


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
        Result by what was compared: ``bbox``, ``segm``, ``keypoints``; or by the name of the protocol.
    left_out
        What could not be compared, and why.
    unknown_categories
        Those of the data that the model judged does not know.
    without_prediction
        How many pictures had no map, category or click, and counted as missed.
    judged
        The data set and the objects that were judged, for who looks closer; None where whole pictures were.
    """

    protocol: str
    data: str
    images: int
    results: Mapping[str, Result]
    left_out: Mapping[str, str] = field(default_factory=dict)
    unknown_categories: tuple[str, ...] = ()
    without_prediction: int = 0
    judged: tuple[Dataset, Objects] | None = None

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
            **({"without_prediction": self.without_prediction} if self.without_prediction else {}),
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
    protocol: str | None = None,
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
        This or ``model``: objects with scores; or files. Of objects COCO results, or a folder of DOTA's, KITTI's or YOLO's
        text files; of panoptic maps COCO's JSON with its PNGs; of semantic maps a folder of index PNGs; of categories what
        ``otus predict --json`` says; of clicks a JSON list of curves (:mod:`otus.data.formats.picture_results`).
    model
        A name or file for :func:`otus.load`, which ``weights``, ``device`` and ``precision`` are handed to; or a predictor.
    protocol
        One of :data:`PROTOCOLS`; without it the first of them that the data set has labels for.
    kinds, max_dets
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
    protocol = protocol or next(iter(_offered(dataset)), PROTOCOLS[0])
    _check(dataset, protocol, kinds=kinds, max_dets=max_dets)
    unknown: tuple[str, ...] = ()
    if protocol not in OBJECT_PROTOCOLS:
        if isinstance(predictions, Objects):
            raise UsageError(f"protocol {protocol}: judges predictions from files; give their path as predictions")
        if predictions is not None:
            return _judge_files(dataset, predictions, protocol, report)
        if protocol != "classification":
            raise UsageError(f"protocol {protocol}: judges predictions from files, not yet those of a model")
        predictor = _predictor(model, typed)
        unknown = tuple(name for name in dataset.categories if name not in predictor.categories)
        return replace(_judge_classifier(dataset, predictor, progress), unknown_categories=unknown)
    if isinstance(predictions, Objects):
        found = predictions
    elif predictions is not None:
        found = _read_objects(predictions, dataset, report)
    else:
        predictor = _predictor(model, typed)
        unknown = tuple(name for name in dataset.categories if name not in predictor.categories)
        found = _predict(predictor, dataset, progress)
    judged = evaluate_predictions(dataset, found, protocol=protocol, kinds=kinds, max_dets=max_dets, report=report)
    return replace(judged, unknown_categories=unknown, judged=(dataset, found))


def _read_objects(path: str | Path, dataset: Dataset, report: Report) -> Objects:
    if not Path(path).is_dir():
        return read_results(path, dataset, report=report)
    from otus.data.formats.text_results import read_text_results

    return read_text_results(path, dataset, report=report)


def _judge_files(dataset: Dataset, path: str | Path, protocol: str, report: Report) -> EvaluationReport:
    from otus.inference.picture_protocols import judge_file

    if not Path(path).exists():
        raise DataError("there is no such file or folder", file=path, remedy="check the path")
    return _report_of(dataset, protocol, judge_file(dataset, path, protocol, report=report))


def _judge_classifier(
    dataset: Dataset, predictor: "Predictor", progress: Callable[[int, int], None] | None
) -> EvaluationReport:
    from otus.inference.picture_protocols import answers_of, judge_classifications

    def shown() -> Iterator[Classification]:
        paths = [dataset.pictures.path(index) for index in range(len(dataset))]
        for done, prediction in enumerate(predictor.stream(paths) if paths else (), start=1):
            if prediction.classification is None:
                raise UsageError(f"{predictor.name}: does not say what whole pictures show; evaluate it on objects")
            if progress is not None:
                progress(done, len(dataset))
            yield prediction.classification

    answers = answers_of(shown(), dataset.categories)
    return _report_of(dataset, "classification", judge_classifications(dataset, answers))


def _report_of(dataset: Dataset, protocol: str, judged: "Judged") -> EvaluationReport:
    return EvaluationReport(
        protocol,
        str(dataset.source),
        judged.images,
        {protocol: judged.result},
        without_prediction=judged.without_prediction,
    )


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
    """Judge predicted objects by the labels of a data set.

    Parameters
    ----------
    dataset
        With objects.
    predictions
        Objects with scores; ``picture`` and ``labels`` count as the data set's do.
    protocol
        One of :data:`OBJECT_PROTOCOLS`.
    kinds
        What ``coco`` is to compare; without it everything that both sides have throughout.
    max_dets
        Limits on the detections of a picture and category, of ``proposals`` on those of a picture; the protocol's own
        without it.
    report
        Gets each record that cannot be; the record is left out.

    Raises
    ------
    UsageError
        An unknown protocol, a data set without objects, or kinds that one side does not have.
    DataError
        Where ``report`` raises it: a score or box that is not finite, a negative size, an unknown label or picture.
    """
    _check(dataset, protocol, kinds=kinds, max_dets=max_dets)
    if protocol not in OBJECT_PROTOCOLS:
        raise UsageError(f"protocol {protocol}: does not judge objects; those that do: {', '.join(OBJECT_PROTOCOLS)}")
    assert dataset.objects is not None
    counts = {"label_count": len(dataset.categories), "picture_count": len(dataset)}
    truth = sound_objects(dataset.objects, "truth", **counts, report=report)
    predictions = sound_objects(predictions, "predictions", **counts, report=report)
    numbered = all(isinstance(one, int) for one in dataset.pictures.ids)  # file names may be the same in two folders
    picture_ids = np.array(dataset.pictures.ids if numbered else range(len(dataset)), dtype=np.int64)
    needed = _NEEDS[protocol].field
    if needed is not None:
        truth, predictions = (
            having(one, needed, side, report=report) for side, one in (("truth", truth), ("predictions", predictions))
        )
    left_out: dict[str, str] = {}
    if protocol == "coco" and kinds is None:
        obstacles = {kind: _obstacle(kind, truth, predictions, dataset.categories) for kind in KINDS}
        kinds = [kind for kind, obstacle in obstacles.items() if obstacle is None]
        left_out = {kind: obstacle for kind, obstacle in obstacles.items() if obstacle}
    elif protocol == "amodal":
        left_out = _amodal_obstacles(truth, predictions)
    results: dict[str, Result] = {}
    if protocol == "proposals":
        results["proposals"] = _judge_proposals(truth, predictions, dataset.categories, picture_ids, max_dets)
    for name, rules in _rules(protocol, kinds or (), tuple(max_dets or ())).items():
        if name in left_out:
            continue
        metric: AveragePrecision[Result] = AveragePrecision(rules, dataset.categories)
        metric.update(truth, predictions, picture_ids=picture_ids, sizes_hw=dataset.pictures.sizes_hw)
        results[name] = metric.compute()
    return EvaluationReport(protocol, str(dataset.source), len(dataset), results, left_out)


def _offered(dataset: Dataset) -> list[str]:
    """The protocols that a data set has labels for."""
    return [name for name, labels in _NEEDS.items() if labels.in_dataset(dataset)]


def _judge_proposals(
    truth: Objects,
    proposals: Objects,
    categories: Categories,
    picture_ids: np.ndarray,
    counts: Sequence[int] | None,
) -> Result:
    from otus.metrics.proposals import ProposalProtocol, ProposalRecall

    rules = ProposalProtocol() if counts is None else ProposalProtocol(tuple(sorted(set(counts))))
    return ProposalRecall(categories, rules).update(truth, proposals, picture_ids=picture_ids).compute()


def _check(dataset: Dataset, protocol: str, *, kinds: Sequence[Kind] | None, max_dets: Sequence[int] | None) -> None:
    """UsageError unless a protocol is known, takes these options, and finds what it needs."""
    if protocol not in PROTOCOLS:
        raise UsageError(f"protocol: expected one of {', '.join(PROTOCOLS)}, got {protocol!r}")
    if kinds is not None and protocol != "coco" and not (protocol.startswith("voc") and list(kinds) == ["bbox"]):
        raise UsageError(f"kinds: the protocol {protocol} has none to choose from")
    if max_dets is not None and (protocol not in OBJECT_PROTOCOLS or protocol.startswith("voc")):
        raise UsageError(f"max_dets: the protocol {protocol} has no limit on detections")
    if not _NEEDS[protocol].in_dataset(dataset):
        offered = ", ".join(_offered(dataset))
        raise UsageError(
            f"{dataset.source}: this data set has no {_NEEDS[protocol].what}, which the protocol {protocol} needs; "
            f"it has labels for: {offered or 'none'}"
        )


def _rules(protocol: str, kinds: Sequence[Kind], max_dets: tuple[int, ...]) -> Mapping[str, DetectionProtocol[Result]]:
    """What a protocol judges by, under the names of its results."""
    match protocol:
        case "voc07":
            return {"bbox": VocProtocol(2007)}
        case "voc12":
            return {"bbox": VocProtocol(2012)}
        case "boundary":
            from otus.metrics.boundary import boundary_protocols

            return boundary_protocols(max_dets=max_dets)
        case "oriented":
            from otus.metrics.oriented import oriented_protocols

            return oriented_protocols(max_dets=max_dets)
        case "cuboid":
            from otus.metrics.cuboid import cuboid_protocols

            return cuboid_protocols(max_dets=max_dets)
        case "amodal":
            from otus.metrics.amodal import amodal_protocols

            return amodal_protocols(max_dets=max_dets)
        case _:
            return {kind: CocoProtocol(kind, max_dets=max_dets) for kind in kinds}


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


def _amodal_obstacles(truth: Objects, predictions: Objects) -> dict[str, str]:
    """Why amodal boxes or masks cannot be compared."""
    obstacles = {}
    if truth.amodal_boxes_xyxy is None:
        obstacles["amodal_bbox"] = "the labels have no amodal boxes"
    if truth.amodal_segmentations is None:
        obstacles["amodal_segm"] = "the labels have no amodal masks"
    elif len(predictions) and not _outlined(predictions):
        obstacles["amodal_segm"] = "the predictions have no outlines"
    return obstacles
