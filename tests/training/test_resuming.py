"""A run that is interrupted anywhere and resumed ends with bit-identical weights."""

import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from otus.data.dataset import Dataset
from otus.errors import OtusError, UsageError
from otus.training import loop
from otus.training.interrupts import Interrupts
from otus.training.resuming import check_unchanged
from otus.zoo.checkpoint import load_checkpoint
from tiny_run import TinyDetector, interrupt_at, run, tiny_detector

SCRIPT = Path(__file__).parents[1] / "tiny_run.py"
OPTIONS = {"epochs": 6, "workers": 2, "scales": [0.75, 1.0], "accumulate": 2, "batch_size": 2}


def start(folder: Path, scenes: Path, **options: object) -> subprocess.Popen:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, SCRIPT, folder, scenes, json.dumps(OPTIONS | options)]
    return subprocess.Popen(command, env=environment)


def same_tensors(first: Path, second: Path) -> None:
    ours, theirs = load_checkpoint(first)[0], load_checkpoint(second)[0]
    assert set(ours) == set(theirs)
    different = [name for name in ours if not torch.equal(ours[name], theirs[name])]
    assert not different


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_resumed_run_ends_in_the_same_weights(
    scenes: Dataset, tmp_path: Path, optimizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {**OPTIONS, "optimizer": optimizer, "validation": scenes}
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert run(tiny_detector(), scenes, whole, **options).ended == "done"
    for step in (7, 12):  # in the middle of an epoch, and at the end of one
        with monkeypatch.context() as patch:
            interrupt_at(patch, step)
            assert run(tiny_detector(), scenes, parts, resume=step != 7, **options).ended == "interrupted"
    result = run(TinyDetector(), scenes, parts, resume=True, **options)
    assert result.ended == "done"
    assert [row["step"] for row in result.history] == [3, 6, 9, 12, 15, 18]
    same_tensors(whole / "weights/last.safetensors", parts / "weights/last.safetensors")
    same_tensors(whole / "weights/best.safetensors", parts / "weights/best.safetensors")


def test_a_resumed_run_goes_on_with_its_plan(scenes: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A resumed run uses the number of steps and the schedule of the checkpoint, however often they were planned before."""
    plans = {3: 30, 6: 12, 8: 15}
    monkeypatch.setattr(loop, "plan_is_due", lambda state, minutes: state.step in plans)
    monkeypatch.setattr(loop, "plan_steps", lambda state, **_: plans[state.step])
    options = {**OPTIONS, "minutes": 60, "validation": scenes}
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert run(tiny_detector(), scenes, whole, **options).history[-1]["step"] == 15
    for step in (2, 7, 10):
        with monkeypatch.context() as patch:
            interrupt_at(patch, step)
            assert run(tiny_detector(), scenes, parts, resume=step != 2, **options).ended == "interrupted"
    result = run(TinyDetector(), scenes, parts, resume=True, **options)
    assert result.history[-1]["step"] == 15
    rates = [row["learning_rate"] for row in result.history]
    assert rates[0] == pytest.approx(0.001), "before there is a plan the schedule stands at its start"
    assert rates[1:] == sorted(rates[1:], reverse=True)
    same_tensors(whole / "weights/last.safetensors", parts / "weights/last.safetensors")


@pytest.mark.slow
def test_killed_at_random_moments(tmp_path: Path) -> None:
    whole, parts, scenes = tmp_path / "whole", tmp_path / "parts", tmp_path / "scenes"
    assert start(whole, scenes).wait() == 0
    last = parts / "weights/last.safetensors"
    draw = random.Random(0)
    for _ in range(5):
        written = last.stat().st_mtime if last.exists() else 0
        process = start(parts, scenes, resume=last.exists())
        while process.poll() is None and not (last.exists() and last.stat().st_mtime > written):
            time.sleep(0.01)
        time.sleep(draw.uniform(0, 0.5))
        process.kill()
        process.wait()
        load_checkpoint(last)  # whole, whatever the moment
    assert start(parts, scenes, resume=True).wait() == 0
    same_tensors(whole / "weights/last.safetensors", last)
    same_tensors(whole / "weights/best.safetensors", parts / "weights/best.safetensors")


def test_another_run_is_not_resumed() -> None:
    before = {"seed": 0, "workers": 2, "data": "a1"}
    check_unchanged(before, before | {"workers": 0})
    with pytest.raises(UsageError, match=r"seed: was 0, is 1; data: was a1, is b2"):
        check_unchanged(before, {"seed": 1, "workers": 2, "data": "b2"})


def test_a_full_disk_keeps_the_checkpoint(scenes: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tiny_detector(), scenes, tmp_path, epochs=1)
    before = (tmp_path / "weights/last.safetensors").read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OtusError, match="No space left on device"):
        run(tiny_detector(), scenes, tmp_path, epochs=2)
    assert (tmp_path / "weights/last.safetensors").read_bytes() == before
    assert [file.name for file in (tmp_path / "weights").iterdir()] == ["last.safetensors"]


def test_the_second_interrupt_ends_at_once() -> None:
    with Interrupts() as interrupts:
        os.kill(os.getpid(), signal.SIGINT)
        assert interrupts.requested
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
