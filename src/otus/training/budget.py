"""What a budget of minutes buys: batch size and image size before the first step, steps and validations while it runs."""

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
"""What predicting an image takes of what learning from it takes, until a validation was timed."""
_FIRST_PLAN = 3
"""Steps. The first, in which kernels are compiled and memory is found, does not count as speed."""
_PLAN_EVERY = 0.04
"""Of the budget."""
_ENOUGH_STEPS = 200
"""Where a budget buys fewer of a batch, smaller batches learn more."""
_FEWEST_STEPS = 20
_ENOUGH_EPOCHS = 5
"""Where a budget buys fewer with images enlarged for small objects, they are not enlarged."""
_SMALL_PX = 32
"""COCO's border of small objects, the square root of their area."""
_LARGEST_FACTOR = 2.0
_GRID_PX = 32


def validation_is_due(state: RunState, *, epoch: int, settings: TrainSettings) -> bool:
    """Whether to validate at the end of an epoch (counted from 1); always at the end of the run."""
    if state.step >= state.total_steps:
        return True
    if settings.validate_every is not None:
        return epoch % settings.validate_every == 0
    if settings.minutes is None:
        return True
    since_last_s = state.seconds - state.validated_at_s
    return state.seconds_of_validation <= _VALIDATING_SHARE * since_last_s


def plan_is_due(state: RunState, minutes: float) -> bool:
    """Whether to plan after a step: after the first few, then again and again at the speed measured meanwhile."""
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
    """Total steps that fit into the budget at the speed measured so far; time for a last validation is left.

    What a validation takes is estimated before the first one, from ``images_per_step`` and ``validation_images``.
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


def say_plan(state: RunState, *, feed: TrainLoader, preprocess: Preprocess, validates: bool) -> Sequence[str]:
    """What the budget buys, and a warning where that is too little for anything."""
    settings, steps = feed.settings, state.total_steps
    assert settings.minutes is not None
    epochs = steps * feed.images_per_step / len(feed.dataset)
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
        f"{settings.minutes:g} minutes buy about {steps} steps = {epochs:.2g} epochs of {len(feed.dataset)} images{side}, "
        f"batch {feed.images_per_step}{often}"
    ]
    if steps < _FEWEST_STEPS or epochs < 1:
        enough = max(_FEWEST_STEPS, feed.batches_per_epoch) / max(steps, 1) * settings.minutes
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
    """A preprocess with larger images where half of the objects are small at its size; else the same.

    Images are enlarged until the median of the objects' sizes is that of COCO's border of small ones, at most by a factor
    of two, and never beyond their own resolution: what is not in the pixels is not found by enlarging them.
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


def seconds_per_image(system: nn.Module, *, feed: TrainLoader, fabric: Fabric) -> float:
    """Time to learn from an image: of a copy, two images at once, for the second time where the budget allows it."""
    tried = copy.deepcopy(system).to(fabric.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    tried.train()
    places = next(feed.plan())[:2]
    seconds = 0.0
    for _ in range(2):
        start = time.monotonic()
        samples = [feed.load(place) for place in places]
        with fabric.autocast():
            losses = tried.losses(samples, generator=model_generator(feed.settings.seed, 0, fabric.global_rank))
        fabric.backward(torch.stack(list(losses.values())).sum())
        seconds = time.monotonic() - start
        if fabric.broadcast(seconds > _PLAN_EVERY * 60 * (feed.settings.minutes or 0.0)):
            break
    return fabric.broadcast(seconds / len(samples)) / fabric.world_size


def validation_is_cheap(image_s: float, *, images: int, minutes: float) -> bool:
    """Whether a validation takes little of a budget, by the seconds that learning from an image takes."""
    return _PREDICTING_SHARE * image_s * images <= _VALIDATING_SHARE * minutes * 60


def fit_to_budget(
    system: nn.Module, *, feed: TrainLoader, own: Preprocess, fabric: Fabric
) -> tuple[TrainLoader, float, float]:
    """The feed with a batch size, where none is chosen, and an image size of which a budget buys enough; seconds an image;
    and seconds spent.

    Parameters
    ----------
    own
        The preprocess to go back to where ``feed.preprocess`` is larger and the budget buys too few epochs of it.
    """
    settings, start = feed.settings, time.monotonic()
    assert settings.minutes is not None
    image_s = seconds_per_image(system, feed=feed, fabric=fabric)
    images = settings.minutes * 60 / image_s
    if own != feed.preprocess and images < _ENOUGH_EPOCHS * len(feed.dataset):
        assert own.longer_side is not None
        assert feed.preprocess.longer_side is not None
        images *= (feed.preprocess.longer_side / own.longer_side) ** 2
        feed = replace(feed, preprocess=own)
    if settings.batch_size is None:
        each, most = settings.images_per_batch // fabric.world_size, images / _ENOUGH_STEPS / settings.accumulate
        while each > 2 and each * fabric.world_size > most:
            each //= 2
        batch = each * fabric.world_size
        feed = replace(feed, settings=replace(settings, batch_size=batch))
    return feed, settings.minutes * 60 / images, time.monotonic() - start
