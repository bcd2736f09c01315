"""The box head of all region-based detectors: class logits and box deltas of each region.

Shape shorthand: R regions of all images, N objects, S class logits (background included).

Papers: R-CNN (arXiv:1311.2524, section 2.3 and appendix C): class scores and box deltas per class, regions assigned
by IoU. Fast R-CNN (arXiv:1504.08083, section 2.3): both learned at once.
Reference: torchvision ``RoIHeads`` (BSD-3-Clause).

Class indices: labels run from 0, without background. Among the logits, index 0 is background and each category has an
index of its own, by default label + 1. COCO checkpoints of other libraries have 91 logits, indexed by COCO's category ids,
of which ten belong to no category. These stay in the softmax, whose outputs would change without them, and are never
reported.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import clip_boxes_to_image, remove_small_boxes

from otus.parts.batching import Target, clip_to_images
from otus.parts.boxes.coding import DeltaBoxCoder
from otus.parts.boxes.matching import IoUMatcher
from otus.parts.boxes.sampling import BalancedSampler
from otus.parts.detections import Detections
from otus.parts.heads.class_indices import class_index_tables
from otus.parts.losses import box_delta_loss, zero_loss
from otus.parts.postprocess import Postprocess

DEFAULT_SAMPLER = BalancedSampler(batch_size_per_image=512, positive_fraction=0.25)
"""The values of torchvision's Faster R-CNN."""


@dataclass(frozen=True)
class Assignment:
    """The regions of one image that were sampled for training.

    ``matches`` are indices of the image's objects, -1 for background; ``class_indices`` the target classes, 0 for
    background.
    """

    regions: Float[Tensor, "r 4"]
    matches: Int[Tensor, "r"]
    class_indices: Int[Tensor, "r"]

    def positives(self) -> tuple[Float[Tensor, "p 4"], Int[Tensor, "p"]]:
        """Return the positive regions and the indices of their objects."""
        chosen = self.matches >= 0
        return self.regions[chosen], self.matches[chosen]


class TwoLayerMLP(nn.Module):
    """The box head's usual network: two fully connected layers (fc6 and fc7, as AlexNet's and VGG's are called)."""

    def __init__(self, in_features: int, representation_size: int) -> None:
        super().__init__()
        self.fc6 = nn.Linear(in_features, representation_size)
        self.fc7 = nn.Linear(representation_size, representation_size)

    def forward(self, roi_features: Float[Tensor, "r *piece"]) -> Float[Tensor, "r f"]:
        """Return the feature vector of each region."""
        return F.relu(self.fc7(F.relu(self.fc6(roi_features.flatten(start_dim=1)))))


class BoxHead(nn.Module):
    """Predict class scores, and a box per class, from the features of each region; assign proposals and compute losses.

    Parameters
    ----------
    network
        Maps the features of R regions to vectors (R, ``in_features``).
    in_features
        Length of the vectors from which classes and boxes are predicted.
    class_indices
        Index of each label among the class logits (see the top of this file).
    matcher, sampler
        Which proposals are positive and negative, and how many of each are sampled.
    box_coder
        Encodes boxes as deltas (default: :class:`DeltaBoxCoder` with weights 10, 10, 5, 5).
    regress_boxes
        Whether box deltas are predicted. If not, the head only classifies, and the region itself is the detected box.
    """

    index_of_label: Tensor
    label_of_index: Tensor

    def __init__(
        self,
        network: nn.Module,
        *,
        in_features: int,
        class_indices: Sequence[int],
        matcher: IoUMatcher = IoUMatcher(positive_iou=0.5, negative_iou=0.5),
        sampler: BalancedSampler = DEFAULT_SAMPLER,
        box_coder: DeltaBoxCoder | None = None,
        regress_boxes: bool = True,
    ) -> None:
        super().__init__()
        label_of_index, index_of_label = class_index_tables(class_indices, background=True)
        self.num_logits = len(label_of_index)
        self.network = network
        self.cls_score = nn.Linear(in_features, self.num_logits)
        self.bbox_pred = nn.Linear(in_features, self.num_logits * 4) if regress_boxes else None
        self.register_buffer("label_of_index", label_of_index, persistent=False)
        self.register_buffer("index_of_label", index_of_label, persistent=False)
        self.matcher = matcher
        self.sampler = sampler
        self.box_coder = box_coder or DeltaBoxCoder((10.0, 10.0, 5.0, 5.0))

    def forward(self, features: Tensor) -> tuple[Float[Tensor, "r s"], Float[Tensor, "r s 4"]]:
        """Return class logits, and box deltas of each region for each class (0 if boxes are not regressed); float32."""
        vectors = self.network(features).flatten(start_dim=1)
        logits = self.cls_score(vectors).float()
        if self.bbox_pred is None:
            return logits, logits.new_zeros(()).expand(*logits.shape, 4)
        return logits, self.bbox_pred(vectors).float().unflatten(1, (self.num_logits, 4))

    def assign(
        self,
        proposals: Sequence[Float[Tensor, "_ 4"]],
        targets: Sequence[Target],
        *,
        generator: torch.Generator | None = None,
    ) -> list[Assignment]:
        """Sample training regions from the proposals and the ground-truth boxes, which guarantee positives."""
        assignments = []
        for boxes, target in zip(proposals, targets, strict=True):
            regions = torch.cat([boxes, target.boxes])
            matches = self.matcher(regions, target.boxes, crowds=target.crowds)
            positives, negatives = self.sampler(matches, generator=generator)
            chosen = torch.cat([positives, negatives]).sort().values
            class_indices = torch.zeros_like(matches)
            class_indices[positives] = self.index_of_label[target.labels[matches[positives]]]
            assignments.append(Assignment(regions[chosen], matches[chosen], class_indices[chosen]))
        return assignments

    def losses(
        self,
        logits: Float[Tensor, "r s"],
        box_deltas: Float[Tensor, "r s 4"],
        assignments: Sequence[Assignment],
        targets: Sequence[Target],
    ) -> dict[str, Tensor]:
        """Compute ``class``: cross-entropy over all regions; ``box``: smooth L1 of the positives' deltas for their own
        class."""
        if len(logits) == 0:
            zero = zero_loss(self) + logits.sum()  # so that the backbone gets a gradient of zeros too
            return {"class": zero, "box": zero} if self.bbox_pred is not None else {"class": zero}
        class_indices = torch.cat([assignment.class_indices for assignment in assignments])
        if self.bbox_pred is None:
            return {"class": F.cross_entropy(logits, class_indices)}
        positive = torch.where(class_indices > 0)[0]
        target_deltas = []
        for assignment, target in zip(assignments, targets, strict=True):
            regions, matches = assignment.positives()
            target_deltas.append(self.box_coder.encode(target.boxes[matches], regions))
        predicted = box_deltas[positive, class_indices[positive]]
        return {
            "class": F.cross_entropy(logits, class_indices),
            "box": box_delta_loss(predicted, torch.cat(target_deltas), count=len(class_indices)),
        }

    def candidates(
        self,
        scores: Float[Tensor, "r s"],
        box_deltas: Float[Tensor, "r s 4"],
        regions: Float[Tensor, "r 4"],
        size_hw: tuple[int, int] | Int[Tensor, "r 2"],
        *,
        postprocess: Postprocess,
    ) -> Detections:
        """Return the candidates for NMS: every pair of region and category above the category's score threshold.

        Parameters
        ----------
        scores
            Class probabilities.
        box_deltas, regions
            Box deltas per class, and the regions they are relative to.
        size_hw
            Size of the image, or one row per region if the regions are those of a whole batch.
        postprocess
            Score thresholds, and the labels that are reported.
        """
        region, class_index = torch.where(scores > postprocess.thresholds(self.label_of_index))
        boxes = self.box_coder.decode(box_deltas[region, class_index], regions[region])
        if isinstance(size_hw, Tensor):
            boxes = clip_to_images(boxes, size_hw[region])
        else:
            boxes = clip_boxes_to_image(boxes, size_hw)
        candidates = Detections(boxes, scores[region, class_index], self.label_of_index[class_index], region)
        return candidates[remove_small_boxes(boxes, 1e-2)]


def two_layer_mlp_head(
    in_features: int,
    category_count: int,
    *,
    representation_size: int,
    matcher: IoUMatcher,
    sampler: BalancedSampler,
    regress_boxes: bool = True,
) -> BoxHead:
    """Build the box head of the first region-based detectors: two fully connected layers before class and box layers.

    Parameters
    ----------
    in_features
        Length of each region's flattened features.
    category_count
        Number of categories.
    representation_size
        Units of each of the two layers; 4096 in AlexNet and VGG.
    matcher, sampler, regress_boxes
        See :class:`BoxHead`.
    """
    return BoxHead(
        TwoLayerMLP(in_features, representation_size),
        in_features=representation_size,
        class_indices=tuple(range(1, category_count + 1)),
        matcher=matcher,
        sampler=sampler,
        regress_boxes=regress_boxes,
    )
