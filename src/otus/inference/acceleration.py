"""A system whose heavy parts, backbone, pyramid and dense heads, are run by another runtime; boxes and regions stay here.

Each part is traced by ``torch.export`` with sizes left open and kept as ONNX in the cache folder, named by a hash of the
model's weights. What a part returns is compared with PyTorch's when it is written.
"""

import hashlib
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import otus
from otus._files import cache_folder, staged_file
from otus.data.sample import Sample
from otus.data.scenes.generator import Scenes
from otus.errors import ExportError, MissingExtraError, UsageError, did_you_mean
from otus.inference.runtimes import SESSIONS, Session, installed, onnx_program, open_session
from otus.parts.backbones.norms import fuse_frozen_norms
from otus.parts.fast.fusion import fused_for_inference
from otus.parts.preprocess import Preprocess
from otus.parts.system import BaseSystem

RUNTIMES = ("torch", *SESSIONS)
TOLERANCE = 1e-4
"""How far what a part returns may be from PyTorch's, as a share of its largest value."""
_TRACED_HW = (320, 384)
_TIMED_HW = (480, 640)
_REPEATS = 3


def choose_runtime(name: str, system: BaseSystem[Any, Any], preprocess: Preprocess) -> str:
    """Return a name in :data:`RUNTIMES`; ``auto`` is the fastest of those installed, as measured once on this machine.

    Raises
    ------
    UsageError
        If the name is unknown, or the system has no parts that another runtime can run.
    MissingExtraError
        If the runtime is not installed.
    """
    if name not in (*RUNTIMES, "auto"):
        known = ("auto", *RUNTIMES)
        raise UsageError(f"runtime: expected one of {', '.join(known)}, got {name!r}{did_you_mean(name, known)}")
    if name == "auto":
        return fastest_runtime(system, preprocess) if system.heavy_parts else "torch"
    if name != "torch" and not system.heavy_parts:
        raise UsageError(f"runtime: {name} runs backbones of detectors, which this model has not; choose torch")
    return name


def fastest_runtime(system: BaseSystem[Any, Any], preprocess: Preprocess) -> str:
    """Return the runtime that predicts fastest on a synthetic scene; measured once and kept in the cache folder."""
    file = _folder(system) / f"fastest-{torch.get_num_threads()}-threads.json"
    if file.is_file():
        seconds = msgspec.json.decode(file.read_bytes(), type=dict[str, float])
    else:
        sample = preprocess.prepare(Sample(Scenes(1, size_hw=_TIMED_HW).scene(0).image, "timed"))
        ways: dict[str, BaseSystem[Any, Any]] = {"torch": fused_for_inference(system)}
        for name in SESSIONS:
            try:
                ways[name] = accelerated(system, name)
            except MissingExtraError:
                continue
        seconds = dict.fromkeys(ways, float("inf"))
        for _ in range(_REPEATS + 1):  # in turn, so that what else runs on the machine disturbs all alike
            for name, way in ways.items():
                start = time.perf_counter()
                way.predict([sample])
                seconds[name] = min(seconds[name], time.perf_counter() - start)
        with staged_file(file) as stage:
            stage.write_bytes(msgspec.json.encode(seconds))
    return min((name for name in seconds if name in RUNTIMES), key=seconds.__getitem__)


def accelerated(system: BaseSystem[Any, Any], runtime: str) -> BaseSystem[Any, Any]:
    """Return a copy for predicting in float32 whose heavy parts are run by ``runtime``.

    Raises
    ------
    ExportError
        If a part cannot be traced, or returns something else than PyTorch's.
    """
    for package in ("onnx", "onnxscript", runtime):
        installed(package)
    folder = _folder(system)
    missing = [name for name in system.heavy_parts if not (folder / f"{name}.onnx").is_file()]
    if missing:
        plain = fuse_frozen_norms(system).to(memory_format=torch.contiguous_format)
        for name, inputs in _inputs_of(plain, missing).items():
            _write_part(plain.get_submodule(name), inputs, folder / f"{name}.onnx", runtime=runtime)
    fast = fused_for_inference(system)
    for name in system.heavy_parts:
        part = fast.get_submodule(name)
        part.forward = _run_by(open_session(folder / f"{name}.onnx", runtime=runtime), part.forward)
    return fast


def _folder(system: BaseSystem[Any, Any]) -> Path:
    """The cache of a system's parts: of other weights, or another version that writes them, it is another folder."""
    digest = hashlib.sha256(f"{otus.__version__} {torch.__version__} {system}".encode())
    for name, tensor in system.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return cache_folder() / "runtimes" / digest.hexdigest()[:32]


def _inputs_of(system: BaseSystem[Any, Any], names: Sequence[str]) -> dict[str, tuple[Any, ...]]:
    """What parts are called with on two images."""
    inputs: dict[str, tuple[Any, ...]] = {}
    hooks = [
        system.get_submodule(name).register_forward_pre_hook(
            lambda _, given, name=name: inputs.setdefault(name, given) and None
        )
        for name in names
    ]
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        images = torch.randn(2, 3, *_TRACED_HW, generator=generator)
        system(images, torch.tensor([_TRACED_HW] * 2))
    for hook in hooks:
        hook.remove()
    return {name: inputs[name] for name in names if name in inputs}


def _write_part(part: nn.Module, inputs: tuple[Any, ...], file: Path, *, runtime: str) -> None:
    leaves = pytree.tree_leaves(inputs)
    left_open = pytree.tree_map(lambda x: {i: torch.export.Dim.AUTO for i in range(x.ndim) if i != 1}, inputs)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of the exporter's own parts
        program = torch.export.export(part, inputs, dynamic_shapes=left_open, strict=False)
        spec = program.call_spec.out_spec
        expected = pytree.tree_leaves(part(*inputs))
        exported = onnx_program(
            program,
            inputs,
            input_names=[f"input_{i}" for i in range(len(leaves))],
            output_names=[f"output_{i}" for i in range(len(expected))],
            metadata=pytree.treespec_dumps(spec),
        )
    with staged_file(file) as stage:
        exported.save(stage)
        session = open_session(stage, runtime=runtime)
        found = _outputs(session, leaves)
        for reference, x in zip(expected, found, strict=True):
            apart = float((x - reference).abs().max()) / max(float(reference.abs().max()), 1e-12)
            if apart > TOLERANCE:
                raise ExportError(
                    f"runtime: {file.stem} returns values {apart:.1g} from PyTorch's; choose --runtime torch"
                )


def _outputs(session: Session, leaves: Sequence[Tensor]) -> list[Tensor]:
    arrays = {f"input_{i}": np.ascontiguousarray(x.numpy(force=True)) for i, x in enumerate(leaves)}
    return [torch.from_numpy(x) for x in session.run(**arrays).values()]


def _run_by(session: Session, own: Callable[..., Any]) -> Callable[..., Any]:
    assert session.metadata is not None
    spec = pytree.treespec_loads(session.metadata)

    def forward(*inputs: Any) -> Any:
        leaves = pytree.tree_leaves(inputs)
        if any(0 in x.shape for x in leaves):  # no region: nothing to run
            return own(*inputs)
        return pytree.tree_unflatten(_outputs(session, leaves), spec)

    return forward
