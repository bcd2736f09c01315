"""SPP-net: one feature map per image, from which spatial pyramid pooling computes a fixed-length vector per region.

Shape shorthand: R regions of all images, C channels, F = C (n1^2 + n2^2 + …) features of a region.

Paper: "Spatial Pyramid Pooling in Deep Convolutional Networks for Visual Recognition" (He, Zhang, Ren, Sun, ECCV 2014,
arXiv:1406.4729): section 2.2 the pooling, bins from floor to ceiling, levels 6, 3, 2, 1 in detection (section 4.1, 50
bins), appendix A the projection of a window onto the feature map. Fast R-CNN's RoI pooling is this with one level.
Official code: github.com/ShaoqingRen/SPP_net; nothing of it is copied.

The backbone is frozen by default, as in the paper, which did not backpropagate through the pooling (see Fast R-CNN,
section 2.3). ``Freezing(level=0)`` trains it too.

Departures: a softmax and a box regression are trained jointly, on regions sampled by the same rule as for R-CNN here
(:mod:`otus.detection.region_based.rcnn`); a single image scale; VGG-16, which is later than the paper, its fully
connected layers initialised at random, without dropout.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torchvision.ops import roi_pool

from otus.detection.region_based.region_detector import RegionDetector
from otus.errors import UsageError
from otus.parts.backbones import Backbone, efficientnet_lite0_backbone, torchvision_backbone
from otus.parts.backbones.freezing import Freezing
from otus.parts.batching import Batch
from otus.parts.boxes.matching import IoUMatcher
from otus.parts.boxes.sampling import BalancedSampler
from otus.parts.heads.box_head import two_layer_mlp_head
from otus.parts.postprocess import Postprocess
from otus.parts.regions.roi_features import boxes_to_rois
from otus.proposals.proposers import PrecomputedProposals
from otus.structures import Categories

PYRAMID_BINS = (6, 3, 2, 1)


class SpatialPyramidPooling(nn.Module):
    """Region features of SPP-net: the backbone once per image, then max pooling of each region to several grids.

    Parameters
    ----------
    backbone
        Computes feature maps of the images, of which the last is used.
    bins
        Bins along a side of each grid.
    offset
        Image coordinate, in pixels, of the receptive field centre of the first location of the feature map: 0 if all
        layers are padded by half their kernel size, otherwise as of appendix A.
    """

    def __init__(self, backbone: Backbone, *, bins: Sequence[int] = PYRAMID_BINS, offset: float = 0.0) -> None:
        super().__init__()
        if not bins or min(bins) < 1:
            raise UsageError(f"bins: expected one or more numbers of bins, each at least 1, got {tuple(bins)}")
        self.backbone = backbone
        self.bins = tuple(bins)
        self.offset = offset

    @property
    def out_features(self) -> int:
        """F, features of a region."""
        return self.backbone.channels[-1] * sum(level**2 for level in self.bins)

    @property
    def min_size(self) -> int:
        """Minimum image side of the backbone, in pixels."""
        return self.backbone.min_size

    def prepare(self, images: Float[Tensor, "b 3 h w"]) -> list[Float[Tensor, "b c _ _"]]:
        """Return the feature map that all regions share, in a list."""
        return self.backbone(images)[-1:]

    def extract(
        self, maps: Sequence[Tensor], batch: Batch, boxes: Sequence[Float[Tensor, "_ 4"]]
    ) -> Float[Tensor, "r f"]:
        """Return the max-pooled bins of each region, concatenated over levels, each level flattened from (C, n, n)."""
        # The CPU operator supports only contiguous float32.
        x = maps[-1].to(torch.float32, memory_format=torch.contiguous_format)
        regions = boxes_to_rois(boxes)
        cells = boxes_to_cells(
            regions[:, 1:] - self.offset, stride=self.backbone.strides[-1], map_hw=(x.shape[-2], x.shape[-1])
        )
        windows = torch.cat([regions[:, :1], cells.to(regions.dtype)], dim=1)
        # roi_pool includes the last row and column of a window; its bins extend from floor to ceiling.
        return torch.cat([roi_pool(x, windows, level).flatten(start_dim=1) for level in self.bins], dim=1)


def boxes_to_cells(boxes: Float[Tensor, "r 4"], *, stride: int, map_hw: tuple[int, int]) -> Tensor:
    """Project boxes onto the feature map: return the first and last column and row (x1, y1, x2, y2, inclusive).

    The receptive field of the location x is centred at ``stride * x``: the first location of a box is
    ``floor(x1 / stride) + 1``, the last ``ceil(x2 / stride) - 1`` (appendix A). A box that contains no such centre gets
    the location nearest to its own centre.

    Examples
    --------
    >>> boxes_to_cells(torch.tensor([[0.0, 16, 64, 50], [17, 17, 20, 20]]), stride=16, map_hw=(4, 4)).tolist()
    [[1, 2, 3, 3], [1, 1, 1, 1]]
    """
    limit = torch.tensor([map_hw[1] - 1, map_hw[0] - 1], device=boxes.device)
    first = (boxes[:, :2] / stride).floor().long() + 1
    last = (boxes[:, 2:] / stride).ceil().long() - 1
    nearest = ((boxes[:, :2] + boxes[:, 2:]) / (2 * stride)).round().long()
    first, last = torch.where(first <= last, first, nearest), torch.where(first <= last, last, nearest)
    return torch.cat([first, last], dim=1).clamp(min=0).minimum(limit.repeat(2))


def spp_net(
    region_features: SpatialPyramidPooling,
    categories: Categories,
    *,
    proposer: PrecomputedProposals | None = None,
    representation_size: int = 4096,
    sampler: BalancedSampler = BalancedSampler(batch_size_per_image=64, positive_fraction=0.25),
    postprocess: Postprocess = Postprocess(nms_iou=0.3),
) -> RegionDetector:
    """Build SPP-net over any backbone.

    Parameters
    ----------
    region_features
        Computes the shared feature map and the spatial pyramid pooling.
    proposer
        Source of the proposals (default: those of the sample, else Selective Search).
    representation_size
        Output features of each of the two fully connected layers.
    sampler
        Samples the regions of each image that the losses are computed on.
    postprocess
        Score and NMS thresholds of the detections (default: the paper's NMS).
    """
    return RegionDetector(
        categories=categories,
        proposer=proposer or PrecomputedProposals(),
        region_features=region_features,
        box_head=two_layer_mlp_head(
            region_features.out_features,
            len(categories),
            representation_size=representation_size,
            matcher=IoUMatcher(positive_iou=0.5, negative_iou=0.3),
            sampler=sampler,
        ),
        postprocess=postprocess,
    )


def spp_net_vgg16(
    categories: Categories,
    *,
    proposals: int = 2000,
    representation_size: int = 4096,
    freezing: Freezing = Freezing(level=4),
) -> RegionDetector:
    """Build SPP-net over the last feature map of VGG-16, of stride 16.

    Parameters
    ----------
    proposals
        Maximum number of proposals per image.
    representation_size
        Output features of each of the two fully connected layers.
    freezing
        Which weights of the backbone are frozen.
    """
    backbone = torchvision_backbone("vgg16", levels=(4,), freezing=freezing)
    pyramid = SpatialPyramidPooling(backbone, offset=8.0)  # four pools of 2x2 without padding: half a stride
    return spp_net(
        pyramid, categories, proposer=PrecomputedProposals(proposals), representation_size=representation_size
    )


def spp_net_efficientnet_lite0(
    categories: Categories,
    *,
    proposals: int = 500,
    representation_size: int = 512,
    freezing: Freezing = Freezing(level=4),
) -> RegionDetector:
    """Build a small SPP-net over EfficientNet-Lite0, for images of about 320 pixels.

    See :func:`spp_net_vgg16` for the parameters. The backbone's last stages are dilated to keep stride 16.
    """
    backbone = efficientnet_lite0_backbone(levels=(4,), dilated=True, freezing=freezing)
    return spp_net(
        SpatialPyramidPooling(backbone),
        categories,
        proposer=PrecomputedProposals(proposals),
        representation_size=representation_size,
    )
