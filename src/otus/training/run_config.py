"""What a run was started with: the files of its folder that resuming, repeating and judging it read."""

import json
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import otus
from otus.data.dataset import Dataset
from otus.errors import UsageError
from otus.evaluation.runs import IMAGES
from otus.parts.preprocess import Preprocess
from otus.parts.tasks import Task
from otus.training.datasets import Data
from otus.training.settings import TrainSettings, make_settings


def read_config(folder: str | Path) -> dict[str, Any]:
    """What a run was started with, from its folder or the file ``config.json`` in it.

    Raises
    ------
    UsageError
        If the folder is not a run's.
    """
    file = Path(folder) if Path(folder).is_file() else Path(folder) / "config.json"
    if not file.is_file():
        raise UsageError(f"resume: {folder} is not the folder of a run, there is no {file.name} in it")
    try:
        # What is not in it was not there to be said when the run began.
        return {**asdict(TrainSettings()), **json.loads(file.read_text())}
    except (ValueError, TypeError):
        raise UsageError(f"resume: {file} is damaged, start a new run with --weights of this one") from None


def train_arguments(before: dict[str, Any], arguments: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of :func:`~otus.training.run.train`: those that a run was started with, and in their place
    those that are named anew."""
    names = ("model", "arguments", "data", "val", "weights", "image_size", "format", "split", "val_split")
    own = {field.name: before[field.name] for field in fields(TrainSettings)} | settings
    preprocess = Preprocess.from_dict(before["preprocess"])
    again = {"preprocess": preprocess, **{name: before[name] for name in names}, **arguments}
    for option, sources in (("data", again["data"]), ("val", [again["val"]])):
        for source in [sources] if isinstance(sources, str | Path) else sources:
            if isinstance(source, str) and not Path(source).exists():
                raise UsageError(f"{option}: the run's data are not at {source} any more; say where by --{option} PATH")
    return {**again, "settings": make_settings(own)}


def resume_notes(
    run: Path, before: Mapping[str, Any], now: Mapping[str, Any], images: Mapping[str, Mapping[str, str]]
) -> list[str]:
    """What a person should know who resumes a run: data that moved, image files that are others than when it began."""
    lines = []
    moved = [name for name in ("data", "val") if before[name] != now[name]]
    if moved:
        lines.append(f"note: {' and '.join(moved)} moved, the labels are the same: {now['data']}")
    try:
        known = json.loads((run / IMAGES).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return lines
    changed = [
        file
        for part, digests in images.items()
        for file, digest in digests.items()
        if known.get(part, {}).get(file, digest) != digest
    ]
    if changed:
        what = "1 image file is" if len(changed) == 1 else f"{len(changed)} image files are"
        lines.append(f"note: {what} not what the run began with, e.g. {changed[0]}: it goes on with them as they are")
    return lines


def source_path(source: Data | float | None) -> str | float | None:
    """Return the absolute path of a data set, or the share or nothing that stands in its place."""
    if isinstance(source, Dataset):
        return str(source.source)
    return str(Path(source).absolute()) if isinstance(source, str | Path) else source


def training_record(config: dict[str, Any], train_set: Dataset, val_set: Dataset | None, task: Task) -> dict[str, Any]:
    """Return what a checkpoint records of its training."""
    return {
        "otus": otus.__version__,
        "command": config["command"],
        "data": config["data"],
        "images": len(train_set),
        "validated_on": config["val"] or config["val_split"],
        "validation_images": None if val_set is None else len(val_set),
        "protocol": task.protocol,
        "settings": config,
    }
