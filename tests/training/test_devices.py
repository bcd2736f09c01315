"""Training by two processes (gloo) equals training by one, in both precisions."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from otus.parts.precision import runs_bfloat16
from otus.training.devices import start_fabric
from otus.training.settings import TrainSettings
from otus.training.validation import Validator
from otus.zoo.checkpoint import checkpoint_part, load_checkpoint
from tiny_run import PREPROCESS, TinyDetector, write_scenes

SCRIPT = Path(__file__).parents[1] / "tiny_run.py"
PRECISION, DTYPE = ("bf16-mixed", "torch.bfloat16") if runs_bfloat16() else ("32-true", "torch.float32")
OPTIONS = {"epochs": 2, "devices": 2, "precision": PRECISION, "batch_size": 4, "accumulate": 2}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Use one thread, as in the processes: the number of threads affects the last digits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def start(command: list[object], **environment: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, *map(str, command)], env=os.environ | {"OMP_NUM_THREADS": "1"} | environment
    )


def check(folder: Path, scenes: Path) -> None:
    assert {(folder / f"dtypes{rank}.json").read_text() for rank in (0, 1)} == {json.dumps([DTYPE])}
    last = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    system = TinyDetector().to(memory_format=torch.channels_last)
    system.load_state_dict(checkpoint_part(load_checkpoint(folder / "weights/last.safetensors")[0]))
    alone = start_fabric(TrainSettings(device="cpu"))
    found = Validator(write_scenes(scenes, 12).select(range(11)), PREPROCESS, alone)(system)
    assert last["bbox/AP"] > 0
    assert {name: last[name] for name in found.figures if last[name] is not None} == {
        name: value for name, value in found.figures.items() if value == value
    }


def test_two_processes_train_the_same_weights_as_one(tmp_path: Path) -> None:
    folder, scenes = tmp_path / "run", tmp_path / "scenes"
    write_scenes(scenes, 12)
    assert start([SCRIPT, folder, scenes, json.dumps(OPTIONS)]).wait(200) == 0
    check(folder, scenes)


@pytest.mark.slow
def test_two_nodes_in_the_environment_of_torchrun(tmp_path: Path) -> None:
    folder, scenes = tmp_path / "run", tmp_path / "scenes"
    write_scenes(scenes, 12)
    options = json.dumps({**OPTIONS, "devices": 1, "num_nodes": 2})
    launcher = ["-m", "torch.distributed.run", "--nnodes", 2, "--nproc-per-node", 1]
    launcher += ["--master-addr", "127.0.0.1", "--master-port", 29611]
    nodes = [start([*launcher, "--node-rank", rank, SCRIPT, folder, scenes, options]) for rank in (0, 1)]
    assert [node.wait(200) for node in nodes] == [0, 0]
    last = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["epoch"] == 2
