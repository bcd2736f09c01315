"""Proposal methods by name, for an image or a whole data set, without torch."""

from pathlib import Path
from typing import Any

from otus._files import cache_folder
from otus.data.dataset import Dataset
from otus.errors import UsageError, did_you_mean
from otus.proposals.cache import ProposalCache, ProposedDataset
from otus.proposals.interface import Proposer
from otus.proposals.selective_search import SelectiveSearch
from otus.proposals.windows import SlidingWindows

METHODS: dict[str, type[SelectiveSearch] | type[SlidingWindows]] = {
    "selective-search": SelectiveSearch,
    "sliding-window": SlidingWindows,
}
"""What needs nothing learned."""


def make_proposer(method: str, **options: Any) -> Proposer:
    """Return the proposer of a method in :data:`METHODS`.

    Parameters
    ----------
    options
        Arguments of its class, e.g. ``mode`` and ``seed`` of :class:`~otus.proposals.selective_search.SelectiveSearch`.

    Raises
    ------
    UsageError
        An unknown method, or options that it does not have.
    """
    if method not in METHODS:
        raise UsageError(f"method: expected one of {', '.join(METHODS)}, got {method!r}{did_you_mean(method, METHODS)}")
    known = METHODS[method].__dataclass_fields__
    unknown = [name for name in options if name not in known]
    if unknown:
        raise UsageError(f"{', '.join(unknown)}: the method {method} has no such option, only {', '.join(known)}")
    return METHODS[method](**options)


def find_proposals(
    dataset: Dataset,
    *,
    method: str = "selective-search",
    count: int | None = 2000,
    cache: str | Path | None = None,
    workers: int = 1,
    **options: Any,
) -> ProposedDataset:
    """Return the data set with proposals for every image, in ``Sample.columns["proposals_xyxy"]``.

    They are found once and kept on disk, by the image's pixels and the options; what a run that was stopped had found is
    there for the next. A bar on stderr counts them while somebody watches. In memory they are only while a sample is.

    Parameters
    ----------
    dataset
        The data set; unreadable images are an error.
    method
        One of :data:`METHODS`.
    count
        Maximum number of proposals per image, the highest-scoring first; all if None.
    cache
        Cache folder (default: ``proposals`` in the folder of :func:`~otus._files.cache_folder`).
    workers
        Processes that compute missing proposals; see :meth:`~otus.proposals.cache.ProposalCache.fill`.
    options
        Arguments of the method, see :func:`make_proposer`.

    Raises
    ------
    UsageError, DataError
        As in :func:`make_proposer` and :meth:`~otus.proposals.cache.ProposalCache.fill`.

    Examples
    --------
    >>> dataset = find_proposals(otus.open_dataset("photos"), mode="fast", workers=2)  # doctest: +SKIP
    >>> dataset[0].columns["proposals_xyxy"].shape  # doctest: +SKIP
    (2000, 4)
    """
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    if count is not None and count < 0:
        raise UsageError(f"count: expected a number >= 0, got {count}")
    folder = cache_folder() / "proposals" if cache is None else Path(cache)
    kept = ProposalCache(folder, make_proposer(method, **options), count)
    console = Console(stderr=True)
    columns = (TextColumn(method), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task(method, total=len(dataset))
        kept.fill(dataset, workers=workers, report=lambda done, total: bar.update(task, completed=done, total=total))
    return ProposedDataset.of(dataset, kept)
