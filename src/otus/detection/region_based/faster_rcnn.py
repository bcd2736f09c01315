"""Faster R-CNN: proposals are predicted by a region proposal network that shares its feature maps with the box head.

Shape shorthand: B images, A anchors of all feature maps, K anchors per location, P proposals.

Paper: "Faster R-CNN: Towards Real-Time Object Detection with Region Proposal Networks" (Ren, He, Girshick, Sun, NeurIPS
2015, arXiv:1506.01497): section 3 the region proposal network, trained jointly by four losses (section 3.2, "approximate
joint training"). With a feature pyramid: Lin et al., CVPR 2017, arXiv:1612.03144, section 4. Version 2: "Benchmarking
Detection Transfer Learning with Vision Transformers" (Li et al., arXiv:2111.11429).
Reference: torchvision ``models.detection.faster_rcnn`` (BSD-3-Clause), whose layer names and defaults are kept.

Departures from the paper: objectness is one logit instead of a softmax of two; anchors that cross the image's border are
trained on as well; gradients do not flow through the coordinates of proposals; 1,000 proposals in inference (the paper's
300 in the models with a single feature map).
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
"""Anchor sizes of each level of a pyramid, P2 to P6."""
MIN_SIZE = 1e-3
"""Minimum side of a proposal, in pixels."""


class RegionProposalNetwork(nn.Module):
    """Predict objectness and box deltas of K anchors at each location of the feature maps.

    Parameters
    ----------
    in_channels
        Channels of the feature maps.
    anchors
        Generates the anchors of each feature map.
    conv_depth
        Number of 3x3 convolutions before the two outputs.
    post_nms_top_n, pre_nms_top_n
        Maximum number of proposals in inference: per image after NMS, and per feature map before NMS.
    train_post_nms_top_n, train_pre_nms_top_n
        The same in training.
    nms_iou
        A proposal whose IoU with a higher-scoring one from the same feature map exceeds this is removed.
    score_threshold
        Minimum objectness of a proposal.
    matcher, sampler
        Which anchors are positive and negative, and how many of each are sampled.
    """

    trainable = True
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
        """Return the objectness logits and the box deltas of the anchors, per feature map; float32."""
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
        proposals = self._select(logits, box_deltas, anchors, batch, training=targets is not None)
        if targets is None:
            return proposals, {}
        return proposals, self._losses(
            torch.cat(logits, 1), torch.cat(box_deltas, 1), torch.cat(anchors), targets, generator
        )

    @torch.no_grad()
    def _select(
        self, logits: list[Tensor], box_deltas: list[Tensor], anchors: list[Tensor], batch: Batch, *, training: bool
    ) -> Proposals:
        pre_nms_top_n = self.train_pre_nms_top_n if training else self.pre_nms_top_n
        post_nms_top_n = self.train_post_nms_top_n if training else self.post_nms_top_n
        all_scores, all_boxes, all_anchors, level = self._top_k(logits, box_deltas, anchors, pre_nms_top_n)
        proposals: list[tuple[Tensor, ...]] = []
        for scores, boxes, image_anchors, size_hw in zip(
            all_scores, all_boxes, all_anchors, batch.sizes_hw, strict=True
        ):
            boxes = clip_boxes_to_image(boxes, size_hw)
            kept = remove_small_boxes(boxes, MIN_SIZE)
            kept = kept[scores[kept] >= self.score_threshold]
            candidates = boxes[kept], scores[kept], level[kept]
            kept = kept[batched_nms(*candidates, iou_threshold=self.nms_iou, limit=post_nms_top_n)]
            proposals.append((boxes[kept], scores[kept], level[kept], image_anchors[kept]))
        return Proposals(*(list(column) for column in zip(*proposals, strict=True)))

    def rois(
        self, maps: list[Tensor], padded_hw: tuple[int, int], sizes_hw: Int[Tensor, "b 2"]
    ) -> Float[Tensor, "r 5"]:
        """Return the proposals of a batch, each preceded by the index of its image, for export.

        Parameters
        ----------
        maps
            Feature maps.
        padded_hw, sizes_hw
            Height and width of the batch, and of each image without the padding.
        """
        logits, box_deltas = self(maps)
        anchors = self.anchors([(x.shape[-2], x.shape[-1]) for x in maps], padded_hw, maps[0].device)
        scores, all_boxes, _, level = self._top_k(logits, box_deltas, anchors, self.pre_nms_top_n)
        clipped = clip_to_images(all_boxes, sizes_hw[:, None].expand(-1, all_boxes.shape[1], -1))
        large_enough = (clipped[..., 2:] - clipped[..., :2] >= MIN_SIZE).all(dim=2)
        image_index, index = torch.where(large_enough & (scores >= self.score_threshold))
        boxes = clipped[image_index, index]
        kept = nms_per_image(
            boxes,
            scores[image_index, index],
            level[index],
            image_index,
            num_images=scores.shape[0],
            padded_hw=padded_hw,
            iou_threshold=self.nms_iou,
            limit=self.post_nms_top_n,
        )
        return torch.cat([image_index[kept, None].to(boxes), boxes[kept]], dim=1)

    def _top_k(
        self, logits: list[Tensor], box_deltas: list[Tensor], anchors: list[Tensor], count: int
    ) -> tuple[Float[Tensor, "b p"], Float[Tensor, "b p 4"], Float[Tensor, "b p 4"], Int[Tensor, "p"]]:
        """Return the ``count`` highest-scoring anchors of each feature map: scores, boxes, anchors, and indices of maps."""
        top_logits, top_boxes, top_anchors = [], [], []
        for level_logits, deltas, level_anchors in zip(logits, box_deltas, anchors, strict=True):
            index = stable_topk(level_logits, count)
            chosen_anchors = level_anchors[index]
            chosen_deltas = deltas.gather(1, index[..., None].expand(-1, -1, 4))
            top_logits.append(level_logits.gather(1, index))
            top_boxes.append(self.box_coder.decode(chosen_deltas, chosen_anchors))
            top_anchors.append(chosen_anchors)
        level = torch.cat([torch.full_like(x[0], i, dtype=torch.int64) for i, x in enumerate(top_logits)])
        return torch.cat(top_logits, 1).sigmoid(), torch.cat(top_boxes, 1), torch.cat(top_anchors, 1), level

    def _losses(
        self,
        logits: Float[Tensor, "b a"],
        box_deltas: Float[Tensor, "b a 4"],
        anchors: Float[Tensor, "a 4"],
        targets: Sequence[Target],
        generator: torch.Generator | None,
    ) -> dict[str, Tensor]:
        # Anchors of all images are indexed at once: each indexing on its own would need a gradient tensor of all anchors.
        positives, negatives, target_deltas = [], [], []
        for i, target in enumerate(targets):
            matches = self.matcher(anchors, target.boxes, crowds=target.crowds)
            positive, negative = self.sampler(matches, generator=generator)
            positives.append(positive + i * len(anchors))
            negatives.append(negative + i * len(anchors))
            target_deltas.append(self.box_coder.encode(target.boxes[matches[positive]], anchors[positive]))
        positive, negative = torch.cat(positives), torch.cat(negatives)
        if len(positive) + len(negative) == 0:  # crowds cover every image completely
            return {"objectness": zero_loss(self), "proposal_box": zero_loss(self)}
        objectness = logits.flatten()[torch.cat([positive, negative])]
        is_positive = (torch.arange(len(objectness), device=objectness.device) < len(positive)).to(objectness)
        return {
            "objectness": F.binary_cross_entropy_with_logits(objectness, is_positive),
            "proposal_box": box_delta_loss(
                box_deltas.flatten(0, 1)[positive], torch.cat(target_deltas), count=len(objectness)
            ),
        }


def conv_fc_head(channels: int, side: int, representation_size: int) -> nn.Sequential:
    """Build the box head's network of version 2: four convolutions with batch norm and one fully connected layer."""
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
    """Build Faster R-CNN over any backbone.

    Parameters
    ----------
    region_features
        Computes the shared feature maps and pools RoI features from them.
    proposer
        The region proposal network over the same feature maps.
    categories
        Names of the labels.
    box_head_network
        Maps RoI features to vectors of ``representation_size`` (default: two fully connected layers).
    representation_size
        Length of the vectors from which classes and boxes are predicted.
    class_indices
        Index of each label among the class logits, 0 being background (default: 1, 2, 3 …). See
        :mod:`otus.parts.heads.box_head`.
    sampler
        Samples the regions that the box head is trained on.
    postprocess
        Score thresholds, NMS and limit of the detections.

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
    """Build the paper's model: VGG-16, a feature map of stride 16, 9 anchors per location, RoI pooling, 300 proposals.

    Departure: no dropout between the fully connected layers.

    Parameters
    ----------
    categories
        Names of the labels.
    representation_size
        Output features of each of the two fully connected layers.
    freezing
        Which weights of the backbone are frozen (default: as in the paper, the layers before the second pooling).
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
    """Build a small Faster R-CNN over EfficientNet-Lite0 with one feature map, for images of about 320 pixels.

    The feature map has stride 16, by dilation of the backbone's last stages; as :func:`faster_rcnn_vgg16`, it has 9 anchors
    per location, RoI pooling and 300 proposals.
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
    """Build Faster R-CNN over ResNet-50 with a feature pyramid.

    Parameters
    ----------
    categories
        Names of the labels.
    class_indices
        See :func:`faster_rcnn`.
    freezing
        Which weights of the backbone are frozen.
    """
    backbone = torchvision_backbone("resnet50", levels=(2, 3, 4, 5), freezing=freezing)
    maps = roi_features_with_fpn(backbone)
    proposer = RegionProposalNetwork(maps.out_channels, GridAnchorGenerator(FPN_ANCHOR_SIZES))
    return faster_rcnn(maps, proposer, categories, class_indices=class_indices)


def faster_rcnn_resnet50_fpn_v2(
    categories: Categories, *, class_indices: Sequence[int] | None = None, freezing: Freezing = Freezing(norms=False)
) -> RegionDetector:
    """Build version 2: batch norm in pyramid and box head, two convolutions in the RPN, four in the box head."""
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
    """Build a small Faster R-CNN over EfficientNet-Lite0 with a feature pyramid, for images of about 320 pixels.

    The pyramid has strides 8 to 64 and 96 channels. There are 6 anchors per location (two sizes per octave), 300 proposals
    and a representation size of 512. See :func:`faster_rcnn_resnet50_fpn` for the parameters.
    """
    channels = 96
    backbone = efficientnet_lite0_backbone(levels=(3, 4, 5), freezing=freezing)
    pyramid = FeaturePyramid(backbone.channels, channels)
    roi_pooler = RoIPooler(7, strides=backbone.strides, canonical_size=96)
    proposer = RegionProposalNetwork(
        channels,
        GridAnchorGenerator([(20, 30), (45, 65), (95, 135), (190, 270)]),
        post_nms_top_n=300,
        pre_nms_top_n=600,
        train_post_nms_top_n=300,
        train_pre_nms_top_n=600,
    )
    return faster_rcnn(
        RoIFeatures(backbone, roi_pooler, pyramid=pyramid),
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
    """Build Faster R-CNN over MobileNetV3-Large: two feature maps of stride 32 and a coarser one, five anchor sizes each."""
    maps = _mobilenet_roi_features(freezing)
    proposer = RegionProposalNetwork(maps.out_channels, GridAnchorGenerator([ANCHOR_SIZES] * 3), score_threshold=0.05)
    return faster_rcnn(maps, proposer, categories, class_indices=class_indices)


def faster_rcnn_mobilenet_v3_large_320_fpn(
    categories: Categories,
    *,
    class_indices: Sequence[int] | None = None,
    freezing: Freezing = Freezing(level=3),
) -> RegionDetector:
    """Build :func:`faster_rcnn_mobilenet_v3_large_fpn` for small images (shorter side 320), with 150 proposals."""
    maps = _mobilenet_roi_features(freezing)
    proposer = RegionProposalNetwork(
        maps.out_channels,
        GridAnchorGenerator([ANCHOR_SIZES] * 3),
        post_nms_top_n=150,
        pre_nms_top_n=150,
        score_threshold=0.05,
    )
    return faster_rcnn(maps, proposer, categories, class_indices=class_indices)


def _mobilenet_roi_features(freezing: Freezing) -> RoIFeatures:
    backbone = torchvision_backbone("mobilenet_v3_large", levels=("13", "16"), freezing=freezing)
    return roi_features_with_fpn(backbone)
