"""Keypoints: (N, K, 3) arrays of x, y in pixels and visibility 0 (not labelled), 1 (hidden), 2 (visible)."""

import numpy as np
from jaxtyping import Float

from otus.errors import ShapeError


def pairwise_oks(
    predicted: Float[np.ndarray, "n k 3"],
    truth: Float[np.ndarray, "m k 3"],
    *,
    truth_areas: Float[np.ndarray, "m"],
    truth_boxes_xyxy: Float[np.ndarray, "m 4"],
    sigmas: Float[np.ndarray, "k"],
) -> Float[np.ndarray, "n m"]:
    """Return the object keypoint similarity of every prediction with every ground truth, in [0, 1].

    The mean over the labelled keypoints of exp(-d^2 / (2 area (2 sigma)^2)), cocodataset.org, keypoint evaluation. For an
    object without labelled keypoints d is how far a predicted keypoint lies outside its box doubled about the centre.

    Parameters
    ----------
    truth_areas
        Areas of the objects in square pixels (of the masks, where there are masks).
    sigmas
        (K,) constant of each keypoint.
    """
    if predicted.shape[1:] != truth.shape[1:] or predicted.shape[1:] != (len(sigmas), 3):
        raise ShapeError(
            f"keypoints: expected (N, {len(sigmas)}, 3) for {len(sigmas)} sigmas, got {predicted.shape} and {truth.shape}"
        )
    variances = (2 * np.asarray(sigmas, dtype=np.float64)) ** 2
    delta = predicted[:, None, :, :2] - truth[None, :, :, :2]
    size = truth_boxes_xyxy[:, 2:] - truth_boxes_xyxy[:, :2]
    low, high = truth_boxes_xyxy[:, :2] - size, truth_boxes_xyxy[:, :2] + 2 * size
    points = predicted[:, None, :, :2]
    outside = np.maximum(low[None, :, None] - points, 0) + np.maximum(points - high[None, :, None], 0)
    labelled = truth[:, :, 2] > 0
    any_labelled = np.atleast_1d(labelled.any(axis=1))
    distance = np.where(any_labelled[None, :, None, None], delta, outside)
    exponent = (distance**2).sum(axis=3) / variances / (truth_areas[None, :, None] + np.spacing(1)) / 2
    counted = labelled | ~any_labelled[:, None]
    return (np.exp(-exponent) * counted[None]).sum(axis=2) / counted.sum(axis=1)[None]
