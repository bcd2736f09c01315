"""Detection as regression: one object per image, its class and box predicted from one feature vector.

Shape shorthand: B images, C categories, F features of the vector.

The lecture's first detector: a classification network whose last feature vector (4096 in AlexNet and VGG) feeds two
linear layers, for class scores and for the four box deltas; the losses are added (a multi-task loss). Similarly in
"OverFeat" (Sermanet et al., ICLR 2014, arXiv:1312.6229, section 4), the box regressor uses the classifier's features.

The number of predictions is fixed to one: it can express neither "no object" nor "two objects". Images without objects
add no loss; of several objects, the largest is the target. The detectors that follow (sliding window, R-CNN) classify
regions of the image instead.

The box is predicted as box deltas relative to the whole image, so images may have any size; the last feature map is
pooled to a grid of fixed size first, as in the classification network.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import box_area, clip_boxes_to_image, remove_small_boxes

from otus.detection.region_based.stages import RegionStages, to_instances
from otus.parts.backbones import Backbone, efficientnet_lite0_backbone, torchvision_backbone
from otus.parts.backbones.freezing import Freezing
from otus.parts.batching import Batch, Target
from otus.parts.boxes.coding import DeltaBoxCoder
from otus.parts.detections import Detections
from otus.parts.heads.box_head import TwoLayerMLP
from otus.parts.inference_mode import Stopwatch
from otus.parts.losses import box_delta_loss
from otus.parts.postprocess import Postprocess
from otus.parts.regions.proposals import Proposals
from otus.parts.regions.roi_features import RoIPooler
from otus.parts.system import BaseSystem
from otus.structures import Categories, Instances


class SingleObjectDetector(BaseSystem[RegionStages, Instances]):
    """Predict one class and one box for each image.

    Parameters
    ----------
    backbone
        Computes feature maps of the images, of which the last is used.
    categories
        Names of the labels, without background.
    representation_size
        F, output features of each of the two fully connected layers.
    pool_size
        Side, in cells, of the grid that the last feature map is pooled to.
    postprocess
        Score threshold of the detection.

    Notes
    -----
    ``losses`` are ``class`` (cross-entropy) and ``box`` (of the box deltas), of the largest object of each image;
    images without objects add none.
    """

    postprocess: Postprocess

    def __init__(
        self,
        backbone: Backbone,
        categories: Categories,
        *,
        representation_size: int = 4096,
        pool_size: int = 7,
        postprocess: Postprocess = Postprocess(),
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.categories = categories
        self.postprocess = postprocess
        self.roi_pooler = RoIPooler(pool_size, strides=backbone.strides[-1:])
        self.network = TwoLayerMLP(backbone.channels[-1] * pool_size**2, representation_size)
        self.cls_score = nn.Linear(representation_size, len(categories))
        self.bbox_pred = nn.Linear(representation_size, 4)
        self.box_coder = DeltaBoxCoder()

    def results(self, record: RegionStages) -> list[Instances]:
        """Return at most one object per image."""
        return to_instances(record, self.categories)

    def tensors(self, record: RegionStages) -> dict[str, Tensor]:
        """Return ``boxes``, ``scores`` and ``labels``, one per image, and their ``image_index``."""
        scores, labels = record.logits.softmax(dim=1).max(dim=1)
        count = len(labels)
        boxes = torch.cat([self._boxes(record, i) for i in range(count)])
        image_index = torch.arange(count, device=labels.device)
        return {"image_index": image_index, "boxes": boxes, "scores": scores, "labels": labels}

    def compute_stages(
        self,
        batch: Batch,
        targets: list[Target] | None,
        *,
        postprocess: Postprocess | None,
        generator: torch.Generator | None,
        watch: Stopwatch,
    ) -> RegionStages:
        """Compute one class and one box per image: the only proposal is the whole image, and there is no background."""
        image_boxes = [batch.images.new_tensor([[0, 0, width, height]]) for height, width in batch.sizes_hw]
        with watch.time("maps"):
            features = self.backbone(batch.images)[-1:]
        with watch.time("regions"):
            vectors = self.network(self.roi_pooler(features, image_boxes))
            logits, box_deltas = self.cls_score(vectors).float(), self.bbox_pred(vectors).float()
        record = RegionStages(
            batch=batch,
            features=features,
            milliseconds=watch.milliseconds,
            proposals=Proposals(image_boxes, [torch.ones_like(box[:, 0]) for box in image_boxes]),
            logits=logits,
            box_deltas=box_deltas[:, None],
        )
        if targets is not None:
            with watch.time("losses"):
                record.losses = self._losses(logits, box_deltas, image_boxes, targets)
        if postprocess is not None:
            with watch.time("postprocess"):
                self._postprocess(record, postprocess)
        return record

    def _losses(
        self,
        logits: Float[Tensor, "b c"],
        box_deltas: Float[Tensor, "b 4"],
        image_boxes: list[Float[Tensor, "1 4"]],
        targets: Sequence[Target],
    ) -> dict[str, Tensor]:
        images = [i for i, target in enumerate(targets) if len(target.boxes)]
        if not images:
            zero = (logits.sum() + box_deltas.sum()) * 0
            return {"class": zero, "box": zero}
        largest = [int(box_area(targets[i].boxes).argmax()) for i in images]
        labels = torch.stack([targets[i].labels[j] for i, j in zip(images, largest, strict=True)])
        boxes = torch.stack([targets[i].boxes[j] for i, j in zip(images, largest, strict=True)])
        target_deltas = self.box_coder.encode(boxes, torch.cat(image_boxes)[images])
        return {
            "class": F.cross_entropy(logits[images], labels),
            "box": box_delta_loss(box_deltas[images], target_deltas, count=len(images)),
        }

    def _postprocess(self, record: RegionStages, postprocess: Postprocess) -> None:
        record.scores = list(torch.split(record.logits.softmax(dim=1), 1))
        thresholds = postprocess.thresholds(torch.arange(len(self.categories), device=record.logits.device))
        for i, scores in enumerate(record.scores):
            score, label = scores.max(dim=1)
            detections = Detections(self._boxes(record, i), score, label, torch.zeros_like(label))
            candidates = detections[score > thresholds[label]]
            record.keep(candidates[remove_small_boxes(candidates.boxes, 1e-2)], postprocess)

    def _boxes(self, record: RegionStages, index: int) -> Float[Tensor, "1 4"]:
        boxes = self.box_coder.decode(record.box_deltas[index], record.proposals.boxes[index])
        return clip_boxes_to_image(boxes, record.batch.sizes_hw[index])


def regression_vgg16(
    categories: Categories, *, representation_size: int = 4096, freezing: Freezing = Freezing(level=1)
) -> SingleObjectDetector:
    """Build the detector over VGG-16 with the classifier's two fully connected layers of 4096.

    Parameters
    ----------
    representation_size
        Output features of each of the two fully connected layers.
    freezing
        Which weights of the backbone are frozen.
    """
    backbone = torchvision_backbone("vgg16", levels=(5,), freezing=freezing)
    return SingleObjectDetector(backbone, categories, representation_size=representation_size)


def regression_efficientnet_lite0(
    categories: Categories, *, representation_size: int = 512, freezing: Freezing = Freezing()
) -> SingleObjectDetector:
    """Build a small detector over EfficientNet-Lite0; see :func:`regression_vgg16` for the parameters."""
    backbone = efficientnet_lite0_backbone(levels=(5,), freezing=freezing)
    return SingleObjectDetector(backbone, categories, representation_size=representation_size)
