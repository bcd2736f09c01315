"""The frame of all semantic segmenters: an encoder, a decoder and a head that classifies each pixel.

Shape shorthand: B images, K categories, C channels, H x W the padded batch, h x w the decoder's feature map.

FCN, SegNet, the deconvolution network, U-Net, DeepLabV3 and LR-ASPP are compositions of different encoders, decoders and
heads. If the decoder's feature map is coarser than the image, the logits are upsampled bilinearly. A forward pass returns a
record, :class:`SegmenterStages`, from which losses, predictions, explanations and timings are read.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from otus.data.tensors import TensorSample
from otus.errors import ShapeError
from otus.parts.batching import Batch
from otus.parts.inference_mode import Stopwatch, seeded_generator
from otus.parts.postprocess import Postprocess
from otus.parts.semantic_losses import cross_entropy
from otus.parts.system import BaseSystem, Stages
from otus.parts.tasks import SEMANTIC, Task
from otus.parts.upsampling import Pooled, interpolate
from otus.semantic.encoders import Encoder
from otus.structures import IGNORE, Categories, SemanticScores

Criterion = Callable[[Float[Tensor, "b k h w"], Int[Tensor, "b h w"]], Float[Tensor, ""]]
"""A loss of logits (B, K, H, W) and targets (B, H, W), in which 255 is ignored."""


class Decoder(Protocol):
    """Compute a feature map of ``out_channels`` channels from the levels of an encoder."""

    out_channels: int

    def __call__(self, levels: list[Pooled]) -> Float[Tensor, "b c h w"]: ...


class CoarsestMap(nn.Module):
    """A decoder that returns the coarsest feature map unchanged."""

    def __init__(self, out_channels: int) -> None:
        super().__init__()
        self.out_channels = out_channels

    def forward(self, levels: list[Pooled]) -> Float[Tensor, "b c h w"]:
        """Return the last level's map."""
        return levels[-1].map


@dataclass(kw_only=True)
class SegmenterStages(Stages):
    """The record of a forward pass over a batch.

    Parameters
    ----------
    levels
        Levels of the encoder, fine to coarse; ``features`` are their feature maps.
    decoded
        Feature map of the decoder.
    logits
        (B, K, H, W) logits of each pixel.
    auxiliary
        Logits of the auxiliary head; only if there are targets.
    target
        Class index of each pixel, 255 in the padding; only if there are targets.
    """

    levels: list[Pooled]
    decoded: Float[Tensor, "b c h w"]
    logits: Float[Tensor, "b k h w"]
    auxiliary: Float[Tensor, "b k h w"] | None = None
    target: Int[Tensor, "b h w"] | None = None


class Segmenter(BaseSystem[SegmenterStages, SemanticScores]):
    """A semantic segmenter composed of an encoder, a decoder and a head.

    Parameters
    ----------
    categories
        Names of the class indices, at most 255. Background is a category only if the labels have it as one.
    encoder, decoder
        From images to levels of feature maps, and from these to one feature map.
    head
        From the decoder's feature map to logits (default: a 1x1 convolution).
    auxiliary_head
        A second head on the next to last level, for an auxiliary loss of weight ``auxiliary_weight``; it is not used for
        predictions (default: none).
    criterion
        The loss (default: cross-entropy, the mean over labelled pixels).

    Notes
    -----
    ``losses`` are ``class``, and ``auxiliary`` if there is an auxiliary head.
    """

    def __init__(
        self,
        *,
        categories: Categories,
        encoder: Encoder,
        decoder: Decoder,
        head: nn.Module | None = None,
        auxiliary_head: nn.Module | None = None,
        auxiliary_weight: float = 0.5,
        criterion: Criterion = cross_entropy,
    ) -> None:
        super().__init__()
        if len(categories) > IGNORE:
            raise ShapeError(f"semantic maps: expected at most {IGNORE} categories, got {len(categories)}")
        self.categories = categories
        self.encoder, self.decoder = encoder, decoder
        self.head = head if head is not None else nn.Conv2d(decoder.out_channels, len(categories), 1)
        self.auxiliary_head, self.auxiliary_weight = auxiliary_head, auxiliary_weight
        self.criterion = criterion

    @property
    def task(self) -> Task:
        """Semantic segmentation."""
        return SEMANTIC

    @property
    def heavy_parts(self) -> tuple[str, ...]:
        """Encoder, decoder and head."""
        return ("encoder", "decoder", "head")

    @property
    def min_size(self) -> int:
        """Minimum height and width of an image, that of the encoder."""
        return self.encoder.min_size

    def target(self, sample: TensorSample) -> Int[Tensor, "h w"]:
        """Return the class index of each pixel, 255 where it is ignored."""
        if "semantic" not in sample:
            raise ShapeError(
                f"sample {sample.get('key', '')}: expected a semantic map to train on, got {sorted(sample)}"
            )
        labels = sample["semantic"].as_subclass(Tensor).to(self.device)
        labelled = labels[labels != IGNORE]
        if len(labelled) and not 0 <= int(labelled.min()) <= int(labelled.max()) < len(self.categories):
            raise ShapeError(
                f"sample {sample.get('key', '')}: expected labels from 0 to {len(self.categories) - 1} or {IGNORE}, got "
                f"{int(labelled.min())} to {int(labelled.max())}"
            )
        return labels

    def results(self, record: SegmenterStages) -> list[SemanticScores]:
        """Return the logits of each image, from which ``Preprocess.undo`` computes the semantic map."""
        logits = record.logits.cpu().numpy()
        return [
            SemanticScores(image[:, :height, :width], self.categories)
            for image, (height, width) in zip(logits, record.batch.sizes_hw, strict=True)
        ]

    def tensors(self, record: SegmenterStages) -> dict[str, Tensor]:
        """Return ``logits`` (B, K, H, W)."""
        return {"logits": record.logits}

    def forward(self, images: Float[Tensor, "b 3 h w"], sizes_hw: Int[Tensor, "b 2"]) -> dict[str, Tensor]:
        """Return ``logits`` (B, K, H, W) of the padded images."""
        return self.tensors(self.raw_stages(images, sizes_hw))

    def compute_stages(
        self,
        batch: Batch,
        targets: list[Tensor] | None,
        *,
        postprocess: Postprocess | None,
        generator: torch.Generator | None,
        watch: Stopwatch,
    ) -> SegmenterStages:
        """Run encoder, decoder and head, and compute the losses if there are targets."""
        with watch.time("encoder"):
            levels = self.encoder(batch.images)
        with watch.time("decoder"), seeded_generator(generator):
            decoded = self.decoder(levels)
            logits = interpolate(self.head(decoded).float(), batch.padded_hw, mode="bilinear")
        record = SegmenterStages(
            batch=batch,
            features=[level.map for level in levels],
            milliseconds=watch.milliseconds,
            levels=levels,
            decoded=decoded,
            logits=logits,
        )
        if targets is not None:
            with watch.time("losses"), seeded_generator(generator):
                record.target = _padded(targets, batch)
                record.losses = {"class": self.criterion(logits, record.target)}
                if self.auxiliary_head is not None:
                    auxiliary = self.auxiliary_head(levels[-2].map).float()
                    record.auxiliary = interpolate(auxiliary, batch.padded_hw, mode="bilinear")
                    loss = self.criterion(record.auxiliary, record.target)
                    record.losses["auxiliary"] = self.auxiliary_weight * loss
        return record


def _padded(targets: Sequence[Int[Tensor, "_ _"]], batch: Batch) -> Int[Tensor, "b h w"]:
    """Return the targets padded with 255 to the size of the batch."""
    padded = targets[0].new_full((len(targets), *batch.padded_hw), IGNORE)
    for row, target in zip(padded, targets, strict=True):
        row[: target.shape[0], : target.shape[1]] = target
    return padded
