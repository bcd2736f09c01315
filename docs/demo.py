"""The main job: objects found on photographs by the model in the package, and a look at how good predictions are.

Run by ``make demo``; every step is the command that a person would type. The photographs are those that scikit-image carries
in its wheel. What is written is in ``demo-out/``; open ``demo-out/photographs/index.html``.
"""

import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import skimage.data
from rich.console import Console
from rich.table import Table

from otus import open_dataset
from otus.data.formats.coco_results import write_results
from otus.data.pictures import read_picture, write_picture
from otus.data.scene_files import write_scenes
from otus.reports.panels import Panel, grid
from otus.reports.predictions import found_in_words
from otus.structures import Objects

OUT = Path("demo-out")
PHOTOGRAPHS = ("astronaut.png", "chelsea.png", "motorcycle_left.png", "camera.png", "coffee.png")
SHOWN_TOGETHER = 2
SCENES = 60


def otus(*arguments: object, capture: bool = False) -> str:
    """Type a command, show it, and stop where it fails; what it answers if ``capture``."""
    words = [str(one) for one in arguments]
    print(f"\n$ otus {shlex.join(words)}", flush=True)
    command = [sys.executable, "-m", "otus", *words]
    return subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE if capture else None).stdout


def show_found(document: dict) -> None:
    """A table of what was found where."""
    table = Table(title=f"found by {document['model']}", title_justify="left")
    for name in ("picture", "category", "score", "x", "y", "width", "height"):
        table.add_column(name, justify="left" if name in ("picture", "category") else "right")
    for picture in document["images"]:
        for one in picture["instances"] or [{"category": "nothing", "score": None, "bbox": []}]:
            score = "" if one["score"] is None else f"{one['score']:.2f}"
            table.add_row(Path(picture["file"]).name, one["category"], score, *(f"{v:.0f}" for v in one["bbox"]))
    Console().print(table)


def draw_together(folder: Path, document: dict, target: Path) -> None:
    """The overlays of the first photographs side by side."""
    panels = []
    for picture in document["images"][:SHOWN_TOGETHER]:
        name = Path(picture["file"]).stem
        panels.append(Panel(name, found_in_words(picture["instances"]), read_picture(folder / f"{name}.jpg")))
    write_picture(target, grid(panels, columns=len(panels)))


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
    folder = Path(skimage.data.__file__).parent
    photographs = [folder / name for name in PHOTOGRAPHS]
    found = otus("predict", *photographs, "--out", OUT / "photographs", "--page", "--json", capture=True)
    show_found(json.loads(found))
    draw_together(OUT / "photographs", json.loads(found), OUT / "found.jpg")
    print(f"overlays, predictions.json (COCO) and index.html in {OUT}/photographs", flush=True)

    print(f"\nmaking {SCENES} pictures with labels in {OUT}/scenes", flush=True)
    write_scenes(OUT / "scenes", SCENES)
    labels = OUT / "scenes" / "annotations.json"
    write_imperfect_predictions(labels, OUT / "predictions.json")
    otus("doctor", labels)
    otus("evaluate", "--data", labels, "--predictions", OUT / "predictions.json")
    otus("explain", "taxonomy", "000007.jpg", "--data", labels, "--out", OUT / "taxonomy.png")


if __name__ == "__main__":
    main()
