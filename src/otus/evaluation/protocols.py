"""The evaluation protocols: what each is called, needs, reads and computes.

One record each, :data:`PROTOCOLS`: ``evaluate`` asks it, the help of ``otus evaluate --protocol`` and the table of
docs/protocols.md are made of it. What a record's functions need is imported when they are called, so that help answers at
once.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from otus.data.needed_labels import Labels
from otus.errors import Report, UsageError, did_you_mean, stop_at_first

if TYPE_CHECKING:
    from otus.data.dataset import Dataset
    from otus.metrics.detection.coco import Kind


class Result(Protocol):
    """Figures by name, in all and by category."""

    @property
    def figures(self) -> Mapping[str, float]: ...

    @property
    def per_category(self) -> Mapping[str, Mapping[str, float]]: ...


@dataclass(frozen=True, eq=False)
class Judged:
    """What a protocol computed.

    Parameters
    ----------
    results
        By what was compared: ``bbox``, ``segm`` …, or the name of the protocol.
    images
        How many were judged.
    without_prediction
        How many of these had no map, category or click, and counted as missed.
    left_out
        What could not be compared, and why.
    notes
        What to know before the figures are believed.
    cut_at
        Score threshold at which predictions were cut before they were written (None: they were not).
    """

    results: Mapping[str, Result]
    images: int
    without_prediction: int = 0
    left_out: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()
    cut_at: float | None = None


@dataclass(frozen=True)
class Options:
    """What a caller may choose: the kinds that ``coco`` compares, limits on detections, who gets faulty records."""

    kinds: "Sequence[Kind] | None" = None
    max_dets: Sequence[int] | None = None
    report: Report = stop_at_first


@dataclass(frozen=True)
class EvaluationProtocol:
    """A protocol.

    Parameters
    ----------
    name
        As ``--protocol`` says it.
    labels
        What it needs.
    predictions, figures
        What it reads and computes, in words for the documentation.
    judges
        Name of the type of predictions that it takes from a model; None where it takes none yet.
    read
        ``read(path, dataset, report)``: predictions from files.
    from_results
        ``from_results(results, dataset)``: the same from a model's results by index of the image.
    judge
        ``judge(dataset, predictions, options)``.
    kinds
        What can be chosen to be compared.
    limits_detections
        Whether ``max_dets`` can be chosen.
    instead_of_model
        What it judges in the place of a model, where it takes none.
    """

    name: str
    labels: Labels
    predictions: str
    figures: str
    judges: Literal["Instances", "SemanticMap", "Classification"] | None
    read: "Callable[[str | Path, Dataset, Report], Any]"
    from_results: "Callable[[Mapping[int, Any], Dataset], Any]"
    judge: "Callable[[Dataset, Any, Options], Judged]"
    kinds: tuple[str, ...] = ()
    limits_detections: bool = False
    instead_of_model: str = "judges predictions from files, not yet those of a model"

    def check(self, dataset: "Dataset", options: Options) -> None:
        """UsageError unless the protocol takes these options and the data set has the labels that it needs."""
        if options.kinds is not None and len(self.kinds) < 2 and tuple(options.kinds) != self.kinds:
            raise UsageError(f"kinds: the protocol {self.name} has none to choose from")
        if options.max_dets is not None and not self.limits_detections:
            raise UsageError(f"max_dets: the protocol {self.name} has no limit on detections")
        if not self.labels.in_dataset(dataset):
            offered = ", ".join(offered_protocols(dataset))
            raise UsageError(
                f"{dataset.source}: this data set has no {self.labels.what}, which the protocol {self.name} needs; "
                f"it has labels for: {offered or 'none'}"
            )


def protocol_of(name: str) -> EvaluationProtocol:
    """Return the protocol of a name; UsageError with the nearest name if there is none of this one."""
    if name not in PROTOCOLS:
        known = ", ".join(PROTOCOLS)
        raise UsageError(f"protocol: expected one of {known}, got {name!r}{did_you_mean(name, PROTOCOLS)}")
    return PROTOCOLS[name]


def offered_protocols(dataset: "Dataset") -> list[str]:
    """The protocols that a data set has labels for."""
    return [name for name, protocol in PROTOCOLS.items() if protocol.labels.in_dataset(dataset)]


def _read_objects(path: str | Path, dataset: "Dataset", report: Report) -> Any:
    from otus.data.formats.coco_results import read_results
    from otus.data.formats.text_results import read_text_results

    return (read_text_results if Path(path).is_dir() else read_results)(path, dataset, report=report)


def _objects_of(results: Mapping[int, Any], dataset: "Dataset") -> Any:
    from otus.evaluation.results import as_objects

    return as_objects(results, categories=dataset.categories)


def _of_objects(
    name: str,
    predictions: str,
    figures: str,
    *,
    what: str = "objects",
    fields: Sequence[str] = (),
    kinds: tuple[str, ...] = (),
    limits_detections: bool = True,
) -> EvaluationProtocol:
    """A protocol that judges objects by one of ``fields``, or their boxes where there is none."""

    def in_dataset(dataset: "Dataset") -> bool:
        objects = dataset.objects
        known = objects is not None and any(getattr(objects, one) is not None for one in fields)
        return objects is not None and (known or not fields or not len(objects))

    def judge(dataset: "Dataset", predicted: Any, options: Options) -> Judged:
        from otus.evaluation.object_protocols import judge_objects

        return judge_objects(dataset, predicted, name, options)

    return EvaluationProtocol(
        name=name,
        labels=Labels(what, in_dataset),
        predictions=predictions,
        figures=figures,
        judges="Instances",
        read=_read_objects,
        from_results=_objects_of,
        judge=judge,
        kinds=kinds,
        limits_detections=limits_detections,
    )


def _of_images(
    name: str,
    predictions: str,
    figures: str,
    *,
    labels: Labels,
    judges: Literal["SemanticMap", "Classification"] | None = None,
    **further: str,
) -> EvaluationProtocol:
    """A protocol of which every image has one prediction, see :mod:`otus.evaluation.image_protocols`."""

    def functions() -> Any:
        from otus.evaluation.image_protocols import IMAGE_PROTOCOLS

        return IMAGE_PROTOCOLS[name]

    return EvaluationProtocol(
        name=name,
        labels=labels,
        predictions=predictions,
        figures=figures,
        judges=judges,
        read=lambda path, dataset, report: functions().read(path, dataset, report),
        from_results=lambda results, dataset: functions().from_results(results, dataset),
        judge=lambda dataset, predicted, options: functions().judge(dataset, predicted, options.report),
        **further,  # type: ignore[arg-type]
    )


def _can_be_clicked(dataset: "Dataset") -> bool:
    from otus.structures import Outline

    outlines = None if dataset.objects is None else dataset.objects.segmentations
    return dataset.semantic is not None or (outlines is not None and bool((outlines.kinds != Outline.NONE).any()))


_VOC = {"kinds": ("bbox",), "limits_detections": False}
PROTOCOLS: Mapping[str, EvaluationProtocol] = {
    protocol.name: protocol
    for protocol in (
        _of_objects(
            "coco",
            "COCO results, or a folder of YOLO's or KITTI's text files",
            "AP, AP50, AP75, by area, AR, for boxes, masks, keypoints",
            kinds=("bbox", "segm", "keypoints"),
        ),
        _of_objects("voc07", "as `coco`", "AP50 by 11 points; `difficult` does not count", **_VOC),  # type: ignore[arg-type]
        _of_objects("voc12", "as `coco`", "AP50 by the whole area; `difficult` does not count", **_VOC),  # type: ignore[arg-type]
        _of_objects(
            "boundary",
            "COCO results",
            "as `coco`; similarity is the smaller of mask IoU and boundary IoU",
            what="outlines of objects",
            fields=["segmentations"],
        ),
        _of_objects(
            "oriented",
            "DOTA's `Task1_*.txt`, YOLO's text files, COCO results with `corners`",
            "COCO's AP, and VOC's of 2007 and 2012, over the IoU of turned boxes",
            what="oriented boxes",
            fields=["corners_xy"],
        ),
        _of_objects(
            "cuboid",
            "KITTI's text files, COCO results with `cuboid`",
            "AP over IoU 0.05:0.50 and AP at 40 recalls, in space and from above",
            what="cuboids",
            fields=["cuboids"],
        ),
        _of_objects(
            "amodal",
            "COCO results",
            "AP and AR of whole objects; of those not, partially and heavily hidden",
            what="amodal boxes or masks",
            fields=["amodal_boxes_xyxy", "amodal_segmentations"],
        ),
        _of_objects("proposals", "COCO results; `--max-dets` says by how many", "recall, AR, average best overlap"),
        _of_images(
            "panoptic",
            "COCO's JSON and its PNGs",
            "PQ, SQ, RQ; of things and stuff; by category",
            labels=Labels("panoptic maps", lambda dataset: dataset.panoptic is not None),
        ),
        _of_images(
            "semantic",
            "a folder of index PNGs, named as the images, with the labels' values",
            "mIoU, fwIoU, mAcc, aAcc, boundary F; IoU, accuracy and F by category",
            labels=Labels("semantic maps", lambda dataset: dataset.semantic is not None),
            judges="SemanticMap",
        ),
        _of_images(
            "classification",
            "`otus predict --json`, or a classifier by `--model`",
            "top-1, top-5, mean over categories",
            labels=Labels("categories of whole images", lambda dataset: dataset.image_labels is not None),
            judges="Classification",
        ),
        _of_images(
            "interactive",
            'JSON: `[{"file": "a.jpg", "ious": [0.71, 0.86, …]}, …]`, or simulated clicks by `--method`',
            "clicks until IoU 0.85 and 0.90 (20 at most), share never there, IoU by clicks",
            labels=Labels("masks to click at", _can_be_clicked),
            instead_of_model="judges a method by its clicks; give the method, e.g. graph-cut",
        ),
    )
}
"""What predictions are judged by."""
OBJECT_PROTOCOLS = tuple(name for name, protocol in PROTOCOLS.items() if protocol.judges == "Instances")
"""Those of them that judge objects: boxes, masks, keypoints, oriented boxes, cuboids."""
