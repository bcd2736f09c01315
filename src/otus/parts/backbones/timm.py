"""Backbones of timm, where it is installed: any of its models that can be built with ``features_only``.

Code relied on: timm (github.com/huggingface/pytorch-image-models), Apache-2.0; the licences of its models' weights differ.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from otus.errors import MissingExtraError, UsageError
from otus.parts.backbones.backbone import Backbone, load_classifier_weights


class TimmBackbone(Backbone):
    """A ``features_only`` model of timm as a backbone; built by :func:`timm_backbone`."""

    def __init__(self, model: nn.Module, *, channels: Sequence[int], strides: Sequence[int]) -> None:
        super().__init__()
        self.model = model
        self.channels = tuple(channels)
        self.strides = tuple(strides)
        self.minimum_side = max(self.strides)

    def maps(self, images: Float[Tensor, "b 3 h w"]) -> list[Tensor]:
        channels_last = getattr(self.model, "output_fmt", None) == "NHWC"
        return [x.permute(0, 3, 1, 2) if channels_last else x for x in self.model(images)]


def timm_backbone(name: str, *, levels: Sequence[int], weights: Mapping[str, Tensor] | None = None) -> TimmBackbone:
    """Build a backbone from a model of timm. Nothing is downloaded.

    Parameters
    ----------
    name
        timm's name of the model, e.g. ``convnext_tiny``. Models for a single image size (most vision transformers) remain
        limited to it.
    levels
        The feature maps to return, fine to coarse: l for the last one of stride 2**l.
    weights
        State dict of the ``features_only`` model (default: random initialisation).

    Raises
    ------
    MissingExtraError
        If timm is not installed.
    UsageError
        If timm has no such model, or the model has no such level.
    CheckpointError
        If the weights do not fit.
    """
    try:
        import timm
    except ImportError:
        raise MissingExtraError("timm", "timm", f"the backbone {name!r}") from None
    try:
        with torch.device("meta"):  # only its strides are needed
            feature_info: Any = timm.create_model(name, features_only=True).feature_info
    except (RuntimeError, AttributeError) as error:
        raise UsageError(f"backbone {name!r}: timm cannot build it with features_only: {error}") from None
    index = {reduction: i for i, reduction in enumerate(feature_info.reduction())}
    if list(levels) != sorted(set(levels)) or any(2**level not in index for level in levels) or not levels:
        known = ", ".join(str(reduction.bit_length() - 1) for reduction in index)
        raise UsageError(f"backbone {name!r}: levels {tuple(levels)}: expected some of {known}, fine to coarse")
    model = timm.create_model(name, features_only=True, out_indices=tuple(index[2**level] for level in levels))
    feature_info = model.feature_info
    backbone = TimmBackbone(model, channels=feature_info.channels(), strides=feature_info.reduction())
    if weights is not None:
        load_classifier_weights(backbone.model, weights, source=f"weights of {name}")
    return backbone
