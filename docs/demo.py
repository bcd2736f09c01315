"""The main job: objects found on photographs by the model in the package, and a look at how good predictions are.

Run by ``make demo``; every step is the command that a person would type. The photographs are those that scikit-image and
matplotlib carry in their wheels. What is written is in ``demo-out/``; open ``demo-out/photographs/index.html``.
"""

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import matplotlib
import numpy as np
import skimage.data
from rich.console import Console
from rich.table import Table

from otus import open_dataset
from otus.data.formats.coco_results import write_results
from otus.data.image_writing import write_image
from otus.data.images import read_image
from otus.data.scenes.files import write_scenes
from otus.structures import Objects
from otus.visualization.panels import Panel, grid
from otus.zoo.catalogue import list_models

OUT = Path("demo-out")
PHOTOGRAPHS = (
    "chelsea.png", "astronaut.png", "coffee.png", "grace_hopper.jpg", "motorcycle_left.png", "camera.png", "rocket.jpg"
)  # fmt: skip
SEMANTIC_MODEL = "semantic_fpn_efficientnet_lite0"
SHOWN_TOGETHER = 3  # those that may be copied into the README (docs/decisions/0006)
RIGHT = "right"
# Looked at by a person: what the model, which knows 20 categories, takes for what.
VERDICTS = {
    ("chelsea", "cat"): RIGHT,
    ("astronaut", "person"): RIGHT,
    ("astronaut", "bottle"): "wrong: a space shuttle, none of the 20",
    ("coffee", "bottle"): "wrong: a cup, none of the 20",
    ("grace_hopper", "person"): RIGHT,
    ("motorcycle_left", "motorbike"): RIGHT,
    ("camera", "person"): RIGHT,
    ("camera", "bicycle"): "wrong: a tripod, none of the 20",
    ("rocket", "boat"): "wrong: a tower; nor is a rocket one of the 20",
}
SCENES = 60


def otus(*arguments: object, capture: bool = False) -> str:
    """Type a command, show it, and stop where it fails; what it answers if ``capture``."""
    words = [str(one) for one in arguments]
    print(f"\n$ otus {shlex.join(words)}", flush=True)
    command = [sys.executable, "-m", "otus", *words]
    return subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE if capture else None).stdout


def photograph(name: str) -> Path:
    """Where the photograph of that name lies, which came with a package."""
    folders = (Path(skimage.data.__file__).parent, Path(matplotlib.get_data_path(), "sample_data"))
    return next(folder / name for folder in folders if (folder / name).is_file())


def verdict(image: str, category: str) -> str:
    """Whether that is so."""
    return VERDICTS.get((Path(image).stem, category), "nobody looked at this one yet")


def show_found(document: dict) -> None:
    """A table of what was found where, and whether it is so."""
    table = Table(title=f"found by {document['model']}", title_justify="left")
    for name in ("image", "category", "score", "is that so?"):
        table.add_column(name, justify="left" if name in ("image", "category", "is that so?") else "right")
    verdicts = []
    for image in document["images"]:
        for one in image["instances"] or [{"category": "nothing", "score": None}]:
            score = "" if one["score"] is None else f"{one['score']:.2f}"
            words = "" if one["score"] is None else verdict(image["file"], one["category"])
            verdicts += [words] if words else []
            table.add_row(Path(image["file"]).name, one["category"], score, words)
    Console().print(table)
    print(f"{verdicts.count(RIGHT)} of {len(verdicts)} are right", flush=True)


def draw_together(folder: Path, document: dict, target: Path) -> None:
    """The overlays of the first photographs side by side."""
    panels = []
    for image in document["images"][:SHOWN_TOGETHER]:
        name = Path(image["file"]).stem
        words = [
            f"{one['category']} {one['score']:.2f}, {verdict(name, one['category'])}" for one in image["instances"]
        ]
        panels.append(Panel(name, "; ".join(words) or "nothing found", read_image(folder / f"{name}.jpg")))
    write_image(target, grid(panels, columns=len(panels), width=400))


def show_panoptic(photographs: list[Path]) -> None:
    """The same photographs by the semantic model, and both models' answers merged; side by side."""
    otus("predict", *photographs, "--model", SEMANTIC_MODEL, "--out", OUT / "semantic")
    otus("predict", *photographs, "--semantic-model", SEMANTIC_MODEL, "--out", OUT / "panoptic")
    panels = []
    for path in photographs[:SHOWN_TOGETHER]:
        for folder, words in (
            ("photographs", "objects, each with a mask"),
            ("semantic", "the category of every pixel"),
            ("panoptic", "merged: each pixel in one segment at most"),
        ):
            panels.append(Panel(path.stem, words, read_image(OUT / folder / f"{path.stem}.jpg")))
    write_image(OUT / "panoptic.jpg", grid(panels, columns=3, width=400))
    print(f"objects, categories of pixels and the merge of both side by side in {OUT}/panoptic.jpg", flush=True)


def tell_what_is_next() -> None:
    """What to open, and what to type on one's own images."""
    command = Path(sys.executable).with_name("otus")
    own = os.path.relpath(command) if command.is_relative_to(Path.cwd()) else "otus"
    page = (OUT / "photographs" / "index.html").resolve()
    print(
        f"""
Open {page.as_uri()}
Then, with images of your own:
  {own} predict my-photos --page     # then open otus-predictions/index.html
  {own} doctor my-photos             # with labels: is anything wrong with them?
  {own} train --weights packaged --data my-photos/annotations.json --val 0.2 --minutes 10
  {own} predict my-photos --page --model RUN    # RUN: the folder that train names
  {own} --help                       # the help of every verb ends with two examples
"""
    )


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
    boxes_alone = Objects.build(image_index=found.image_index, labels=labels, boxes_xyxy=boxes, scores=scores)
    write_results(dataset, boxes_alone, target)


def main() -> None:
    """Run all steps in a fresh folder."""
    shutil.rmtree(OUT, ignore_errors=True)
    photographs = [photograph(name) for name in PHOTOGRAPHS]
    found = otus("predict", *photographs, "--out", OUT / "photographs", "--page", "--json", capture=True)
    show_found(json.loads(found))
    draw_together(OUT / "photographs", json.loads(found), OUT / "found.jpg")
    print(f"overlays, predictions.json (COCO) and index.html in {OUT}/photographs", flush=True)

    if SEMANTIC_MODEL in list_models("semantic", trained=True):
        show_panoptic(photographs)

    print(f"\nmaking {SCENES} images with labels in {OUT}/scenes", flush=True)
    write_scenes(OUT / "scenes", SCENES)
    labels = OUT / "scenes" / "annotations.json"
    print(
        "\nMade-up scenes, and predictions with deliberate mistakes (of no model), to have something to judge:",
        flush=True,
    )
    write_imperfect_predictions(labels, OUT / "predictions.json")
    otus("doctor", labels)
    otus("evaluate", "--data", labels, "--predictions", OUT / "predictions.json")
    otus("explain", "taxonomy", "000007.jpg", "--data", labels, "--out", OUT / "taxonomy.png")
    tell_what_is_next()


if __name__ == "__main__":
    main()
