"""Running a module as it predicts, whatever it was doing, and timing what it does."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def predicting(module: nn.Module) -> Iterator[None]:
    """Evaluation and inference mode inside; afterwards each part is in the mode it was in (frozen parts stay frozen)."""
    before = {part: part.training for part in module.modules()}
    module.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        for part, training in before.items():
            part.training = training


@contextmanager
def drawing_from(generator: torch.Generator | None) -> Iterator[None]:
    """Dropout inside draws from ``generator``, though PyTorch's knows the global one only; as ever without one."""
    if generator is None:
        yield
        return
    seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


class Stopwatch:
    """Milliseconds by name of the part."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.milliseconds: dict[str, float] = {}

    @contextmanager
    def time(self, name: str) -> Iterator[None]:
        """Add what the block takes to ``name``, the queue of a GPU included."""
        self._wait()
        start = time.perf_counter()
        yield
        self._wait()
        self.milliseconds[name] = self.milliseconds.get(name, 0.0) + (time.perf_counter() - start) * 1e3

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
