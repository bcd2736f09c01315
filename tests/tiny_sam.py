"""A narrow SAM of segment-anything's own classes, and ours with its weights."""

import re
from functools import partial

import numpy as np
import torch
from segment_anything import modeling as official
from torch import nn

from otus.promptable.image_encoder import ViTEncoder
from otus.promptable.mask_decoder import MaskDecoder
from otus.promptable.prompt_encoder import PromptEncoder
from otus.promptable.sam import Sam
from otus.zoo.checkpoint import load_into
from otus.zoo.sam_checkpoints import read_sam

IMAGE_SIZE = 192


def reference(seed: int = 0) -> official.Sam:
    """Random weights from its constructors, with masks and scores that differ from one another."""
    torch.manual_seed(seed)
    side = IMAGE_SIZE // 16
    encoder = official.image_encoder.ImageEncoderViT(
        img_size=IMAGE_SIZE,
        embed_dim=48,
        depth=4,
        num_heads=4,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        use_rel_pos=True,
        global_attn_indexes=(1, 3),
        window_size=5,  # does not divide the side of the map
        out_chans=32,
    )
    transformer = official.TwoWayTransformer(depth=2, embedding_dim=32, mlp_dim=64, num_heads=4)
    model = official.Sam(
        encoder,
        official.PromptEncoder(32, (side, side), (IMAGE_SIZE, IMAGE_SIZE), 16),
        official.MaskDecoder(transformer_dim=32, transformer=transformer, iou_head_hidden_dim=32),
    )
    spread_out(model)
    for head in model.mask_decoder.output_hypernetworks_mlps:  # masks are parts of the image, not half of it
        head.layers[-1].bias.data[0] = -1.2
    model.mask_decoder.output_upscaling[3].bias.data[0] = 5
    return model.eval()


def spread_out(model: nn.Module) -> None:
    """Let biases, positions and the heads of a model's random weights matter."""
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1 and name.endswith("bias"):
            nn.init.normal_(parameter, std=0.2)
        elif re.search(r"rel_pos|pos_embed|attention_biases", name):
            nn.init.normal_(parameter, std=0.3)
        elif re.search(r"attn.*\.weight$", name) and parameter.ndim == 2:
            parameter.data *= 2
        elif re.search(r"hypernetworks|upscal|iou_prediction", name) and parameter.ndim > 1:
            parameter.data *= 3


def narrow_sam(weights: official.Sam) -> Sam:
    """Ours of the same sizes, with those weights."""
    encoder = ViTEncoder(48, 4, 4, global_blocks=(1, 3), image_size=IMAGE_SIZE, window_size=5, out_channels=32)
    prompts = PromptEncoder(32, map_size=IMAGE_SIZE // 16, image_size=IMAGE_SIZE)
    sam = Sam(encoder, prompts, MaskDecoder(32, num_heads=4, ffn_dim=64))
    load_into(sam, read_sam(weights.state_dict()).state, source="reference")
    return sam.eval()


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Coloured rectangles on noise."""
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 60, (height, width, 3))
    for _ in range(6):
        y, x = rng.integers(0, max(1, height - 3)), rng.integers(0, max(1, width - 3))
        image[y : y + height // 3, x : x + width // 3] = rng.integers(0, 256, 3)
    return image.astype(np.uint8)
