"""Where a run is: what its checkpoint holds beside weights and optimizer, as JSON."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from otus.parts.tasks import TASKS

UNPLANNED = 10**9
"""Steps of a run whose speed is not measured yet."""


_SCORES = {figure: name for task in TASKS for figure, name in task.scores.items()}


def score_name(figures: Mapping[str, Any]) -> str:
    """What the score is by which weights are chosen: the finest figure there is."""
    return next((name for figure, name in _SCORES.items() if figure in figures), "score")


@dataclass(frozen=True)
class Validation:
    """What a validation found: ``figures`` by name, and the one by which the best weights are chosen (more is better)."""

    figures: Mapping[str, float]
    score: float


@dataclass
class RunState:
    """Counters of a run.

    Parameters
    ----------
    total_steps
        Steps of the optimizer that the run is planned to take.
    step
        Steps taken.
    planned_at, share_then, planned_at_s, warm_up
        The step of the last plan, what share of the schedule was done by then, and the time; and the share of the schedule
        that is the warm-up, None where nothing is planned.
    seconds, seconds_of_steps, seconds_of_validation, validated_at_s
        Time spent over all resumptions, what of it went into steps, what the last validation took (before the first an
        estimate, if anything), and when it ended.
    first_step_s
        Of the first step, which is slower than the others.
    loss_sums, epoch_s, waited_s
        Of the epoch so far: sum of each loss over the steps, time of them, and what of it went by waiting for images.
    best_score, best_step, validations_since_best
        The best validation; None before the first. Validations since one that was better than all before it.
    history
        A row for each epoch that ended; before them row 0, where the start was validated.
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
        """The counters by name."""
        return asdict(self)

    @property
    def share(self) -> float:
        """The share of the schedule that is done; it goes on from where it stood when the steps are planned anew."""
        if self.total_steps == UNPLANNED:
            return 0.0
        left = self.total_steps - self.planned_at
        return 1.0 if left <= 0 else self.share_then + (1 - self.share_then) * (self.step - self.planned_at) / left

    @property
    def step_s(self) -> float:
        """Seconds of a step, the first left out where there are others."""
        if self.step > 1 and 0 < self.first_step_s < self.seconds_of_steps:
            return (self.seconds_of_steps - self.first_step_s) / (self.step - 1)
        return self.seconds_of_steps / max(1, self.step)

    def plan(self, total_steps: int, *, warm_up: float) -> None:
        """Go on to so many steps; ``warm_up`` is the share of it, by the first plan."""
        self.share_then, self.planned_at, self.planned_at_s = self.share, self.step, self.seconds
        self.total_steps = total_steps
        if self.warm_up is None:
            self.warm_up = warm_up

    def count_step(self, losses: Mapping[str, float], *, seconds: float) -> None:
        """A step was taken."""
        self.step += 1
        if self.step == 1:
            self.first_step_s = seconds
        self.seconds += seconds
        self.seconds_of_steps += seconds
        self.epoch_s += seconds
        for name, loss in losses.items():
            self.loss_sums[name] = self.loss_sums.get(name, 0.0) + loss

    def end_epoch(self, rate: float, *, steps_per_epoch: int, images: int) -> dict[str, Any]:
        """The row of the epoch that ended with the last step, added to the history; ``images`` are those of a step."""
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

    def count_start(self, found: Validation, *, seconds: float) -> dict[str, Any]:
        """Add row 0 to the history, a validation before the first step; it is none of those that the best is chosen of."""
        row: dict[str, Any] = {"epoch": 0, "step": 0}
        self._add_figures(row, found, seconds=seconds)
        self.history.append(row)
        return row

    def count_validation(self, row: dict[str, Any], found: Validation, *, seconds: float) -> bool:
        """Add a validation to the row of its epoch; whether it is the best so far, of equals the last."""
        self._add_figures(row, found, seconds=seconds)
        better = self.best_score is None or found.score > self.best_score
        self.validations_since_best = 0 if better else self.validations_since_best + 1
        if not better and found.score != self.best_score:
            return False
        self.best_score, self.best_step = found.score, self.step
        return True

    def _add_figures(self, row: dict[str, Any], found: Validation, *, seconds: float) -> None:
        row |= {"score": found.score}
        row |= {name: value if math.isfinite(value) else None for name, value in found.figures.items()}
        self.seconds += seconds
        self.seconds_of_validation = seconds
        self.validated_at_s = self.seconds
