"""A training run from names: ``otus.train`` and ``otus train``."""

import dataclasses
import inspect
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

import otus
from otus.classification.classifier import ImageClassifier
from otus.data.checks.images import check_images
from otus.data.dataset import Dataset
from otus.data.image_writing import write_image
from otus.data.merging import remap_categories
from otus.data.splitting import fingerprint
from otus.data.transforms.augmentation import ColorJitter, Compose, HorizontalFlip, Transform
from otus.errors import DataError, UsageError
from otus.evaluation.runs import IMAGES
from otus.inference.predictor import choose_device
from otus.parts.backbones import freeze_norms
from otus.parts.precision import check_bfloat16
from otus.parts.preprocess import Preprocess
from otus.proposals.proposers import with_proposals
from otus.structures import Categories
from otus.training.budget import fit_to_budget, size_for_labels, validation_is_cheap
from otus.training.datasets import Data, data_warnings, open_datasets, trainable_model
from otus.training.devices import start_fabric
from otus.training.fine_tuning import find_weights, load_pretrained
from otus.training.loop import TrainResult, Validate, fit
from otus.training.lr_finder import find_learning_rate
from otus.training.progress import TrainProgress
from otus.training.resuming import check_unchanged
from otus.training.run_folder import RunFolder, new_run_folder
from otus.training.settings import TrainSettings, make_settings, with_default_lr
from otus.training.snapshots import draw_batch
from otus.training.state import score_name
from otus.training.train_loader import TrainLoader
from otus.training.validation import ClassificationValidator, Validator
from otus.zoo.checkpoint import CheckpointHeader
from otus.zoo.models import build_model, model_entry
from otus.zoo.weights import FoundWeights, weights_file, without_head

_SHOWN_LAYERS = 5
_ALL_LEARNS = {"freezing": {"norms": False, "level": 0}}
STANDARD_AUGMENTATION = Compose([HorizontalFlip(), ColorJitter(hue=0.0)])  # turning the hue costs as much as all else


@dataclass(frozen=True)
class TrainedModel:
    """What a run left: how it ended, and where its weights are."""

    result: TrainResult
    folder: Path
    best: Path
    last: Path

    def __repr__(self) -> str:
        return f"TrainedModel({self.result.ended}, best weights {str(self.best)!r})"


def train(
    model: str | nn.Module | None,
    data: Data | Sequence[Data],
    *,
    val: Data | float | None = None,
    weights: str | Path | None = None,
    settings: TrainSettings = TrainSettings(),  # noqa: B008, frozen
    find_rate: bool = False,
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
        A name of the zoo; None for the one that ``weights`` say; or a system put together by hand with ``categories``,
        ``losses`` and ``predict``.
    data
        One or several data sets, or their folders or files; categories are joined by name.
    val
        What to validate on: a data set, or a share of the training images to keep aside. Without it ``val_split`` of
        ``data``; without that the split ``val``, where ``data`` has just ``train`` and ``val`` and no ``split`` is named;
        else nothing is validated.
    weights
        What to start from: a file, ``packaged``, or a name of published weights; random without it.
    settings
        Options of the loop.
    find_rate
        Try learning rates on a copy first, and take the one at which the loss falls fastest.
    image_size
        Pixels of the images' longer side. Without it the model's own size or that of the file of weights; the model's
        is enlarged where half of the objects are small (:func:`~otus.training.budget.size_for_labels`).
    preprocess
        How images are prepared; needed for a system put together by hand.
    augment
        What is done to training images.
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
    before = None if resume is None else read_config(resume)
    goes_on = resume is not None and (Path(resume) / "weights" / "last.safetensors").is_file()  # else it had not begun
    sources = [data] if isinstance(data, str | Path | Dataset) else list(data)
    train_set, val_set = open_datasets(sources, val, format=format, split=split, val_split=val_split)
    if not len(train_set.categories):
        remedy = "label some objects, or name the categories in the data set's description"
        raise DataError("has neither objects nor names of categories to learn", file=train_set.source, remedy=remedy)
    found = None
    if weights is not None and not goes_on:
        found = find_weights(weights, model=model if isinstance(model, str) else None)
    name_of_model = found.builder if model is None and found is not None else model
    if before is None and isinstance(name_of_model, str):
        model, lines = trainable_model(name_of_model, train_set, boxes=settings.boxes)
        for line in lines:
            say.say(line)
    if found is not None and isinstance(model, str):
        found = without_head(found, model)
    system, header = _build(model, train_set.categories, found, before, seed=settings.seed)
    settings = with_default_lr(settings, header.builder)
    given = preprocess
    preprocess = _preprocess(given, header, found, image_size=image_size)
    if found is not None:
        _fine_tune(system, header, found, say)
    if settings.frozen_norms:
        freeze_norms(system)
    categories: Categories = system.categories  # type: ignore[assignment]
    train_set = remap_categories(train_set, categories)
    if val_set is not None:
        if val_set.objects is None and not isinstance(system, ImageClassifier):
            raise DataError("has no objects to validate by", file=val_set.source, remedy="choose another")
        val_set = remap_categories(val_set, categories)
    with say.counting("looking at the images") as count:
        checked = check_images([train_set] if val_set is None else [train_set, val_set], progress=count)
    images = dict(zip(("training", "validation"), checked, strict=False))
    with say.counting("proposals") as count:  # the first process finds what is missing, the others wait for it
        if fabric.is_global_zero:
            with_proposals(train_set, system, workers=1, report=count)
        fabric.barrier()
    train_set = with_proposals(train_set, system)
    own = preprocess
    keeps_size = weights is not None and weights_file(weights) is not None  # a file's is what somebody trained it at
    if before is None and image_size is None and given is None and not keeps_size:
        preprocess = size_for_labels(own, train_set)
    feed = TrainLoader(
        train_set, preprocess, settings, augment=augment, rank=fabric.global_rank, world_size=fabric.world_size
    )
    spent_s = 0.0
    # What answers for none of the categories yet has nothing to compare with.
    validates_start = val_set is not None and found is not None and _answers_for(found, header, categories)
    if settings.minutes and before is None:
        feed, image_s, spent_s = fit_to_budget(system, feed=feed, own=own, fabric=fabric)
        if val_set is not None:
            validates_start &= validation_is_cheap(image_s, images=len(val_set), minutes=settings.minutes)
    settings = dataclasses.replace(feed.settings, batch_size=feed.settings.images_per_batch)
    if feed.preprocess != own:
        longer = feed.preprocess.longer_side
        say.say(f"image size: {longer} pixels instead of {own.longer_side}, because half of the objects are small")
    elif preprocess != own:
        say.say(
            f"image size: {own.longer_side} pixels; half of the objects are small, but {settings.minutes:g} minutes buy "
            "too few epochs of larger images"
        )
    preprocess = feed.preprocess
    feed = dataclasses.replace(feed, settings=settings)
    if find_rate:
        rate = find_learning_rate(system, feed=feed, fabric=fabric).suggestion
        say.say(f"learning rate: {rate:.2g} makes the loss fall fastest")
        settings = dataclasses.replace(settings, learning_rate=fabric.broadcast(rate))
        feed = dataclasses.replace(feed, settings=settings)

    config = {
        "model": header.builder or type(system).__name__,
        "arguments": header.arguments,
        "data": [_place(source) for source in sources],
        "data_digest": fingerprint(train_set, sizes=False),
        "val": _place(val),
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
    config = json.loads(json.dumps(config))  # as it will be read again
    if before is not None:
        check_unchanged(before, config)
        config["command"] = before["command"]
        for line in _changes(Path(str(resume)), before, config, images):
            say.say(line)
    task = "detection" if header.builder is None else model_entry(header.builder).task
    path = Path(resume) if resume else None
    if path is None and fabric.is_global_zero:
        path = new_run_folder(task, name or config["model"], out=out)
    path = fabric.broadcast(path)
    assert path is not None
    training = _record(config, train_set, val_set) | {"image_digests": "".join(images["training"].values())}
    folder = RunFolder(path, dataclasses.replace(header, preprocess=preprocess.to_dict(), training=training))
    if fabric.is_global_zero:
        folder.write_json("config.json", config)
        folder.write_json(IMAGES, images)
    if fabric.is_global_zero and before is None:
        first = [feed.load(place) for place in next(feed.plan())]
        write_image(path / "batch.jpg", draw_batch(first, preprocess=preprocess, categories=categories))
    of_system: Any = getattr(system, "warnings", None)  # what a system of this kind cannot learn from these data
    for line in [*data_warnings(train_set, val_set), *(of_system(train_set) if of_system else ())]:
        say.say(line)
    say.say(f"{config['model']}: {len(train_set)} images to learn from, writing to {path}")
    validator: Validate | None = None
    if val_set is not None:
        if isinstance(system, ImageClassifier):
            validator = ClassificationValidator(val_set, preprocess, fabric, workers=settings.workers)
        else:
            image = path / "validation.jpg"
            validator = Validator(val_set, preprocess, fabric, workers=settings.workers, image=image)
    result = fit(
        system,
        feed=feed,
        fabric=fabric,
        validate=validator,
        folder=folder,
        resume=goes_on,
        progress=say,
        validation_images=0 if val_set is None else len(val_set),
        spent_s=spent_s,
        validate_start=validates_start,
    )
    start = next((row for row in result.history if row["epoch"] == 0), None)
    best = result.best_score or 0.0
    if start is not None and result.ended != "interrupted" and best < start["score"]:
        say.say(
            f"warning: {score_name(start)} was {start['score']:.3f} before training and is {best:.3f} at best after it: the "
            "weights to start from are the better ones; give more epochs or minutes, or a lower --learning-rate"
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
        If they are not, or the data are not, and the message lists what differs; or if its precision does not run here.
    """
    before = read_config(folder)
    if before["precision"] == "bf16-mixed":
        instead = "a new run with --weights of this one and --precision 32-true"
        check_bfloat16(choose_device(before["device"]), asked_for=f"{folder} in {before['precision']}", instead=instead)
    return train(**_started_with(before, arguments or {}, settings or {}), resume=folder)


def repeat_run(
    config: str | Path,
    *,
    arguments: dict[str, Any] | None = None,
    settings: dict[str, Any] | None = None,
    **options: Any,
) -> TrainedModel:
    """Start a new run as another one of a named model was started, but for what is named anew.

    Parameters
    ----------
    config
        The other run's ``config.json``, or its folder.
    arguments, settings
        Of :func:`train` and of :class:`TrainSettings`, in the place of the other run's.
    options
        Of :func:`train` that belong to this run: ``out``, ``name``, ``find_rate``, ``quiet``.

    Raises
    ------
    UsageError
        If there is no such run.
    """
    settings = settings or {}
    if "epochs" in settings:
        settings = {"minutes": None, **settings}
    again = _started_with(read_config(config), arguments or {}, settings)
    if again.keys() & {"model", "weights"} & (arguments or {}).keys():
        del again["preprocess"]  # was the other model's
    return train(**again, **options)


def _started_with(before: dict[str, Any], arguments: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """Arguments of :func:`train`: those that a run was started with, and in their place those that are named anew."""
    names = ("model", "data", "val", "weights", "image_size", "format", "split", "val_split")
    own = {field.name: before[field.name] for field in dataclasses.fields(TrainSettings)} | settings
    preprocess = Preprocess.from_dict(before["preprocess"])
    again = {"preprocess": preprocess, **{name: before[name] for name in names}, **arguments}
    for option, sources in (("data", again["data"]), ("val", [again["val"]])):
        for source in [sources] if isinstance(sources, str | Path) else sources:
            if isinstance(source, str) and not Path(source).exists():
                raise UsageError(f"{option}: the run's data are not at {source} any more; say where by --{option} PATH")
    return {**again, "settings": make_settings(own)}


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
        return {**dataclasses.asdict(TrainSettings()), **json.loads(file.read_text())}
    except (ValueError, TypeError):
        raise UsageError(f"resume: {file} is damaged, start a new run with --weights of this one") from None


def _build(
    model: str | nn.Module | None,
    categories: Categories,
    found: FoundWeights | None,
    before: Mapping[str, Any] | None,
    *,
    seed: int,
) -> tuple[nn.Module, CheckpointHeader]:
    """The system with random weights, and what makes its tensors a model again."""
    if isinstance(model, nn.Module):
        return model, CheckpointHeader(categories=model.categories)  # type: ignore[arg-type]
    builder = model or (None if found is None else found.builder)
    if builder is None:
        raise UsageError("model: expected a name (see otus models), or weights that say theirs")
    if before is not None:
        arguments: dict[str, Any] = before["arguments"]
    else:
        # The eps of norms belongs to the weights, slots of classes to other categories; what knows nothing yet must learn.
        wanted = _ALL_LEARNS if found is None else found.arguments
        known = inspect.signature(model_entry(builder).builder).parameters.keys() - {"class_indices"}
        arguments = {name: value for name, value in wanted.items() if name in known}
    torch.manual_seed(seed)
    system = build_model(builder, categories, arguments)
    return system, CheckpointHeader(builder=builder, arguments=arguments, categories=categories)


def _preprocess(
    given: Preprocess | None, header: CheckpointHeader, found: FoundWeights | None, *, image_size: int | None
) -> Preprocess:
    """How images are prepared: as said, else as the weights want it, else as the model does.

    Weights of another model say what its backbone is used to, mean and deviation, and not of which size images are.
    """
    learned, source = (None, None) if found is None else (found.preprocess, found.builder)
    own = None if header.builder is None else model_entry(header.builder).preprocess
    if learned is not None and own is not None and source not in (None, header.builder):
        learned = dataclasses.replace(own, mean=learned.mean, std=learned.std)
    preprocess = given or learned or own
    if preprocess is None:
        raise UsageError("preprocess: a system put together by hand needs one, e.g. Preprocess(fixed_hw=(224, 224))")
    if image_size is None:
        return preprocess
    if image_size < 1:
        raise UsageError(f"image_size: expected pixels, got {image_size}")
    if preprocess.fixed_hw is not None:
        return dataclasses.replace(preprocess, fixed_hw=(image_size, image_size))
    return dataclasses.replace(preprocess, shorter_side=image_size, longer_side=image_size)


def _answers_for(found: FoundWeights, header: CheckpointHeader, categories: Categories) -> bool:
    """Whether weights to start from are of the same model, and know one of the categories at least."""
    known = () if found.categories is None else found.categories.names
    return found.builder == header.builder and not set(known).isdisjoint(categories.names)


def _fine_tune(system: nn.Module, header: CheckpointHeader, found: FoundWeights, say: TrainProgress) -> None:
    def build(categories: Categories) -> nn.Module:
        assert header.builder is not None
        return build_model(header.builder, categories, header.arguments)

    left = load_pretrained(system, found, build=None if header.builder is None else build)
    say.say(f"starting from {found.source}, {_loaded(left)}")


def _loaded(left: Sequence[str]) -> str:
    """What of the weights was taken, in a few words: whole layers where tensors were left.

    ``left`` are the lines of :func:`~otus.training.fine_tuning.load_pretrained`: a kind, the tensor's name, and its shape.
    """
    layers: dict[str, dict[str, None]] = {}
    for line in left:
        kind, rest = line.split(": ", 1)
        layers.setdefault(kind, {})[rest.split()[0].rstrip(":,").rsplit(".", 1)[0]] = None
    if not layers:
        return "all of it"
    told = []
    for kind, names in layers.items():
        shown, hidden = list(names)[:_SHOWN_LAYERS], len(names) - _SHOWN_LAYERS
        told.append(f"{kind} {', '.join(shown)}" + (f" and {hidden} more" if hidden > 0 else ""))
    return "but for layers " + "; ".join(told)


def _changes(
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


def _place(source: Data | float | None) -> str | float | None:
    if isinstance(source, Dataset):
        return str(source.source)
    return str(Path(source).absolute()) if isinstance(source, str | Path) else source


def _record(config: dict[str, Any], train_set: Dataset, val_set: Dataset | None) -> dict[str, Any]:
    return {
        "otus": otus.__version__,
        "command": config["command"],
        "data": config["data"],
        "images": len(train_set),
        "validated_on": config["val"] or config["val_split"],
        "validation_images": None if val_set is None else len(val_set),
        "protocol": "coco",
        "settings": config,
    }
