"""Train variants of a model that differ in one argument, each with several seeds, and compare them: an ablation.

A difference between two trainings may be the argument's doing or the seed's. Several seeds of each variant show how far the
seed alone moves the figure, and no order is claimed within that.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch.nn import functional as F

from otus.data.dataset import Dataset
from otus.data.tensors import TensorSample
from otus.errors import UsageError, did_you_mean
from otus.experiments.compare import TRAINING, Contender, Say, compare
from otus.inference.loading import load
from otus.inference.predictor import Predictor
from otus.parts.tasks import SEMANTIC
from otus.reports.ablation import Ablation, Variant
from otus.structures import IGNORE, Categories
from otus.training.settings import TrainSettings
from otus.visualization.palette import category_colours
from otus.visualization.panels import Panel, grid
from otus.zoo.models import argument_values, build_model, model_entry

SEEDS = 3
"""Default number of seeds."""
IMAGE_SIZE = 160
"""Default longer side of the images, in pixels."""
_LOOKED_AT = 12  # images among which the crop is chosen
_CROP_HW = (48, 64)  # in pixels of the network's images
_PANEL_WIDTH = 256


def ablate(
    models: Sequence[str],
    data: str | Path,
    *,
    vary: Mapping[str, Sequence[str]],
    seeds: int = SEEDS,
    image_size: int | None = IMAGE_SIZE,
    settings: TrainSettings = TRAINING,
    say: Say = lambda text: None,
    **options: Any,
) -> Ablation:
    """Train each model with each value of the varied arguments and each seed, evaluate all on the same images, and write it.

    Parameters
    ----------
    models
        Names of models of one task.
    data
        Training data; also ``options`` as of :func:`~otus.experiments.compare.compare`: ``val``, ``val_split``, ``limit``,
        ``out`` …
    vary
        Names of arguments of the models' builders, and the values to try; none for all that there are
        (:func:`~otus.zoo.models.argument_values`). Of several arguments every combination is tried; combinations that the
        model refuses are left out and said.
    seeds
        Trainings of each variant, by ``settings.seed`` and the numbers after it.
    image_size
        Longer side of the images in pixels; None for the model's own.
    settings
        Of every training: its ``epochs`` or ``minutes`` among them.

    Raises
    ------
    UsageError
        If a model does not take an argument, or a value, or there is nothing to compare.
    """
    if seeds < 1:
        raise UsageError(f"seeds: expected at least one, got {seeds}")
    variants = [one for model in models if model for one in variants_of(model, vary, say=say)]
    if len(variants) < 2:
        found = variants[0].label if variants else "none"
        raise UsageError(
            f"vary: expected two variants or more to compare, got {found}; name further --vary or --models"
        )
    if len({one.model for one in variants}) == 1 and vary:
        variants = [dataclasses.replace(one, label=one.label.removeprefix(f"{one.model}, ")) for one in variants]
    contenders = [
        dataclasses.replace(
            one,
            label=f"{one.label}, seed {settings.seed + number}",
            settings=dataclasses.replace(settings, seed=settings.seed + number),
        )
        for one in variants
        for number in range(seeds)
    ]
    comparison = compare(contenders, data, settings=settings, image_size=image_size, say=say, **options)
    rows = [comparison.rows[first : first + seeds] for first in range(0, len(contenders), seeds)]
    named = [Variant(one.label, own) for one, own in zip(variants, rows, strict=True)]
    crop = None
    if comparison.task is SEMANTIC and comparison.judged_on is not None:
        crop = _same_crop(named, comparison.judged_on, device=settings.device)
    ablation = Ablation(", ".join(vary) or "model", named, comparison, crop)
    ablation.write()
    return ablation


def variants_of(model: str, vary: Mapping[str, Sequence[str]], *, say: Say = lambda text: None) -> list[Contender]:
    """Return the variants of a model by all combinations of values, without those that it refuses.

    Raises
    ------
    UsageError
        If it does not take an argument or a value.
    """
    model_entry(model)
    known = argument_values(model)
    lists = []
    for argument, texts in vary.items():
        if argument not in known:
            remedy = f"it has {', '.join(known)}" if known else "none of its arguments has a list of values"
            raise UsageError(f"vary: {model} has no {argument} to vary{did_you_mean(argument, known)}; {remedy}")
        by_text = {str(value): value for value in known[argument]}
        wrong = [text for text in texts if text not in by_text]
        if wrong:
            hint = did_you_mean(wrong[0], by_text)
            raise UsageError(f"vary: {argument}: expected {', '.join(by_text)}, got {wrong[0]!r}{hint}")
        lists.append([by_text[text] for text in texts or by_text])
    variants = []
    for values in product(*lists):
        arguments = dict(zip(vary, values, strict=True))
        label = ", ".join([model, *(f"{n}={v}" if isinstance(v, bool) else v for n, v in arguments.items())])
        try:
            build_model(model, Categories(("a", "b")), arguments)
        except UsageError as error:
            say(f"{label}: left out: {error}")
        else:
            variants.append(Contender(model, label=label, arguments=arguments))
    return variants


def _same_crop(variants: Sequence[Variant], dataset: Dataset, *, device: str) -> UInt8[np.ndarray, "h w 3"]:
    """Draw the same crop of an image under each variant, of its first seed: labels, and below how certain they are."""
    predictors = [
        load(one.rows[0].model, weights=one.rows[0].weights, device=device, precision="exact") for one in variants
    ]
    categories = predictors[0].categories
    prepared, crop = _most_borders(dataset, predictors[0])
    preprocess = predictors[0].preprocess
    mean, std = torch.tensor(preprocess.mean), torch.tensor(preprocess.std)
    pixels = (prepared["image"].as_subclass(torch.Tensor)[(slice(None), *crop)].permute(1, 2, 0) * std + mean) * 255
    palette = np.append(
        category_colours(len(categories)), np.full((IGNORE + 1 - len(categories), 3), 90, np.uint8), axis=0
    )
    truth = palette[prepared["semantic"].numpy()[crop]]
    above = [Panel("image", "", _enlarged(pixels.round().clamp(0, 255).byte().numpy()))]
    below = [Panel("ground truth", "", _enlarged(truth))]
    for variant, predictor in zip(variants, predictors, strict=True):
        record: Any = predictor.pipeline.stages(prepared)
        best, labels = record.logits[0].softmax(dim=0)[(slice(None), *crop)].max(dim=0)
        shade = (255 * best.cpu().numpy()).astype(np.uint8)
        above.append(Panel(variant.name, "", _enlarged(palette[labels.cpu().numpy()])))
        below.append(Panel("", "", _enlarged(np.repeat(shade[..., None], 3, axis=2))))
    return grid([*above, *below], columns=len(above), width=_PANEL_WIDTH)


def _most_borders(dataset: Dataset, predictor: Predictor) -> tuple[TensorSample, tuple[slice, slice]]:
    """Return the prepared image, and the rows and columns of it, where the ground truth has the most borders."""
    dataset = predictor.task.remap(dataset, predictor.categories)
    chosen = np.unique(np.linspace(0, len(dataset) - 1, _LOOKED_AT).round().astype(int)).tolist()
    best, found = -1.0, None
    for index in chosen:
        prepared = predictor.preprocess.prepare(dataset[index])
        labels = prepared["semantic"].as_subclass(torch.Tensor).float()
        edges = (labels[:-1, :-1] != labels[1:, :-1]) | (labels[:-1, :-1] != labels[:-1, 1:])
        rows, columns = (min(side, whole) for side, whole in zip(_CROP_HW, edges.shape, strict=True))
        density = F.avg_pool2d(edges.float()[None], (rows, columns), stride=1)[0]
        if float(density.max()) > best:
            best = float(density.max())
            top, left = divmod(int(density.argmax()), density.shape[1])
            found = prepared, (slice(top, top + rows), slice(left, left + columns))
    assert found is not None
    return found


def _enlarged(image: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "rows columns 3"]:
    """Return the image as wide as a panel, each pixel a square."""
    factor = -(-_PANEL_WIDTH // image.shape[1])
    return image.repeat(factor, axis=0).repeat(factor, axis=1)
