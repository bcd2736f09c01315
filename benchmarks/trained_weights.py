"""Agreement of Otus and torchvision on a detector with trained weights, not random ones.

``python benchmarks/trained_weights.py --data ../shared/data/penn_fudan [--minutes 6]`` trains torchvision's
``fasterrcnn_mobilenet_v3_large_320_fpn`` from scratch on a few images, then prints its AP on the same images by
torchvision, by Otus in precision exact and float32 (which should agree to 1e-4), and in precision auto, which may be
bfloat16. The figures show how well the implementations agree, not how good the detector is.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from _side_by_side import print_header
from torchvision.models.detection import fasterrcnn_mobilenet_v3_large_320_fpn
from torchvision.transforms.functional import hflip

import otus
from otus.data.dataset import Dataset
from otus.evaluation.evaluate import evaluate_predictions
from otus.evaluation.results import as_objects
from otus.structures import Instances


def train_reference(dataset: Dataset, *, minutes: float) -> torch.nn.Module:
    """Train torchvision's model with its losses, in a plain loop."""
    torch.manual_seed(0)
    model = fasterrcnn_mobilenet_v3_large_320_fpn(
        weights=None, weights_backbone=None, num_classes=len(dataset.categories) + 1
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4)
    rng = np.random.default_rng(0)
    end, step = time.monotonic() + 60 * minutes, 0
    model.train()
    while time.monotonic() < end:
        images, targets = [], []
        for i in rng.integers(0, len(dataset), 4):
            sample = dataset[int(i)]
            image = torch.from_numpy(sample.image.transpose(2, 0, 1).copy()).float() / 255
            assert sample.instances is not None
            boxes = torch.from_numpy(sample.instances.boxes_xyxy).float()
            if rng.uniform() < 0.5:
                image = hflip(image)
                boxes = torch.stack(
                    [image.shape[2] - boxes[:, 2], boxes[:, 1], image.shape[2] - boxes[:, 0], boxes[:, 3]], 1
                )
            images.append(image)
            targets.append({"boxes": boxes, "labels": torch.from_numpy(sample.instances.labels) + 1})
        loss = sum(model(images, targets).values())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        step += 1
        if step % 20 == 0:
            print(f"step {step}: loss {loss.item():.3f}", flush=True)
    return model.eval()


def reference_predictions(model: torch.nn.Module, dataset: Dataset) -> dict[int, Instances]:
    """Return the predictions of torchvision's model for every image."""
    predictions = {}
    with torch.inference_mode():
        for i in range(len(dataset)):
            image = dataset.image(i)
            output = model([torch.from_numpy(image.transpose(2, 0, 1).copy()).float() / 255])[0]
            predictions[i] = Instances(
                output["boxes"].numpy(),
                output["labels"].numpy() - 1,
                image.shape[:2],
                dataset.categories,
                scores=output["scores"].numpy(),
            )
    return predictions


def average_precision(predictions: dict[int, Instances], dataset: Dataset) -> dict[str, float]:
    """Return AP and AP50 by the COCO protocol."""
    report = evaluate_predictions(dataset, as_objects(predictions, categories=dataset.categories), kinds=["bbox"])
    return {name: report.results["bbox"].figures[name] for name in ("AP", "AP50")}


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=6)
    parser.add_argument(
        "--images", type=int, default=12, help="number of images; few, so that minutes of training suffice"
    )
    arguments = parser.parse_args()
    print_header("Trained weights in torchvision and in Otus", ("torch", "torchvision"))
    dataset = otus.open_dataset(arguments.data)
    dataset = dataset.select(range(min(arguments.images, len(dataset))))
    model = train_reference(dataset, minutes=arguments.minutes)
    rows = {"torchvision float32": average_precision(reference_predictions(model, dataset), dataset)}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "weights.pth"
        torch.save(model.state_dict(), file)
        for precision in ("exact", "float32", "auto"):
            predictor = otus.load(
                "faster_rcnn_mobilenet_v3_large_320_fpn",
                weights=file,
                categories=dataset.categories,
                precision=precision,
            )
            images = [dataset.image(i) for i in range(len(dataset))]
            stream = predictor.stream(images, score_threshold=0.05)
            predictions = {i: prediction.instances for i, prediction in enumerate(stream)}
            rows[f"otus {predictor.precision}"] = average_precision(predictions, dataset)
    for name, figures in rows.items():
        print(f"{name:20s} " + "  ".join(f"{key} {value:.6f}" for key, value in figures.items()))


if __name__ == "__main__":
    main()
