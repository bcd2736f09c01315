"""The proposals that a system asks for, found once for a data set and kept."""

from collections.abc import Callable

from torch import nn

from otus._files import cache_folder
from otus.data.dataset import Dataset
from otus.proposals.dataset import ProposalCache, ProposedDataset
from otus.proposals.proposers import PrecomputedProposals


def with_proposals(
    dataset: Dataset, system: nn.Module, *, workers: int = 1, report: Callable[[int, int], object] | None = None
) -> Dataset:
    """The data set with the proposals that a system looks at, or as it is where it has them or the system finds its own.

    Parameters
    ----------
    workers
        Processes that find what is not on disk yet.
    report
        Called with how many images are done and of how many.
    """
    proposer = getattr(system, "proposer", None)
    if isinstance(dataset, ProposedDataset) or not isinstance(proposer, PrecomputedProposals):
        return dataset
    kept = ProposalCache(cache_folder() / "proposals", proposer.search, proposer.count)
    kept.fill(dataset, workers=workers, report=report)
    return ProposedDataset.of(dataset, kept)
