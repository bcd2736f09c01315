"""Devices and precisions by name."""

import torch

from otus.errors import UsageError
from otus.parts.precision import check_bfloat16, multiplies_bfloat16

PRECISIONS = ("exact", "float32", "bfloat16")


def choose_device(name: str | int | torch.device) -> torch.device:
    """Return the torch device of a name; ``auto`` is the fastest available, a number is a CUDA device.

    Raises
    ------
    UsageError
        If this machine has no such device.
    """
    available = {
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    name = f"cuda:{name}" if isinstance(name, int) else str(name)
    if name == "auto":
        name = next(kind for kind in ("cuda", "mps", "cpu") if available[kind])
    try:
        if available.get(name.split(":")[0], False):
            return torch.device(name)
    except RuntimeError:  # the part after the colon is not a number
        pass
    kinds = ", ".join(kind for kind, is_available in available.items() if is_available)
    raise UsageError(f"device: expected auto or a device of this machine ({kinds}), got {name!r}")


def choose_precision(name: str, device: torch.device) -> str:
    """Return ``exact``, ``float32`` or ``bfloat16``; ``auto`` is bfloat16 on a CPU that supports it, else float32.

    Raises
    ------
    UsageError
        If the name is unknown, or the device does not support bfloat16.
    """
    if name == "auto":
        return "bfloat16" if multiplies_bfloat16(device) else "float32"
    if name not in PRECISIONS:
        raise UsageError(f"precision: expected one of auto, {', '.join(PRECISIONS)}, got {name!r}")
    if name == "bfloat16":
        check_bfloat16(device, asked_for=name, instead="float32, or auto, the fastest here")
    return name
