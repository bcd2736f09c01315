"""Random generators of a run, each seeded by the run's seed and a position in the run (epoch, batch, process).

No generator keeps its state from one step to the next, so a resumed run draws the same numbers as an uninterrupted one.
"""

import numpy as np
import torch

_ORDER, _SCALE, _MODEL = range(3)


def order_rng(seed: int, epoch: int) -> np.random.Generator:
    """Return the generator for the order of the images in an epoch."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(_ORDER, epoch)))


def scale_rng(seed: int, batch: int) -> np.random.Generator:
    """Return the generator for the scale of a batch, the same on all devices."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(_SCALE, batch)))


def model_generator(seed: int, batch: int, rank: int) -> torch.Generator:
    """Return the generator for the model's sampling on a batch, and seed torch's global generator too, for dropout."""
    state = np.random.SeedSequence(seed, spawn_key=(_MODEL, batch, rank)).generate_state(1, np.uint64)
    torch.manual_seed(int(state[0]))
    return torch.Generator().manual_seed(int(state[0]))
