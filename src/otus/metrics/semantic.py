"""Semantic segmentation: mIoU and pixel accuracy from a confusion matrix, and boundary F.

From one confusion matrix over all images, as defined by Long et al., Fully Convolutional Networks, CVPR 2015, section 5
(and computed by mmsegmentation, torchmetrics and hotcoco):

- IoU of a category = pixels in its intersection of prediction and ground truth / pixels in their union; mIoU is the
  mean over categories, fwIoU the mean weighted by the categories' ground truth pixels;
- accuracy of a category = fraction of its ground truth pixels that are predicted correctly; mAcc is the mean over
  categories, aAcc the fraction over all pixels.

Boundary F (Csurka et al., What is a good evaluation measure for semantic segmentation?, BMVC 2013; contours as in
Perazzi et al., DAVIS, CVPR 2016): per image and category, the harmonic mean of precision and recall of boundary pixels.
A boundary pixel is correct if the other map's boundary is within ``tolerance`` times the image's diagonal (rounded up
to pixels). BF is the mean over the images where prediction or ground truth has the category, then over categories.

- Pixels whose ground truth is 255 are ignored; boundaries along them are added to both maps.
- A prediction of 255 is no category: a false negative.
- The figures of a category that does not occur are NaN, not 0, and left out of means.

Shape shorthand: K categories.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Self

import numpy as np
from jaxtyping import Float, Int

from otus.errors import ShapeError, UsageError
from otus.metrics._boundary_kernels import boundary_counts
from otus.metrics._ratios import mean_of_defined, ratio
from otus.structures import IGNORE, Categories, SemanticMap

_ROWS_PER_CHUNK = 512


class SemanticQuality:
    """IoU, accuracy and boundary F over any number of images, in the memory of one confusion matrix.

    Parameters
    ----------
    categories
        The K categories.
    tolerance
        Tolerance of boundary F, as a fraction of the image's diagonal.

    Examples
    --------
    >>> categories = Categories(("sky", "owl", "tree"))
    >>> ground_truth = SemanticMap(np.array([[0, 0, 1, 255]]), categories)
    >>> predicted = SemanticMap(np.array([[0, 1, 1, 0]]), categories)
    >>> figures = SemanticQuality(categories).update(ground_truth, predicted).compute().figures
    >>> figures["mIoU"], round(figures["aAcc"], 4)
    (0.5, 0.6667)
    """

    def __init__(self, categories: Categories, *, tolerance: float = 0.008) -> None:
        if not 0 <= tolerance < 1:
            raise UsageError(f"tolerance: expected a fraction of the diagonal in [0, 1), got {tolerance}")
        self.categories = categories
        self.tolerance = tolerance
        self._confusion = np.zeros((len(categories), len(categories) + 1), dtype=np.int64)
        self._boundary_sums = np.zeros(len(categories))
        self._boundary_images = np.zeros(len(categories), dtype=np.int64)

    def update(self, ground_truth: SemanticMap, prediction: SemanticMap) -> Self:
        """Add one more image.

        Raises
        ------
        ShapeError
            If the maps differ in size.
        UsageError
            If the maps have other categories than the metric.
        """
        for side, semantic in (("ground truth", ground_truth), ("prediction", prediction)):
            if semantic.categories.names != self.categories.names:
                raise UsageError(f"semantic map: the {side} has other categories than this metric")
        if ground_truth.size_hw != prediction.size_hw:
            raise ShapeError(
                f"semantic map: expected a prediction of size {ground_truth.size_hw}, got {prediction.size_hw}"
            )
        count = len(self.categories)
        # Label K (at most 255) means ignored in the ground truth and no category in the prediction.
        gt_labels = np.where(ground_truth.labels == IGNORE, count, ground_truth.labels).astype(np.uint8)
        predicted = np.where((prediction.labels == IGNORE) | (gt_labels == count), count, prediction.labels).astype(
            np.uint8
        )
        pairs = np.zeros((count + 1) ** 2, dtype=np.int64)
        for first in range(0, len(gt_labels), _ROWS_PER_CHUNK):  # int64 of a whole large image would take gigabytes
            chunk = slice(first, first + _ROWS_PER_CHUNK)
            pairs += np.bincount(
                (gt_labels[chunk].astype(np.int64) * (count + 1) + predicted[chunk]).ravel(), minlength=len(pairs)
            )
        confusion = pairs.reshape(count + 1, count + 1)[:count]
        self._confusion += confusion
        occurs = confusion.sum(axis=1) + confusion[:, :count].sum(axis=0) > 0
        if occurs.any():
            self._boundary_sums[occurs] += _boundary_f(gt_labels, predicted, count, self.tolerance)[occurs]
            self._boundary_images += occurs
        return self

    def merge(self, other: "SemanticQuality") -> Self:
        """Add the counts of another metric, of other images and the same categories and tolerance."""
        if other.categories != self.categories or other.tolerance != self.tolerance:
            raise UsageError("only metrics of the same categories and tolerance can be merged")
        self._confusion += other._confusion
        self._boundary_sums += other._boundary_sums
        self._boundary_images += other._boundary_images
        return self

    def compute(self) -> "SemanticResult":
        """Compute the figures of all images so far."""
        boundary = ratio(self._boundary_sums, self._boundary_images)
        return SemanticResult(self.categories, self._confusion.copy(), boundary)


@dataclass(frozen=True, eq=False)
class SemanticResult:
    """The confusion matrix and its figures.

    Parameters
    ----------
    categories
        The K categories.
    confusion
        (K, K + 1) pixels by ground truth and predicted category; the last column counts pixels without a predicted one.
    boundary_f
        (K,) boundary F per category.
    """

    categories: Categories
    confusion: Int[np.ndarray, "k k_plus_1"]
    boundary_f: Float[np.ndarray, "k"]
    figures: Mapping[str, float] = field(init=False)
    """mIoU, fwIoU, mAcc, aAcc and BF, the mean boundary F."""
    per_category: Mapping[str, Mapping[str, float]] = field(init=False)
    """IoU, Acc and BF by category name; NaN where undefined."""

    def __post_init__(self) -> None:
        count = len(self.categories)
        correct = np.diagonal(self.confusion).astype(np.float64)
        gt_pixels, predicted_pixels = self.confusion.sum(axis=1), self.confusion[:, :count].sum(axis=0)
        iou, accuracy = ratio(correct, gt_pixels + predicted_pixels - correct), ratio(correct, gt_pixels)
        pixels = int(gt_pixels.sum())
        figures = {
            "mIoU": mean_of_defined(iou),
            "fwIoU": float((gt_pixels[gt_pixels > 0] * iou[gt_pixels > 0]).sum() / pixels) if pixels else float("nan"),
            "mAcc": mean_of_defined(accuracy),
            "aAcc": float(correct.sum() / pixels) if pixels else float("nan"),
            "BF": mean_of_defined(self.boundary_f),
        }
        per_category = {
            name: {"IoU": float(iou[i]), "Acc": float(accuracy[i]), "BF": float(self.boundary_f[i])}
            for i, name in enumerate(self.categories)
        }
        object.__setattr__(self, "figures", figures)
        object.__setattr__(self, "per_category", per_category)


def _boundary_f(
    ground_truth: Int[np.ndarray, "h w"], prediction: Int[np.ndarray, "h w"], count: int, tolerance: float
) -> Float[np.ndarray, "k"]:
    """Return boundary F of each category in one image: 1 if neither map has a boundary, 0 if only one has."""
    radius = int(np.ceil(tolerance * float(np.hypot(*ground_truth.shape))))
    gt_pixels, gt_near, predicted_pixels, predicted_near = boundary_counts(
        ground_truth, prediction, _disk(radius), count
    ).astype(np.float64)
    both = (gt_pixels > 0) & (predicted_pixels > 0)
    recall = np.divide(gt_near, gt_pixels, out=np.zeros(count), where=both)
    precision = np.divide(predicted_near, predicted_pixels, out=np.zeros(count), where=both)
    total = precision + recall
    f = np.divide(2 * precision * recall, total, out=np.zeros(count), where=total > 0)
    return np.where((gt_pixels == 0) & (predicted_pixels == 0), 1.0, f)


@lru_cache(maxsize=64)
def _disk(radius: int) -> Int[np.ndarray, "o 2"]:
    """Return the integer offsets (y, x) within a radius, nearest first."""
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1].reshape(2, -1)
    squared = y**2 + x**2
    order = np.argsort(squared, kind="stable")
    order = order[squared[order] <= radius**2]
    return np.ascontiguousarray(np.stack([y, x], axis=1)[order])
