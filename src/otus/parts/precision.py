"""Whether a device computes in bfloat16."""

import os

import torch

from otus.errors import UsageError


def runs_bfloat16(device: torch.device | str = "cpu") -> bool:
    """Return whether convolutions run in bfloat16 on a device, fast or slowly.

    On a CPU this is what oneDNN reports: on x86 it needs AVX-512 (BW, VL, DQ) or AVX-NE-CONVERT. The limits set by
    ``ONEDNN_MAX_CPU_ISA`` and ``ATEN_CPU_CAPABILITY`` are respected.
    """
    kind = torch.device(device).type
    if kind == "cuda":
        return torch.cuda.is_bf16_supported()
    if kind != "cpu" or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return True
    limited_by_environment = os.environ.get("ATEN_CPU_CAPABILITY", "").lower() in ("default", "avx2")
    return not limited_by_environment and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def multiplies_bfloat16(device: torch.device | str = "cpu") -> bool:
    """Return whether a CPU has instructions that multiply in bfloat16, which makes it the fastest precision there."""
    if torch.device(device).type != "cpu" or not runs_bfloat16(device):
        return False
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def check_bfloat16(device: torch.device | str, *, asked_for: str, instead: str) -> None:
    """Raise an error if a device cannot run bfloat16.

    Parameters
    ----------
    device
        Device to check.
    asked_for, instead
        The option's value, and the value to recommend, for the error message.

    Raises
    ------
    UsageError
        If convolutions in bfloat16 do not run on the device.
    """
    if not runs_bfloat16(device):
        what = "processor: bfloat16 needs AVX-512" if torch.device(device).type == "cpu" else "GPU: it has no bfloat16"
        raise UsageError(f"precision: {asked_for} cannot run on this {what}; choose {instead}")
