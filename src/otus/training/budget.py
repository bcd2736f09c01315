"""How many steps a budget of minutes pays for, and how many validations."""

from otus.training.settings import TrainSettings
from otus.training.state import RunState

_VALIDATING_SHARE = 0.1


def validation_is_due(state: RunState, *, epoch: int, settings: TrainSettings) -> bool:
    """Whether to validate at the end of an epoch (counted from 1); always at the end of the run."""
    if state.step >= state.total_steps:
        return True
    if settings.validate_every is not None:
        return epoch % settings.validate_every == 0
    since_last_s = state.seconds - state.validated_at_s
    return settings.minutes is None or state.seconds_of_validation <= _VALIDATING_SHARE * since_last_s


def plan_steps(state: RunState, *, steps_per_epoch: int, minutes: float, validate_every: int | None) -> int:
    """Total steps that fit into the budget at the speed measured so far; time for a last validation is left.

    The first plan does not know yet what a validation takes.
    """
    left_s = minutes * 60 - state.seconds - state.seconds_of_validation
    step_s = state.seconds_of_steps / state.step
    epoch_s = steps_per_epoch * step_s
    if validate_every is None:
        epoch_s += min(epoch_s * _VALIDATING_SHARE, state.seconds_of_validation)
    else:
        epoch_s += state.seconds_of_validation / validate_every
    return state.step + int(max(0.0, left_s) / epoch_s * steps_per_epoch)
