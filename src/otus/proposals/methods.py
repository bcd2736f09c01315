"""Proposal methods by name, for an image or a whole data set. Torch is not imported here."""

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
"""Proposal methods that need no trained weights, by name."""


def make_proposer(method: str, **options: Any) -> Proposer:
    """Return the proposer of a method in :data:`METHODS`.

    Parameters
    ----------
    method
        Name of the method.
    options
        Arguments of its class, e.g. ``mode`` and ``seed`` of :class:`~otus.proposals.selective_search.SelectiveSearch`.

    Raises
    ------
    UsageError
        If the method is unknown, or does not have one of the options.
    """
    if method not in METHODS:
        raise UsageError(f"method: expected one of {', '.join(METHODS)}, got {method!r}{did_you_mean(method, METHODS)}")
    fields = METHODS[method].__dataclass_fields__
    unknown = [name for name in options if name not in fields]
    if unknown:
        raise UsageError(f"{', '.join(unknown)}: the method {method} has no such option, only {', '.join(fields)}")
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

    Proposals are computed once and cached on disk by the image's pixels and the options; an interrupted run continues where
    it stopped. On a terminal, a progress bar is shown on stderr. Proposals are loaded with each sample, not kept in memory.

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
        Number of processes that compute missing proposals; see :meth:`~otus.proposals.cache.ProposalCache.fill`.
    options
        Arguments of the method, see :func:`make_proposer`.

    Raises
    ------
    UsageError, DataError
        As :func:`make_proposer` and :meth:`~otus.proposals.cache.ProposalCache.fill`.

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
    proposal_cache = ProposalCache(folder, make_proposer(method, **options), count)
    console = Console(stderr=True)
    columns = (TextColumn(method), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task(method, total=len(dataset))
        proposal_cache.fill(
            dataset, workers=workers, report=lambda done, total: bar.update(task, completed=done, total=total)
        )
    return ProposedDataset.of(dataset, proposal_cache)
