"""The head of dense detectors: two convolutional towers, applied to all levels of a pyramid with shared weights.

Shape shorthand: B images, A anchors of a feature map, K anchors per location, S class logits, D numbers per encoded box.

Paper: "Focal Loss for Dense Object Detection" (Lin et al., ICCV 2017, arXiv:1708.02002), section 4, "Classification
Subnet" and "Box Regression Subnet"; FCOS (arXiv:1904.01355, section 3) uses the same and predicts centre-ness as well.
Reference: torchvision's ``RetinaNetHead`` and ``FCOSHead`` (BSD-3-Clause), whose layer names are kept.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torchvision.ops import Conv2dNormActivation

SMALL_NUM_CONVS = 1
"""Convolutions per tower of the small detectors: less to compute, and less to learn before predictions mean anything
(docs/lineage.md)."""
PRIOR = 0.01
"""Initial probability of each class: most anchors are background (section 4.1)."""


@dataclass(frozen=True)
class DenseOutputs:
    """The outputs of a dense head for all anchors, float32. Lists have one entry per feature map.

    ``centerness`` is a further logit per anchor: how central its location is in the object.
    """

    logits: list[Float[Tensor, "b _ s"]]
    box_deltas: list[Float[Tensor, "b _ d"]]
    centerness: list[Float[Tensor, "b _"]] | None = None

    def concatenate(self) -> "DenseOutputs":
        """Return the same with the feature maps concatenated, as lists of one entry."""
        centerness = None if self.centerness is None else [torch.cat(self.centerness, 1)]
        return DenseOutputs([torch.cat(self.logits, 1)], [torch.cat(self.box_deltas, 1)], centerness)


torch.export.register_dataclass(DenseOutputs, serialized_type_name="otus.DenseOutputs")


@dataclass(frozen=True)
class DenseAssignment:
    """The targets of the anchors of one image.

    Parameters
    ----------
    matches
        (A,) index of each anchor's object, or NEGATIVE or NEUTRAL of :mod:`otus.parts.boxes.matching`.
    class_indices
        (A,) index of each anchor's class among the logits, or NEGATIVE or NEUTRAL.
    positives
        (P,) indices of the anchors that are matched to an object.
    boxes
        (P, D) the boxes of these objects.
    """

    matches: Int[Tensor, "a"]
    class_indices: Int[Tensor, "a"]
    positives: Int[Tensor, "p"]
    boxes: Float[Tensor, "p d"]


def permute_and_flatten(x: Float[Tensor, "b kd h w"], numbers: int) -> Float[Tensor, "b a d"]:
    """Reshape a head's output to one row per anchor, the K anchors of a location next to one another; float32."""
    return x.permute(0, 2, 3, 1).reshape(x.shape[0], -1, numbers).float()


class TowerHead(nn.Module):
    """Class logits from one tower of 3x3 convolutions, box deltas (and centre-ness) from another.

    Parameters
    ----------
    in_channels
        Channels of the feature maps, and of the towers.
    anchors_per_location
        K.
    num_logits
        Class logits per anchor.
    box_dim
        Numbers per encoded box.
    has_centerness
        Whether centre-ness is predicted.
    num_convs
        Convolutions per tower.
    norm_layer
        Normalisation after each of these convolutions (default: none).
    bias
        Whether these convolutions have a bias (default: if there is no norm).
    """

    def __init__(
        self,
        in_channels: int,
        *,
        anchors_per_location: int,
        num_logits: int,
        box_dim: int = 4,
        has_centerness: bool = False,
        num_convs: int = 4,
        norm_layer: Callable[..., nn.Module] | None = None,
        bias: bool | None = None,
    ) -> None:
        super().__init__()

        def tower() -> nn.Sequential:
            layers = [
                Conv2dNormActivation(in_channels, in_channels, norm_layer=norm_layer, bias=bias)
                for _ in range(num_convs)
            ]
            return nn.Sequential(*layers)

        def conv(count: int) -> nn.Conv2d:
            return nn.Conv2d(in_channels, anchors_per_location * count, 3, padding=1)

        self.classification = nn.ModuleDict({"conv": tower(), "cls_logits": conv(num_logits)})
        self.regression = nn.ModuleDict({"conv": tower(), "bbox_reg": conv(box_dim)})
        if has_centerness:
            self.regression["bbox_ctrness"] = conv(1)
        self.num_logits, self.box_dim, self.has_centerness = num_logits, box_dim, has_centerness
        for name, module in self.named_modules():
            if isinstance(module, nn.Conv2d):
                if norm_layer is not None and ".conv." in name:
                    # A norm follows, so only the direction of the weights matters, and Adam's steps (0.0004 in a small
                    # detector) would change the direction of weights of the paper's standard deviation 0.01 too fast.
                    nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                else:
                    nn.init.normal_(module.weight, std=0.01)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.constant_(self.classification["cls_logits"].bias, math.log(PRIOR / (1 - PRIOR)))  # type: ignore[arg-type]

    def forward(self, maps: list[Float[Tensor, "b c _ _"]]) -> DenseOutputs:
        """Predict for the anchors of each feature map."""
        logits, box_deltas, centerness = [], [], []
        for x in maps:
            logits.append(
                permute_and_flatten(self.classification["cls_logits"](self.classification["conv"](x)), self.num_logits)
            )
            y = self.regression["conv"](x)
            box_deltas.append(permute_and_flatten(self.regression["bbox_reg"](y), self.box_dim))
            if self.has_centerness:
                centerness.append(permute_and_flatten(self.regression["bbox_ctrness"](y), 1)[..., 0])
        return DenseOutputs(logits, box_deltas, centerness if self.has_centerness else None)
