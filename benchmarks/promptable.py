"""Segment Anything, Otus and segment-anything with the same weights: embedding, a click, 64 points, automatic masks.

    python benchmarks/promptable.py [--model sam_vit_b|sam_vit_l|sam_vit_h] [--weights sam_vit_b_01ec64.pth]
                                    [--image owl.jpg] [--threads 1] [--repeats 3]
                                    [--parts encoder,click,points,automatic] [--side 8]

Times are CPU seconds of all threads, so that other work on the machine does not count. Without ``--weights`` both have the
same random weights. Differences are the largest over all logits, printed with the largest logit. Automatic masks use
``--side`` by ``--side`` points; with random weights the threshold is the median predicted IoU, so that half of the masks are
upscaled.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import segment_anything
import torch
from _side_by_side import print_header, print_table

from otus.data.images import read_image
from otus.promptable import sam
from otus.promptable.automatic import SamAutomaticMaskGenerator
from otus.promptable.method import SamMethod
from otus.promptable.predictor import SamPredictor
from otus.promptable.prompt_encoder import PromptBatch
from otus.structures import Prompt
from otus.zoo.checkpoint import load_into, read_foreign
from otus.zoo.sam_checkpoints import read_sam

POINTS = 64
OFFICIAL = "segment-anything"


def seconds(function: Callable[[], object], repeats: int) -> float:
    """Return the median CPU time of a call, after a warm-up call."""
    function()
    times = []
    for _ in range(repeats):
        start = time.process_time()
        function()
        times.append(time.process_time() - start)
    return statistics.median(times)


def models(name: str, weights: str | None) -> tuple[torch.nn.Module, sam.Sam]:
    """Return the official model and Otus', with the same weights."""
    torch.manual_seed(0)
    official = getattr(segment_anything, f"build_{name}")()
    if weights is not None:
        official.load_state_dict(read_foreign(weights))
    ours = getattr(sam, name)().eval()
    load_into(ours, read_sam(official.state_dict()).state, source=weights or "random weights")
    return official, ours


def print_difference(ours: np.ndarray, theirs: np.ndarray) -> None:
    """Print the largest difference, and the largest value."""
    print(f"largest difference {np.abs(ours - theirs).max():.1e}, of {np.abs(theirs).max():.1e}\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="sam_vit_b")
    parser.add_argument("--weights")
    parser.add_argument("--image")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--parts", default="encoder,click,points,automatic")
    parser.add_argument("--side", type=int, default=8)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print_header("Promptable segmentation, CPU seconds", ("torch", "segment-anything"))
    official, ours = models(options.model, options.weights)
    noise = np.random.default_rng(0).integers(0, 255, (480, 640, 3), dtype=np.uint8)
    image = read_image(options.image) if options.image else noise
    size_xy = (image.shape[1], image.shape[0])
    method = SamMethod(ours)
    theirs, mine = segment_anything.SamPredictor(official), SamPredictor(method)
    theirs.set_image(image)
    mine.set_image(image)
    embedding = method.embed(image)
    click = np.array([[0.5, 0.3]]) * size_xy, np.array([1])
    parts = options.parts.split(",")
    if "encoder" in parts:
        predictors = {"otus": mine, OFFICIAL: theirs}
        times = {
            name: seconds(lambda predictor=predictor: predictor.set_image(image), options.repeats)
            for name, predictor in predictors.items()
        }
        print_table("embed an image", times)
        print_difference(mine.get_image_embedding().numpy(), theirs.get_image_embedding().numpy())
    if "click" in parts:
        times = {
            "otus": seconds(lambda: method.segment(embedding, Prompt(*click)), options.repeats),
            OFFICIAL: seconds(lambda: theirs.predict(*click), options.repeats),
        }
        print_table("one click, three masks", times)
        print_difference(mine.predict(*click)[2], theirs.predict(*click)[2])
    if "points" in parts:
        points = np.random.default_rng(1).random((POINTS, 1, 2)) * size_xy
        compare_points(method, mine, theirs, torch.from_numpy(points), repeats=options.repeats)
    if "automatic" in parts:
        settings = {"points_per_side": options.side, "stability_score_thresh": 0.0}
        if options.weights is None:
            settings["pred_iou_thresh"] = float(np.median(mine.predict(*click)[1]))
        generators = {
            "otus": SamAutomaticMaskGenerator(method, **settings),
            OFFICIAL: segment_anything.SamAutomaticMaskGenerator(official, **settings),
        }
        counts = {name: len(generator.generate(image)) for name, generator in generators.items()}
        times = {
            name: seconds(lambda generator=generator: generator.generate(image), 1)
            for name, generator in generators.items()
        }
        print_table(f"automatic masks, {options.side**2} points, including the image encoder", times)
        print(f"masks: {counts}\n")


def compare_points(
    method: SamMethod, mine: SamPredictor, theirs: segment_anything.SamPredictor, points: torch.Tensor, *, repeats: int
) -> None:
    """Time the decoder for many points: with all masks, with those above the median predicted IoU, and without masks."""
    labels, official = torch.ones(points.shape[:2], dtype=torch.int), theirs.model
    scaled = mine.transform.apply_coords(points, mine.original_size)
    prompts, features = PromptBatch(scaled, labels.long()), mine.get_image_embedding()[0]

    def official_decoder() -> tuple[torch.Tensor, torch.Tensor]:
        tokens, dense = official.prompt_encoder((scaled, labels), None, None)
        positions = official.prompt_encoder.get_dense_pe()
        return official.mask_decoder(theirs.features, positions, tokens, dense, multimask_output=True)

    with torch.inference_mode():
        logits, ious = method.sam.decode(features, prompts)
        expected = official_decoder()[0]
        median = float(ious[:, 1:].median())
        times = {
            "otus": seconds(lambda: method.sam.decode(features, prompts), repeats),
            "otus, half the masks": seconds(lambda: method.sam.decode_above(features, prompts, median), repeats),
            "otus, no mask": seconds(lambda: method.sam.decode_above(features, prompts, 1e9), repeats),
            OFFICIAL: seconds(official_decoder, repeats),
        }
    print_table(f"decoder, {len(points)} points", times)
    print_difference(logits[:, 1:].numpy(), expected.numpy())


if __name__ == "__main__":
    main()
