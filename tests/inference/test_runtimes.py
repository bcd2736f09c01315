"""Runtimes beside the rest of the process."""

import subprocess
import sys

import pytest

pytest.importorskip("openvino", reason="needs the extra: pip install 'otus[export]'")

FREED_SESSIONS = """
import faulthandler, signal, sys
from pathlib import Path
import openvino
from openvino import opset13
from otus.inference.runtimes import OpenVINOSession

faulthandler.enable()
x = opset13.parameter([1, 4], name="x")
openvino.save_model(openvino.Model([opset13.relu(x)], [x]), sys.argv[1])
sessions = [OpenVINOSession(Path(sys.argv[1])) for _ in range(2)]
while sessions:
    del sessions[0]
try:
    signal.raise_signal(signal.SIGINT)
except KeyboardInterrupt:
    print("interrupted")
"""


def test_the_process_survives_a_signal_after_sessions_are_freed(tmp_path):
    arguments = [sys.executable, "-c", FREED_SESSIONS, str(tmp_path / "relu.xml")]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "interrupted\n"), done.stderr
