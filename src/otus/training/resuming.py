"""Checkpoints from which a run resumes bit-identically, and the check that its settings and data are unchanged.

The file is an ordinary checkpoint of the averaged weights. In addition it has the weights being trained in the part
``learning``, the optimizer's tensors in ``optimizer/<parameter>/<name>``, the counters in ``header.extra["run"]``.
Random states are not stored: see :mod:`otus.training.seeding`.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from otus.errors import UsageError
from otus.training.settings import CHANGEABLE_ON_RESUME
from otus.training.state import RunState
from otus.zoo.checkpoint import checkpoint_part, load_into

DATA_OPTIONS = frozenset({"data", "val", "format", "split", "val_split"})
"""Arguments that locate the data of a run."""


def pack(system: nn.Module, averaged: nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
    """Return all tensors of a run by name."""
    tensors = dict(averaged.state_dict())
    if averaged is not system:
        tensors |= {f"learning/{name}": tensor for name, tensor in system.state_dict().items()}
    for name, parameter in system.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            if value is not None:
                tensors[f"optimizer/{name}/{key}"] = value
    return tensors


def unpack(tensors: Mapping[str, Tensor], *, system: nn.Module, averaged: nn.Module, optimizer: Optimizer) -> None:
    """Restore the tensors of :func:`pack` in place.

    Raises
    ------
    CheckpointError
        If they belong to another system.
    """
    load_into(averaged, checkpoint_part(tensors), source="checkpoint")
    if averaged is not system:
        load_into(system, checkpoint_part(tensors, "learning"), source="checkpoint")
    parameters = dict(system.named_parameters())
    for path, value in checkpoint_part(tensors, "optimizer").items():
        name, key = path.rsplit("/", 1)
        parameter = parameters[name]
        # Fused optimizers require the parameter's memory layout and device, the device also for step counters.
        restored = torch.empty_like(parameter if value.shape == parameter.shape else value, dtype=value.dtype)
        optimizer.state[parameter][key] = restored.to(parameter.device).copy_(value)


def restore_state(record: Mapping[str, Any]) -> RunState:
    """Return the state from ``header.extra["run"]``."""
    return RunState(**record)


def check_unchanged(before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Check that settings and data of a resumed run equal those that it was started with.

    Data may have moved: if their digests are the same, their paths and options may differ.

    Raises
    ------
    UsageError
        If something differs that affects the result; the message lists the differences.
    """
    missing = "nothing"
    same_data = "data_digest" in before and all(before[name] == now[name] for name in ("data_digest", "val_digest"))
    may_differ = CHANGEABLE_ON_RESUME | (DATA_OPTIONS if same_data else frozenset())
    names = [name for name in dict.fromkeys([*before, *now]) if name not in may_differ]
    changed = [
        f"{name}: was {before.get(name, missing)}, is {now.get(name, missing)}"
        for name in names
        if before.get(name) != now.get(name)
    ]
    if changed:
        raise UsageError(
            "a run can only be resumed with the settings that it was started with; these differ: "
            + "; ".join(changed)
            + " (leave them out, or start a new run with --weights of this one)"
        )
