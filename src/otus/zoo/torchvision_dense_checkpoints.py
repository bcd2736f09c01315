"""Reader of torchvision's dense detectors' checkpoints: RetinaNet, FCOS, SSD, SSDLite.

Layers keep torchvision's names inside Otus's systems, so a table of prefixes translates; FCOS numbers the layers of its
towers one by one where RetinaNet has them in threes. Both generations of RetinaNet's keys are read (0.13 wrapped the
convolutions of pyramid and head). Categories and eps as in :mod:`otus.zoo.torchvision_checkpoints`.
"""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from otus.errors import CheckpointError
from otus.structures.categories import COCO_IDS
from otus.zoo.torchvision_checkpoints import TorchvisionCheckpoint

DENSE_ZERO_EPS_SHA256 = ("eeacb38b",)
"""First digits of the SHA-256 of the checkpoints (RetinaNet of ResNet-50, COCO_V1) to run with eps 0.0."""

_PREFIXES = (
    ("backbone.body.", "features.backbone."),
    ("backbone.fpn.extra_blocks.", "features.pyramid.extra_levels."),
    ("backbone.fpn.", "features.pyramid."),
    ("backbone.features.", "features.backbone."),
    ("backbone.", "features."),
    ("head.classification_head.module_list.", "head.classification."),
    ("head.regression_head.module_list.", "head.regression."),
    ("head.classification_head.", "head.classification."),
    ("head.regression_head.", "head.regression."),
)
_OLD_PYRAMID_KEY = re.compile(r"^(features\.pyramid\.(?:inner|layer)_blocks\.\d+)\.(weight|bias)$")
_FLAT_TOWER_KEY = re.compile(r"^(head\.(?:classification|regression)\.conv)\.(\d+)\.(weight|bias)$")
# Where the two answers stand: of towers, of plain convolutions for each map, of SSDLite's pairs of them.
_ANSWERS = (
    ("head.classification_head.cls_logits.bias", "head.regression_head.bbox_reg.bias"),
    ("head.classification_head.module_list.0.bias", "head.regression_head.module_list.0.bias"),
    ("head.classification_head.module_list.0.1.bias", "head.regression_head.module_list.0.1.bias"),
)
SIGNATURE_KEYS = tuple(name for answers in _ANSWERS for name in answers)
"""Tensors by which a dense detector is recognised, two of them."""


def is_torchvision_dense_detector(state: Mapping[str, Any]) -> bool:
    """Whether the keys are those of a dense detector of torchvision."""
    return any(classes in state and boxes in state for classes, boxes in _ANSWERS)


def read_torchvision_dense_detector(state: Mapping[str, Tensor], *, sha256: str | None = None) -> TorchvisionCheckpoint:
    """Translate a state dict to the keys of a :class:`~otus.detection.single_stage.dense_detector.DenseDetector`.

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
    answers = [(state[classes], state[boxes]) for classes, boxes in _ANSWERS if classes in state and boxes in state]
    if not answers:
        raise CheckpointError(
            f"not a torchvision dense detector: expected the tensors {' and '.join(map(repr, _ANSWERS[0]))}, or SSD's, "
            f"got {len(state)} others such as {', '.join(list(state)[:3])}"
        )
    classes, boxes = answers[0]
    num_classes = classes.shape[0] // (boxes.shape[0] // 4)
    arguments: dict[str, Any] = {"class_indices": list(COCO_IDS) if num_classes == 91 else list(range(1, num_classes))}
    is_fcos = "head.regression_head.bbox_ctrness.weight" in state
    # Version 2 of RetinaNet, which alone has norms without biases before them in its towers, has live norms in the backbone.
    if "backbone.body.conv1.weight" in state and (is_fcos or "head.classification_head.conv.0.1.weight" not in state):
        made_without = sha256 is not None and sha256.startswith(DENSE_ZERO_EPS_SHA256)
        arguments["freezing"] = {"norm_eps": 0.0 if made_without else 1e-5}
    # Convolution, norm, ReLU; or in the first RetinaNets convolution, ReLU.
    each = 3 if is_fcos else 2
    return TorchvisionCheckpoint({_translate(key, each): tensor for key, tensor in state.items()}, arguments)


def _translate(key: str, each: int) -> str:
    for theirs, ours in _PREFIXES:
        if key.startswith(theirs):
            key = ours + key.removeprefix(theirs)
            break
    key = _OLD_PYRAMID_KEY.sub(r"\1.0.\2", key)
    return _FLAT_TOWER_KEY.sub(
        lambda found: f"{found[1]}.{int(found[2]) // each}.{int(found[2]) % each}.{found[3]}", key
    )
