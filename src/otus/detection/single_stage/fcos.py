"""FCOS: no anchors; each location inside an object predicts how far the object's four edges are.

Paper: "FCOS: Fully Convolutional One-Stage Object Detection" (Tian, Shen, Chen, He, ICCV 2019, arXiv:1904.01355): distances
to the edges (equation 1), each level for its range of sizes (section 3.2), centre-ness (equation 3). Centre sampling, GIoU
and centre-ness beside the boxes: the journal version (arXiv:2006.09214, section 2).
Reference: torchvision ``models.detection.fcos`` (BSD-3-Clause), whose layers' names and defaults are kept.

Departures, torchvision's: locations lie at multiples of the stride, not at centres of cells; "in the centre" is a square of
1.5 strides around the middle, as in the authors' code; ReLU in the place of the exponential; the score is the root of class
times centre-ness; the loss of boxes is not weighted by centre-ness; a size on the border of two levels belongs to neither.
"""

from collections.abc import Sequence

from otus.detection.single_stage.dense_detector import DenseDetector
from otus.parts.backbones.freezing import Freezing
from otus.parts.backbones.with_fpn import BackboneWithFPN, efficientnet_lite0_fpn, resnet50_fpn
from otus.parts.boxes.anchors import GridAnchorGenerator
from otus.parts.boxes.coding import LTRBCoder
from otus.parts.boxes.locations import LocationMatcher, location_generator
from otus.parts.heads.class_indices import class_indices_of
from otus.parts.heads.dense_head import SMALL_NUM_CONVS
from otus.parts.heads.dense_scores import SigmoidScores
from otus.parts.heads.location_head import LocationLoss, location_head
from otus.parts.postprocess import Postprocess
from otus.structures import Categories

POSTPROCESS = Postprocess(score_threshold=0.2, nms_iou=0.6, max_detections=100)


def fcos(
    features: BackboneWithFPN,
    locations: GridAnchorGenerator,
    categories: Categories,
    *,
    class_indices: Sequence[int] | None = None,
    num_convs: int = 4,
    postprocess: Postprocess = POSTPROCESS,
) -> DenseDetector:
    """Build FCOS over any backbone with a feature pyramid.

    Parameters
    ----------
    features
        The backbone and its pyramid, whose channels are a multiple of 32.
    locations
        Generator of the locations of each level; see :func:`~otus.parts.boxes.locations.location_generator`.
    class_indices
        Index of each label among the class logits (default: 0, 1, 2 …).
    num_convs
        Convolutions per tower of the head.
    postprocess
        Which detections are reported.
    """
    class_indices = class_indices_of(categories, class_indices, background=False)
    return DenseDetector(
        categories=categories,
        features=features,
        head=location_head(features.pyramid.out_channels, class_indices, num_convs=num_convs),
        anchors=locations,
        assigner=LocationMatcher(),
        box_coder=LTRBCoder(),
        criterion=LocationLoss(),
        scores=SigmoidScores(),
        class_indices=class_indices,
        postprocess=postprocess,
    )


def fcos_resnet50_fpn(
    categories: Categories, *, class_indices: Sequence[int] | None = None, freezing: Freezing = Freezing()
) -> DenseDetector:
    """Build the paper's FCOS over ResNet-50; parameters as of :func:`fcos`, ``freezing`` of the backbone."""
    return fcos(
        resnet50_fpn(freezing), location_generator((8, 16, 32, 64, 128)), categories, class_indices=class_indices
    )


def fcos_efficientnet_lite0_fpn(
    categories: Categories, *, class_indices: Sequence[int] | None = None, freezing: Freezing = Freezing()
) -> DenseDetector:
    """Build a small FCOS for images of about 320 pixels: four levels of 96 channels, one convolution per tower."""
    return fcos(
        efficientnet_lite0_fpn(freezing),
        location_generator((8, 16, 32, 64)),
        categories,
        class_indices=class_indices,
        num_convs=SMALL_NUM_CONVS,
        postprocess=Postprocess(score_threshold=0.05, nms_iou=0.55),
    )
