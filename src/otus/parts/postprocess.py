"""Postprocessing of scored boxes: score thresholds, non-maximum suppression, maximum number of detections.

The values are passed with each call (``system.predict(samples, postprocess=…)``) and never set on a system, so that
several threads can use one system with different thresholds.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from otus.parts.boxes.nms import batched_nms


@dataclass(frozen=True)
class Postprocess:
    """Which of a detector's scored boxes are reported.

    Labels and score thresholds are applied first, before any limit; then NMS; then the limit.

    Parameters
    ----------
    score_threshold
        Minimum score: a box is reported if its score is above.
    nms_iou
        Boxes of the same class whose IoU with a higher-scoring one exceeds this are removed; 1 removes none.
    max_detections
        Maximum number of boxes per image, the highest-scoring ones.
    score_thresholds
        Minimum score per label, none below ``score_threshold`` (default: ``score_threshold`` for all).
    labels
        Labels that are reported (default: all).
    """

    score_threshold: float = 0.05
    nms_iou: float = 0.5
    max_detections: int = 100
    score_thresholds: tuple[float, ...] = ()
    labels: tuple[int, ...] | None = None

    def thresholds(self, labels: Int[Tensor, "n"]) -> Float[Tensor, "n"]:
        """Return the minimum score of each label, infinity for those that are not reported.

        Parameters
        ----------
        labels
            Labels; -1 is never reported, and stands for background and for classes that belong to no category.
        """
        reported = labels >= 0
        if self.labels is not None:
            reported = reported & torch.isin(labels, labels.new_tensor(self.labels))
        if not self.score_thresholds:
            return torch.where(reported, self.score_threshold, torch.inf)
        threshold_of_label = torch.tensor(self.score_thresholds, device=labels.device)
        return torch.where(reported, threshold_of_label[labels], torch.inf)

    def for_labels(self, labels: Sequence[int]) -> "Postprocess":
        """Return the same postprocessing for a detector that has other labels: its label i is ``labels[i]`` here."""
        chosen = None if self.labels is None else tuple(i for i, label in enumerate(labels) if label in self.labels)
        thresholds = tuple(self.score_thresholds[label] for label in labels) if self.score_thresholds else ()
        return replace(self, labels=chosen, score_thresholds=thresholds)

    def keep(
        self, boxes: Float[Tensor, "n d"], scores: Float[Tensor, "n"], labels: Int[Tensor, "n"]
    ) -> Int[Tensor, "kept"]:
        """Return the indices of the boxes that remain after NMS and the limit, highest score first."""
        if self.nms_iou >= 1:  # no IoU exceeds 1
            return scores.argsort(descending=True, stable=True)[: self.max_detections]
        return batched_nms(boxes, scores, labels, iou_threshold=self.nms_iou, limit=self.max_detections)
