"""What predictions are judged by, and what labels each needs."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from otus.data.dataset import Dataset
from otus.errors import UsageError, did_you_mean
from otus.metrics.detection.coco import Kind
from otus.structures import Objects, Outline


def outlined(objects: Objects) -> int:
    """How many of the objects have an outline."""
    return 0 if objects.segmentations is None else int((objects.segmentations.kinds != Outline.NONE).sum())


@dataclass(frozen=True)
class _Labels:
    """What a protocol needs: in words, and whether a data set has it."""

    what: str
    in_dataset: Callable[[Dataset], bool]


def _of_objects(what: str, *fields: str) -> _Labels:
    def in_dataset(dataset: Dataset) -> bool:
        objects = dataset.objects
        return objects is not None and (not len(objects) or any(getattr(objects, one) is not None for one in fields))

    return _Labels(what, in_dataset)


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
    "classification": _Labels("categories of whole images", lambda dataset: dataset.image_labels is not None),
    "interactive": _Labels(
        "masks to click at",
        lambda dataset: dataset.semantic is not None or (dataset.objects is not None and outlined(dataset.objects) > 0),
    ),
}
PROTOCOLS = tuple(_NEEDS)
"""What predictions are judged by."""
OBJECT_PROTOCOLS = PROTOCOLS[: PROTOCOLS.index("panoptic")]
"""Those of them that judge objects: boxes, masks, keypoints, oriented boxes, cuboids."""


def offered_protocols(dataset: Dataset) -> list[str]:
    """The protocols that a data set has labels for."""
    return [name for name, labels in _NEEDS.items() if labels.in_dataset(dataset)]


def check_protocol(
    dataset: Dataset, protocol: str, *, kinds: Sequence[Kind] | None, max_dets: Sequence[int] | None
) -> None:
    """UsageError unless a protocol is known, takes these options, and finds what it needs."""
    if protocol not in PROTOCOLS:
        known = ", ".join(PROTOCOLS)
        raise UsageError(f"protocol: expected one of {known}, got {protocol!r}{did_you_mean(protocol, PROTOCOLS)}")
    if kinds is not None and protocol != "coco" and not (protocol.startswith("voc") and list(kinds) == ["bbox"]):
        raise UsageError(f"kinds: the protocol {protocol} has none to choose from")
    if max_dets is not None and (protocol not in OBJECT_PROTOCOLS or protocol.startswith("voc")):
        raise UsageError(f"max_dets: the protocol {protocol} has no limit on detections")
    if not _NEEDS[protocol].in_dataset(dataset):
        offered = ", ".join(offered_protocols(dataset))
        raise UsageError(
            f"{dataset.source}: this data set has no {_NEEDS[protocol].what}, which the protocol {protocol} needs; "
            f"it has labels for: {offered or 'none'}"
        )
