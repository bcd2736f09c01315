"""Run the heavy parts of a system (backbone, FPN, heads) in another runtime; NMS, RoI pooling and the like stay in PyTorch.

Each part is traced by ``torch.export`` with dynamic sizes and stored as ONNX in the cache folder, under a hash of the model.
When it is written, its outputs are compared with PyTorch's.
"""

import hashlib
import time
import warnings
from collections.abc import Callable, Sequence
from importlib.util import find_spec
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
from otus.errors import CheckpointError, ExportError, UsageError, did_you_mean
from otus.inference.runtimes import SESSIONS, Session, onnx_program, open_session, require_package, root_message
from otus.parts.backbones.norms import fuse_frozen_norms
from otus.parts.batching import make_batch
from otus.parts.fast.fusion import fused_for_inference
from otus.parts.preprocess import Preprocess
from otus.parts.system import BaseSystem
from otus.parts.tasks import PROMPTABLE

RUNTIMES = ("torch", *SESSIONS)
"""Names of the runtimes; ``torch`` is PyTorch itself."""
TOLERANCE = 1e-4
"""Maximum difference of a part's outputs from PyTorch's, relative to the largest value."""
_EXPORT_PACKAGES = ("onnx", "onnxscript")
_TRACED_HW = (320, 384)
_TIMED_HW = (480, 640)
_REPEATS = 3


def choose_runtime(name: str, system: BaseSystem[Any, Any], preprocess: Preprocess) -> str:
    """Return ``name`` if the system can be run by that runtime; for ``auto``, the :func:`fastest_runtime`.

    Raises
    ------
    UsageError
        If the name is unknown, or the system has no parts that another runtime can run.
    """
    if name not in (*RUNTIMES, "auto"):
        names = ("auto", *RUNTIMES)
        raise UsageError(f"runtime: expected one of {', '.join(names)}, got {name!r}{did_you_mean(name, names)}")
    if name == "auto":
        return fastest_runtime(system, preprocess) if system.heavy_parts else "torch"
    if name != "torch" and not system.heavy_parts:
        raise UsageError(f"runtime: this model has no parts that {name} can run; use torch")
    return name


def fastest_runtime(system: BaseSystem[Any, Any], preprocess: Preprocess) -> str:
    """Return the installed runtime that predicts fastest on a synthetic scene; one that cannot run the system is left out.

    It is measured once for the installed runtimes, and stored in the cache folder.
    """
    can_export = all(find_spec(package) is not None for package in _EXPORT_PACKAGES)
    installed = ["torch", *(name for name in SESSIONS if can_export and find_spec(name) is not None)]
    file = _folder(system) / f"fastest-{torch.get_num_threads()}-threads.json"
    seconds: dict[str, float | None] = {}  # None: the runtime cannot run the system
    if file.is_file():
        seconds = msgspec.json.decode(file.read_bytes(), type=dict[str, float | None])
    if set(seconds) != set(installed):
        seconds = _measure(system, preprocess, installed)
        with staged_file(file) as stage:
            stage.write_bytes(msgspec.json.encode(seconds))
    return min((value, name) for name, value in seconds.items() if value is not None)[1]


def _measure(system: BaseSystem[Any, Any], preprocess: Preprocess, runtimes: Sequence[str]) -> dict[str, float | None]:
    """Return the fewest seconds of a prediction by each runtime, None if it cannot run the system."""
    sample = preprocess.prepare(Sample(Scenes(1, size_hw=_TIMED_HW).scene(0).image, "timed"))
    batch = make_batch([sample], size_divisor=system.size_divisor, min_size=system.min_size)
    sizes_hw = torch.tensor(batch.sizes_hw)
    candidates: dict[str, BaseSystem[Any, Any]] = {}
    for name in runtimes:
        try:
            candidates[name] = fused_for_inference(system) if name == "torch" else accelerated(system, name)
        except (ExportError, CheckpointError):
            continue
    fewest = dict.fromkeys(candidates, float("inf"))
    with torch.inference_mode():
        for _ in range(_REPEATS + 1):  # interleaved, so that other load on the machine affects all runtimes alike
            for name, candidate in candidates.items():
                start = time.perf_counter()
                if system.task is PROMPTABLE:  # it predicts nothing without a prompt
                    candidate(batch.images, sizes_hw)
                else:
                    candidate.predict([sample])
                fewest[name] = min(fewest[name], time.perf_counter() - start)
    return {name: fewest.get(name) for name in runtimes}


def accelerated(system: BaseSystem[Any, Any], runtime: str) -> BaseSystem[Any, Any]:
    """Return a copy of a system for inference in float32 whose heavy parts are run by ``runtime``.

    Raises
    ------
    MissingExtraError
        If the runtime or a package for the export is not installed.
    ExportError
        If a part cannot be exported, or its outputs differ from PyTorch's.
    """
    for package in (*_EXPORT_PACKAGES, runtime):
        require_package(package)
    folder = _folder(system)
    missing = [name for name in system.heavy_parts if not (folder / f"{name}.onnx").is_file()]
    if missing:
        contiguous = fuse_frozen_norms(system).to(memory_format=torch.contiguous_format)
        for name, inputs in _traced_inputs(contiguous, missing).items():
            _write_part(contiguous.get_submodule(name), inputs, folder / f"{name}.onnx", runtime=runtime)
    fused = fused_for_inference(system)
    for name in system.heavy_parts:
        part = fused.get_submodule(name)
        part.forward = _session_forward(open_session(folder / f"{name}.onnx", runtime=runtime), part.forward)
    return fused


def _folder(system: BaseSystem[Any, Any]) -> Path:
    """Return the cache folder of a system, named by a hash of its modules, its weights, and Otus' and PyTorch's versions."""
    digest = hashlib.sha256(f"{otus.__version__} {torch.__version__} {system.size_divisor} {system}".encode())
    for name, tensor in system.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return cache_folder() / "runtimes" / digest.hexdigest()[:32]


def _traced_inputs(system: BaseSystem[Any, Any], names: Sequence[str]) -> dict[str, tuple[Any, ...]]:
    """Return the arguments with which each named part is first called in a forward pass of two random images.

    A promptable model embeds one image at a time, padded to a square of fixed size: one image is returned.
    """
    single = system.task is PROMPTABLE
    inputs: dict[str, tuple[Any, ...]] = {}
    hooks = [
        system.get_submodule(name).register_forward_pre_hook(
            lambda _, args, name=name: inputs.setdefault(name, args) and None
        )
        for name in names
    ]
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        size_hw = (system.size_divisor,) * 2 if single else _TRACED_HW
        images = torch.randn(1 if single else 2, 3, *size_hw, generator=generator)
        system(images, torch.tensor([size_hw] * len(images)))
    for hook in hooks:
        hook.remove()
    if single:
        return inputs
    return {name: pytree.tree_map(_at_least_two, inputs[name]) for name in names if name in inputs}


def _at_least_two(x: Tensor) -> Tensor:
    """Return an input with two rows if it has fewer: ``torch.export`` would take 0 or 1 for a constant."""
    return x if len(x) > 1 else torch.rand(2, *x.shape[1:], generator=torch.Generator().manual_seed(0))


def _write_part(part: nn.Module, inputs: tuple[Any, ...], file: Path, *, runtime: str) -> None:
    """Export a part to an ONNX file, and compare its outputs in ``runtime`` with PyTorch's."""
    leaves = pytree.tree_leaves(inputs)
    dynamic_shapes = torch.export.ShapesCollection()  # type: ignore[no-untyped-call]
    for leaf in leaves:
        # all axes but the channels are dynamic; the single image of a promptable model has a fixed size
        dynamic = [i for i in range(leaf.ndim) if i != 1] if len(leaf) > 1 else []
        dynamic_shapes[leaf] = dict.fromkeys(dynamic, torch.export.Dim.AUTO)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the exporter warns about its own code
        expected = pytree.tree_leaves(part(*inputs))
        try:
            program = torch.export.export(part, inputs, dynamic_shapes=dynamic_shapes, strict=False)
            exported = onnx_program(
                program,
                inputs,
                input_names=[f"input_{i}" for i in range(len(leaves))],
                output_names=[f"output_{i}" for i in range(len(expected))],
                metadata=pytree.treespec_dumps(program.call_spec.out_spec),
            )
        except Exception as error:  # the exporter's errors have no common base
            raise ExportError(
                f"runtime: {file.stem} cannot be exported to {runtime}: {root_message(error)}; use --runtime torch"
            ) from error
    with staged_file(file) as stage:
        exported.save(stage)
        session = open_session(stage, runtime=runtime)
        for reference, output in zip(expected, _outputs(session, leaves), strict=True):
            difference = float((output - reference).abs().max()) / max(float(reference.abs().max()), 1e-12)
            if not difference <= TOLERANCE:  # NaN differs, too
                raise ExportError(
                    f"runtime: the outputs of {file.stem} differ from PyTorch's by {difference:.1g} of the largest value, "
                    f"expected at most {TOLERANCE:g}; use --runtime torch"
                )


def _outputs(session: Session, leaves: Sequence[Tensor]) -> list[Tensor]:
    arrays = {f"input_{i}": np.ascontiguousarray(x.numpy(force=True)) for i, x in enumerate(leaves)}
    return [torch.from_numpy(x) for x in session.run(**arrays).values()]


def _session_forward(session: Session, torch_forward: Callable[..., Any]) -> Callable[..., Any]:
    """Return a forward function that runs the session, or PyTorch's where an input is empty."""
    assert session.metadata is not None
    spec = pytree.treespec_loads(session.metadata)

    def forward(*inputs: Any) -> Any:
        leaves = pytree.tree_leaves(inputs)
        if any(0 in x.shape for x in leaves):  # runtimes reject empty tensors, e.g. of no regions
            return torch_forward(*inputs)
        return pytree.tree_unflatten(_outputs(session, leaves), spec)

    return forward
