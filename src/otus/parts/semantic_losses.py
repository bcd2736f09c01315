"""Losses of scores and labels per pixel: cross-entropy, focal, Dice, Lovász-softmax, and the hardest pixels only.

Shape shorthand: B images, K categories, H x W pixels, P labelled pixels.

All take scores (B, K, H, W) and labels (B, H, W), ignore pixels labelled 255, and are 0 where no pixel is labelled.

References
----------
- Focal: Lin et al., "Focal loss for dense object detection", ICCV 2017 (arXiv:1708.02002).
- Dice: Milletari, Navab, Ahmadi, "V-Net", 3DV 2016 (arXiv:1606.04797), section 3; the mean over categories that occur.
- Lovász-softmax: Berman, Triki, Blaschko, CVPR 2018 (arXiv:1705.08790), equations 9 and 10, over categories that occur.
- OHEM: Wu, Shen, van den Hengel, "High-performance semantic segmentation using very deep fully convolutional networks", 2016
  (arXiv:1604.04339), section 2.2.
- Balance: Eigen and Fergus, ICCV 2015 (arXiv:1411.4734), section 6.3.2: median frequency balancing, as SegNet's.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from otus.structures import IGNORE


def cross_entropy(
    logits: Float[Tensor, "b k h w"], labels: Int[Tensor, "b h w"], *, weights: Float[Tensor, "k"] | None = None
) -> Float[Tensor, ""]:
    """Return the mean cross-entropy over labelled pixels, each weighted by its category.

    Parameters
    ----------
    logits, labels
        Scores and labels of each pixel.
    weights
        Of each category, e.g. of :func:`median_frequency_weights` (default: all 1).
    """
    weights = None if weights is None else weights.to(logits)
    losses = F.cross_entropy(logits, labels, weight=weights, ignore_index=IGNORE, reduction="sum")
    known = labels != IGNORE
    total = known.sum() if weights is None else weights[labels[known]].sum()
    return losses / total.to(losses.dtype).clamp(min=torch.finfo(losses.dtype).tiny)


def focal_cross_entropy(
    logits: Float[Tensor, "b k h w"], labels: Int[Tensor, "b h w"], *, gamma: float = 2.0
) -> Float[Tensor, ""]:
    """Return the mean of ``(1 - p)**gamma * -log p`` over labelled pixels, p the probability of the true category."""
    log_p = -F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="none")
    known = labels != IGNORE
    return (-((1 - log_p.exp()) ** gamma) * log_p)[known].sum() / known.sum().clamp(min=1)


def hardest_cross_entropy(
    logits: Float[Tensor, "b k h w"], labels: Int[Tensor, "b h w"], *, probability: float = 0.7, share: float = 0.0625
) -> Float[Tensor, ""]:
    """Return the mean cross-entropy over the pixels whose true category has less than ``probability``.

    Parameters
    ----------
    logits, labels
        Scores and labels of each pixel.
    probability
        Pixels with more are left out.
    share
        At least this share of the labelled pixels counts, the hardest ones.
    """
    losses = F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="none")[labels != IGNORE]
    if not len(losses):
        return logits.sum() * 0
    hard = losses.detach() > -torch.log(losses.new_tensor(probability))
    least = max(1, int(share * len(losses)))
    if int(hard.sum()) < least:
        return losses.topk(least).values.mean()
    return losses[hard].mean()


def dice(logits: Float[Tensor, "b k h w"], labels: Int[Tensor, "b h w"]) -> Float[Tensor, ""]:
    """Return 1 minus the mean Dice coefficient of the categories that occur: ``2 sum(p t) / (sum(p) + sum(t))``."""
    probabilities, truth = _labelled(logits, labels)
    present = truth.any(dim=0)
    overlap = (probabilities * truth).sum(dim=0)
    total = probabilities.sum(dim=0) + truth.sum(dim=0)
    return _mean(1 - 2 * overlap[present] / total[present], logits)


def lovasz_softmax(logits: Float[Tensor, "b k h w"], labels: Int[Tensor, "b h w"]) -> Float[Tensor, ""]:
    """Return the Lovász extension of 1 - IoU, the mean over the categories that occur.

    A category's errors, by how much the probability of each pixel differs from the truth, are sorted, the largest first;
    each is weighted by what the IoU loses when its pixel joins those that are wrong.
    """
    probabilities, truth = _labelled(logits, labels)
    losses = []
    for label in torch.where(truth.any(dim=0))[0].tolist():
        is_label = truth[:, label].to(probabilities.dtype)
        errors, order = (is_label - probabilities[:, label]).abs().sort(descending=True)
        sorted_truth = is_label[order]
        intersection = sorted_truth.sum() - sorted_truth.cumsum(0)
        union = sorted_truth.sum() + (1 - sorted_truth).cumsum(0)
        jaccard = 1 - intersection / union
        gained = torch.cat([jaccard[:1], jaccard[1:] - jaccard[:-1]])
        losses.append((errors * gained).sum())
    return _mean(torch.stack(losses) if losses else logits.new_zeros(0), logits)


def median_frequency_weights(pixel_counts: Int[Tensor, "k"], image_pixels: Int[Tensor, "k"]) -> Float[Tensor, "k"]:
    """Return the weight of each category: the median of all frequencies over its own, 0 for those that never occur.

    Parameters
    ----------
    pixel_counts
        (K,) pixels of each category in a data set.
    image_pixels
        (K,) pixels of the images in which it occurs.
    """
    occurs = pixel_counts > 0
    frequencies = pixel_counts[occurs].double() / image_pixels[occurs]
    weights = torch.zeros(len(pixel_counts), dtype=torch.float32)
    if occurs.any():
        weights[occurs] = (frequencies.quantile(0.5) / frequencies).float()
    return weights


def _labelled(
    logits: Float[Tensor, "b k h w"], labels: Int[Tensor, "b h w"]
) -> tuple[Float[Tensor, "p k"], Float[Tensor, "p k"]]:
    """Probabilities and one-hot truth of the labelled pixels."""
    known = labels != IGNORE
    probabilities = logits.softmax(dim=1).movedim(1, -1)[known]
    return probabilities, F.one_hot(labels[known], logits.shape[1]).bool()


def _mean(losses: Float[Tensor, "k"], logits: Tensor) -> Float[Tensor, ""]:
    return losses.mean() if len(losses) else logits.sum() * 0
