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
from otus.training.datasets import has_two_splits, open_datasets, trainable_model
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
_AFTER = frozenset({"postprocess", "undo"})
Say = Callable[[str], None]


@dataclass(frozen=True)
class Contender:
    """A model to compare.

    Parameters
    ----------
    model
        Name of the model in the zoo.
    weights
        File of weights (default: published or packaged weights, or training).
    label
        Name of the row in the table (default: the model's name).
    arguments
        Arguments of the model's builder, for its training (default: the model's own).
    settings
        Settings of its training (default: those of the comparison).
    """

    model: str
    weights: Path | None = None
    label: str = ""
    arguments: Mapping[str, Any] = field(default_factory=dict, hash=False)
    settings: TrainSettings | None = None

    @classmethod
    def parse(cls, text: str) -> "Contender":
        """Parse ``NAME``, ``FILE`` or ``LABEL=FILE`` of a checkpoint that records its model, or ``NAME=FILE``.

        The folder of a training run stands for its best weights.

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
                raise UsageError(f"models: {text} does not say of which model it is: write NAME={text}")
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
    say: Say = lambda text: None,
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
        split. Default, if a model is trained: the split ``val`` beside ``train``, else a fifth of ``data``. They select
        nothing: the last weights are evaluated.
    minutes
        Training time of each model. Backbones start from ImageNet weights if these are available.
    settings
        Settings of the training.
    image_size
        Longer side of the training images in pixels (default: the model's own).
    limit
        Maximum number of evaluated images, evenly spaced in the data set (default: all).
    precision
        Precision of prediction, see :class:`~otus.inference.predictor.Predictor`.
    out
        Folder of the comparison; results that it already has are not computed again. Predictions of each model are
        written to ``predictions`` as COCO results, for ``otus compare --predictions`` and ``otus explain errors``.
    say, progress
        Called with a description of each stage, and with the numbers of predicted and of all images.

    Raises
    ------
    UsageError
        If a model has neither weights nor training time, or the data have no labels to evaluate with.
    KeyboardInterrupt
        If a training is interrupted; the same call resumes it.
    """
    if minutes is not None and not minutes > 0:
        raise UsageError(f"minutes: expected a number of minutes, more than 0, got {minutes:g}")
    if limit is not None and limit < 1:
        raise UsageError(f"limit: expected at least one image, got {limit}")
    device = choose_device(settings.device)
    choose_precision(precision, device)  # fail before anything is trained
    contenders = [one if isinstance(one, Contender) else Contender.parse(one) for one in models if one]
    if not contenders:
        raise UsageError("models: expected at least one name or file of weights")
    task = model_entry(contenders[0].model).task
    for one in contenders[1:]:
        other = model_entry(one.model).task
        if other.protocol != task.protocol:
            first = contenders[0].model
            raise UsageError(
                f"models: {first} predicts {task.predicts}, {one.model} {other.predicts}: name models of one task"
            )
    trains = minutes is not None
    trained = [one for one in contenders if one.weights is None and (trains or one.settings is not None)]
    if trained and val is None and val_split is None and split is None and has_two_splits(data, format):
        split, val_split = "train", "val"
        say("the splits train and val are taken; --split, --val-split and --val name others")
    elif trained and val is None and val_split is None:
        val = VAL_FRACTION
        say(f"a share of {val:g} of the images is kept aside to judge on; --val and --val-split name others")
    learned, judged_on, whole = _material(
        data, val, format=format, split=split, val_split=val_split, learns=bool(trained)
    )
    if learned is not None:  # models without the heads that the data have no labels for
        names = {one.model: trainable_model(one.model, learned, boxes=settings.boxes) for one in trained}
        for line in dict.fromkeys(line for _, lines in names.values() for line in lines):
            say(line)
        fitting = {one: dataclasses.replace(one, model=names[one.model][0]) for one in trained}
        contenders, trained = [fitting.get(one, one) for one in contenders], list(fitting.values())
    if not protocol_of(task.protocol).labels.in_dataset(judged_on) or not len(judged_on):
        raise UsageError(f"{whole.source}: has no images with {task.labels.what} to judge by")
    if limit is not None and limit < len(judged_on):
        judged_on = judged_on.select(np.linspace(0, len(judged_on) - 1, limit).round().astype(int))
    place = {file: index for index, file in enumerate(whole.images.files)}
    place_in_whole = np.array([place[file] for file in judged_on.images.files], dtype=int)
    folder = Path(out)
    common = {
        "device": str(device),
        "precision": precision,
        "judged_on": fingerprint(judged_on),
        "learned": None if learned is None else fingerprint(learned),
    }
    training = {"data": data, "format": format, "split": split, "val": val if isinstance(val, float) else None}
    training |= {} if image_size is None else {"image_size": image_size}
    rows = []
    for one in contenders:
        own = None
        if one in trained:
            own = with_default_lr(one.settings or dataclasses.replace(settings, minutes=minutes), one.model)
        weights = one.weights
        if weights is None and own is None:
            weights = read_weights(None, model=one.model).source
        key: dict[str, Any] = {
            "model": one.model,
            "weights": _file_key(weights),
            "settings": own and dataclasses.asdict(own),
            **common,
        }
        if own is not None:
            key |= {"arguments": dict(one.arguments), "image_size": image_size}
        kept = folder / "rows" / f"{one.model}-{_digest(key)}.json"
        if kept.is_file():
            rows.append(dataclasses.replace(read_row(kept), label=one.label))
            say(f"{one.label or one.model}: kept from before ({kept})")
            continue
        start = None
        if own is not None and learned is not None:
            budget = f"{own.epochs} epochs" if own.minutes is None else f"{own.minutes:g} minutes"
            say(f"{one.label or one.model}: training for {budget}")
            weights, start = _train(one, learned, own, training, folder, name=kept.stem, say=say)
        assert weights is not None
        training_record = read_weights_file(weights, model=one.model).training
        flattering = count_training_images(training_record, judged_on)
        if flattering:
            say(
                f"{one.model}: {flattering} of the {len(judged_on)} images judged on were trained on: its figures flatter"
            )
        predictor = load(one.model, weights=weights, device=settings.device, precision=precision)
        say(f"{one.model}: predicting {len(judged_on)} images")
        row, found = _judge(predictor, judged_on, folder, weights=str(weights), progress=progress)
        if isinstance(found, Objects):
            results = folder / "predictions" / f"{kept.stem}.json"
            results.parent.mkdir(parents=True, exist_ok=True)
            write_results(whole, dataclasses.replace(found, image_index=place_in_whole[found.image_index]), results)
        row = dataclasses.replace(row, **_told(training_record, start=start))
        with staged_file(kept) as stage:
            stage.write_text(json.dumps(jsonable({"key": key, "row": asdict(row)}), indent=2, default=str) + "\n")
        rows.append(dataclasses.replace(row, label=one.label))
    options = {**common, "budget_minutes": minutes, "settings": dataclasses.asdict(settings)}
    record = {**environment(), "settings": options}
    files, rows = judged_on.images.files, distinct_labels(rows)
    comparison = Comparison(str(whole.source), files, rows, folder, record, task, judged_on=judged_on)
    comparison.write()
    return comparison


def _material(
    data: str | Path,
    val: str | Path | float | None,
    *,
    format: str | None,
    split: str | None,
    val_split: str | None,
    learns: bool,
) -> tuple[Dataset | None, Dataset, Dataset]:
    """Return the training data, the evaluation data, and the complete data set on disk that contains the latter."""
    if isinstance(val, float):  # the same images that training holds out
        learned, judged_on = open_datasets([data], val, format=format, split=split, val_split=None)
        assert judged_on is not None
        return learned, judged_on, open_dataset(data, format=format, split=split)
    named = val is not None or val_split is not None
    whole = open_dataset(data if val is None else val, format=format, split=val_split if named else split)
    return open_dataset(data, format=format, split=split) if learns else None, whole, whole


def _train(
    contender: Contender,
    learned: Dataset,
    settings: TrainSettings,
    training: dict[str, Any],
    folder: Path,
    *,
    name: str,
    say: Say,
) -> tuple[Path, str]:
    """Start or resume a run in the folder, and return its last weights."""
    model, arguments = contender.model, contender.arguments
    run = folder / "runs" / model_entry(model).task.name / name
    if (run / "config.json").is_file():
        done = resume_run(run)
    else:
        start = folder / "start" / f"{name}.safetensors"
        try:
            categories = model_entry(model).task.categories(learned)
            first = imagenet_weights_file(model, categories, start, seed=settings.seed, arguments=arguments)
        except MissingExtraError as error:
            first = None
            say(f"{model}: starts from random weights ({error})")
        options = {**training, "arguments": arguments, "weights": first, "settings": settings}
        done = train(model, **options, out=folder / "runs", name=name)
    if done.result.ended == "interrupted":
        raise KeyboardInterrupt
    return done.last, "random" if read_config(run)["weights"] is None else "ImageNet"


def _told(record: Mapping[str, Any], *, start: str | None) -> dict[str, Any]:
    """Return ``start``, ``minutes`` and ``epochs`` of a row from the training record of the weights."""
    if not {"settings", "steps", "hours", "images"} <= record.keys():
        return {}
    settings = record["settings"]
    began = Path(settings["weights"]).name if settings["weights"] else "random"
    epochs = record["steps"] * settings["batch_size"] * settings["accumulate"] / record["images"]
    return {"start": start or began, "minutes": record["hours"] * 60, "epochs": epochs}


def _judge(
    predictor: Predictor,
    dataset: Dataset,
    folder: Path,
    *,
    weights: str,
    progress: Callable[[int, int], None] | None,
) -> tuple[Row, Any]:
    """Return the row of figures, and the predictions in the form of their protocol."""

    def count(done: int) -> None:
        if progress is not None:
            progress(done, len(dataset))

    seconds, memory_mb = time_prediction(predictor, dataset)
    task, protocol = predictor.task, protocol_of(predictor.task.protocol)
    results = predict_dataset(predictor.pipeline, dataset, progress=count)
    found = protocol.from_results(results, dataset)
    evaluated = protocol.evaluate(dataset, found, Options())
    figures = {
        f"{kind}/{name}": float(v) for kind, result in evaluated.results.items() for name, v in result.figures.items()
    }
    _draw(dataset, results, folder / "images", task, slug=file_stem(predictor.name, weights))
    row = Row(
        model=predictor.name,
        weights=weights,
        start=None,
        figures={name: figures[figure] for name, (figure, _) in task.comparison_metrics.items() if figure in figures},
        seconds=seconds,
        parameters=sum(one.numel() for one in predictor.system.parameters()),
        memory_mb=memory_mb,
    )
    return row, found


def time_prediction(
    predictor: Predictor, dataset: Dataset, *, images: int = _TIMED_IMAGES
) -> tuple[dict[str, float], float | None]:
    """Measure median seconds per image by part, at batch size 1 after one warm-up image, and peak memory in MB.

    Proposals are computed during the measurement, even if the data set has precomputed ones.
    """
    chosen = np.unique(np.linspace(0, len(dataset) - 1, min(images, len(dataset))).round().astype(int)).tolist()
    parts: list[dict[str, float]] = []
    pipeline = predictor.pipeline
    with peak_memory() as used:
        for index in (chosen[0], *chosen):
            sample = pipeline.preprocess.prepare(Sample(dataset.image(index), dataset.images.files[index]))
            parts.append(_three_parts(pipeline.stages(sample).milliseconds))
    medians = {name: statistics.median(one[name] for one in parts[1:]) for name in parts[0]}
    return medians, used()


def _three_parts(milliseconds: Mapping[str, float]) -> dict[str, float]:
    """Return seconds of the proposals, of the network, and of the steps after it."""
    parts = {"proposals": 0.0, "network": 0.0, "after": 0.0}
    for name, value in milliseconds.items():
        parts["proposals" if name == "proposals" else "after" if name in _AFTER else "network"] += value / 1e3
    return parts


@contextmanager
def peak_memory() -> Iterator[Callable[[], float | None]]:
    """Measure the peak memory of the block beyond the memory in use before, in MB; None except on Linux."""
    status, held = Path("/proc/self/status"), None
    try:
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)  # glibc: return free memory to the system, as reusing it would not show
    except (OSError, AttributeError):
        pass
    try:
        Path("/proc/self/clear_refs").write_text("5")  # reset the peak
        held = _kilobytes(status, "VmRSS")
    except (OSError, KeyError):
        pass
    yield lambda: None if held is None else max(0, _kilobytes(status, "VmHWM") - held) / 1e3


def _kilobytes(status: Path, name: str) -> int:
    values = dict(line.split(":", 1) for line in status.read_text().splitlines())
    return int(values[name].split()[0])


def _draw(dataset: Dataset, results: Mapping[int, Any], folder: Path, task: Task, *, slug: str) -> None:
    shown = np.unique(np.linspace(0, len(dataset) - 1, min(_SHOWN_IMAGES, len(dataset))).round().astype(int))
    names = flat_names(dataset.images.files)  # cat/1.jpg beside dog/1.jpg
    for index in shown.tolist():
        sure = task.display.above_score(results[index], SCORE_THRESHOLD)
        write_image(folder / f"{slug}-{Path(names[index]).stem}.jpg", task.display.overlay(dataset.image(index), sure))


def _file_key(weights: Path | None) -> str | None:
    if weights is None:
        return None
    with weights.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def _digest(key: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(key, sort_keys=True, default=str).encode()).hexdigest()[:10]
