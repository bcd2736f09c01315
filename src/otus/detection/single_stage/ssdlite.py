"""SSDLite: SSD with depthwise separable convolutions in its head and extra layers, for phones and CPUs.

Papers: "MobileNetV2" (Sandler et al., CVPR 2018, arXiv:1801.04381), section 6.2; over MobileNetV3: Howard et al., ICCV
2019, arXiv:1905.02244, section 6.3. Default boxes, matching and losses are SSD's
(:mod:`otus.detection.single_stage.ssd`). Reference: torchvision ``models.detection.ssdlite`` (BSD-3-Clause), whose
layers' names and defaults are kept.
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise

from jaxtyping import Float
from torch import Tensor, nn
from torchvision import models
from torchvision.ops import Conv2dNormActivation

from otus.detection.single_stage.dense_detector import DenseDetector
from otus.detection.single_stage.ssd import DefaultBoxGenerator, SSDHead, ssd
from otus.parts.backbones import Backbone, efficientnet_lite0_backbone
from otus.parts.backbones.freezing import Freezing
from otus.parts.backbones.norms import LenientBatchNorm
from otus.parts.postprocess import Postprocess
from otus.structures import Categories

NormLayer = Callable[[int], nn.Module]


class SSDLiteExtractor(nn.Module):
    """Compute the feature maps of a backbone, and smaller ones by depthwise separable convolutions of the last.

    Parameters
    ----------
    backbone
        Computes feature maps of the images.
    channels
        Channels of each feature map of the backbone.
    extra_channels
        Channels of each additional feature map; each has half the width and height of the previous map.
    norm_layer
        Normalisation after each convolution.
    """

    def __init__(
        self,
        backbone: "Backbone | _MobileNetStages",
        channels: Sequence[int],
        extra_channels: Sequence[int],
        norm_layer: NormLayer,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.channels = (*channels, *extra_channels)
        sizes = self.channels[len(channels) - 1 :]
        self.extra = nn.ModuleList(
            nn.Sequential(
                _conv(inputs, outputs // 2, norm_layer),
                _depthwise(outputs // 2, norm_layer, stride=2),
                _conv(outputs // 2, outputs, norm_layer),
            )
            for inputs, outputs in pairwise(sizes)
        )
        _initialise(self.extra)

    @property
    def min_size(self) -> int:
        """Minimum image side of the backbone, in pixels."""
        return self.backbone.min_size

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> list[Tensor]:
        """Return the feature maps, fine to coarse."""
        maps = list(self.backbone(images))
        for block in self.extra:
            maps.append(block(maps[-1]))
        return maps


class SSDLiteHead(SSDHead):
    """SSD's head with depthwise separable convolutions.

    Parameters
    ----------
    channels, anchors_per_location, num_logits
        See :class:`~otus.detection.single_stage.ssd.SSDHead`.
    norm_layer
        Normalisation after each depthwise convolution.
    """

    def __init__(
        self,
        channels: Sequence[int],
        anchors_per_location: Sequence[int],
        *,
        num_logits: int,
        norm_layer: NormLayer,
    ) -> None:
        self._norm_layer = norm_layer
        super().__init__(channels, anchors_per_location, num_logits=num_logits)

    def predictor(self, in_channels: int, out_channels: int) -> nn.Module:
        """Return a depthwise 3x3 convolution and a 1x1 convolution."""
        return nn.Sequential(_depthwise(in_channels, self._norm_layer), nn.Conv2d(in_channels, out_channels, 1))

    def reset_parameters(self) -> None:
        """Initialise weights from a normal distribution, biases by 0."""
        _initialise(self)


class _MobileNetStages(nn.Sequential):
    """MobileNetV3-Large, split after the expansion layer of its last strided block; both feature maps are returned."""

    min_size = 32

    def forward(self, images: Tensor) -> list[Tensor]:
        first, second = self
        x = first(images)
        return [x, second(x)]


def ssdlite320_mobilenet_v3_large(
    categories: Categories, *, class_indices: Sequence[int] | None = None
) -> DenseDetector:
    """Build SSDLite over MobileNetV3-Large with the reduced tail (table 6 of its paper), for images of 320x320."""
    norm = partial(LenientBatchNorm, eps=1e-3, momentum=0.03)
    layers = list(models.mobilenet_v3_large(weights=None, norm_layer=norm, reduced_tail=True).features)
    last_strided = max(i for i, layer in enumerate(layers) if getattr(layer, "_is_cn", False))
    block = layers[last_strided].block  # its first layer is the expansion; slicing keeps the names of the others
    stages = (nn.Sequential(*layers[:last_strided], block[0]), nn.Sequential(block[1:], *layers[last_strided + 1 :]))
    _initialise(nn.ModuleList(stages))
    maps = SSDLiteExtractor(_MobileNetStages(*stages), (672, 480), (512, 256, 256, 128), norm)
    anchors = DefaultBoxGenerator([[2, 3]] * 6, [*(0.2 + 0.15 * i for i in range(6)), 1.0])
    postprocess = Postprocess(score_threshold=0.001, nms_iou=0.55, max_detections=300)
    return ssd(
        maps,
        maps.channels,
        anchors,
        categories,
        class_indices=class_indices,
        head=partial(SSDLiteHead, norm_layer=norm),
        top_k_per_class=300,
        postprocess=postprocess,
    )


def ssdlite_efficientnet_lite0(
    categories: Categories, *, class_indices: Sequence[int] | None = None, freezing: Freezing = Freezing()
) -> DenseDetector:
    """Build a small SSDLite over EfficientNet-Lite0, for images of about 320 pixels.

    Its feature maps are those of the backbone, with strides of 8, 16 and 32, and three smaller ones.
    """
    backbone = efficientnet_lite0_backbone(levels=(3, 4, 5), freezing=freezing)
    maps = SSDLiteExtractor(backbone, backbone.channels, (256, 256, 128), LenientBatchNorm)
    anchors = DefaultBoxGenerator([[2, 3]] * 6, [0.07, 0.15, 0.33, 0.51, 0.69, 0.87, 1.0])
    head = partial(SSDLiteHead, norm_layer=LenientBatchNorm)
    return ssd(maps, maps.channels, anchors, categories, class_indices=class_indices, head=head)


def _conv(in_channels: int, out_channels: int, norm_layer: NormLayer) -> nn.Module:
    return Conv2dNormActivation(in_channels, out_channels, 1, norm_layer=norm_layer, activation_layer=nn.ReLU6)


def _depthwise(channels: int, norm_layer: NormLayer, *, stride: int = 1) -> nn.Module:
    return Conv2dNormActivation(
        channels, channels, 3, stride=stride, groups=channels, norm_layer=norm_layer, activation_layer=nn.ReLU6
    )


def _initialise(module: nn.Module) -> None:
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.normal_(layer.weight, std=0.03)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
