"""The box head that every region-based detector shares: class logits and box deltas of a region.

Shape shorthand: R regions of all images, N objects, S class logits (background included).

Papers: R-CNN (arXiv:1311.2524, section 2.3 and appendix C): class scores and box deltas per class, regions assigned
by IoU. Fast R-CNN (arXiv:1504.08083, section 2.3): both learned at once.
Reference: torchvision ``RoIHeads`` (BSD-3-Clause).

Class indices: outside, labels run from 0 and know no background. Inside, index 0 of the logits is background and each
category has an index of its own; by default label + 1. Weights trained on COCO by others have 91 logits, numbered by COCO's
ids, of which ten belong to no category. These stay in the softmax, whose outputs would change without them, and are never
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
"""torchvision's."""


@dataclass(frozen=True)
class Assignment:
    """The sampled regions of one image that a training step uses.

    ``matches`` are indices of objects, -1 for background; ``class_indices`` the target classes, 0 for background.
    """

    regions: Float[Tensor, "r 4"]
    matches: Int[Tensor, "r"]
    class_indices: Int[Tensor, "r"]

    def positives(self) -> tuple[Float[Tensor, "p 4"], Int[Tensor, "p"]]:
        """Return the positive regions, and the index of each one's object."""
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
    """Class scores and a box for each class from a region's features; assignment and loss.

    Parameters
    ----------
    network
        Features of R regions in, (R, ``in_features``) out.
    in_features
        Length of the vector that classes and boxes are read from.
    class_indices
        Index of each label among the class logits (see the top of this file).
    matcher, sampler
        Which proposals are positive and negative, and how many of each are sampled.
    box_coder
        How boxes are encoded.
    regress_boxes
        Whether box deltas are predicted. Without, the head only classifies: the region itself is the reported box.
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
        """Class logits and, for each class, the transform of each region (zeros where nothing moves); float32."""
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
        """Sample training regions from the proposals and, so that there are good ones, the ground-truth boxes."""
        assignments = []
        for of_image, target in zip(proposals, targets, strict=True):
            regions = torch.cat([of_image, target.boxes])
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
            nothing = zero_loss(self) + logits.sum()  # what made the features waits for a gradient too
            return {"class": nothing, "box": nothing} if self.bbox_pred is not None else {"class": nothing}
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
        """Return the candidates of one image before NMS: every pair of region and category above its score threshold.

        With a size of the image for each region they are the candidates of a whole batch.
        """
        region, class_index = torch.where(scores > postprocess.thresholds(self.label_of_index))
        boxes = self.box_coder.decode(box_deltas[region, class_index], regions[region])
        if isinstance(size_hw, Tensor):
            boxes = clip_to_images(boxes, size_hw[region])
        else:
            boxes = clip_boxes_to_image(boxes, size_hw)
        found = Detections(boxes, scores[region, class_index], self.label_of_index[class_index], region)
        return found[remove_small_boxes(boxes, 1e-2)]


def two_layer_mlp_head(
    in_features: int,
    category_count: int,
    *,
    representation_size: int,
    matcher: IoUMatcher,
    sampler: BalancedSampler,
    regress_boxes: bool = True,
) -> BoxHead:
    """The head of the first region-based detectors: two fully connected layers, then what a :class:`BoxHead` says.

    Parameters
    ----------
    in_features
        Numbers that come in for each region.
    representation_size
        Numbers in each of the two layers; 4096 in AlexNet and VGG.
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
