"""Reader of DETR's checkpoints: the official ones, and those of transformers.

DETR for panoptic segmentation holds all of that under ``detr.``, and its mask head beside it.

Four namings are read: the official repository's (github.com/facebookresearch/detr, Apache-2.0), whose attention keeps three
projections in one matrix; transformers' of the hub's files; those that transformers 5 makes of them; and in these a backbone
that is transformers' own ResNet instead of timm's.

Whether the last stage is dilated ("DC5") is not in the state: the model's name says it.
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
"""COCO's ids with their gaps, 0, and "no object"."""

_PANOPTIC_CLASSES = 251
"""The same with COCO's stuff, up to id 249."""

SIGNATURE_KEYS = ("class_embed.weight", "class_labels_classifier.weight")
"""Tensors by which a DETR is recognised, one of them."""
_PREFIX = "detr."
"""Of the detector in a DETR for panoptic segmentation."""
_RENAMES = tuple(
    (re.compile(pattern), ours)
    for pattern, ours in (
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
    (re.compile(pattern), ours)
    for pattern, ours in (  # transformers 5
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
_JOINT = re.compile(r"^(.*)\.in_proj_(weight|bias)$")


@dataclass(frozen=True)
class DetrCheckpoint:
    """A translated checkpoint.

    ``state`` has the keys of a :class:`~otus.detection.set_prediction.set_detector.SetDetector`, or with a mask head those
    of a :class:`~otus.instance.panoptic_detr.PanopticDETR`; ``arguments`` are what the builder needs for it, as JSON:
    ``class_indices``, the class index of each label, and ``num_queries``.
    """

    state: dict[str, Tensor]
    arguments: dict[str, Any]


def is_detr(state: Mapping[str, Any]) -> bool:
    """Whether the keys are those of a DETR, for boxes or panoptic segmentation."""
    return any(
        any(prefix + mark in state for mark in SIGNATURE_KEYS)
        and any(prefix + key in state for key in ("query_embed.weight", "model.query_position_embeddings.weight"))
        for prefix in ("", _PREFIX)
    )


def read_detr(state: Mapping[str, Tensor]) -> DetrCheckpoint:
    """Translate a state dict of DETR.

    Raises
    ------
    CheckpointError
        If it is the state of something else.
    """
    if not is_detr(state):
        raise CheckpointError(
            f"not a DETR for boxes: expected a tensor {' or '.join(map(repr, SIGNATURE_KEYS))} and queries, "
            f"got {len(state)} others such as {', '.join(list(state)[:3])}"
        )
    has_masks = any(key.startswith(_PREFIX) for key in state)
    place = "detector." if has_masks else ""
    translated: dict[str, Tensor] = {}
    for key, tensor in state.items():
        is_of_masks = has_masks and not key.startswith(_PREFIX)
        name = _translate_mask_head(key) if is_of_masks else place + _translate(key.removeprefix(_PREFIX))
        joint = _JOINT.match(name)
        if joint is None:
            translated[name] = tensor
        else:
            for part, piece in zip(("q_proj", "k_proj", "v_proj"), tensor.chunk(3), strict=True):
                translated[f"{joint[1]}.{part}.{joint[2]}"] = piece
    classes, num_queries = (
        translated[f"{place}head.class_embed.weight"].shape[0],
        translated[f"{place}head.query_embed.weight"].shape[0],
    )
    known = {_COCO_CLASSES: COCO_IDS, _PANOPTIC_CLASSES: COCO_PANOPTIC.ids}
    class_indices = known.get(classes, range(classes - 1))
    return DetrCheckpoint(translated, {"class_indices": list(class_indices), "num_queries": num_queries})


def _translate(key: str) -> str:
    for pattern, ours in _RENAMES:
        key = pattern.sub(ours, key)
    key = _STAGE_LAYER.sub(
        lambda found: f"{found[1]}.{found[2]}.{'conv' if found[4] == 'convolution' else 'bn'}{int(found[3]) + 1}.",
        key,
    )
    key = _STAGE.sub(lambda found: f"backbone.layer{int(found[1]) + 1}.", key)
    return _MLP.sub(lambda found: f"head.bbox_embed.{2 * int(found[1])}.", key)


def _translate_mask_head(key: str) -> str:
    """The official names, which the mask head keeps."""
    for pattern, ours in _MASK_RENAMES:
        key = pattern.sub(ours, key)
    parts = {"fpn_adapter": ("adapter", 1), "refine.conv": ("lay", 3), "refine.norm": ("gn", 3)}
    return _FUSION_STAGE.sub(lambda found: f"mask_head.{parts[found[2]][0]}{int(found[1]) + parts[found[2]][1]}.", key)
