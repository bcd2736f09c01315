"""All random numbers of a run, each a function of the seed and a place in the run.

Nothing is drawn from a stream that runs along, so a run that goes on from step 1000 draws what it would have drawn.
"""

import numpy as np
import torch

_ORDER, _SCALE, _MODEL = range(3)


def order_rng(seed: int, epoch: int) -> np.random.Generator:
    """For the order of the images in an epoch."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(_ORDER, epoch)))


def scale_rng(seed: int, batch: int) -> np.random.Generator:
    """For the scale of a batch, the same on all devices."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(_SCALE, batch)))


def model_generator(seed: int, batch: int, rank: int) -> torch.Generator:
    """For what the model draws on a batch (regions to learn from); torch's own generator is seeded alike, for dropout."""
    state = np.random.SeedSequence(seed, spawn_key=(_MODEL, batch, rank)).generate_state(1, np.uint64)
    torch.manual_seed(int(state[0]))
    return torch.Generator().manual_seed(int(state[0]))
