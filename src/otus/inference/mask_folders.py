"""Automatic mask generation for many images, written as SA-1B or COCO files; an interrupted run can be resumed."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from otus._files import staged_file
from otus.data.formats.json_reader.stream import write_records
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

    Images whose file exists are not processed again.

    Parameters
    ----------
    images
        Image files by name.
    generator
        Mask generator.
    out
        Output folder. Format ``sa1b`` writes ``NAME.json`` for each image, ``coco`` writes ``annotations.json`` at the end.
    format
        ``sa1b`` or ``coco``.
    settings
        Settings of the generator, as JSON values; they are stored in the folder, and an existing folder must have the same
        (default: not checked).
    report
        Called with the error of each image that cannot be read, which is skipped (default: raise the first).

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
    files = {name: parts / f"{name}.json" for name in images}
    existing = {name: _document(file) for name, file in files.items()}
    ids = {name: document["image"]["image_id"] for name, document in existing.items() if document is not None}
    counts = {name: len(document["annotations"]) for name, document in existing.items() if document is not None}
    del existing  # frees the masks' memory
    next_id = max(ids.values(), default=0) + 1
    written: list[Path] = []
    for name, path in images.items():
        if name not in ids:
            try:
                image = read_image(path)
            except DataError as error:
                report(error)
                continue
            masks = generator.masks(image)
            record = {"image_id": next_id, "width": image.shape[1], "height": image.shape[0], "file_name": name}
            first = next_id * _MASK_IDS_PER_IMAGE
            annotations = [{"id": first + index, **annotation} for index, annotation in enumerate(masks.records())]
            with staged_file(files[name]) as stage:
                stage.write_bytes(msgspec.json.encode({"image": record, "annotations": annotations}))
            counts[name] = len(masks)
            next_id += 1
        written.append(files[name])
        yield WrittenMasks(name, files[name], counts[name], existed=name in ids)
    if format == "coco":
        _write_coco(written, out / "annotations.json")


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
            yield {"id": image.pop("image_id"), **image}

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
