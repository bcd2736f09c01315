"""Convert torchvision's segmentation checkpoints: FCN, DeepLabV3, LR-ASPP.

Otus uses torchvision's names of layers within its modules, so a table of prefixes suffices. The official files of FCN and
DeepLabV3 have 21 classes, background and VOC's 20, and an auxiliary classifier.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from otus.errors import CheckpointError

SIGNATURE_KEYS = ("classifier.4.weight", "classifier.low_classifier.weight")
"""A state with one of these tensors is a segmenter of torchvision."""


@dataclass(frozen=True)
class SegmenterCheckpoint:
    """A converted checkpoint.

    Parameters
    ----------
    state
        Tensors of a :class:`~otus.semantic.segmenter.Segmenter`.
    arguments
        Arguments of the builder, as JSON.
    num_categories
        Number of classes, with background.
    """

    state: dict[str, Tensor]
    arguments: dict[str, Any]
    num_categories: int


def is_torchvision_segmenter(state: Mapping[str, Any]) -> bool:
    """Return whether the keys are those of a segmenter of torchvision."""
    return any(mark in state for mark in SIGNATURE_KEYS) and any(key.startswith("backbone.") for key in state)


def read_torchvision_segmenter(state: Mapping[str, Tensor]) -> SegmenterCheckpoint:
    """Convert a state dict to the keys of a :class:`~otus.semantic.segmenter.Segmenter`.

    Raises
    ------
    CheckpointError
        If it is the state of another model.
    """
    if not is_torchvision_segmenter(state):
        raise CheckpointError(
            f"not a torchvision segmenter: expected the tensor {SIGNATURE_KEYS[0]!r} or {SIGNATURE_KEYS[1]!r}, got "
            f"{len(state)} others such as {', '.join(list(state)[:3])}"
        )
    classifier = "decoder." if SIGNATURE_KEYS[1] in state else "head."
    prefixes = (
        ("backbone.", "encoder.backbone."),
        ("classifier.", classifier),
        ("aux_classifier.", "auxiliary_head."),
    )
    converted = {
        replacement + key.removeprefix(prefix): tensor
        for key, tensor in state.items()
        for prefix, replacement in prefixes
        if key.startswith(prefix)
    }
    arguments: dict[str, Any] = (
        {} if "auxiliary_head.4.weight" in converted or SIGNATURE_KEYS[1] in state else {"auxiliary": False}
    )
    num_categories = next(state[key] for key in SIGNATURE_KEYS if key in state).shape[0]
    return SegmenterCheckpoint(converted, arguments, num_categories)
