"""Losses for semantic segmentation: cross-entropy, focal, OHEM, Dice and Lovász-softmax.

Shape shorthand: B images, K categories, H x W pixels, P labelled pixels.

All take logits (B, K, H, W) and labels (B, H, W), ignore pixels labelled 255, and are 0 if no pixel is labelled.

References
----------
- Focal: Lin et al., "Focal loss for dense object detection", ICCV 2017 (arXiv:1708.02002).
- Dice: Milletari, Navab, Ahmadi, "V-Net", 3DV 2016 (arXiv:1606.04797), section 3; the mean over categories that occur.
- Lovász-softmax: Berman, Triki, Blaschko, CVPR 2018 (arXiv:1705.08790), equations 9 and 10, over categories that occur.
- OHEM: Wu, Shen, van den Hengel, "High-performance semantic segmentation using very deep fully convolutional networks", 2016
  (arXiv:1604.04339), section 2.2.
- Median frequency balancing: Eigen and Fergus, ICCV 2015 (arXiv:1411.4734), section 6.3.2; used by SegNet.
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
        Logits and label of each pixel.
    weights
        Weight of each category, e.g. from :func:`median_frequency_weights` (default: all 1).
    """
    weights = None if weights is None else weights.to(logits)
    losses = F.cross_entropy(logits, labels, weight=weights, ignore_index=IGNORE, reduction="sum")
    labelled = labels != IGNORE
    total = labelled.sum() if weights is None else weights[labels[labelled]].sum()
    return losses / total.to(losses.dtype).clamp(min=torch.finfo(losses.dtype).tiny)


def focal_cross_entropy(
    logits: Float[Tensor, "b k h w"], labels: Int[Tensor, "b h w"], *, gamma: float = 2.0
) -> Float[Tensor, ""]:
    """Return the mean of ``(1 - p)**gamma * -log p`` over labelled pixels, p the probability of the true category."""
    log_p = -F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="none")
    labelled = labels != IGNORE
    return (-((1 - log_p.exp()) ** gamma) * log_p)[labelled].sum() / labelled.sum().clamp(min=1)


def hardest_cross_entropy(
    logits: Float[Tensor, "b k h w"], labels: Int[Tensor, "b h w"], *, probability: float = 0.7, share: float = 0.0625
) -> Float[Tensor, ""]:
    """Return the mean cross-entropy over the pixels whose true category has a probability below ``probability`` (OHEM).

    Parameters
    ----------
    logits, labels
        Logits and label of each pixel.
    probability
        Pixels whose true category has a higher probability are left out.
    share
        Minimum fraction of the labelled pixels that is used, those of the highest loss.
    """
    losses = F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="none")[labels != IGNORE]
    if not len(losses):
        return logits.sum() * 0
    hard = losses.detach() > -torch.log(losses.new_tensor(probability))
    min_count = max(1, int(share * len(losses)))
    if int(hard.sum()) < min_count:
        return losses.topk(min_count).values.mean()
    return losses[hard].mean()


def dice(logits: Float[Tensor, "b k h w"], labels: Int[Tensor, "b h w"]) -> Float[Tensor, ""]:
    """Return 1 minus the mean Dice coefficient of the categories that occur: ``2 sum(p t) / (sum(p) + sum(t))``."""
    probabilities, target = _labelled(logits, labels)
    present = target.any(dim=0)
    overlap = (probabilities * target).sum(dim=0)
    total = probabilities.sum(dim=0) + target.sum(dim=0)
    return _mean(1 - 2 * overlap[present] / total[present], logits)


def lovasz_softmax(logits: Float[Tensor, "b k h w"], labels: Int[Tensor, "b h w"]) -> Float[Tensor, ""]:
    """Return the Lovász extension of 1 - IoU, the mean over the categories that occur.

    For each category, the errors ``|t - p|`` of all pixels are sorted in descending order; each is weighted by the increase
    of 1 - IoU when its pixel is added to the wrong ones.
    """
    probabilities, target = _labelled(logits, labels)
    losses = []
    for label in torch.where(target.any(dim=0))[0].tolist():
        is_label = target[:, label].to(probabilities.dtype)
        errors, order = (is_label - probabilities[:, label]).abs().sort(descending=True)
        sorted_target = is_label[order]
        intersection = sorted_target.sum() - sorted_target.cumsum(0)
        union = sorted_target.sum() + (1 - sorted_target).cumsum(0)
        jaccard_loss = 1 - intersection / union
        gradient = torch.cat([jaccard_loss[:1], jaccard_loss[1:] - jaccard_loss[:-1]])
        losses.append((errors * gradient).sum())
    return _mean(torch.stack(losses) if losses else logits.new_zeros(0), logits)


def median_frequency_weights(pixel_counts: Int[Tensor, "k"], image_pixels: Int[Tensor, "k"]) -> Float[Tensor, "k"]:
    """Return the weight of each category: the median of all frequencies divided by its own; 0 if it never occurs.

    The frequency of a category is ``pixel_counts / image_pixels``.

    Parameters
    ----------
    pixel_counts
        (K,) number of pixels of each category in a data set.
    image_pixels
        (K,) number of pixels of all images in which the category occurs.
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
    """Return probabilities and one-hot targets of the labelled pixels."""
    labelled = labels != IGNORE
    probabilities = logits.softmax(dim=1).movedim(1, -1)[labelled]
    return probabilities, F.one_hot(labels[labelled], logits.shape[1]).bool()


def _mean(losses: Float[Tensor, "k"], logits: Tensor) -> Float[Tensor, ""]:
    return losses.mean() if len(losses) else logits.sum() * 0
