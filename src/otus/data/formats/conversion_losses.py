"""Find the information in a data set that a target format cannot hold."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from otus.data.dataset import Dataset
from otus.data.formats.interface import ConversionLoss
from otus.data.formats.paths import flat_names
from otus.data.formats.polygons import object_polygons
from otus.structures import KeypointNames, Objects, SegmentationKind

_Mask = Callable[[Objects], Any]

# Kind, what is lost, and a mask of the objects that have it (None: no object).
_OBJECT_FIELDS: tuple[tuple[str, str, _Mask], ...] = (
    ("crowd", "its crowd flag", lambda o: o.is_crowd),
    ("score", "its score", lambda o: None if o.scores is None else ~np.isnan(o.scores)),
    ("keypoints", "its keypoints", lambda o: None if o.keypoints is None else o.keypoints.any(axis=(1, 2))),
    ("corners", "the corners of its oriented box", lambda o: _has_values(o.corners_xy)),
    ("cuboid", "its cuboid", lambda o: _has_values(o.cuboids)),
    ("amodal_box", "its amodal box", lambda o: _has_values(o.amodal_boxes_xyxy)),
    (
        "amodal_outline",
        "its amodal segmentation",
        lambda o: None if o.amodal_segmentations is None else o.amodal_segmentations.kinds != SegmentationKind.NONE,
    ),
    (
        "outline",
        "its segmentation",
        lambda o: None if o.segmentations is None else o.segmentations.kinds != SegmentationKind.NONE,
    ),
)

_AREA_TOLERANCE = 1e-6

# What a writer may list in ``can_hold``, besides names of columns.
LOSS_KINDS = frozenset(kind for kind, _, _ in _OBJECT_FIELDS) | {
    "holes",
    "parts",
    "columns",
    "annotation_ids",
    "image_ids",
    "category_ids",
    "supercategories",
    "stuff",
    "keypoint_names",
    "skeleton",
    "flip_pairs",
    "sigmas",
    "polygons",
    "semantic",
    "panoptic",
    "image_label",
}


def find_losses(
    dataset: Dataset, *, can_hold: frozenset[str], areas: Float[np.ndarray, "n"] | None = None
) -> list[ConversionLoss]:
    """Return what a format cannot hold of a data set, object by object.

    Parameters
    ----------
    can_hold
        What the format can hold. Of each object: ``crowd``, ``score``, ``keypoints``, ``corners``, ``cuboid``,
        ``amodal_box``, ``amodal_outline``, ``outline`` (a segmentation, as one polygon), ``holes`` and ``parts`` (of a
        segmentation; masks hold both), names of columns (``difficult`` …) or ``columns`` for all. Of each image:
        ``semantic``, ``panoptic``, ``image_label``. Of the whole data set, reported once: ``annotation_ids``,
        ``image_ids``, ``category_ids``, ``supercategories``, ``stuff``, ``keypoint_names``, ``skeleton``,
        ``flip_pairs``, ``sigmas``, ``polygons`` (their points; only for formats of masks, which list ``outline``,
        ``holes`` and ``parts``).
    areas
        Areas as a reader of the format will compute them; differences are the loss ``areas`` (default: no such losses).

    Returns
    -------
    list
        The losses, by kind and then in the order of the objects. Flags of 0 and NaN are not losses. Fields of the
        source that its reader did not read (``unread_field``) are always lost.
    """
    losses: list[ConversionLoss] = []
    if dataset.objects is not None:
        losses += _object_losses(dataset, dataset.objects, can_hold)
        if "outline" in can_hold and not {"holes", "parts"} <= can_hold:
            losses += _outline_losses(dataset, dataset.objects, can_hold)
        if areas is not None:
            losses += _area_losses(dataset.objects, areas)
    losses += _image_losses(dataset, can_hold)
    losses += [
        ConversionLoss(kind, "", None, f"{description} of the whole data set")
        for kind, description in _dataset_losses(dataset, can_hold)
    ]
    for unread in dataset.unread:
        losses.append(
            ConversionLoss("unread_field", "", None, f"{unread.field}: {unread.count} values, e.g. {unread.example}")
        )
    return losses


def _area_losses(objects: Objects, areas: Float[np.ndarray, "n"]) -> Iterator[ConversionLoss]:
    differ = np.flatnonzero(~np.isclose(areas, objects.areas, rtol=_AREA_TOLERANCE, atol=_AREA_TOLERANCE))
    if len(differ):
        first = differ[0]
        example = f"e.g. {objects.areas[first]:g} of object {objects.ids[first]}, which becomes {areas[first]:g}"
        yield ConversionLoss(
            "areas", "", None, f"the stated areas of {len(differ)} objects, which will be recomputed; {example}"
        )


def boolean_columns(objects: Objects) -> dict[str, Bool[np.ndarray, "n"]]:
    """Return the columns of flags (0, 1 or NaN) as booleans; NaN becomes False."""
    flags = {}
    for name, column in objects.columns.items():
        if column.ndim == 1 and (np.isin(column, (0, 1)) | np.isnan(column.astype(np.float64))).all():
            flags[name] = column == 1
    return flags


def _has_values(values: np.ndarray | None) -> np.ndarray | None:
    return None if values is None else ~np.isnan(values).all(axis=tuple(range(1, values.ndim)))


def _object_losses(dataset: Dataset, objects: Objects, can_hold: frozenset[str]) -> Iterator[ConversionLoss]:
    lossy = [(kind, description, mask(objects)) for kind, description, mask in _OBJECT_FIELDS if kind not in can_hold]
    if "columns" not in can_hold:
        for name, column in objects.columns.items():
            if name not in can_hold:
                is_set = (column != 0) & ~np.isnan(column.astype(np.float64))
                lossy.append((name, f"the column {name!r}", is_set.any(axis=tuple(range(1, is_set.ndim)))))
    for kind, description, mask in lossy:
        for i in np.flatnonzero(mask) if mask is not None else ():
            yield ConversionLoss(kind, dataset.images.files[objects.image_index[i]], int(objects.ids[i]), description)


def _outline_losses(dataset: Dataset, objects: Objects, can_hold: frozenset[str]) -> Iterator[ConversionLoss]:
    segmentations = objects.segmentations
    for i in np.flatnonzero(segmentations.kinds) if segmentations is not None else ():
        assert segmentations is not None
        image = int(objects.image_index[i])
        file, object_id = dataset.images.files[image], int(objects.ids[i])
        parts = object_polygons(segmentations, int(i), dataset.images.size_hw(image))
        holes = sum(len(part.holes) for part in parts)
        if holes and "holes" not in can_hold:
            yield ConversionLoss("holes", file, object_id, f"{holes} holes of its segmentation")
        if len(parts) > 1 and "parts" not in can_hold:
            yield ConversionLoss("parts", file, object_id, f"all but one of the {len(parts)} parts of its segmentation")


def _image_losses(dataset: Dataset, can_hold: frozenset[str]) -> Iterator[ConversionLoss]:
    for kind, maps in (("semantic", dataset.semantic), ("panoptic", dataset.panoptic)):
        if maps is not None and kind not in can_hold:
            for file, map_file in zip(dataset.images.files, maps.files, strict=True):
                if map_file is not None:
                    yield ConversionLoss(kind, file, None, f"its {kind} map")
    if dataset.image_labels is not None and "image_label" not in can_hold:
        for file, label in zip(dataset.images.files, dataset.image_labels, strict=True):
            yield ConversionLoss("image_label", file, None, f"its label {dataset.categories[int(label)]!r}")


def _dataset_losses(dataset: Dataset, can_hold: frozenset[str]) -> Iterator[tuple[str, str]]:
    categories, objects = dataset.categories, dataset.objects
    names = flat_names(dataset.images.files)
    default_ids = objects is None or (
        np.array_equal(objects.ids, np.arange(1, len(objects) + 1)) and names == sorted(names)
    )
    schemes = [scheme for _, scheme in categories.keypoints]

    def default(scheme: KeypointNames) -> KeypointNames:
        return KeypointNames(scheme.names)

    segmentations = None if objects is None else objects.segmentations
    polygons = segmentations is not None and bool((segmentations.kinds == SegmentationKind.POLYGONS).any())
    as_pixels = {"outline", "holes", "parts"} <= can_hold
    losses = {
        "polygons": (
            polygons and as_pixels,
            "the points of polygons (their pixels are kept)",
        ),
        "annotation_ids": (not default_ids, "the ids of annotations"),
        "image_ids": (any(isinstance(image_id, int) for image_id in dataset.images.ids), "the ids of images"),
        "category_ids": (categories.ids != tuple(range(len(categories))), "the ids of categories"),
        "supercategories": (any(categories.supercategories), "the supercategories"),
        "stuff": (not all(categories.is_thing), "which categories are stuff"),
        "keypoint_names": (bool(schemes), "the names of keypoints"),
        "skeleton": (any(scheme.skeleton for scheme in schemes), "the skeleton of keypoints"),
        "flip_pairs": (
            any(scheme.flip_pairs != default(scheme).flip_pairs for scheme in schemes),
            "the flip pairs of keypoints",
        ),
        "sigmas": (any(scheme.sigmas != default(scheme).sigmas for scheme in schemes), "the sigmas of keypoints"),
    }
    return ((kind, description) for kind, (is_lost, description) in losses.items() if is_lost and kind not in can_hold)
