"""Trained weights: torchvision's detector, trained by torchvision, has the same AP in Otus."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "trained_weights.py"


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_trained_weights_have_the_same_average_precision(shared_data):
    done = subprocess.run(
        [sys.executable, SCRIPT, "--data", shared_data / "penn_fudan", "--minutes", "4", "--images", "6"],
        capture_output=True,
        text=True,
        check=True,
        timeout=1100,
    )
    figures = {}
    for line in done.stdout.splitlines():
        words = line.split()
        if "AP" in words:
            figures[" ".join(words[:2])] = float(words[words.index("AP") + 1])
    reference = figures["torchvision float32"]
    assert reference > 0.05, done.stdout
    assert figures["otus exact"] == pytest.approx(reference, abs=1e-4)
    assert figures["otus float32"] == pytest.approx(reference, abs=1e-4)
