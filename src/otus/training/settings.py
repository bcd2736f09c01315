"""Settings of a training run, with their defaults."""

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
"""Default batch size."""


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class TrainSettings:
    """Settings of :func:`otus.training.loop.fit`.

    Parameters
    ----------
    epochs
        Passes over the training images.
    minutes
        Time budget in minutes, instead of ``epochs``: the number of steps is planned from the measured speed, after the
        first steps and repeatedly afterwards, and the schedule follows the plan. The result depends on the speed of the
        machine, so two such runs are not bit-identical (a resumed run continues with the plan of its checkpoint).
    batch_size
        Images per batch, over all devices (default: 8, or fewer if a budget of ``minutes`` allows few steps).
    accumulate
        Number of batches whose gradients are accumulated for one optimizer step.
    optimizer, learning_rate, momentum, weight_decay
        The default learning rate is the model's own (:func:`with_default_lr`). Norms and biases have no weight decay.
        ``momentum`` applies to SGD; AdamW uses betas of 0.9 and 0.999.
    backbone_learning_rate_share
        Learning rate of the module called ``backbone``, if the system has one, as a fraction of ``learning_rate``.
    schedule, drops_at
        Schedule after the warm-up: cosine decay to 0, or a division by ten at each of these fractions of the run.
    warm_up_steps
        Steps of linear warm-up from a tenth of the learning rate (at most a tenth of the run).
    clip_norm
        Maximum norm of the gradients, to which larger ones are scaled; 0 for no clipping.
    average_decay
        Decay of the exponential moving average of the weights, which is validated and saved; 0 for no averaging.
    frozen_norms
        Freeze statistics, weights and biases of batch norms.
    frozen_encoder
        Freeze the image encoder of a promptable model. Images are not augmented, and the feature map of each is computed
        once, up to 4 GiB of them.
    scales
        Factors of the image size, one drawn per batch; (1,) for a constant size.
    boxes
        ``amodal`` trains on amodal boxes and masks (whole objects, including hidden parts) where the data have them.
    loss
        Losses of a semantic segmenter, which are summed: ``cross-entropy``, ``focal``, ``dice``, ``lovasz``, ``ohem``
        (cross-entropy of the hardest pixels); see :mod:`otus.parts.semantic_losses` (default: the model's own,
        cross-entropy).
    class_weights
        ``median-frequency`` weights the categories in the cross-entropy of a semantic segmenter, rare ones higher
        (default: all weights are 1).
    group_by_shape
        Batch portrait and landscape images separately, which reduces padding.
    patience
        Stop after this number of validations without improvement; 0 to never stop early.
    validate_every
        Epochs between validations (default: 1; with a budget of ``minutes``, as many as keep validation within a tenth
        of the time).
    precision
        ``bf16-mixed`` computes the convolutions in bfloat16, twice as fast on hardware that supports it; an error on
        other hardware.
    seed
        Seed of all random numbers: initial weights, order of images, augmentation, samplers.
    workers
        Number of threads that load images; does not affect the result.
    devices, num_nodes, device
        Number of devices per machine, number of machines (set up as by torchrun), and kind of device.
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
    frozen_encoder: bool = False
    scales: tuple[Annotated[float, Field(gt=0)], ...] = (1.0,)
    boxes: Literal["modal", "amodal"] = "modal"
    loss: tuple[Literal["cross-entropy", "focal", "dice", "lovasz", "ohem"], ...] | None = None
    class_weights: Literal["median-frequency"] | None = None
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
        if self.loss is not None and len(set(self.loss)) < max(1, len(self.loss)):
            raise UsageError(f"loss: expected different losses, at least one, got {self.loss}")
        if self.class_weights is not None and self.loss is not None and "cross-entropy" not in self.loss:
            raise UsageError(
                f"class_weights: apply to cross-entropy only, but loss is {' + '.join(self.loss)}; leave them out"
            )

    @property
    def images_per_batch(self) -> int:
        """Batch size over all devices."""
        processes = self.devices * self.num_nodes
        return max(1, BATCH_SIZE // processes) * processes if self.batch_size is None else self.batch_size

    @property
    def peak_rate(self) -> float:
        """Learning rate after the warm-up."""
        return LEARNING_RATE if self.learning_rate is None else self.learning_rate


def make_settings(options: Mapping[str, Any]) -> TrainSettings:
    """Return settings from options by name.

    Raises
    ------
    UsageError
        If an option is unknown or out of range; the message lists them.
    """
    try:
        return TrainSettings(**options)
    except ValidationError as error:
        faults = (f"{fault['loc'][0]}: {fault['msg']}, got {fault['input']!r}" for fault in error.errors())
        raise UsageError("; ".join(faults)) from None


def with_default_lr(settings: TrainSettings, model: str | None) -> TrainSettings:
    """Return the settings with a learning rate: their own if set, else the default of the zoo's model."""
    if settings.learning_rate is None and model is not None:
        return dataclasses.replace(settings, learning_rate=model_entry(model).learning_rate)
    return dataclasses.replace(settings, learning_rate=settings.peak_rate)


CHANGEABLE_ON_RESUME = frozenset({"workers", "command"})
"""Settings that may change when a run is resumed."""
