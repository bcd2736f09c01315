"""Convert DETR's checkpoints: the official ones, and those of transformers.

In a DETR for panoptic segmentation, the names of the detector have the prefix ``detr.``, those of the mask head do not.

Four naming schemes are supported: the official repository's (github.com/facebookresearch/detr, Apache-2.0), whose attention
stores the three projections in one matrix; that of transformers' files on the Hugging Face hub; that of transformers 5; and
the latter with transformers' own ResNet as the backbone instead of timm's.

Whether the last stage is dilated ("DC5") cannot be seen from the state; it is part of the model's name.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from otus.errors import CheckpointError
from otus.structures.categories import COCO_IDS
from otus.zoo.coco import COCO_PANOPTIC

_COCO_CLASSES = 92
"""Number of logits for COCO: ids 0 to 90, with gaps, and "no object"."""

_PANOPTIC_CLASSES = 251
"""Number of logits for COCO panoptic: ids 0 to 249, and "no object"."""

SIGNATURE_KEYS = ("class_embed.weight", "class_labels_classifier.weight")
"""A state with one of these tensors is a DETR."""
_PREFIX = "detr."
"""Prefix of the detector's names in a DETR for panoptic segmentation."""
_RENAMES = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        # The official repository.
        (r"^backbone\.0\.body\.", "backbone."),
        (r"^transformer\.(encoder|decoder)\.layers\.", r"head.\1."),
        (r"^transformer\.decoder\.norm\.", "head.decoder_norm."),
        (r"^input_proj\.", "head.input_proj."),
        (r"^query_embed\.", "head.query_embed."),
        (r"^class_embed\.", "head.class_embed."),
        (r"^bbox_embed\.layers\.", "head.bbox_embed."),
        (r"\.multihead_attn\.", ".cross_attn."),
        (r"\.linear1\.", ".feed_forward.0."),
        (r"\.linear2\.", ".feed_forward.3."),
        # transformers.
        (r"^model\.backbone\.(conv_encoder\.)?model\.", "backbone."),
        (r"^model\.(encoder|decoder)\.layers\.", r"head.\1."),
        (r"^model\.decoder\.layernorm\.", "head.decoder_norm."),
        (r"^model\.input_projection\.", "head.input_proj."),
        (r"^model\.query_position_embeddings\.", "head.query_embed."),
        (r"^class_labels_classifier\.", "head.class_embed."),
        (r"^bbox_predictor\.layers\.", "head.bbox_embed."),
        (r"\.encoder_attn\.", ".cross_attn."),
        (r"\.self_attn_layer_norm\.", ".norm1."),
        (r"\.encoder_attn_layer_norm\.", ".norm2."),
        (r"^(head\.encoder\.\d+)\.final_layer_norm\.", r"\1.norm2."),
        (r"^(head\.decoder\.\d+)\.final_layer_norm\.", r"\1.norm3."),
        (r"\.(mlp\.)?fc1\.", ".feed_forward.0."),
        (r"\.(mlp\.)?fc2\.", ".feed_forward.3."),
        # transformers 5.
        (r"\.o_proj\.", ".out_proj."),
        # A backbone by transformers' own ResNet.
        (r"^backbone\.embedder\.embedder\.convolution\.", "backbone.conv1."),
        (r"^backbone\.embedder\.embedder\.normalization\.", "backbone.bn1."),
        (r"^(backbone\.encoder\.stages\.\d+)\.layers\.(\d+)\.shortcut\.convolution\.", r"\1.\2.downsample.0."),
        (r"^(backbone\.encoder\.stages\.\d+)\.layers\.(\d+)\.shortcut\.normalization\.", r"\1.\2.downsample.1."),
    )
)
_MASK_RENAMES = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (  # transformers 5
        (r"^bbox_attention\.(q|k)_proj\.", r"bbox_attention.\1_linear."),
        (r"^mask_head\.conv(\d)\.conv\.", r"mask_head.lay\1."),
        (r"^mask_head\.conv(\d)\.norm\.", r"mask_head.gn\1."),
        (r"^mask_head\.output_conv\.", "mask_head.out_lay."),
    )
)
_FUSION_STAGE = re.compile(r"^mask_head\.fpn_stages\.(\d)\.(fpn_adapter|refine\.conv|refine\.norm)\.")
_STAGE_LAYER = re.compile(
    r"^(backbone\.encoder\.stages\.\d+)\.layers\.(\d+)\.layer\.(\d)\.(convolution|normalization)\."
)
_STAGE = re.compile(r"^backbone\.encoder\.stages\.(\d+)\.")
_MLP = re.compile(r"^head\.bbox_embed\.(\d+)\.")
_IN_PROJ = re.compile(r"^(.*)\.in_proj_(weight|bias)$")


@dataclass(frozen=True)
class DetrCheckpoint:
    """A converted checkpoint.

    Parameters
    ----------
    state
        Tensors of a :class:`~otus.detection.set_prediction.set_detector.SetDetector`, or with a mask head of a
        :class:`~otus.instance.panoptic_detr.PanopticDETR`.
    arguments
        Arguments of the builder, as JSON: ``class_indices`` (the class index of each category) and ``num_queries``.
    """

    state: dict[str, Tensor]
    arguments: dict[str, Any]


def is_detr(state: Mapping[str, Any]) -> bool:
    """Return whether the keys are those of a DETR, for boxes or panoptic segmentation."""
    return any(
        any(prefix + mark in state for mark in SIGNATURE_KEYS)
        and any(prefix + key in state for key in ("query_embed.weight", "model.query_position_embeddings.weight"))
        for prefix in ("", _PREFIX)
    )


def read_detr(state: Mapping[str, Tensor]) -> DetrCheckpoint:
    """Convert a state dict of DETR.

    Raises
    ------
    CheckpointError
        If it is the state of another model.
    """
    if not is_detr(state):
        raise CheckpointError(
            f"not a DETR: expected a tensor {' or '.join(map(repr, SIGNATURE_KEYS))} and query embeddings, "
            f"got {len(state)} others such as {', '.join(list(state)[:3])}"
        )
    has_masks = any(key.startswith(_PREFIX) for key in state)
    prefix = "detector." if has_masks else ""
    converted: dict[str, Tensor] = {}
    for key, tensor in state.items():
        in_mask_head = has_masks and not key.startswith(_PREFIX)
        name = _convert_mask_head_key(key) if in_mask_head else prefix + _convert_key(key.removeprefix(_PREFIX))
        in_proj = _IN_PROJ.match(name)
        if in_proj is None:
            converted[name] = tensor
        else:
            for projection, chunk in zip(("q_proj", "k_proj", "v_proj"), tensor.chunk(3), strict=True):
                converted[f"{in_proj[1]}.{projection}.{in_proj[2]}"] = chunk
    num_logits = converted[f"{prefix}head.class_embed.weight"].shape[0]
    num_queries = converted[f"{prefix}head.query_embed.weight"].shape[0]
    known = {_COCO_CLASSES: COCO_IDS, _PANOPTIC_CLASSES: COCO_PANOPTIC.ids}
    class_indices = known.get(num_logits, range(num_logits - 1))
    arguments: dict[str, Any] = {"class_indices": list(class_indices), "num_queries": num_queries}
    if max(class_indices) + 2 < num_logits:  # the published panoptic models have 250 classes, of ids up to 200
        arguments["num_classes"] = num_logits - 1
    return DetrCheckpoint(converted, arguments)


def _convert_key(key: str) -> str:
    """Return the name in Otus of a tensor of the detector."""
    for pattern, replacement in _RENAMES:
        key = pattern.sub(replacement, key)
    key = _STAGE_LAYER.sub(
        lambda match: f"{match[1]}.{match[2]}.{'conv' if match[4] == 'convolution' else 'bn'}{int(match[3]) + 1}.",
        key,
    )
    key = _STAGE.sub(lambda match: f"backbone.layer{int(match[1]) + 1}.", key)
    return _MLP.sub(lambda match: f"head.bbox_embed.{2 * int(match[1])}.", key)


def _convert_mask_head_key(key: str) -> str:
    """Return the official name of a tensor of the mask head, which Otus uses too."""
    for pattern, replacement in _MASK_RENAMES:
        key = pattern.sub(replacement, key)
    parts = {"fpn_adapter": ("adapter", 1), "refine.conv": ("lay", 3), "refine.norm": ("gn", 3)}
    return _FUSION_STAGE.sub(lambda match: f"mask_head.{parts[match[2]][0]}{int(match[1]) + parts[match[2]][1]}.", key)
