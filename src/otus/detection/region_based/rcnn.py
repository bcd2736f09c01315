"""R-CNN: regions with CNN features. Propose first, then run the network only where something may be.

Paper: "Rich feature hierarchies for accurate object detection and semantic segmentation" (Girshick, Donahue, Darrell, Malik,
CVPR 2014, arXiv:1311.2524): section 2.1 proposals from Selective Search, each warped to one size with context around it
(appendix A), section 2.3 which of them are positive (IoU > 0.5), negative (< 0.3) and neutral, appendix C the transform of
each class. Official code: github.com/rbgirshick/rcnn (BSD-2-Clause); nothing of it is copied.

Departures: one softmax and one box regression learned together by gradient descent, in the place of fine-tuning, one SVM
for each class and ridge regression one after the other (Fast R-CNN, section 5.4, found the softmax as good); therefore one
training rule, the SVMs', instead of two; the objects' own boxes are among the positives. VGG-16 and no AlexNet by default,
without dropout between the fully connected layers.
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
    """R-CNN of any backbone.

    Parameters
    ----------
    region_features
        How regions are warped and what backbone sees them.
    proposer
        Where to look; the sample's own proposals, else Selective Search.
    representation_size
        Numbers in each of the two fully connected layers.
    positive_iou, negative_iou
        A proposal is positive from the first overlap with an object on, negative below the second with all, else neutral.
    sampler
        How many regions of an image are learned from.
    postprocess
        Thresholds of what is reported; the paper's NMS.
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
    """R-CNN with VGG-16.

    Parameters
    ----------
    proposals
        At most so many of an image.
    crop_size, context
        Pixels of a crop, and what of them, on each side, is around the region.
    representation_size
        Numbers in each fully connected layer.
    freezing
        Which weights of the backbone are not trained.
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
    """A small one for images of about 320 pixels; arguments as of :func:`rcnn_vgg16`.

    It learns from 32 regions of an image, not 64, so that in the same time it sees more images.
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
