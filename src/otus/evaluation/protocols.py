"""The evaluation protocols: the name of each, the labels it needs, the files it reads, the metrics it computes.

One record per protocol in :data:`PROTOCOLS`, from which ``evaluate``, the help of ``otus evaluate --protocol`` and the
table of docs/protocols.md are made. Its functions import what they need when they are called, so that help is fast.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from otus.data.needed_labels import RequiredLabels
from otus.errors import Report, UsageError, did_you_mean, stop_at_first

if TYPE_CHECKING:
    from otus.data.dataset import Dataset
    from otus.metrics.detection.coco import Kind


Progress = Callable[[int, int], None]
"""Called with the numbers of finished and of all images."""


class Result(Protocol):
    """Metrics by name, over all categories and per category."""

    @property
    def figures(self) -> Mapping[str, float]: ...

    @property
    def per_category(self) -> Mapping[str, Mapping[str, float]]: ...


@dataclass(frozen=True, eq=False)
class ProtocolResult:
    """Results of a protocol.

    Parameters
    ----------
    results
        Result by kind of comparison (``bbox``, ``segm`` …), or by the name of the protocol.
    images
        Number of evaluated images.
    missing_predictions
        Number of images without a predicted map, class or click, which count as wrong.
    skipped_kinds
        Kinds that could not be compared, and the reasons.
    notes
        Warnings about the validity of the metrics.
    prediction_threshold
        Score threshold that was applied when the predictions were written (None: no threshold).
    """

    results: Mapping[str, Result]
    images: int
    missing_predictions: int = 0
    skipped_kinds: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()
    prediction_threshold: float | None = None


@dataclass(frozen=True)
class Options:
    """Options of an evaluation.

    Parameters
    ----------
    kinds
        Kinds that ``coco`` compares (default: all that ground truth and predictions have).
    max_dets
        Limits on the number of detections (default: the protocol's own).
    report
        Called with the error of each invalid record, which is then skipped (default: raise the first).
    max_clicks
        Maximum number of simulated clicks per object (default: 20).
    """

    kinds: "Sequence[Kind] | None" = None
    max_dets: Sequence[int] | None = None
    report: Report = stop_at_first
    max_clicks: int | None = None


@dataclass(frozen=True)
class EvaluationProtocol:
    """An evaluation protocol.

    Parameters
    ----------
    name
        Value of ``--protocol``.
    labels
        Labels it needs.
    predictions, figures
        Files it reads and metrics it computes, as text for the documentation.
    result_type
        Name of the type of a model's results that it evaluates.
    read
        ``read(path, dataset, report)``: predictions from files.
    from_results
        ``from_results(results, dataset)``: the same from a model's results by image index.
    evaluate
        ``evaluate(dataset, predictions, options)``: the results.
    kinds
        Kinds of comparison to choose from.
    limits_detections
        Whether it takes ``max_dets``.
    evaluate_system
        ``evaluate_system(pipeline, dataset, options, progress)``: the results of a promptable model, instead of
        ``from_results`` and ``evaluate``; ``pipeline`` is a :class:`~otus.inference.pipeline.Pipeline`.
    """

    name: str
    labels: RequiredLabels
    predictions: str
    figures: str
    result_type: Literal["Instances", "SemanticMap", "PanopticMap", "Classification", "MaskCandidates"]
    read: "Callable[[str | Path, Dataset, Report], Any]"
    from_results: "Callable[[Mapping[int, Any], Dataset], Any]"
    evaluate: "Callable[[Dataset, Any, Options], ProtocolResult]"
    kinds: tuple[str, ...] = ()
    limits_detections: bool = False
    evaluate_system: "Callable[[Any, Dataset, Options, Progress | None], ProtocolResult] | None" = None

    def check(self, dataset: "Dataset", options: Options) -> None:
        """Raise UsageError unless the protocol takes these options and the data set has the labels it needs."""
        if options.kinds is not None and len(self.kinds) < 2 and tuple(options.kinds) != self.kinds:
            raise UsageError(f"kinds: the protocol {self.name} has only one")
        if options.max_dets is not None and not self.limits_detections:
            raise UsageError(f"max_dets: the protocol {self.name} has no limit on detections")
        if not self.labels.in_dataset(dataset):
            offered = ", ".join(offered_protocols(dataset))
            raise UsageError(
                f"{dataset.source}: this data set has no {self.labels.what}, which the protocol {self.name} needs; "
                f"it has labels for: {offered or 'none'}"
            )


def protocol_of(name: str) -> EvaluationProtocol:
    """Return the protocol of a name; UsageError suggests the nearest name if there is none."""
    if name not in PROTOCOLS:
        known = ", ".join(PROTOCOLS)
        raise UsageError(f"protocol: expected one of {known}, got {name!r}{did_you_mean(name, PROTOCOLS)}")
    return PROTOCOLS[name]


def offered_protocols(dataset: "Dataset") -> list[str]:
    """Return the names of the protocols that a data set has labels for."""
    return [name for name, protocol in PROTOCOLS.items() if protocol.labels.in_dataset(dataset)]


def _read_objects(path: str | Path, dataset: "Dataset", report: Report) -> Any:
    from otus.data.formats.coco_results import read_results
    from otus.data.formats.text_results import read_text_results

    return (read_text_results if Path(path).is_dir() else read_results)(path, dataset, report=report)


def _objects_of(results: Mapping[int, Any], dataset: "Dataset") -> Any:
    from otus.evaluation.results import as_objects

    return as_objects(results, categories=dataset.categories)


def _object_protocol(
    name: str,
    predictions: str,
    figures: str,
    *,
    what: str = "objects",
    fields: Sequence[str] = (),
    kinds: tuple[str, ...] = (),
    limits_detections: bool = True,
) -> EvaluationProtocol:
    """Return a protocol that evaluates objects by one of ``fields``, or by their boxes."""

    def in_dataset(dataset: "Dataset") -> bool:
        objects = dataset.objects
        has_field = objects is not None and any(getattr(objects, name) is not None for name in fields)
        return objects is not None and (has_field or not fields or not len(objects))

    def evaluate(dataset: "Dataset", predicted: Any, options: Options) -> ProtocolResult:
        from otus.evaluation.object_protocols import evaluate_objects

        return evaluate_objects(dataset, predicted, name, options)

    return EvaluationProtocol(
        name=name,
        labels=RequiredLabels(what, in_dataset),
        predictions=predictions,
        figures=figures,
        result_type="Instances",
        read=_read_objects,
        from_results=_objects_of,
        evaluate=evaluate,
        kinds=kinds,
        limits_detections=limits_detections,
    )


def _image_protocol(
    name: str,
    predictions: str,
    figures: str,
    *,
    labels: RequiredLabels,
    result_type: Literal["SemanticMap", "PanopticMap", "Classification", "MaskCandidates"],
    **further: Any,
) -> EvaluationProtocol:
    """Return a protocol with one prediction per image; see :mod:`otus.evaluation.image_protocols`."""

    def functions() -> Any:
        from otus.evaluation.image_protocols import IMAGE_PROTOCOLS

        return IMAGE_PROTOCOLS[name]

    return EvaluationProtocol(
        name=name,
        labels=labels,
        predictions=predictions,
        figures=figures,
        result_type=result_type,
        read=lambda path, dataset, report: functions().read(path, dataset, report),
        from_results=lambda results, dataset: functions().from_results(results, dataset),
        evaluate=lambda dataset, predicted, options: functions().evaluate(dataset, predicted, options.report),
        **further,
    )


def _evaluate_by_clicks(
    pipeline: Any, dataset: "Dataset", options: Options, progress: Progress | None
) -> ProtocolResult:
    """Evaluate a promptable model by simulated clicks."""
    from otus.evaluation.clicking import evaluate_method

    method = pipeline.system.promptable_method(pipeline.preprocess)
    return evaluate_method(dataset, method, max_clicks=options.max_clicks, report=options.report, progress=progress)


def _has_masks(dataset: "Dataset") -> bool:
    from otus.structures import SegmentationKind

    outlines = None if dataset.objects is None else dataset.objects.segmentations
    return dataset.semantic is not None or (
        outlines is not None and bool((outlines.kinds != SegmentationKind.NONE).any())
    )


def _has_semantic_maps(dataset: "Dataset") -> bool:
    from otus.data.semantic_views import has_semantic_maps

    return has_semantic_maps(dataset)


_VOC = {"kinds": ("bbox",), "limits_detections": False}
PROTOCOLS: Mapping[str, EvaluationProtocol] = {
    protocol.name: protocol
    for protocol in (
        _object_protocol(
            "coco",
            "COCO results, or a folder of YOLO's or KITTI's text files",
            "AP, AP50, AP75, by area, AR, for boxes, masks, keypoints",
            kinds=("bbox", "segm", "keypoints"),
        ),
        _object_protocol("voc07", "as `coco`", "AP50 by 11 points; `difficult` does not count", **_VOC),  # type: ignore[arg-type]
        _object_protocol("voc12", "as `coco`", "AP50 by the whole area; `difficult` does not count", **_VOC),  # type: ignore[arg-type]
        _object_protocol(
            "boundary",
            "COCO results",
            "as `coco`; similarity is the smaller of mask IoU and boundary IoU",
            what="object masks",
            fields=["segmentations"],
        ),
        _object_protocol(
            "oriented",
            "DOTA's `Task1_*.txt`, YOLO's text files, COCO results with `corners`",
            "COCO's AP, and VOC's of 2007 and 2012, by the IoU of oriented boxes",
            what="oriented boxes",
            fields=["corners_xy"],
        ),
        _object_protocol(
            "cuboid",
            "KITTI's text files, COCO results with `cuboid`",
            "AP over IoU 0.05:0.50 and AP at 40 recalls, in space and from above",
            what="cuboids",
            fields=["cuboids"],
        ),
        _object_protocol(
            "amodal",
            "COCO results",
            "AP and AR of amodal boxes or masks; by occlusion: none, partial, heavy",
            what="amodal boxes or masks",
            fields=["amodal_boxes_xyxy", "amodal_segmentations"],
        ),
        _object_protocol(
            "proposals", "COCO results; `--max-dets`: numbers of proposals", "recall, AR, average best overlap"
        ),
        _image_protocol(
            "panoptic",
            "COCO's JSON and its PNGs, or the folder of `otus predict --out`",
            "PQ, SQ, RQ; for things and stuff; by category",
            labels=RequiredLabels("panoptic maps", lambda dataset: dataset.panoptic is not None),
            result_type="PanopticMap",
        ),
        _image_protocol(
            "semantic",
            "a folder of index PNGs, named like the images, with the values of the labels",
            "mIoU, fwIoU, mAcc, aAcc, boundary F; IoU, accuracy and F by category",
            labels=RequiredLabels("semantic or panoptic maps, or outlines of objects", _has_semantic_maps),
            result_type="SemanticMap",
        ),
        _image_protocol(
            "classification",
            "`otus predict --json`, or a classifier by `--model`",
            "top-1, top-5, mean over categories",
            labels=RequiredLabels("categories of whole images", lambda dataset: dataset.image_labels is not None),
            result_type="Classification",
        ),
        _image_protocol(
            "interactive",
            'JSON: `[{"file": "a.jpg", "ious": [0.71, 0.86, …]}, …]`, or simulated clicks by `--method` or `--model`',
            "clicks to IoU 0.85 and 0.90 (at most 20), fraction of objects that do not reach it, IoU by number of clicks",
            labels=RequiredLabels("masks to click at", _has_masks),
            result_type="MaskCandidates",
            evaluate_system=_evaluate_by_clicks,
        ),
    )
}
"""Evaluation protocols by name."""
OBJECT_PROTOCOLS = tuple(name for name, protocol in PROTOCOLS.items() if protocol.result_type == "Instances")
"""Protocols that evaluate objects: boxes, masks, keypoints, oriented boxes, cuboids."""
