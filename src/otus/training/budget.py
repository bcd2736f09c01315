"""Plan a training run of given minutes: batch and image size before it starts, number of steps while it runs."""

import copy
import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import nn

from otus.data.dataset import Dataset
from otus.parts.preprocess import Preprocess
from otus.training.seeding import model_generator
from otus.training.settings import TrainSettings
from otus.training.state import UNPLANNED, RunState
from otus.training.train_loader import TrainLoader

_VALIDATION_FRACTION = 0.1
"""Fraction of the time that validation may take."""
_PREDICTION_COST = 0.5
"""Assumed time to predict an image, relative to a training step on it, until a validation has been timed."""
_FIRST_PLAN = 3
"""Steps before the first plan. The first step compiles kernels and allocates memory, and is not timed."""
_PLAN_EVERY = 0.04
"""Interval between plans, as a fraction of the budget."""
_TARGET_STEPS = 200
"""Minimum number of steps: the batch size is reduced if the budget allows fewer."""
_MIN_STEPS = 20
"""Number of steps below which a warning is shown."""
_MIN_EPOCHS = 5
"""Minimum number of epochs on images enlarged for small objects; if the budget allows fewer, they are not enlarged."""
_SMALL_PX = 32
"""COCO's limit of small objects: square root of their area in pixels."""
_MAX_ENLARGEMENT = 2.0
_SIZE_DIVISOR = 32


def validation_is_due(state: RunState, *, epoch: int, settings: TrainSettings) -> bool:
    """Return whether to validate at the end of an epoch (counted from 1); true at the end of the run."""
    if state.step >= state.total_steps:
        return True
    if settings.validate_every is not None:
        return epoch % settings.validate_every == 0
    if settings.minutes is None:
        return True
    since_last_s = state.seconds - state.validated_at_s
    return state.seconds_of_validation <= _VALIDATION_FRACTION * since_last_s


def plan_is_due(state: RunState, minutes: float) -> bool:
    """Return whether to plan after this step: after the first few, then at regular intervals of the budget."""
    if state.total_steps == UNPLANNED:
        return state.step >= _FIRST_PLAN or (state.step > 1 and state.seconds > _PLAN_EVERY * minutes * 60)
    return state.seconds - state.planned_at_s >= _PLAN_EVERY * minutes * 60


def plan_steps(
    state: RunState,
    *,
    steps_per_epoch: int,
    minutes: float,
    validate_every: int | None,
    images_per_step: int = 1,
    validation_images: int = 0,
) -> int:
    """Return the total number of steps that fit into the budget at the measured speed, less a final validation.

    Before the first validation, its duration is estimated from ``images_per_step`` and ``validation_images``.
    """
    if not state.seconds_of_validation:
        state.seconds_of_validation = _PREDICTION_COST * state.step_s / images_per_step * validation_images
    remaining_s = minutes * 60 - state.seconds - state.seconds_of_validation
    epoch_s = steps_per_epoch * state.step_s
    if validate_every is None:
        epoch_s += min(epoch_s * _VALIDATION_FRACTION, state.seconds_of_validation)
    else:
        epoch_s += state.seconds_of_validation / validate_every
    return state.step + int(max(0.0, remaining_s) / epoch_s * steps_per_epoch)


def describe_plan(state: RunState, *, loader: TrainLoader, preprocess: Preprocess, validates: bool) -> Sequence[str]:
    """Describe the plan of a time budget in a line, with warnings if the budget is too small."""
    settings, steps = loader.settings, state.total_steps
    assert settings.minutes is not None
    epochs = steps * loader.images_per_step / len(loader.dataset)
    validate_every = settings.validate_every
    validations = 0
    if validates and validate_every is not None:
        validations = max(1, -(-int(epochs) // validate_every))
    elif validates:
        affordable = _VALIDATION_FRACTION * settings.minutes * 60 / max(state.seconds_of_validation, 1e-9)
        validations = 1 + int(min(max(0.0, epochs - 1), affordable))
    sizes = preprocess.fixed_hw or (preprocess.longer_side,)
    size = "" if sizes[-1] is None else f" at {max(s for s in sizes if s is not None)} pixels"
    validation = f"about {validations} validations" if validations > 1 else "one validation" if validations else ""
    lines = [
        f"{settings.minutes:g} minutes allow about {steps} steps = {epochs:.2g} epochs of {len(loader.dataset)} images"
        f"{size}, batch size {loader.images_per_step}" + (f", {validation}" if validation else "")
    ]
    if steps < _MIN_STEPS or epochs < 1:
        enough = max(_MIN_STEPS, loader.batches_per_epoch) / max(steps, 1) * settings.minutes
        lines.append(
            "warning: this is too short to learn anything; give "
            f"--minutes {max(1, round(enough + 0.5))} or more, or a smaller --image-size"
        )
    if state.seconds_of_validation > 0.25 * settings.minutes * 60:
        lines.append(
            f"warning: the last validation alone takes about {state.seconds_of_validation:.0f} s of that time; with fewer "
            "validation images, more time is left for training"
        )
    return lines


def size_for_labels(preprocess: Preprocess, dataset: Dataset) -> Preprocess:
    """Return a preprocess with a larger image size if half of the objects are small; else the same preprocess.

    Images are enlarged until the median object size is COCO's limit of small objects (32 pixels), at most by a factor
    of two, and never beyond their own resolution, because upsampling adds no detail.
    """
    objects = dataset.objects
    if objects is None or preprocess.longer_side is None or preprocess.shorter_side is None:
        return preprocess
    boxes = objects.boxes_xyxy[~objects.is_crowd]
    sizes_hw = np.asarray(dataset.images.sizes_hw, dtype=np.float64)
    if not len(boxes) or not len(sizes_hw):
        return preprocess
    scale = np.minimum(preprocess.shorter_side / sizes_hw.min(axis=1), preprocess.longer_side / sizes_hw.max(axis=1))
    sides = np.sqrt((boxes[:, 2:] - boxes[:, :2]).clip(min=0).prod(axis=1))
    median = float(np.median(sides * scale[objects.image_index[~objects.is_crowd]]))
    full_resolution = 1 / float(np.median(scale))  # the factor at which images are not resized
    factor = min(_SMALL_PX / max(median, 1.0), _MAX_ENLARGEMENT, full_resolution)
    longer = int(preprocess.longer_side * factor + 1e-6) // _SIZE_DIVISOR * _SIZE_DIVISOR
    if longer <= preprocess.longer_side:
        return preprocess
    shorter = round(preprocess.shorter_side * longer / preprocess.longer_side)
    return replace(preprocess, shorter_side=shorter, longer_side=longer)


def seconds_per_image(system: nn.Module, *, loader: TrainLoader, fabric: Fabric) -> float:
    """Measure the training time per image: the second of two steps on a copy, or the first if it is slow."""
    trained = copy.deepcopy(system).to(fabric.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    trained.train()
    batch = next(loader.plan())
    seconds = 0.0
    for indices in (batch[:2], batch[2:4] or batch[:2]):  # other images: a frozen encoder caches features
        start = time.monotonic()
        samples = [loader.load(index) for index in indices]
        with fabric.autocast():
            losses = trained.losses(samples, generator=model_generator(loader.settings.seed, 0, fabric.global_rank))
        fabric.backward(torch.stack(list(losses.values())).sum())
        seconds = time.monotonic() - start
        if fabric.broadcast(seconds > _PLAN_EVERY * 60 * (loader.settings.minutes or 0.0)):
            break
    return fabric.broadcast(seconds / len(samples)) / fabric.world_size


def validation_is_cheap(image_s: float, *, images: int, minutes: float) -> bool:
    """Return whether a validation takes a small part of the budget, given the training seconds per image."""
    return _PREDICTION_COST * image_s * images <= _VALIDATION_FRACTION * minutes * 60


def fit_to_budget(
    system: nn.Module, *, loader: TrainLoader, default_preprocess: Preprocess, fabric: Fabric
) -> tuple[TrainLoader, float, float]:
    """Choose a batch size, if none is set, and an image size that the time budget allows.

    Parameters
    ----------
    system
        The system to train; its speed is measured on a copy.
    loader
        Loader with the settings of the run and the preferred image size.
    default_preprocess
        Preprocess to use instead of ``loader.preprocess`` if the latter has larger images and the budget allows too few
        epochs of them.
    fabric
        Fabric of the run.

    Returns
    -------
    tuple
        The loader with these sizes, training seconds per image, and seconds spent on measuring.
    """
    settings, start = loader.settings, time.monotonic()
    assert settings.minutes is not None
    image_s = seconds_per_image(system, loader=loader, fabric=fabric)
    images = settings.minutes * 60 / image_s
    if default_preprocess != loader.preprocess and images < _MIN_EPOCHS * len(loader.dataset):
        assert default_preprocess.longer_side is not None
        assert loader.preprocess.longer_side is not None
        images *= (loader.preprocess.longer_side / default_preprocess.longer_side) ** 2
        loader = replace(loader, preprocess=default_preprocess)
    if settings.batch_size is None:
        per_device = settings.images_per_batch // fabric.world_size
        max_batch_size = images / _TARGET_STEPS / settings.accumulate
        while per_device > 2 and per_device * fabric.world_size > max_batch_size:
            per_device //= 2
        loader = replace(loader, settings=replace(settings, batch_size=per_device * fabric.world_size))
    return loader, settings.minutes * 60 / images, time.monotonic() - start
