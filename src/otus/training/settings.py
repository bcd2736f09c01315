"""What a training run is told: every option of the loop and its one default."""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass

from otus.errors import UsageError
from otus.zoo.models import LEARNING_RATE, model_entry

Positive = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]
BATCH_SIZE = 8
"""Where nobody names one."""


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class TrainSettings:
    """Options of :func:`otus.training.loop.fit`.

    Parameters
    ----------
    epochs
        Passes over the training images.
    minutes
        A budget of time in the place of ``epochs``: the number of steps is planned from the measured speed, after the first
        steps and again at the end of each epoch, and the schedule follows the plan. What speed the machine had is part of
        the result, so two such runs do not agree to the bit (a resumed one goes on with the plan of its checkpoint).
    batch_size
        Images in one pass through the network, over all devices; 8 without it, or fewer where a budget of ``minutes``
        buys few steps.
    accumulate
        Passes whose gradients are added up for one step of the optimizer.
    optimizer, learning_rate, momentum, weight_decay
        Without a rate the model's own (:func:`with_default_lr`). Norms and biases do not decay. ``momentum`` is SGD's; AdamW
        keeps its usual 0.9 and 0.999.
    backbone_learning_rate_share
        What the backbone learns at, as a share of ``learning_rate``, where the system has one that is called ``backbone``.
    schedule, drops_at
        After the warm-up, a cosine down to 0, or tenfold drops at these shares of the run.
    warm_up_steps
        The learning rate rises linearly from a tenth over so many steps (at most a tenth of the run).
    clip_norm
        Gradients of a larger norm are scaled down to it; 0 for never.
    average_decay
        Of the exponential moving average of the weights, which is what is validated and kept; 0 for none.
    frozen_norms
        Keep the statistics and factors of batch norms as they are.
    scales
        Factors of the image's size, one drawn for each batch; (1,) for always the same size.
    boxes
        ``amodal`` learns whole objects as if nothing hid them, where the data say so.
    group_by_shape
        Put upright and broad images into batches of their own, so that less is padding.
    patience
        Stop after so many validations without a better score; 0 for never.
    validate_every
        Epochs from one validation to the next. Without it every epoch, and within a budget of ``minutes`` as often as takes
        a tenth of the time.
    precision
        ``bf16-mixed`` computes the convolutions in bfloat16, twice as fast on chips that have it; refused where it does not
        run.
    seed
        Everything random follows from it: weights, order, augmentation, samplers.
    workers
        Threads that load images. The result does not depend on it.
    devices, num_nodes, device
        How many devices on how many machines (set up as by torchrun), and of what kind.
    """

    epochs: Positive = 12
    minutes: Annotated[float, Field(gt=0)] | None = None
    batch_size: Positive | None = None
    accumulate: Positive = 1
    optimizer: Literal["adamw", "sgd"] = "adamw"
    learning_rate: Annotated[float, Field(gt=0)] | None = None
    momentum: Share = 0.9
    weight_decay: Annotated[float, Field(ge=0)] = 0.02
    backbone_learning_rate_share: Share = 1.0
    schedule: Literal["cosine", "steps"] = "cosine"
    drops_at: tuple[Share, ...] = (0.67, 0.92)
    warm_up_steps: Annotated[int, Field(ge=0)] = 200
    clip_norm: Annotated[float, Field(ge=0)] = 5.0
    average_decay: Annotated[float, Field(ge=0, lt=1)] = 0.998
    frozen_norms: bool = False
    scales: tuple[Annotated[float, Field(gt=0)], ...] = (1.0,)
    boxes: Literal["modal", "amodal"] = "modal"
    group_by_shape: bool = True
    patience: Annotated[int, Field(ge=0)] = 0
    validate_every: Positive | None = None
    precision: Literal["bf16-mixed", "32-true"] = "32-true"
    seed: Annotated[int, Field(ge=0)] = 0
    workers: Annotated[int, Field(ge=0)] = 2
    devices: Positive = 1
    num_nodes: Positive = 1
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"

    def __post_init__(self) -> None:
        processes = self.devices * self.num_nodes
        if self.batch_size is not None and self.batch_size % processes:
            raise UsageError(f"batch_size: expected a multiple of the {processes} devices, got {self.batch_size}")
        if not self.scales:
            raise UsageError("scales: expected at least one factor, e.g. (1.0,)")

    @property
    def images_per_batch(self) -> int:
        """The batch size, over all devices."""
        processes = self.devices * self.num_nodes
        return max(1, BATCH_SIZE // processes) * processes if self.batch_size is None else self.batch_size

    @property
    def peak_rate(self) -> float:
        """The learning rate after the warm-up."""
        return LEARNING_RATE if self.learning_rate is None else self.learning_rate


def make_settings(options: Mapping[str, Any]) -> TrainSettings:
    """Settings from options by name.

    Raises
    ------
    UsageError
        Lists the options that are none, or out of their range.
    """
    try:
        return TrainSettings(**options)
    except ValidationError as error:
        faults = (f"{fault['loc'][0]}: {fault['msg']}, got {fault['input']!r}" for fault in error.errors())
        raise UsageError("; ".join(faults)) from None


def with_default_lr(settings: TrainSettings, model: str | None) -> TrainSettings:
    """Settings with a learning rate: the one they have, else that of the zoo's model."""
    if settings.learning_rate is None and model is not None:
        return dataclasses.replace(settings, learning_rate=model_entry(model).learning_rate)
    return dataclasses.replace(settings, learning_rate=settings.peak_rate)


NOT_PART_OF_THE_RESULT = frozenset({"workers", "command"})
"""What may change when a run is resumed."""
