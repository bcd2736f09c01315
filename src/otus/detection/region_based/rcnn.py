"""R-CNN: regions with CNN features. Crop each proposal, warp it to a fixed size, and classify it with a CNN.

Paper: "Rich feature hierarchies for accurate object detection and semantic segmentation" (Girshick, Donahue, Darrell,
Malik, CVPR 2014, arXiv:1311.2524): section 2.1 proposals from Selective Search, each warped to one size with context
around it (appendix A), section 2.3 which of them are positive (IoU > 0.5), negative (< 0.3) and neutral, appendix C the
box deltas of each class. Official code: github.com/rbgirshick/rcnn (BSD-2-Clause); nothing of it is copied.

Departures: a softmax and a box regression are trained jointly by gradient descent, instead of fine-tuning, an SVM per
class and ridge regression in sequence (Fast R-CNN, section 5.4: the softmax is as good); therefore one rule for
positives and negatives, that of the SVMs, instead of two; the ground truth boxes are among the positives. VGG-16
instead of AlexNet by default, whose fully connected layers are initialised at random, without dropout.
"""

from otus.detection.region_based.region_detector import RegionDetector
from otus.parts.backbones import efficientnet_lite0_backbone, torchvision_backbone
from otus.parts.backbones.freezing import Freezing
from otus.parts.boxes.matching import IoUMatcher
from otus.parts.boxes.sampling import BalancedSampler
from otus.parts.heads.box_head import two_layer_mlp_head
from otus.parts.postprocess import Postprocess
from otus.parts.regions.crops import WarpedCrops
from otus.proposals.proposers import PrecomputedProposals
from otus.structures import Categories


def rcnn(
    region_features: WarpedCrops,
    categories: Categories,
    *,
    proposer: PrecomputedProposals | None = None,
    representation_size: int = 4096,
    positive_iou: float = 0.5,
    negative_iou: float = 0.3,
    sampler: BalancedSampler = BalancedSampler(batch_size_per_image=64, positive_fraction=0.25),
    postprocess: Postprocess = Postprocess(nms_iou=0.3),
) -> RegionDetector:
    """Build R-CNN over any backbone.

    Parameters
    ----------
    region_features
        Warps the regions to crops and applies the backbone to them.
    proposer
        Source of the proposals (default: those of the sample, else Selective Search).
    representation_size
        Output features of each of the two fully connected layers.
    positive_iou, negative_iou
        A proposal is positive if its IoU with an object is at least ``positive_iou``, negative if its IoU with every
        object is below ``negative_iou``, and ignored otherwise.
    sampler
        Samples the regions of each image that the losses are computed on.
    postprocess
        Score and NMS thresholds of the detections (default: the paper's NMS).
    """
    return RegionDetector(
        categories=categories,
        proposer=proposer or PrecomputedProposals(),
        region_features=region_features,
        box_head=two_layer_mlp_head(
            region_features.out_features,
            len(categories),
            representation_size=representation_size,
            matcher=IoUMatcher(positive_iou=positive_iou, negative_iou=negative_iou),
            sampler=sampler,
        ),
        postprocess=postprocess,
        size_divisor=1,
    )


def rcnn_vgg16(
    categories: Categories,
    *,
    proposals: int = 2000,
    crop_size: int = 224,
    context: int = 16,
    representation_size: int = 4096,
    freezing: Freezing = Freezing(level=1),
) -> RegionDetector:
    """Build R-CNN over VGG-16.

    Parameters
    ----------
    proposals
        Maximum number of proposals per image.
    crop_size, context
        Side of a crop, and the context around the region on each side of it, both in pixels of the crop.
    representation_size
        Output features of each of the two fully connected layers.
    freezing
        Which weights of the backbone are frozen.
    """
    backbone = torchvision_backbone("vgg16", levels=(5,), freezing=freezing)
    crops = WarpedCrops(backbone, crop_size=crop_size, context=context)
    return rcnn(crops, categories, proposer=PrecomputedProposals(proposals), representation_size=representation_size)


def rcnn_efficientnet_lite0(
    categories: Categories,
    *,
    proposals: int = 500,
    crop_size: int = 96,
    context: int = 7,
    representation_size: int = 512,
    freezing: Freezing = Freezing(),
) -> RegionDetector:
    """Build a small R-CNN over EfficientNet-Lite0, for images of about 320 pixels.

    See :func:`rcnn_vgg16` for the parameters. It samples 32 regions per image instead of 64, for more images in the
    same training time.
    """
    backbone = efficientnet_lite0_backbone(levels=(5,), freezing=freezing)
    crops = WarpedCrops(backbone, crop_size=crop_size, context=context, chunk_size=128)
    sampler = BalancedSampler(batch_size_per_image=32, positive_fraction=0.25)
    return rcnn(
        crops,
        categories,
        proposer=PrecomputedProposals(proposals),
        representation_size=representation_size,
        sampler=sampler,
    )
