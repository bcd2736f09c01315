"""Write and read checkpoints of Otus, and read weights of other libraries safely.

A checkpoint is a single safetensors file whose metadata holds a JSON header under the key ``otus``. The model's tensors
are stored under their own names, all others (optimizer, EMA, random states) under ``part/name``. Checkpoints of Otus
contain no pickles; pickles of other libraries are read only by ``torch.load(weights_only=True)``.
"""

import argparse
import re
import warnings
import zipfile
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from otus._files import fsynced_file
from otus.data.git_lfs import LFS_PROBLEM, LFS_REMEDY, is_lfs_pointer
from otus.errors import CheckpointError, DataError
from otus.structures import Categories

VERSION = 1
_WRAPPERS = frozenset(
    f"{name}." for name in ("module", "model", "_orig_mod", "_forward_module", "ema", "ema_model", "model_ema", "net")
)
"""Prefixes that wrappers add to parameter names: DataParallel, Lightning, torch.compile, Fabric, EMA."""
_AVERAGED = re.compile(r"(^|[._])ema([._]|$)")
_MAX_DEPTH = 3  # nesting levels of dicts that are searched for tensors


@dataclass(frozen=True)
class CheckpointHeader:
    """The description from which a model is rebuilt and its tensors are loaded.

    Parameters
    ----------
    builder
        Name of the model in the zoo; None for a custom model, which must be passed when the file is loaded.
    arguments
        Keyword arguments of the builder, as JSON.
    categories
        The category of each class index.
    preprocess
        The model's `Preprocess` as JSON.
    licence
        Licence of the weights, e.g. ``Apache-2.0``.
    training
        How the model was trained: command, data, hours, metrics.
    extra
        Any other JSON values, e.g. epoch and step for resuming.
    """

    builder: str | None = None
    arguments: dict[str, Any] = field(default_factory=dict)
    categories: Categories | None = None
    preprocess: dict[str, Any] | None = None
    licence: str | None = None
    training: dict[str, Any] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _Metadata:
    """The metadata in the file: format version, header, and the stored name of each alias of a tensor."""

    version: int
    header: CheckpointHeader
    aliases: dict[str, str] = field(default_factory=dict)


def save_checkpoint(path: str | Path, state: Mapping[str, Tensor], header: CheckpointHeader) -> None:
    """Write a checkpoint atomically: an existing file is replaced only when the new one is complete.

    Parameters
    ----------
    path
        The file, by convention ``….safetensors``. Its folder is created if missing.
    state
        Tensors by name, of any dtype, layout and device. A tensor under several names is stored once.
    header
        The header of the checkpoint.

    Raises
    ------
    CheckpointError
        If the file cannot be written (e.g. the disk is full), or the header cannot be encoded as JSON.
    """
    path = Path(path)
    tensors, aliases = _storable(state)
    try:
        metadata = msgspec.json.encode(_Metadata(VERSION, header, aliases)).decode()
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: the header cannot be encoded as JSON: {error}") from None
    try:
        with fsynced_file(path) as stage:
            # Not save_file: it writes to a temporary file of unpredictable name, which stays if the process is killed.
            stage.write_bytes(save(tensors, metadata={"otus": metadata}))
    except (OSError, DataError) as error:
        raise CheckpointError(f"{path}: could not be written, an earlier file is kept: {error}") from error


def load_checkpoint(path: str | Path) -> tuple[dict[str, Tensor], CheckpointHeader]:
    """Read a checkpoint of Otus; return its tensors, on the CPU, and its header.

    Raises
    ------
    CheckpointError
        If the file is missing, damaged, written by a newer version of Otus, or not a checkpoint of Otus.
    """
    path = _check_exists(path)
    state, metadata = _read_safetensors(path)
    if "otus" not in metadata:
        raise CheckpointError(
            f"{path}: has tensors but not the header of an Otus checkpoint; give it as weights of a named model"
        )
    try:
        version = msgspec.json.decode(metadata["otus"], type=dict[str, Any]).get("version")
        if not isinstance(version, int) or version > VERSION:
            raise CheckpointError(
                f"{path}: has format {version}, this version of Otus reads up to {VERSION}: install a newer one"
            )
        decoded = msgspec.json.decode(metadata["otus"], type=_Metadata)
    except msgspec.MsgspecError as error:
        raise CheckpointError(f"{path}: the header is damaged: {error}") from None
    missing = [name for name in decoded.aliases.values() if name not in state]
    if missing:
        raise CheckpointError(f"{path}: the header is damaged: it names a tensor {missing[0]!r} that is missing")
    return state | {alias: state[name] for alias, name in decoded.aliases.items()}, decoded.header


def checkpoint_part(state: Mapping[str, Tensor], name: str | None = None) -> dict[str, Tensor]:
    """Return the tensors of a part (``optimizer``, ``ema``), without its prefix (default: the model's own tensors).

    Examples
    --------
    >>> state = {"conv.weight": torch.zeros(1), "ema/conv.weight": torch.ones(1)}
    >>> list(checkpoint_part(state)), checkpoint_part(state, "ema")
    (['conv.weight'], {'conv.weight': tensor([1.])})
    """
    if name is None:
        return {key: tensor for key, tensor in state.items() if "/" not in key}
    return sub_state(state, f"{name}/")


def load_into(
    module: nn.Module,
    state: Mapping[str, Tensor],
    *,
    source: str | Path,
    model: str | None = None,
    strict: bool = True,
) -> None:
    """Load a state dict into a module, completely or not at all.

    Batch norm counters (``num_batches_tracked``) are loaded if both have them; a missing or extra counter is no error.

    Parameters
    ----------
    module
        Changed in place; values are converted to its dtypes and devices.
    state
        Tensors by name.
    source
        File of the state, for error messages.
    model
        Name of the module in error messages (default: its class).
    strict
        Whether a tensor missing in ``state`` is an error (default: True). Extra tensors and wrong shapes always are.

    Raises
    ------
    CheckpointError
        If tensors are missing, extra, of another shape or not finite; the message lists the first of each. The module
        is then unchanged.
    """
    fits, mismatches = _compare(module, state)
    if not strict:
        mismatches.pop("missing")
    if any(mismatches.values()):
        details = "; ".join(
            f"{len(tensors)} {kind}, e.g. {', '.join(tensor.tensor + tensor.shape for tensor in tensors[:3])}"
            for kind, tensors in mismatches.items()
            if tensors
        )
        raise CheckpointError(
            f"{source} does not fit {model or type(module).__name__} "
            f"(nothing was loaded; {len(fits)} tensors would fit): {details}"
        )
    not_finite = [name for name, tensor in fits.items() if tensor.is_floating_point() and not tensor.isfinite().all()]
    if not_finite:
        raise CheckpointError(
            f"{source}: {len(not_finite)} tensors have values that are not finite, e.g. {', '.join(not_finite[:3])}: the "
            "training diverged, or the file is damaged; nothing was loaded"
        )
    module.load_state_dict(fits, strict=False)


class TensorMismatch(NamedTuple):
    """A tensor that cannot be loaded: the kind of mismatch, its name, and a description of its shape."""

    kind: str
    tensor: str
    shape: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.tensor}{self.shape}"


def match_tensors(module: nn.Module, state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[TensorMismatch]]:
    """Return the tensors of a state that fit a module, for fine-tuning, and all mismatches of the two."""
    fits, mismatches = _compare(module, state)
    return fits, [mismatch for tensors in mismatches.values() for mismatch in tensors]


def read_foreign(path: str | Path) -> dict[str, Tensor]:
    """Read weights of another library: safetensors, or a ``.pth``, ``.pt`` or ``.bin`` file with tensors and plain
    values.

    If a checkpoint holds several dicts of tensors (``model``, ``state_dict``, ``ema``, the optimizer's …), the largest
    is returned; of equally large ones, that of averaged weights (EMA). A prefix of a wrapper that all names share
    (``module.``, ``model.``, ``_orig_mod.``, ``ema.`` …) is removed.

    Raises
    ------
    CheckpointError
        If the file is missing, damaged, not a file of weights, or a pickle that contains code, which is never executed.
    """
    path = _check_exists(path)
    with open(path, "rb") as file:
        start = file.read(16)
    if start.lstrip().lower().startswith((b"<!doctype html", b"<html")):
        raise CheckpointError(f"{path}: is a web page, not weights; download the file that the page links to")
    if start[4:9] == b"\0\0\0\0{":  # the length of a JSON header, then the header
        content: Any = _read_safetensors(path)[0]
    elif start[:2] == b"PK" or start[:1] == b"\x80":
        content = _read_pickle(path)
        if isinstance(content, Mapping):
            content = _largest_state(content)
    else:
        raise CheckpointError(
            f"{path}: is not a file of weights: expected safetensors or the output of torch.save, but it "
            + (f"begins with {start!r}" if start else "is empty")
        )
    if not isinstance(content, Mapping) or not content:
        raise CheckpointError(f"{path}: expected tensors by name, got {type(content).__name__} without tensors")
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise CheckpointError(f"{path}: expected tensors by name, got {type(value).__name__} under {name!r}")
    state = dict(content)
    while (prefix := next(iter(state)).partition(".")[0] + ".") in _WRAPPERS and all(
        name.startswith(prefix) for name in state
    ):
        state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return state


def find_prefixes(state: Mapping[str, Tensor], names: Collection[str]) -> list[str]:
    """Return the prefixes under which a state has tensors of the given names, sorted by their number, largest first.

    Of equal numbers, the empty prefix is first, then those of averaged weights (``ema.``).

    Examples
    --------
    >>> find_prefixes({"model.conv.bias": torch.zeros(1), "loss.weight": torch.zeros(1)}, ["conv.bias"])
    ['model.']
    """
    counts: Counter[str] = Counter()
    for name in state:
        starts = [0, *(index + 1 for index, letter in enumerate(name) if letter == ".")]
        counts.update(name[:start] for start in starts if name[start:] in names)
    return sorted(counts, key=lambda prefix: (-counts[prefix], prefix != "", not _AVERAGED.search(prefix), prefix))


def sub_state(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors whose names begin with a prefix, with the prefix removed."""
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def _largest_state(content: Mapping[Any, Any]) -> Mapping[Any, Any]:
    """Return the dict with the most tensors, of a checkpoint and the dicts nested in it."""

    def states(inner: Mapping[Any, Any], path: str, depth: int) -> Iterator[tuple[int, bool, Mapping[Any, Any]]]:
        """Yield the number of tensors of each dict, whether it holds averaged weights, and the dict."""
        yield sum(isinstance(value, Tensor) for value in inner.values()), bool(_AVERAGED.search(path)), inner
        for name, value in inner.items():
            if isinstance(name, str) and isinstance(value, Mapping) and depth:
                yield from states(value, f"{path}.{name}", depth - 1)

    return max(states(content, "", _MAX_DEPTH), key=lambda state: state[:2])[2]


def _storable(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return contiguous tensors that share no memory, and for each alias the name under which its tensor is stored."""
    tensors: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    stored_names: dict[tuple[Any, ...], str] = {}
    storages: set[int] = set()
    for name, tensor in state.items():
        storage = tensor.untyped_storage().data_ptr()
        identity = (storage, tensor.storage_offset(), tensor.shape, tensor.stride(), tensor.dtype, tensor.device)
        if tensor.numel() and identity in stored_names:
            aliases[name] = stored_names[identity]
            continue
        stored_names[identity] = name
        stored = tensor.detach().cpu().contiguous()
        tensors[name] = stored.clone() if storage in storages else stored  # safetensors rejects views of shared storage
        storages.add(storage)
    return tensors, aliases


def _compare(
    module: nn.Module, state: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, list[TensorMismatch]]]:
    """Return the tensors that fit, and those missing in the state, extra in it, or of another shape."""
    expected = module.state_dict()
    fits: dict[str, Tensor] = {}
    mismatches: dict[str, list[TensorMismatch]] = {"missing": [], "extra": [], "of another shape": []}
    for name, tensor in expected.items():
        if name not in state:
            if not name.endswith("num_batches_tracked"):
                mismatches["missing"].append(TensorMismatch("missing", name, f" {tuple(tensor.shape)}"))
        elif state[name].shape != tensor.shape:
            shapes = f": expected {tuple(tensor.shape)}, got {tuple(state[name].shape)}"
            mismatches["of another shape"].append(TensorMismatch("of another shape", name, shapes))
        else:
            fits[name] = state[name]
    mismatches["extra"] = [
        TensorMismatch("extra", name, f" {tuple(tensor.shape)}")
        for name, tensor in state.items()
        if name not in expected and not name.endswith("num_batches_tracked")
    ]
    return fits, mismatches


def _check_exists(path: str | Path) -> Path:
    """Return the path; raise CheckpointError if there is no file or only a pointer of Git LFS."""
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: there is no such file of weights")
    if is_lfs_pointer(path):
        raise CheckpointError(f"{path}: {LFS_PROBLEM}; {LFS_REMEDY}")
    return path


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: is not a valid safetensors file: {error}") from None


def _read_pickle(path: Path) -> Any:
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
        if not any(name.endswith("data.pkl") for name in names):
            content = ", ".join(names[:3]) or "nothing"
            raise CheckpointError(
                f"{path}: is a zip archive of other files ({content}): unpack it and give the file of weights"
            )
        if any(name.endswith("constants.pkl") for name in names):
            raise CheckpointError(f"{path}: is a TorchScript program, expected weights: save the model's state_dict()")
    try:
        # Many training scripts store their command-line arguments too, as an argparse.Namespace of plain values.
        with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace]):
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes make the unpickler raise anything
        forbidden = re.search(r"GLOBAL (\S+)", str(error))
        if forbidden:
            raise CheckpointError(
                f"{path}: refused, because besides tensors it has code or Python objects ({forbidden[1]}); none of it was "
                "run. Ask its author for safetensors, or for a plain state dict"
            ) from None
        raise CheckpointError(
            f"{path}: is damaged, or a pickle of more than tensors, which is never executed ({type(error).__name__})"
        ) from None
