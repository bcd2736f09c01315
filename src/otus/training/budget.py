"""How many steps a budget of minutes pays for."""

from otus.training.state import RunState


def plan_steps(state: RunState, *, steps_per_epoch: int, minutes: float, validate_every: int) -> int:
    """Total steps that fit into the budget at the speed measured so far.

    Whole epochs where at least one more fits. The first plan does not know yet what a validation takes.
    """
    left_s = minutes * 60 - state.seconds - state.seconds_of_validation
    step_s = state.seconds_of_steps / state.step
    epoch_s = steps_per_epoch * step_s + state.seconds_of_validation / validate_every
    done = state.step % steps_per_epoch
    steps = int(max(0.0, left_s) / epoch_s * steps_per_epoch)
    if done + steps >= steps_per_epoch:
        steps = (done + steps) // steps_per_epoch * steps_per_epoch - done
    return state.step + steps
