"""Compare models in a table: trained for the same time or loaded, evaluated on the same images, timed on one machine.

Finished rows are cached on disk under a digest of their inputs, and not computed again.
"""

import ctypes
import dataclasses
import gc
import hashlib
import json
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from otus._files import staged_file
from otus.data.checks.images import count_training_images
from otus.data.dataset import Dataset
from otus.data.formats.coco_results import write_results
from otus.data.formats.paths import flat_names
from otus.data.image_writing import write_image
from otus.data.open import open_dataset
from otus.data.sample import Sample
from otus.data.splitting import fingerprint
from otus.errors import MissingExtraError, UsageError
from otus.evaluation.on_dataset import predict_dataset
from otus.evaluation.protocols import Options, protocol_of
from otus.inference.devices import choose_device, choose_precision
from otus.inference.loading import load
from otus.inference.predictor import SCORE_THRESHOLD, Predictor
from otus.parts.tasks import Task
from otus.reports.comparison import Comparison, Row, distinct_labels, file_stem, jsonable, read_row
from otus.structures import Objects
from otus.training.datasets import default_splits, open_datasets, trainable_model
from otus.training.imagenet import imagenet_weights_file
from otus.training.run import resume_run, train
from otus.training.run_config import read_config
from otus.training.run_folder import environment
from otus.training.settings import TrainSettings, with_default_lr
from otus.zoo.models import MODELS, model_entry
from otus.zoo.weights import read_weights, read_weights_file, weights_file

TRAINING = TrainSettings(batch_size=4)
"""Default training settings."""
VAL_FRACTION = 0.2
"""Default fraction of the images that is held out for evaluation."""
_TIMED_IMAGES = 8
_SHOWN_IMAGES = 4
_AFTER_NETWORK = frozenset({"postprocess", "undo"})
"""Stages that count as ``after`` the network."""
Log = Callable[[str], None]
"""Called with a line of text that describes the current stage."""


@dataclass(frozen=True)
class Contender:
    """A model to compare.

    Parameters
    ----------
    model
        Name of the model in the zoo.
    weights
        File of weights (default: the model is trained, or its packaged or published weights are loaded).
    label
        Name of the row in the table (default: the model's name).
    arguments
        Arguments of the model's builder, if it is trained (default: the model's own).
    settings
        Training settings (default: those of the comparison).
    """

    model: str
    weights: Path | None = None
    label: str = ""
    arguments: Mapping[str, Any] = field(default_factory=dict, hash=False)
    settings: TrainSettings | None = None

    @classmethod
    def parse(cls, text: str) -> "Contender":
        """Parse ``NAME``, ``FILE``, ``LABEL=FILE`` or ``NAME=FILE``.

        ``NAME`` is a model of the zoo, ``FILE`` a checkpoint or the folder of a training run (its best weights). A
        checkpoint that does not record its model needs ``NAME``.

        Raises
        ------
        UsageError
            If the name or file does not exist.
        """
        name, _, file = text.partition("=")
        if file:
            weights = weights_file(file)
            if weights is None:
                raise UsageError(f"models: {text}: there is no file {file}")
            builder = read_weights_file(weights).builder
            if builder is None:
                model_entry(name)
                return cls(name, weights)
            if name in MODELS and name != builder:
                raise UsageError(f"models: {text}: these are weights of {builder}, expected weights of {name}")
            return cls(builder, weights, label="" if name == builder else name)
        weights = weights_file(text)
        if weights is not None:
            builder = read_weights_file(weights).builder
            if builder is None:
                raise UsageError(f"models: {text} does not record its model: write NAME={text}")
            return cls(builder, weights)
        if "/" in text or Path(text).suffix:
            raise UsageError(f"models: there is no file {text}")
        model_entry(text)
        return cls(text)


def compare(
    models: Sequence[str | Contender],
    data: str | Path,
    *,
    val: str | Path | float | None = None,
    minutes: float | None = None,
    settings: TrainSettings = TRAINING,
    image_size: int | None = None,
    limit: int | None = None,
    precision: str = "auto",
    format: str | None = None,
    split: str | None = None,
    val_split: str | None = None,
    out: str | Path = "otus-compare",
    log: Log = lambda text: None,
    progress: Callable[[int, int], None] | None = None,
) -> Comparison:
    """Train or load models, evaluate them on the same images, and write the table.

    Parameters
    ----------
    models
        See :meth:`Contender.parse`. A name without a file is trained if ``minutes`` or its own settings are given, else
        its published or packaged weights are loaded.
    data
        Training data; also the evaluation data if no model is trained and neither ``val`` nor ``val_split`` is given.
    val, val_split
        Evaluation data: ``val`` is another path or the fraction of ``data`` to hold out, ``val_split`` the name of a
        split. Default, if a model is trained: the split ``val`` if ``data`` has the splits ``train`` and ``val``, else a
        fifth of ``data``. The last weights of a training are evaluated, so these images do not select a checkpoint.
    minutes
        Training time of each model. Backbones start from ImageNet weights if these are available.
    settings
        Training settings.
    image_size
        Longer side of the training images in pixels (default: the model's own).
    limit
        Maximum number of evaluated images, evenly spaced in the data set (default: all).
    precision
        Precision of prediction, see :class:`~otus.inference.predictor.Predictor`.
    out
        Folder of the comparison; results that it already has are not computed again. Predicted objects of each model are
        written to ``predictions`` as COCO results, for ``otus compare --predictions`` and ``otus explain errors``.
    log
        Called with a description of each stage.
    progress
        Called with the numbers of predicted and of all images.

    Raises
    ------
    UsageError
        If a model has neither weights nor training time, models have different tasks, or the data lack the labels to
        evaluate with.
    KeyboardInterrupt
        If a training is interrupted; the same call resumes it.
    """
    if minutes is not None and not minutes > 0:
        raise UsageError(f"minutes: expected a number of minutes, more than 0, got {minutes:g}")
    if limit is not None and limit < 1:
        raise UsageError(f"limit: expected at least one image, got {limit}")
    device = choose_device(settings.device)
    choose_precision(precision, device)  # fail before anything is trained
    contenders = [model if isinstance(model, Contender) else Contender.parse(model) for model in models if model]
    if not contenders:
        raise UsageError("models: expected at least one name or file of weights")
    task = model_entry(contenders[0].model).task
    for contender in contenders[1:]:
        other_task = model_entry(contender.model).task
        if other_task.protocol != task.protocol:
            raise UsageError(
                f"models: expected models of the same task, but {contenders[0].model} predicts {task.predicts}, "
                f"and {contender.model} {other_task.predicts}"
            )
    to_train = [
        contender
        for contender in contenders
        if contender.weights is None and (minutes is not None or contender.settings is not None)
    ]
    if to_train and val is None and val_split is None and split is None:
        split, val_split = default_splits([data], format, log)
    if to_train and val is None and val_split is None:
        val = VAL_FRACTION
        log(f"holding out {val:g} of the images for evaluation; to change this, give --val or --val-split")
    train_set, val_set, full_set = _open_data(
        data, val, format=format, split=split, val_split=val_split, needs_training=bool(to_train)
    )
    if train_set is not None:  # replace models with heads that the data have no labels for
        variants = {
            contender.model: trainable_model(contender.model, train_set, boxes=settings.boxes) for contender in to_train
        }
        for line in dict.fromkeys(line for _, lines in variants.values() for line in lines):
            log(line)
        replaced = {
            contender: dataclasses.replace(contender, model=variants[contender.model][0]) for contender in to_train
        }
        contenders = [replaced.get(contender, contender) for contender in contenders]
        to_train = list(replaced.values())
    if not protocol_of(task.protocol).labels.in_dataset(val_set) or not len(val_set):
        raise UsageError(f"{full_set.source}: has no images with {task.labels.what} to evaluate on")
    if limit is not None and limit < len(val_set):
        val_set = val_set.select(np.linspace(0, len(val_set) - 1, limit).round().astype(int))
    index_of = {file: index for index, file in enumerate(full_set.images.files)}
    full_index = np.array([index_of[file] for file in val_set.images.files], dtype=int)
    folder = Path(out)
    common = {
        "device": str(device),
        "precision": precision,
        "judged_on": fingerprint(val_set),
        "learned": None if train_set is None else fingerprint(train_set),
    }
    training = {"data": data, "format": format, "split": split, "val": val if isinstance(val, float) else None}
    training |= {} if image_size is None else {"image_size": image_size}
    rows = []
    for contender in contenders:
        model, label = contender.model, contender.label
        train_settings = None
        if contender in to_train:
            train_settings = contender.settings or dataclasses.replace(settings, minutes=minutes)
            train_settings = with_default_lr(train_settings, model)
        weights = contender.weights
        if weights is None and train_settings is None:
            weights = read_weights(None, model=model).source
        key: dict[str, Any] = {
            "model": model,
            "weights": _file_key(weights),
            "settings": train_settings and dataclasses.asdict(train_settings),
            **common,
        }
        if train_settings is not None:
            key |= {"arguments": dict(contender.arguments), "image_size": image_size}
        row_file = folder / "rows" / f"{model}-{_digest(key)}.json"
        if row_file.is_file():
            rows.append(dataclasses.replace(read_row(row_file), label=label))
            log(f"{label or model}: already done ({row_file})")
            continue
        start = None
        if train_settings is not None and train_set is not None:
            minutes_or_epochs = (
                f"{train_settings.epochs} epochs"
                if train_settings.minutes is None
                else f"{train_settings.minutes:g} minutes"
            )
            log(f"{label or model}: training for {minutes_or_epochs}")
            weights, start = _train(contender, train_set, train_settings, training, folder, name=row_file.stem, log=log)
        assert weights is not None
        training_record = read_weights_file(weights, model=model).training
        seen_in_training = count_training_images(training_record, val_set)
        if seen_in_training:
            log(
                f"{model}: it was trained on {seen_in_training} of the {len(val_set)} evaluated images, so its figures "
                "are too high"
            )
        predictor = load(model, weights=weights, device=settings.device, precision=precision)
        log(f"{model}: predicting {len(val_set)} images")
        row, predictions = _evaluate(predictor, val_set, folder, weights=str(weights), progress=progress)
        if isinstance(predictions, Objects):
            predictions = dataclasses.replace(predictions, image_index=full_index[predictions.image_index])
            results_file = folder / "predictions" / f"{row_file.stem}.json"
            results_file.parent.mkdir(parents=True, exist_ok=True)
            write_results(full_set, predictions, results_file)
        row = dataclasses.replace(row, **_training_columns(training_record, start=start))
        with staged_file(row_file) as stage:
            stage.write_text(json.dumps(jsonable({"key": key, "row": asdict(row)}), indent=2, default=str) + "\n")
        rows.append(dataclasses.replace(row, label=label))
    options = {**common, "minutes": minutes, "settings": dataclasses.asdict(settings)}
    record = {**environment(), "settings": options}
    files, rows = val_set.images.files, distinct_labels(rows)
    comparison = Comparison(str(full_set.source), files, rows, folder, record, task, dataset=val_set)
    comparison.write()
    return comparison


def _open_data(
    data: str | Path,
    val: str | Path | float | None,
    *,
    format: str | None,
    split: str | None,
    val_split: str | None,
    needs_training: bool,
) -> tuple[Dataset | None, Dataset, Dataset]:
    """Return the training set (None if not needed), the validation set, and the full data set that contains the latter."""
    if isinstance(val, float):  # the same images that training holds out
        train_set, val_set = open_datasets([data], val, format=format, split=split, val_split=None)
        assert val_set is not None
        return train_set, val_set, open_dataset(data, format=format, split=split)
    has_val = val is not None or val_split is not None
    val_set = open_dataset(data if val is None else val, format=format, split=val_split if has_val else split)
    return open_dataset(data, format=format, split=split) if needs_training else None, val_set, val_set


def _train(
    contender: Contender,
    train_set: Dataset,
    settings: TrainSettings,
    training: dict[str, Any],
    folder: Path,
    *,
    name: str,
    log: Log,
) -> tuple[Path, str]:
    """Start or resume a run in the folder; return its last weights, and what it started from (ImageNet or random)."""
    model, arguments = contender.model, contender.arguments
    run = folder / "runs" / model_entry(model).task.name / name
    if (run / "config.json").is_file():
        trained = resume_run(run)
    else:
        try:
            initial_weights = imagenet_weights_file(
                model,
                model_entry(model).task.categories(train_set),
                folder / "start" / f"{name}.safetensors",
                seed=settings.seed,
                arguments=arguments,
            )
        except MissingExtraError as error:
            initial_weights = None
            log(f"{model}: starts from random weights ({error})")
        options = {**training, "arguments": arguments, "weights": initial_weights, "settings": settings}
        trained = train(model, **options, out=folder / "runs", name=name)
    if trained.result.ended == "interrupted":
        raise KeyboardInterrupt
    return trained.last, "random" if read_config(run, option="run")["weights"] is None else "ImageNet"


def _training_columns(record: Mapping[str, Any], *, start: str | None) -> dict[str, Any]:
    """Return ``start``, ``minutes`` and ``epochs`` of a row from the training record of the weights."""
    if not {"settings", "steps", "hours", "images"} <= record.keys():
        return {}
    settings = record["settings"]
    recorded_start = Path(settings["weights"]).name if settings["weights"] else "random"
    epochs = record["steps"] * settings["batch_size"] * settings["accumulate"] / record["images"]
    return {"start": start or recorded_start, "minutes": record["hours"] * 60, "epochs": epochs}


def _evaluate(
    predictor: Predictor,
    dataset: Dataset,
    folder: Path,
    *,
    weights: str,
    progress: Callable[[int, int], None] | None,
) -> tuple[Row, Any]:
    """Return the row of the table, and the predictions as the task's protocol takes them."""

    def count(done: int) -> None:
        if progress is not None:
            progress(done, len(dataset))

    seconds, memory_mb = time_prediction(predictor, dataset)
    task, protocol = predictor.task, protocol_of(predictor.task.protocol)
    results = predict_dataset(predictor.pipeline, dataset, progress=count)
    predictions = protocol.from_results(results, dataset)
    evaluated = protocol.evaluate(dataset, predictions, Options())
    figures = {
        f"{kind}/{name}": float(v) for kind, result in evaluated.results.items() for name, v in result.figures.items()
    }
    _draw_predictions(dataset, results, folder / "images", task, prefix=file_stem(predictor.name, weights))
    row = Row(
        model=predictor.name,
        weights=weights,
        start=None,
        figures={name: figures[figure] for name, (figure, _) in task.comparison_metrics.items() if figure in figures},
        seconds=seconds,
        parameters=sum(parameter.numel() for parameter in predictor.system.parameters()),
        memory_mb=memory_mb,
    )
    return row, predictions


def time_prediction(
    predictor: Predictor, dataset: Dataset, *, images: int = _TIMED_IMAGES
) -> tuple[dict[str, float], float | None]:
    """Measure median seconds per image by part, at batch size 1 after one warm-up image, and peak memory in MB.

    ``images`` images of the data set are timed, evenly spaced. Proposals are computed during the measurement, even if the
    data set has precomputed ones.
    """
    indices = np.unique(np.linspace(0, len(dataset) - 1, min(images, len(dataset))).round().astype(int)).tolist()
    timings: list[dict[str, float]] = []
    pipeline = predictor.pipeline
    with peak_memory() as used_mb:
        for index in (indices[0], *indices):
            sample = pipeline.preprocess.prepare(Sample(dataset.image(index), dataset.images.files[index]))
            timings.append(_seconds_by_part(pipeline.stages(sample).milliseconds))
    medians = {part: statistics.median(timing[part] for timing in timings[1:]) for part in timings[0]}
    return medians, used_mb()


def _seconds_by_part(milliseconds: Mapping[str, float]) -> dict[str, float]:
    """Return the seconds of the proposals, of the network, and of the stages after it."""
    seconds = {"proposals": 0.0, "network": 0.0, "after": 0.0}
    for stage, value in milliseconds.items():
        part = "proposals" if stage == "proposals" else "after" if stage in _AFTER_NETWORK else "network"
        seconds[part] += value / 1e3
    return seconds


@contextmanager
def peak_memory() -> Iterator[Callable[[], float | None]]:
    """Measure the peak memory of the block beyond the memory in use before it.

    Yields a function that returns it in MB, or None on systems other than Linux.
    """
    status, before_kb = Path("/proc/self/status"), None
    try:
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)  # glibc: return free memory to the system, as reusing it would not show
    except (OSError, AttributeError):
        pass
    try:
        Path("/proc/self/clear_refs").write_text("5")  # reset the peak
        before_kb = _status_kb(status, "VmRSS")
    except (OSError, KeyError):
        pass
    yield lambda: None if before_kb is None else max(0, _status_kb(status, "VmHWM") - before_kb) / 1e3


def _status_kb(status: Path, name: str) -> int:
    """Return a value of a ``/proc/PID/status`` file, in kB."""
    values = dict(line.split(":", 1) for line in status.read_text().splitlines())
    return int(values[name].split()[0])


def _draw_predictions(dataset: Dataset, results: Mapping[int, Any], folder: Path, task: Task, *, prefix: str) -> None:
    """Write overlays of a few images to ``folder/PREFIX-IMAGE.jpg``."""
    indices = np.unique(np.linspace(0, len(dataset) - 1, min(_SHOWN_IMAGES, len(dataset))).round().astype(int))
    names = flat_names(dataset.images.files)  # unique, even for cat/1.jpg and dog/1.jpg
    for index in indices.tolist():
        result = task.display.above_score(results[index], SCORE_THRESHOLD)
        overlay = task.display.overlay(dataset.image(index), result)
        write_image(folder / f"{prefix}-{Path(names[index]).stem}.jpg", overlay)


def _file_key(weights: Path | None) -> str | None:
    """Return a digest of the content of a file."""
    if weights is None:
        return None
    with weights.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def _digest(key: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(key, sort_keys=True, default=str).encode()).hexdigest()[:10]
