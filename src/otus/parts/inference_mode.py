"""Run a module in inference mode without disturbing its training, seed its dropout, and time its parts."""

import copy
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import TypeVar

import torch
from torch import nn

AnyModule = TypeVar("AnyModule", bound=nn.Module)


@contextmanager
def inference_mode(module: AnyModule) -> Iterator[AnyModule]:
    """Enter inference mode and yield the module in evaluation mode, without changing the module.

    A module of which any part is in training mode is yielded as a copy in evaluation mode that shares all parameters and
    buffers: switching the module itself would disturb other threads that use it.
    """
    with torch.inference_mode():
        if any(part.training for part in module.modules()):
            shared = {id(tensor): tensor for tensor in chain(module.parameters(), module.buffers())}
            module = copy.deepcopy(module, shared).eval()
        yield module


@contextmanager
def seeded_generator(generator: torch.Generator | None) -> Iterator[None]:
    """Seed dropout inside the block from ``generator``; without one, it uses PyTorch's global generator.

    PyTorch's dropout takes no generator, so the global one is seeded from it for the block and restored afterwards.
    """
    if generator is None:
        yield
        return
    seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


class Stopwatch:
    """Measure milliseconds by name."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.milliseconds: dict[str, float] = {}

    @contextmanager
    def time(self, name: str) -> Iterator[None]:
        """Add the duration of the block to ``name``; on a GPU, work still queued is waited for."""
        self._wait()
        start = time.perf_counter()
        yield
        self._wait()
        self.milliseconds[name] = self.milliseconds.get(name, 0.0) + (time.perf_counter() - start) * 1e3

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
