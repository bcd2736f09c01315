"""Which of a dense head's many predictions become candidates for NMS, chosen before any box is decoded.

Shape shorthand: A anchors of a map, S class logits, N candidates.

An image has up to 200,000 anchors and 90 classes, nearly all of them background. Boxes are therefore made only of what is
chosen, and scores, where a class's logit alone decides, only where it can reach the threshold at all.
Reference: ``postprocess_detections`` of torchvision's RetinaNet, FCOS and SSD (BSD-3-Clause), whose choice this is.
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
"""The same of a batch, each image's index first."""
NO_CANDIDATE = -1.0
"""In the place of a score below its threshold."""


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
        """No class: background is where every class scores low."""
        return None

    def choose(self, outputs: DenseOutputs, image: int, thresholds: Float[Tensor, "s"]) -> CandidateIndices:
        """Candidates of one image whose scores are above the threshold of their class."""
        score_threshold = float(thresholds.min())
        least = score_threshold if outputs.centerness is None else score_threshold**2
        # A little below, so that rounding decides nothing here.
        loose = float(torch.logit(torch.tensor(least, dtype=torch.float64))) - 1e-3
        found: list[CandidateIndices] = []
        first = 0
        for level, of_batch in enumerate(outputs.logits):
            logits = of_batch[image]
            index = torch.where(logits.flatten() > loose)[0]
            scores = logits.flatten()[index].sigmoid()
            anchors, class_indices = index.div(logits.shape[1], rounding_mode="floor"), index % logits.shape[1]
            if outputs.centerness is not None:
                scores = (scores * outputs.centerness[level][image, anchors].sigmoid()).sqrt()
            kept = torch.where(scores > thresholds[class_indices])[0]
            kept = kept[stable_topk(scores[kept][None], self.top_k_per_level)[0]]
            found.append((scores[kept], class_indices[kept], anchors[kept] + first))
            first += len(logits)
        scores, class_indices, anchors = (torch.cat(column) for column in zip(*found, strict=True))
        return scores, class_indices, anchors

    def choose_of_batch(self, outputs: DenseOutputs, thresholds: Float[Tensor, "s"]) -> BatchCandidateIndices:
        """Candidates of all images, without a step that depends on values but the last."""
        found: list[tuple[Tensor, ...]] = []
        first = 0
        for of_map in self.all_scores(outputs, slice(None)):
            scores = torch.where(of_map > thresholds, of_map, NO_CANDIDATE).flatten(1)
            index = stable_topk(scores, self.top_k_per_level)
            found.append((scores.gather(1, index), index % of_map.shape[2], index // of_map.shape[2] + first))
            first += of_map.shape[1]
        scores, class_indices, anchors = (torch.cat(column, dim=1) for column in zip(*found, strict=True))
        image, place = torch.where(scores > NO_CANDIDATE)
        return image, scores[image, place], class_indices[image, place], anchors[image, place]

    def all_scores(self, outputs: DenseOutputs, image: int | slice) -> list[Float[Tensor, "*b _ s"]]:
        """The scores of all anchors of each map, of an image or of all."""
        found = [logits[image].sigmoid() for logits in outputs.logits]
        if outputs.centerness is None:
            return found
        return [
            (scores * centerness[image].sigmoid()[..., None]).sqrt()
            for scores, centerness in zip(found, outputs.centerness, strict=True)
        ]


@dataclass(frozen=True)
class SoftmaxScores:
    """Softmax over all classes, background at index 0 among them.

    Parameters
    ----------
    top_k_per_class
        Maximum candidates per category, the highest-scoring ones.
    """

    top_k_per_class: int = 400

    @property
    def background(self) -> int | None:
        """Its class index."""
        return 0

    def choose(self, outputs: DenseOutputs, image: int, thresholds: Float[Tensor, "s"]) -> CandidateIndices:
        """Candidates of one image whose scores are above the threshold of their class."""
        class_indices = torch.where(thresholds.isfinite())[0]
        scores = torch.cat(self.all_scores(outputs, image)).T[class_indices]
        chosen = scores > thresholds[class_indices, None]
        # The best are sought only of categories that have too many.
        crowded = torch.where(chosen.sum(dim=1) > self.top_k_per_class)[0]
        best = stable_topk(scores[crowded], self.top_k_per_class)
        chosen = chosen.index_copy(0, crowded, torch.zeros_like(chosen[crowded]).scatter(1, best, True))
        row, anchors = torch.where(chosen)
        return scores[row, anchors], class_indices[row], anchors

    def choose_of_batch(self, outputs: DenseOutputs, thresholds: Float[Tensor, "s"]) -> BatchCandidateIndices:
        """Candidates of all images, without a step that depends on values but the last."""
        of_anchors = torch.cat(self.all_scores(outputs, slice(None)), dim=1)
        of_classes = torch.where(of_anchors > thresholds, of_anchors, NO_CANDIDATE).transpose(1, 2)
        anchors = stable_topk(of_classes.flatten(0, 1), self.top_k_per_class).reshape(*of_classes.shape[:2], -1)
        scores = of_classes.gather(2, anchors)
        image, class_indices, place = torch.where(scores > NO_CANDIDATE)
        return image, scores[image, class_indices, place], class_indices, anchors[image, class_indices, place]

    def all_scores(self, outputs: DenseOutputs, image: int | slice) -> list[Float[Tensor, "*b _ s"]]:
        """The scores of all anchors of each map, of an image or of all."""
        return [logits[image].softmax(dim=-1) for logits in outputs.logits]
