"""SA-1B, the Segment Anything data set: a JSON file per image with class-agnostic masks and their quality scores.

https://github.com/facebookresearch/segment-anything#dataset. The further fields of a mask (``predicted_iou``,
``stability_score``, ``crop_box``, ``point_coords``) become columns.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from otus._files import staged_folder
from otus.data.dataset import Dataset, Images
from otus.data.formats.coco import find_image_folder, image_ids, is_outside_folder, sniff
from otus.data.formats.coco_annotations import ObjectColumns
from otus.data.formats.conversion_losses import find_losses
from otus.data.formats.interface import (
    ConversionLoss,
    ImageMode,
    Layout,
    as_splits,
    copy_or_link_images,
    duplicate_image_error,
    split_name_losses,
)
from otus.data.formats.json_reader.column_builders import JsonSegmentation
from otus.data.formats.json_reader.stream import RecordBatch
from otus.data.formats.paths import OUTSIDE_REMEDY, flat_names_per_split, list_files, sample_files
from otus.data.formats.text_files import Int64, Number, read_json_bytes
from otus.data.formats.unread_fields import UnreadFields
from otus.errors import DataError, Report, stop_at_first
from otus.structures import Categories, Objects, boxes

FORMAT = "sa1b"
CATEGORIES = Categories(("object",))
COLUMNS = ("predicted_iou", "stability_score", "crop_box", "point_coords")
CAN_HOLD = frozenset({"outline", "holes", "parts", "annotation_ids", "image_ids", *COLUMNS})


class Image(msgspec.Struct):
    """The record ``image``."""

    image_id: Int64
    width: Int64
    height: Int64
    file_name: str


class Mask(msgspec.Struct, gc=False):
    """A record of ``annotations``; image and category ids are filled in after reading."""

    id: Int64
    bbox: tuple[Number, Number, Number, Number] | None = None
    area: Number | None = None
    segmentation: JsonSegmentation = None
    predicted_iou: float | None = None
    stability_score: float | None = None
    crop_box: tuple[float, float, float, float] | None = None
    point_coords: list[tuple[float, float]] | None = None
    image_id: int = 0
    category_id: int = 0


class Document(msgspec.Struct):
    """One JSON file."""

    image: Image
    annotations: list[Mask]


class Fields(msgspec.Struct):
    """A JSON file with all of its fields."""

    image: dict[str, msgspec.Raw]
    annotations: list[dict[str, msgspec.Raw]]


_READ_FIELDS = frozenset(Image.__struct_fields__)
_READ_MASK_FIELDS = frozenset(Mask.__struct_fields__)


def find(path: Path) -> list[Layout]:
    """Find a folder of SA-1B files, or one of them."""
    if path.is_dir():
        return [Layout(FORMAT, path)] if any(map(_is_sa1b, sample_files(list_files(path, "*.json")))) else []
    return [Layout(FORMAT, path)] if path.suffix == ".json" and path.is_file() and _is_sa1b(path) else []


def _is_sa1b(file: Path) -> bool:
    text = sniff(file)
    return all(key in text for key in (b'"image"', b'"image_id"', b'"annotations"')) and b'"images"' not in text


def read(layout: Layout, *, report: Report = stop_at_first, allow_outside: bool = False) -> Dataset:
    """Read SA-1B files; all objects have the category ``object``.

    Parameters
    ----------
    layout
        ``source`` is the folder, or one file.
    report
        Called with the error of each invalid record, which is skipped (default: raise the first).
    allow_outside
        Whether a ``file_name`` may lead outside the folder (default: False).
    """
    source = layout.source
    files = list_files(source, "*.json") if source.is_dir() else [source]
    images: dict[int, Image] = {}
    starts: list[int] = []
    starting_files: list[Path] = []
    count = 0

    def locate(index: int) -> tuple[Path, str]:
        k = bisect_right(starts, index) - 1
        return starting_files[k], f"annotations[{index - starts[k]}]"

    columns = ObjectColumns(locate, report)
    attributes = {name: name for name in Mask.__struct_fields__}
    decoder = msgspec.json.Decoder(Document)
    for file in files:
        document = _decode(file, decoder, report, columns.unread)
        if document is None:
            continue
        image = document.image
        problem = _problem(image, images, allow_outside=allow_outside)
        if problem is not None:
            report(DataError(problem, file=file, where="image", remedy="correct the file or remove it"))
            continue
        images[image.image_id] = image
        starts.append(count)
        starting_files.append(file)
        for annotation in document.annotations:
            annotation.image_id = image.image_id
        indices = np.arange(count, count + len(document.annotations))
        columns.extend(RecordBatch("annotations", indices, document.annotations, attributes))
        count += len(document.annotations)
    sizes_hw = np.array([(image.height, image.width) for image in images.values()], dtype=np.int64).reshape(-1, 2)
    names = tuple(image.file_name for image in images.values())
    objects = columns.finish(
        image_ids=np.array(list(images), dtype=np.int64), sizes_hw=sizes_hw, category_ids=CATEGORIES.ids
    )
    root = find_image_folder(files[0], names) if files else source
    all_images = Images(root, names, sizes_hw, tuple(images))
    return Dataset(source, FORMAT, all_images, CATEGORIES, objects, unread=columns.unread.finish())


def _decode(
    file: Path, decoder: msgspec.json.Decoder[Document], report: Report, unread: UnreadFields
) -> Document | None:
    try:
        text = read_json_bytes(file)
        document = decoder.decode(text)
        fields = msgspec.json.decode(text, type=Fields)
    except DataError as fault:
        report(fault)
        return None
    except (RecursionError, msgspec.MsgspecError) as error:
        problem, _, where = str(error).partition(" - at `$.")
        kind = "unreadable_annotation" if isinstance(error, msgspec.ValidationError) else "broken_json"
        remedy = "correct the file or remove it"
        report(DataError(problem, file=file, where=where.rstrip("`") or None, remedy=remedy, kind=kind))
        return None
    unread.note_raw("image.", fields.image, known=_READ_FIELDS)
    for annotation in fields.annotations:
        unread.note_raw("annotations[].", annotation, known=_READ_MASK_FIELDS)
    return document


def _problem(image: Image, images: dict[int, Image], *, allow_outside: bool) -> str | None:
    if image.image_id in images:
        return f"duplicate image_id {image.image_id}"
    if image.width <= 0 or image.height <= 0:
        return f"expected a width and a height above 0, got {image.width} x {image.height}"
    if not allow_outside and is_outside_folder(image.file_name):
        return f"file_name {image.file_name!r} leads outside the folder ({OUTSIDE_REMEDY})"
    return None


def write(datasets: Dataset | Sequence[Dataset], folder: Path, *, images: ImageMode = "copy") -> list[ConversionLoss]:
    """Write a JSON file beside each image in a new folder; polygons become RLE.

    Splits are merged into a single folder. If image or annotation ids collide, all ids of that kind are renumbered.
    """
    splits = as_splits(datasets)
    renumbered, losses = _with_unique_ids(splits)
    with staged_folder(folder) as stage:
        for dataset, written, names in zip(splits, renumbered, flat_names_per_split(splits), strict=True):
            copy_or_link_images(dataset, stage, images, names=names)
            _write_files(written, stage, names)
            losses += (
                find_losses(dataset, can_hold=CAN_HOLD) + _lost_categories(dataset) + split_name_losses(dataset, None)
            )
    return losses


def _with_unique_ids(splits: list[Dataset]) -> tuple[list[Dataset], list[ConversionLoss]]:
    """Return the splits with ids that are unique across all splits."""
    losses: list[ConversionLoss] = []
    ids = [image_ids(dataset) for dataset in splits]
    objects = [dataset.objects if dataset.objects is not None else Objects.empty() for dataset in splits]
    object_ids = [split_objects.ids.tolist() for split_objects in objects]
    for kind, numbers in (("image_ids", ids), ("annotation_ids", object_ids)):
        if len(set(chain.from_iterable(numbers))) < sum(map(len, numbers)):
            starts = np.cumsum([1, *map(len, numbers)]).tolist()
            numbers[:] = [
                list(range(start, start + len(values))) for start, values in zip(starts, numbers, strict=False)
            ]
            losses.append(
                ConversionLoss(kind, "", None, f"the {kind.replace('_', ' ')}, which are not unique across splits")
            )
    renumbered = [
        replace(
            dataset,
            images=replace(dataset.images, ids=tuple(new_ids)),
            objects=replace(split_objects, ids=np.array(new_object_ids, dtype=np.int64)),
        )
        for dataset, split_objects, new_ids, new_object_ids in zip(splits, objects, ids, object_ids, strict=True)
    ]
    return renumbered, losses


def _write_files(dataset: Dataset, folder: Path, names: list[str]) -> None:
    encode = msgspec.json.Encoder().encode
    records = _records(dataset)
    for index, name in enumerate(names):
        height, width = dataset.images.size_hw(index)
        image = {"image_id": dataset.images.ids[index], "width": width, "height": height, "file_name": name}
        file = (folder / name).with_suffix(".json")
        if file.exists():
            raise duplicate_image_error(dataset, index)
        file.write_bytes(encode({"image": image, "annotations": records.get(index, [])}))


def _lost_categories(dataset: Dataset) -> list[ConversionLoss]:
    if dataset.categories.names == CATEGORIES.names:
        return []
    losses = [ConversionLoss("categories", "", None, f"the names of {len(dataset.categories)} categories")]
    objects = dataset.objects if dataset.objects is not None else Objects.empty()
    for image, label, object_id in zip(objects.image_index, objects.labels, objects.ids, strict=True):
        name = dataset.categories[int(label)]
        losses.append(ConversionLoss("category", dataset.images.files[image], int(object_id), f"its category {name!r}"))
    return losses


def _records(dataset: Dataset) -> dict[int, list[dict[str, Any]]]:
    """Return the annotation records by image."""
    records: dict[int, list[dict[str, Any]]] = {}
    objects = dataset.objects
    if objects is None:
        return records
    sizes = boxes.written_sizes_wh(objects.boxes_xyxy)
    for row in range(len(objects)):
        image = int(objects.image_index[row])
        record: dict[str, Any] = {
            "id": int(objects.ids[row]),
            "bbox": [*objects.boxes_xyxy[row, :2].tolist(), *sizes[row].tolist()],
            "area": float(objects.areas[row]),
        }
        size_hw = dataset.images.size_hw(image)
        masks = None if objects.segmentations is None else objects.segmentations.masks([row], size_hw)
        if masks is not None:
            counts = masks.rle()[0]["counts"]
            record["segmentation"] = {"size": list(size_hw), "counts": counts.decode("ascii")}  # type: ignore[attr-defined]
        for name in COLUMNS:
            if name in objects.columns and not np.isnan(objects.columns[name][row]).any():
                record[name] = objects.columns[name][row].tolist()
        records.setdefault(image, []).append(record)
    return records
