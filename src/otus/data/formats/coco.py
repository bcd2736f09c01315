"""COCO JSON: boxes, polygons, RLE, crowds, keypoints.

https://cocodataset.org/#format-data. Further fields of annotations are documented in
:mod:`otus.data.formats.coco_annotations`; those of images (licence, date …) and of the file are counted and dropped.
Files are read as a stream, never held in memory as a whole.

The official folder ``annotations/`` has several files for the same images. ``instances_val2017.json`` is the split
``val``; beside it ``person_keypoints_val2017.json`` and ``stuff_val2017.json`` are the splits ``person_keypoints/val``
and ``stuff/val``; files without categories (captions) or labels (image_info) are skipped.
"""

import os
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from otus._files import staged_file, staged_folder
from otus.data.dataset import Dataset, Images
from otus.data.formats.coco_annotations import Annotation, ObjectColumns, annotation_records, number_fields
from otus.data.formats.conversion_losses import LOSS_KINDS, find_losses
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
from otus.data.formats.paths import OUTSIDE_REMEDY, SPLIT_FOLDERS, flat_names, list_files
from otus.data.formats.text_files import MAX_NUMBER, Int64, Number
from otus.data.images import image_size_hw
from otus.errors import DataError, ImageError, Report, ShapeError, stop_at_first
from otus.structures import Categories, KeypointNames

FORMAT = "coco"
CAN_HOLD = LOSS_KINDS - {"semantic", "panoptic", "image_label"}

_SPLIT = re.compile(
    r"(?:^|[^a-z])(?:(train)(?:ing)?|(val|minival|trainval)(?:id(?:ation)?)?|(test)(?:ing)?)(?:$|[^a-z])"
)
_SNIFF_BYTES = 1 << 18
# Of the official files; the first that is present takes the name of the split.
_OFFICIAL_KINDS = ("instances", "person_keypoints", "stuff")
_MAX_JSON_FILES = 64  # a folder with more JSON files than this has a file per image, not several data sets
_SAMPLE_SIZE = 8
_SAFE_DIGITS = 16  # integers with fewer digits are exact in every JSON reader, also as float64


class ImageRecord(msgspec.Struct):
    """A record of ``images``."""

    id: Int64
    width: Int64 | Number | None = None  # pandas writes 60.0; if missing, read from the image
    height: Int64 | Number | None = None
    file_name: str = ""
    coco_url: str | None = None  # LVIS has no file_name; this URL ends with it


class Category(msgspec.Struct):
    """A record of ``categories``; ``sigmas`` and ``flip_pairs`` (1-based, like ``skeleton``) are additions of Otus."""

    id: Int64
    name: str
    supercategory: str | None = None
    isthing: bool | int = True
    keypoints: list[str] | None = None
    skeleton: list[tuple[int, int]] | None = None
    sigmas: list[float] | None = None
    flip_pairs: list[tuple[int, int]] | None = None


def find(path: Path) -> list[Layout]:
    """Find COCO files: the file itself, or those in a folder, its ``annotations`` and its split folders."""
    excluded = files_without_objects(path)
    files = [file for file in json_files(path) if _is_instances(file) and file not in excluded]
    ranks: dict[tuple[Path, str | None], int] = defaultdict(lambda: len(_OFFICIAL_KINDS))
    for file in files:
        key = file.parent, split_from_name(file)
        ranks[key] = min(ranks[key], _rank(file))
    layouts = []
    for file in files:
        split = split_from_name(file)
        secondary = split is not None and _rank(file) > ranks[file.parent, split]
        layouts.append(Layout(FORMAT, file, f"{_kind_of(file)}/{split}" if secondary else split, secondary))
    return layouts


def files_without_objects(path: Path) -> list[Path]:
    """Return the COCO files without categories or labels, such as captions, if other files are beside them."""
    files = [file for file in json_files(path) if _is_instances(file)]
    without_objects = [file for file in files if not _has_categories(file) or _kind_of(file) == "image_info"]
    return without_objects if len(without_objects) < len(files) else []


def _kind_of(file: Path) -> str:
    """Return the part of a file name before the split: ``person_keypoints`` of ``person_keypoints_val2017``."""
    return re.split(r"_(?:unlabeled|train|val|test|minival)", file.stem, maxsplit=1)[0]


def _rank(file: Path) -> int:
    kind = _kind_of(file)
    return _OFFICIAL_KINDS.index(kind) if kind in _OFFICIAL_KINDS else 0


def _has_categories(file: Path) -> bool:
    text = sniff(file)
    return b'"categories"' in text or b'"category_id"' in text


def json_files(path: Path) -> list[Path]:
    """Return the JSON files that may each be a data set: the file itself, or those in a folder and its usual subfolders."""
    if path.is_file():
        return [path] if path.suffix == ".json" else []
    if not path.is_dir():
        return []
    files: list[Path] = []
    for folder in (path, *(path / name for name in ("annotations", *SPLIT_FOLDERS))):
        candidates = list_files(folder, "*.json") if folder.is_dir() else []
        if len(candidates) > _MAX_JSON_FILES:
            candidates = [file for file in candidates if re.search("instances|annotations|coco|panoptic", file.name)]
        files += candidates
    return files


def sniff(file: Path) -> bytes:
    """Return the first and last bytes of a file, without zero bytes (as in UTF-16); empty if unreadable."""
    try:
        with file.open("rb") as opened:
            head = opened.read(_SNIFF_BYTES)
            opened.seek(max(len(head), file.stat().st_size - _SNIFF_BYTES))
            return (head + opened.read()).replace(b"\0", b"")
    except OSError:
        return b""


def split_from_name(file: Path) -> str | None:
    """Return ``train``, ``val`` or ``test`` from a file's name or, as Roboflow has it, its folder's; else None."""
    folder = Path(os.path.abspath(file)).parent
    for name in (file.stem, folder.name if file.stem.startswith("_") else ""):
        match = _SPLIT.search(re.sub(r"\d+", " ", name.lower()))
        if match:
            return next(filter(None, match.groups()))
    return None


def _is_instances(file: Path) -> bool:
    text = sniff(file)
    # In a large file the top-level keys may be outside the bytes read; then keys of records decide.
    has_images = b'"images"' in text or (b'"file_name"' in text and b'"image"' not in text)
    has_objects = any(key in text for key in (b'"annotations"', b'"categories"', b'"category_id"'))
    return has_images and has_objects and not is_panoptic(file, text)


def is_panoptic(file: Path, text: bytes) -> bool:
    """Return whether a file, of which ``text`` is a part, is COCO panoptic."""
    is_named_panoptic = file.stem.startswith("panoptic") and b'"images"' in text and b'"bbox"' not in text
    return b'"segments_info"' in text or is_named_panoptic


def read(layout: Layout, *, report: Report = stop_at_first, allow_outside: bool = False) -> Dataset:
    """Read the data set of one JSON file.

    Parameters
    ----------
    layout
        ``source`` is the JSON file.
    report
        Called with the error of each invalid record, which is skipped (default: raise the first).
    allow_outside
        Whether a ``file_name`` may lead outside the image folder (default: False).
    """
    file = layout.source
    images: list[tuple[int, ImageRecord]] = []
    categories: list[tuple[int, Category]] = []
    columns = ObjectColumns(lambda index: (file, f"annotations[{index}]"), report)
    unread = columns.unread
    types: dict[str, type[msgspec.Struct]] = {"images": ImageRecord, "annotations": Annotation, "categories": Category}
    numbers = {"annotations": number_fields()}
    reader = RecordReader(file, types, report, open_ended=types.keys(), number_fields=numbers, largest=MAX_NUMBER)
    for batch in reader:
        if batch.array == "images":
            images += unread.declared(batch, ImageRecord)
        elif batch.array == "categories":
            categories += unread.declared(batch, Category)
        else:
            columns.extend(batch)
    for name, value in reader.other_values.items():
        unread.note(name, [value])
    for name in ("images", "categories"):
        if name not in reader.found_arrays:
            report(DataError(f"has no {name!r}", file=file, remedy="COCO needs images, annotations and categories"))
    unread.note("images[].coco_url", (image.coco_url for _, image in images if image.file_name))
    valid_records, rejected_ids = valid_images(
        file, images, report, reader.faulty_ids["images"], allow_outside=allow_outside
    )
    valid_categories = read_categories(file, categories, report)
    sizes_hw = np.array([(record.height, record.width) for record in valid_records], dtype=np.int64).reshape(-1, 2)
    objects = columns.finish(
        image_ids=np.array([record.id for record in valid_records], dtype=np.int64),
        sizes_hw=sizes_hw,
        category_ids=valid_categories.ids,
        rejected_ids=np.array(sorted(rejected_ids), dtype=np.int64),
    )
    names = tuple(record.file_name for record in valid_records)
    all_images = Images(find_image_folder(file, names), names, sizes_hw, tuple(record.id for record in valid_records))
    return Dataset(file, FORMAT, all_images, valid_categories, objects, split=layout.split, unread=unread.finish())


def valid_images(
    file: Path, images: list[tuple[int, ImageRecord]], report: Report, faulty_ids: set[int], *, allow_outside: bool
) -> tuple[list[ImageRecord], set[int]]:
    """Return the valid image records, with forward slashes in file names, and the ids of invalid ones.

    ``faulty_ids`` are the ids of records that could not be decoded.
    """
    valid: dict[int, ImageRecord] = {}
    rejected_ids = set(faulty_ids)
    without_size = tuple(image.file_name or "" for _, image in images if None in (image.width, image.height))
    folder = find_image_folder(file, without_size) if without_size else file.parent
    for index, image in images:
        where = f"images[{index}]"
        image.file_name = (image.file_name or "/".join((image.coco_url or "").split("/")[-2:])).replace("\\", "/")
        if not image.file_name:
            report(DataError("expected a file_name, got none", file=file, where=where, remedy="add it"))
            rejected_ids.add(image.id)
        elif image.id in valid:
            remedy = "give each image a unique id"
            report(DataError(f"duplicate id {image.id}", file=file, where=where, remedy=remedy, kind="duplicate_id"))
        elif any(length is not None and (length <= 0 or length % 1) for length in (image.width, image.height)):
            size = f"{image.width} x {image.height}"
            report(DataError(f"expected a positive integer width and height, got {size}", file=file, where=where))
            rejected_ids.add(image.id)
        elif not allow_outside and is_outside_folder(image.file_name):
            text = f"{image.file_name!r} leads outside the folder of the images"
            field = f"{where}.file_name"
            report(DataError(text, file=file, where=field, remedy=OUTSIDE_REMEDY, kind="path_outside"))
            rejected_ids.add(image.id)
        elif (problem := _fill_in_size(image, folder)) is not None:
            text = f"has no width and height, and {problem.file}: {problem.problem}"
            remedy = "add them, or restore the image"
            report(DataError(text, file=file, where=where, remedy=remedy, kind=problem.kind))
            rejected_ids.add(image.id)
        else:
            valid[image.id] = image
    return list(valid.values()), rejected_ids - valid.keys()


def _fill_in_size(record: ImageRecord, folder: Path) -> ImageError | None:
    """Fill in a missing size from the image file; return the error of the file, or None."""
    if record.width is None or record.height is None:
        try:
            record.height, record.width = image_size_hw(folder / (record.file_name or ""))
        except ImageError as problem:
            return problem
    return None


def is_outside_folder(name: str) -> bool:
    """Return whether a relative path with forward slashes is absolute or leaves its folder."""
    leaves = ".." in name and os.path.normpath(name).split("/", 1)[0] == ".."
    return leaves or os.path.isabs(name) or name[1:2] == ":"


def read_categories(file: Path, records: list[tuple[int, Category]], report: Report) -> Categories:
    """Build categories from their records; invalid records are reported and skipped."""
    kept: dict[int, Category] = {}
    # Roboflow adds a root of all categories that no object has. It may have the name of one of them.
    roots = {record.name for _, record in records if record.supercategory == record.name}
    for index, record in records:
        if record.supercategory == "none" and record.name in roots:
            continue
        same = next((other for other in kept.values() if other.name == record.name), kept.get(record.id))
        if same is None:
            kept[record.id] = record
            continue
        problem = f"duplicate id or name: {record.id} {record.name!r} after {same.id} {same.name!r}"
        remedy = "give each category its own id and name"
        report(DataError(problem, file=file, where=f"categories[{index}]", remedy=remedy, kind="duplicate_id"))
    keypoints = []
    for record in kept.values():
        try:
            if record.keypoints:
                keypoints.append((record.name, _keypoint_names(record)))
        except ShapeError as error:
            where, remedy = f"categories: {record.name}", "correct its skeleton, flip_pairs or sigmas"
            report(DataError(str(error), file=file, where=where, remedy=remedy))
    return Categories(
        names=tuple(record.name for record in kept.values()),
        ids=tuple(kept),
        is_thing=tuple(bool(record.isthing) for record in kept.values()),
        keypoints=tuple(keypoints),
        supercategories=tuple(record.supercategory or "" for record in kept.values())
        if any(record.supercategory for record in kept.values())
        else (),
    )


def _keypoint_names(category: Category) -> KeypointNames:
    names = tuple(category.keypoints or ())

    def to_zero_based(field: str, pairs: list[tuple[int, int]] | None) -> tuple[tuple[int, int], ...]:
        for pair in pairs or ():
            if not all(1 <= number <= len(names) for number in pair):
                raise ShapeError(f"{field}: {list(pair)} names a keypoint outside 1..{len(names)}")
        return tuple((a - 1, b - 1) for a, b in pairs or ())

    return KeypointNames(
        names=names,
        skeleton=to_zero_based("skeleton", category.skeleton),
        flip_pairs=to_zero_based("flip_pairs", category.flip_pairs),
        sigmas=tuple(category.sigmas or ()),
    )


def find_image_folder(file: Path, names: tuple[str, ...]) -> Path:
    """Return the folder that holds the images of a JSON file, or the most plausible one if they are missing."""
    json_folder = Path(os.path.abspath(file)).parent  # a bare file name has no parent of its parent
    parent = json_folder.parent
    subfolders = [re.sub(r"^[a-z_]*_", "", file.stem)]
    if split := split_from_name(file):
        subfolders += [split, *(name for name in SPLIT_FOLDERS if name.startswith(split))]
    folders = [json_folder / "images", json_folder]
    for base in (json_folder, parent):
        for part in subfolders:
            folders += [base / part, base / "images" / part]
    folders += [json_folder / "JPEGImages", parent / "images", parent, parent / "JPEGImages"]
    sample, folders = names[:_SAMPLE_SIZE], [folder for folder in folders if folder.is_dir()]
    counts = [sum(os.path.isfile(folder / name) for name in sample) for folder in folders]
    if max(counts) == 0:  # the path of a missing images/a.jpg must not be images/images/a.jpg
        counts = [sum((folder / name).parent.is_dir() for name in sample) for folder in folders]
    return folders[int(np.argmax(counts))]


def write(datasets: Dataset | Sequence[Dataset], folder: Path, *, images: ImageMode = "copy") -> list[ConversionLoss]:
    """Write ``annotations.json`` (``instances_<split>.json`` for a split) and ``images/`` to a new folder.

    With several splits, the images are in ``images/<split>/``.
    """
    losses: list[ConversionLoss] = []
    splits = as_splits(datasets)
    with staged_folder(folder) as stage:
        for dataset in splits:
            copy_or_link_images(
                dataset, stage / split_image_folder(dataset, splits), images, names=image_names(dataset)
            )
            name = f"instances_{split_file_name(dataset)}.json" if dataset.split else "annotations.json"
            write_json(dataset, stage / name)
            losses += find_losses(dataset, can_hold=CAN_HOLD) + split_name_losses(dataset, split_from_name(Path(name)))
    return losses


def image_names(dataset: Dataset) -> Sequence[str]:
    """Return the images' names in the new ``images/``: their own, or flat ones if one leads outside the folder."""
    files = dataset.images.files
    if any(map(is_outside_folder, files)):
        return flat_names(files)
    return [file.removeprefix("images/") for file in files] if _are_all_in("images", files) else files


def split_image_folder(dataset: Dataset, splits: Sequence[Dataset]) -> str:
    """Return the image folder of a split: ``images/<split>``, unless the names already start with the split."""
    split = split_file_name(dataset)
    return f"images/{split}" if len(splits) > 1 and not _are_all_in(split, image_names(dataset)) else "images"


def _are_all_in(folder: str, files: Sequence[str]) -> bool:
    return all(file.startswith(f"{folder}/") for file in files)


def image_ids(dataset: Dataset) -> list[int]:
    """Return the images' ids if they are integers or digits such as ``000042``, else 1..M."""
    ids = dataset.images.ids
    integers = [
        int(image_id)
        for image_id in ids
        if isinstance(image_id, int) or (image_id.isdecimal() and len(image_id) < _SAFE_DIGITS)
    ]
    return integers if len(set(integers)) == len(ids) else list(range(1, len(ids) + 1))


def write_json(dataset: Dataset, path: Path) -> None:
    """Write the JSON file without images."""
    ids = image_ids(dataset)
    with staged_file(path) as stage, stage.open("wb") as file:
        file.write(b'{"images": ')
        write_records(file, image_records(dataset, ids))
        file.write(b',\n"categories": ')
        write_records(file, category_records(dataset.categories))
        file.write(b',\n"annotations": ')
        objects = dataset.objects
        write_records(file, iter(()) if objects is None else annotation_records(dataset, objects, ids))
        file.write(b"}\n")


def image_records(dataset: Dataset, ids: list[int]) -> Iterator[dict[str, Any]]:
    """Yield the records of ``images``."""
    for index, name in enumerate(image_names(dataset)):
        height, width = dataset.images.size_hw(index)
        yield {"id": ids[index], "file_name": name, "width": width, "height": height}


def category_records(categories: Categories, *, with_isthing: bool = False) -> Iterator[dict[str, Any]]:
    """Yield the records of ``categories``, omitting default values (``isthing`` only on demand)."""
    for label, (category_id, name) in enumerate(zip(categories.ids, categories.names, strict=True)):
        record: dict[str, Any] = {"id": category_id, "name": name}
        if categories.supercategories:
            record["supercategory"] = categories.supercategories[label]
        if with_isthing or not all(categories.is_thing):
            record["isthing"] = int(categories.is_thing[label])
        keypoints = categories.keypoints_of(name)
        if keypoints is not None:
            default = KeypointNames(keypoints.names)
            record["keypoints"] = keypoints.names
            record["skeleton"] = [(a + 1, b + 1) for a, b in keypoints.skeleton]
            if keypoints.sigmas != default.sigmas:
                record["sigmas"] = keypoints.sigmas
            if keypoints.flip_pairs != default.flip_pairs:
                record["flip_pairs"] = [(a + 1, b + 1) for a, b in keypoints.flip_pairs]
        yield record
