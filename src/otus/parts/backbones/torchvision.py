"""Backbones of torchvision: AlexNet, VGG, ResNet and its relatives, MobileNetV3.

Papers: AlexNet as in "One weird trick for parallelizing convolutional neural networks" (Krizhevsky, arXiv:1404.5997);
VGG (Simonyan and Zisserman, ICLR 2015, arXiv:1409.1556); ResNet (He et al., CVPR 2016, arXiv:1512.03385); ResNeXt (Xie et
al., CVPR 2017, arXiv:1611.05431); Wide ResNet (Zagoruyko and Komodakis, BMVC 2016, arXiv:1605.07146); MobileNetV3 (Howard
et al., ICCV 2019, arXiv:1905.02244). Code relied on: torchvision, BSD-3-Clause.

Departures: torchvision's ResNets have the stride of a bottleneck in its 3x3 convolution ("V1.5"), the paper's in the first
1x1. torchvision's detectors run MobileNetV3 with norms of eps 1e-5, its classifiers with 1e-3: for checkpoints of its
detectors call ``freeze_norms(…, eps=1e-5)``.
"""

from collections.abc import Mapping, Sequence

from torch import Tensor, nn
from torchvision import models

from otus.errors import UsageError
from otus.parts.backbones.backbone import LayeredBackbone, load_classifier_weights
from otus.parts.backbones.freezing import Freezing

RESNETS = (
    "resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "resnext50_32x4d", "resnext101_32x8d",
    "resnext101_64x4d", "wide_resnet50_2", "wide_resnet101_2",
)  # fmt: skip
FEATURE_NETS = ("alexnet", "vgg11", "vgg13", "vgg16", "vgg19", "mobilenet_v3_large", "mobilenet_v3_small")


def torchvision_backbone(
    name: str,
    *,
    levels: Sequence[int | str],
    weights: Mapping[str, Tensor] | None = None,
    output_stride: int = 32,
    freezing: Freezing | None = None,
) -> LayeredBackbone:
    """Build a backbone whose layers have torchvision's names (in its detectors' checkpoints, after ``backbone.body.``).

    Parameters
    ----------
    name
        torchvision's name of the network, e.g. ``resnet50``, ``vgg16``, ``mobilenet_v3_large``.
    levels
        The feature maps to return, fine to coarse: a number l for the last one of stride 2**l (``(2, 3, 4, 5)`` for a
        pyramid, ``(4,)`` for VGG's conv5_3 in Fast R-CNN), or the name of a layer (``("13", "16")`` are the two that
        torchvision's MobileNetV3 detectors use).
    weights
        State dict of torchvision's classifier of that name (default: random initialisation).
    output_stride
        16 replaces the stride of the last stage of a ResNet or MobileNetV3 by dilation ("DC5" in DETR), 8 that of the last
        two stages of a ResNet; level 4, or 3, is then the last layer (default: 32, no dilation).
    freezing
        Which weights are not trained (default: all are).

    Raises
    ------
    UsageError
        If the name or a level is unknown, or the network cannot be dilated.
    CheckpointError
        If the weights do not fit this network.

    Examples
    --------
    >>> backbone = torchvision_backbone("resnet18", levels=(2, 3, 4, 5))
    >>> backbone.channels, backbone.strides
    ((64, 128, 256, 512), (4, 8, 16, 32))
    """
    if name not in RESNETS + FEATURE_NETS:
        raise UsageError(f"backbone {name!r}: expected one of {', '.join(RESNETS + FEATURE_NETS)}")
    dilated = {8: RESNETS[2:], 16: RESNETS[2:] + FEATURE_NETS[-2:], 32: RESNETS + FEATURE_NETS}.get(output_stride, ())
    if name not in dilated:
        raise UsageError(
            f"backbone {name!r} cannot be dilated to an output stride of {output_stride}: expected 32, "
            f"16 of {', '.join(RESNETS[2:] + FEATURE_NETS[-2:])}, or 8 of a ResNet from resnet50 on"
        )
    if name in RESNETS:
        stages = [False, output_stride == 8, output_stride < 32]
        layers = dict(getattr(models, name)(weights=None, replace_stride_with_dilation=stages).named_children())
        del layers["avgpool"], layers["fc"]
    else:
        layers = dict(_features(name, dilated=output_stride < 32).named_children())
    # AlexNet pools without padding: images below 63 pixels leave nothing for its last pooling.
    backbone = LayeredBackbone(layers, levels=levels, minimum_side=63 if name == "alexnet" else None)
    if weights is not None:
        state = {key.removeprefix("features."): tensor for key, tensor in weights.items()}
        load_classifier_weights(backbone, state, source=f"weights of {name}")
    if freezing is not None:
        freezing.apply(backbone)
    return backbone


def _features(name: str, *, dilated: bool) -> nn.Module:
    """Build the ``features`` of a network; for VGG without allocating its large classifier."""
    if name.startswith("mobilenet"):
        return getattr(models, name)(weights=None, dilated=dilated).features
    if not name.startswith("vgg"):
        return getattr(models, name)(weights=None).features
    letter = {"vgg11": "A", "vgg13": "B", "vgg16": "D", "vgg19": "E"}[name]
    features = models.vgg.make_layers(models.vgg.cfgs[letter])
    for layer in features:
        if isinstance(layer, nn.Conv2d) and layer.bias is not None:
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(layer.bias)
    return features
