"""Train a promptable model: a small SAM over EfficientNet-Lite0 that segments any object, given a click or a box.

It is trained on all available masks: of the objects of VOC 2012, COCO and Penn-Fudan, and of the segments (things and
stuff) of COCO panoptic. The objects of VOC 2007 only have boxes: their masks are those that the packaged Mask R-CNN, the
teacher, predicts with confidence (:mod:`otus.experiments.recipes.packaged_segmenter`). Backbone and pyramid start from
the weights of that Mask R-CNN.

Commands, in this order; to resume an interrupted one, add ``--resume RUN``::

    python -m otus.experiments.recipes.packaged_promptable label DATA MASKS
    python -m … train DATA/voc2012 MASKS/ground_truth.json MASKS/pseudo_masks.json --devices 2 --minutes 75
    python -m … train DATA/voc2012 MASKS/ground_truth.json --devices 2 --minutes 25 --rate 2e-4 --weights RUN/weights/best.safetensors

``DATA`` holds the folders voc2007, voc2012, coco, coco_person, coco_panoptic, penn_fudan. Only the split ``train``
of the VOC sets is trained on; VOC 2012 ``val`` selects the checkpoint. The decoder's layers are too small to gain from
threads: two processes (``--devices 2``) of one thread each train 1.5 times as fast as one of two threads.
"""

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from jaxtyping import Bool

from otus.data.dataset import Dataset
from otus.data.open import open_dataset
from otus.data.sample import Sample
from otus.data.transforms.augmentation import ColorJitter, Compose, CropAndPad, HorizontalFlip
from otus.experiments.recipes.packaged_segmenter import (
    FOREGROUND_PROBABILITY,
    MIN_FOREGROUND_FRACTION,
    PACKAGED,
    TEACHER,
    masks_in_boxes,
)
from otus.inference.loading import load
from otus.inference.predictor import Predictor
from otus.parts.tasks import OBJECT
from otus.structures import Masks
from otus.training.devices import fastest_precision
from otus.training.run import train as train_model
from otus.training.settings import TrainSettings

MODEL = "sam_efficientnet_lite0"
SETTINGS = TrainSettings(batch_size=8, backbone_learning_rate_share=0.3, average_decay=0.998, validate_every=2)

app = typer.Typer(no_args_is_help=True)


@app.command()
def label(data: Path, out: Path) -> None:
    """Write two COCO data sets over copies of the images: the ground truth, and the teacher's masks for VOC 2007."""
    (out / "images").mkdir(parents=True)
    teacher = load(TEACHER)
    ground_truth = [
        open_dataset(data / "voc2012" / "instances_train.json"),
        open_dataset(data / "coco"),
        open_dataset(data / "coco_person"),
        open_dataset(data / "penn_fudan"),
        *(open_dataset(data / "coco_panoptic", split=split) for split in ("train", "val")),
    ]
    boxes = [open_dataset(data / "voc2007", format="voc", split="train")]
    for name, sources in (("ground_truth", ground_truth), ("pseudo_masks", boxes)):
        document = mask_document(sources, teacher, out / "images", prefix=name)
        (out / f"{name}.json").write_text(json.dumps(document))


def mask_document(
    sources: Sequence[Dataset], teacher: Predictor, images_folder: Path, *, prefix: str
) -> dict[str, Any]:
    """Return the masks of data sets in COCO's format, all of one category, and copy the images that have some."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, dataset in enumerate(sources):
        typer.echo(f"{dataset}")
        for index, sample in enumerate(dataset):
            masks = [mask for mask in object_masks(sample, dataset, teacher) if mask.any()]
            if not masks:
                continue
            image = dataset.images.path(index)
            name = f"{prefix}_{number}_{image.name}"
            shutil.copy(image, images_folder / name)
            height, width = sample.size_hw
            images.append({"id": len(images) + 1, "file_name": name, "height": height, "width": width})
            all_masks = Masks.from_dense(np.stack(masks))
            for box, area, rle in zip(all_masks.boxes_xyxy(), all_masks.area(), all_masks.rle_json(), strict=True):
                x1, y1, x2, y2 = box.tolist()
                ids = {"id": len(annotations) + 1, "image_id": len(images), "category_id": 1, "iscrowd": 0}
                shape = {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": float(area), "segmentation": rle}
                annotations.append(ids | shape)
    return {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": OBJECT[0]}]}


def object_masks(sample: Sample, dataset: Dataset, teacher: Predictor) -> Iterator[Bool[np.ndarray, "h w"]]:
    """Yield the masks of an image's objects and segments, except crowds.

    Where VOC has boxes only, yield the teacher's masks, but only confident ones: more than half of the box must have a
    probability of at least ``FOREGROUND_PROBABILITY``.
    """
    if sample.panoptic is not None:
        panoptic = sample.panoptic
        yield from (panoptic.ids == segment.id for segment in panoptic.segments if not segment.is_crowd)
    objects = sample.instances
    if objects is None:
        return
    objects = objects[np.flatnonzero(~objects.column("is_crowd", np.zeros(len(objects), bool)))]
    if objects.masks is not None:
        yield from objects.masks
    elif dataset.format == "voc" and len(objects):
        names = [dataset.categories[int(label)] for label in objects.labels]
        for probability, (x1, y1, x2, y2) in zip(
            masks_in_boxes(sample, objects.boxes_xyxy, names, teacher), objects.boxes_xyxy, strict=True
        ):
            if (probability >= FOREGROUND_PROBABILITY).sum() > 2 * MIN_FOREGROUND_FRACTION * (x2 - x1) * (y2 - y1):
                yield probability >= 0.5


@app.command()
def train(
    voc2012: Path,
    masks: Annotated[list[Path], typer.Argument(help="Data sets that label wrote.")],
    minutes: Annotated[float, typer.Option(help="Training time in minutes.")] = 75,
    weights: Annotated[
        Path | None, typer.Option(help="Initial weights.", show_default="the packaged Mask R-CNN")
    ] = None,
    image_size: Annotated[int, typer.Option(help="Side of the padded images, in pixels.")] = 512,
    devices: Annotated[int, typer.Option(help="Number of processes, or of GPUs.")] = 1,
    rate: Annotated[float | None, typer.Option(help="Learning rate.", show_default="the model's own")] = None,
    resume: Annotated[Path | None, typer.Option(help="Folder of an interrupted run.")] = None,
) -> None:
    """Train the model; the run's folder is packaged_promptable in ``OTUS_RUNS``, by default ~/otus-runs."""
    trained = train_model(
        MODEL,
        [open_dataset(path) for path in masks],
        val=open_dataset(voc2012 / "instances_val.json"),
        weights=weights or PACKAGED / f"{TEACHER}.safetensors",
        settings=replace(SETTINGS, minutes=minutes, devices=devices, learning_rate=rate, precision=fastest_precision()),
        arguments={"image_size": image_size},
        image_size=image_size,
        augment=Compose([HorizontalFlip(), CropAndPad(0.2), ColorJitter(hue=0.0)]),
        out=Path(os.environ.get("OTUS_RUNS") or Path.home() / "otus-runs"),
        name="packaged_promptable",
        resume=resume,
    )
    typer.echo(trained.folder)


if __name__ == "__main__":
    app()
