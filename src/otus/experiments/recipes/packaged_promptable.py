r"""Train a promptable model: a small SAM over EfficientNet-Lite0 that segments any object, given a click or a box.

It is trained on all available masks: of the objects of VOC 2012, COCO and Penn-Fudan, and of the segments (things and
stuff) of COCO panoptic. The objects of VOC 2007 only have boxes: their masks are those that the packaged Mask R-CNN, the
teacher, predicts with confidence (:mod:`otus.experiments.recipes.packaged_segmenter`). Backbone and pyramid start from
the weights of that Mask R-CNN.

Commands, in this order; to resume an interrupted one, add ``--resume RUN``::

    python -m otus.experiments.recipes.packaged_promptable label DATA MASKS
    python -m … train DATA/voc2012 MASKS/ground_truth.json MASKS/ground_truth.json MASKS/pseudo_masks.json \
        --devices 2 --minutes 180 --image-size 384
    python -m … pack RUN DATA

The ground truth is given twice because the teacher's masks are coarse. The packaged weights come from several shorter
trainings, each from the weights of the one before, 384 pixels all: 34 minutes with the focal loss, of which only the image
encoder was kept; 14 minutes of ``--frozen-encoder --rate 1e-3`` on MASKS/ground_truth.json, with the focal loss too; 35
minutes at ``--rate 8e-4`` with each data set once and three rounds; 49 minutes as above at ``--rate 8e-4``; 62 minutes
at ``--rate 6e-4``, for which the convolutions of :class:`~otus.promptable.mask_decoder.Mixing` were added; and 90 minutes
at ``--rate 8e-4`` with the ground truth given three times. Only in this last one were images cropped by
:class:`~otus.data.transforms.augmentation.ZoomToObject`: half of the masks are smaller than a hundredth of their image. With
the focal loss the model had learned little from prompts: IoU after one click 0.33, after five 0.25
(:mod:`otus.promptable.interactive_training` says why).

``DATA`` holds the folders voc2007, voc2012, coco, coco_person, coco_panoptic, penn_fudan, and for ``pack`` interactive and
duplicates.tsv. Only the split ``train`` of the VOC sets is trained on; VOC 2012 ``val`` selects the checkpoint. The
decoder's layers are too small to gain from threads: two processes (``--devices 2``) of one thread each train 1.5 times as
fast as one of two threads.
"""

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from jaxtyping import Bool
from scipy.stats import spearmanr

from otus.data.dataset import Dataset
from otus.data.open import open_dataset
from otus.data.sample import Sample
from otus.data.transforms.augmentation import ColorJitter, Compose, CropAndPad, HorizontalFlip, ZoomToObject
from otus.evaluation.clicking import click_targets, evaluate_method
from otus.experiments.recipes.packaged_segmenter import (
    FOREGROUND_PROBABILITY,
    LICENCE,
    MIN_FOREGROUND_FRACTION,
    PACKAGED,
    TEACHER,
    masks_in_boxes,
)
from otus.inference.loading import load
from otus.inference.predictor import Predictor
from otus.inference.promptable import load_method, load_sam
from otus.metrics.clicks import next_click
from otus.parts.tasks import OBJECT
from otus.promptable.method import SamMethod
from otus.structures import Masks, Prompt
from otus.training.devices import fastest_precision
from otus.training.run import train as train_model
from otus.training.settings import TrainSettings
from otus.zoo.checkpoint import load_checkpoint, save_checkpoint

MODEL = "sam_efficientnet_lite0"
SETTINGS = TrainSettings(batch_size=8, backbone_learning_rate_share=0.3, average_decay=0.998, validate_every=2)

_CARD = """\
# {name}

Segments any object, given a point, a box, or both, and refines the mask with each further point; for a single point it
predicts three candidates with scores. Images are resized to {image_size} pixels. SAM's decoder (Kirillov et al., ICCV 2023)
with 128 channels, and the finer features of SAM 2 (Ravi et al., ICLR 2025), over EfficientNet-Lite0 (Tan and Le, ICML
2019) and a feature pyramid.

- Weights: float16, {megabytes:.1f} MB. Licence: {licence}.
- Initial weights: backbone and pyramid of the packaged mask_rcnn_efficientnet_lite0_fpn.
- Trained on the masks of VOC 2012 `train`, COCO, COCO panoptic and Penn-Fudan (1,428 images), and on VOC 2007 `train`
  (2,161 images with boxes, whose masks that Mask R-CNN predicted).
- Last training: {steps} steps of {settings[batch_size]} images in {hours:.2f} hours, {settings[devices]} processes of
  {threads} thread, torch {torch}; all trainings and their commands are in `otus.experiments.recipes.packaged_promptable`.
- On one thread of the machine that evaluated it: {embed_ms:.0f} ms to embed an image, {click_ms:.0f} ms per click,
  {zoom_ms:.0f} ms on average with zoom-in, which embeds the window around a small object again.
- Weak at small objects without zoom-in, and at parts of objects, which it has hardly seen; it takes no text.

Simulated clicks, up to 20, each in the middle of the largest error, in float32. NoC@85 is the mean number of clicks until
the IoU is 0.85; fewer are better. The checkpoint was selected on VOC 2012 `val`, so its metrics are optimistic; it was not
trained on. Of `interactive` (GrabCut's and VOC's images), the {interactive} images that are not in VOC under another name.

| | {columns} |
| --- |{rules}
{rows}

The three candidates of the first click ({objects} objects of VOC 2012 `val`): the best one has IoU {best:.3f}, the one with
the highest score {top:.3f}. Spearman's rank correlation of scores and IoUs: {correlation:.2f}.

{figures}
"""
DATASETS = ("VOC 2012 val", "interactive")
METHODS = ((MODEL, False), (MODEL, True), ("graph-cut", False))
"""Names of the methods, and whether they zoom in."""
FIGURES = ("NoC@85", "NoC@90", "IoU@1", "IoU@3", "IoU@5")

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
    frozen_encoder: Annotated[bool, typer.Option("--frozen-encoder", help="Freeze the image encoder.")] = False,
    resume: Annotated[Path | None, typer.Option(help="Folder of an interrupted run.")] = None,
) -> None:
    """Train the model; the run's folder is packaged_promptable in ``OTUS_RUNS``, by default ~/otus-runs."""
    trained = train_model(
        MODEL,
        [open_dataset(path) for path in masks],
        val=open_dataset(voc2012 / "instances_val.json"),
        weights=weights or PACKAGED / f"{TEACHER}.safetensors",
        settings=replace(
            SETTINGS,
            minutes=minutes,
            devices=devices,
            learning_rate=rate,
            frozen_encoder=frozen_encoder,
            precision=fastest_precision(),
        ),
        arguments={"image_size": image_size},
        image_size=image_size,
        augment=Compose([HorizontalFlip(), ZoomToObject(), CropAndPad(0.2), ColorJitter(hue=0.0)]),
        out=Path(os.environ.get("OTUS_RUNS") or Path.home() / "otus-runs"),
        name="packaged_promptable",
        resume=resume,
    )
    typer.echo(trained.folder)


@app.command()
def pack(run: Path, data: Path) -> None:
    """Evaluate a run's best weights beside GraphCut and write them into the package as float16, with a model card."""
    torch.set_num_threads(1)
    state, header = load_checkpoint(run / "weights" / "best.safetensors")
    target = PACKAGED / f"{MODEL}.safetensors"
    half = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    header = replace(header, licence=LICENCE)
    save_checkpoint(target, half, header)
    jobs = [(data, name, *method) for name in DATASETS for method in METHODS]
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        results = {job[1:]: result for job, result in zip(jobs, pool.map(click_figures, jobs), strict=True)}
    packaged, val = load_sam(target), open_dataset(data / "voc2012" / "instances_val.json")
    fast = load_sam(target, precision="auto")
    top, best, correlation = candidate_quality(val, packaged)
    figures = {
        f"{name} clicks{' zoomed in' if zoom_in else ''} {figure}": float(row[figure])
        for (name, method, zoom_in), row in results.items()
        if method == MODEL
        for figure in FIGURES
    }
    save_checkpoint(target, half, replace(header, training={**header.training, "figures": figures}))
    card = _CARD.format(
        **json.loads((run / "run.json").read_text()),
        name=MODEL,
        image_size=packaged.sam.image_size,
        megabytes=target.stat().st_size / 1e6,
        licence=LICENCE,
        embed_ms=1000 * float(np.median([_seconds(fast.embed, val.image(index)) for index in range(20)])),
        click_ms=1000 * results["VOC 2012 val", MODEL, False]["seconds_per_click"],
        zoom_ms=1000 * results["VOC 2012 val", MODEL, True]["seconds_per_click"],
        interactive=len(interactive_images(data)),
        columns=" | ".join(FIGURES),
        rules=" ---: |" * len(FIGURES),
        rows="\n".join(
            f"| {name}, {method}{', zoomed in' * zoom_in} | {' | '.join(f'{row[figure]:.3f}' for figure in FIGURES)} |"
            for (name, method, zoom_in), row in results.items()
        ),
        objects=len(val.objects or ()),
        best=best,
        top=top,
        correlation=correlation,
        figures="\n".join(f"- {name}: {value:.3f}" for name, value in figures.items()),
    )
    target.with_suffix(".md").write_text(card)
    typer.echo(card)


def click_figures(job: tuple[Path, str, str, bool]) -> Mapping[str, float]:
    """Return the metrics of simulated clicks on one thread: folder of the data, name of the data set, method, zoom-in."""
    torch.set_num_threads(1)
    data, name, method, zoom_in = job
    interactive = name == "interactive"
    dataset = interactive_images(data) if interactive else open_dataset(data / "voc2012" / "instances_val.json")
    return evaluate_method(dataset, load_method(method, zoom_in=zoom_in)).results["interactive"].figures


def interactive_images(data: Path) -> Dataset:
    """Return the data set ``interactive`` without the photographs that are in VOC under another name."""
    dataset = open_dataset(data / "interactive")
    lines = (data / "duplicates.tsv").read_text().splitlines()[1:]
    twins = {file.removeprefix("interactive/") for line in lines for file in line.split("\t")}
    return dataset.select([index for index, file in enumerate(dataset.images.files) if file not in twins])


def candidate_quality(dataset: Dataset, method: SamMethod) -> tuple[float, float, float]:
    """Return the quality of the candidates for the first click on each object.

    Returns
    -------
    top, best
        Mean IoU of the candidates with the highest scores, and of those with the highest IoUs.
    correlation
        Spearman's rank correlation of scores and IoUs.
    """
    scores: list[np.ndarray] = []
    ious: list[np.ndarray] = []
    for index in range(len(dataset)):
        embedding = method.embed(dataset.image(index))
        for target, ignore in click_targets(dataset, index):
            click = next_click(np.zeros_like(target), target, ignore=ignore)
            assert click is not None
            candidates = method.segment(embedding, Prompt([click[:2]], [1]))
            scores.append(candidates.scores)
            ious.append(candidates.masks.iou(Masks.from_dense(target[None]))[:, 0])
    all_scores, all_ious = np.stack(scores), np.stack(ious)
    correlation = float(spearmanr(all_scores.ravel(), all_ious.ravel()).statistic)
    return float(all_ious[:, 0].mean()), float(all_ious.max(axis=1).mean()), correlation


def _seconds(function: Callable[..., Any], *args: Any) -> float:
    start = time.perf_counter()
    function(*args)
    return time.perf_counter() - start


if __name__ == "__main__":
    app()
