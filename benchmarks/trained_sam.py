"""Agreement of Otus and segment-anything on a SAM with trained weights, not random ones.

``python benchmarks/trained_sam.py [--minutes 10] [--data FOLDER]`` trains a narrow SAM of the official architecture from
scratch, by default on synthetic scenes, whose objects it learns to find in minutes. It loads the weights into
segment-anything's class, and compares masks of clicks and automatic masks, by Otus in float32 and with the image encoder in
bfloat16, with segment-anything's in float32. The figures show how well the implementations agree, not how good the model is.
Automatic masks are those above the median score of clicks.
"""

import argparse
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import torch
from _side_by_side import print_header
from segment_anything import SamAutomaticMaskGenerator as OfficialGenerator
from segment_anything import SamPredictor, modeling
from torch import nn

import otus
from otus.data.dataset import Dataset
from otus.data.scenes.files import write_scenes
from otus.parts.preprocess import Preprocess
from otus.promptable.automatic import SamAutomaticMaskGenerator
from otus.promptable.image_encoder import ViTEncoder
from otus.promptable.method import SamMethod
from otus.promptable.sam import Sam, with_encoder
from otus.structures import Masks, Prompt
from otus.training.settings import TrainSettings
from otus.zoo.sam_checkpoints import read_sam

SIZE, WIDTH, DEPTH, HEADS, GLOBAL, WINDOW, CHANNELS = 256, 192, 6, 6, (2, 5), 7, 256
CLICKS = 8
STABILITY = 0.8
"""Minimum stability of automatic masks; a model trained for minutes does not reach the default, 0.95."""


def narrow_sam() -> Sam:
    """Return a narrow SAM of Otus with random weights."""
    torch.manual_seed(0)
    encoder = ViTEncoder(
        WIDTH, DEPTH, HEADS, global_blocks=GLOBAL, image_size=SIZE, window_size=WINDOW, out_channels=CHANNELS
    )
    return with_encoder(encoder)


def official_sam(weights: Sam, preprocess: Preprocess) -> modeling.Sam:
    """Return the same model of segment-anything's classes, with the weights of ours."""
    side = SIZE // 16
    encoder = modeling.ImageEncoderViT(
        img_size=SIZE,
        embed_dim=WIDTH,
        depth=DEPTH,
        num_heads=HEADS,
        mlp_ratio=4,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        qkv_bias=True,
        use_rel_pos=True,
        global_attn_indexes=GLOBAL,
        window_size=WINDOW,
        out_chans=CHANNELS,
    )
    transformer = modeling.TwoWayTransformer(depth=2, embedding_dim=CHANNELS, mlp_dim=2048, num_heads=8)
    model = modeling.Sam(
        encoder,
        modeling.PromptEncoder(CHANNELS, (side, side), (SIZE, SIZE), 16),
        modeling.MaskDecoder(transformer_dim=CHANNELS, transformer=transformer),
        pixel_mean=[255 * value for value in preprocess.mean],
        pixel_std=[255 * value for value in preprocess.std],
    )
    ours, official = weights.state_dict(), model.state_dict()
    for name, tensor in read_sam(official).state.items():  # the official tensors under our names
        tensor.copy_(ours[name])
    return model.eval()


def print_agreement(name: str, method: SamMethod, official: modeling.Sam, dataset: Dataset, images: int) -> None:
    """Print how well the masks of clicks and the automatic masks of a method agree with the official ones."""
    theirs = SamPredictor(official)
    ious, differences, matched, all_scores = [], [], [], []
    random = np.random.default_rng(0)
    for index in range(images):
        image = dataset.image(index)
        embedding = method.embed(image)
        theirs.set_image(image)
        for x, y in random.random((CLICKS, 2)) * (image.shape[1], image.shape[0]):
            masks, scores, logits = theirs.predict(np.array([[x, y]]), np.array([1]))
            all_scores.append(scores)
            order = np.argsort(-scores, kind="stable")
            found = method.segment(embedding, Prompt([[x, y]], [1]))
            differences.append(np.abs(found.low_resolution_logits - logits[order]).max())
            pairs = found.masks.iou(Masks.from_dense(masks[order])).diagonal()
            ious += [iou for iou, mask in zip(pairs, masks[order], strict=True) if mask.any()]
    settings = {
        "points_per_side": 16, "pred_iou_thresh": float(np.median(all_scores)), "stability_score_thresh": STABILITY
    }  # fmt: skip
    generators = OfficialGenerator(official, **settings), SamAutomaticMaskGenerator(method, **settings)
    for index in range(images):
        their_masks, our_masks = (
            [mask for record in generator.generate(dataset.image(index)) if (mask := record["segmentation"]).any()]
            for generator in generators
        )
        if their_masks and our_masks:
            pairs = Masks.from_dense(np.stack(our_masks)).iou(Masks.from_dense(np.stack(their_masks)))
            matched += (pairs.max(axis=0) >= 0.95).tolist()
        else:
            matched += [False] * len(their_masks)
    agreeing = np.mean(np.array(ious) >= 0.99)
    print(
        f"{name}: {len(ious)} masks of clicks: mean IoU {np.mean(ious):.4f}, at least 0.99 in {agreeing:.1%}; largest "
        f"difference of logits {max(differences):.1e}\n"
        f"{name}: {np.mean(matched):.1%} of {len(matched)} automatic masks matched at IoU 0.95"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a data set with masks (default: synthetic scenes)")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--images", type=int, default=6)
    options = parser.parse_args()
    print_header("Segment Anything with trained weights", ("torch", "segment-anything"))
    preprocess = Preprocess(shorter_side=SIZE, longer_side=SIZE, antialias=True)
    with tempfile.TemporaryDirectory() as folder:
        if options.data is None:
            write_scenes(f"{folder}/scenes", 200, size_hw=(192, 256), object_sizes=(0.2, 0.4))
        dataset = otus.open_dataset(options.data or f"{folder}/scenes", format=None if options.data else "coco")
        settings = TrainSettings(minutes=options.minutes, learning_rate=5e-4)
        run = otus.train(narrow_sam(), dataset, settings=settings, preprocess=preprocess, out=folder)
        trained = otus.load(run.last, system=narrow_sam()).system
        official = official_sam(trained, preprocess)
        for name, bfloat16 in (("float32", False), ("bfloat16 encoder", True)):
            method = SamMethod(trained, preprocess=preprocess, bfloat16=bfloat16)
            print_agreement(name, method, official, dataset, options.images)


if __name__ == "__main__":
    main()
