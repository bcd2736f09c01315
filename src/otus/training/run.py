"""A training run from names: ``otus.train`` and ``otus train``."""

import dataclasses
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import nn

import otus
from otus.data.dataset import Dataset
from otus.data.merging import merge, with_categories
from otus.data.open import open_dataset
from otus.data.pictures import write_picture
from otus.data.splitting import fingerprint, shared_pictures, split_off
from otus.data.transforms import Compose, HorizontalFlip, Photometric, Transform
from otus.errors import DataError, UsageError
from otus.parts.preprocess import Preprocess
from otus.training.devices import start_fabric
from otus.training.feeding import Feed
from otus.training.fine_tuning import read_weights, start_from
from otus.training.loop import TrainResult, fit
from otus.training.progress import TrainProgress
from otus.training.resuming import refuse_changes
from otus.training.run_folder import RunFolder, environment, new_run_folder
from otus.training.settings import TrainSettings, make_settings
from otus.training.snapshots import draw_batch
from otus.training.validation import Validator
from otus.zoo.checkpoint import CheckpointHeader
from otus.zoo.models import build_model, model_entry

Data = str | Path | Dataset
STANDARD_AUGMENTATION = Compose([HorizontalFlip(), Photometric()])


@dataclass(frozen=True)
class TrainedModel:
    """What a run left: how it ended, and where its weights are."""

    result: TrainResult
    folder: Path
    best: Path
    last: Path


def train(
    model: str | nn.Module,
    data: Data | Sequence[Data],
    *,
    val: Data | float | None = None,
    weights: str | Path | None = None,
    settings: TrainSettings = TrainSettings(),  # noqa: B008, frozen
    image_size: int | None = None,
    preprocess: Preprocess | None = None,
    augment: Transform | None = STANDARD_AUGMENTATION,
    format: str | None = None,
    split: str | None = None,
    val_split: str | None = None,
    out: str | Path | None = None,
    name: str | None = None,
    resume: str | Path | None = None,
    quiet: bool = False,
) -> TrainedModel:
    """Train a model on pictures with labels.

    Parameters
    ----------
    model
        A name of the zoo, or a system put together by hand with ``categories``, ``losses`` and ``predict``.
    data
        One or several data sets, or their folders or files; categories are joined by name.
    val
        What to validate on: a data set, or a share of the training pictures to keep aside. Without it ``val_split`` of
        ``data``, and without that nothing is validated.
    weights
        What to start from: a file, or a name of published weights; random without it.
    settings
        Options of the loop.
    image_size
        Pixels of the pictures' longer side; the model's own size without it.
    preprocess
        How pictures are prepared; needed for a system put together by hand.
    augment
        What is done to training pictures.
    format, split, val_split
        Of the data, where a folder holds several.
    out, name
        The run's folder is ``out/task/name``; see :func:`~otus.training.run_folder.new_run_folder`.
    resume
        Folder of a run to go on with; everything else must be as it was.
    quiet
        Say nothing on stderr.

    Raises
    ------
    UsageError
        If a name or setting is wrong, or a run is resumed as another one.
    DataError
        If the data have a fault, or nothing to learn from.
    TrainingError
        If a loss is not finite.

    Examples
    --------
    >>> run = otus.train("mask_rcnn_resnet50_fpn", "photos", val=0.2)  # doctest: +SKIP
    >>> otus.load(run.best).predict("photo.jpg")  # doctest: +SKIP
    """
    fabric = start_fabric(settings)
    say = TrainProgress(quiet=quiet or not fabric.is_global_zero)
    sources = [data] if isinstance(data, str | Path | Dataset) else list(data)
    train_set, val_set = _open(sources, val, format=format, split=split, val_split=val_split, seed=settings.seed)
    system, preprocess, header = _prepare(model, train_set, preprocess, image_size=image_size, settings=settings)
    categories = system.categories
    train_set = with_categories(train_set, categories)  # type: ignore[arg-type]
    config = {
        "model": header.builder or type(system).__name__,
        "data": [_place(source) for source in sources],
        "val": _place(val),
        "weights": None if weights is None else str(Path(weights).absolute() if Path(weights).exists() else weights),
        "image_size": image_size,
        "preprocess": preprocess.to_dict(),
        "augment": repr(augment),
        "format": format,
        "split": split,
        "val_split": val_split,
        "train_fingerprint": fingerprint(train_set),
        "val_fingerprint": None if val_set is None else fingerprint(val_set),
        **dataclasses.asdict(settings),
    }
    config = json.loads(json.dumps(config))  # as it will be read again
    if resume is not None:
        refuse_changes(read_config(resume), config)
    elif weights is not None:
        _fine_tune(system, header, weights, settings=settings, say=say)

    path = Path(resume) if resume is not None else _new_folder(fabric, model, header, out=out, name=name)
    header = dataclasses.replace(header, training=_record(config, train_set, val_set))
    folder = RunFolder(path, header)
    feed = Feed(train_set, preprocess, settings, augment=augment, rank=fabric.global_rank, world_size=fabric.world_size)
    if fabric.is_global_zero and resume is None:
        folder.write_json("config.json", config)
        folder.write_json("run.json", {**environment(), "command": sys.argv, **header.training})
        first = [feed.load(place) for place in next(feed.plan())]
        write_picture(path / "batch.jpg", draw_batch(first, preprocess=preprocess, categories=categories))  # type: ignore[arg-type]
    for line in _remarks(train_set, val_set):
        say.say(line)
    say.say(f"{config['model']}: {len(train_set)} pictures to learn from, writing to {path}")
    validator = None
    if val_set is not None:
        validator = Validator(
            with_categories(val_set, categories),  # type: ignore[arg-type]
            preprocess,
            fabric,
            workers=settings.workers,
            picture=path / "validation.jpg",
        )
    result = fit(
        system, feed=feed, fabric=fabric, validate=validator, folder=folder, resume=resume is not None, progress=say
    )
    return TrainedModel(result, path, folder.best if folder.best.exists() else folder.last, folder.last)


def resume_run(
    folder: str | Path, *, arguments: dict[str, Any] | None = None, settings: dict[str, Any] | None = None
) -> TrainedModel:
    """Go on with a run of a named model where it stopped, to the weights that it would have had without stopping.

    Parameters
    ----------
    folder
        Of the run.
    arguments, settings
        Of :func:`train` and of :class:`TrainSettings`, where somebody names them again; they must be as they were.

    Raises
    ------
    UsageError
        If they are not, or the data are not; the message lists what differs.
    """
    before = read_config(folder)
    names = ("model", "data", "val", "weights", "image_size", "format", "split", "val_split")
    again = {name: before[name] for name in names} | (arguments or {})
    own = {field.name: before[field.name] for field in dataclasses.fields(TrainSettings)} | (settings or {})
    return train(**again, settings=make_settings(own), resume=folder)


def read_config(folder: str | Path) -> dict[str, Any]:
    """What a run was started with.

    Raises
    ------
    UsageError
        If the folder is not a run's.
    """
    file = Path(folder) / "config.json"
    if not file.is_file():
        raise UsageError(f"resume: {folder} is not the folder of a run, there is no {file.name} in it")
    return json.loads(file.read_text())


def _open(
    sources: Sequence[Data],
    val: Data | float | None,
    *,
    format: str | None,
    split: str | None,
    val_split: str | None,
    seed: int,
) -> tuple[Dataset, Dataset | None]:
    """What to learn from, and what to validate on."""

    def opened(source: Data, split: str | None) -> Dataset:
        return source if isinstance(source, Dataset) else open_dataset(source, format=format, split=split)

    several = [opened(source, split) for source in sources]
    for dataset in several:
        if dataset.objects is None or not len(dataset):
            raise DataError("has no pictures with objects to learn from", file=dataset.source, remedy="choose another")
    train_set = merge(several)
    if isinstance(val, float | int):
        return split_off(train_set, float(val), seed=seed)
    if val is not None:
        return train_set, opened(val, val_split)
    if val_split is not None:
        return train_set, merge([opened(source, val_split) for source in sources])
    return train_set, None


def _prepare(
    model: str | nn.Module,
    train_set: Dataset,
    preprocess: Preprocess | None,
    *,
    image_size: int | None,
    settings: TrainSettings,
) -> tuple[nn.Module, Preprocess, CheckpointHeader]:
    """The system with random weights, how it wants pictures, and what its checkpoints say of it."""
    if isinstance(model, str):
        torch.manual_seed(settings.seed)
        preprocess = preprocess or model_entry(model).preprocess
        system = build_model(model, train_set.categories)
    elif preprocess is None:
        raise UsageError("preprocess: a system put together by hand needs one, e.g. Preprocess(fixed_hw=(224, 224))")
    else:
        system = model
    if image_size is not None:
        preprocess = _resized(preprocess, image_size)
    header = CheckpointHeader(
        builder=model if isinstance(model, str) else None,
        categories=system.categories,  # type: ignore[arg-type]
        preprocess=preprocess.to_dict(),
    )
    return system, preprocess, header


def _resized(preprocess: Preprocess, image_size: int) -> Preprocess:
    if image_size < 1:
        raise UsageError(f"image_size: expected pixels, got {image_size}")
    if preprocess.fixed_hw is not None:
        return dataclasses.replace(preprocess, fixed_hw=(image_size, image_size))
    return dataclasses.replace(preprocess, shorter_side=image_size, longer_side=image_size)


def _fine_tune(
    system: nn.Module, header: CheckpointHeader, weights: str | Path, *, settings: TrainSettings, say: TrainProgress
) -> None:
    builder = header.builder
    start = read_weights(weights, model=builder)
    left = start_from(system, start, build=None if builder is None else lambda other: build_model(builder, other))
    say.say(f"starting from {start.source}" + (f"; not loaded ({len(left)}):" if left else ", all of it"))
    for line in left:
        say.say(f"  {line}")


def _new_folder(
    fabric: Fabric, model: str | nn.Module, header: CheckpointHeader, *, out: str | Path | None, name: str | None
) -> Path:
    """The same in all processes."""
    task = model_entry(model).task if isinstance(model, str) else "detection"
    path: Path = fabric.broadcast(new_run_folder(task, name or header.builder or type(model).__name__, out=out))
    return path


def _place(source: Data | float | None) -> str | float | None:
    if isinstance(source, Dataset):
        return str(source.source)
    return str(Path(source).absolute()) if isinstance(source, str | Path) else source


def _record(config: dict[str, Any], train_set: Dataset, val_set: Dataset | None) -> dict[str, Any]:
    return {
        "otus": otus.__version__,
        "data": config["data"],
        "pictures": len(train_set),
        "validated_on": config["val"] or config["val_split"],
        "validation_pictures": None if val_set is None else len(val_set),
        "protocol": "coco",
        "settings": config,
    }


def _remarks(train_set: Dataset, val_set: Dataset | None) -> list[str]:
    """What a person should know before believing the figures."""
    assert train_set.objects is not None
    counts = torch.bincount(torch.from_numpy(train_set.objects.labels), minlength=len(train_set.categories))
    never = [name for name, count in zip(train_set.categories, counts.tolist(), strict=True) if not count]
    remarks = []
    if never:
        remarks.append(f"note: no object to learn from of {', '.join(never)}")
    if val_set is None:
        return [*remarks, "note: nothing is validated; --val takes a data set or a share such as 0.1"]
    shared = shared_pictures(train_set, val_set)
    if shared:
        what = "all" if len(shared) == len(val_set) else f"{len(shared)} of {len(val_set)}"
        remarks.append(f"warning: {what} validation pictures are learned from too, e.g. {shared[0]}: figures flatter")
    return remarks
