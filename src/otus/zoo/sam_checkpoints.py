"""Convert SAM's checkpoints: those of segment-anything and MobileSAM, and those of transformers.

Otus uses the official names (github.com/facebookresearch/segment-anything, Apache-2.0), except for the layers of MLPs,
whose indices count the activations between them too.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from otus.errors import CheckpointError

SIGNATURE_KEYS = ("mask_decoder.iou_token.weight",)
"""A state with these tensors is a SAM."""
_RENAMES = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        # transformers.
        (
            r"^shared_image_embedding\.positional_embedding$",
            "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix",
        ),
        (r"^vision_encoder\.patch_embed\.projection\.", "image_encoder.patch_embed.proj."),
        (r"^vision_encoder\.layers\.", "image_encoder.blocks."),
        (r"^vision_encoder\.neck\.conv1\.", "image_encoder.neck.0."),
        (r"^vision_encoder\.neck\.layer_norm1\.", "image_encoder.neck.1."),
        (r"^vision_encoder\.neck\.conv2\.", "image_encoder.neck.2."),
        (r"^vision_encoder\.neck\.layer_norm2\.", "image_encoder.neck.3."),
        (r"^vision_encoder\.", "image_encoder."),
        (r"^prompt_encoder\.mask_embed\.conv1\.", "prompt_encoder.mask_downscaling.0."),
        (r"^prompt_encoder\.mask_embed\.layer_norm1\.", "prompt_encoder.mask_downscaling.1."),
        (r"^prompt_encoder\.mask_embed\.conv2\.", "prompt_encoder.mask_downscaling.3."),
        (r"^prompt_encoder\.mask_embed\.layer_norm2\.", "prompt_encoder.mask_downscaling.4."),
        (r"^prompt_encoder\.mask_embed\.conv3\.", "prompt_encoder.mask_downscaling.6."),
        (r"^prompt_encoder\.point_embed\.", "prompt_encoder.point_embeddings."),
        (r"^mask_decoder\.upscale_conv1\.", "mask_decoder.output_upscaling.0."),
        (r"^mask_decoder\.upscale_layer_norm\.", "mask_decoder.output_upscaling.1."),
        (r"^mask_decoder\.upscale_conv2\.", "mask_decoder.output_upscaling.3."),
        (r"\.layer_norm_final_attn\.", ".norm_final_attn."),
        (r"\.layer_norm(\d)\.", r".norm\1."),
        # Official and transformers.
        (r"\.lin1\.", ".0."),
        (r"\.lin2\.", ".2."),
    )
)
_MLP = re.compile(r"^(mask_decoder\.(?:output_hypernetworks_mlps\.\d+|iou_prediction_head))\.layers\.(\d+)\.")
_MLP_OF_TRANSFORMERS = re.compile(
    r"^(mask_decoder\.(?:output_hypernetworks_mlps\.\d+|iou_prediction_head))\.(proj_in|layers\.(\d+)|proj_out)\."
)
_UNUSED = re.compile(
    r"^prompt_encoder\.shared_embedding\.|^image_encoder\.(norm_head|head)\.|\.attention_bias_idxs$|\.attn\.ab$"
)
"""An alias of the positional encoding, TinyViT's classification head, and its buffers."""
_BUILDERS = {768: "sam_vit_b", 1024: "sam_vit_l", 1280: "sam_vit_h"}


@dataclass(frozen=True)
class SamCheckpoint:
    """A converted checkpoint.

    Parameters
    ----------
    state
        Tensors of a :class:`~otus.promptable.sam.Sam`.
    builder
        Name in the zoo of the model with this image encoder; None if there is none.
    """

    state: dict[str, Tensor]
    builder: str | None


def is_sam(state: Mapping[str, Any]) -> bool:
    """Return whether the keys are those of a SAM."""
    return all(mark in state for mark in SIGNATURE_KEYS)


def read_sam(state: Mapping[str, Tensor]) -> SamCheckpoint:
    """Convert a state dict of SAM or MobileSAM.

    Raises
    ------
    CheckpointError
        If it is the state of another model.
    """
    if not is_sam(state):
        raise CheckpointError(
            f"not a SAM: expected a tensor {SIGNATURE_KEYS[0]!r}, got {len(state)} others such as "
            f"{', '.join(list(state)[:3])}"
        )
    depths = _mlp_depths(state)
    converted = {_convert_key(key, depths): tensor for key, tensor in state.items() if not _UNUSED.search(key)}
    patch_embed = converted.get("image_encoder.patch_embed.proj.weight")
    builder = "mobile_sam" if patch_embed is None else _BUILDERS.get(len(patch_embed))
    return SamCheckpoint(converted, builder)


def _mlp_depths(state: Mapping[str, Tensor]) -> dict[str, int]:
    """Return the number of layers of each MLP under transformers' names; empty for the official names."""
    depths: dict[str, int] = {}
    if not any("proj_in" in key for key in state):
        return depths
    for key in state:
        match = _MLP_OF_TRANSFORMERS.match(key)
        if match:
            depths[match[1]] = max(depths.get(match[1], 2), 2 if match[3] is None else int(match[3]) + 3)
    return depths


def _convert_key(key: str, depths: Mapping[str, int]) -> str:
    """Return the name of a tensor in Otus."""
    mlp = _MLP_OF_TRANSFORMERS.match(key)
    if mlp and mlp[1] in depths:
        layer = {"proj_in": 0, "proj_out": depths[mlp[1]] - 1}.get(mlp[2])
        layer = int(mlp[3]) + 1 if layer is None else layer
        return f"{mlp[1]}.{2 * layer}.{key[mlp.end() :]}"
    for pattern, replacement in _RENAMES:
        key = pattern.sub(replacement, key)
    return _MLP.sub(lambda match: f"{match[1]}.{2 * int(match[2])}.", key)
