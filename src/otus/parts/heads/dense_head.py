"""The head of dense detectors: two towers of convolutions that slide over all levels of a pyramid with the same weights.

Shape shorthand: B images, A anchors of a map, K anchors a location, S class slots, D numbers that code a box.

Paper: "Focal Loss for Dense Object Detection" (Lin et al., ICCV 2017, arXiv:1708.02002), section 4, "Classification
Subnet" and "Box Regression Subnet"; FCOS (arXiv:1904.01355, section 3) uses the same, with a third answer beside the box.
Reference: torchvision's ``RetinaNetHead`` and ``FCOSHead`` (BSD-3-Clause), whose layers' names are kept.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torchvision.ops import Conv2dNormActivation

PRIOR = 0.01
"""How likely each class is before anything is learned: most anchors show background (section 4.1)."""


@dataclass(frozen=True)
class DenseOutputs:
    """What a dense head says of the anchors of each map, float32. Lists have one entry a map.

    ``quality`` is a further logit of each anchor: how well it is placed.
    """

    logits: list[Float[Tensor, "b _ s"]]
    codes: list[Float[Tensor, "b _ d"]]
    quality: list[Float[Tensor, "b _"]] | None = None

    def of_all_maps(self) -> "DenseOutputs":
        """The same as lists of one entry, the maps one after the other."""
        quality = None if self.quality is None else [torch.cat(self.quality, 1)]
        return DenseOutputs([torch.cat(self.logits, 1)], [torch.cat(self.codes, 1)], quality)


def by_anchor(x: Float[Tensor, "b kd h w"], numbers: int) -> Float[Tensor, "b a d"]:
    """A head's map as ``numbers`` numbers an anchor, row by row, the K of one location together; float32."""
    return x.permute(0, 2, 3, 1).reshape(len(x), -1, numbers).float()


class TowerHead(nn.Module):
    """Class logits from one tower of 3x3 convolutions, box codes (and a quality) from another.

    Parameters
    ----------
    channels
        Channels of the maps, and of the towers.
    per_location
        Anchors a location.
    slots
        Class slots of an anchor.
    numbers
        Numbers that code a box.
    quality
        Whether each anchor says how well it is placed.
    depth
        Convolutions of a tower.
    norm_layer, bias
        Of these convolutions; without a norm there is a bias.
    """

    def __init__(
        self,
        channels: int,
        *,
        per_location: int,
        slots: int,
        numbers: int = 4,
        quality: bool = False,
        depth: int = 4,
        norm_layer: Callable[..., nn.Module] | None = None,
        bias: bool | None = None,
    ) -> None:
        super().__init__()

        def tower() -> nn.Sequential:
            layers = [Conv2dNormActivation(channels, channels, norm_layer=norm_layer, bias=bias) for _ in range(depth)]
            return nn.Sequential(*layers)

        def answer(count: int) -> nn.Conv2d:
            return nn.Conv2d(channels, per_location * count, 3, padding=1)

        self.classification = nn.ModuleDict({"conv": tower(), "cls_logits": answer(slots)})
        self.regression = nn.ModuleDict({"conv": tower(), "bbox_reg": answer(numbers)})
        if quality:
            self.regression["bbox_ctrness"] = answer(1)
        self.slots, self.numbers, self.has_quality = slots, numbers, quality
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
        """What is said of the anchors of each map."""
        logits, codes, quality = [], [], []
        for x in maps:
            logits.append(by_anchor(self.classification["cls_logits"](self.classification["conv"](x)), self.slots))
            y = self.regression["conv"](x)
            codes.append(by_anchor(self.regression["bbox_reg"](y), self.numbers))
            if self.has_quality:
                quality.append(by_anchor(self.regression["bbox_ctrness"](y), 1)[..., 0])
        return DenseOutputs(logits, codes, quality if self.has_quality else None)
