"""Speed of DETR, Otus and transformers: the same random weights, the same image, in one run.

``python benchmarks/detr.py [--names a,b] [--repeats N]``. Images are 480x640, resized to 800x1066.
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
    """Return transformers' model with random weights, scaled so that the outputs of queries differ."""
    torch.manual_seed(0)
    model = DetrForObjectDetection(DetrConfig(num_labels=91, **NAMES[name])).eval()
    nn.init.normal_(model.model.query_position_embeddings.weight, std=2)
    nn.init.normal_(model.class_labels_classifier.weight, std=0.5)
    return model


def agreement(predictor: Predictor, image: np.ndarray, logits: Tensor, boxes: Tensor) -> str:
    """Return the largest differences of the outputs of all queries from the reference's, as text."""
    prepared = predictor.preprocess.sample(to_tensors(Sample(image, "noise")))
    with predictor.autocast():
        outputs = predictor.system.stages([prepared]).outputs
    largest = (outputs.logits[-1] - logits).abs().max(), (outputs.boxes[-1] - boxes).abs().max()
    return f"logits differ by up to {largest[0]:.1e}, normalized boxes by {largest[1]:.1e}"


def compare(name: str, *, repeats: int) -> None:
    """Time and compare one model."""
    image = np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8)
    reference = reference_model(name)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "weights.pth"
        torch.save(reference.state_dict(), file)
        exact, float32, auto = (
            otus.load(name, weights=file, precision=precision) for precision in ("exact", "float32", "auto")
        )
    pixels = exact.preprocess.sample(to_tensors(Sample(image, "noise")))["image"].as_subclass(Tensor)[None]
    with torch.inference_mode():
        theirs = reference(pixel_values=pixels)
        base = median_seconds(lambda: reference(pixel_values=pixels), repeats=repeats)
    predictors = {f"otus {predictor.precision}": predictor for predictor in (exact, float32, auto)}
    seconds: dict[str, float | None] = {"transformers float32": base}
    for title, predictor in predictors.items():
        seconds[title] = median_seconds(lambda predictor=predictor: predictor.predict(image), repeats=repeats)
    print_table(f"{name} (transformers without preprocessing of the image)", seconds, ours="otus float32")
    for title, predictor in predictors.items():
        print(f"{title} and transformers: {agreement(predictor, image, theirs.logits, theirs.pred_boxes)}")
    float32_s, auto_s = seconds["otus float32"], seconds[f"otus {auto.precision}"]
    assert float32_s is not None
    assert auto_s is not None
    print(f"speed-up: float32 {base / float32_s:.2f}, auto {base / auto_s:.2f}\n", flush=True)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--names", default=",".join(NAMES))
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    print_header("DETR of Otus and transformers, one image of 480x640", ("torch", "transformers"))
    for name in arguments.names.split(","):
        compare(name, repeats=arguments.repeats)


if __name__ == "__main__":
    main()
