"""The base of all dense detectors: each location of the feature maps predicts objects, in one pass, without proposals.

Shape shorthand: B images, A anchors of all feature maps, S class logits, D numbers per box (4: xyxy, 5: xywhr).

RetinaNet, SSD, FCOS, oriented FCOS and the RPN classifier differ in its parts: feature extractor, head, anchors, assigner,
box coder, criterion and candidate scores. The forward pass is recorded in
:class:`~otus.detection.single_stage.stages.DenseStages`, from which losses, predictions, explanations and timings are read.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torchvision.ops import clip_boxes_to_image

from otus.detection.single_stage.interfaces import (
    AnchorGenerator,
    Assigner,
    BoxCoder,
    Criterion,
    DenseHead,
    FeatureExtractor,
    Scores,
)
from otus.detection.single_stage.stages import DenseStages
from otus.parts.batching import Batch, Target, clip_to_images
from otus.parts.boxes.oriented import oriented_boxes
from otus.parts.detections import Detections, postprocess_batch
from otus.parts.heads.class_indices import class_index_tables, class_indices_of
from otus.parts.heads.dense_head import DenseAssignment
from otus.parts.inference_mode import Stopwatch
from otus.parts.postprocess import Postprocess
from otus.parts.system import BaseSystem
from otus.structures import Categories, Instances


class DenseDetector(BaseSystem[DenseStages, Instances]):
    """A detector composed of a feature extractor, a dense head, anchors, an assigner, a box coder and a criterion.

    Parameters
    ----------
    categories
        Names of the labels.
    features, head, anchors
        Feature extractor, head, and anchor generator.
    assigner, box_coder, criterion
        Matches anchors to objects, encodes boxes, and computes the losses.
    scores
        Chooses which predictions become candidates for NMS.
    postprocess
        Score thresholds, NMS and limit of the detections.
    class_indices
        Index of each label among the class logits; see :func:`~otus.parts.heads.class_indices.class_indices_of`.
    oriented
        Whether boxes are xywhr (:mod:`otus.parts.boxes.oriented`).
    size_divisor
        Batches are padded to multiples of this.
    """

    postprocess: Postprocess
    label_of_index: Tensor
    index_of_label: Tensor

    def __init__(
        self,
        *,
        categories: Categories,
        features: FeatureExtractor,
        head: DenseHead,
        anchors: AnchorGenerator,
        assigner: Assigner,
        box_coder: BoxCoder,
        criterion: Criterion,
        scores: Scores,
        class_indices: Sequence[int],
        postprocess: Postprocess,
        oriented: bool = False,
        size_divisor: int = 32,
    ) -> None:
        super().__init__()
        self.categories = categories
        self.features, self.head, self.anchors = features, head, anchors
        self.assigner, self.box_coder, self.criterion = assigner, box_coder, criterion
        self.scores, self.postprocess = scores, postprocess
        self.oriented, self.size_divisor = oriented, size_divisor
        background = scores.background is not None
        class_indices = class_indices_of(categories, class_indices, background=background)
        label_of_index, index_of_label = class_index_tables(class_indices, background=background)
        self.register_buffer("label_of_index", label_of_index, persistent=False)
        self.register_buffer("index_of_label", index_of_label, persistent=False)

    @property
    def heavy_parts(self) -> tuple[str, ...]:
        """The feature extractor and the head."""
        return ("features", "head")

    @property
    def min_size(self) -> int:
        """Minimum height and width of a batch, in pixels: that of the feature extractor."""
        return self.features.min_size

    def assign(self, anchors: Float[Tensor, "a 4"], target: Target) -> DenseAssignment:
        """Return the target of each anchor for an image."""
        boxes = oriented_boxes(target) if self.oriented else target.boxes
        matches = self.assigner(anchors, boxes, crowds=target.crowds)
        positives = torch.where(matches >= 0)[0]
        objects = matches[positives]
        class_indices = matches.index_copy(0, positives, self.index_of_label[target.labels[objects]])
        return DenseAssignment(matches, class_indices, positives, boxes[objects])

    def forward(self, images: Float[Tensor, "b 3 h w"], sizes_hw: Int[Tensor, "b 2"]) -> dict[str, Tensor]:
        """Return the detections of a batch, in the form of :func:`~otus.parts.detections.as_tensors`."""
        if self.oriented:  # NMS of oriented boxes runs image by image
            return super().forward(images, sizes_hw)
        record = self.raw_stages(images, sizes_hw)
        thresholds = self.postprocess.thresholds(self.label_of_index)
        image_index, scores, class_indices, index = self.scores.choose_batch(record.outputs, thresholds)
        box_deltas, anchors = torch.cat(record.outputs.box_deltas, 1), torch.cat(record.anchors)
        boxes = clip_to_images(
            self.box_coder.decode(box_deltas[image_index, index], anchors[index]), sizes_hw[image_index]
        )
        candidates = Detections(boxes, scores, self.label_of_index[class_indices], index)
        return postprocess_batch(
            candidates,
            image_index,
            self.postprocess,
            num_images=images.shape[0],
            padded_hw=record.batch.padded_hw,
        )

    def compute_stages(
        self,
        batch: Batch,
        targets: list[Target] | None,
        *,
        postprocess: Postprocess | None,
        generator: torch.Generator | None,
        watch: Stopwatch,
    ) -> DenseStages:
        """Compute feature maps, and the head's outputs for each anchor."""
        with watch.time("maps"):
            features = self.features(batch.images)
        with watch.time("head"):
            outputs = self.head(features)
        grids = [(x.shape[-2], x.shape[-1]) for x in features]
        anchors = self.anchors(grids, batch.padded_hw, self.device)
        record = DenseStages(
            batch=batch, features=features, milliseconds=watch.milliseconds, anchors=anchors, outputs=outputs
        )
        if targets is not None:
            with watch.time("losses"):
                all_anchors = torch.cat(anchors)
                record.assignments = [self.assign(all_anchors, target) for target in targets]
                record.losses = self.criterion(
                    outputs.concatenate(), all_anchors, record.assignments, self.box_coder, generator=generator
                )
        if postprocess is not None:
            with watch.time("postprocess"):
                self._postprocess(record, postprocess)
        return record

    def _postprocess(self, record: DenseStages, postprocess: Postprocess) -> None:
        all_anchors, box_deltas = torch.cat(record.anchors), torch.cat(record.outputs.box_deltas, 1)
        thresholds = postprocess.thresholds(self.label_of_index)
        for i, size_hw in enumerate(record.batch.sizes_hw):
            scores, class_indices, index = self.scores.choose(record.outputs, i, thresholds)
            boxes = self.box_coder.decode(box_deltas[i, index], all_anchors[index])
            if not self.oriented:
                boxes = clip_boxes_to_image(boxes, size_hw)
            record.keep(Detections(boxes, scores, self.label_of_index[class_indices], index), postprocess)
