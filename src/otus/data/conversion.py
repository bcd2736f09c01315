"""Convert a data set to another format, and report what was lost or left out."""

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import msgspec

from otus._files import staged_file
from otus.data.dataset import Dataset
from otus.data.formats import coco, coco_panoptic, labelme, sa1b, voc, yolo
from otus.data.formats.interface import ConversionLoss, ImageMode
from otus.data.image_files import check_name_is_utf8
from otus.data.images import check_image_size, image_size_hw, read_image
from otus.data.merging import merge_categories, remap_categories
from otus.data.open import format_name, open_splits
from otus.errors import DataError, ImageError, UsageError, did_you_mean

WRITERS = {format_name(module): module for module in (coco, voc, yolo, sa1b, labelme, coco_panoptic)}

_END_MARKERS = (b"\xff\xd9", b"IEND\xaeB`\x82")
_TAIL_BYTES = 16


@dataclass(frozen=True, eq=False)
class ConversionResult:
    """Result of a conversion.

    Parameters
    ----------
    datasets
        The data sets written, one per split.
    losses
        What the target format cannot hold, object by object.
    problems
        Faulty records and unreadable images of the source, which were left out.
    """

    datasets: Sequence[Dataset]
    losses: Sequence[ConversionLoss]
    problems: Sequence[DataError]


def convert(
    source: str | Path,
    target: str | Path,
    *,
    to: str,
    format: str | None = None,
    split: str | None = None,
    images: ImageMode = "copy",
    allow_outside: bool = False,
) -> ConversionResult:
    """Write a data set in another format, with all of its splits unless one is chosen.

    Faulty records and unreadable images are left out and returned as ``problems``. Losses are also written beside the
    new folder (:func:`losses_path`), not into it, where readers of one JSON per image would take them for labels.

    Parameters
    ----------
    source, format, split, allow_outside
        As in :func:`otus.data.open.open_splits`.
    target
        The new folder.
    to
        ``coco``, ``voc``, ``yolo``, ``sa1b``, ``labelme`` or ``coco_panoptic``.
    images
        ``copy`` the images, ``link`` to them, or write ``none`` (default: copy).

    Raises
    ------
    UsageError
        If the target format is unknown, or the source holds several data sets that are not splits of one.
    DataError
        If nothing can be read, or the target exists or cannot be written; nothing is left at the target then.
    """
    if to not in WRITERS:
        raise UsageError(f"unknown target format {to!r}; there are: {', '.join(WRITERS)}{did_you_mean(to, WRITERS)}")
    problems: list[DataError] = []
    datasets = open_splits(source, format=format, split=split, report=problems.append, allow_outside=allow_outside)
    if problems and not any(map(len, datasets)):
        raise problems[0]
    datasets, losses = _drop_union_splits(datasets)
    datasets, category_losses = _unify_categories(datasets)
    losses += category_losses
    _check_labels_fit(datasets, to)
    for index, dataset in enumerate(datasets):
        usable, unusable = _usable_images(dataset, are_written=images != "none")
        problems += unusable
        datasets[index] = dataset if not unusable else dataset.select(usable)
    losses += WRITERS[to].write(datasets, Path(target), images=images)
    # Losses that concern the whole data set were reported once per split.
    without_image = dict.fromkeys(loss for loss in losses if not loss.image)
    losses = [*without_image, *(loss for loss in losses if loss.image)]
    if losses:
        with staged_file(losses_path(target)) as stage:
            stage.write_bytes(msgspec.json.format(msgspec.json.encode([asdict(loss) for loss in losses])))
    return ConversionResult(datasets, losses, problems)


def losses_path(target: str | Path) -> Path:
    """Return the path of the report of losses: ``<folder>.conversion_losses.json``."""
    target = Path(os.path.abspath(target))  # "." has no name
    return target.with_name(f"{target.name}.conversion_losses.json")


def _check_labels_fit(datasets: list[Dataset], to: str) -> None:
    """Raise if the target format can hold none of the labels."""
    for dataset in datasets:
        can_hold = (to == "coco_panoptic" and dataset.panoptic is not None) or (
            to == "voc" and voc.has_voc_semantic(dataset)
        )
        if dataset.objects is None and not can_hold:
            maps = {
                "semantic maps": dataset.semantic,
                "panoptic maps": dataset.panoptic,
                "images' labels": dataset.image_labels,
            }
            present = " and ".join(name for name, value in maps.items() if value is not None)
            remedy = "choose another target" if dataset.panoptic is None else "coco_panoptic can"
            raise DataError(
                f"has only {present}, which {to} cannot hold", file=dataset.source, remedy=remedy, kind="no_objects"
            )


def _drop_union_splits(datasets: list[Dataset]) -> tuple[list[Dataset], list[ConversionLoss]]:
    """Drop splits that are the union of others, such as VOC's trainval."""
    images = [{dataset.images.path(i) for i in range(len(dataset))} for dataset in datasets]
    kept: list[Dataset] = []
    losses: list[ConversionLoss] = []
    for dataset, own in zip(datasets, images, strict=True):
        parts = [other for other in images if other < own]
        if len(parts) > 1 and set().union(*parts) == own:
            description = f"the split {dataset.split!r}: it is the union of other splits"
            losses.append(ConversionLoss("split", "", None, description))
        else:
            kept.append(dataset)
    return kept, losses


def _unify_categories(datasets: list[Dataset]) -> tuple[list[Dataset], list[ConversionLoss]]:
    """Give all splits the same categories, and report new ids where their lists differed."""
    if all(dataset.categories == datasets[0].categories for dataset in datasets):
        return datasets, []
    common = merge_categories([dataset.categories for dataset in datasets])
    unified = [replace(remap_categories(dataset, common), categories=common) for dataset in datasets]
    return unified, [
        ConversionLoss("category_ids", "", None, "the ids of categories: the splits' lists differ and were merged")
    ]


def _usable_images(dataset: Dataset, *, are_written: bool) -> tuple[list[int], list[ImageError]]:
    """Return the indices of the images that can be converted, and the problems of the others.

    Images that are written too must be readable and of the labelled size.
    """
    usable: list[int] = []
    problems: list[ImageError] = []
    for index, file in enumerate(dataset.images.files):
        path = dataset.images.path(index)
        try:
            check_name_is_utf8(file, path)
            if are_written:
                check_image_size(image_size_hw(path), dataset.images.size_hw(index), str(path))
                if not _is_complete(path):
                    read_image(path)  # raises if the file is truncated
        except ImageError as problem:
            problems.append(problem)
        else:
            usable.append(index)
    return usable, problems


def _is_complete(path: Path) -> bool:
    """Return whether a file ends like a complete JPEG or PNG, which is much faster to check than decoding it."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _TAIL_BYTES))
        tail = file.read()
    return any(end in tail for end in _END_MARKERS)
