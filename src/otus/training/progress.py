"""What a person sees of a run, on stderr."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from otus.training.state import UNPLANNED, RunState

_LINE_EVERY_S = 60.0


class TrainProgress:
    """A bar for the run while the block runs, or where nobody watches a line each minute; and a line for each epoch.

    Parameters
    ----------
    quiet
        Show nothing: in all processes but the first.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self._console = Console(stderr=True, quiet=quiet, markup=False, emoji=False)  # names stand as they are
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            TextColumn("{task.fields[figures]}"),
            TimeElapsedColumn(),
            console=self._console,
            transient=True,
            disable=quiet or not self._console.is_terminal,
        )
        self._task = self._bar.add_task("training", total=None, figures="")
        self._next_line_s = time.monotonic() + _LINE_EVERY_S

    def __enter__(self) -> "TrainProgress":
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def say(self, text: str) -> None:
        """A line that stays."""
        self._console.print(text, highlight=False, soft_wrap=True)

    @contextmanager
    def counting(self, what: str) -> Iterator[Callable[[int, int], None]]:
        """Call what it gives with how many are done and of how many; a bar, or where nobody watches a line each minute."""
        next_line_s = time.monotonic() + _LINE_EVERY_S
        columns = (TextColumn("{task.description}"), BarColumn(bar_width=20), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=self._console, transient=True, disable=self._bar.disable) as bar:
            task = bar.add_task(what, total=None)

            def count(done: int, total: int) -> None:
                nonlocal next_line_s
                bar.update(task, completed=done, total=total)
                if self._bar.disable and time.monotonic() > next_line_s:
                    next_line_s = time.monotonic() + _LINE_EVERY_S
                    self.say(f"{what}: {done} of {total}")

            yield count

    def step(self, state: RunState, losses: Mapping[str, float], *, steps_per_epoch: int, pictures: int) -> None:
        """Show where the run is; ``pictures`` are those of a step."""
        if self._console.quiet or (self._bar.disable and time.monotonic() < self._next_line_s):
            return
        step_s = state.seconds_of_steps / state.step
        known = state.total_steps < UNPLANNED
        parts = [f"loss {sum(losses.values()):.3f}"]
        parts += [f"{name} {value:.3f}" for name, value in losses.items()] if len(losses) > 1 else []
        parts += [f"{pictures / step_s:.1f} pictures/s", f"{state.waited_s / state.epoch_s:.0%} waiting"]
        if known:
            parts.append(f"{_duration((state.total_steps - state.step) * step_s)} left")
        epoch = f"epoch {(state.step - 1) // steps_per_epoch + 1}"
        if self._bar.disable:
            self._next_line_s = time.monotonic() + _LINE_EVERY_S
            self.say(f"{epoch}, step {state.step}: " + " · ".join(parts))
            return
        self._bar.update(
            self._task,
            description=epoch,
            total=state.total_steps if known else None,
            completed=state.step,
            figures=" · ".join(parts),
        )

    def epoch(self, row: dict[str, Any], *, total_epochs: float) -> None:
        """One line on an epoch that ended."""
        shown = {"loss": "loss {:.4f}", "score": "score {:.4f}", "pictures_per_s": "{:.1f} pictures/s"}
        parts = [text.format(row[name]) for name, text in shown.items() if row.get(name) is not None]
        parts += [f"{row['waiting_share']:.0%} waiting", f"{_duration(row['hours'] * 3600)} so far"]
        self.say(f"epoch {row['epoch']}/{total_epochs:.4g}: " + " · ".join(parts))


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
