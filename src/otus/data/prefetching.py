"""Load batches ahead of time in threads.

Threads, not processes: decoding and the tensor operators release Python's lock, work starts at once, nothing is pickled, and
a killed process leaves no orphans.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

T = TypeVar("T")
R = TypeVar("R")

BATCHES_AHEAD = 3


@contextmanager
def one_thread() -> Iterator[None]:
    """Limit torch to one thread inside the block, as in the loading threads, so that sums round alike."""
    count = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(count)


def prefetch(batches: Iterable[Sequence[T]], load: Callable[[T], R], *, workers: int) -> Generator[list[R], None, None]:
    """Yield ``[load(item) for item in batch]`` for each batch, in order, loading a few batches ahead.

    Parameters
    ----------
    batches
        May be without end; close the generator when done.
    workers
        Threads; 0 loads in the caller's, when asked.
    """
    if workers == 0:
        for batch in batches:
            with one_thread():
                loaded = [load(item) for item in batch]
            yield loaded
        return
    # One thread of arithmetic each: the cores belong to the network, and sums depend on how many threads share them.
    pool = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,))
    waiting: deque[list[Future[R]]] = deque()
    try:
        for batch in batches:
            waiting.append([pool.submit(load, item) for item in batch])
            if len(waiting) > BATCHES_AHEAD:
                yield [loading.result() for loading in waiting.popleft()]
        while waiting:
            yield [loading.result() for loading in waiting.popleft()]
    finally:
        pool.shutdown(cancel_futures=True)
