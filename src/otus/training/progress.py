"""Progress display of a training run, on stderr."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Column

from otus.training.state import UNPLANNED, RunState, score_name

_LINE_EVERY_S = 60.0
_BAR = 20  # columns


class TrainProgress:
    """Context manager that shows a progress bar (without a terminal, a line per minute) and a line per epoch.

    Parameters
    ----------
    quiet
        Show nothing, as in all processes but the first.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self._console = Console(
            stderr=True, quiet=quiet, markup=False, emoji=False
        )  # names are not interpreted as markup
        one_line = Column(no_wrap=True)  # a column that wraps would make the bar two lines high
        self._bar = Progress(
            TextColumn("{task.description}", table_column=one_line),
            BarColumn(bar_width=_BAR),
            TextColumn("{task.fields[figures]}", table_column=one_line),
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

    def log(self, text: str) -> None:
        """Print a line above the bar."""
        self._console.print(text, highlight=False, soft_wrap=True)

    @contextmanager
    def counting(self, description: str) -> Iterator[Callable[[int, int], None]]:
        """Show a progress bar; the block calls the yielded function with the numbers of finished and of all items."""
        next_line_s = time.monotonic() + _LINE_EVERY_S
        columns = (TextColumn("{task.description}"), BarColumn(bar_width=20), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=self._console, transient=True, disable=self._bar.disable) as bar:
            task = bar.add_task(description, total=None)

            def count(done: int, total: int) -> None:
                nonlocal next_line_s
                bar.update(task, completed=done, total=total)
                if self._bar.disable and time.monotonic() > next_line_s:
                    next_line_s = time.monotonic() + _LINE_EVERY_S
                    self.log(f"{description}: {done} of {total}")

            yield count

    def step(self, state: RunState, losses: Mapping[str, float], *, steps_per_epoch: int, images: int) -> None:
        """Update the bar after a step of ``images`` images."""
        if self._console.quiet or (self._bar.disable and time.monotonic() < self._next_line_s):
            return
        is_planned = state.total_steps < UNPLANNED
        parts = [f"loss {sum(losses.values()):.3f}", f"{images / state.step_s:.1f} images/s"]
        if is_planned:
            parts.append(f"{_duration((state.total_steps - state.step) * state.step_s)} left")
        optional_parts = [f"{state.waited_s / state.epoch_s:.0%} waiting"]
        optional_parts += [f"{name} {value:.3f}" for name, value in losses.items()] if len(losses) > 1 else []
        epoch = f"epoch {-(-state.step // steps_per_epoch)}"
        if is_planned:
            epoch += f"/{-(-state.total_steps // steps_per_epoch)}"
        if self._bar.disable:
            self._next_line_s = time.monotonic() + _LINE_EVERY_S
            self.log(f"{epoch}, step {state.step}: " + " · ".join(parts + optional_parts))
            return
        width = self._console.width - len(epoch) - _BAR - 2  # two gaps
        self._bar.update(
            self._task,
            description=epoch,
            total=state.total_steps if is_planned else None,
            completed=state.step,
            figures=_join_to_width(parts, optional_parts, width),
        )

    def start(self, row: dict[str, Any]) -> None:
        """Print a line on the validation of the initial weights."""
        self.log(f"before training: {score_name(row)} {row['score']:.3f}")

    def epoch(self, row: dict[str, Any], *, total_epochs: int) -> None:
        """Print a line on a finished epoch."""
        formats = {"loss": "loss {:.4f}", "score": score_name(row) + " {:.3f}", "images_per_s": "{:.1f} images/s"}
        parts = [text.format(row[name]) for name, text in formats.items() if row.get(name) is not None]
        parts += [f"{row['waiting_share']:.0%} waiting", f"{_duration(row['hours'] * 3600)} so far"]
        self.log(f"epoch {row['epoch']}/{total_epochs}: " + " · ".join(parts))


def _join_to_width(parts: Sequence[str], optional_parts: Sequence[str], width: int) -> str:
    """Join the parts, and as many optional parts as fit into ``width`` columns."""
    text = " · ".join(parts)
    for part in optional_parts:
        if len(longer := f"{text} · {part}") > width:
            break
        text = longer
    return text


def _duration(seconds: float) -> str:
    """Return ``H:MM:SS``."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
