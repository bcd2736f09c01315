"""Automatic mask generation for many images, written as SA-1B or COCO files; an interrupted run can be resumed."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from otus._files import staged_file
from otus.data.formats.json_reader.stream import write_records
from otus.data.image_files import check_name_is_utf8
from otus.data.images import read_image
from otus.errors import DataError, Report, UsageError, stop_at_first
from otus.promptable.automatic import SamAutomaticMaskGenerator

FORMATS = ("sa1b", "coco")
_SETTINGS = ".otus-masks.json"
_PARTS = ".parts"
_MASK_IDS_PER_IMAGE = 1 << 20  # mask ids are image id * this + index of the mask


@dataclass(frozen=True)
class WrittenMasks:
    """The masks that were written for an image.

    Parameters
    ----------
    name
        Name of the image.
    file
        JSON file of its masks.
    count
        Number of masks.
    existed
        Whether the file was written by an earlier run.
    """

    name: str
    file: Path
    count: int
    existed: bool


def write_masks(
    images: Mapping[str, Path],
    generator: SamAutomaticMaskGenerator,
    out: Path,
    *,
    format: str = "sa1b",
    settings: Mapping[str, Any] | None = None,
    report: Report = stop_at_first,
) -> Iterator[WrittenMasks]:
    """Generate the masks of images one by one, and write a file for each image.

    Images whose file exists are not processed again, unless they have changed.

    Parameters
    ----------
    images
        Image files by name.
    generator
        Mask generator.
    out
        Output folder. Format ``sa1b`` writes ``NAME.json`` for each image, ``coco`` writes ``annotations.json`` at the end,
        with the masks of earlier runs too.
    format
        ``sa1b`` or ``coco``.
    settings
        Settings of the generator, as JSON values; they are stored in the folder, and an existing folder must have the same
        (default: not checked).
    report
        Called with the error of each image that cannot be read or has no valid name, and is skipped (default: raise the
        first).

    Yields
    ------
    WrittenMasks
        For each image, in the order of ``images``.

    Raises
    ------
    UsageError
        If the format is unknown, or the folder contains masks that were generated with other settings.
    """
    if format not in FORMATS:
        raise UsageError(f"format: expected {' or '.join(FORMATS)}, got {format!r}")
    _check_settings(out, dict(settings or {}), format)
    parts = out if format == "sa1b" else out / _PARTS
    ids, counts, digests = {}, {}, {}  # by file, of all files in the folder
    for file in sorted(parts.rglob("*.json")):
        if (document := _document(file)) is not None:
            ids[file] = document["image"]["image_id"]
            counts[file] = len(document["annotations"])
            digests[file] = document["image"].get("sha256")
    next_id = max(ids.values(), default=0) + 1
    for name, path in images.items():
        file = parts / f"{name}.json"
        digest = _digest(path)
        existed = digest is not None and digests.get(file) == digest
        try:
            check_name_is_utf8(name, path)
            image = None if existed else read_image(path)
        except DataError as error:
            report(error)
            continue
        if image is not None:
            masks = generator.masks(image)
            if file not in ids:
                ids[file], next_id = next_id, next_id + 1
            size = {"width": image.shape[1], "height": image.shape[0]}
            record = {"image_id": ids[file], **size, "file_name": name, "sha256": digest}
            first = ids[file] * _MASK_IDS_PER_IMAGE
            annotations = [{"id": first + index, **annotation} for index, annotation in enumerate(masks.records())]
            with staged_file(file) as stage:
                stage.write_bytes(msgspec.json.encode({"image": record, "annotations": annotations}))
            counts[file] = len(masks)
        yield WrittenMasks(name, file, counts[file], existed=existed)
    if format == "coco":
        _write_coco(sorted(ids, key=ids.__getitem__), out / "annotations.json")


def _digest(path: Path) -> str | None:
    """Return the SHA-256 of a file, None if it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None


def _check_settings(out: Path, settings: dict[str, Any], format: str) -> None:
    """Store the settings in the folder, or raise UsageError if it stores other ones."""
    if not settings:
        return
    settings = {"format": format, **settings}
    file = out / _SETTINGS
    stored = _json(file)
    if stored is None:
        with staged_file(file) as stage:
            stage.write_bytes(msgspec.json.encode(settings))
        return
    changed = next((name for name in {**stored, **settings} if stored.get(name) != settings.get(name)), None)
    if changed is not None:
        raise UsageError(
            f"{out}: contains masks generated with {changed} {stored.get(changed)!r}, got {settings.get(changed)!r}; "
            "choose another folder"
        )


def _document(file: Path) -> dict[str, Any] | None:
    """Return the document that an earlier run wrote for an image, None if there is none."""
    document = _json(file)
    return document if document is not None and {"image", "annotations"} <= set(document) else None


def _json(file: Path) -> dict[str, Any] | None:
    try:
        document = msgspec.json.decode(file.read_bytes())
    except (FileNotFoundError, msgspec.DecodeError):
        return None
    return document if isinstance(document, dict) else None


def _write_coco(parts: Sequence[Path], path: Path) -> None:
    """Write the records of all parts as one COCO file, one part in memory at a time."""

    def images() -> Iterator[dict[str, Any]]:
        for part in parts:
            image = msgspec.json.decode(part.read_bytes())["image"]
            yield {"id": image["image_id"], **{key: image[key] for key in ("width", "height", "file_name")}}

    def annotations() -> Iterator[dict[str, Any]]:
        for part in parts:
            document = msgspec.json.decode(part.read_bytes())
            for record in document["annotations"]:
                x, y, width, height = record["bbox"]  # SA-1B's width and height are those between pixel centres
                bbox = [x, y, width + 1, height + 1] if record["area"] else record["bbox"]
                ids = {"image_id": document["image"]["image_id"], "category_id": 1, "iscrowd": 0}
                yield {**record, **ids, "bbox": bbox}

    with staged_file(path) as stage, stage.open("wb") as file:
        file.write(b'{"images": ')
        write_records(file, images())
        file.write(b',\n"categories": ')
        write_records(file, iter([{"id": 1, "name": "object"}]))
        file.write(b',\n"annotations": ')
        write_records(file, annotations())
        file.write(b"}\n")
