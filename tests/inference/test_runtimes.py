"""Runtimes beside the rest of the process."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

pytest.importorskip("openvino", reason="needs the extra: pip install 'otus[export]'")

import openvino
from openvino import opset13

from otus.inference.runtimes import OpenVINOSession

FREED_SESSIONS = """
import faulthandler, signal, sys
from pathlib import Path
import openvino
from openvino import opset13
from otus.inference.runtimes import OpenVINOSession

faulthandler.enable()
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have started this process with it ignored
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


def test_threads_get_their_own_results(tmp_path):
    x = opset13.parameter([1, 1000], name="x")
    openvino.save_model(openvino.Model([opset13.relu(x)], [x]), tmp_path / "relu.xml")
    session = OpenVINOSession(tmp_path / "relu.xml")

    def same(value: int) -> bool:
        (output,) = session.run(x=np.full((1, 1000), value, np.float32)).values()
        return bool((output == value).all())

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(same, range(400)))
