"""The validation images of a training run, as its folder lists them. Torch is not imported here."""

import json
from pathlib import Path
from typing import Any

from otus.data.dataset import Dataset
from otus.data.merging import merge
from otus.data.open import open_dataset
from otus.errors import DataError, UsageError

IMAGES = "images.json"
"""File in a run's folder that lists its images: digests by name, under ``training`` and ``validation``."""


def validation_images(run: str | Path, *, data: str | Path | None = None) -> Dataset:
    """Return the images that a run validated on.

    Parameters
    ----------
    run
        Folder of the run.
    data
        Path of the data, if they have moved (default: the path that the run recorded).

    Raises
    ------
    UsageError
        If the folder is not a run's, or lists no validation images.
    DataError
        If some of them no longer exist; the message names the first.
    """
    config, listed = (_read(Path(run) / name) for name in ("config.json", IMAGES))
    names = list(listed.get("validation") or ())
    if not names:
        raise UsageError(f"run: {run} has no validation images; evaluate on other images: --model {run} --data PATH")
    has_val_set = isinstance(config["val"], str)
    sources = [data] if data is not None else [config["val"]] if has_val_set else config["data"]
    split = config["val_split"] if has_val_set or config["val"] is None else config["split"]
    for source in sources:
        if not Path(source).exists():
            raise UsageError(f"run: the data of {run} are no longer at {source}; give their new path by --data PATH")
    dataset = merge([open_dataset(source, format=config["format"], split=split) for source in sources])
    index_of = {file: index for index, file in enumerate(dataset.images.files)}
    missing = [name for name in names if name not in index_of]
    if missing:
        raise DataError(
            f"{len(missing)} of the {len(names)} validation images of {run} do not exist, e.g. {missing[0]}",
            file=dataset.source,
            remedy="restore them under these names, or evaluate on other images by --model and --data",
        )
    return dataset.select([index_of[name] for name in names])


def _read(file: Path) -> dict[str, Any]:
    try:
        document: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"run: expected the folder of a training run, but there is no {file}") from None
    except (OSError, ValueError) as error:
        raise UsageError(f"run: {file} is damaged: {error}") from None
    return document
