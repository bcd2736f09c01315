"""Detection as classification: a window slides over the image, and a network classifies each crop.

Papers: "Rapid Object Detection using a Boosted Cascade of Simple Features" (Viola and Jones, CVPR 2001) and "Histograms
of Oriented Gradients for Human Detection" (Dalal and Triggs, CVPR 2005) slid a boosted cascade and a linear SVM; a CNN
on each crop is the lecture's version. Background is an additional class. The windows are the predicted boxes, without
box regression, so a box is at best as accurate as the nearest window; the cost is a forward pass on thousands of crops
per image.

Departures: NMS as in the detectors that follow; the classifier is trained on crops of the windows and of the ground
truth boxes, positive from an IoU of 0.5 on, negative below 0.3, as for R-CNN.
"""

from functools import partial

from otus.detection.region_based.region_detector import RegionDetector
from otus.parts.backbones import efficientnet_lite0_backbone, torchvision_backbone
from otus.parts.backbones.freezing import Freezing
from otus.parts.boxes.matching import IoUMatcher
from otus.parts.boxes.sampling import BalancedSampler
from otus.parts.heads.box_head import two_layer_mlp_head
from otus.parts.postprocess import Postprocess
from otus.parts.regions.crops import WarpedCrops
from otus.proposals.proposers import SlidingWindowProposer
from otus.proposals.windows import sliding_windows
from otus.structures import Categories


def sliding_window(
    region_features: WarpedCrops,
    categories: Categories,
    *,
    proposer: SlidingWindowProposer | None = None,
    representation_size: int = 4096,
    sampler: BalancedSampler = BalancedSampler(batch_size_per_image=64, positive_fraction=0.25),
    postprocess: Postprocess = Postprocess(nms_iou=0.3),
) -> RegionDetector:
    """Build a sliding-window detector over any backbone.

    Parameters
    ----------
    region_features
        Warps the windows to crops and applies the backbone to them.
    proposer
        Generates the windows (default: ``SlidingWindowProposer()``).
    representation_size
        Output features of each of the two fully connected layers.
    sampler
        Samples the windows of each image that the losses are computed on.
    postprocess
        Score and NMS thresholds of the detections.
    """
    return RegionDetector(
        categories=categories,
        proposer=proposer or SlidingWindowProposer(),
        region_features=region_features,
        box_head=two_layer_mlp_head(
            region_features.out_features,
            len(categories),
            representation_size=representation_size,
            matcher=IoUMatcher(positive_iou=0.5, negative_iou=0.3),
            sampler=sampler,
            regress_boxes=False,
        ),
        postprocess=postprocess,
        size_divisor=1,
    )


def sliding_window_vgg16(
    categories: Categories,
    *,
    crop_size: int = 224,
    representation_size: int = 4096,
    stride: float = 0.25,
    freezing: Freezing = Freezing(level=1),
) -> RegionDetector:
    """Build a sliding-window detector over VGG-16, with crops of its own input size.

    Parameters
    ----------
    crop_size
        Side of a crop, in pixels.
    representation_size
        Output features of each of the two fully connected layers.
    stride
        Distance between neighbouring windows, as a fraction of their side.
    freezing
        Which weights of the backbone are frozen.
    """
    backbone = torchvision_backbone("vgg16", levels=(5,), freezing=freezing)
    proposer = SlidingWindowProposer(partial(sliding_windows, stride=stride))
    return sliding_window(
        WarpedCrops(backbone, crop_size=crop_size),
        categories,
        proposer=proposer,
        representation_size=representation_size,
    )


def sliding_window_efficientnet_lite0(
    categories: Categories,
    *,
    crop_size: int = 96,
    representation_size: int = 512,
    stride: float = 0.33,
    freezing: Freezing = Freezing(),
) -> RegionDetector:
    """Build a small sliding-window detector over EfficientNet-Lite0, for images of about 320 pixels.

    See :func:`sliding_window_vgg16` for the parameters. It samples 32 windows per image, as the small R-CNN does.
    """
    backbone = efficientnet_lite0_backbone(levels=(5,), freezing=freezing)
    return sliding_window(
        WarpedCrops(backbone, crop_size=crop_size, chunk_size=128),
        categories,
        proposer=SlidingWindowProposer(partial(sliding_windows, stride=stride)),
        representation_size=representation_size,
        sampler=BalancedSampler(batch_size_per_image=32, positive_fraction=0.25),
    )
