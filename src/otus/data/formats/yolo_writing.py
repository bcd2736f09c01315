"""Write YOLO label files; see :mod:`otus.data.formats.yolo` for their format."""

from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

import numpy as np
import yaml
from jaxtyping import Bool, Float, Int

from otus._files import staged_folder
from otus.data.dataset import Dataset, Images
from otus.data.formats.conversion_losses import find_losses
from otus.data.formats.interface import (
    ConversionLoss,
    ImageMode,
    as_splits,
    copy_or_link_images,
    split_name_losses,
)
from otus.data.formats.paths import (
    flat_names,
)
from otus.data.formats.polygons import clip_polygon, object_polygons, polygon_area
from otus.data.formats.yolo_lines import is_representable
from otus.data.formats.yolo_yaml import (
    SPLITS,
)
from otus.data.image_decoding import open_image
from otus.data.image_files import IMAGE_SUFFIXES
from otus.errors import DataError
from otus.structures import BoxFormat, Categories, KeypointNames, Objects
from otus.structures.boxes import convert

_SUFFIXES = {"JPEG": ".jpg", "MPO": ".jpg", "JPEG2000": ".jp2", "DIB": ".bmp"}  # of other formats their names
_NEGLIGIBLE_PX, _VISIBLE_PX = 1e-6, 0.01


def write(datasets: Dataset | Sequence[Dataset], folder: Path, *, images: ImageMode = "copy") -> list[ConversionLoss]:
    """Write a data set, or its splits, as YOLO: ``images``, ``labels`` and ``data.yaml``.

    Besides boxes a data set has one line type: keypoints, corners of oriented boxes, or polygons, whichever most objects
    have; other objects are written as boxes (as four corners among oriented boxes). Of a segmentation with several parts or
    holes, the largest outer ring is written. Confidences are written if all objects of a split have one in 0..1. Objects
    are clipped to the image. All losses are returned.

    Raises
    ------
    DataError
        If two splits map to the same name in data.yaml: train, val or test.
    """
    splits = as_splits(datasets)
    names = [_split_name(dataset.split) for dataset in splits]
    if len(set(names)) < len(names):
        renamed = ", ".join(f"{dataset.split!r} as {name}" for dataset, name in zip(splits, names, strict=True))
        raise DataError(
            f"YOLO has only the splits {', '.join(SPLITS)}, but the names become {renamed}",
            remedy="choose some by --split",
        )
    objects_per_split = [dataset.objects if dataset.objects is not None else Objects.empty() for dataset in splits]
    kind = _kind(objects_per_split)
    num_keypoints = max(0 if objects.keypoints is None else objects.keypoints.shape[1] for objects in objects_per_split)
    losses: list[ConversionLoss] = []
    with staged_folder(folder) as stage:
        for dataset, objects, name in zip(splits, objects_per_split, names, strict=True):
            (stage / "images" / name).mkdir(parents=True)
            image_names = flat_names(dataset.images.files if images == "none" else _with_suffixes(dataset.images))
            copy_or_link_images(dataset, stage / "images" / name, images, names=image_names)
            losses += _write_labels(dataset, image_names, objects, stage / "labels" / name, kind, num_keypoints)
            losses += split_name_losses(dataset, name)
        description = _data_yaml(splits[0].categories, names, num_keypoints if kind == "keypoints" else 0)
        (stage / "data.yaml").write_text(description, encoding="utf-8")
    return losses


def _split_name(split: str | None) -> str:
    """Return the split's name in data.yaml: train, val or test."""
    return next((name for name in SPLITS if (split or "").startswith(name)), "train")


def _with_suffixes(images: Images) -> list[str]:
    """Return the images' files, with a suffix where there is none by which readers would recognise an image."""
    files = list(images.files)
    for index, file in enumerate(files):
        if PurePosixPath(file).suffix.lower() not in IMAGE_SUFFIXES:
            path = images.path(index)
            with open_image(path, str(path)) as image:
                files[index] = f"{file}{_SUFFIXES.get(str(image.format), f'.{image.format}'.lower())}"
    return files


def _write_labels(
    dataset: Dataset, image_names: Sequence[str], objects: Objects, folder: Path, kind: str, num_keypoints: int
) -> list[ConversionLoss]:
    scores = objects.scores
    if scores is not None and not ((scores >= 0) & (scores <= 1)).all():  # NaN is neither
        scores = None
    unclipped_rings = [_ring(dataset, objects, row, kind) for row in range(len(objects))]
    boxes, rings = _clip_to_image(dataset, objects, unclipped_rings, kind)
    areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    for row, ring in enumerate(rings):
        if ring is not None:
            areas[row] = polygon_area(ring)
    can_hold = {kind} | ({"score"} if scores is not None else set())
    schemes = _keypoint_names(dataset.categories, num_keypoints) if kind == "keypoints" else {}
    if len(schemes) == len(dataset.categories.keypoints):
        can_hold.add("keypoint_names")
    if len({tuple(scheme.flip_order()) for scheme in schemes.values()}) == 1:
        can_hold.add("flip_pairs")
    losses = find_losses(dataset, can_hold=frozenset(can_hold), areas=areas)
    fractions = _fractions(dataset, objects, boxes, rings)
    if kind == "keypoints":
        keypoints, outside = _keypoint_fractions(dataset, objects, num_keypoints)
        fractions = [np.concatenate(pair) for pair in zip(fractions, keypoints, strict=True)]
        for row in np.flatnonzero(outside).tolist():
            losses.append(_loss("keypoints", dataset, objects, row, f"{outside[row]} keypoints beyond the image"))
    written = _is_visible(objects, boxes, unclipped_rings, rings) & is_representable(fractions)
    for row in np.flatnonzero(~written).tolist():
        lost = "the object, which is outside the image or inverted"
        losses.append(_loss("object", dataset, objects, row, lost))
    losses += _clipping_losses(dataset, objects, unclipped_rings, rings, written, kind)
    losses += _box_losses(dataset, objects, boxes, rings, written)
    if kind == "outline" and all(
        len(coordinates) == 8 for coordinates, kept in zip(fractions, written, strict=True) if kept
    ):
        # Repeat the first point: polygons of four points would be read as oriented boxes.
        fractions = [np.concatenate([coordinates, coordinates[:2]]) for coordinates in fractions]
    folder.mkdir(parents=True)
    bounds = np.searchsorted(objects.image_index, np.arange(len(dataset) + 1))
    for index, name in enumerate(image_names):
        lines = []
        for row in range(bounds[index], bounds[index + 1]):
            if written[row]:
                numbers = fractions[row].tolist() + ([] if scores is None else [float(scores[row])])
                lines.append(f"{objects.labels[row]} {' '.join(map(repr, numbers))}\n")
        (folder / name).with_suffix(".txt").write_text("".join(lines), encoding="utf-8")
    return losses


def _kind(objects_per_split: list[Objects]) -> str:
    """Return the line type of most objects over all splits."""
    counts = {"keypoints": 0, "corners": 0, "outline": 0}
    for objects in objects_per_split:
        if objects.keypoints is not None:
            counts["keypoints"] += int(objects.keypoints.any(axis=(1, 2)).sum())
        if objects.corners_xy is not None:
            counts["corners"] += int((~np.isnan(objects.corners_xy).any(axis=(1, 2))).sum())
        if objects.segmentations is not None:
            counts["outline"] += int(np.count_nonzero(objects.segmentations.kinds))
    return max(counts, key=lambda kind: counts[kind]) if any(counts.values()) else "outline"


def _ring(dataset: Dataset, objects: Objects, row: int, kind: str) -> Float[np.ndarray, "p 2"] | None:
    """Return the ring to write for an object, None for a box."""
    if kind == "corners":
        assert objects.corners_xy is not None
        corners = objects.corners_xy[row]
        if not np.isnan(corners).any():
            return corners
        x1, y1, x2, y2 = objects.boxes_xyxy[row]
        return np.array([[x1, y1], [x2, y1], [x2, y2], [x1, y2]])
    if kind == "keypoints" or objects.segmentations is None:
        return None
    parts = object_polygons(objects.segmentations, row, dataset.images.size_hw(int(objects.image_index[row])))
    return max((part.outer for part in parts), key=polygon_area, default=None)


def _clip_to_image(
    dataset: Dataset, objects: Objects, rings: list[np.ndarray | None], kind: str
) -> tuple[Float[np.ndarray, "n 4"], list[np.ndarray | None]]:
    """Clip boxes and rings to the image: other readers accept only 0 to 1.

    Corners of oriented boxes are clamped one by one, since a line has exactly four.
    """
    sizes = _sizes_wh(dataset, objects)
    boxes = objects.boxes_xyxy.astype(np.float64).clip(0, np.tile(sizes, 2))
    clipped: list[np.ndarray | None] = []
    for ring, size in zip(rings, sizes, strict=True):
        if ring is not None:
            ring = ring.clip(0, size) if kind == "corners" else clip_polygon(ring, size)
        clipped.append(ring)
    return boxes, clipped


def _is_visible(
    objects: Objects, boxes: np.ndarray, unclipped_rings: list[np.ndarray | None], rings: list[np.ndarray | None]
) -> Bool[np.ndarray, "n"]:
    """Return which objects remain visible after clipping; objects without area are kept."""
    before, after = (boxes_xyxy[:, 2:] - boxes_xyxy[:, :2] for boxes_xyxy in (objects.boxes_xyxy, boxes))
    visible: Bool[np.ndarray, "n"] = np.logical_and(before >= 0, (after > 0) | (before == 0)).all(axis=1)
    for row, (unclipped, ring) in enumerate(zip(unclipped_rings, rings, strict=True)):
        if unclipped is not None and ring is not None:
            visible[row] = len(ring) >= 3 and (polygon_area(ring) > 0 or polygon_area(unclipped) == 0)
    return visible


def _clipping_losses(
    dataset: Dataset,
    objects: Objects,
    unclipped_rings: list[np.ndarray | None],
    rings: list[np.ndarray | None],
    written: np.ndarray,
    kind: str,
) -> Iterator[ConversionLoss]:
    """Yield a loss per clipped segmentation or oriented box."""
    for row in np.flatnonzero(written).tolist():
        unclipped, ring = unclipped_rings[row], rings[row]
        if unclipped is not None and ring is not None:
            distance = max(
                np.abs(unclipped.min(axis=0) - ring.min(axis=0)).max(),
                np.abs(unclipped.max(axis=0) - ring.max(axis=0)).max(),
            )
            if distance > _VISIBLE_PX:
                description = (
                    "corners of its oriented box, moved to the border"
                    if kind == "corners"
                    else "part of its segmentation"
                )
                yield _loss(
                    kind, dataset, objects, row, f"the {description}, up to {distance:.2f} pixels beyond the image"
                )


def _loss(kind: str, dataset: Dataset, objects: Objects, row: int, lost: str) -> ConversionLoss:
    return ConversionLoss(kind, dataset.images.files[objects.image_index[row]], int(objects.ids[row]), lost)


def _box_losses(
    dataset: Dataset, objects: Objects, boxes: np.ndarray, rings: list[np.ndarray | None], written: np.ndarray
) -> Iterator[ConversionLoss]:
    """Yield a loss for each box that a reader will read differently, and one for all slight differences (rounding)."""
    distances = np.abs(boxes - objects.boxes_xyxy).max(axis=1, initial=0)
    for row, ring in enumerate(rings):
        if ring is not None and len(ring):
            box = np.concatenate([ring.min(axis=0), ring.max(axis=0)])
            distances[row] = np.abs(box - objects.boxes_xyxy[row]).max()
    distances[~written] = 0
    for row in np.flatnonzero(distances > _VISIBLE_PX).tolist():
        compared = "its part in the image" if rings[row] is None else "that of its segmentation"
        lost = f"its box, which differs from {compared} by {distances[row]:.2f} pixels"
        yield _loss("box", dataset, objects, row, lost)
    slight = distances[(distances > _NEGLIGIBLE_PX) & (distances <= _VISIBLE_PX)]
    if len(slight):
        lost = (
            f"{len(slight)} boxes, which differ from those of their segmentations by at most {slight.max():.1g} pixels"
        )
        yield ConversionLoss("box", "", None, lost)


def _sizes_wh(dataset: Dataset, objects: Objects) -> Float[np.ndarray, "n 2"]:
    """Return the width and the height of each object's image."""
    return dataset.images.sizes_hw[objects.image_index][:, ::-1].astype(np.float64)


def _fractions(
    dataset: Dataset, objects: Objects, boxes: np.ndarray, rings: list[np.ndarray | None]
) -> list[np.ndarray]:
    """Return the normalised ring or box of each object."""
    sizes = _sizes_wh(dataset, objects)
    boxes = convert(boxes, BoxFormat.XYXY, BoxFormat.CXCYWH) / np.tile(sizes, 2)
    rows = zip(rings, boxes, sizes, strict=True)
    return [box if ring is None else (ring / size).ravel() for ring, box, size in rows]


def _keypoint_fractions(
    dataset: Dataset, objects: Objects, count: int
) -> tuple[Float[np.ndarray, "n c"], Int[np.ndarray, "n"]]:
    """Return ``count`` normalised keypoints per object (zeros outside the image), and the number outside."""
    keypoints = np.zeros((len(objects), count, 3))
    if objects.keypoints is not None:
        keypoints[:, : objects.keypoints.shape[1]] = objects.keypoints
        keypoints[..., :2] /= _sizes_wh(dataset, objects)[:, None]
    is_outside = ((keypoints[..., :2] < 0) | (keypoints[..., :2] > 1)).any(axis=2)
    labelled = (is_outside & (keypoints[..., 2] > 0)).sum(axis=1)
    keypoints[is_outside] = 0
    return keypoints.reshape(len(objects), 3 * count), labelled


def _keypoint_names(categories: Categories, count: int) -> dict[int, KeypointNames]:
    """Return the keypoint names by label, of categories with ``count`` keypoints."""
    schemes = {label: categories.keypoints_of(name) for label, name in enumerate(categories)}
    return {label: scheme for label, scheme in schemes.items() if scheme is not None and len(scheme) == count}


def _data_yaml(categories: Categories, splits: list[str], num_keypoints: int) -> str:
    # No "path": Ultralytics then uses the folder of this file; it would read "." as the working directory.
    content: dict[str, object] = {split: f"images/{split}" for split in splits}
    content["names"] = dict(enumerate(categories))
    if num_keypoints:
        content["kpt_shape"] = [num_keypoints, 3]
        schemes = _keypoint_names(categories, num_keypoints)
        if schemes:
            content["flip_idx"] = next(iter(schemes.values())).flip_order()
            content["kpt_names"] = {label: list(scheme.names) for label, scheme in schemes.items()}
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
