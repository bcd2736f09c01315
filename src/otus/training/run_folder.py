"""The folder of a run, and the files that are written to it.

They are ``weights/best.safetensors``, ``weights/last.safetensors``, ``config.json``, ``run.json``, ``metrics.csv``,
``metrics.jsonl`` and ``curves.png``. All but the weights are for people; they can be restored from
``weights/last.safetensors``.
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
    """Create and return the folder ``out/task/name``, or ``name-2`` … if it exists.

    It is created here, so that two runs that start at the same time get different folders.

    Parameters
    ----------
    task, name
        Names of the task and of the run.
    out
        Parent folder of all runs (default: the environment variable ``OTUS_RUNS``, else ``./runs``).
    """
    parent = Path(out or os.environ.get("OTUS_RUNS") or "runs") / task
    for number in itertools.count(1):
        folder = parent / (name if number == 1 else f"{name}-{number}")
        with contextlib.suppress(FileExistsError):
            folder.mkdir(parents=True)
            return folder
    raise AssertionError  # never reached


@dataclass(frozen=True)
class RunFolder:
    """The folder of one run.

    Parameters
    ----------
    path
        The folder; created when something is written.
    header
        Header of the run's checkpoints; ``header.training`` records the training.
    """

    path: Path
    header: CheckpointHeader

    @property
    def best(self) -> Path:
        """Weights of the best validation."""
        return self.path / "weights" / "best.safetensors"

    @property
    def last(self) -> Path:
        """Checkpoint of the last step, from which the run can be resumed."""
        return self.path / "weights" / "last.safetensors"

    def write_json(self, name: str, document: Mapping[str, Any]) -> None:
        """Write a JSON file in the folder."""
        with staged_file(self.path / name) as stage:
            text = json.dumps(document, indent=2, ensure_ascii=False, default=str) + "\n"
            stage.write_text(text, errors="backslashreplace")  # file names that are not UTF-8, as JSON escapes them

    def save_last(self, tensors: Mapping[str, Tensor], state: RunState) -> None:
        """Write all tensors of a run and its counters."""
        save_checkpoint(self.last, tensors, self._header(state, extra={"run": state.to_json()}))

    def save_best(self, weights: Mapping[str, Tensor], state: RunState, validation: Validation) -> None:
        """Write the weights of the best validation so far."""
        save_checkpoint(self.best, weights, self._header(state, figures=dict(validation.figures)))

    def read_last(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Read the tensors and counters that :meth:`save_last` wrote.

        Raises
        ------
        CheckpointError
            If the file does not exist, or has no counters.
        """
        tensors, header = load_checkpoint(self.last)
        if "run" not in header.extra:
            raise CheckpointError(f"{self.last}: has weights but no run that can be resumed; use it as --weights")
        return tensors, header.extra["run"]

    def write_records(self, state: RunState) -> None:
        """Write ``run.json``, ``metrics.csv``, ``metrics.jsonl``, ``curves.png``, and TensorBoard events if installed."""
        history = state.history
        best = {"best_score": state.best_score, "best_step": state.best_step}
        self.write_json("run.json", {**environment(), **self._header(state).training, **best})
        # Reversed, because row 0, the validation of the initial weights, lacks some columns.
        columns = list(dict.fromkeys(name for row in reversed(history) for name in row))
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
    """Return the versions of Otus, Python and torch, and the hardware."""
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
