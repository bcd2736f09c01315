"""The validation images of a training run, as its folder lists them. Torch is not imported here."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from otus.data.dataset import Dataset
from otus.data.merging import merge
from otus.data.open import open_dataset
from otus.errors import DataError, UsageError

CONFIG = "config.json"
"""File in a run's folder with its configuration."""
IMAGES = "images.json"
"""File in a run's folder that lists its images: digests by name, under ``training`` and ``validation``."""


def validation_images(run: str | Path, *, data: str | Path | None = None) -> Dataset:
    """Return the images that a run validated on.

    Parameters
    ----------
    run
        Folder of the run, or its weights.
    data
        Path of the data, if they have moved (default: the path that the run recorded).

    Raises
    ------
    UsageError
        If the folder is not a run's, or lists no validation images.
    DataError
        If some of them no longer exist; the message names the first.
    """
    run = run_folder_of(run)
    config = read_record(run / CONFIG, option="run", fields=("data", "val", "val_split", "format", "split"))
    listed = read_record(run / IMAGES, option="run")
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


def run_folder_of(path: str | Path) -> Path:
    """Return the folder of a run, given that folder, its configuration or its weights."""
    path = Path(path)
    if not path.is_file():
        return path
    return path.parent if path.name == CONFIG else path.parent.parent


def read_record(file: Path, *, option: str, fields: Sequence[str] = ()) -> dict[str, Any]:
    """Read a JSON object from a run's folder.

    Parameters
    ----------
    file
        The file.
    option
        Name of the option that gave the folder, for messages.
    fields
        Fields that the object must have.

    Raises
    ------
    UsageError
        If there is no such file, it is damaged, or it is not of a run.
    """
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise UsageError(f"{option}: expected the folder of a training run, but there is no {file}") from None
    except (OSError, ValueError) as error:
        raise UsageError(f"{option}: {file} is damaged ({error}); start a new run with --weights of this one") from None
    missing = [name for name in fields if name not in document] if isinstance(document, dict) else ["object"]
    if missing:
        raise UsageError(f"{option}: {file} is not of a training run of Otus: it has no {missing[0]}")
    return dict(document)
