"""The training loop, :func:`fit`.

Shape shorthand: a *batch* is one forward and backward pass, a *step* is one optimizer step (``accumulate`` batches).
"""

import math
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from otus.data.tensors import TensorSample
from otus.errors import TrainingError
from otus.training.budget import describe_plan, plan_is_due, plan_steps, validation_is_due
from otus.training.devices import any_process, broadcast_weights
from otus.training.ema import ModelEMA
from otus.training.interrupts import Interrupts
from otus.training.optimization import learning_rate, make_optimizer, set_learning_rate, warm_up_fraction
from otus.training.progress import TrainProgress
from otus.training.resuming import pack, restore_state, unpack
from otus.training.run_folder import RunFolder
from otus.training.seeding import model_generator
from otus.training.state import UNPLANNED, RunState, Validation
from otus.training.train_loader import TrainLoader

_SAVE_EVERY_S = 600  # checkpoint interval within an epoch; each epoch ends with a checkpoint too

Validate = Callable[[Any], Validation]


@dataclass(frozen=True)
class TrainResult:
    """The result of :func:`fit`.

    Parameters
    ----------
    system
        The system with the averaged weights after the last step.
    history
        One row per epoch, preceded by row 0 if the initial weights were validated.
    best_score, best_step
        Score and step of the best validation; None if there was none.
    ended
        ``done``, ``no better`` (patience) or ``interrupted`` (Ctrl-C; resume it).
    """

    system: nn.Module
    history: list[dict[str, Any]]
    best_score: float | None
    best_step: int | None
    ended: Literal["done", "no better", "interrupted"]


class LossStep(nn.Module):
    """Compute the losses in ``forward``, because Fabric's precision and DDP's gradient reduction apply only there."""

    def __init__(self, system: nn.Module) -> None:
        super().__init__()
        self.system = system

    def forward(self, samples: list[TensorSample], *, generator: torch.Generator) -> dict[str, Tensor]:
        """Return ``system.losses``."""
        losses: dict[str, Tensor] = cast(Any, self.system).losses(samples, generator=generator)
        return losses


def fit(
    system: nn.Module,
    *,
    loader: TrainLoader,
    fabric: Fabric,
    validate: Validate | None = None,
    folder: RunFolder | None = None,
    resume: bool = False,
    progress: TrainProgress | None = None,
    validation_images: int = 0,
    spent_s: float = 0.0,
    validate_start: bool = False,
) -> TrainResult:
    """Train a system.

    Parameters
    ----------
    system
        A module with a method ``losses(samples, *, generator)``; trained in place.
    loader
        Loader of this process's batches, with the settings of the run.
    fabric
        Fabric from :func:`~otus.training.devices.start_fabric`.
    validate
        Called with the averaged weights, in all processes, at the end of epochs and of the run (default: no
        validation).
    folder
        Folder for checkpoints and records (default: none are written).
    resume
        Continue from the last checkpoint of ``folder``.
    progress
        Progress display (default: none).
    validation_images
        Number of images per validation, to plan a time budget before the first one.
    spent_s
        Seconds of the time budget that were used before the call.
    validate_start
        Validate the initial weights too, as row 0 of the history.

    Raises
    ------
    TrainingError
        If a loss or a gradient is not finite.
    """
    settings = loader.settings
    steps_per_epoch = loader.batches_per_epoch // settings.accumulate
    system.to(fabric.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    averaged = ModelEMA(system, decay=settings.average_decay)
    bare_optimizer = make_optimizer(system, settings)
    state = RunState(total_steps=UNPLANNED if settings.minutes else settings.epochs * steps_per_epoch, seconds=spent_s)
    if resume and folder is not None:
        tensors, record = folder.read_last()
        unpack(tensors, system=system, averaged=averaged.module, optimizer=bare_optimizer)
        state = restore_state(record)
    model, optimizer = fabric.setup(LossStep(system), bare_optimizer)
    output = folder if fabric.is_global_zero else None
    progress = progress or TrainProgress(quiet=True)

    def save_last() -> None:
        if output is not None:
            output.save_last(pack(system, averaged.module, bare_optimizer), state)

    announced_epochs: int | None = None

    def plan(minutes: float) -> None:
        nonlocal announced_epochs
        is_first_plan = state.total_steps == UNPLANNED
        steps = plan_steps(
            state,
            steps_per_epoch=steps_per_epoch,
            minutes=minutes,
            validate_every=settings.validate_every,
            images_per_step=loader.images_per_step,
            validation_images=0 if validate is None else validation_images,
        )
        steps = fabric.broadcast(steps)
        state.plan(steps, warm_up=warm_up_fraction(steps, settings))
        if is_first_plan:
            for line in describe_plan(
                state, loader=loader, preprocess=loader.preprocess, validates=validate is not None
            ):
                progress.log(line)
            announced_epochs = -(-state.total_steps // steps_per_epoch)

    if state.step == 0:
        if validate is not None and validate_start:
            start = time.monotonic()
            validation = validate(averaged.module)
            progress.start(state.record_initial_validation(validation, seconds=time.monotonic() - start))
        save_last()

    def is_no_better() -> bool:
        return bool(settings.patience) and state.validations_since_best >= settings.patience

    ended: Literal["done", "no better", "interrupted"] = "no better" if is_no_better() else "done"
    batches = loader.batches(state.step * settings.accumulate)
    step_end = saved_at = time.monotonic()
    with closing(batches), Interrupts() as interrupts, progress:
        while state.step < state.total_steps and ended != "no better":
            model.train()
            warm_up = warm_up_fraction(state.total_steps, settings) if state.warm_up is None else state.warm_up
            rate = learning_rate(state.fraction_done, warm_up=warm_up, settings=settings)
            set_learning_rate(bare_optimizer, rate)
            step_losses: dict[str, float] = {}
            for batch in range(settings.accumulate):
                start = time.monotonic()
                samples = next(batches)
                state.waited_s += time.monotonic() - start
                generator = model_generator(settings.seed, state.step * settings.accumulate + batch, fabric.global_rank)
                with fabric.no_backward_sync(model, enabled=batch + 1 < settings.accumulate):
                    losses = model(samples, generator=generator)
                    total = torch.stack(list(losses.values())).sum()
                    values = {name: loss.item() for name, loss in losses.items()}
                    if any_process(fabric, not torch.isfinite(total)):
                        raise _not_finite("loss", values, samples, state, folder)
                    fabric.backward(total / settings.accumulate)
                for name, value in values.items():
                    step_losses[name] = step_losses.get(name, 0.0) + value / settings.accumulate
            norm = fabric.clip_gradients(
                model, optimizer, max_norm=settings.clip_norm or math.inf, error_if_nonfinite=False
            )
            if norm is not None and not norm.isfinite():
                raise _not_finite("gradient", step_losses, samples, state, folder)
            optimizer.step()
            optimizer.zero_grad()
            averaged.update(system, step=state.step)

            now = time.monotonic()
            state.record_step(step_losses, seconds=now - step_end)
            step_end = now
            progress.step(state, step_losses, steps_per_epoch=steps_per_epoch, images=loader.images_per_step)
            if settings.minutes and fabric.broadcast(plan_is_due(state, settings.minutes)):
                plan(settings.minutes)

            if state.step % steps_per_epoch == 0 or state.step == state.total_steps:
                row = state.end_epoch(rate, steps_per_epoch=steps_per_epoch, images=loader.images_per_step)
                due = validation_is_due(state, epoch=row["epoch"], settings=settings)
                if validate is not None and fabric.broadcast(due):
                    broadcast_weights(fabric, averaged.module)
                    validation = validate(averaged.module)
                    is_best = state.record_validation(row, validation, seconds=time.monotonic() - step_end)
                    step_end = time.monotonic()
                    if output is not None and is_best:
                        output.save_best(averaged.module.state_dict(), state, validation)
                    if is_no_better():
                        ended = "no better"
                save_last()
                saved_at = step_end
                if output is not None:
                    output.write_records(state)
                epochs = -(-state.total_steps // steps_per_epoch)
                if settings.minutes and announced_epochs not in (None, epochs):
                    progress.log(
                        f"{settings.minutes:g} minutes now allow {epochs} epochs instead of {announced_epochs}"
                    )
                announced_epochs = epochs
                progress.epoch(row, total_epochs=epochs)
            elif time.monotonic() - saved_at > _SAVE_EVERY_S:
                save_last()
                saved_at = time.monotonic()
            if ended != "no better" and any_process(fabric, interrupts.requested):
                ended = "interrupted"
                save_last()
                break
    return TrainResult(averaged.module, state.history, state.best_score, state.best_step, ended)


def _not_finite(
    what: str, losses: Mapping[str, float], samples: list[TensorSample], state: RunState, folder: RunFolder | None
) -> TrainingError:
    values = ", ".join(f"{name} {value:.4g}" for name, value in losses.items())
    images = ", ".join(str(sample["key"]) for sample in samples)
    checkpoint = folder.last if folder is not None and folder.last.exists() else "none"
    return TrainingError(
        f"step {state.step}: the {what} is not finite (losses {values}) for the images {images}; "
        f"last good checkpoint: {checkpoint}. Try a lower learning rate, a longer warm-up, or precision 32-true"
    )
