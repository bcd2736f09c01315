"""Whether this machine computes in bfloat16, and that everything that uses it checks first."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import otus
from otus.cli import app
from otus.errors import UsageError
from otus.experiments.compare import compare
from otus.inference.devices import choose_precision
from otus.parts.fast.fusion import FusedConvolution
from otus.parts.precision import multiplies_bfloat16, runs_bfloat16
from otus.training.devices import fastest_precision, start_fabric
from otus.training.run import resume_run
from otus.training.run_config import ARGUMENTS
from otus.training.settings import TrainSettings

CPU = torch.device("cpu")


@pytest.fixture
def lesser_chip(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make this machine appear as one without AVX-512."""
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "avx2")


def test_what_is_said_of_the_chip_is_so() -> None:
    conv = nn.Conv2d(8, 8, 3).to(torch.bfloat16)
    fused, x = FusedConvolution(conv, nn.ReLU()), torch.ones(1, 8, 9, 9, dtype=torch.bfloat16)
    with torch.inference_mode():
        if runs_bfloat16():
            assert fused(x).dtype == torch.bfloat16
        elif "ATEN_CPU_CAPABILITY" not in os.environ:
            with pytest.raises(RuntimeError, match="bf16 path needs"):
                fused(x)
    assert runs_bfloat16() or not multiplies_bfloat16()


def test_a_chip_that_onednn_holds_below_counts_as_one_without() -> None:
    code = "from otus.parts.precision import *; print(runs_bfloat16(), multiplies_bfloat16())"
    environment = os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX2"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout == "False False\n"


@pytest.mark.usefixtures("lesser_chip")
def test_the_fastest_precision_is_one_that_runs() -> None:
    assert choose_precision("auto", CPU) == "float32"
    assert fastest_precision("cpu") == "32-true"


@pytest.mark.usefixtures("lesser_chip")
def test_by_name_it_is_refused_before_any_work(tmp_path: Path) -> None:
    mixed = TrainSettings(precision="bf16-mixed", device="cpu")
    nowhere = tmp_path / "nowhere"
    for ask in (
        lambda: choose_precision("bfloat16", CPU),
        lambda: otus.load(nowhere / "none.safetensors", device="cpu", precision="bfloat16"),
        lambda: compare(["fcos_resnet50_fpn"], nowhere, settings=TrainSettings(device="cpu"), precision="bfloat16"),
        lambda: start_fabric(mixed),
        lambda: otus.train("fcos_resnet50_fpn", nowhere, settings=mixed),
    ):
        with pytest.raises(UsageError, match=r"^precision: bf.* cannot run on this processor: .* AVX-512; choose "):
            ask()
    config = {"precision": "bf16-mixed", "device": "cpu", "preprocess": {}} | dict.fromkeys(ARGUMENTS)
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UsageError, match="choose a new run with --weights of this one and --precision 32-true"):
        resume_run(tmp_path)


@pytest.mark.usefixtures("lesser_chip")
@pytest.mark.parametrize(
    "command",
    [
        "predict {image} --precision bfloat16",
        "explain detection {image} --precision bfloat16",
        "evaluate --data {data} --model fcos_efficientnet_lite0_fpn --precision bfloat16",
        "compare --data {data} --models fcos_efficientnet_lite0_fpn --precision bfloat16",
        "benchmark lineage {image} {image} {image} --precision bfloat16",
        "train --data {data} --weights packaged --precision bf16-mixed",
    ],
)
def test_the_command_says_so_in_a_sentence(command: str, tmp_path: Path) -> None:
    (tmp_path / "labels.json").write_text('{"images": [], "annotations": [], "categories": []}')
    image = Path(__file__).parents[2] / "docs" / "images" / "taxonomy.jpg"
    words = command.format(image=image, data=tmp_path / "labels.json").split()
    if words[0] != "benchmark":
        words += ["--device", "cpu"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 2, done.exception
    assert done.stderr.splitlines()[-1].startswith("otus: precision: bf")
    assert done.stdout == ""
