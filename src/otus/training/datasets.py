"""What a run learns from and is validated on: opened, joined, kept aside, and looked at."""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from otus.data.dataset import Dataset
from otus.data.merging import merge
from otus.data.open import choose_layouts, open_dataset
from otus.data.splitting import shared_images, train_val_split
from otus.errors import DataError
from otus.parts.tasks import TASKS, Task
from otus.zoo.models import model_entry

_LOG = logging.getLogger("otus")
Data = str | Path | Dataset


def open_datasets(
    sources: Sequence[Data],
    val: Data | float | None,
    *,
    format: str | None,
    split: str | None,
    val_split: str | None,
) -> tuple[Dataset, Dataset | None]:
    """What to learn from, and what to validate on, if anything; arguments as of :func:`otus.training.run.train`.

    Raises
    ------
    UsageError, DataError
        As :func:`~otus.data.open.open_dataset`; or if there is nothing to learn from, to keep aside or to validate by.
    """

    def opened(source: Data, split: str | None) -> Dataset:
        return source if isinstance(source, Dataset) else open_dataset(source, format=format, split=split)

    if val is None and split is None and val_split is None and all(has_two_splits(one, format) for one in sources):
        split, val_split = "train", "val"
        _LOG.warning("the splits train and val are taken; --split, --val-split and --val name others")
    several = [opened(source, split) for source in sources]
    _refuse_bare(several, "to learn from")
    train_set = merge(several)
    if isinstance(val, float | int):
        return train_val_split(train_set, float(val))
    if val is None and val_split is None:
        return train_set, None
    kept_aside = [opened(source, val_split) for source in (sources if val is None else [val])]
    _refuse_bare(kept_aside, "to validate by")
    return train_set, merge(kept_aside)


def has_two_splits(source: Data, format: str | None) -> bool:
    """Whether a data set on disk has the splits ``train`` and ``val``, each once, and beside them at most a ``test``."""
    if isinstance(source, Dataset):
        return False
    splits = [layout.split or "" for layout in choose_layouts(source, format=format)]
    return {"train", "val"} <= set(splits) <= {"train", "val", "test"} and len(splits) == len(set(splits))


def _refuse_bare(datasets: Sequence[Dataset], purpose: str) -> None:
    for dataset in datasets:
        if not len(dataset) or not any(task.labels.in_dataset(dataset) for task in TASKS):
            raise DataError(
                f"has no images with objects or categories {purpose}", file=dataset.source, remedy="choose another"
            )


def check_labels(dataset: Dataset, task: Task, purpose: str) -> None:
    """DataError unless a data set has what a task is learned from and judged by; ``purpose`` is ``to learn from``, e.g."""
    if not task.labels.in_dataset(dataset):
        raise DataError(f"has no {task.labels.what} {purpose}", file=dataset.source, remedy="choose another")


def trainable_model(model: str, train_set: Dataset, *, boxes: str = "modal") -> tuple[str, list[str]]:
    """The name of the model to train, and a line to say where it is not ``model``: its mask or keypoint head is left out
    where no object has a mask or a labelled keypoint.

    Parameters
    ----------
    model
        A name of the zoo.
    boxes
        As of :class:`~otus.training.settings.TrainSettings`: with ``amodal`` the masks of whole objects count too.
    """
    entry = model_entry(model)
    task, instead = entry.task, entry.boxes_only
    if instead is None or task.head_labels is None or train_set.objects is None:
        return model, []
    several = [task.head_labels, task.amodal_head_labels if boxes == "amodal" else None]
    if any(labels is not None and labels.in_dataset(train_set) for labels in several):
        return model, []
    what = task.head_labels.what
    return instead, [f"note: no object has {what} to learn from: {instead} in the place of {model}"]


def data_warnings(train_set: Dataset, val_set: Dataset | None) -> list[str]:
    """What a person should know before believing the figures."""
    labels = train_set.image_labels if train_set.objects is None else train_set.objects.labels
    never = []
    if labels is not None:
        counts = np.bincount(labels, minlength=len(train_set.categories))
        never = [name for name, count in zip(train_set.categories, counts, strict=True) if not count]
    lines = []
    if never:
        lines.append(
            f"note: no {'image' if train_set.objects is None else 'object'} to learn from of {', '.join(never)}"
        )
    if val_set is None:
        return [*lines, "note: nothing is validated; --val takes a data set or a share such as 0.1"]
    if val_set.objects is not None and val_set.objects.is_crowd.all():
        lines.append("warning: there is no object on the validation images: no figure can be told")
    if train_set.objects is not None and val_set.objects is not None:
        learned, judged = train_set.objects, val_set.objects
        for what, taught, asked in (
            ("masks", learned.has_mask, judged.has_mask),
            ("keypoints", learned.has_keypoints, judged.has_keypoints),
        ):
            if asked.any() and not taught.any():
                lines.append(f"note: the validation images have {what}, the training images none: they are not judged")
    shared = shared_images(train_set, val_set)
    if shared:
        what = "all" if len(shared) == len(val_set) else f"{len(shared)} of {len(val_set)}"
        lines.append(f"warning: {what} validation images are learned from too, e.g. {shared[0]}: figures flatter")
    return lines
