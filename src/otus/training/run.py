"""Train a model by name on data sets by path: ``otus.train`` and ``otus train``."""

import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from otus.data.checks.images import check_images
from otus.data.dataset import Dataset
from otus.data.image_writing import write_image
from otus.data.splitting import fingerprint
from otus.data.transforms.augmentation import ColorJitter, Compose, HorizontalFlip, Transform
from otus.errors import DataError, UsageError
from otus.evaluation.runs import CONFIG, IMAGES, run_folder_of
from otus.inference.devices import choose_device
from otus.parts.backbones import freeze_norms
from otus.parts.precision import check_bfloat16
from otus.parts.preprocess import Preprocess
from otus.parts.system import BaseSystem
from otus.parts.tasks import PROMPTABLE
from otus.proposals.proposers import with_proposals
from otus.training.budget import fit_to_budget, size_for_labels, validation_is_cheap
from otus.training.building import (
    build_system,
    check_padded_size,
    choose_preprocess,
    fine_tune,
    for_image_size,
    freeze_encoder,
    has_common_categories,
    task_of,
)
from otus.training.datasets import Data, check_labels, data_warnings, default_splits, open_datasets, trainable_model
from otus.training.devices import start_fabric
from otus.training.fine_tuning import find_weights
from otus.training.loop import TrainResult, Validate, fit
from otus.training.lr_finder import find_learning_rate
from otus.training.progress import TrainProgress
from otus.training.resuming import check_unchanged
from otus.training.run_config import read_config, resume_notes, source_path, train_arguments, training_record
from otus.training.run_folder import RunFolder, new_run_folder
from otus.training.semantic_loss import set_criterion
from otus.training.settings import TrainSettings, with_default_lr
from otus.training.snapshots import draw_batch
from otus.training.state import score_name
from otus.training.train_loader import TrainLoader
from otus.training.validation import Validator
from otus.zoo.weights import drop_head, weights_file

# Without hue, which would take as long as all other changes together.
STANDARD_AUGMENTATION = Compose([HorizontalFlip(), ColorJitter(hue=0.0)])


@dataclass(frozen=True)
class TrainedModel:
    """The outcome of a training run.

    Parameters
    ----------
    result
        History, best score, and how the run ended.
    folder
        Folder of the run.
    best, last
        Files of the weights of the best validation (the last weights if there was none) and after the last step.
    rank
        Number of this process, from 0, if several train.
    """

    result: TrainResult
    folder: Path
    best: Path
    last: Path
    rank: int = 0

    def __repr__(self) -> str:
        return f"TrainedModel({self.result.ended}, best weights {str(self.best)!r})"


def train(
    model: str | BaseSystem[Any, Any] | None,
    data: Data | Sequence[Data],
    *,
    val: Data | float | None = None,
    weights: str | Path | None = None,
    settings: TrainSettings = TrainSettings(),
    find_rate: bool = False,
    arguments: Mapping[str, Any] | None = None,
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
    """Train a model on images with labels.

    Parameters
    ----------
    model
        Name of a model in the zoo, or a system assembled by hand (default: None, the model recorded in ``weights``).
    data
        One or several data sets, or paths of their folders or files; categories are merged by name.
    val
        Validation data: a data set, or the fraction of the training images to hold out. Default: ``val_split`` of
        ``data`` if given; else the split ``val``, if ``data`` has only ``train`` and ``val`` and no ``split`` is given;
        else no validation.
    weights
        Initial weights: a file, ``packaged``, or the name of published weights (default: random initialisation).
    settings
        Options of the training loop.
    find_rate
        Run a learning-rate range test on a copy of the model first, and use the rate at which the loss falls fastest.
    arguments
        Arguments of the model's builder by name, e.g. ``{"upsampling": "nearest"}`` (default: those of the weights, or the
        model's own).
    image_size
        Longer side of the images in pixels. Default: the size recorded in the weights file, else the model's own, which
        is enlarged if half of the objects are small (:func:`~otus.training.budget.size_for_labels`).
    preprocess
        Resizing and normalisation of the images; required for a system assembled by hand.
    augment
        Augmentation of the training images (default: horizontal flips and colour jitter); None for no augmentation.
    format, split, val_split
        Format and splits to read, if the folder of the data has several.
    out, name
        The run's folder is ``out/task/name``; see :func:`~otus.training.run_folder.new_run_folder`.
    resume
        Folder of an interrupted run to continue; all other arguments must be unchanged.
    quiet
        Write no progress to stderr.

    Raises
    ------
    UsageError
        If a name or setting is invalid, or a run is resumed with other arguments.
    DataError
        If the data are faulty, or have no labels to train on.
    TrainingError
        If a loss is not finite.

    Examples
    --------
    >>> run = otus.train("mask_rcnn_resnet50_fpn", "photos", val=0.2)  # doctest: +SKIP
    >>> otus.load(run.best).predict("photo.jpg")  # doctest: +SKIP
    """
    if name is not None and (name != Path(name).name or name == ".."):
        raise UsageError(f"name: expected the name of a folder, got {name!r}; out chooses where it is")
    fabric = start_fabric(settings)
    progress = TrainProgress(quiet=quiet or not fabric.is_global_zero)
    resume = None if resume is None else run_folder_of(resume)
    resumed_config = None if resume is None else read_config(resume, option="resume")
    # A run that was interrupted very early has a configuration but no checkpoint.
    has_checkpoint = resume is not None and (resume / "weights" / "last.safetensors").is_file()
    sources = [data] if isinstance(data, str | Path | Dataset) else list(data)
    if val is None and split is None and val_split is None:
        split, val_split = default_splits(sources, format, progress.log)
    train_set, val_set = open_datasets(sources, val, format=format, split=split, val_split=val_split)
    pretrained = None
    if weights is not None and not has_checkpoint:
        pretrained = find_weights(weights, model=model if isinstance(model, str) else None)
    if model is None and pretrained is not None:
        model = pretrained.builder
    task = task_of(model)
    if not len(task.categories(train_set)):
        remedy = "label some objects, or name the categories in the data set's description"
        raise DataError("has neither objects nor names of categories to learn", file=train_set.source, remedy=remedy)
    check_labels(train_set, task, "to train on")
    if resumed_config is None and isinstance(model, str):
        model, lines = trainable_model(model, train_set, boxes=settings.boxes)
        for line in lines:
            progress.log(line)
    if pretrained is not None and isinstance(model, str):
        pretrained = drop_head(pretrained, model)
    if task is PROMPTABLE and isinstance(model, str) and image_size is not None:
        arguments = for_image_size(model, image_size, arguments)
    system, header = build_system(
        model,
        task.categories(train_set),
        pretrained,
        resumed_config,
        seed=settings.seed,
        builder_arguments=arguments,
    )
    task = system.task  # not that of the named model if its mask or keypoint head was dropped
    settings = with_default_lr(settings, header.builder)
    given_preprocess = preprocess
    preprocess = choose_preprocess(given_preprocess, header, pretrained, image_size=image_size)
    if task is PROMPTABLE:
        check_padded_size(system, preprocess, settings)
    if pretrained is not None:
        fine_tune(system, header, pretrained, progress)
    if settings.frozen_norms:
        freeze_norms(system)
    if settings.frozen_encoder:
        freeze_encoder(system)
        if isinstance(model, str) and weights is None and resumed_config is None:
            raise UsageError("frozen_encoder: random weights would stay as they are; give weights, e.g. packaged")
        augment = None
    categories = system.categories
    check_labels(train_set, task, "to train on")
    train_set = task.remap(train_set, categories)
    if val_set is not None:
        check_labels(val_set, task, "to validate on")
        val_set = task.remap(val_set, categories)
    set_criterion(system, settings, train_set, progress)
    with progress.counting("checking images") as count:
        digests = check_images([train_set] if val_set is None else [train_set, val_set], progress=count)
    images = dict(zip(("training", "validation"), digests, strict=False))
    with progress.counting("proposals") as count:  # the first process computes the missing ones, the others wait
        if fabric.is_global_zero:
            with_proposals(train_set, system, workers=1, report=count)
        fabric.barrier()
    train_set = with_proposals(train_set, system)
    default_preprocess = preprocess
    keeps_size = weights is not None and weights_file(weights) is not None  # keep the image size of its training
    keeps_size |= task is PROMPTABLE
    if resumed_config is None and image_size is None and given_preprocess is None and not keeps_size:
        preprocess = size_for_labels(default_preprocess, train_set)
    loader = TrainLoader(
        train_set, preprocess, settings, augment=augment, rank=fabric.global_rank, world_size=fabric.world_size
    )
    spent_s = 0.0
    # The initial score is informative only if the weights predict some of the categories.
    validate_start = (
        val_set is not None and pretrained is not None and has_common_categories(pretrained, header, categories)
    )
    if settings.minutes and resumed_config is None:
        loader, image_s, spent_s = fit_to_budget(
            system, loader=loader, default_preprocess=default_preprocess, fabric=fabric
        )
        if val_set is not None:
            validate_start &= validation_is_cheap(image_s, images=len(val_set), minutes=settings.minutes)
    settings = dataclasses.replace(loader.settings, batch_size=loader.settings.images_per_batch)
    default_size = default_preprocess.longer_side
    if loader.preprocess != default_preprocess:
        size = loader.preprocess.longer_side
        progress.log(f"image size: {size} pixels instead of {default_size}, because half of the objects are small")
    elif preprocess != default_preprocess:
        progress.log(
            f"image size: {default_size} pixels; half of the objects are small, but {settings.minutes:g} minutes allow "
            "too few epochs of larger images"
        )
    preprocess = loader.preprocess
    loader = dataclasses.replace(loader, settings=settings)
    if find_rate:
        rate = find_learning_rate(system, loader=loader, fabric=fabric).suggestion
        progress.log(f"learning rate: {rate:.2g}, at which the loss falls fastest")
        settings = dataclasses.replace(settings, learning_rate=fabric.broadcast(rate))
        loader = dataclasses.replace(loader, settings=settings)

    config = {
        "model": header.builder or type(system).__name__,
        "arguments": header.arguments,
        "data": [source_path(source) for source in sources],
        "data_digest": fingerprint(train_set, sizes=False),
        "val": source_path(val),
        "val_digest": None if val_set is None else fingerprint(val_set, sizes=False),
        "weights": None if weights is None else str(Path(weights).absolute() if Path(weights).exists() else weights),
        "image_size": image_size,
        "preprocess": preprocess.to_dict(),
        "augment": repr(augment),
        "format": format,
        "split": split,
        "val_split": val_split,
        "command": sys.argv,
        **dataclasses.asdict(settings),
    }
    config = json.loads(json.dumps(config))  # tuples become lists, as in the configuration that is read when resuming
    if resumed_config is not None:
        check_unchanged(resumed_config, config)
        config["command"] = resumed_config["command"]
        for line in resume_notes(Path(str(resume)), resumed_config, config, images):
            progress.log(line)
    path = resume
    if path is None and fabric.is_global_zero:
        path = new_run_folder(task.name, name or config["model"], out=out)
    path = fabric.broadcast(path)
    assert path is not None
    training = training_record(config, train_set, val_set, task) | {
        "image_digests": "".join(images["training"].values())
    }
    folder = RunFolder(path, dataclasses.replace(header, preprocess=preprocess.to_dict(), training=training))
    if fabric.is_global_zero:
        folder.write_json(CONFIG, config)
        folder.write_json(IMAGES, images)
    if fabric.is_global_zero and resumed_config is None:
        batch = [loader.load(index) for index in next(loader.plan())]
        write_image(path / "batch.jpg", draw_batch(batch, preprocess=preprocess, categories=categories, task=task))
    for line in [*data_warnings(train_set, val_set), *system.warnings(train_set)]:
        progress.log(line)
    progress.log(f"{config['model']}: training on {len(train_set)} images, writing to {path}")
    validator: Validate | None = None
    if val_set is not None:
        image = path / "validation.jpg"
        validator = Validator(val_set, preprocess, fabric, workers=settings.workers, image=image)
    result = fit(
        system,
        loader=loader,
        fabric=fabric,
        validate=validator,
        folder=folder,
        resume=has_checkpoint,
        progress=progress,
        validation_images=0 if val_set is None else len(val_set),
        spent_s=spent_s,
        validate_start=validate_start,
    )
    initial = next((row for row in result.history if row["epoch"] == 0), None)
    best_score = result.best_score or 0.0
    if initial is not None and result.ended != "interrupted" and best_score < initial["score"]:
        progress.log(
            f"warning: {score_name(initial)} was {initial['score']:.3f} before training and is at most {best_score:.3f} "
            "after it: the initial weights are better; train for more epochs or minutes, or with a lower --learning-rate"
        )
    best = folder.best if folder.best.exists() else folder.last
    return TrainedModel(result, path, best, folder.last, fabric.global_rank)


def resume_run(
    folder: str | Path, *, arguments: dict[str, Any] | None = None, settings: dict[str, Any] | None = None
) -> TrainedModel:
    """Resume a run of a named model; the final weights equal those of an uninterrupted run.

    Parameters
    ----------
    folder
        Folder of the run, or a file in it: its configuration or weights.
    arguments, settings
        Arguments of :func:`train` and fields of :class:`TrainSettings` that are given again; they must be unchanged.

    Raises
    ------
    UsageError
        If they or the data have changed (the message lists the differences), or this machine does not support the run's
        precision.
    """
    config = read_config(folder, option="resume")
    if config["precision"] == "bf16-mixed":
        instead = "a new run with --weights of this one and --precision 32-true"
        check_bfloat16(choose_device(config["device"]), asked_for=f"{folder} in {config['precision']}", instead=instead)
    return train(**train_arguments(config, arguments or {}, settings or {}), resume=folder)


def repeat_run(
    config: str | Path,
    *,
    arguments: dict[str, Any] | None = None,
    settings: dict[str, Any] | None = None,
    **options: Any,
) -> TrainedModel:
    """Start a new run with the configuration of an earlier run of a named model, with some values replaced.

    Parameters
    ----------
    config
        ``config.json`` of the earlier run, or its folder.
    arguments, settings
        Arguments of :func:`train` and fields of :class:`TrainSettings` that replace those of the earlier run.
    options
        Arguments of :func:`train` that are not inherited: ``out``, ``name``, ``find_rate``, ``quiet``.

    Raises
    ------
    UsageError
        If there is no such run.
    """
    settings = settings or {}
    if "epochs" in settings:
        settings = {"minutes": None, **settings}
    repeated = train_arguments(read_config(config, option="config"), arguments or {}, settings)
    if {"model", "weights"} & (arguments or {}).keys():
        del repeated["preprocess"], repeated["arguments"]  # those of the earlier run's model
    return train(**repeated, **options)
