"""The images that a training run kept aside, as its folder lists them. Torch is not imported here."""

import json
from pathlib import Path
from typing import Any

from otus.data.dataset import Dataset
from otus.data.merging import merge
from otus.data.open import open_dataset
from otus.errors import DataError, UsageError

IMAGES = "images.json"
"""The file of a run's folder that lists its images: digests by name, under ``training`` and ``validation``."""


def kept_aside(run: str | Path, *, data: str | Path | None = None) -> Dataset:
    """The images that a run validated on, as its folder lists them.

    Parameters
    ----------
    run
        The run's folder.
    data
        Where the data are now, if they have moved.

    Raises
    ------
    UsageError
        If the folder is not a run's, or lists no such images.
    DataError
        If some of them are not there any more; the message names the first.
    """
    config, listed = (_read(Path(run) / name) for name in ("config.json", IMAGES))
    names = list(listed.get("validation") or ())
    if not names:
        raise UsageError(f"run: {run} kept no images aside; say on which to judge: --model {run} --data PATH")
    own_set = isinstance(config["val"], str)
    sources = [data] if data is not None else [config["val"]] if own_set else config["data"]
    split = config["val_split"] if own_set or config["val"] is None else config["split"]
    for source in sources:
        if not Path(source).exists():
            raise UsageError(f"run: the data of {run} are not at {source} any more; say where they are by --data PATH")
    dataset = merge([open_dataset(source, format=config["format"], split=split) for source in sources])
    place = {file: index for index, file in enumerate(dataset.images.files)}
    missing = [name for name in names if name not in place]
    if missing:
        raise DataError(
            f"{len(missing)} of the {len(names)} images that {run} kept aside are not there, e.g. {missing[0]}",
            file=dataset.source,
            remedy="restore them under their names, or judge on other images by --model and --data",
        )
    return dataset.select([place[name] for name in names])


def _read(file: Path) -> dict[str, Any]:
    try:
        document: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"run: expected the folder of a training run, there is no {file}") from None
    except (OSError, ValueError) as error:
        raise UsageError(f"run: {file} is damaged: {error}") from None
    return document
