"""Train the packaged semantic segmenter: Semantic FPN with EfficientNet-Lite0, 20 VOC categories and background.

Few images have a label for every pixel: 769 of VOC 2012, and some of COCO, whose polygons are drawn as VOC's categories.
Many more have boxes: 3,689 of VOC 2007. Given the box and its category, the mask head of the packaged Mask R-CNN, the
teacher, predicts pseudo-labels for the pixels of the box, similar to BoxSup (Dai et al., ICCV 2015, arXiv:1503.01640).
Pixels with intermediate probabilities are ignored, and so is a box with few foreground pixels. Pixels outside all boxes
are background.

Backbone and pyramid start from the packaged Mask R-CNN too, which was trained on these categories.

Commands, in this order; to resume an interrupted one, add ``--resume RUN``::

    python -m otus.experiments.recipes.packaged_segmenter label DATA LABELS
    OMP_WAIT_POLICY=PASSIVE python -m … train LABELS/all DATA/voc2012 --minutes 45
    python -m … train LABELS/all DATA/voc2012 --weights FIRST --larger --rate 7e-4 --minutes 36
    python -m … pack RUN DATA/voc2012

Between the two trainings, the packaged weights were also fine-tuned for 22 minutes on LABELS/exact alone (the images
labelled by people, at 1.0 to 1.45 times 320 pixels, learning rate 4e-4), which raised mIoU at 384 pixels from 0.551 to
0.568. The second training started from the mean of the weights before and after, with mIoU 0.570, and ended at 0.602
(0.592 at 320 pixels).

``DATA`` holds the folders voc2007, voc2012, coco, coco_person, coco_panoptic. The split ``train`` of the VOC sets is
trained on; VOC 2012 ``val`` selects the checkpoint and is never trained on.
"""

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, cast

import numpy as np
import torch
import typer
from jaxtyping import Float, Int

from otus.data.image_writing import write_label_image
from otus.data.open import open_dataset
from otus.data.sample import Sample
from otus.data.transforms.augmentation import ColorJitter, Compose, CropAndPad, HorizontalFlip
from otus.detection.region_based.region_detector import MapHead, RegionDetector
from otus.evaluation.evaluate import evaluate
from otus.inference.loading import load
from otus.inference.predictor import Predictor
from otus.parts.batching import make_batch
from otus.parts.detections import Detections
from otus.parts.preprocess import Preprocess
from otus.structures import IGNORE, Categories, Instances
from otus.structures.boxes import area
from otus.structures.masks import paste
from otus.training.devices import fastest_precision
from otus.training.run import train as train_model
from otus.training.settings import TrainSettings
from otus.zoo import weights as zoo_weights
from otus.zoo.checkpoint import load_checkpoint, save_checkpoint
from otus.zoo.voc import VOC_WITH_BACKGROUND

MODEL = "semantic_fpn_efficientnet_lite0"
TEACHER = "mask_rcnn_efficientnet_lite0_fpn"
SETTINGS = TrainSettings(
    batch_size=8,
    backbone_learning_rate_share=0.3,
    scales=(0.8, 0.9, 1.0, 1.1, 1.2),
    average_decay=0.998,
)
PREDICT_SIZE = 384
PACKAGED = Path(zoo_weights.__file__).parent / "packaged"
LICENCE = "Apache-2.0 (weights; learned from VOC and COCO photographs, which are under Flickr's terms, for research)"
LARGER = (0.9, 1.0, 1.1, 1.2, 1.3)
FOREGROUND_PROBABILITY, IGNORE_PROBABILITY = 0.6, 0.3
"""Minimum probability by the teacher for a pixel to be foreground, and for it to be ignored instead of background."""
MIN_FOREGROUND_FRACTION = 0.25
"""Fraction of a box; with fewer foreground pixels, the background pixels of the box are ignored too."""

_OF_COCO = {
    "airplane": "aeroplane",
    "couch": "sofa",
    "dining table": "diningtable",
    "motorcycle": "motorbike",
    "potted plant": "pottedplant",
    "tv": "tvmonitor",
}
_VOC_INDEX = {name: index for index, name in enumerate(VOC_WITH_BACKGROUND)}

_CARD = """\
# {name}

Labels every pixel as one of 20 categories of objects (those of Pascal VOC) or background, on images resized to
{predict_size} pixels. Semantic FPN (Kirillov et al., CVPR 2019) over EfficientNet-Lite0 (Tan and Le, ICML 2019).

- Weights: float16, {megabytes:.1f} MB. Licence: {licence}.
- Initial weights: backbone and pyramid of the packaged mask_rcnn_efficientnet_lite0_fpn.
- Trained on {images} images: VOC 2012 segmentation `train` (labels), COCO (polygons drawn as VOC's categories) and
  VOC 2007 `train` (boxes, with masks predicted by that Mask R-CNN).
- Last training: {steps} steps of {settings[batch_size]} images in {hours:.2f} hours on {threads} busy cores,
  torch {torch}; all trainings and their commands are in `otus.experiments.recipes.packaged_segmenter`.
- Weak at thin objects (bicycles, legs of chairs) and small ones; predicts no other categories than these.

Metrics in the precision of `otus predict`. Checkpoint, averaging of weights before the last training, and image size were
selected on VOC 2012 `val`, so its metrics are optimistic; it was not trained on.

{figures}

| VOC 2012 val | IoU |
| --- | --- |
{table}
"""

app = typer.Typer(no_args_is_help=True)


@app.command()
def label(data: Path, out: Path) -> None:
    """Write label images: ``exact`` for images labelled by people, ``all`` with the teacher's pseudo-labels too."""
    for folder in ("exact", "all"):
        (out / folder / "images").mkdir(parents=True)
        (out / folder / "masks").mkdir()
        names = (f"{index} {name}\n" for index, name in enumerate(VOC_WITH_BACKGROUND))
        (out / folder / "classes.txt").write_text("".join(names))
    teacher = load(TEACHER)
    sources = [
        open_dataset(data / "voc2012", format="voc", split="train"),
        open_dataset(data / "coco"),
        open_dataset(data / "coco_person"),
        *(open_dataset(data / "coco_panoptic", split=split) for split in ("train", "val")),
        open_dataset(data / "voc2007", format="voc", split="train"),
    ]
    for number, dataset in enumerate(sources):
        typer.echo(f"{dataset}")
        for index, sample in enumerate(dataset):
            labels, exact = label_map(sample, dataset.categories, teacher)
            image = dataset.images.path(index)
            name = f"{number}_{image.stem}"
            for folder in ("exact", "all") if exact else ("all",):
                shutil.copy(image, out / folder / "images" / f"{name}{image.suffix}")
                write_label_image(out / folder / "masks" / f"{name}.png", labels)


def label_map(sample: Sample, categories: Categories, teacher: Predictor) -> tuple[Int[np.ndarray, "h w"], bool]:
    """Return the class index of each pixel, and whether all labels are by people (none by the teacher).

    Parameters
    ----------
    sample
        Image with a semantic map, a panoptic map, or objects; the teacher predicts missing masks of objects.
    categories
        Categories of the sample's objects or segments.
    teacher
        Mask R-CNN with VOC's categories.
    """
    if sample.semantic is not None:
        return sample.semantic.labels, True
    index_of = [_VOC_INDEX.get(_OF_COCO.get(name, name), 0) for name in categories]
    labels = np.zeros(sample.size_hw, dtype=np.int64)
    if sample.panoptic is not None:  # COCO's void
        labels[sample.panoptic.ids == 0] = IGNORE
        for segment in sample.panoptic.segments:
            labels[sample.panoptic.ids == segment.id] = IGNORE if segment.is_crowd else index_of[segment.label]
        return labels, True
    objects = cast(Instances, sample.instances)
    objects = objects[np.flatnonzero([index_of[label] for label in objects.labels])]
    masks = np.zeros((len(objects), *sample.size_hw), dtype=bool) if objects.masks is None else objects.masks.dense()
    has_no_mask = masks.any(axis=(1, 2)) == 0
    probabilities = masks.astype(np.float32)
    if has_no_mask.any():
        names = [VOC_WITH_BACKGROUND[index_of[label]] for label in objects.labels[has_no_mask]]
        probabilities[has_no_mask] = masks_in_boxes(sample, objects.boxes_xyxy[has_no_mask], names, teacher)
    largest_first = np.argsort(-area(objects.boxes_xyxy))
    for i in largest_first:  # small objects are usually in front of large ones, so they are drawn last
        labels[probabilities[i] >= IGNORE_PROBABILITY] = IGNORE
        labels[probabilities[i] >= FOREGROUND_PROBABILITY] = (
            IGNORE if objects.columns["is_crowd"][i] else index_of[objects.labels[i]]
        )
    for i in np.flatnonzero(has_no_mask):
        x1, y1, x2, y2 = objects.boxes_xyxy[i].round().astype(int)
        if (probabilities[i] >= FOREGROUND_PROBABILITY).sum() < MIN_FOREGROUND_FRACTION * (x2 - x1) * (y2 - y1):
            box = labels[y1:y2, x1:x2]
            box[box == 0] = IGNORE
    return labels, not has_no_mask.any()


@torch.inference_mode()
def masks_in_boxes(
    sample: Sample, boxes_xyxy: Float[np.ndarray, "n 4"], names: Sequence[str], teacher: Predictor
) -> Float[np.ndarray, "n h w"]:
    """Return the mask probabilities of objects, given their boxes, by the mask head of Mask R-CNN; 0 outside the box.

    Parameters
    ----------
    sample
        Sample with the image; its labels are not used.
    boxes_xyxy, names
        (N, 4) boxes in pixels of the image, and the N category names.
    teacher
        Mask R-CNN with these categories.
    """
    detector = cast(RegionDetector, teacher.pipeline.system)
    mask_head = cast(MapHead, detector.mask_head)
    prepared = teacher.pipeline.prepare(Sample(image=sample.image, key=sample.key))
    height, width = prepared["image"].shape[-2:]
    ratios = np.array([width / sample.size_hw[1], height / sample.size_hw[0]] * 2)
    detections = Detections(
        boxes=torch.from_numpy((boxes_xyxy * ratios).astype(np.float32)),
        scores=torch.ones(len(names)),
        labels=torch.tensor([teacher.categories.index(name) for name in names]),
        origins=torch.arange(len(names)),
    )
    batch = make_batch([prepared], size_divisor=detector.size_divisor, min_size=detector.min_size)
    maps = detector.region_features.prepare(batch.images)
    probabilities = mask_head.predict(maps, [detections])[0]
    return paste(probabilities.numpy(), boxes_xyxy, sample.size_hw)


@app.command()
def train(
    labels: Path,
    voc2012: Path,
    minutes: Annotated[float, typer.Option(help="Training time in minutes.")] = 60,
    weights: Annotated[
        Path | None, typer.Option(help="Initial weights.", show_default="the packaged Mask R-CNN")
    ] = None,
    larger: Annotated[bool, typer.Option("--larger", help="Train on larger images, for a second training.")] = False,
    rate: Annotated[float | None, typer.Option(help="Learning rate.", show_default="the model's own")] = None,
    resume: Annotated[Path | None, typer.Option(help="Folder of an interrupted run.")] = None,
) -> None:
    """Train the model; the run's folder is packaged_segmenter in ``OTUS_RUNS``, by default ~/otus-runs."""
    trained = train_model(
        MODEL,
        open_dataset(labels),
        val=open_dataset(voc2012, format="voc", split="val"),
        weights=weights or PACKAGED / f"{TEACHER}.safetensors",
        settings=replace(
            SETTINGS,
            minutes=minutes,
            learning_rate=rate,
            scales=LARGER if larger else SETTINGS.scales,
            precision=fastest_precision(),
        ),
        image_size=320,
        augment=Compose([HorizontalFlip(), CropAndPad(0.2), ColorJitter(hue=0.0)]),
        out=Path(os.environ.get("OTUS_RUNS") or Path.home() / "otus-runs"),
        name="packaged_segmenter",
        resume=resume,
    )
    typer.echo(trained.folder)


@app.command()
def pack(run: Path, voc2012: Path) -> None:
    """Evaluate a run's best weights on VOC 2012 ``val`` and write them into the package as float16, with a model card."""
    state, header = load_checkpoint(run / "weights" / "best.safetensors")
    target = PACKAGED / f"{MODEL}.safetensors"
    half = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    preprocess = Preprocess(shorter_side=PREDICT_SIZE, longer_side=PREDICT_SIZE)
    header = replace(header, licence=LICENCE, preprocess=preprocess.to_dict())
    save_checkpoint(target, half, header)
    predictor = load(target, precision="auto")
    report = evaluate(voc2012, model=predictor, format="voc", split="val", protocol="semantic")
    result = report.results["semantic"]
    figures = {f"VOC 2012 val {name}": float(result.figures[name]) for name in ("mIoU", "aAcc")}
    save_checkpoint(target, half, replace(header, training={**header.training, "figures": figures}))
    record = json.loads((run / "run.json").read_text())
    card = _CARD.format(
        **record,
        name=MODEL,
        predict_size=PREDICT_SIZE,
        megabytes=target.stat().st_size / 1e6,
        licence=LICENCE,
        figures="\n".join(f"- {name}: {value:.3f}" for name, value in figures.items()),
        table="\n".join(f"| {name} | {values['IoU']:.3f} |" for name, values in result.per_category.items()),
    )
    target.with_suffix(".md").write_text(card)
    typer.echo(card)


if __name__ == "__main__":
    app()
