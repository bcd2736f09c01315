"""Fast R-CNN: one feature map per image, RoI pooling of each proposal, and a head trained jointly with the backbone.

Paper: "Fast R-CNN" (Girshick, ICCV 2015, arXiv:1504.08083): section 2.1 RoI pooling to 7x7, section 2.2 VGG-16 with RoI
pooling in place of its last max pooling, section 2.3 the multi-task loss and backpropagation through RoI pooling.
Official code: github.com/rbgirshick/fast-rcnn (MIT); nothing of it is copied.

Departures: negatives are all regions with an IoU below 0.5, not only those with an IoU in [0.1, 0.5); the ground-truth
boxes are added to the proposals; smooth L1 with beta 1/9 instead of 1; the fully connected layers are initialised at
random, without dropout, and not compressed by truncated SVD (section 3.1).
"""

from otus.detection.region_based.region_detector import RegionDetector
from otus.parts.backbones import efficientnet_lite0_backbone, torchvision_backbone
from otus.parts.backbones.freezing import Freezing
from otus.parts.boxes.matching import IoUMatcher
from otus.parts.boxes.sampling import BalancedSampler
from otus.parts.heads.box_head import two_layer_mlp_head
from otus.parts.postprocess import Postprocess
from otus.parts.regions.roi_features import RoIFeatures, RoIPooler
from otus.proposals.proposers import PrecomputedProposals
from otus.structures import Categories


def fast_rcnn(
    region_features: RoIFeatures,
    categories: Categories,
    *,
    proposer: PrecomputedProposals | None = None,
    representation_size: int = 4096,
    sampler: BalancedSampler = BalancedSampler(batch_size_per_image=64, positive_fraction=0.25),
    postprocess: Postprocess = Postprocess(nms_iou=0.3),
) -> RegionDetector:
    """Build Fast R-CNN over any backbone.

    Parameters
    ----------
    region_features
        Computes the shared feature map and pools each region from it.
    categories
        Names of the labels.
    proposer
        Source of the proposals (default: those of the sample, else Selective Search).
    representation_size
        Output features of each of the two fully connected layers.
    sampler
        Samples the regions of each image that the losses are computed on (default: the paper's).
    postprocess
        Score and NMS thresholds of the detections (default: the paper's NMS IoU threshold, 0.3).

    Examples
    --------
    >>> import torch
    >>> backbone = torchvision_backbone("resnet18", levels=(4,))
    >>> region_features = RoIFeatures(backbone, RoIPooler(7, strides=backbone.strides, method="pool"))
    >>> detector = fast_rcnn(region_features, Categories(("cat", "dog")), representation_size=64)
    >>> sample = {"image": torch.zeros(3, 64, 96), "proposals": torch.tensor([[8.0, 8, 40, 40]])}
    >>> detector.stages([sample]).scores[0].shape
    torch.Size([1, 3])
    """
    return RegionDetector(
        categories=categories,
        proposer=proposer or PrecomputedProposals(),
        region_features=region_features,
        box_head=two_layer_mlp_head(
            region_features.out_features,
            len(categories),
            representation_size=representation_size,
            matcher=IoUMatcher(positive_iou=0.5, negative_iou=0.5),
            sampler=sampler,
        ),
        postprocess=postprocess,
    )


def fast_rcnn_vgg16(
    categories: Categories,
    *,
    proposals: int = 2000,
    representation_size: int = 4096,
    freezing: Freezing = Freezing(level=1),
) -> RegionDetector:
    """Build the paper's model: VGG-16, a feature map of stride 16, RoI pooling to 7x7.

    Parameters
    ----------
    categories
        Names of the labels.
    proposals
        Maximum number of proposals per image.
    representation_size
        Output features of each of the two fully connected layers.
    freezing
        Which weights of the backbone are frozen (default: conv1 and conv2, as in the paper, section 4.5).
    """
    backbone = torchvision_backbone("vgg16", levels=(4,), freezing=freezing)
    region_features = RoIFeatures(backbone, RoIPooler(7, strides=backbone.strides, method="pool"))
    return fast_rcnn(
        region_features, categories, proposer=PrecomputedProposals(proposals), representation_size=representation_size
    )


def fast_rcnn_efficientnet_lite0(
    categories: Categories,
    *,
    proposals: int = 500,
    representation_size: int = 512,
    freezing: Freezing = Freezing(),
) -> RegionDetector:
    """Build a small Fast R-CNN over EfficientNet-Lite0, for images of about 320 pixels.

    The backbone's last stages are dilated to keep stride 16. See :func:`fast_rcnn_vgg16` for the parameters; by default,
    layers of stride up to 4 are frozen.
    """
    backbone = efficientnet_lite0_backbone(levels=(4,), dilated=True, freezing=freezing)
    region_features = RoIFeatures(backbone, RoIPooler(7, strides=backbone.strides, method="pool"))
    return fast_rcnn(
        region_features, categories, proposer=PrecomputedProposals(proposals), representation_size=representation_size
    )
