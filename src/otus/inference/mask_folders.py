"""Masks of everything in many images, as SA-1B's files or one COCO file: a run that was stopped goes on where it was."""

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
_MASKS_PER_IMAGE = 1 << 20  # ids of the masks of an image follow one another from its id times this


@dataclass(frozen=True)
class MasksOfImage:
    """What was written for an image.

    Parameters
    ----------
    name, file
        Of the image, and the JSON file of its masks.
    count
        Masks.
    kept
        Whether the file was there from an earlier run.
    """

    name: str
    file: Path
    count: int
    kept: bool


def write_masks(
    images: Mapping[str, Path],
    generator: SamAutomaticMaskGenerator,
    out: Path,
    *,
    format: str = "sa1b",
    settings: Mapping[str, Any] | None = None,
    report: Report = stop_at_first,
) -> Iterator[MasksOfImage]:
    """Find the masks of images one by one, and write each image's when they are complete.

    Parameters
    ----------
    images
        Files by name.
    generator
        Finds the masks.
    out
        Folder: of ``sa1b`` for ``NAME.json`` of each image, of ``coco`` for ``annotations.json`` when all are done.
    format
        ``sa1b`` or ``coco``.
    settings
        JSON values that say how masks are found; a folder takes those of one kind only (default: not checked).
    report
        Called with the error of each image that cannot be read, which is left out (default: raise the first).

    Yields
    ------
    MasksOfImage
        In the order of ``images``, each once.

    Raises
    ------
    UsageError
        If the format is unknown, or the folder holds masks that were found otherwise.
    """
    if format not in FORMATS:
        raise UsageError(f"format: expected {' or '.join(FORMATS)}, got {format!r}")
    _check_settings(out, dict(settings or {}), format)
    parts = out if format == "sa1b" else out / _PARTS
    files = {name: parts / f"{name}.json" for name in images}
    kept = {name: _document(file) for name, file in files.items()}
    ids = {name: document["image"]["image_id"] for name, document in kept.items() if document is not None}
    counts = {name: len(document["annotations"]) for name, document in kept.items() if document is not None}
    del kept
    free = max(ids.values(), default=0) + 1
    done: list[Path] = []
    for name, path in images.items():
        if name not in ids:
            try:
                image = read_image(path)
            except DataError as error:
                report(error)
                continue
            masks = generator.masks(image)
            head = {"image_id": free, "width": image.shape[1], "height": image.shape[0], "file_name": name}
            first = free * _MASKS_PER_IMAGE
            annotations = [{"id": first + index, **record} for index, record in enumerate(masks.records())]
            with staged_file(files[name]) as stage:
                stage.write_bytes(msgspec.json.encode({"image": head, "annotations": annotations}))
            counts[name] = len(masks)
            free += 1
        done.append(files[name])
        yield MasksOfImage(name, files[name], counts[name], kept=name in ids)
    if format == "coco":
        _write_coco(done, out / "annotations.json")


def _check_settings(out: Path, settings: dict[str, Any], format: str) -> None:
    """Note how masks are found, or compare with what was noted before."""
    if not settings:
        return
    settings = {"format": format, **settings}
    file = out / _SETTINGS
    before = _json(file)
    if before is None:
        with staged_file(file) as stage:
            stage.write_bytes(msgspec.json.encode(settings))
        return
    other = next((name for name in {**before, **settings} if before.get(name) != settings.get(name)), None)
    if other is not None:
        raise UsageError(
            f"{out}: holds masks of {other} {before.get(other)!r}, not {settings.get(other)!r}; choose another folder"
        )


def _document(file: Path) -> dict[str, Any] | None:
    """What an earlier run wrote for an image, None where it did not."""
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
                x, y, width, height = record["bbox"]  # SA-1B's goes to the last pixel, COCO's to what is after it
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
