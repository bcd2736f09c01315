"""Convert torchvision's detection checkpoints: Faster, Mask and Keypoint R-CNN.

Otus uses torchvision's names of layers within its modules, so a table of prefixes suffices. The keys of torchvision before
and after 0.13 are supported (0.13 wrapped the convolutions of proposer, pyramid and mask head: ``conv.weight`` became
``conv.0.0.weight``).

Two properties are not in the state:

- the eps of the batch norms. The first ResNet-50 checkpoints were trained when torchvision's frozen norms had no eps, and
  later versions set it to 0.0 for these files only; all others use 1e-5. The files are recognised by their hash.
- the categories. A model with 91 classes has COCO's category ids (with ten gaps) as class indices; with any other number,
  class indices 1, 2 … are assumed.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from otus.errors import CheckpointError
from otus.structures.categories import COCO_IDS

ZERO_EPS_SHA256 = ("258fb6c6", "bf2d0c1e", "fc266e95")
"""First digits of the SHA-256 of the ResNet-50 checkpoints (Faster, Mask, Keypoint R-CNN, COCO_V1) to run with eps 0.0."""
SIGNATURE_KEYS = ("roi_heads.box_predictor.cls_score.weight",)
"""A state with these tensors is a region-based detector."""

_PREFIXES = (
    ("backbone.body.", "region_features.backbone."),
    ("backbone.fpn.", "region_features.pyramid."),
    ("rpn.head.", "proposer."),
    ("roi_heads.box_head.", "box_head.network."),
    ("roi_heads.box_predictor.", "box_head."),
    ("roi_heads.mask_head.", "mask_head.convs."),
    ("roi_heads.mask_predictor.", "mask_head."),
    ("roi_heads.keypoint_head.", "keypoint_head.convs."),
    ("roi_heads.keypoint_predictor.", "keypoint_head."),
)
_OLD_KEYS = (
    (re.compile(r"^(proposer\.conv)\.(weight|bias)$"), r"\1.0.0.\2"),
    (re.compile(r"^(region_features\.pyramid\.(?:inner|layer)_blocks\.\d+)\.(weight|bias)$"), r"\1.0.\2"),
)
_OLD_MASK_KEY = re.compile(r"^mask_head\.convs\.mask_fcn(\d+)\.(weight|bias)$")


@dataclass(frozen=True)
class TorchvisionCheckpoint:
    """A converted checkpoint.

    Parameters
    ----------
    state
        Tensors of a :class:`~otus.detection.region_based.region_detector.RegionDetector`.
    arguments
        Arguments of the builder, as JSON: ``class_indices`` (the class index of each category), and ``freezing`` with
        ``norm_eps`` if the backbone's norms are frozen.
    """

    state: dict[str, Tensor]
    arguments: dict[str, Any]


def is_torchvision_detector(state: Mapping[str, Any]) -> bool:
    """Return whether the keys are those of a region-based detector of torchvision."""
    return SIGNATURE_KEYS[0] in state


def read_torchvision_detector(state: Mapping[str, Tensor], *, sha256: str | None = None) -> TorchvisionCheckpoint:
    """Convert a state dict of a region-based detector of torchvision.

    Parameters
    ----------
    state
        Tensors by name.
    sha256
        Hash of the file, to recognise those that need eps 0.0 (default: None, eps 1e-5).

    Raises
    ------
    CheckpointError
        If it is the state of another model.
    """
    if not is_torchvision_detector(state):
        raise CheckpointError(
            "not a torchvision region-based detector: expected the tensor 'roi_heads.box_predictor.cls_score.weight', "
            f"got {len(state)} others such as {', '.join(list(state)[:3])}"
        )
    num_classes = state[SIGNATURE_KEYS[0]].shape[0]
    arguments: dict[str, Any] = {"class_indices": list(COCO_IDS) if num_classes == 91 else list(range(1, num_classes))}
    if "backbone.fpn.inner_blocks.0.1.weight" not in state:  # the norms of version 2 are not frozen
        has_zero_eps = sha256 is not None and sha256.startswith(ZERO_EPS_SHA256)
        arguments["freezing"] = {"norm_eps": 0.0 if has_zero_eps else 1e-5}
    return TorchvisionCheckpoint({_convert_key(key): tensor for key, tensor in state.items()}, arguments)


def _convert_key(key: str) -> str:
    """Return the name of a tensor in Otus."""
    for prefix, replacement in _PREFIXES:
        if key.startswith(prefix):
            key = replacement + key.removeprefix(prefix)
            break
    for pattern, replacement in _OLD_KEYS:
        key = pattern.sub(replacement, key)
    return _OLD_MASK_KEY.sub(lambda match: f"mask_head.convs.{int(match[1]) - 1}.0.{match[2]}", key)
