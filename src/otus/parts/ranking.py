"""Top-k with a defined order of equal scores, which ``torch.topk`` leaves open.

In bfloat16 thousands of scores can be equal, and which of them are chosen must not depend on the processor, the number of
threads or the other images of the batch.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def stable_topk(scores: Float[Tensor, "b n"], count: int) -> Int[Tensor, "b k"]:
    """Return the indices of the ``count`` highest scores of each row, highest first, equal ones by index.

    Parameters
    ----------
    scores
        Scores; each row is ranked by itself.
    count
        Number of indices per row; all if a row has fewer.
    """
    if torch.compiler.is_compiling() or torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
        return scores.topk(torch.sym_min(count, scores.shape[1]), dim=1).indices
    if not 0 < count < scores.shape[1]:
        return scores.argsort(dim=1, descending=True, stable=True)[:, :count]
    best, index = scores.topk(count + 1, dim=1)
    index = index[:, :count]
    for row in torch.where(best[:, count - 1] == best[:, count])[0].tolist():  # there is a tie at the cut
        higher = index[row, best[row, :count] > best[row, count]]
        tied = torch.where(scores[row] == best[row, count])[0]
        index[row] = torch.cat([higher, tied[: count - len(higher)]])
    index = index.sort(dim=1).values
    return index.gather(1, scores.gather(1, index).argsort(dim=1, descending=True, stable=True))
