"""Reader of SAM's checkpoints: those of segment-anything and MobileSAM, and those of transformers.

Ours are the official names (github.com/facebookresearch/segment-anything, Apache-2.0) but for the layers of MLPs, which are
counted with the activations between them.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from otus.errors import CheckpointError

SIGNATURE_KEYS = ("mask_decoder.iou_token.weight",)
"""Tensors by which a SAM is recognised."""
_RENAMES = tuple(
    (re.compile(pattern), ours)
    for pattern, ours in (
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
        # Both.
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
"""A second name of the positions, and what TinyViT classified with."""
_BUILDERS = {768: "sam_vit_b", 1024: "sam_vit_l", 1280: "sam_vit_h"}


@dataclass(frozen=True)
class SamCheckpoint:
    """A translated checkpoint.

    ``state`` has the keys of a :class:`~otus.promptable.sam.Sam`; ``builder`` is the name in the zoo of the model that it
    fits, None where it is of another size.
    """

    state: dict[str, Tensor]
    builder: str | None


def is_sam(state: Mapping[str, Any]) -> bool:
    """Whether the keys are those of a SAM."""
    return all(mark in state for mark in SIGNATURE_KEYS)


def read_sam(state: Mapping[str, Tensor]) -> SamCheckpoint:
    """Translate a state dict of SAM or MobileSAM.

    Raises
    ------
    CheckpointError
        If it is the state of something else.
    """
    if not is_sam(state):
        raise CheckpointError(
            f"not a SAM: expected a tensor {SIGNATURE_KEYS[0]!r}, got {len(state)} others such as "
            f"{', '.join(list(state)[:3])}"
        )
    depths = _depths_of_transformers(state)
    translated = {_translate(key, depths): tensor for key, tensor in state.items() if not _UNUSED.search(key)}
    patches = translated.get("image_encoder.patch_embed.proj.weight")
    builder = "mobile_sam" if patches is None else _BUILDERS.get(len(patches))
    return SamCheckpoint(translated, builder)


def _depths_of_transformers(state: Mapping[str, Tensor]) -> dict[str, int]:
    """The number of layers of each MLP whose first and last have names of their own; empty for the official names."""
    depths: dict[str, int] = {}
    if not any("proj_in" in key for key in state):
        return depths
    for key in state:
        found = _MLP_OF_TRANSFORMERS.match(key)
        if found:
            depths[found[1]] = max(depths.get(found[1], 2), 2 if found[3] is None else int(found[3]) + 3)
    return depths


def _translate(key: str, depths: Mapping[str, int]) -> str:
    found = _MLP_OF_TRANSFORMERS.match(key)
    if found and found[1] in depths:
        layer = {"proj_in": 0, "proj_out": depths[found[1]] - 1}.get(found[2])
        layer = int(found[3]) + 1 if layer is None else layer
        return f"{found[1]}.{2 * layer}.{key[found.end() :]}"
    for pattern, ours in _RENAMES:
        key = pattern.sub(ours, key)
    return _MLP.sub(lambda match: f"{match[1]}.{2 * int(match[2])}.", key)
