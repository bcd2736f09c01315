"""COCO panoptic: a PNG of segment ids per image, and a JSON file that describes the segments.

https://cocodataset.org/#format-data, panoptic segmentation: id = R + 256 G + 256^2 B. The PNGs are in a folder beside
the JSON file, with the same name.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image

from otus._files import staged_folder
from otus.data.dataset import Dataset, Images, PanopticFiles
from otus.data.formats.coco import (
    Category,
    ImageRecord,
    category_records,
    find_image_folder,
    image_ids,
    image_names,
    image_records,
    is_outside_folder,
    is_panoptic,
    json_files,
    read_categories,
    sniff,
    split_from_name,
    split_image_folder,
    valid_images,
)
from otus.data.formats.conversion_losses import find_losses
from otus.data.formats.interface import (
    ConversionLoss,
    ImageMode,
    Layout,
    as_splits,
    copy_or_link_images,
    split_file_name,
    split_name_losses,
)
from otus.data.formats.json_reader.stream import RecordReader, write_records
from otus.data.formats.paths import flat_names
from otus.data.formats.text_files import Int64
from otus.data.formats.unread_fields import UnreadFields
from otus.data.image_lookup import image_index_by_name
from otus.errors import DataError, Report, did_you_mean, stop_at_first
from otus.structures import Categories, Objects, PanopticMap, Segment

FORMAT = "coco_panoptic"
CAN_HOLD = frozenset({"panoptic", "image_ids", "category_ids", "supercategories", "stuff"})


class SegmentInfo(msgspec.Struct):
    """A record of ``segments_info``; boxes and areas are computed from the pixels."""

    id: Int64
    category_id: Int64
    iscrowd: bool | Int64 = 0


class Annotation(msgspec.Struct):
    """A record of ``annotations``: the map of one image."""

    image_id: Int64
    file_name: str
    segments_info: list[SegmentInfo]


class PredictedSegment(SegmentInfo):
    """A record of predicted ``segments_info``; the name of a ``category`` takes precedence over ``category_id``."""

    category: str | None = None


class PredictedMap(Annotation):
    """A record of predicted ``annotations``; an ``image_id`` that is a string is the name of an image."""

    image_id: Int64 | str  # type: ignore[assignment]
    segments_info: list[PredictedSegment]  # type: ignore[assignment]


def find(path: Path) -> list[Layout]:
    """Find the panoptic JSON files at a path."""
    return [Layout(FORMAT, file, split_from_name(file)) for file in json_files(path) if is_panoptic(file, sniff(file))]


def read(layout: Layout, *, report: Report = stop_at_first, allow_outside: bool = False) -> Dataset:
    """Read the data set of one JSON file; PNGs are decoded on access.

    Parameters
    ----------
    layout
        ``source`` is the JSON file.
    report
        Called with the error of each invalid record, which is skipped (default: raise the first).
    allow_outside
        Whether a ``file_name`` may lead outside its folder (default: False).
    """
    file = layout.source
    records: dict[str, list[Any]] = {"images": [], "annotations": [], "categories": []}
    types: dict[str, type[msgspec.Struct]] = {"images": ImageRecord, "annotations": Annotation, "categories": Category}
    unread = UnreadFields()
    reader = RecordReader(file, types, report, open_ended=types.keys())
    for batch in reader:
        records[batch.array] += unread.declared(batch, types[batch.array])
    for name, value in reader.other_values.items():
        unread.note(name, [value])
    unread.note("images[].coco_url", (record.coco_url for _, record in records["images"] if record.file_name))
    images, rejected_ids = valid_images(
        file, records["images"], report, reader.faulty_ids["images"], allow_outside=allow_outside
    )
    categories = read_categories(file, records["categories"], report)
    index_of = {image.id: index for index, image in enumerate(images)}
    records["annotations"] = [record for record in records["annotations"] if record[1].image_id not in rejected_ids]
    panoptic = _panoptic_files(file, records["annotations"], index_of, categories, report, allow_outside=allow_outside)
    names = tuple(image.file_name for image in images)
    sizes_hw = np.array([(image.height, image.width) for image in images], dtype=np.int64).reshape(-1, 2)
    return Dataset(
        source=file,
        format=FORMAT,
        images=Images(find_image_folder(file, names), names, sizes_hw, tuple(index_of)),
        categories=categories,
        split=layout.split,
        panoptic=panoptic,
        unread=unread.finish(),
    )


def read_panoptic_results(path: str | Path, dataset: Dataset, *, report: Report = stop_at_first) -> PanopticFiles:
    """Read predicted panoptic maps, in the same layout or as ``otus predict --out`` writes them.

    Only the array ``annotations`` is read, which may be the whole document.

    Parameters
    ----------
    path
        The JSON file, or a folder with the JSON file and the maps.
    dataset
        Ground truth with panoptic maps; the predictions use its image and category ids.
    report
        Called with the error of each invalid map, which is skipped.

    Raises
    ------
    DataError
        Through ``report``: unknown ids, a second map of an image, two segments with the same id. Raised directly: a
        folder without such a file, or with several.
    """
    assert dataset.panoptic is not None
    path = Path(path)
    files = json_files(path) if path.is_dir() else [path]
    if len(files) > 1:
        files = [file for file in files if b'"segments_info"' in sniff(file)]
    if len(files) != 1:
        problem = f"expected one JSON file with segments_info, found {len(files)}"
        raise DataError(problem, file=path, remedy="give the file itself")
    annotations: list[tuple[int, Annotation]] = []
    types: dict[str, type[msgspec.Struct]] = {"annotations": PredictedMap}
    for batch in RecordReader(files[0], types, report, records_key="annotations", open_ended=types.keys()):
        annotations += zip(batch.indices.tolist(), batch.records, strict=True)
    categories = dataset.panoptic.categories
    annotations = [item for item in annotations if _resolve_category_names(*item, files[0], categories, report)]
    ids = image_ids(dataset)
    if any(isinstance(annotation.image_id, str) for _, annotation in annotations):
        find_index = image_index_by_name(dataset)
        for _, annotation in annotations:
            index = find_index(annotation.image_id) if isinstance(annotation.image_id, str) else None
            annotation.image_id = annotation.image_id if index is None else ids[index]
    index_of = {image_id: index for index, image_id in enumerate(ids)}
    return _panoptic_files(files[0], annotations, index_of, categories, report, allow_outside=False)


def _resolve_category_names(index: int, annotation: Any, file: Path, categories: Categories, report: Report) -> bool:
    """Set ``category_id`` of the predicted segments that name a category; return whether all names are known."""
    ids = dict(zip(categories, categories.ids, strict=True))
    for position, info in enumerate(annotation.segments_info):
        if info.category is None:
            continue
        if info.category not in ids:
            where = f"annotations[{index}].segments_info[{position}].category"
            problem = f"{info.category!r} is not a category of the data{did_you_mean(info.category, categories)}"
            report(DataError(problem, file=file, where=where, remedy="correct it", kind="unknown_category"))
            return False
        info.category_id = ids[info.category]
    return True


def _panoptic_files(
    file: Path,
    annotations: list[tuple[int, Annotation]],
    index_of: dict[int, int],
    categories: Categories,
    report: Report,
    *,
    allow_outside: bool,
) -> PanopticFiles:
    """Return PNG and segments per image; ``index_of`` maps image ids to indices."""
    labels = {category_id: label for label, category_id in enumerate(categories.ids)}
    files: list[Path | None] = [None] * len(index_of)
    segments: list[tuple[Segment, ...]] = [()] * len(index_of)
    maps = file.with_suffix("")
    for index, annotation in annotations:
        problem = _problem(annotation, index_of, labels, allow_outside=allow_outside)
        if problem is None and files[index_of[annotation.image_id]] is not None:
            problem = (".image_id", f"a second map for image {annotation.image_id}")
        if problem is not None:
            where = f"annotations[{index}]{problem[0]}"
            report(DataError(problem[1], file=file, where=where, remedy="correct the record or remove it"))
            continue
        files[index_of[annotation.image_id]] = (maps if maps.is_dir() else file.parent) / annotation.file_name
        segments[index_of[annotation.image_id]] = tuple(
            Segment(info.id, labels[info.category_id], bool(info.iscrowd)) for info in annotation.segments_info
        )
    return PanopticFiles(tuple(files), tuple(segments), categories)


def _problem(
    annotation: Annotation, images: dict[int, int], labels: dict[int, int], *, allow_outside: bool
) -> tuple[str, str] | None:
    if annotation.image_id not in images:
        return ".image_id", f"no image has the id {annotation.image_id!r}"
    if not allow_outside and is_outside_folder(annotation.file_name):
        return ".file_name", f"{annotation.file_name!r} leads outside the folder of the maps"
    ids: set[int] = set()
    for index, info in enumerate(annotation.segments_info):
        where = f".segments_info[{index}]"
        if info.category_id not in labels:
            return f"{where}.category_id", f"no category has the id {info.category_id}"
        if info.id in ids or not 0 < info.id < 256**3:
            return f"{where}.id", f"expected a unique id from 1 to {256**3 - 1}, got {info.id}"
        ids.add(info.id)
    return None


def write(datasets: Dataset | Sequence[Dataset], folder: Path, *, images: ImageMode = "copy") -> list[ConversionLoss]:
    """Write ``panoptic_<split>.json``, the PNGs in ``panoptic_<split>/`` and the images in ``images/`` to a new folder.

    With several splits, the images are in ``images/<split>/``.

    Raises
    ------
    DataError
        If a data set has no panoptic maps; they are not made from objects, since those may overlap.
    """
    losses: list[ConversionLoss] = []
    splits = as_splits(datasets)
    for dataset in splits:
        if dataset.panoptic is None:
            remedy = "choose another target, e.g. coco"
            raise DataError("has no panoptic maps", file=dataset.source, remedy=remedy, kind="no_panoptic")
    with staged_folder(folder) as stage:
        for dataset in splits:
            copy_or_link_images(
                dataset, stage / split_image_folder(dataset, splits), images, names=image_names(dataset)
            )
            name = f"panoptic_{split_file_name(dataset)}" if dataset.split else "panoptic"
            _write_json(dataset, stage / f"{name}.json", stage / name)
            losses += find_losses(replace(dataset, objects=None), can_hold=CAN_HOLD)
            losses += _lost_objects(dataset) + split_name_losses(dataset, split_from_name(Path(name)))
    return losses


def _lost_objects(dataset: Dataset) -> list[ConversionLoss]:
    objects = dataset.objects if dataset.objects is not None else Objects.empty()
    pairs = zip(objects.image_index.tolist(), objects.ids.tolist(), strict=True)
    return [
        ConversionLoss("object", dataset.images.files[image], object_id, "the object") for image, object_id in pairs
    ]


def _write_json(dataset: Dataset, path: Path, maps: Path) -> None:
    assert dataset.panoptic is not None
    ids, names = image_ids(dataset), image_names(dataset)
    if len({Path(name).with_suffix("").as_posix().casefold() for name in names}) < len(names):
        names = flat_names(names)  # a.jpg and a.png must not share a map file
    maps.mkdir()
    with path.open("wb") as file:
        file.write(b'{"images": ')
        write_records(file, image_records(dataset, ids))
        file.write(b',\n"categories": ')
        write_records(file, category_records(dataset.panoptic.categories, with_isthing=True))
        file.write(b',\n"annotations": ')
        write_records(file, _annotations(dataset, ids, names, maps))
        file.write(b"}\n")


def _annotations(dataset: Dataset, ids: list[int], names: Sequence[str], maps: Path) -> Iterator[dict[str, Any]]:
    for index in range(len(dataset)):
        panoptic = dataset.panoptic_map(index)
        if panoptic is None:
            continue
        file = Path(names[index]).with_suffix(".png")
        (maps / file).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(ids_to_rgb(panoptic.ids)).save(maps / file)
        info = list(_segment_records(panoptic))
        yield {"image_id": ids[index], "file_name": file.as_posix(), "segments_info": info}


def ids_to_rgb(ids: Int[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w 3"]:
    """Return segment ids (below 256^3) as an RGB image: panopticapi's ``id2rgb``."""
    return np.stack([ids % 256, ids // 256 % 256, ids // 256**2], axis=2).astype(np.uint8)


def _segment_records(panoptic: PanopticMap) -> Iterator[dict[str, Any]]:
    masks = panoptic.masks()
    boxes = masks.boxes_xyxy().astype(int).tolist()
    for segment, (x1, y1, x2, y2), area in zip(
        panoptic.segments, boxes, masks.area().astype(int).tolist(), strict=True
    ):
        yield {
            "id": segment.id,
            "category_id": panoptic.categories.ids[segment.label],
            "iscrowd": int(segment.is_crowd),
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "area": area,
        }
