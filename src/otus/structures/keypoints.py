"""Keypoints: (N, K, 3) arrays of x, y in pixels and visibility 0 (not labelled), 1 (hidden), 2 (visible)."""

import numpy as np
from jaxtyping import Float

from otus.errors import ShapeError


def pairwise_oks(
    predicted: Float[np.ndarray, "n k 3"],
    ground_truth: Float[np.ndarray, "m k 3"],
    *,
    ground_truth_areas: Float[np.ndarray, "m"],
    ground_truth_boxes_xyxy: Float[np.ndarray, "m 4"],
    sigmas: Float[np.ndarray, "k"],
) -> Float[np.ndarray, "n m"]:
    """Return the object keypoint similarity of every prediction with every ground truth, in [0, 1].

    OKS = mean over the labelled keypoints of exp(-d^2 / (2 area (2 sigma)^2)), where d is the distance of predicted and
    labelled keypoint (cocodataset.org, keypoint evaluation). For an object without labelled keypoints, d is the
    distance of a predicted keypoint from the object's box enlarged to three times its width and height.

    Parameters
    ----------
    ground_truth_areas
        Areas of the objects in square pixels (of the masks, where there are masks).
    sigmas
        (K,) constant of each keypoint.
    """
    if predicted.shape[1:] != ground_truth.shape[1:] or predicted.shape[1:] != (len(sigmas), 3):
        raise ShapeError(
            f"keypoints: expected (N, {len(sigmas)}, 3) for {len(sigmas)} sigmas, "
            f"got {predicted.shape} and {ground_truth.shape}"
        )
    variances = (2 * np.asarray(sigmas, dtype=np.float64)) ** 2
    delta = predicted[:, None, :, :2] - ground_truth[None, :, :, :2]
    size = ground_truth_boxes_xyxy[:, 2:] - ground_truth_boxes_xyxy[:, :2]
    low, high = ground_truth_boxes_xyxy[:, :2] - size, ground_truth_boxes_xyxy[:, :2] + 2 * size
    points = predicted[:, None, :, :2]
    outside = np.maximum(low[None, :, None] - points, 0) + np.maximum(points - high[None, :, None], 0)
    labelled = ground_truth[:, :, 2] > 0
    any_labelled = np.atleast_1d(labelled.any(axis=1))
    distance = np.where(any_labelled[None, :, None, None], delta, outside)
    exponent = (distance**2).sum(axis=3) / variances / (ground_truth_areas[None, :, None] + np.spacing(1)) / 2
    counted = labelled | ~any_labelled[:, None]
    return (np.exp(-exponent) * counted[None]).sum(axis=2) / counted.sum(axis=1)[None]
