"""Convert torchvision's checkpoints of dense detectors: RetinaNet, FCOS, SSD, SSDLite.

Otus uses torchvision's names of layers within its modules, so a table of prefixes suffices; only the towers of FCOS and of
RetinaNet before torchvision 0.13 have flat indices, which are split into block and layer (0.13 also wrapped the
convolutions of the pyramid). For categories and eps see :mod:`otus.zoo.torchvision_checkpoints`.
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
# Biases of the two output layers: after towers, per feature map (SSD), per feature map in pairs of layers (SSDLite).
_OUTPUT_BIASES = (
    ("head.classification_head.cls_logits.bias", "head.regression_head.bbox_reg.bias"),
    ("head.classification_head.module_list.0.bias", "head.regression_head.module_list.0.bias"),
    ("head.classification_head.module_list.0.1.bias", "head.regression_head.module_list.0.1.bias"),
)
SIGNATURE_KEYS = tuple(name for biases in _OUTPUT_BIASES for name in biases)
"""A state with a pair of these tensors is a dense detector."""


def is_torchvision_dense_detector(state: Mapping[str, Any]) -> bool:
    """Return whether the keys are those of a dense detector of torchvision."""
    return any(classes in state and boxes in state for classes, boxes in _OUTPUT_BIASES)


def read_torchvision_dense_detector(state: Mapping[str, Tensor], *, sha256: str | None = None) -> TorchvisionCheckpoint:
    """Convert a state dict to the keys of a :class:`~otus.detection.single_stage.dense_detector.DenseDetector`.

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
    biases = [
        (state[classes], state[boxes]) for classes, boxes in _OUTPUT_BIASES if classes in state and boxes in state
    ]
    if not biases:
        raise CheckpointError(
            f"not a torchvision dense detector: expected the tensors {' and '.join(map(repr, _OUTPUT_BIASES[0]))}, or "
            f"those of SSD, got {len(state)} others such as {', '.join(list(state)[:3])}"
        )
    class_bias, box_bias = biases[0]
    num_classes = class_bias.shape[0] // (box_bias.shape[0] // 4)
    arguments: dict[str, Any] = {"class_indices": list(COCO_IDS) if num_classes == 91 else list(range(1, num_classes))}
    is_fcos = "head.regression_head.bbox_ctrness.weight" in state
    # Version 2 of RetinaNet, recognised by the norms of its towers, is the only one whose backbone norms are not frozen.
    if "backbone.body.conv1.weight" in state and (is_fcos or "head.classification_head.conv.0.1.weight" not in state):
        has_zero_eps = sha256 is not None and sha256.startswith(DENSE_ZERO_EPS_SHA256)
        arguments["freezing"] = {"norm_eps": 0.0 if has_zero_eps else 1e-5}
    layers_per_block = 3 if is_fcos else 2  # convolution, norm, ReLU; in RetinaNet before 0.13 convolution, ReLU
    return TorchvisionCheckpoint({_convert_key(key, layers_per_block): t for key, t in state.items()}, arguments)


def _convert_key(key: str, layers_per_block: int) -> str:
    """Return the name of a tensor in Otus."""
    for prefix, replacement in _PREFIXES:
        if key.startswith(prefix):
            key = replacement + key.removeprefix(prefix)
            break
    key = _OLD_PYRAMID_KEY.sub(r"\1.0.\2", key)
    return _FLAT_TOWER_KEY.sub(
        lambda match: f"{match[1]}.{int(match[2]) // layers_per_block}.{int(match[2]) % layers_per_block}.{match[3]}",
        key,
    )
