"""Progress of a run, which its checkpoint stores as JSON beside weights and optimizer."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from otus.parts.tasks import TASKS

UNPLANNED = 10**9
"""Total steps of a run whose speed has not been measured yet."""


_METRIC_TITLES = {metric: title for task in TASKS for metric, title in task.validation_metrics.items()}


def score_name(figures: Mapping[str, Any]) -> str:
    """Return the name of the figure by which the best weights are selected, the first available of ``_METRIC_TITLES``."""
    return next((name for figure, name in _METRIC_TITLES.items() if figure in figures), "score")


@dataclass(frozen=True)
class Validation:
    """Result of a validation: ``figures`` by name, and the score that selects the best weights (higher is better)."""

    figures: Mapping[str, float]
    score: float


@dataclass
class RunState:
    """Progress of a run: counters, times, best score and history.

    Parameters
    ----------
    total_steps
        Planned number of optimizer steps.
    step
        Number of steps done.
    planned_at, share_then, planned_at_s, warm_up
        Step of the last plan, completed fraction of the schedule at that step, and time in seconds; fraction of the
        schedule that is the warm-up (None before the first plan).
    seconds, seconds_of_steps, seconds_of_validation, validated_at_s
        Seconds of the run over all resumptions, of its steps, and of the last validation (before the first, an estimate
        if there is any), and the time at which the last validation ended.
    first_step_s
        Seconds of the first step, which is slower than the others.
    loss_sums, epoch_s, waited_s
        In the current epoch: sum of each loss over the steps, seconds of the steps, and seconds of waiting for images.
    best_score, best_step, validations_since_best
        Score and step of the best validation (None before the first), and number of validations since the last
        improvement.
    history
        One row per finished epoch, preceded by row 0 if the initial weights were validated.
    """

    total_steps: int
    step: int = 0
    planned_at: int = 0
    share_then: float = 0.0
    planned_at_s: float = 0.0
    warm_up: float | None = None
    first_step_s: float = 0.0
    seconds: float = 0.0
    seconds_of_steps: float = 0.0
    seconds_of_validation: float = 0.0
    validated_at_s: float = 0.0
    loss_sums: dict[str, float] = field(default_factory=dict)
    epoch_s: float = 0.0
    waited_s: float = 0.0
    best_score: float | None = None
    best_step: int | None = None
    validations_since_best: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Return the fields by name."""
        return asdict(self)

    @property
    def fraction_done(self) -> float:
        """Completed fraction of the schedule, 0 to 1; a new plan continues from the current value."""
        if self.total_steps == UNPLANNED:
            return 0.0
        steps = self.total_steps - self.planned_at
        return 1.0 if steps <= 0 else self.share_then + (1 - self.share_then) * (self.step - self.planned_at) / steps

    @property
    def step_s(self) -> float:
        """Mean seconds per step, without the first if there are others."""
        if self.step > 1 and 0 < self.first_step_s < self.seconds_of_steps:
            return (self.seconds_of_steps - self.first_step_s) / (self.step - 1)
        return self.seconds_of_steps / max(1, self.step)

    def plan(self, total_steps: int, *, warm_up: float) -> None:
        """Set the planned number of steps; the fraction ``warm_up`` of the first plan is kept by later ones."""
        self.share_then, self.planned_at, self.planned_at_s = self.fraction_done, self.step, self.seconds
        self.total_steps = total_steps
        if self.warm_up is None:
            self.warm_up = warm_up

    def record_step(self, losses: Mapping[str, float], *, seconds: float) -> None:
        """Record a step."""
        self.step += 1
        if self.step == 1:
            self.first_step_s = seconds
        self.seconds += seconds
        self.seconds_of_steps += seconds
        self.epoch_s += seconds
        for name, loss in losses.items():
            self.loss_sums[name] = self.loss_sums.get(name, 0.0) + loss

    def end_epoch(self, rate: float, *, steps_per_epoch: int, images: int) -> dict[str, Any]:
        """Add the row of the epoch that ended with the last step to the history; ``images`` is the number per step."""
        steps = self.step - (self.history[-1]["step"] if self.history else 0)
        row = {
            "epoch": -(-self.step // steps_per_epoch),
            "step": self.step,
            "learning_rate": rate,
            "loss": sum(self.loss_sums.values()) / steps,
            **{f"loss/{name}": total / steps for name, total in self.loss_sums.items()},
            "images_per_s": steps * images / self.epoch_s,
            "waiting_share": self.waited_s / self.epoch_s,
            "hours": self.seconds / 3600,
        }
        self.history.append(row)
        self.loss_sums, self.epoch_s, self.waited_s = {}, 0.0, 0.0
        return row

    def record_initial_validation(self, validation: Validation, *, seconds: float) -> dict[str, Any]:
        """Add the validation of the initial weights as row 0 of the history; it does not count for the best score."""
        row: dict[str, Any] = {"epoch": 0, "step": 0}
        self._add_figures(row, validation, seconds=seconds)
        self.history.append(row)
        return row

    def record_validation(self, row: dict[str, Any], validation: Validation, *, seconds: float) -> bool:
        """Add a validation to the row of its epoch; return whether its score is the best so far, or equal to the best."""
        self._add_figures(row, validation, seconds=seconds)
        improved = self.best_score is None or validation.score > self.best_score
        self.validations_since_best = 0 if improved else self.validations_since_best + 1
        if not improved and validation.score != self.best_score:
            return False
        self.best_score, self.best_step = validation.score, self.step
        return True

    def _add_figures(self, row: dict[str, Any], validation: Validation, *, seconds: float) -> None:
        row |= {"score": validation.score}
        row |= {name: value if math.isfinite(value) else None for name, value in validation.figures.items()}
        self.seconds += seconds
        self.seconds_of_validation = seconds
        self.validated_at_s = self.seconds
