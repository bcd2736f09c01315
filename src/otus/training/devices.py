"""Set up Lightning Fabric for one or many processes, and communicate between them."""

from typing import Any, Literal, TypeVar

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.precision import MixedPrecision
from lightning_fabric.strategies.ddp import DDPStrategy
from torch import distributed, nn

from otus.inference.devices import choose_device
from otus.parts.precision import check_bfloat16, multiplies_bfloat16
from otus.training.settings import TrainSettings

T = TypeVar("T")


class FullPrecisionInputs(MixedPrecision):
    """Mixed precision that does not convert the inputs: Fabric would round box coordinates to bfloat16, 301 to 302."""

    def convert_input(self, data: Any) -> Any:
        """Return the samples unchanged; autocast converts the inputs of convolutions."""
        return data


def start_fabric(settings: TrainSettings) -> Fabric:
    """Return Fabric with all processes started, by torchrun in its environment, else by running this command again.

    Everything before this call runs in each process, so it must not write anything.

    Raises
    ------
    UsageError
        If the device does not exist or does not support the precision.
    """
    is_distributed = settings.devices * settings.num_nodes > 1
    is_mixed = settings.precision == "bf16-mixed"
    device = choose_device(settings.device).type
    if is_mixed:
        check_bfloat16(device, asked_for=settings.precision, instead="32-true")
    fabric = Fabric(
        accelerator=settings.device,
        devices=settings.devices,
        num_nodes=settings.num_nodes,
        # An image without masks gives the mask head no gradient, so the set of used parameters varies.
        strategy=DDPStrategy(find_unused_parameters=True) if is_distributed else "auto",
        precision=None if is_mixed else settings.precision,
        plugins=[FullPrecisionInputs("bf16-mixed", device=device)] if is_mixed else None,
    )
    fabric.launch()
    return fabric


def fastest_precision(device: str = TrainSettings().device) -> Literal["bf16-mixed", "32-true"]:
    """Return the default precision of ``otus train``: ``bf16-mixed`` if the hardware supports it, else ``32-true``."""
    return "bf16-mixed" if multiplies_bfloat16(choose_device(device)) else "32-true"


def broadcast_weights(fabric: Fabric, module: nn.Module) -> None:
    """Copy parameters and buffers from the first process to all; buffers differ, because each has its own batches."""
    if fabric.world_size > 1:
        for tensor in [*module.parameters(), *module.buffers()]:
            distributed.broadcast(tensor.data, src=0)


def any_process(fabric: Fabric, flag: bool) -> bool:
    """Return whether the flag is True in any process."""
    if fabric.world_size == 1:
        return flag
    flags = torch.tensor(int(flag), device=fabric.device)
    distributed.all_reduce(flags)
    return bool(flags)


def gather(fabric: Fabric, value: T) -> list[T]:
    """Return the values of all processes, by rank."""
    if fabric.world_size == 1:
        return [value]
    values: list[Any] = [None] * fabric.world_size
    distributed.all_gather_object(values, value)
    return values
