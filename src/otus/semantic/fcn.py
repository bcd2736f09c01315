"""FCN-8s: a 1x1 classifier on each of three feature maps, their scores upsampled and summed from coarse to fine.

Shape shorthand: B images, C categories, H x W the batch, h x w a feature map.

Paper: "Fully Convolutional Networks for Semantic Segmentation" (Long, Shelhamer, Darrell, CVPR 2015, arXiv:1411.4038),
section 4.2 and figure 3. Official code: github.com/shelhamer/fcn.berkeleyvision.org (BSD).

Departures: any backbone in the place of VGG-16 with its fully connected layers as convolutions; upsampling is bilinear and
not learned (the paper's transposed convolutions start as that, and its last one stays so); everything is trained at once; the
loss is the mean over the labelled pixels, not their sum.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from otus.data.tensors import TensorSample
from otus.errors import ShapeError
from otus.parts.backbones import Backbone, Freezing, efficientnet_lite0_backbone
from otus.parts.batching import Batch
from otus.parts.inference_mode import Stopwatch
from otus.parts.postprocess import Postprocess
from otus.parts.system import BaseSystem, Stages
from otus.parts.tasks import SEMANTIC, Task
from otus.structures import IGNORE, Categories, SemanticMap


@dataclass(kw_only=True)
class SegmenterStages(Stages):
    """The record of one pass: ``logits`` of the padded batch, and of a pass that learns its ``target``, 255 in the padding."""

    logits: Float[Tensor, "b c h w"]
    target: Int[Tensor, "b h w"] | None = None


class FullyConvolutionalNetwork(BaseSystem[SegmenterStages, SemanticMap]):
    """A backbone, and a classifier of every location of its feature maps.

    Parameters
    ----------
    backbone
        Its maps are used from the coarsest to the finest; each classifies, and adds detail.
    categories
        What the labels mean, at most 255. Background is one of them only where the labels say so.

    Notes
    -----
    ``losses`` are ``class``: cross-entropy, the mean over pixels that are not 255.
    """

    def __init__(self, backbone: Backbone, categories: Categories) -> None:
        super().__init__()
        if len(categories) > IGNORE:
            raise ShapeError(f"semantic maps: expected at most {IGNORE} categories, got {len(categories)}")
        self.categories = categories
        self.backbone = backbone
        self.classifiers = nn.ModuleList(nn.Conv2d(width, len(categories), 1) for width in backbone.channels)
        for classifier in self.classifiers:  # as the paper: the finer maps begin by adding nothing
            nn.init.zeros_(classifier.weight)  # type: ignore[arg-type]
            nn.init.zeros_(classifier.bias)  # type: ignore[arg-type]

    @property
    def task(self) -> Task:
        """Semantic segmentation."""
        return SEMANTIC

    @property
    def min_size(self) -> int:
        """As of the backbone."""
        return self.backbone.min_size

    def target(self, sample: TensorSample) -> Int[Tensor, "h w"]:
        """Return the label of each pixel."""
        if "semantic" not in sample:
            raise ShapeError(f"sample {sample.get('key', '')}: expected a semantic map to learn, got {sorted(sample)}")
        return sample["semantic"].as_subclass(Tensor).to(self.device)

    def results(self, record: SegmenterStages) -> list[SemanticMap]:
        """Return the most likely category of each pixel."""
        labels = record.logits.argmax(dim=1).cpu().numpy()
        return [
            SemanticMap(image[:height, :width], self.categories)
            for image, (height, width) in zip(labels, record.batch.sizes_hw, strict=True)
        ]

    def tensors(self, record: SegmenterStages) -> dict[str, Tensor]:
        """Return ``logits`` (B, C, H, W)."""
        return {"logits": record.logits}

    def compute_stages(
        self,
        batch: Batch,
        targets: list[Tensor] | None,
        *,
        postprocess: Postprocess | None,
        generator: torch.Generator | None,
        watch: Stopwatch,
    ) -> SegmenterStages:
        """Compute feature maps, and the class scores of every pixel."""
        with watch.time("maps"):
            features = self.backbone(batch.images)
        with watch.time("head"):
            scores = [classifier(x).float() for classifier, x in zip(self.classifiers, features, strict=True)]
            logits = scores[-1]
            for finer in scores[-2::-1]:
                logits = finer + _upsampled(logits, finer.shape[-2:])
            logits = _upsampled(logits, batch.padded_hw)
        record = SegmenterStages(batch=batch, features=features, milliseconds=watch.milliseconds, logits=logits)
        if targets is not None:
            with watch.time("losses"):
                record.target = _padded(targets, batch)
                known = (record.target != IGNORE).sum().clamp(min=1)
                total = F.cross_entropy(logits, record.target, ignore_index=IGNORE, reduction="sum")
                record.losses = {"class": total / known}
        return record


def _upsampled(scores: Float[Tensor, "b c h w"], size_hw: tuple[int, ...]) -> Float[Tensor, "b c h2 w2"]:
    return F.interpolate(scores, size_hw, mode="bilinear", align_corners=False)


def _padded(targets: list[Tensor], batch: Batch) -> Int[Tensor, "b h w"]:
    padded = targets[0].new_full((len(targets), *batch.padded_hw), IGNORE)
    for row, target in zip(padded, targets, strict=True):
        row[: target.shape[0], : target.shape[1]] = target
    return padded


def fcn_efficientnet_lite0(
    categories: Categories,
    *,
    freezing: Freezing = Freezing(),
) -> FullyConvolutionalNetwork:
    """Build a small one: FCN-8s over EfficientNet-Lite0, feature maps of strides 8, 16 and 32.

    Parameters
    ----------
    categories
        What the labels mean.
    freezing
        What of the backbone does not learn.
    """
    backbone = efficientnet_lite0_backbone(levels=(3, 4, 5), freezing=freezing)
    return FullyConvolutionalNetwork(backbone, categories)
