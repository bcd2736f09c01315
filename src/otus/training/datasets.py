"""Open, merge, split and check the training and validation data of a run."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from otus.data.dataset import Dataset
from otus.data.merging import merge
from otus.data.open import choose_layouts, open_dataset
from otus.data.splitting import shared_images, train_val_split
from otus.errors import DataError
from otus.parts.tasks import TASKS, Task
from otus.zoo.models import model_entry

Data = str | Path | Dataset


def open_datasets(
    sources: Sequence[Data],
    val: Data | float | None,
    *,
    format: str | None,
    split: str | None,
    val_split: str | None,
) -> tuple[Dataset, Dataset | None]:
    """Return the training set, and the validation set or None; arguments as of :func:`otus.training.run.train`.

    Raises
    ------
    UsageError, DataError
        As :func:`~otus.data.open.open_dataset`; or if there are no labelled images to train or validate on.
    """

    def opened(source: Data, split: str | None) -> Dataset:
        return source if isinstance(source, Dataset) else open_dataset(source, format=format, split=split)

    train_sets = [opened(source, split) for source in sources]
    _check_labelled(train_sets, "to train on")
    train_set = merge(train_sets)
    if isinstance(val, float | int):
        return train_val_split(train_set, float(val))
    if val is None and val_split is None:
        return train_set, None
    val_sets = [opened(source, val_split) for source in (sources if val is None else [val])]
    _check_labelled(val_sets, "to validate on")
    return train_set, merge(val_sets)


def default_splits(
    sources: Sequence[Data], format: str | None, log: Callable[[str], object]
) -> tuple[str | None, str | None]:
    """Return the names of the splits to train and to validate on, if none are given, and log them.

    They are ``train`` and ``val``, or other common names of these, if each of the data sets has exactly one of each, and no
    others except ``test``; else None.
    """
    found = set()
    for source in sources:
        splits = (
            [] if isinstance(source, Dataset) else [one.split or "" for one in choose_layouts(source, format=format)]
        )
        kinds = [re.sub("(id(ation)?|ing)$", "", split.lower()) for split in splits]
        if not {"train", "val"} <= set(kinds) <= {"train", "val", "test"} or len(kinds) != len(set(kinds)):
            return None, None
        found.add((splits[kinds.index("train")], splits[kinds.index("val")]))
    if len(found) != 1:
        return None, None
    train, val = found.pop()
    log(f"using the splits {train} and {val}; to change this, give --split, --val-split or --val")
    return train, val


def _check_labelled(datasets: Sequence[Dataset], purpose: str) -> None:
    """Raise DataError if a data set has no images, or no labels of any task."""
    for dataset in datasets:
        if not len(dataset) or not any(task.labels.in_dataset(dataset) for task in TASKS):
            raise DataError(
                f"has no images with objects or categories {purpose}", file=dataset.source, remedy="choose another"
            )


def check_labels(dataset: Dataset, task: Task, purpose: str) -> None:
    """Raise DataError if a data set lacks the labels of a task; ``purpose`` ends the message, e.g. ``to train on``."""
    if not task.labels.in_dataset(dataset):
        raise DataError(f"has no {task.labels.what} {purpose}", file=dataset.source, remedy="choose another")


def trainable_model(model: str, train_set: Dataset, *, boxes: str = "modal") -> tuple[str, list[str]]:
    """Return the model to train: without its mask or keypoint head if no object has a mask or a labelled keypoint.

    Parameters
    ----------
    model
        Name of a model in the zoo.
    train_set
        The training data.
    boxes
        As in :class:`~otus.training.settings.TrainSettings`: with ``amodal``, amodal masks count too.

    Returns
    -------
    tuple
        Name of the model, and lines that tell the user if it is not the given one.
    """
    entry = model_entry(model)
    task, boxes_only = entry.task, entry.boxes_only
    if boxes_only is None or task.head_labels is None or train_set.objects is None:
        return model, []
    accepted = [task.head_labels, task.amodal_head_labels if boxes == "amodal" else None]
    if any(labels is not None and labels.in_dataset(train_set) for labels in accepted):
        return model, []
    what = task.head_labels.what
    return boxes_only, [f"note: no object has {what} to train on, so {boxes_only} is trained instead of {model}"]


def data_warnings(train_set: Dataset, val_set: Dataset | None) -> list[str]:
    """Return warnings and notes about missing labels, missing validation, and images in both sets."""
    labels = train_set.image_labels if train_set.objects is None else train_set.objects.labels
    missing = []
    if labels is not None:
        counts = np.bincount(labels, minlength=len(train_set.categories))
        missing = [name for name, count in zip(train_set.categories, counts, strict=True) if not count]
    lines = []
    if missing:
        noun = "image" if train_set.objects is None else "object"
        lines.append(f"note: the training data have no {noun} of {', '.join(missing)}")
    if val_set is None:
        return [*lines, "note: no validation; to validate, give --val with a data set or a fraction such as 0.1"]
    if val_set.objects is not None and val_set.objects.is_crowd.all():
        lines.append("warning: the validation images have no objects, so their metrics are undefined")
    if train_set.objects is not None and val_set.objects is not None:
        for what, in_train_set, in_val_set in (
            ("masks", train_set.objects.has_mask, val_set.objects.has_mask),
            ("keypoints", train_set.objects.has_keypoints, val_set.objects.has_keypoints),
        ):
            if in_val_set.any() and not in_train_set.any():
                lines.append(
                    f"note: the validation images have {what}, the training images none: they are not evaluated"
                )
    shared = shared_images(train_set, val_set)
    if shared:
        count = "all" if len(shared) == len(val_set) else f"{len(shared)} of {len(val_set)}"
        lines.append(
            f"warning: {count} validation images are also training images, e.g. {shared[0]}: metrics are too high"
        )
    return lines
