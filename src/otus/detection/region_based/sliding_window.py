"""Detection as classification: a window slides over the image, and a network says what each crop shows.

Papers: "Rapid Object Detection using a Boosted Cascade of Simple Features" (Viola and Jones, CVPR 2001) and "Histograms of
Oriented Gradients for Human Detection" (Dalal and Triggs, CVPR 2005) slid classifiers of their day; the network on each
crop is the lecture's. Background is one more class. The windows are the boxes: nothing moves them onto the object, so
boxes are as good as the nearest window, and the price is a pass of the network for thousands of crops an image.

Departures: suppression of windows that overlap as in the detectors that follow (NMS); the classes are learned from crops of
the windows themselves and of the objects' own boxes, positive from IoU 0.5 on, negative below 0.3, as R-CNN's.
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
    """A sliding-window detector of any backbone.

    Parameters
    ----------
    region_features
        How crops are made and what backbone sees them.
    proposer
        Which windows; the usual ones without it.
    representation_size
        Numbers in each of the two fully connected layers.
    sampler
        How many windows of an image are learned from.
    postprocess
        Thresholds of what is reported.
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
    """VGG-16 on every window, at the size of crops that it was made for.

    Parameters
    ----------
    crop_size
        Of a crop, pixels.
    representation_size
        Numbers in each fully connected layer.
    stride
        The step from a window to the next, as a share of its side.
    freezing
        Which weights of the backbone are not trained.
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
    """A small one for images of about 320 pixels; arguments as of :func:`sliding_window_vgg16`.

    It learns from 32 windows of an image, as R-CNN's does from its regions.
    """
    backbone = efficientnet_lite0_backbone(levels=(5,), freezing=freezing)
    return sliding_window(
        WarpedCrops(backbone, crop_size=crop_size, chunk_size=128),
        categories,
        proposer=SlidingWindowProposer(partial(sliding_windows, stride=stride)),
        representation_size=representation_size,
        sampler=BalancedSampler(batch_size_per_image=32, positive_fraction=0.25),
    )
