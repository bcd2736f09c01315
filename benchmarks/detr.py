"""DETR beside transformers': the same random weights, the same image, one run.

``python benchmarks/detr.py [--names a,b] [--repeats N]``. Images are 480x640, prepared as 800x1066.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
from _side_by_side import median_seconds, print_header, print_table
from torch import Tensor, nn
from transformers import DetrConfig, DetrForObjectDetection

import otus
from otus.data.sample import Sample
from otus.data.tensors import to_tensors
from otus.inference.predictor import Predictor

NAMES = {
    "detr_resnet50": {"backbone": "resnet50"},
    "detr_resnet50_dc5": {"backbone": "resnet50", "dilation": True},
    "detr_resnet101": {"backbone": "resnet101"},
    "detr_resnet101_dc5": {"backbone": "resnet101", "dilation": True},
}


def reference_model(name: str) -> nn.Module:
    """transformers' model with random weights whose answers differ from query to query."""
    torch.manual_seed(0)
    model = DetrForObjectDetection(DetrConfig(num_labels=91, **NAMES[name])).eval()
    nn.init.normal_(model.model.query_position_embeddings.weight, std=2)
    nn.init.normal_(model.class_labels_classifier.weight, std=0.5)
    return model


def agreement(predictor: Predictor, image: np.ndarray, logits: Tensor, boxes: Tensor) -> str:
    """How far the answers of all queries are from the reference's."""
    prepared = predictor.preprocess.sample(to_tensors(Sample(image, "noise")))
    with predictor.autocast():
        answers = predictor.system.stages([prepared]).outputs
    far = (answers.logits[-1] - logits).abs().max(), (answers.boxes[-1] - boxes).abs().max()
    return f"logits {far[0]:.1e}, boxes {far[1]:.1e} of the image apart"


def compare(name: str, *, repeats: int) -> None:
    """Time and compare one model."""
    image = np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8)
    reference = reference_model(name)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "weights.pth"
        torch.save(reference.state_dict(), file)
        exact, fused, fast = (otus.load(name, weights=file, precision=way) for way in ("exact", "float32", "auto"))
    pixels = exact.preprocess.sample(to_tensors(Sample(image, "noise")))["image"].as_subclass(Tensor)[None]
    with torch.inference_mode():
        theirs = reference(pixel_values=pixels)
        base = median_seconds(lambda: reference(pixel_values=pixels), repeats=repeats)
    ways = {f"otus {way.precision}": way for way in (exact, fused, fast)}
    seconds: dict[str, float | None] = {"transformers float32": base}
    for title, way in ways.items():
        seconds[title] = median_seconds(lambda way=way: way.predict(image), repeats=repeats)
    print_table(f"{name} (theirs without preparing the image)", seconds, ours="otus float32")
    for title, way in ways.items():
        print(f"{title} beside transformers: {agreement(way, image, theirs.logits, theirs.pred_boxes)}")
    fused_s, fast_s = seconds["otus float32"], seconds[f"otus {fast.precision}"]
    assert fused_s is not None
    assert fast_s is not None
    print(f"speed-up: float32 {base / fused_s:.2f}, default {base / fast_s:.2f}\n", flush=True)


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--names", default=",".join(NAMES))
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    print_header("DETR beside transformers, one image of 480x640", ("torch", "transformers"))
    for name in arguments.names.split(","):
        compare(name, repeats=arguments.repeats)


if __name__ == "__main__":
    main()
