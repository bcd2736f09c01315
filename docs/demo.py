"""The main job on made-up pictures: make a data set, examine it, convert it, judge predictions, look at it.

Run by ``make demo``; every step is the command that a person would type. What it writes is in ``demo-out/``.
"""

import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np

from otus import open_dataset
from otus.data.formats.coco_results import write_results
from otus.data.scene_files import write_scenes
from otus.structures import Objects

OUT = Path("demo-out")
PICTURES = 60


def otus(*arguments: object) -> None:
    """Type a command, show it, and stop where it fails."""
    words = [str(one) for one in arguments]
    print(f"\n$ otus {shlex.join(words)}", flush=True)
    subprocess.run([sys.executable, "-m", "otus", *words], check=True)


def write_imperfect_predictions(data: Path, target: Path) -> None:
    """What a detector might say: the labels with boxes a little off, some missed, some imagined."""
    rng = np.random.default_rng(0)
    dataset = open_dataset(data)
    truth = dataset.objects
    assert truth is not None
    found = truth.take(rng.uniform(size=len(truth)) > 0.15)
    size = np.tile(found.boxes_xyxy[:, 2:] - found.boxes_xyxy[:, :2], 2)
    boxes = found.boxes_xyxy + rng.normal(scale=0.08, size=size.shape) * size
    boxes = np.concatenate([np.minimum(boxes[:, :2], boxes[:, 2:]), np.maximum(boxes[:, :2], boxes[:, 2:])], axis=1)
    guessed = rng.uniform(size=len(found)) < 0.1
    labels = np.where(guessed, rng.integers(0, len(dataset.categories), len(found)), found.labels)
    scores = np.where(guessed, rng.uniform(0.05, 0.6, len(found)), rng.uniform(0.4, 1.0, len(found)))
    boxes_alone = Objects.build(picture=found.picture, labels=labels, boxes_xyxy=boxes, scores=scores)
    write_results(dataset, boxes_alone, target)


def main() -> None:
    """Run all steps in a fresh folder."""
    shutil.rmtree(OUT, ignore_errors=True)
    print(f"making {PICTURES} pictures in {OUT}/scenes", flush=True)
    write_scenes(OUT / "scenes", PICTURES)
    labels = OUT / "scenes" / "annotations.json"
    otus("doctor", labels)
    otus("convert", labels, OUT / "labelme", "--to", "labelme")
    write_imperfect_predictions(labels, OUT / "predictions.json")
    otus("evaluate", "--data", labels, "--predictions", OUT / "predictions.json")
    otus("explain", "taxonomy", "000007.jpg", "--data", labels, "--out", OUT / "taxonomy.png")


if __name__ == "__main__":
    main()
