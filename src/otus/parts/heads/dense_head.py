"""The head of dense detectors: two towers of convolutions that slide over all levels of a pyramid with the same weights.

Shape shorthand: B images, A anchors of a map, K anchors a location, S class logits, D numbers that code a box.

Paper: "Focal Loss for Dense Object Detection" (Lin et al., ICCV 2017, arXiv:1708.02002), section 4, "Classification
Subnet" and "Box Regression Subnet"; FCOS (arXiv:1904.01355, section 3) uses the same, with a third answer beside the box.
Reference: torchvision's ``RetinaNetHead`` and ``FCOSHead`` (BSD-3-Clause), whose layers' names are kept.
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
"""How likely each class is before anything is learned: most anchors show background (section 4.1)."""


@dataclass(frozen=True)
class DenseOutputs:
    """The outputs of a dense head for the anchors of each feature map, float32. Lists have one entry per map.

    ``centerness`` is one more logit per anchor: how central the location is in its object.
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
    """What the anchors of one image are to predict.

    Parameters
    ----------
    matches
        (A,) index of each anchor's object, or NEGATIVE or NEUTRAL of :mod:`otus.parts.boxes.matching`.
    class_indices
        (A,) index of each anchor's class among the logits; the same negative numbers where there is none.
    positives
        (P,) indices of the anchors that have an object.
    boxes
        (P, D) the boxes of their objects.
    """

    matches: Int[Tensor, "a"]
    class_indices: Int[Tensor, "a"]
    positives: Int[Tensor, "p"]
    boxes: Float[Tensor, "p d"]


def permute_and_flatten(x: Float[Tensor, "b kd h w"], numbers: int) -> Float[Tensor, "b a d"]:
    """Reshape a head's output to rows per anchor, location by location, the K of one location together; float32."""
    return x.permute(0, 2, 3, 1).reshape(x.shape[0], -1, numbers).float()


class TowerHead(nn.Module):
    """Class logits from one tower of 3x3 convolutions, box deltas (and centre-ness) from another.

    Parameters
    ----------
    in_channels
        Channels of the feature maps, and of the towers.
    anchors_per_location
        Anchors a location.
    num_logits
        Class logits per anchor.
    box_dim
        Numbers per encoded box.
    has_centerness
        Whether centre-ness is predicted.
    num_convs
        Convolutions per tower.
    norm_layer, bias
        Of these convolutions; without a norm there is a bias.
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
                    # What follows is normalised, so only the direction counts; Adam's steps, of 0.0004 for a small
                    # detector, would turn weights of the paper's 0.01 too far.
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
