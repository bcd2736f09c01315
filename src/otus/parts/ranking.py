"""The best few of many scores, in an order that is defined also where scores are equal: ``torch.topk`` leaves that open.

In bfloat16 thousands of scores are equal, and which of them are chosen must not depend on the chip, the number of threads or
what else is in the batch.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def stable_topk(scores: Float[Tensor, "b n"], count: int) -> Int[Tensor, "b k"]:
    """Return the indices of the highest scores of each row, highest first, equal ones by index.

    Parameters
    ----------
    count
        How many of each row; all where there are fewer.
    """
    if torch.compiler.is_compiling() or torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
        return scores.topk(torch.sym_min(count, scores.shape[1]), dim=1).indices
    if not 0 < count < scores.shape[1]:
        return scores.argsort(dim=1, descending=True, stable=True)[:, :count]
    best, index = scores.topk(count + 1, dim=1)
    index = index[:, :count]
    for row in torch.where(best[:, count - 1] == best[:, count])[0].tolist():  # the last is as high as the next
        higher = index[row, best[row, :count] > best[row, count]]
        level = torch.where(scores[row] == best[row, count])[0]
        index[row] = torch.cat([higher, level[: count - len(higher)]])
    index = index.sort(dim=1).values
    return index.gather(1, scores.gather(1, index).argsort(dim=1, descending=True, stable=True))
