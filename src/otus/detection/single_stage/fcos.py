"""FCOS: no anchors; each location inside an object predicts the distances to the object's four edges.

Paper: "FCOS: Fully Convolutional One-Stage Object Detection" (Tian, Shen, Chen, He, ICCV 2019, arXiv:1904.01355): distances
to the edges (equation 1), a range of object sizes for each level (section 3.2), centre-ness (equation 3). Centre sampling,
GIoU, and centre-ness in the regression branch: the journal version (arXiv:2006.09214, section 2).
Reference: torchvision ``models.detection.fcos`` (BSD-3-Clause), whose layer names and defaults are kept.

Departures, as in torchvision: locations are at multiples of the stride, not at the centres of its cells; centre sampling
accepts locations within 1.5 strides of the centre in x and y, as in the authors' code; ReLU instead of the exponential; the
score is the square root of class probability times centre-ness; the box loss is not weighted by centre-ness; a size exactly
between two levels belongs to neither.
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
    categories
        Names of the labels.
    class_indices
        Index of each label among the class logits (default: 0, 1, 2 …).
    num_convs
        Convolutions per tower of the head.
    postprocess
        Score thresholds, NMS and limit of the detections.
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
    """Build the paper's FCOS over ResNet-50; see :func:`fcos` for the parameters, ``freezing`` is that of the backbone."""
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
