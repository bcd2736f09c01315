"""ONNX Runtime and OpenVINO: sessions that run a model file on the CPU."""

import importlib
import threading
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from otus.errors import CheckpointError, MissingExtraError, UsageError, did_you_mean

METADATA = "otus"
"""Key of the metadata that Otus stores in a file."""


class Session(Protocol):
    """A loaded model file, with inputs and outputs by name; ``metadata`` is what Otus stored in it, None if nothing."""

    metadata: str | None

    def run(self, **inputs: np.ndarray) -> dict[str, np.ndarray]: ...


class OnnxRuntimeSession:
    """An ONNX file run by ONNX Runtime."""

    def __init__(self, file: Path) -> None:
        runtime = require_package("onnxruntime")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3
        self._session = runtime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        self._names = [output.name for output in self._session.get_outputs()]
        self.metadata: str | None = self._session.get_modelmeta().custom_metadata_map.get(METADATA)

    def run(self, **inputs: np.ndarray) -> dict[str, np.ndarray]:
        """Return the outputs by name."""
        used = {x.name: inputs[x.name] for x in self._session.get_inputs()}  # the exporter drops unused inputs
        return dict(zip(self._names, self._session.run(None, used), strict=True))


class OpenVINOSession:
    """An ONNX or OpenVINO file run by OpenVINO."""

    def __init__(self, file: Path) -> None:
        core = openvino_core()
        model = core.read_model(str(file))
        settings = {
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "INFERENCE_PRECISION_HINT": "f32",
            "PERFORMANCE_HINT": "LATENCY",
        }
        self._model = core.compile_model(model, "CPU", settings)
        self._names = [output.any_name for output in self._model.outputs]
        self._lock = threading.Lock()
        self.metadata = self._metadata(model, file)

    @staticmethod
    def _metadata(model: Any, file: Path) -> str | None:
        if file.suffix == ".onnx":
            stored = require_package("onnx").load(str(file), load_external_data=False).metadata_props
            return next((entry.value for entry in stored if entry.key == METADATA), None)
        return str(model.get_rt_info([METADATA]).value) if model.has_rt_info([METADATA]) else None

    def run(self, **inputs: np.ndarray) -> dict[str, np.ndarray]:
        """Return the outputs by name."""
        used = {x.any_name: inputs[x.any_name] for x in self._model.inputs}
        with self._lock:  # a compiled model has one request, whose outputs the next call overwrites
            outputs = self._model(used)
            return {name: np.array(outputs[i]) for i, name in enumerate(self._names)}


@cache
def openvino_core() -> Any:
    """Return the process's ``openvino.Core``, which lives until the process ends.

    The CPU plugin of a Core gives the thread that compiles a model another stack for signal handlers, and frees it with the
    Core. If another Core or thread is involved, the thread keeps the freed stack, and the next signal, even Ctrl-C, is a
    segmentation fault (OpenVINO 2026.4).
    """
    return require_package("openvino").Core()


SESSIONS: Mapping[str, Callable[[Path], Session]] = {"onnxruntime": OnnxRuntimeSession, "openvino": OpenVINOSession}
"""Session class by runtime."""
NATIVE_RUNTIMES = {".onnx": "onnxruntime", ".xml": "openvino"}
"""Default runtime of a file, by its suffix."""


def require_package(package: str) -> Any:
    """Import a package of the optional extra ``export`` and return it.

    Raises
    ------
    MissingExtraError
        If it is not installed.
    """
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name != package:
            raise
        raise MissingExtraError(package, "export", "an exported model") from None


def onnx_program(
    program: Any, inputs: tuple[Any, ...], *, input_names: list[str], output_names: list[str], metadata: str
) -> Any:
    """Convert a program of ``torch.export`` to ONNX, with Otus' metadata."""
    exported = torch.onnx.export(
        program, inputs, dynamo=True, verbose=False, input_names=input_names, output_names=output_names
    )
    assert exported is not None
    exported.model.metadata_props[METADATA] = metadata
    return exported


def open_session(file: Path, *, runtime: str | None = None) -> Session:
    """Load a model file into a runtime.

    Parameters
    ----------
    file
        ``….onnx``, or OpenVINO's ``….xml`` beside its ``….bin``.
    runtime
        A name in :data:`SESSIONS` (default: that of the suffix in :data:`NATIVE_RUNTIMES`).

    Raises
    ------
    UsageError
        If there is no such runtime, or it does not read this kind of file.
    MissingExtraError
        If the runtime is not installed.
    CheckpointError
        If the file is damaged.
    """
    runtime = runtime or NATIVE_RUNTIMES[file.suffix]
    if runtime not in SESSIONS:
        raise UsageError(
            f"runtime: expected one of {', '.join(SESSIONS)} for {file}, got {runtime!r}{did_you_mean(runtime, SESSIONS)}"
        )
    if runtime == "onnxruntime" and file.suffix != ".onnx":
        raise UsageError(f"runtime: onnxruntime reads ….onnx, got {file}; leave out the runtime, or export to ONNX")
    try:
        return SESSIONS[runtime](file)
    except MissingExtraError:
        raise
    except Exception as error:  # each runtime has its own errors, none of them public
        raise CheckpointError(
            f"{file}: {runtime} cannot load it, it is damaged or uses operators unknown to this version: "
            f"{root_message(error)}"
        ) from None


def root_message(error: BaseException) -> str:
    """Return the first line of the original error, without those that exporters and runtimes wrap around it."""
    while error.__cause__ is not None:
        error = error.__cause__
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
