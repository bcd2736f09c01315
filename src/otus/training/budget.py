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

_VALIDATING_SHARE = 0.1
_PREDICTING_SHARE = 0.5
"""Assumed time to predict an image, relative to a training step on it, until a validation has been timed."""
_FIRST_PLAN = 3
"""Steps before the first plan. The first step compiles kernels and allocates memory, and is not timed."""
_PLAN_EVERY = 0.04
"""Interval between plans, as a fraction of the budget."""
_ENOUGH_STEPS = 200
"""Minimum number of steps: the batch size is reduced if the budget allows fewer."""
_FEWEST_STEPS = 20
_ENOUGH_EPOCHS = 5
"""Minimum number of epochs on images enlarged for small objects; if the budget allows fewer, they are not enlarged."""
_SMALL_PX = 32
"""COCO's limit of small objects: square root of their area in pixels."""
_LARGEST_FACTOR = 2.0
_GRID_PX = 32


def validation_is_due(state: RunState, *, epoch: int, settings: TrainSettings) -> bool:
    """Return whether to validate at the end of an epoch (counted from 1); true at the end of the run."""
    if state.step >= state.total_steps:
        return True
    if settings.validate_every is not None:
        return epoch % settings.validate_every == 0
    if settings.minutes is None:
        return True
    since_last_s = state.seconds - state.validated_at_s
    return state.seconds_of_validation <= _VALIDATING_SHARE * since_last_s


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
        state.seconds_of_validation = _PREDICTING_SHARE * state.step_s / images_per_step * validation_images
    left_s = minutes * 60 - state.seconds - state.seconds_of_validation
    epoch_s = steps_per_epoch * state.step_s
    if validate_every is None:
        epoch_s += min(epoch_s * _VALIDATING_SHARE, state.seconds_of_validation)
    else:
        epoch_s += state.seconds_of_validation / validate_every
    return state.step + int(max(0.0, left_s) / epoch_s * steps_per_epoch)


def describe_plan(state: RunState, *, loader: TrainLoader, preprocess: Preprocess, validates: bool) -> Sequence[str]:
    """Describe the plan of a time budget, with a warning if the budget is too small."""
    settings, steps = loader.settings, state.total_steps
    assert settings.minutes is not None
    epochs = steps * loader.images_per_step / len(loader.dataset)
    every = settings.validate_every
    times = 0
    if validates and every is not None:
        times = max(1, -(-int(epochs) // every))
    elif validates:
        room = _VALIDATING_SHARE * settings.minutes * 60 / max(state.seconds_of_validation, 1e-9)
        times = 1 + int(min(max(0.0, epochs - 1), room))
    sizes = preprocess.fixed_hw or (preprocess.longer_side,)
    side = "" if sizes[-1] is None else f" at {max(s for s in sizes if s is not None)} pixels"
    often = "" if not times else "; validating once" if times == 1 else f"; validating about {times} times"
    lines = [
        f"{settings.minutes:g} minutes buy about {steps} steps = {epochs:.2g} epochs of {len(loader.dataset)} images{side}, "
        f"batch {loader.images_per_step}{often}"
    ]
    if steps < _FEWEST_STEPS or epochs < 1:
        enough = max(_FEWEST_STEPS, loader.batches_per_epoch) / max(steps, 1) * settings.minutes
        lines.append(
            "warning: that is too little to learn anything from; give "
            f"--minutes {max(1, round(enough + 0.5))} or more, or a smaller --image-size"
        )
    if state.seconds_of_validation > 0.25 * settings.minutes * 60:
        lines.append(
            f"warning: the last validation alone takes about {state.seconds_of_validation:.0f} s of them; fewer images to "
            "validate on leave more to learn"
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
    own = 1 / float(np.median(scale))  # the factor that brings an image to its own resolution
    factor = min(_SMALL_PX / max(median, 1.0), _LARGEST_FACTOR, own)
    longer = int(preprocess.longer_side * factor + 1e-6) // _GRID_PX * _GRID_PX
    if longer <= preprocess.longer_side:
        return preprocess
    shorter = round(preprocess.shorter_side * longer / preprocess.longer_side)
    return replace(preprocess, shorter_side=shorter, longer_side=longer)


def seconds_per_image(system: nn.Module, *, loader: TrainLoader, fabric: Fabric) -> float:
    """Measure the training time per image: the second of two steps on a copy, or the first if it is slow."""
    tried = copy.deepcopy(system).to(fabric.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    tried.train()
    places = next(loader.plan())[:2]
    seconds = 0.0
    for _ in range(2):
        start = time.monotonic()
        samples = [loader.load(place) for place in places]
        with fabric.autocast():
            losses = tried.losses(samples, generator=model_generator(loader.settings.seed, 0, fabric.global_rank))
        fabric.backward(torch.stack(list(losses.values())).sum())
        seconds = time.monotonic() - start
        if fabric.broadcast(seconds > _PLAN_EVERY * 60 * (loader.settings.minutes or 0.0)):
            break
    return fabric.broadcast(seconds / len(samples)) / fabric.world_size


def validation_is_cheap(image_s: float, *, images: int, minutes: float) -> bool:
    """Return whether a validation takes a small part of the budget, given the training seconds per image."""
    return _PREDICTING_SHARE * image_s * images <= _VALIDATING_SHARE * minutes * 60


def fit_to_budget(
    system: nn.Module, *, loader: TrainLoader, own: Preprocess, fabric: Fabric
) -> tuple[TrainLoader, float, float]:
    """Choose a batch size, if none is set, and an image size that the time budget allows.

    Parameters
    ----------
    own
        The preprocess to fall back to if ``loader.preprocess`` is larger and the budget allows too few epochs of it.

    Returns
    -------
    tuple
        The loader with these sizes, training seconds per image, and seconds spent on measuring.
    """
    settings, start = loader.settings, time.monotonic()
    assert settings.minutes is not None
    image_s = seconds_per_image(system, loader=loader, fabric=fabric)
    images = settings.minutes * 60 / image_s
    if own != loader.preprocess and images < _ENOUGH_EPOCHS * len(loader.dataset):
        assert own.longer_side is not None
        assert loader.preprocess.longer_side is not None
        images *= (loader.preprocess.longer_side / own.longer_side) ** 2
        loader = replace(loader, preprocess=own)
    if settings.batch_size is None:
        each, most = settings.images_per_batch // fabric.world_size, images / _ENOUGH_STEPS / settings.accumulate
        while each > 2 and each * fabric.world_size > most:
            each //= 2
        batch = each * fabric.world_size
        loader = replace(loader, settings=replace(settings, batch_size=batch))
    return loader, settings.minutes * 60 / images, time.monotonic() - start
