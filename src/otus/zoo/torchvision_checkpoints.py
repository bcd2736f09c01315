"""Reader of torchvision's detection checkpoints: Faster, Mask and Keypoint R-CNN.

Layers keep torchvision's names inside Otus's systems, so a table of prefixes translates. Both generations of keys are read
(0.13 wrapped the convolutions of proposer, pyramid and mask head: ``conv.weight`` became ``conv.0.0.weight``).

Two things are not in the state and come from elsewhere:

- the eps of the norms. The first ResNet-50 checkpoints were made when torchvision's frozen norms had none, and later
  versions set it to 0.0 for just these files; everything else runs with 1e-5. The file's hash decides, never its name.
- the categories. 91 classes are COCO's, numbered by its ids with ten gaps; any other number is the trainer's own.
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
"""Tensors by which a region-based detector is recognised."""

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
    """A translated checkpoint.

    ``state`` has the keys of a :class:`~otus.detection.region_based.region_detector.RegionDetector`; ``arguments`` are
    what the builder needs for it, as JSON: ``class_indices``, the class index of each label, and of ``freezing`` the
    ``norm_eps`` where the backbone's norms are frozen.
    """

    state: dict[str, Tensor]
    arguments: dict[str, Any]


def is_torchvision_detector(state: Mapping[str, Any]) -> bool:
    """Whether the keys are those of a region-based detector of torchvision."""
    return SIGNATURE_KEYS[0] in state


def read_torchvision_detector(state: Mapping[str, Tensor], *, sha256: str | None = None) -> TorchvisionCheckpoint:
    """Translate a state dict as torchvision's detectors have it.

    Parameters
    ----------
    state
        Tensors by name.
    sha256
        Hash of the file that it was read from; without it none of the files that run with eps 0.0.

    Raises
    ------
    CheckpointError
        If it is the state of something else.
    """
    if not is_torchvision_detector(state):
        raise CheckpointError(
            "not a torchvision region-based detector: expected the tensor 'roi_heads.box_predictor.cls_score.weight', "
            f"got {len(state)} others such as {', '.join(list(state)[:3])}"
        )
    num_classes = state[SIGNATURE_KEYS[0]].shape[0]
    arguments: dict[str, Any] = {"class_indices": list(COCO_IDS) if num_classes == 91 else list(range(1, num_classes))}
    if "backbone.fpn.inner_blocks.0.1.weight" not in state:  # version 2 has live norms, in the pyramid too
        made_without = sha256 is not None and sha256.startswith(ZERO_EPS_SHA256)
        arguments["freezing"] = {"norm_eps": 0.0 if made_without else 1e-5}
    return TorchvisionCheckpoint({_translate(key): tensor for key, tensor in state.items()}, arguments)


def _translate(key: str) -> str:
    for theirs, ours in _PREFIXES:
        if key.startswith(theirs):
            key = ours + key.removeprefix(theirs)
            break
    for pattern, replacement in _OLD_KEYS:
        key = pattern.sub(replacement, key)
    return _OLD_MASK_KEY.sub(lambda found: f"mask_head.convs.{int(found[1]) - 1}.0.{found[2]}", key)
