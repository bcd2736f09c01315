"""From one format to another, with an account of what was lost and what was left out."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import msgspec

from otus.data.dataset import Dataset
from otus.data.formats import coco, coco_panoptic, labelme, sa1b, voc, yolo
from otus.data.formats.contract import Loss, PictureMode, staged_file
from otus.data.open import format_name, open_dataset
from otus.data.pictures import picture_size_hw
from otus.errors import DataError, PictureError, UsageError

WRITERS = {format_name(module): module for module in (coco, voc, yolo, sa1b, labelme, coco_panoptic)}


@dataclass(frozen=True, eq=False)
class Conversion:
    """What came of a conversion.

    Parameters
    ----------
    dataset
        What was written.
    losses
        What the target format cannot hold, object by object.
    problems
        What was left out because the source is faulty.
    """

    dataset: Dataset
    losses: Sequence[Loss]
    problems: Sequence[DataError]


def convert(
    source: str | Path,
    target: str | Path,
    *,
    to: str,
    format: str | None = None,
    split: str | None = None,
    pictures: PictureMode = "copy",
    allow_outside: bool = False,
) -> Conversion:
    """Write a data set in another format.

    Faulty records and unreadable pictures are left out and returned as ``problems``. Losses, where there are
    some, are also written beside the new folder (:func:`losses_file`): inside, readers of one JSON a picture would stumble.

    Parameters
    ----------
    source, format, split, allow_outside
        As :func:`otus.data.open.open_dataset`.
    target
        The new folder.
    to
        ``coco``, ``voc``, ``yolo``, ``sa1b``, ``labelme`` or ``coco_panoptic``.
    pictures
        Copy the pictures, link to them, or leave them where they are.

    Raises
    ------
    UsageError
        If the target format is unknown, or the source holds several data sets.
    DataError
        If nothing can be read, or the target exists. Nothing is left at the target then.
    """
    if to not in WRITERS:
        raise UsageError(f"unknown target format {to!r}; there are: {', '.join(WRITERS)}")
    problems: list[DataError] = []
    dataset = open_dataset(source, format=format, split=split, report=problems.append, allow_outside=allow_outside)
    if not len(dataset) and problems:
        raise problems[0]
    if pictures != "none":
        readable, unreadable = _readable(dataset)
        problems += unreadable
        dataset = dataset if not unreadable else dataset.select(readable)
    losses = WRITERS[to].write(dataset, Path(target), pictures=pictures)
    if losses:
        with staged_file(losses_file(target)) as stage:
            stage.write_bytes(msgspec.json.format(msgspec.json.encode([asdict(one) for one in losses])))
    return Conversion(dataset, losses, problems)


def losses_file(target: str | Path) -> Path:
    """Where the losses of a conversion to a folder are listed: ``<folder>.conversion_losses.json``."""
    target = Path(target)
    return target.with_name(f"{target.name}.conversion_losses.json")


def _readable(dataset: Dataset) -> tuple[list[int], list[PictureError]]:
    """The pictures whose files are pictures of the size that the labels are for, and what is wrong with the others."""
    readable: list[int] = []
    problems: list[PictureError] = []
    for index in range(len(dataset)):
        path, expected = dataset.pictures.path(index), dataset.pictures.size_hw(index)
        try:
            size_hw = picture_size_hw(path)
        except PictureError as problem:
            problems.append(problem)
            continue
        if size_hw != expected:
            sizes = f"expected height and width {expected} as the labels say, got {size_hw}"
            problems.append(PictureError(sizes, file=path, kind="picture_size"))
            continue
        readable.append(index)
    return readable, problems
