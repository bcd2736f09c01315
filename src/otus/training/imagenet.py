"""Initial weights of a model with a backbone pretrained on ImageNet."""

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
    """Write a checkpoint of a model with ImageNet weights in its backbone and random weights in its heads.

    Parameters
    ----------
    model, categories, arguments
        Name of the model in the zoo, its categories, and arguments of its builder.
    path
        The file to write, for ``otus.train(weights=…)``.
    seed
        Seed of the random weights.

    Returns
    -------
    Path or None
        ``path``, or None if there are no ImageNet weights for the backbone: it is not EfficientNet-Lite0.

    Raises
    ------
    MissingExtraError
        If the package with the ImageNet weights is not installed.
    """
    torch.manual_seed(seed)
    system = build_model(model, categories, arguments)
    full_backbone = efficientnet_lite0_backbone(levels=("head",))
    backbones = [module for module in system.modules() if isinstance(module, LayeredBackbone)]
    if not backbones or not all(_has_same_layers(backbone, full_backbone.state_dict()) for backbone in backbones):
        return None
    pretrained = efficientnet_lite0_backbone(levels=("head",), weights=imagenet_efficientnet_lite0()).state_dict()
    for backbone in backbones:
        backbone.load_state_dict({name: pretrained[name] for name in backbone.state_dict()})
    entry = model_entry(model)
    header = CheckpointHeader(
        model, dict(arguments or {}), categories, entry.preprocess.to_dict(), licence="Apache-2.0"
    )
    save_checkpoint(path, system.state_dict(), header)
    return path


def _has_same_layers(backbone: nn.Module, state: dict[str, Any]) -> bool:
    """Return whether all tensors of a backbone are in the state, with the same shapes."""
    return all(name in state and state[name].shape == tensor.shape for name, tensor in backbone.state_dict().items())
