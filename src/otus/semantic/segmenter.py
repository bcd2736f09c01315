"""The frame of every network that labels pixels: an encoder goes down, a decoder comes up, a head classifies.

Shape shorthand: B images, K categories, C channels, H x W the batch, h x w the map that the decoder leaves.

FCN, SegNet, the deconvolution network, U-Net, DeepLabV3 and LR-ASPP fill it with different parts; where the decoder's map is
coarser than the image, its scores are interpolated. One pass leaves a record, :class:`SegmenterStages`, and losses,
predictions, explanations and timings are read from it.
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
"""A loss of scores (B, K, H, W) and labels (B, H, W), 255 where nothing is learned."""


class Decoder(Protocol):
    """From the levels of an encoder to one map of ``out_channels`` channels."""

    out_channels: int

    def __call__(self, levels: list[Pooled]) -> Float[Tensor, "b c h w"]: ...


class CoarsestMap(nn.Module):
    """The decoder that does nothing: the coarsest map as it is."""

    def __init__(self, out_channels: int) -> None:
        super().__init__()
        self.out_channels = out_channels

    def forward(self, levels: list[Pooled]) -> Float[Tensor, "b c h w"]:
        """Return the last level's map."""
        return levels[-1].map


@dataclass(kw_only=True)
class SegmenterStages(Stages):
    """The record of one pass over a batch.

    Parameters
    ----------
    levels
        Of the encoder, fine to coarse; ``features`` are their maps.
    decoded
        The decoder's map.
    logits
        (B, K, H, W) scores of each pixel.
    auxiliary
        Those of the auxiliary head, of a pass that learns.
    target
        Label of each pixel, 255 in the padding, of a pass that learns.
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
        What the labels mean, at most 255. Background is one of them only where the labels say so.
    encoder, decoder
        Down and up.
    head
        From the decoder's map to scores (default: a 1x1 convolution).
    auxiliary_head
        A second classifier, of the level before the last, that learns too, with ``auxiliary_weight``; nothing asks it when
        the system predicts.
    criterion
        The loss (default: cross-entropy, the mean over labelled pixels).

    Notes
    -----
    ``losses`` are ``class``, and ``auxiliary`` where there is that head.
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
    def min_size(self) -> int:
        """As of the encoder."""
        return self.encoder.min_size

    def target(self, sample: TensorSample) -> Int[Tensor, "h w"]:
        """Return the label of each pixel."""
        if "semantic" not in sample:
            raise ShapeError(f"sample {sample.get('key', '')}: expected a semantic map to learn, got {sorted(sample)}")
        labels = sample["semantic"].as_subclass(Tensor).to(self.device)
        known = labels[labels != IGNORE]
        if len(known) and not 0 <= int(known.min()) <= int(known.max()) < len(self.categories):
            raise ShapeError(
                f"sample {sample.get('key', '')}: expected labels from 0 to {len(self.categories) - 1} or {IGNORE}, got "
                f"{int(known.min())} to {int(known.max())}"
            )
        return labels

    def results(self, record: SegmenterStages) -> list[SemanticScores]:
        """Return the logits of each image; its semantic map is ``resized(size_hw)`` of them, as ``Preprocess.undo`` does."""
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
        """Go down, come up, classify."""
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
                    scores = self.auxiliary_head(levels[-2].map).float()
                    record.auxiliary = interpolate(scores, batch.padded_hw, mode="bilinear")
                    loss = self.criterion(record.auxiliary, record.target)
                    record.losses["auxiliary"] = self.auxiliary_weight * loss
        return record


def _padded(targets: Sequence[Int[Tensor, "_ _"]], batch: Batch) -> Int[Tensor, "b h w"]:
    padded = targets[0].new_full((len(targets), *batch.padded_hw), IGNORE)
    for row, target in zip(padded, targets, strict=True):
        row[: target.shape[0], : target.shape[1]] = target
    return padded
