"""RoI pooling and RoI align: features of fixed size for every region, from feature maps that all regions share.

Shape shorthand: B images, R regions of all images, C channels, s the output size.

Papers: RoI pool: Fast R-CNN (Girshick, ICCV 2015, arXiv:1504.08083, section 2.1). RoI align: Mask R-CNN (He et al., ICCV
2017, arXiv:1703.06870, section 3). Choice of the level: FPN (arXiv:1612.03144, equation 1).
Reference: torchvision ``MultiScaleRoIAlign`` (BSD-3-Clause). The only difference: strides are those of the backbone, not
inferred from the first batch.
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torchvision.ops import box_area, roi_pool

from otus.parts.backbones.backbone import Backbone
from otus.parts.backbones.feature_pyramid import FeaturePyramid
from otus.parts.batching import Batch
from otus.parts.fast.roi_align import roi_align

CANONICAL_SIZE = 224
CANONICAL_LEVEL = 4


class RoIPooler:
    """Pool the features of regions from a feature map, or from the levels of a pyramid.

    Parameters
    ----------
    output_size
        Height and width of a region's features.
    strides
        Strides of the feature maps to pool from, fine to coarse; further maps are ignored.
    method
        ``align`` samples by bilinear interpolation; ``pool`` takes maxima over bins of whole locations, as the original
        Fast R-CNN.
    sampling_ratio
        Sampling points per bin and axis of ``align``.
    canonical_size
        Side of the boxes that are assigned to level 4 (stride 16); the default, the paper's, suits images of 800 pixels.
    """

    def __init__(
        self,
        output_size: int,
        *,
        strides: Sequence[int],
        method: Literal["align", "pool"] = "align",
        sampling_ratio: int = 2,
        canonical_size: float = CANONICAL_SIZE,
    ) -> None:
        self.output_size = output_size
        self.strides = tuple(strides)
        self.method = method
        self.sampling_ratio = sampling_ratio
        self.canonical_size = canonical_size

    def __call__(
        self, maps: Sequence[Float[Tensor, "b c _ _"]], boxes: Sequence[Float[Tensor, "_ 4"]]
    ) -> Float[Tensor, "r c s s"]:
        """Return the float32 features of the boxes of each image, in their order."""
        return self.pool(maps, boxes_to_rois(boxes))

    def pool(self, maps: Sequence[Float[Tensor, "b c _ _"]], regions: Float[Tensor, "r 5"]) -> Float[Tensor, "r c s s"]:
        """Return the float32 features of boxes that are each preceded by the index of their image."""
        if len(self.strides) == 1:
            return self._pool_level(maps[0], regions, self.strides[0])
        levels = self.levels(regions[:, 1:])
        roi_features = regions.new_zeros((regions.shape[0], maps[0].shape[1], self.output_size, self.output_size))
        for level, (x, stride) in enumerate(zip(maps, self.strides, strict=False)):
            index = torch.where(levels == level)[0]
            if not torch.compiler.is_compiling() and len(index) == 0 and not roi_features.requires_grad:
                continue  # saves the conversion of the feature map to float32
            roi_features = roi_features.index_copy(0, index, self._pool_level(x, regions[index], stride))
        return roi_features

    def levels(self, boxes: Float[Tensor, "r 4"]) -> Int[Tensor, "r"]:
        """Return the index of each box's feature map: that of level floor(4 + log2(sqrt(area) / canonical_size))."""
        finest, coarsest = (int(math.log2(self.strides[i])) for i in (0, -1))
        size = box_area(boxes).sqrt()
        level = torch.floor(CANONICAL_LEVEL + torch.log2(size / self.canonical_size) + 1e-6)
        return level.clamp(min=finest, max=coarsest).to(torch.int64) - finest

    def _pool_level(self, x: Tensor, regions: Tensor, stride: int) -> Tensor:
        # The CPU operators take float32 with channels first only; converting both at once is one pass instead of two.
        x = x.to(torch.float32, memory_format=torch.contiguous_format)
        if self.method == "pool":
            return roi_pool(x, regions, self.output_size, 1 / stride)
        return roi_align(x, regions, self.output_size, 1 / stride, sampling_ratio=self.sampling_ratio)


def boxes_to_rois(boxes: Sequence[Float[Tensor, "_ 4"]]) -> Float[Tensor, "r 5"]:
    """Return the boxes of all images in one tensor, each preceded by the index of its image."""
    image_index = torch.cat([torch.full_like(boxes_of_image[:, :1], i) for i, boxes_of_image in enumerate(boxes)])
    return torch.cat([image_index, torch.cat(list(boxes))], dim=1)


class RoIFeatures(nn.Module):
    """Region features of Fast R-CNN and its successors: the backbone once per image, then RoI pooling.

    Parameters
    ----------
    backbone
        Maps images to feature maps.
    roi_pooler
        Pools the features of the box head.
    pyramid
        Feature pyramid over the backbone (default: none, features are pooled from the backbone's feature maps).
    """

    def __init__(self, backbone: Backbone, roi_pooler: RoIPooler, *, pyramid: FeaturePyramid | None = None) -> None:
        super().__init__()
        self.backbone = backbone
        self.pyramid = pyramid
        self.roi_pooler = roi_pooler

    @property
    def out_channels(self) -> int:
        """Channels of the feature maps."""
        return self.backbone.channels[-1] if self.pyramid is None else self.pyramid.out_channels

    @property
    def out_features(self) -> int:
        """Length of a region's flattened features."""
        return self.out_channels * self.roi_pooler.output_size**2

    @property
    def min_size(self) -> int:
        """Minimum height and width of an image: the backbone's."""
        return self.backbone.min_size

    def prepare(self, images: Float[Tensor, "b 3 h w"]) -> list[Float[Tensor, "b c _ _"]]:
        """Return the feature maps that proposer and heads share, fine to coarse."""
        return self(images)

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> list[Float[Tensor, "b c _ _"]]:
        """Compute :meth:`prepare`, as a forward pass that another runtime can replace."""
        maps = self.backbone(images)
        return maps if self.pyramid is None else self.pyramid(maps)

    def extract(
        self, maps: Sequence[Tensor], batch: Batch, boxes: Sequence[Float[Tensor, "_ 4"]]
    ) -> Float[Tensor, "r c s s"]:
        """Return the features of the boxes of each image; ``batch`` is not used."""
        return self.roi_pooler(maps, boxes)
