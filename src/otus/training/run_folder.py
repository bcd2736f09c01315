"""What a run writes: ``weights/best.safetensors``, ``weights/last.safetensors``, ``config.json``, ``run.json``,
``metrics.csv``, ``metrics.jsonl``, ``curves.png``.

All but the weights are for people and can be made again from ``weights/last.safetensors``.
"""

import contextlib
import csv
import importlib.util
import itertools
import json
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import otus
from otus._files import staged_file
from otus.errors import CheckpointError
from otus.reports.canvas import Canvas, write_plot
from otus.reports.training_plot import training_plot
from otus.training.state import RunState, Validation
from otus.zoo.checkpoint import CheckpointHeader, load_checkpoint, save_checkpoint


def new_run_folder(task: str, name: str, *, out: str | Path | None = None) -> Path:
    """Make ``<runs>/<task>/<name>``, with a number where that is taken; ``out``, else ``OTUS_RUNS``, else ``./runs``.

    It is made here, so that two runs that begin at once get two folders.
    """
    parent = Path(out or os.environ.get("OTUS_RUNS") or "runs") / task
    for number in itertools.count(1):
        folder = parent / (name if number == 1 else f"{name}-{number}")
        with contextlib.suppress(FileExistsError):
            folder.mkdir(parents=True)
            return folder
    raise AssertionError  # the numbers have no end


@dataclass(frozen=True)
class RunFolder:
    """The folder of one run.

    Parameters
    ----------
    path
        The folder; made when something is written.
    header
        What makes the tensors a model again; ``header.training`` says how they were trained.
    """

    path: Path
    header: CheckpointHeader

    @property
    def best(self) -> Path:
        """Weights of the best validation."""
        return self.path / "weights" / "best.safetensors"

    @property
    def last(self) -> Path:
        """Weights of the last step, and all that is needed to go on from there."""
        return self.path / "weights" / "last.safetensors"

    def write_json(self, name: str, document: Mapping[str, Any]) -> None:
        """A JSON file of the folder."""
        with staged_file(self.path / name) as stage:
            stage.write_text(json.dumps(document, indent=2, ensure_ascii=False, default=str) + "\n")

    def save_last(self, tensors: Mapping[str, Tensor], state: RunState) -> None:
        """Write all tensors of a run and its counters."""
        save_checkpoint(self.last, tensors, self._header(state, extra={"run": state.to_json()}))

    def save_best(self, weights: Mapping[str, Tensor], state: RunState, found: Validation) -> None:
        """Write the weights of the best validation so far."""
        save_checkpoint(self.best, weights, self._header(state, figures=dict(found.figures)))

    def read_last(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and counters that :meth:`save_last` wrote.

        Raises
        ------
        CheckpointError
            If there are none.
        """
        tensors, header = load_checkpoint(self.last)
        if "run" not in header.extra:
            raise CheckpointError(f"{self.last}: holds weights but no run to go on with; use --weights")
        return tensors, header.extra["run"]

    def write_records(self, state: RunState) -> None:
        """``run.json``, ``metrics.csv``, ``metrics.jsonl``, ``curves.png``, and events where tensorboard is installed."""
        history = state.history
        best = {"best_score": state.best_score, "best_step": state.best_step}
        self.write_json("run.json", {**environment(), **self._header(state).training, **best})
        columns = list(dict.fromkeys(name for row in reversed(history) for name in row))  # the first may be of no epoch
        with staged_file(self.path / "metrics.csv") as stage, open(stage, "w", newline="") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(history)
        with staged_file(self.path / "metrics.jsonl") as stage:
            stage.write_text("".join(json.dumps(row) + "\n" for row in history))
        write_plot(training_plot(history), self.path / "curves.png", Canvas())
        if importlib.util.find_spec("tensorboard") is not None:
            _write_events(self.path, history[-1])

    def _header(
        self, state: RunState, *, figures: dict[str, float] | None = None, extra: dict[str, Any] | None = None
    ) -> CheckpointHeader:
        training = {**self.header.training, "steps": state.step, "hours": state.seconds / 3600}
        if figures is not None:
            training["figures"] = figures
        return replace(self.header, training=training, extra=extra or {})


def environment() -> dict[str, Any]:
    """Versions and hardware."""
    return {
        "otus": otus.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "machine": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def _write_events(path: Path, row: Mapping[str, Any]) -> None:
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(path) as writer:
        for name, value in row.items():
            if value is not None:
                writer.add_scalar(name, value, row["step"])
