"""Which predictions of a dense head become candidates for NMS, chosen before boxes are decoded.

Shape shorthand: A anchors of a feature map, S class logits, N candidates.

An image has up to 200,000 anchors and 90 classes, nearly all of them background. Therefore boxes are decoded for candidates
only, and sigmoid scores are computed only where the logit can reach the threshold.
Reference: ``postprocess_detections`` of torchvision's RetinaNet, FCOS and SSD (BSD-3-Clause), which chooses the same.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from otus.parts.heads.dense_head import DenseOutputs
from otus.parts.ranking import stable_topk

CandidateIndices = tuple[Float[Tensor, "n"], Int[Tensor, "n"], Int[Tensor, "n"]]
"""Scores, class indices, and indices into the anchors of all feature maps."""
BatchCandidateIndices = tuple[Int[Tensor, "n"], Float[Tensor, "n"], Int[Tensor, "n"], Int[Tensor, "n"]]
"""The same for a batch, preceded by the index of each candidate's image."""
NO_CANDIDATE = -1.0
"""Replaces scores below their threshold."""


@dataclass(frozen=True)
class SigmoidScores:
    """Independent sigmoid per class; with centre-ness, the square root of class times centre-ness (as torchvision's FCOS).

    Parameters
    ----------
    top_k_per_level
        Maximum candidates per feature map, the highest-scoring ones.
    """

    top_k_per_level: int = 1000

    @property
    def background(self) -> int | None:
        """Class index of background: None, as background is where every class scores low."""
        return None

    def choose(self, outputs: DenseOutputs, image: int, thresholds: Float[Tensor, "s"]) -> CandidateIndices:
        """Return the candidates of one image: scores above the threshold of their class.

        Parameters
        ----------
        outputs
            Outputs of the head for a batch.
        image
            Index of the image in the batch.
        thresholds
            Minimum score of each class index; infinity for those that are never reported.
        """
        score_threshold = float(thresholds.min())
        # With centre-ness c the score is sqrt(p c) <= sqrt(p), so p must be at least the squared threshold.
        min_probability = score_threshold if outputs.centerness is None else score_threshold**2
        # A little lower, so that no candidate is lost by rounding.
        min_logit = float(torch.logit(torch.tensor(min_probability, dtype=torch.float64))) - 1e-3
        candidates: list[CandidateIndices] = []
        first = 0
        for level, batch_logits in enumerate(outputs.logits):
            logits = batch_logits[image]
            index = torch.where(logits.flatten() > min_logit)[0]
            scores = logits.flatten()[index].sigmoid()
            anchors, class_indices = index.div(logits.shape[1], rounding_mode="floor"), index % logits.shape[1]
            if outputs.centerness is not None:
                scores = (scores * outputs.centerness[level][image, anchors].sigmoid()).sqrt()
            kept = torch.where(scores > thresholds[class_indices])[0]
            kept = kept[stable_topk(scores[kept][None], self.top_k_per_level)[0]]
            candidates.append((scores[kept], class_indices[kept], anchors[kept] + first))
            first += len(logits)
        scores, class_indices, anchors = (torch.cat(column) for column in zip(*candidates, strict=True))
        return scores, class_indices, anchors

    def choose_batch(self, outputs: DenseOutputs, thresholds: Float[Tensor, "s"]) -> BatchCandidateIndices:
        """Return the candidates of all images, with shapes that depend on values in the last step only, for export."""
        candidates: list[tuple[Tensor, ...]] = []
        first = 0
        for level_scores in self.all_scores(outputs, slice(None)):
            num_anchors, num_classes = level_scores.shape[1:]
            scores = torch.where(level_scores > thresholds, level_scores, NO_CANDIDATE).flatten(1)
            index = stable_topk(scores, self.top_k_per_level)
            candidates.append((scores.gather(1, index), index % num_classes, index // num_classes + first))
            first += num_anchors
        scores, class_indices, anchors = (torch.cat(column, dim=1) for column in zip(*candidates, strict=True))
        image, rank = torch.where(scores > NO_CANDIDATE)
        return image, scores[image, rank], class_indices[image, rank], anchors[image, rank]

    def all_scores(self, outputs: DenseOutputs, image: int | slice) -> list[Float[Tensor, "*b _ s"]]:
        """Return the scores of all anchors, per feature map; ``image`` is an index, or a slice for several images."""
        probabilities = [logits[image].sigmoid() for logits in outputs.logits]
        if outputs.centerness is None:
            return probabilities
        return [
            (probability * centerness[image].sigmoid()[..., None]).sqrt()
            for probability, centerness in zip(probabilities, outputs.centerness, strict=True)
        ]


@dataclass(frozen=True)
class SoftmaxScores:
    """Softmax over all classes, including background at index 0.

    Parameters
    ----------
    top_k_per_class
        Maximum candidates per class, the highest-scoring ones.
    """

    top_k_per_class: int = 400

    @property
    def background(self) -> int | None:
        """Class index of background."""
        return 0

    def choose(self, outputs: DenseOutputs, image: int, thresholds: Float[Tensor, "s"]) -> CandidateIndices:
        """Return the candidates of one image; parameters as of :meth:`SigmoidScores.choose`."""
        class_indices = torch.where(thresholds.isfinite())[0]
        scores = torch.cat(self.all_scores(outputs, image)).T[class_indices]
        chosen = scores > thresholds[class_indices, None]
        # Only classes with too many candidates need a top-k.
        crowded = torch.where(chosen.sum(dim=1) > self.top_k_per_class)[0]
        best = stable_topk(scores[crowded], self.top_k_per_class)
        chosen = chosen.index_copy(0, crowded, torch.zeros_like(chosen[crowded]).scatter(1, best, True))
        row, anchors = torch.where(chosen)
        return scores[row, anchors], class_indices[row], anchors

    def choose_batch(self, outputs: DenseOutputs, thresholds: Float[Tensor, "s"]) -> BatchCandidateIndices:
        """Return the candidates of all images, with shapes that depend on values in the last step only, for export."""
        all_scores = torch.cat(self.all_scores(outputs, slice(None)), dim=1)
        class_scores = torch.where(all_scores > thresholds, all_scores, NO_CANDIDATE).transpose(1, 2)
        anchors = stable_topk(class_scores.flatten(0, 1), self.top_k_per_class).reshape(*class_scores.shape[:2], -1)
        scores = class_scores.gather(2, anchors)
        image, class_indices, rank = torch.where(scores > NO_CANDIDATE)
        return image, scores[image, class_indices, rank], class_indices, anchors[image, class_indices, rank]

    def all_scores(self, outputs: DenseOutputs, image: int | slice) -> list[Float[Tensor, "*b _ s"]]:
        """Return the scores of all anchors, per feature map; ``image`` is an index, or a slice for several images."""
        return [logits[image].softmax(dim=-1) for logits in outputs.logits]
