"""Runtimes beside PyTorch, ONNX Runtime and OpenVINO: sessions that run a file on the CPU."""

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from otus.errors import CheckpointError, MissingExtraError, UsageError, did_you_mean

METADATA = "otus"
"""Name under which a file keeps what Otus says of it."""


class Session(Protocol):
    """A file that is loaded: arrays in, arrays out by name; ``metadata`` is what Otus wrote into it, None if nothing."""

    metadata: str | None

    def run(self, **inputs: np.ndarray) -> dict[str, np.ndarray]: ...


class OnnxRuntimeSession:
    """An ONNX file run by ONNX Runtime."""

    def __init__(self, file: Path) -> None:
        runtime = installed("onnxruntime")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3
        self._session = runtime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        self._names = [output.name for output in self._session.get_outputs()]
        self.metadata: str | None = self._session.get_modelmeta().custom_metadata_map.get(METADATA)

    def run(self, **inputs: np.ndarray) -> dict[str, np.ndarray]:
        """Return the outputs by name."""
        known = {x.name: inputs[x.name] for x in self._session.get_inputs()}
        return dict(zip(self._names, self._session.run(None, known), strict=True))


class OpenVINOSession:
    """An ONNX file, or OpenVINO's own, run by OpenVINO."""

    def __init__(self, file: Path) -> None:
        core = installed("openvino").Core()
        model = core.read_model(str(file))
        settings = {
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "INFERENCE_PRECISION_HINT": "f32",
            "PERFORMANCE_HINT": "LATENCY",
        }
        self._model = core.compile_model(model, "CPU", settings)
        self._names = [output.any_name for output in self._model.outputs]
        self.metadata = self._metadata(model, file)

    @staticmethod
    def _metadata(model: Any, file: Path) -> str | None:
        if file.suffix == ".onnx":
            stored = installed("onnx").load(str(file), load_external_data=False).metadata_props
            return next((entry.value for entry in stored if entry.key == METADATA), None)
        return str(model.get_rt_info([METADATA]).value) if model.has_rt_info([METADATA]) else None

    def run(self, **inputs: np.ndarray) -> dict[str, np.ndarray]:
        """Return the outputs by name."""
        outputs = self._model({x.any_name: inputs[x.any_name] for x in self._model.inputs})
        return {name: np.array(outputs[i]) for i, name in enumerate(self._names)}


SESSIONS: Mapping[str, Callable[[Path], Session]] = {"onnxruntime": OnnxRuntimeSession, "openvino": OpenVINOSession}
"""What opens a file, by runtime."""
NATIVE_RUNTIMES = {".onnx": "onnxruntime", ".xml": "openvino"}
"""The runtime that opens a file unless another is asked for, by suffix."""


def installed(package: str) -> Any:
    """Return an optional package of the extra ``export``.

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
    """Return a program of ``torch.export`` as ONNX, to be saved, with what Otus says of it."""
    exported = torch.onnx.export(
        program, inputs, dynamo=True, verbose=False, input_names=input_names, output_names=output_names
    )
    assert exported is not None
    exported.model.metadata_props[METADATA] = metadata
    return exported


def open_session(file: Path, *, runtime: str | None = None) -> Session:
    """Load a file into a runtime.

    Parameters
    ----------
    file
        ``….onnx``, or OpenVINO's ``….xml`` beside its ``….bin``.
    runtime
        A name in :data:`SESSIONS` (default: by the suffix).

    Raises
    ------
    UsageError
        If there is no such runtime, or it does not read this kind of file.
    MissingExtraError
        If it is not installed.
    CheckpointError
        If the file is damaged.
    """
    runtime = runtime or NATIVE_RUNTIMES[file.suffix]
    if runtime not in SESSIONS:
        raise UsageError(
            f"runtime: expected one of {', '.join(SESSIONS)} for {file}, got {runtime!r}{did_you_mean(runtime, SESSIONS)}"
        )
    if runtime == "onnxruntime" and file.suffix != ".onnx":
        raise UsageError(f"runtime: onnxruntime reads ….onnx, got {file}; leave the runtime out, or export to onnx")
    try:
        return SESSIONS[runtime](file)
    except MissingExtraError:
        raise
    except Exception as error:  # each runtime has its own, of which none is public
        raise CheckpointError(
            f"{file}: {runtime} cannot load it, it is damaged or uses what this version does not know: "
            f"{first_line_of(error)}"
        ) from None


def first_line_of(error: BaseException) -> str:
    """Return the first line of the error at the bottom, without the many that exporters and runtimes add."""
    while error.__cause__ is not None:
        error = error.__cause__
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
