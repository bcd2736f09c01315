"""Starting a model's backbone from ImageNet, where the weights are at hand."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from otus.parts.backbones import LayeredBackbone, efficientnet_lite0_backbone, imagenet_efficientnet_lite0
from otus.structures import Categories
from otus.zoo.checkpoint import CheckpointHeader, save_checkpoint
from otus.zoo.models import build_model, model_entry


def imagenet_weights_file(
    model: str, categories: Categories, path: Path, *, seed: int = 0, arguments: Mapping[str, Any] | None = None
) -> Path | None:
    """Write a model with a backbone that knows ImageNet and heads that know nothing, to give to ``train`` as ``weights``.

    None where there are no weights for its backbone: it is no EfficientNet-Lite0.

    Raises
    ------
    MissingExtraError
        If the package that brings the weights is not installed.
    """
    torch.manual_seed(seed)
    system = build_model(model, categories, arguments)
    whole = efficientnet_lite0_backbone(levels=("head",))
    backbones = [part for part in system.modules() if isinstance(part, LayeredBackbone)]
    if not backbones or not all(_same_layers(backbone, whole.state_dict()) for backbone in backbones):
        return None
    known = efficientnet_lite0_backbone(levels=("head",), weights=imagenet_efficientnet_lite0()).state_dict()
    for backbone in backbones:
        backbone.load_state_dict({name: known[name] for name in backbone.state_dict()})
    entry = model_entry(model)
    header = CheckpointHeader(
        model, dict(arguments or {}), categories, entry.preprocess.to_dict(), licence="Apache-2.0"
    )
    save_checkpoint(path, system.state_dict(), header)
    return path


def _same_layers(backbone: nn.Module, known: dict[str, Any]) -> bool:
    own = backbone.state_dict()
    return all(name in known and known[name].shape == tensor.shape for name, tensor in own.items())
