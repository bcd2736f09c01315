"""Ablation: train variants of a model that differ in one argument, each with several seeds, and compare them.

Two trainings differ by their arguments and by their seeds. Several seeds of each variant show how much the metric varies
with the seed alone; variants that differ by less are not ranked.
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
from otus.experiments.compare import TRAINING, Contender, Log, compare
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
_CROP_CANDIDATES = 12  # images among which the crop is chosen
_CROP_HW = (48, 64)  # in pixels of the preprocessed image
_PANEL_WIDTH = 256


def ablate(
    models: Sequence[str],
    data: str | Path,
    *,
    vary: Mapping[str, Sequence[str]],
    seeds: int = SEEDS,
    image_size: int | None = IMAGE_SIZE,
    settings: TrainSettings = TRAINING,
    log: Log = lambda text: None,
    **options: Any,
) -> Ablation:
    """Train each model with each value of the varied arguments and several seeds, evaluate all, and write the table.

    Parameters
    ----------
    models
        Names of models of the same task.
    data
        Training data.
    vary
        Values to try by name of a builder argument; an empty sequence stands for all values of the argument
        (:func:`~otus.zoo.models.argument_values`). With several arguments, every combination is tried; combinations that
        the builder does not support are skipped and logged.
    seeds
        Number of trainings per variant, with the seeds ``settings.seed``, ``settings.seed + 1`` …
    image_size
        Longer side of the images in pixels; None for the model's own.
    settings
        Settings of every training, including its length (``epochs`` or ``minutes``).
    log
        Called with a description of each stage.
    options
        Other arguments of :func:`~otus.experiments.compare.compare`: ``val``, ``val_split``, ``limit``, ``out`` …

    Raises
    ------
    UsageError
        If a model does not have an argument or a value, or there are fewer than two variants.
    """
    if seeds < 1:
        raise UsageError(f"seeds: expected at least one, got {seeds}")
    variants = [variant for model in models if model for variant in variants_of(model, vary, log=log)]
    if len(variants) < 2:
        names = variants[0].label if variants else "none"
        raise UsageError(
            f"vary: expected at least two variants to compare, got {names}; give more values of --vary, or more --models"
        )
    if len({variant.model for variant in variants}) == 1 and vary:
        variants = [
            dataclasses.replace(variant, label=variant.label.removeprefix(f"{variant.model}, ")) for variant in variants
        ]
    contenders = [
        dataclasses.replace(
            variant, label=f"{variant.label}, seed {seed}", settings=dataclasses.replace(settings, seed=seed)
        )
        for variant in variants
        for seed in range(settings.seed, settings.seed + seeds)
    ]
    comparison = compare(contenders, data, settings=settings, image_size=image_size, log=log, **options)
    rows_per_variant = [comparison.rows[first : first + seeds] for first in range(0, len(contenders), seeds)]
    rows_by_variant = [Variant(variant.label, rows) for variant, rows in zip(variants, rows_per_variant, strict=True)]
    crop = None
    if comparison.task is SEMANTIC and comparison.dataset is not None:
        crop = _draw_crop(rows_by_variant, comparison.dataset, device=settings.device)
    ablation = Ablation(", ".join(vary) or "model", rows_by_variant, comparison, crop)
    ablation.write()
    return ablation


def variants_of(model: str, vary: Mapping[str, Sequence[str]], *, log: Log = lambda text: None) -> list[Contender]:
    """Return the variants of a model, one per combination of values that its builder supports.

    Raises
    ------
    UsageError
        If the model does not have an argument or a value.
    """
    model_entry(model)
    known = argument_values(model)
    values_to_try = []
    for argument, texts in vary.items():
        if argument not in known:
            remedy = f"it has {', '.join(known)}" if known else "none of its arguments has a list of values"
            raise UsageError(f"vary: {model} has no {argument} to vary{did_you_mean(argument, known)}; {remedy}")
        value_of = {str(value): value for value in known[argument]}
        invalid = [text for text in texts if text not in value_of]
        if invalid:
            hint = did_you_mean(invalid[0], value_of)
            raise UsageError(f"vary: {argument}: expected {', '.join(value_of)}, got {invalid[0]!r}{hint}")
        values_to_try.append([value_of[text] for text in texts or value_of])
    variants = []
    for values in product(*values_to_try):
        arguments = dict(zip(vary, values, strict=True))
        label = ", ".join([model, *(f"{n}={v}" if isinstance(v, bool) else v for n, v in arguments.items())])
        try:
            build_model(model, Categories(("a", "b")), arguments)
        except UsageError as error:
            log(f"{label}: skipped: {error}")
        else:
            variants.append(Contender(model, label=label, arguments=arguments))
    return variants


def _draw_crop(variants: Sequence[Variant], dataset: Dataset, *, device: str) -> UInt8[np.ndarray, "h w 3"]:
    """Draw the same crop of an image for each variant (its first seed): labels above, their probabilities below."""
    predictors = [
        load(variant.rows[0].model, weights=variant.rows[0].weights, device=device, precision="exact")
        for variant in variants
    ]
    categories = predictors[0].categories
    prepared, crop = _find_crop(dataset, predictors[0])
    preprocess = predictors[0].preprocess
    mean, std = torch.tensor(preprocess.mean), torch.tensor(preprocess.std)
    pixels = (prepared["image"].as_subclass(torch.Tensor)[(slice(None), *crop)].permute(1, 2, 0) * std + mean) * 255
    palette = np.append(
        category_colours(len(categories)), np.full((IGNORE + 1 - len(categories), 3), 90, np.uint8), axis=0
    )
    ground_truth = palette[prepared["semantic"].numpy()[crop]]
    above = [Panel("image", "", _upscale(pixels.round().clamp(0, 255).byte().numpy()))]
    below = [Panel("ground truth", "", _upscale(ground_truth))]
    for variant, predictor in zip(variants, predictors, strict=True):
        record: Any = predictor.pipeline.stages(prepared)
        probabilities, labels = record.logits[0].softmax(dim=0)[(slice(None), *crop)].max(dim=0)
        shade = (255 * probabilities.cpu().numpy()).astype(np.uint8)
        above.append(Panel(variant.name, "", _upscale(palette[labels.cpu().numpy()])))
        below.append(Panel("", "", _upscale(np.repeat(shade[..., None], 3, axis=2))))
    return grid([*above, *below], columns=len(above), width=_PANEL_WIDTH)


def _find_crop(dataset: Dataset, predictor: Predictor) -> tuple[TensorSample, tuple[slice, slice]]:
    """Return the preprocessed image, and the crop of it, whose ground truth has the most boundary pixels."""
    dataset = predictor.task.remap(dataset, predictor.categories)
    indices = np.unique(np.linspace(0, len(dataset) - 1, _CROP_CANDIDATES).round().astype(int)).tolist()
    best_density, best_crop = -1.0, None
    for index in indices:
        prepared = predictor.preprocess.prepare(dataset[index])
        labels = prepared["semantic"].as_subclass(torch.Tensor).float()
        edges = (labels[:-1, :-1] != labels[1:, :-1]) | (labels[:-1, :-1] != labels[:-1, 1:])
        height, width = (min(crop, image) for crop, image in zip(_CROP_HW, edges.shape, strict=True))
        density = F.avg_pool2d(edges.float()[None], (height, width), stride=1)[0]
        if float(density.max()) > best_density:
            best_density = float(density.max())
            top, left = divmod(int(density.argmax()), density.shape[1])
            best_crop = prepared, (slice(top, top + height), slice(left, left + width))
    assert best_crop is not None
    return best_crop


def _upscale(image: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "rows columns 3"]:
    """Return the image enlarged to at least the width of a panel, by repeating pixels."""
    factor = -(-_PANEL_WIDTH // image.shape[1])
    return image.repeat(factor, axis=0).repeat(factor, axis=1)
