"""Faster R-CNN: the network that finds objects also proposes where to look.

Shape shorthand: B images, A anchors of all maps, K anchors a location, P proposals.

Paper: "Faster R-CNN: Towards Real-Time Object Detection with Region Proposal Networks" (Ren, He, Girshick, Sun, NeurIPS
2015, arXiv:1506.01497): section 3 the region proposal network, four losses at once (section 3.2, "approximate joint
training"). With a feature pyramid: Lin et al., CVPR 2017, arXiv:1612.03144, section 4. Version 2: "Benchmarking Detection
Transfer Learning with Vision Transformers" (Li et al., arXiv:2111.11429).
Reference: torchvision ``models.detection.faster_rcnn`` (BSD-3-Clause), whose layers' names and defaults are kept.

Departures from the paper: objectness is one logit and not a softmax of two; anchors that cross the image's border are
learned from as well; gradients reach the maps by the features of regions, not by their coordinates; 1,000 proposals when
predicting (the paper's 300 in the single-map form below).
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import Conv2dNormActivation, clip_boxes_to_image, remove_small_boxes

from otus.detection.region_based.region_detector import RegionDetector
from otus.parts.backbones import Backbone, efficientnet_lite0_backbone, torchvision_backbone
from otus.parts.backbones.feature_pyramid import FeaturePyramid
from otus.parts.backbones.freezing import Freezing
from otus.parts.batching import Batch, Target, clip_to_images
from otus.parts.boxes.anchors import GridAnchorGenerator
from otus.parts.boxes.coding import DeltaBoxCoder
from otus.parts.boxes.matching import IoUMatcher
from otus.parts.boxes.nms import batched_nms, nms_per_image
from otus.parts.boxes.sampling import BalancedSampler
from otus.parts.heads.box_head import DEFAULT_SAMPLER, BoxHead, TwoLayerMLP
from otus.parts.heads.class_indices import class_indices_of
from otus.parts.losses import box_delta_loss, zero_loss
from otus.parts.postprocess import Postprocess
from otus.parts.ranking import stable_topk
from otus.parts.regions.proposals import Proposals
from otus.parts.regions.roi_features import RoIFeatures, RoIPooler
from otus.structures import Categories

ANCHOR_SIZES = (32, 64, 128, 256, 512)
FPN_ANCHOR_SIZES = tuple((size,) for size in ANCHOR_SIZES)
"""Sizes of the anchors on each level of a pyramid, P2 to P6."""
SMALLEST = 1e-3
"""Pixels that each side of a proposal has at least."""


class RegionProposalNetwork(nn.Module):
    """A small convolutional network over the feature maps: at each location, objectness and box deltas of K anchors.

    Parameters
    ----------
    in_channels
        Channels of the feature maps.
    anchors
        Generates the anchors of each map.
    conv_depth
        3x3 convolutions before the two outputs.
    post_nms_top_n, pre_nms_top_n
        Proposals per image when predicting, after NMS, and per feature map before NMS.
    train_post_nms_top_n, train_pre_nms_top_n
        The same in training.
    nms_iou, score_threshold
        Proposals that overlap a better one of their map more than the first, or score below the second, go.
    matcher, sampler
        Which anchors are positive and negative, and how many of each are sampled.
    """

    learns = True
    original_image_search = None

    def __init__(
        self,
        in_channels: int,
        anchors: GridAnchorGenerator,
        *,
        conv_depth: int = 1,
        post_nms_top_n: int = 1000,
        pre_nms_top_n: int = 1000,
        train_post_nms_top_n: int = 2000,
        train_pre_nms_top_n: int = 2000,
        nms_iou: float = 0.7,
        score_threshold: float = 0.0,
        matcher: IoUMatcher = IoUMatcher(positive_iou=0.7, negative_iou=0.3, keep_best=True),
        sampler: BalancedSampler = BalancedSampler(batch_size_per_image=256, positive_fraction=0.5),
    ) -> None:
        super().__init__()
        layers = [Conv2dNormActivation(in_channels, in_channels, 3, norm_layer=None) for _ in range(conv_depth)]
        self.conv = nn.Sequential(*layers)
        self.cls_logits = nn.Conv2d(in_channels, anchors.anchors_per_location, 1)
        self.bbox_pred = nn.Conv2d(in_channels, anchors.anchors_per_location * 4, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.01)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        self.anchors = anchors
        self.box_coder = DeltaBoxCoder()
        self.post_nms_top_n, self.train_post_nms_top_n = post_nms_top_n, train_post_nms_top_n
        self.pre_nms_top_n, self.train_pre_nms_top_n = pre_nms_top_n, train_pre_nms_top_n
        self.nms_iou = nms_iou
        self.score_threshold = score_threshold
        self.matcher = matcher
        self.sampler = sampler

    def forward(self, maps: list[Tensor]) -> tuple[list[Float[Tensor, "b _"]], list[Float[Tensor, "b _ 4"]]]:
        """Return for each feature map the objectness logits and the box deltas of its anchors, in their order; float32."""
        logits, box_deltas = [], []
        for x in maps:
            x = self.conv(x)
            logits.append(self.cls_logits(x).permute(0, 2, 3, 1).flatten(1).float())
            deltas = self.bbox_pred(x).unflatten(1, (-1, 4))
            box_deltas.append(deltas.permute(0, 3, 4, 1, 2).flatten(1, 3).float())
        return logits, box_deltas

    def propose(
        self,
        maps: list[Tensor],
        batch: Batch,
        targets: Sequence[Target] | None,
        *,
        generator: torch.Generator | None = None,
    ) -> tuple[Proposals, dict[str, Tensor]]:
        """Return the proposals of each image and, given targets, the losses ``objectness`` and ``proposal_box``."""
        logits, box_deltas = self(maps)
        grids = [(x.shape[-2], x.shape[-1]) for x in maps]
        anchors = self.anchors(grids, batch.padded_hw, maps[0].device)
        proposals = self._select(logits, box_deltas, anchors, batch, learn=targets is not None)
        if targets is None:
            return proposals, {}
        return proposals, self._losses(
            torch.cat(logits, 1), torch.cat(box_deltas, 1), torch.cat(anchors), targets, generator
        )

    @torch.no_grad()
    def _select(
        self, logits: list[Tensor], box_deltas: list[Tensor], anchors: list[Tensor], batch: Batch, *, learn: bool
    ) -> Proposals:
        before_nms = self.train_pre_nms_top_n if learn else self.pre_nms_top_n
        count = self.train_post_nms_top_n if learn else self.post_nms_top_n
        best, boxes, origins, level = self._best(logits, box_deltas, anchors, before_nms)
        found: list[tuple[Tensor, ...]] = []
        for scores, image_boxes, image_anchors, size_hw in zip(best, boxes, origins, batch.sizes_hw, strict=True):
            image_boxes = clip_boxes_to_image(image_boxes, size_hw)
            kept = remove_small_boxes(image_boxes, SMALLEST)
            kept = kept[scores[kept] >= self.score_threshold]
            boxes_of_levels = image_boxes[kept], scores[kept], level[kept]
            kept = kept[batched_nms(*boxes_of_levels, iou_threshold=self.nms_iou, limit=count)]
            found.append((image_boxes[kept], scores[kept], level[kept], image_anchors[kept]))
        return Proposals(*(list(column) for column in zip(*found, strict=True)))

    def rois(
        self, maps: list[Tensor], padded_hw: tuple[int, int], sizes_hw: Int[Tensor, "b 2"]
    ) -> Float[Tensor, "r 5"]:
        """Return the proposals of a whole batch, each after the index of its image.

        Parameters
        ----------
        padded_hw, sizes_hw
            Size of the batch, and of each image without the padding.
        """
        logits, box_deltas = self(maps)
        anchors = self.anchors([(x.shape[-2], x.shape[-1]) for x in maps], padded_hw, maps[0].device)
        best, all_boxes, _, level = self._best(logits, box_deltas, anchors, self.pre_nms_top_n)
        clipped = clip_to_images(all_boxes, sizes_hw[:, None].expand(-1, all_boxes.shape[1], -1))
        large = (clipped[..., 2:] - clipped[..., :2] >= SMALLEST).all(dim=2)
        image_index, place = torch.where(large & (best >= self.score_threshold))
        boxes = clipped[image_index, place]
        kept = nms_per_image(
            boxes,
            best[image_index, place],
            level[place],
            image_index,
            num_images=best.shape[0],
            padded_hw=padded_hw,
            iou_threshold=self.nms_iou,
            limit=self.post_nms_top_n,
        )
        return torch.cat([image_index[kept, None].to(boxes), boxes[kept]], dim=1)

    def _best(
        self, logits: list[Tensor], box_deltas: list[Tensor], anchors: list[Tensor], count: int
    ) -> tuple[Float[Tensor, "b p"], Float[Tensor, "b p 4"], Float[Tensor, "b p 4"], Int[Tensor, "p"]]:
        """The scores, boxes and anchors of the likeliest ``count`` anchors of each map, and their maps."""
        best, boxes, origins = [], [], []
        for level_logits, deltas, image_anchors in zip(logits, box_deltas, anchors, strict=True):
            index = stable_topk(level_logits, count)
            origin = image_anchors[index]
            best.append(level_logits.gather(1, index))
            boxes.append(self.box_coder.decode(deltas.gather(1, index[..., None].expand(-1, -1, 4)), origin))
            origins.append(origin)
        level = torch.cat([torch.full_like(top[0], i, dtype=torch.int64) for i, top in enumerate(best)])
        return torch.cat(best, 1).sigmoid(), torch.cat(boxes, 1), torch.cat(origins, 1), level

    def _losses(
        self,
        logits: Float[Tensor, "b a"],
        box_deltas: Float[Tensor, "b a 4"],
        anchors: Float[Tensor, "a 4"],
        targets: Sequence[Target],
        generator: torch.Generator | None,
    ) -> dict[str, Tensor]:
        # Anchors of all images are numbered through and picked at once: each pick on its own would have a gradient as large
        # as all anchors.
        positives, negatives, target_deltas = [], [], []
        for i, target in enumerate(targets):
            matches = self.matcher(anchors, target.boxes, crowds=target.crowds)
            positive, negative = self.sampler(matches, generator=generator)
            positives.append(positive + i * len(anchors))
            negatives.append(negative + i * len(anchors))
            target_deltas.append(self.box_coder.encode(target.boxes[matches[positive]], anchors[positive]))
        positive, negative = torch.cat(positives), torch.cat(negatives)
        if len(positive) + len(negative) == 0:  # the whole of every image is a crowd
            return {"objectness": zero_loss(self), "proposal_box": zero_loss(self)}
        objectness = logits.flatten()[torch.cat([positive, negative])]
        truth = (torch.arange(len(objectness), device=objectness.device) < len(positive)).to(objectness)
        return {
            "objectness": F.binary_cross_entropy_with_logits(objectness, truth),
            "proposal_box": box_delta_loss(
                box_deltas.flatten(0, 1)[positive], torch.cat(target_deltas), count=len(objectness)
            ),
        }


def conv_fc_head(channels: int, side: int, representation_size: int) -> nn.Sequential:
    """The box head's network of version 2: four convolutions with batch normalisation, one fully connected layer."""
    convolutions = [Conv2dNormActivation(channels, channels, 3, norm_layer=nn.BatchNorm2d) for _ in range(4)]
    for module in nn.Sequential(*convolutions).modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    fully_connected = nn.Linear(channels * side**2, representation_size)
    return nn.Sequential(*convolutions, nn.Flatten(), fully_connected, nn.ReLU(inplace=True))


def faster_rcnn(
    region_features: RoIFeatures,
    proposer: RegionProposalNetwork,
    categories: Categories,
    *,
    box_head_network: nn.Module | None = None,
    representation_size: int = 1024,
    class_indices: Sequence[int] | None = None,
    sampler: BalancedSampler = DEFAULT_SAMPLER,
    postprocess: Postprocess = Postprocess(),
) -> RegionDetector:
    """Faster R-CNN of any backbone.

    Parameters
    ----------
    region_features
        The shared feature maps, and how RoI features are pooled from them.
    proposer
        The region proposal network over the same feature maps.
    box_head_network
        RoI features in, vectors of ``representation_size`` out (default: two fully connected layers).
    class_indices
        Index of each label among the class logits, 0 being background (default: 1, 2, 3 …). See
        :mod:`otus.parts.heads.box_head`.
    sampler
        Draws the regions that the box head is trained on.
    postprocess
        Which detections are reported.

    Examples
    --------
    >>> backbone = torchvision_backbone("resnet18", levels=(4,))
    >>> maps = RoIFeatures(backbone, RoIPooler(7, strides=backbone.strides, method="pool"))
    >>> proposer = RegionProposalNetwork(maps.out_channels, GridAnchorGenerator([[128, 256, 512]]), post_nms_top_n=300)
    >>> detector = faster_rcnn(maps, proposer, Categories(("cat", "dog")))
    >>> detector.predict([{"image": torch.zeros(3, 64, 96)}])[0].size_hw
    (64, 96)
    """
    if box_head_network is None:
        box_head_network = TwoLayerMLP(region_features.out_features, representation_size)
    class_indices = class_indices_of(categories, class_indices, background=True)
    return RegionDetector(
        categories=categories,
        region_features=region_features,
        proposer=proposer,
        box_head=BoxHead(
            box_head_network, in_features=representation_size, class_indices=class_indices, sampler=sampler
        ),
        postprocess=postprocess,
    )


def roi_features_with_fpn(backbone: Backbone, *, norm_layer: type[nn.Module] | None = None) -> RoIFeatures:
    """Build a feature pyramid of 256 channels over a backbone, with RoI align of 7x7."""
    pyramid = FeaturePyramid(backbone.channels, norm_layer=norm_layer)
    return RoIFeatures(backbone, RoIPooler(7, strides=backbone.strides), pyramid=pyramid)


def faster_rcnn_vgg16(
    categories: Categories, *, representation_size: int = 4096, freezing: Freezing = Freezing(level=1)
) -> RegionDetector:
    """The paper's own: VGG-16, one map of stride 16, nine anchors, RoI pool, 300 proposals.

    Departure: no dropout between the fully connected layers.

    Parameters
    ----------
    representation_size
        Features of each of the two fully connected layers.
    freezing
        Which weights of the backbone are not trained (default: as in the paper, the layers before the second pooling).
    """
    backbone = torchvision_backbone("vgg16", levels=(4,), freezing=freezing)
    maps = RoIFeatures(backbone, RoIPooler(7, strides=backbone.strides, method="pool"))
    proposer = RegionProposalNetwork(
        maps.out_channels,
        GridAnchorGenerator([[128, 256, 512]]),
        post_nms_top_n=300,
        pre_nms_top_n=6000,
        train_pre_nms_top_n=12000,
    )
    return faster_rcnn(maps, proposer, categories, representation_size=representation_size)


def faster_rcnn_efficientnet_lite0(
    categories: Categories, *, representation_size: int = 512, freezing: Freezing = Freezing()
) -> RegionDetector:
    """The same form, small, for images of about 320 pixels: one map of stride 16, nine anchors, RoI pool, 300 proposals.

    The backbone's last stages keep stride 16 by dilation.
    """
    backbone = efficientnet_lite0_backbone(levels=(4,), dilated=True, freezing=freezing)
    maps = RoIFeatures(backbone, RoIPooler(7, strides=backbone.strides, method="pool"))
    proposer = RegionProposalNetwork(
        maps.out_channels,
        GridAnchorGenerator([[48, 96, 192]]),
        post_nms_top_n=300,
        pre_nms_top_n=1500,
        train_post_nms_top_n=500,
        train_pre_nms_top_n=1500,
    )
    sampler = BalancedSampler(batch_size_per_image=64, positive_fraction=0.25)
    return faster_rcnn(maps, proposer, categories, representation_size=representation_size, sampler=sampler)


def faster_rcnn_resnet50_fpn(
    categories: Categories,
    *,
    class_indices: Sequence[int] | None = None,
    freezing: Freezing = Freezing(),
) -> RegionDetector:
    """ResNet-50 with a feature pyramid.

    Parameters
    ----------
    class_indices
        See :func:`faster_rcnn`.
    freezing
        Which weights of the backbone are not trained.
    """
    backbone = torchvision_backbone("resnet50", levels=(2, 3, 4, 5), freezing=freezing)
    maps = roi_features_with_fpn(backbone)
    proposer = RegionProposalNetwork(maps.out_channels, GridAnchorGenerator(FPN_ANCHOR_SIZES))
    return faster_rcnn(maps, proposer, categories, class_indices=class_indices)


def faster_rcnn_resnet50_fpn_v2(
    categories: Categories, *, class_indices: Sequence[int] | None = None, freezing: Freezing = Freezing(norms=False)
) -> RegionDetector:
    """Version 2: batch normalisation in pyramid and box head, two convolutions in the proposer, four in the box head."""
    backbone = torchvision_backbone("resnet50", levels=(2, 3, 4, 5), freezing=freezing)
    maps = roi_features_with_fpn(backbone, norm_layer=nn.BatchNorm2d)
    proposer = RegionProposalNetwork(maps.out_channels, GridAnchorGenerator(FPN_ANCHOR_SIZES), conv_depth=2)
    network = conv_fc_head(maps.out_channels, maps.roi_pooler.output_size, 1024)
    return faster_rcnn(maps, proposer, categories, box_head_network=network, class_indices=class_indices)


def faster_rcnn_efficientnet_lite0_fpn(
    categories: Categories,
    *,
    class_indices: Sequence[int] | None = None,
    freezing: Freezing = Freezing(),
) -> RegionDetector:
    """A small one for images of about 320 pixels: EfficientNet-Lite0, a pyramid of strides 8 to 64 and 96 channels.

    Six anchors a location (two sizes an octave), 300 proposals, 512 features a region. Arguments as of
    :func:`faster_rcnn_resnet50_fpn`.
    """
    channels = 96
    backbone = efficientnet_lite0_backbone(levels=(3, 4, 5), freezing=freezing)
    pyramid = FeaturePyramid(backbone.channels, channels)
    pooling = RoIPooler(7, strides=backbone.strides, canonical_size=96)
    proposer = RegionProposalNetwork(
        channels,
        GridAnchorGenerator([(20, 30), (45, 65), (95, 135), (190, 270)]),
        post_nms_top_n=300,
        pre_nms_top_n=600,
        train_post_nms_top_n=300,
        train_pre_nms_top_n=600,
    )
    return faster_rcnn(
        RoIFeatures(backbone, pooling, pyramid=pyramid),
        proposer,
        categories,
        representation_size=512,
        class_indices=class_indices,
        sampler=BalancedSampler(batch_size_per_image=128, positive_fraction=0.25),
        postprocess=Postprocess(score_threshold=0.02, nms_iou=0.45),
    )


def faster_rcnn_mobilenet_v3_large_fpn(
    categories: Categories,
    *,
    class_indices: Sequence[int] | None = None,
    freezing: Freezing = Freezing(level=3),
) -> RegionDetector:
    """MobileNetV3-Large; its last two maps, both of stride 32, and one coarser, with five sizes of anchors on each."""
    maps = _mobilenet_maps(freezing)
    proposer = RegionProposalNetwork(maps.out_channels, GridAnchorGenerator([ANCHOR_SIZES] * 3), score_threshold=0.05)
    return faster_rcnn(maps, proposer, categories, class_indices=class_indices)


def faster_rcnn_mobilenet_v3_large_320_fpn(
    categories: Categories,
    *,
    class_indices: Sequence[int] | None = None,
    freezing: Freezing = Freezing(level=3),
) -> RegionDetector:
    """The same for small images (shorter side 320): 150 proposals."""
    maps = _mobilenet_maps(freezing)
    proposer = RegionProposalNetwork(
        maps.out_channels,
        GridAnchorGenerator([ANCHOR_SIZES] * 3),
        post_nms_top_n=150,
        pre_nms_top_n=150,
        score_threshold=0.05,
    )
    return faster_rcnn(maps, proposer, categories, class_indices=class_indices)


def _mobilenet_maps(freezing: Freezing) -> RoIFeatures:
    backbone = torchvision_backbone("mobilenet_v3_large", levels=("13", "16"), freezing=freezing)
    return roi_features_with_fpn(backbone)
