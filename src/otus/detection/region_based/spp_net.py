"""SPP-net: one map for the whole image, and a pyramid of grids that makes a vector of one length from any part of it.

Shape shorthand: R regions of all images, C channels, F = C (n1^2 + n2^2 + …) numbers of a region.

Paper: "Spatial Pyramid Pooling in Deep Convolutional Networks for Visual Recognition" (He, Zhang, Ren, Sun, ECCV 2014,
arXiv:1406.4729): section 2.2 the pooling, bins from floor to ceiling, levels 6, 3, 2, 1 in detection (section 4.1, 50 bins),
appendix A which cells of the map belong to a window. Fast R-CNN's RoI pool is this with one level.
Official code: github.com/ShaoqingRen/SPP_net; nothing of it is copied.

The backbone does not learn: so it is in the paper, whose gradient did not pass the pooling (Fast R-CNN, section 2.3, is
about this). ``Freezing(level=0)`` lets it learn all the same.

Departures: one softmax and one box regression learned together, as for R-CNN here
(:mod:`otus.detection.region_based.rcnn`), from regions by R-CNN's rule; one scale of images; VGG-16, which came after
the paper, without dropout.
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
    """Region features of SPP-net: the backbone once an image; of each region the maxima of grids of several finenesses.

    Parameters
    ----------
    backbone
        Images in, maps out, of which the last counts.
    bins
        Bins of each grid along a side.
    offset
        Pixels of the image that the first cell of the map sees around: 0 where convolutions are padded by half their size;
        where they or the pools are not, appendix A asks for one.
    """

    def __init__(self, backbone: Backbone, *, bins: Sequence[int] = PYRAMID_BINS, offset: float = 0.0) -> None:
        super().__init__()
        if not bins or min(bins) < 1:
            raise UsageError(f"levels: expected at least one number of bins from 1 on, got {tuple(bins)}")
        self.backbone = backbone
        self.bins = tuple(bins)
        self.offset = offset

    @property
    def out_features(self) -> int:
        """F, numbers of a region."""
        return self.backbone.channels[-1] * sum(level**2 for level in self.bins)

    @property
    def min_size(self) -> int:
        """The backbone's."""
        return self.backbone.min_size

    def prepare(self, images: Float[Tensor, "b 3 h w"]) -> list[Float[Tensor, "b c _ _"]]:
        """The map that all regions share."""
        return self.backbone(images)[-1:]

    def extract(
        self, maps: Sequence[Tensor], batch: Batch, boxes: Sequence[Float[Tensor, "_ 4"]]
    ) -> Float[Tensor, "r f"]:
        """For each region the bins of all levels, the first level's first; of a level channel by channel, rows of bins."""
        # The CPU operator knows float32 with channels first only.
        x = maps[-1].to(torch.float32, memory_format=torch.contiguous_format)
        regions = boxes_to_rois(boxes)
        cells = boxes_to_cells(
            regions[:, 1:] - self.offset, stride=self.backbone.strides[-1], map_hw=(x.shape[-2], x.shape[-1])
        )
        windows = torch.cat([regions[:, :1], cells.to(regions.dtype)], dim=1)
        # roi_pool counts the last row and column of a window in, and cuts it into bins from floor to ceiling.
        return torch.cat([roi_pool(x, windows, level).flatten(start_dim=1) for level in self.bins], dim=1)


def boxes_to_cells(boxes: Float[Tensor, "r 4"], *, stride: int, map_hw: tuple[int, int]) -> Tensor:
    """First and last column and row (x1, y1, x2, y2, all counted in) of the cells that see a box and little else.

    A cell at x sees the image around ``stride * x``: the first is ``floor(x1 / stride) + 1``, the last
    ``ceil(x2 / stride) - 1`` (appendix A). A box between two cells gets the one nearest to its centre.

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
    """SPP-net of any backbone.

    Parameters
    ----------
    region_features
        The shared map and the pyramid of grids.
    proposer
        Where to look; the sample's own proposals, else Selective Search.
    representation_size
        Numbers in each of the two fully connected layers.
    sampler
        How many regions of an image are learned from.
    postprocess
        Thresholds of what is reported; the paper's NMS.
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
    """SPP-net with VGG-16's last map, of stride 16.

    Parameters
    ----------
    proposals
        At most so many of an image.
    representation_size
        Numbers in each fully connected layer.
    freezing
        Which weights of the backbone are not trained.
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
    """A small one for images of about 320 pixels; arguments as of :func:`spp_net_vgg16`.

    The backbone's last stages keep stride 16 by dilation.
    """
    backbone = efficientnet_lite0_backbone(levels=(4,), dilated=True, freezing=freezing)
    return spp_net(
        SpatialPyramidPooling(backbone),
        categories,
        proposer=PrecomputedProposals(proposals),
        representation_size=representation_size,
    )
