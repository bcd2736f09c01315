"""Reader of torchvision's segmentation checkpoints: FCN, DeepLabV3, LR-ASPP.

Layers keep torchvision's names inside Otus's systems, so a table of prefixes translates. The official files of FCN and
DeepLabV3 label 21 categories, VOC's 20 behind background, and hold an auxiliary classifier.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from otus.errors import CheckpointError

SIGNATURE_KEYS = ("classifier.4.weight", "classifier.low_classifier.weight")
"""Tensors by which a segmenter of torchvision is recognised, one of them."""


@dataclass(frozen=True)
class SegmenterCheckpoint:
    """A translated checkpoint: ``state`` for a :class:`~otus.semantic.segmenter.Segmenter`, ``arguments`` of its builder."""

    state: dict[str, Tensor]
    arguments: dict[str, Any]
    num_categories: int


def is_torchvision_segmenter(state: Mapping[str, Any]) -> bool:
    """Whether the keys are those of a segmenter of torchvision."""
    return any(mark in state for mark in SIGNATURE_KEYS) and any(key.startswith("backbone.") for key in state)


def read_torchvision_segmenter(state: Mapping[str, Tensor]) -> SegmenterCheckpoint:
    """Translate a state dict to the keys of a :class:`~otus.semantic.segmenter.Segmenter`.

    Raises
    ------
    CheckpointError
        If it is the state of something else.
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
    translated = {
        ours + key.removeprefix(theirs): tensor
        for key, tensor in state.items()
        for theirs, ours in prefixes
        if key.startswith(theirs)
    }
    arguments: dict[str, Any] = (
        {} if "auxiliary_head.4.weight" in translated or SIGNATURE_KEYS[1] in state else {"auxiliary": False}
    )
    num_categories = next(state[mark] for mark in SIGNATURE_KEYS if mark in state).shape[0]
    return SegmenterCheckpoint(translated, arguments, num_categories)
