"""The configuration of a run as stored in its folder, for resuming and repeating it."""

import json
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import otus
from otus.data.dataset import Dataset
from otus.errors import UsageError
from otus.evaluation.runs import CONFIG, IMAGES, read_record, run_folder_of
from otus.parts.preprocess import Preprocess
from otus.parts.tasks import Task
from otus.training.datasets import Data
from otus.training.settings import TrainSettings, make_settings

ARGUMENTS = ("model", "arguments", "data", "val", "weights", "image_size", "format", "split", "val_split")
"""Arguments of :func:`otus.training.run.train` that a run's configuration records."""


def read_config(path: str | Path, *, option: str) -> dict[str, Any]:
    """Read the configuration of a run, given a file of it, or the run's folder or weights.

    Raises
    ------
    UsageError
        If it is not that of a run, or the file is damaged; ``option`` names the path in the message.
    """
    file = Path(path) if Path(path).suffix == ".json" else run_folder_of(path) / CONFIG
    # Settings that an older version of Otus did not have get their defaults.
    return {**asdict(TrainSettings()), **read_record(file, option=option, fields=("preprocess", *ARGUMENTS))}


def train_arguments(config: dict[str, Any], arguments: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of :func:`~otus.training.run.train` of an earlier run, with some values replaced.

    Parameters
    ----------
    config
        Configuration of the earlier run.
    arguments, settings
        Arguments of ``train``, and fields of its settings, that replace those of the earlier run.

    Raises
    ------
    UsageError
        If the data no longer exist at their path, or a setting is invalid.
    """
    all_settings = {field.name: config[field.name] for field in fields(TrainSettings)} | settings
    preprocess = Preprocess.from_dict(config["preprocess"])
    all_arguments = {"preprocess": preprocess, **{name: config[name] for name in ARGUMENTS}, **arguments}
    for option, sources in (("data", all_arguments["data"]), ("val", [all_arguments["val"]])):
        for source in [sources] if isinstance(sources, str | Path) else sources:
            if isinstance(source, str) and not Path(source).exists():
                raise UsageError(
                    f"{option}: the run's data are no longer at {source}; give their new path by --{option} PATH"
                )
    return {**all_arguments, "settings": make_settings(all_settings)}


def resume_notes(
    run: Path, before: Mapping[str, Any], now: Mapping[str, Any], images: Mapping[str, Mapping[str, str]]
) -> list[str]:
    """Return notes for the user who resumes a run: data that moved, and image files that have changed.

    Parameters
    ----------
    run
        Folder of the run.
    before, now
        Configuration of the run, and the one with which it is resumed.
    images
        Digests of the image files now, by ``training`` or ``validation`` and name.
    """
    lines = []
    moved = [name for name in ("data", "val") if before[name] != now[name]]
    if moved:
        lines.append(f"note: {' and '.join(moved)} moved to {now['data']}; the labels are the same")
    try:
        recorded = json.loads((run / IMAGES).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return lines
    changed = [
        file
        for part, digests in images.items()
        for file, digest in digests.items()
        if recorded.get(part, {}).get(file, digest) != digest
    ]
    if changed:
        count = "1 image file has" if len(changed) == 1 else f"{len(changed)} image files have"
        lines.append(f"note: {count} changed since the run was started, e.g. {changed[0]}; the run continues with them")
    return lines


def source_path(source: Data | float | None) -> str | float | None:
    """Return the absolute path of a data set; a fraction or None is returned as it is."""
    if isinstance(source, Dataset):
        return str(source.source)
    return str(Path(source).absolute()) if isinstance(source, str | Path) else source


def training_record(config: dict[str, Any], train_set: Dataset, val_set: Dataset | None, task: Task) -> dict[str, Any]:
    """Return the record of its training that is stored in a checkpoint."""
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
