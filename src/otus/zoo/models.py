"""The models of the zoo by name: builder, task, paper, preprocessing, and published weights with their metrics."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args, get_origin, get_type_hints

from otus.classification import classifier
from otus.detection import regression
from otus.detection.region_based import fast_rcnn, faster_rcnn, rcnn, sliding_window, spp_net
from otus.detection.set_prediction import detr, query_selection_detr
from otus.detection.single_stage import fcos, oriented_fcos, retinanet, rpn_classifier, ssd, ssdlite, yolo
from otus.errors import UsageError, did_you_mean
from otus.instance import keypoint_rcnn, mask_rcnn, panoptic_detr, panoptic_fpn
from otus.parts.backbones.freezing import Freezing
from otus.parts.preprocess import Preprocess
from otus.parts.system import BaseSystem
from otus.parts.tasks import (
    CLASSIFICATION,
    DETECTION,
    INSTANCE,
    KEYPOINTS,
    OBJECT,
    PANOPTIC,
    PROMPTABLE,
    SEMANTIC,
    Task,
)
from otus.promptable import sam
from otus.semantic import deconvnet, deeplabv3, fcn, full_resolution, lraspp, segnet, semantic_fpn, unet
from otus.semantic import sliding_window as patch_window
from otus.structures import Categories
from otus.zoo.coco import COCO, COCO_PANOPTIC, COCO_PERSON
from otus.zoo.voc import VOC_WITH_BACKGROUND


@dataclass(frozen=True)
class Weights:
    """A published file of weights.

    Parameters
    ----------
    url, sha256
        URL of the file, and its SHA-256 in hexadecimal digits or at least the first eight of them.
    categories
        The category of each class index.
    figures
        Metrics published by the authors, by data set and metric.
    licence
        Licence of the weights; the training data may have others.
    megabytes
        Size of the file.
    """

    url: str
    sha256: str
    categories: Categories
    figures: Mapping[str, float]
    licence: str = "BSD-3-Clause"
    megabytes: int | None = None


LEARNING_RATE = 4e-4
"""Default learning rate, for AdamW; it suits nearly all models (docs/lineage.md)."""


TIMED_ON = "two cores of an AMD EPYC in bfloat16"
"""Hardware and precision of :attr:`ModelEntry.milliseconds`."""


@dataclass(frozen=True)
class ModelEntry:
    """A model of the zoo.

    Parameters
    ----------
    builder
        ``builder(categories, **arguments)`` returns the model with random weights.
    task
        Task of the model.
    paper
        URL of the paper.
    preprocess
        Resizing and normalisation of images.
    weights
        Published weights by name, the best first.
    learning_rate
        Default learning rate of training with AdamW.
    milliseconds
        Median time per image with the packaged weights on :data:`TIMED_ON` (docs/decisions/0007); None if not measured.
    boxes_only
        Name of the same detector without its mask or keypoint head; None if it has no such head.
    """

    builder: Callable[..., BaseSystem[Any, Any]]
    task: Task
    paper: str
    preprocess: Preprocess
    weights: Mapping[str, Weights] = field(default_factory=dict)
    learning_rate: float = LEARNING_RATE
    milliseconds: int | None = None
    boxes_only: str | None = None


_VGG = "https://arxiv.org/abs/1409.1556"
_LITE = "https://arxiv.org/abs/1905.11946"
_FCN = "https://arxiv.org/abs/1411.4038"
_PANOPTIC_FPN = "https://arxiv.org/abs/1901.02446"
_PATCHES = "https://doi.org/10.1109/TPAMI.2012.231"
_DECONVNET = "https://arxiv.org/abs/1505.04366"
_UNET = "https://arxiv.org/abs/1505.04597"
_SEGNET = "https://arxiv.org/abs/1511.00561"
_DEEPLAB = "https://arxiv.org/abs/1706.05587"
_LRASPP = "https://arxiv.org/abs/1905.02244"
_OVERFEAT = "https://arxiv.org/abs/1312.6229"
_WINDOWS = "https://doi.org/10.1109/CVPR.2005.177"
_RCNN = "https://arxiv.org/abs/1311.2524"
_SPP = "https://arxiv.org/abs/1406.4729"
_FAST = "https://arxiv.org/abs/1504.08083"
_FASTER = "https://arxiv.org/abs/1506.01497"
_MASK = "https://arxiv.org/abs/1703.06870"
_YOLO = "https://arxiv.org/abs/1506.02640"
_RT_DETR = "https://arxiv.org/abs/2304.08069"
_DETR = "https://arxiv.org/abs/2005.12872"
_V2 = "https://arxiv.org/abs/2111.11429"
_USUAL = Preprocess(shorter_side=800, longer_side=1333)
_OF_2015 = Preprocess(shorter_side=600, longer_side=1000)
_SMALL = Preprocess(shorter_side=320, longer_side=320)
_SQUARE = Preprocess(fixed_hw=(224, 224), antialias=True)
_SMOOTHED = Preprocess(shorter_side=800, longer_side=1333, antialias=True)  # DETR's images are resized by Pillow
_RETINANET = "https://arxiv.org/abs/1708.02002"
_SSD = "https://arxiv.org/abs/1512.02325"
_SSDLITE = "https://arxiv.org/abs/1801.04381"
_SAM = "https://arxiv.org/abs/2304.02643"
_MOBILE_SAM = "https://arxiv.org/abs/2306.14289"
_FCOS = "https://arxiv.org/abs/1904.01355"
_PROMPTED = Preprocess(shorter_side=1024, longer_side=1024, antialias=True)
_SEGMENTED = Preprocess(shorter_side=520, longer_side=2080, antialias=True)
_SSD300 = Preprocess(fixed_hw=(300, 300), mean=(0.48235, 0.45882, 0.40784), std=(1 / 255, 1 / 255, 1 / 255))
_SSDLITE320 = Preprocess(fixed_hw=(320, 320), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


def _torchvision(file: str, megabytes: int, figures: Mapping[str, float], categories: Categories = COCO) -> Weights:
    """Return weights of a torchvision detector, whose file names end in the first digits of their hash."""
    return Weights(
        url=f"https://download.pytorch.org/models/{file}.pth",
        sha256=file.rsplit("-", 1)[1],
        categories=categories,
        figures={f"COCO val2017 {name}": value for name, value in figures.items()},
        megabytes=megabytes,
    )


def _segmenter(file: str, megabytes: int, miou: float) -> dict[str, Weights]:
    """Return weights of a torchvision segmenter, trained on COCO images with labels of VOC's categories."""
    url = f"https://download.pytorch.org/models/{file}.pth"
    figures = {"COCO val2017, VOC labels, mIoU": miou}
    return {"coco_voc": Weights(url, file.rsplit("-", 1)[1], VOC_WITH_BACKGROUND, figures, megabytes=megabytes)}


def _detr(file: str, megabytes: int, figure: float, *, panoptic: bool = False) -> dict[str, Weights]:
    """Return official weights of DETR, whose file names end in the first digits of their hash; ``figure`` is AP or PQ."""
    name, categories, metric = ("coco_panoptic", COCO_PANOPTIC, "PQ") if panoptic else ("coco", COCO, "bbox AP")
    url, figures = f"https://dl.fbaipublicfiles.com/detr/{file}.pth", {f"COCO val2017 {metric}": figure}
    sha256 = file.rsplit("-", 1)[1]
    return {name: Weights(url, sha256, categories, figures, licence="Apache-2.0", megabytes=megabytes)}


def _sam(url: str, sha256: str, megabytes: int) -> dict[str, Weights]:
    """Return official weights of SAM or MobileSAM; no comparable metrics were published for them."""
    return {"sa1b": Weights(url, sha256, OBJECT, {}, licence="Apache-2.0", megabytes=megabytes)}


MODELS: dict[str, ModelEntry] = {
    "classifier_vgg16": ModelEntry(classifier.classifier_vgg16, CLASSIFICATION, _VGG, _SMALL),
    "classifier_efficientnet_lite0": ModelEntry(
        classifier.classifier_efficientnet_lite0, CLASSIFICATION, _LITE, _SMALL
    ),
    "fcn_efficientnet_lite0": ModelEntry(fcn.fcn_efficientnet_lite0, SEMANTIC, _FCN, _SMALL, learning_rate=1e-3),
    "unet_efficientnet_lite0": ModelEntry(unet.unet_efficientnet_lite0, SEMANTIC, _UNET, _SMALL, learning_rate=1e-3),
    "semantic_fpn_efficientnet_lite0": ModelEntry(
        semantic_fpn.semantic_fpn_efficientnet_lite0, SEMANTIC, _PANOPTIC_FPN, _SMALL, learning_rate=1e-3
    ),
    "segnet_small": ModelEntry(segnet.segnet_small, SEMANTIC, _SEGNET, _SMALL, learning_rate=1e-3),
    "sliding_window_segmenter": ModelEntry(
        patch_window.sliding_window_segmenter, SEMANTIC, _PATCHES, _SMALL, learning_rate=1e-3
    ),
    "full_resolution": ModelEntry(full_resolution.full_resolution, SEMANTIC, _FCN, _SMALL, learning_rate=1e-3),
    "segnet": ModelEntry(segnet.segnet, SEMANTIC, _SEGNET, _SEGMENTED),
    "unet": ModelEntry(unet.unet, SEMANTIC, _UNET, _SEGMENTED),
    "deconvolution_network": ModelEntry(deconvnet.deconvolution_network, SEMANTIC, _DECONVNET, _SQUARE),
    "fcn_resnet50": ModelEntry(
        fcn.fcn_resnet50, SEMANTIC, _FCN, _SEGMENTED, _segmenter("fcn_resnet50_coco-1167a1af", 135, 0.605)
    ),
    "fcn_resnet101": ModelEntry(
        fcn.fcn_resnet101, SEMANTIC, _FCN, _SEGMENTED, _segmenter("fcn_resnet101_coco-7ecb50ca", 208, 0.637)
    ),
    "deeplabv3_resnet50": ModelEntry(
        deeplabv3.deeplabv3_resnet50,
        SEMANTIC,
        _DEEPLAB,
        _SEGMENTED,
        _segmenter("deeplabv3_resnet50_coco-cd0a2569", 161, 0.664),
    ),
    "deeplabv3_resnet101": ModelEntry(
        deeplabv3.deeplabv3_resnet101,
        SEMANTIC,
        _DEEPLAB,
        _SEGMENTED,
        _segmenter("deeplabv3_resnet101_coco-586e9e4e", 233, 0.674),
    ),
    "deeplabv3_mobilenet_v3_large": ModelEntry(
        deeplabv3.deeplabv3_mobilenet_v3_large,
        SEMANTIC,
        _DEEPLAB,
        _SEGMENTED,
        _segmenter("deeplabv3_mobilenet_v3_large-fc3c493d", 42, 0.603),
    ),
    "lraspp_mobilenet_v3_large": ModelEntry(
        lraspp.lraspp_mobilenet_v3_large,
        SEMANTIC,
        _LRASPP,
        _SEGMENTED,
        _segmenter("lraspp_mobilenet_v3_large-d234d4ea", 12, 0.579),
    ),
    "regression_vgg16": ModelEntry(regression.regression_vgg16, DETECTION, _OVERFEAT, _SQUARE),
    "regression_efficientnet_lite0": ModelEntry(
        regression.regression_efficientnet_lite0, DETECTION, _OVERFEAT, _SQUARE
    ),
    "sliding_window_vgg16": ModelEntry(sliding_window.sliding_window_vgg16, DETECTION, _WINDOWS, _OF_2015),
    "sliding_window_efficientnet_lite0": ModelEntry(
        sliding_window.sliding_window_efficientnet_lite0, DETECTION, _WINDOWS, _SMALL
    ),
    "rcnn_vgg16": ModelEntry(rcnn.rcnn_vgg16, DETECTION, _RCNN, _OF_2015),
    "rcnn_efficientnet_lite0": ModelEntry(rcnn.rcnn_efficientnet_lite0, DETECTION, _RCNN, _SMALL),
    "spp_net_vgg16": ModelEntry(spp_net.spp_net_vgg16, DETECTION, _SPP, _OF_2015),
    "spp_net_efficientnet_lite0": ModelEntry(spp_net.spp_net_efficientnet_lite0, DETECTION, _SPP, _SMALL),
    "fast_rcnn_vgg16": ModelEntry(fast_rcnn.fast_rcnn_vgg16, DETECTION, _FAST, _OF_2015),
    "fast_rcnn_efficientnet_lite0": ModelEntry(fast_rcnn.fast_rcnn_efficientnet_lite0, DETECTION, _FAST, _SMALL),
    "faster_rcnn_vgg16": ModelEntry(faster_rcnn.faster_rcnn_vgg16, DETECTION, _FASTER, _OF_2015),
    "faster_rcnn_efficientnet_lite0": ModelEntry(
        faster_rcnn.faster_rcnn_efficientnet_lite0, DETECTION, _FASTER, _SMALL
    ),
    "faster_rcnn_efficientnet_lite0_fpn": ModelEntry(
        faster_rcnn.faster_rcnn_efficientnet_lite0_fpn, DETECTION, _FASTER, _SMALL
    ),
    "faster_rcnn_resnet50_fpn": ModelEntry(
        faster_rcnn.faster_rcnn_resnet50_fpn,
        DETECTION,
        _FASTER,
        _USUAL,
        {"coco_v1": _torchvision("fasterrcnn_resnet50_fpn_coco-258fb6c6", 160, {"bbox AP": 0.370})},
    ),
    "faster_rcnn_resnet50_fpn_v2": ModelEntry(
        faster_rcnn.faster_rcnn_resnet50_fpn_v2,
        DETECTION,
        _V2,
        _USUAL,
        {"coco_v1": _torchvision("fasterrcnn_resnet50_fpn_v2_coco-dd69338a", 167, {"bbox AP": 0.467})},
    ),
    "faster_rcnn_mobilenet_v3_large_fpn": ModelEntry(
        faster_rcnn.faster_rcnn_mobilenet_v3_large_fpn,
        DETECTION,
        _FASTER,
        _USUAL,
        {"coco_v1": _torchvision("fasterrcnn_mobilenet_v3_large_fpn-fb6a3cc7", 74, {"bbox AP": 0.328})},
    ),
    "faster_rcnn_mobilenet_v3_large_320_fpn": ModelEntry(
        faster_rcnn.faster_rcnn_mobilenet_v3_large_320_fpn,
        DETECTION,
        _FASTER,
        Preprocess(shorter_side=320, longer_side=640),
        {"coco_v1": _torchvision("fasterrcnn_mobilenet_v3_large_320_fpn-907ea3f9", 74, {"bbox AP": 0.228})},
    ),
    "mask_rcnn_efficientnet_lite0_fpn": ModelEntry(
        mask_rcnn.mask_rcnn_efficientnet_lite0_fpn,
        INSTANCE,
        _MASK,
        _SMALL,
        boxes_only="faster_rcnn_efficientnet_lite0_fpn",
        milliseconds=60,
    ),
    "mask_rcnn_resnet50_fpn": ModelEntry(
        mask_rcnn.mask_rcnn_resnet50_fpn,
        INSTANCE,
        _MASK,
        _USUAL,
        {"coco_v1": _torchvision("maskrcnn_resnet50_fpn_coco-bf2d0c1e", 170, {"bbox AP": 0.379, "segm AP": 0.346})},
        boxes_only="faster_rcnn_resnet50_fpn",
    ),
    "mask_rcnn_resnet50_fpn_v2": ModelEntry(
        mask_rcnn.mask_rcnn_resnet50_fpn_v2,
        INSTANCE,
        _V2,
        _USUAL,
        {"coco_v1": _torchvision("maskrcnn_resnet50_fpn_v2_coco-73cbd019", 177, {"bbox AP": 0.474, "segm AP": 0.418})},
        boxes_only="faster_rcnn_resnet50_fpn_v2",
    ),
    "keypoint_rcnn_resnet50_fpn": ModelEntry(
        keypoint_rcnn.keypoint_rcnn_resnet50_fpn,
        KEYPOINTS,
        _MASK,
        _USUAL,
        {
            "coco_v1": _torchvision(
                "keypointrcnn_resnet50_fpn_coco-fc266e95", 226, {"bbox AP": 0.546, "keypoints AP": 0.650}, COCO_PERSON
            ),
            "coco_legacy": _torchvision(
                "keypointrcnn_resnet50_fpn_coco-9f466800", 226, {"bbox AP": 0.506, "keypoints AP": 0.611}, COCO_PERSON
            ),
        },
        boxes_only="faster_rcnn_resnet50_fpn",
    ),
    "rpn_classifier_efficientnet_lite0_fpn": ModelEntry(
        rpn_classifier.rpn_classifier_efficientnet_lite0_fpn, DETECTION, _FASTER, _SMALL
    ),
    "retinanet_resnet50_fpn": ModelEntry(
        retinanet.retinanet_resnet50_fpn,
        DETECTION,
        _RETINANET,
        _USUAL,
        {"coco_v1": _torchvision("retinanet_resnet50_fpn_coco-eeacb38b", 130, {"bbox AP": 0.364})},
    ),
    "retinanet_resnet50_fpn_v2": ModelEntry(
        retinanet.retinanet_resnet50_fpn_v2,
        DETECTION,
        _RETINANET,
        _USUAL,
        {"coco_v1": _torchvision("retinanet_resnet50_fpn_v2_coco-5905b1c5", 146, {"bbox AP": 0.415})},
    ),
    "retinanet_efficientnet_lite0_fpn": ModelEntry(
        retinanet.retinanet_efficientnet_lite0_fpn, DETECTION, _RETINANET, _SMALL
    ),
    "ssd300_vgg16": ModelEntry(
        ssd.ssd300_vgg16,
        DETECTION,
        _SSD,
        _SSD300,
        {"coco_v1": _torchvision("ssd300_vgg16_coco-b556d3b4", 136, {"bbox AP": 0.251})},
    ),
    "ssdlite320_mobilenet_v3_large": ModelEntry(
        ssdlite.ssdlite320_mobilenet_v3_large,
        DETECTION,
        _SSDLITE,
        _SSDLITE320,
        {"coco_v1": _torchvision("ssdlite320_mobilenet_v3_large_coco-a79551df", 13, {"bbox AP": 0.213})},
    ),
    "ssdlite_efficientnet_lite0": ModelEntry(
        ssdlite.ssdlite_efficientnet_lite0, DETECTION, _SSDLITE, Preprocess(fixed_hw=(320, 320))
    ),
    "fcos_resnet50_fpn": ModelEntry(
        fcos.fcos_resnet50_fpn,
        DETECTION,
        _FCOS,
        _USUAL,
        {"coco_v1": _torchvision("fcos_resnet50_fpn_coco-99b0c9b7", 124, {"bbox AP": 0.392})},
    ),
    "fcos_efficientnet_lite0_fpn": ModelEntry(
        fcos.fcos_efficientnet_lite0_fpn, DETECTION, _FCOS, _SMALL, milliseconds=26
    ),
    "oriented_fcos_efficientnet_lite0_fpn": ModelEntry(
        oriented_fcos.oriented_fcos_efficientnet_lite0_fpn,
        DETECTION,
        _FCOS,
        Preprocess(shorter_side=512, longer_side=512),
    ),
    "detr_resnet50": ModelEntry(
        detr.detr_resnet50, DETECTION, _DETR, _SMOOTHED, _detr("detr-r50-e632da11", 159, 0.420)
    ),
    "detr_resnet50_dc5": ModelEntry(
        detr.detr_resnet50_dc5, DETECTION, _DETR, _SMOOTHED, _detr("detr-r50-dc5-f0fb7ef5", 159, 0.433)
    ),
    "detr_resnet101": ModelEntry(
        detr.detr_resnet101, DETECTION, _DETR, _SMOOTHED, _detr("detr-r101-2c7b67e5", 232, 0.435)
    ),
    "detr_resnet101_dc5": ModelEntry(
        detr.detr_resnet101_dc5, DETECTION, _DETR, _SMOOTHED, _detr("detr-r101-dc5-a2e86def", 232, 0.449)
    ),
    "panoptic_fpn_efficientnet_lite0": ModelEntry(
        panoptic_fpn.panoptic_fpn_efficientnet_lite0, PANOPTIC, _PANOPTIC_FPN, _SMALL
    ),
    "panoptic_fpn_resnet50": ModelEntry(panoptic_fpn.panoptic_fpn_resnet50, PANOPTIC, _PANOPTIC_FPN, _USUAL),
    "panoptic_detr_efficientnet_lite0": ModelEntry(
        panoptic_detr.panoptic_detr_efficientnet_lite0,
        PANOPTIC,
        _DETR,
        Preprocess(shorter_side=320, longer_side=320),
        learning_rate=3e-4,
    ),
    "panoptic_detr_resnet50": ModelEntry(
        panoptic_detr.panoptic_detr_resnet50,
        PANOPTIC,
        _DETR,
        _SMOOTHED,
        _detr("detr-r50-panoptic-00ce5173", 165, 0.434, panoptic=True),
    ),
    "panoptic_detr_resnet50_dc5": ModelEntry(
        panoptic_detr.panoptic_detr_resnet50_dc5,
        PANOPTIC,
        _DETR,
        _SMOOTHED,
        _detr("detr-r50-dc5-panoptic-da08f1b1", 165, 0.446, panoptic=True),
    ),
    "panoptic_detr_resnet101": ModelEntry(
        panoptic_detr.panoptic_detr_resnet101,
        PANOPTIC,
        _DETR,
        _SMOOTHED,
        _detr("detr-r101-panoptic-40021d53", 237, 0.451, panoptic=True),
    ),
    "yolo": ModelEntry(yolo.yolo, DETECTION, _YOLO, Preprocess(fixed_hw=(448, 448))),
    "yolo_efficientnet_lite0": ModelEntry(yolo.yolo_efficientnet_lite0, DETECTION, _YOLO, _SQUARE, learning_rate=1e-4),
    "query_selection_detr_efficientnet_lite0": ModelEntry(
        query_selection_detr.query_selection_detr_efficientnet_lite0,
        DETECTION,
        _RT_DETR,
        Preprocess(shorter_side=320, longer_side=320),
    ),
    "detr_efficientnet_lite0": ModelEntry(
        detr.detr_efficientnet_lite0,
        DETECTION,
        _DETR,
        Preprocess(shorter_side=320, longer_side=320),
        learning_rate=3e-4,
    ),
    "sam_efficientnet_lite0": ModelEntry(
        sam.sam_efficientnet_lite0, PROMPTABLE, _SAM, Preprocess(shorter_side=512, longer_side=512, antialias=True)
    ),
    "sam_vit_b": ModelEntry(
        sam.sam_vit_b,
        PROMPTABLE,
        _SAM,
        _PROMPTED,
        _sam(
            "https://dl.fbaipublicfiles.com/segment_anything/sam_vit_b_01ec64.pth",
            "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912",
            358,
        ),
    ),
    "sam_vit_l": ModelEntry(
        sam.sam_vit_l,
        PROMPTABLE,
        _SAM,
        _PROMPTED,
        _sam(
            "https://dl.fbaipublicfiles.com/segment_anything/sam_vit_l_0b3195.pth",
            "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622",
            1192,
        ),
    ),
    "sam_vit_h": ModelEntry(
        sam.sam_vit_h,
        PROMPTABLE,
        _SAM,
        _PROMPTED,
        _sam(
            "https://dl.fbaipublicfiles.com/segment_anything/sam_vit_h_4b8939.pth",
            "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e",
            2446,
        ),
    ),
    "mobile_sam": ModelEntry(
        sam.mobile_sam,
        PROMPTABLE,
        _MOBILE_SAM,
        _PROMPTED,
        _sam(
            "https://raw.githubusercontent.com/ChaoningZhang/MobileSAM/master/weights/mobile_sam.pt",
            "6dbb90523a35330fedd7f1d3dfc66f995213d81b29a5ca8108dbcdd4e37d6c2f",
            39,
        ),
    ),
}


def model_entry(name: str) -> ModelEntry:
    """Return the entry of a model.

    Raises
    ------
    UsageError
        If there is no model of this name; the message suggests the nearest one.
    """
    if name in MODELS:
        return MODELS[name]
    raise UsageError(
        f"model {name!r}: there is no model of this name{did_you_mean(name, MODELS)} (otus models lists all)"
    )


def argument_values(name: str) -> dict[str, tuple[Any, ...]]:
    """Return the possible values of those arguments of a model's builder that are of type bool or Literal."""
    hints = get_type_hints(model_entry(name).builder)
    return {
        argument: (False, True) if hint is bool else get_args(hint)
        for argument, hint in hints.items()
        if hint is bool or get_origin(hint) is Literal
    }


def build_model(name: str, categories: Categories, arguments: Mapping[str, Any] | None = None) -> BaseSystem[Any, Any]:
    """Return a model with random weights.

    Parameters
    ----------
    name
        Name in the zoo.
    categories
        The category of each class index.
    arguments
        Arguments of the builder; ``freezing`` may be a dict of some of its fields (default: the builder's own).

    Raises
    ------
    UsageError
        If there is no such model, or it does not take one of the arguments.
    """
    builder = model_entry(name).builder
    known = [parameter for parameter in inspect.signature(builder).parameters if parameter != "categories"]
    unknown = [argument for argument in arguments or {} if argument not in known]
    if unknown:
        raise UsageError(f"{name} does not take {', '.join(unknown)}; it takes {', '.join(known) or 'no arguments'}")
    given = dict(arguments or {})
    if isinstance(given.get("freezing"), Mapping):  # read from JSON
        default: Freezing = inspect.signature(builder).parameters["freezing"].default
        given["freezing"] = replace(default, **given["freezing"])
    return builder(categories, **given)
