"""Load batches ahead of time in threads.

Threads, not processes: image decoding and tensor operators release the GIL, work starts at once, nothing is pickled,
and a killed process leaves no orphans.
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
    """Limit torch to one thread inside the block, as in the loader threads, so that sums are rounded the same way."""
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
        Batches of items; may be infinite (close the generator when done).
    load
        Function that loads one item; called in the loader threads.
    workers
        Number of threads; 0 loads in the calling thread, on demand.
    """
    if workers == 0:
        for batch in batches:
            with one_thread():
                loaded = [load(item) for item in batch]
            yield loaded
        return
    # One torch thread each: the cores are for the network, and the rounding of sums depends on the number of threads.
    pool = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,))
    pending: deque[list[Future[R]]] = deque()
    try:
        for batch in batches:
            pending.append([pool.submit(load, item) for item in batch])
            if len(pending) > BATCHES_AHEAD:
                yield [future.result() for future in pending.popleft()]
        while pending:
            yield [future.result() for future in pending.popleft()]
    finally:
        pool.shutdown(cancel_futures=True)
