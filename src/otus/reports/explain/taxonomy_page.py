"""Draw one image's ground truth for five tasks side by side."""

from dataclasses import replace

import numpy as np
from PIL import Image

from otus.reports.explain.taxonomy import TaskTruths
from otus.structures import IGNORE, Instances, PanopticMap, SemanticMap
from otus.visualization.drawing import Colours, ImageArray, Page, draw_panoptic, draw_semantic, overlay
from otus.visualization.palette import colours_apart
from otus.visualization.panels import Panel, grid
from otus.visualization.text import legend, text_size

_MIN_WIDTH = 480  # pixels; smaller images are enlarged first, so that lines and text stay fine
_MAX_WIDTH = 960


def draw_truths(truths: TaskTruths) -> Page:
    """Draw the image and its five kinds of ground truth as panels, two rows of three, with the same colours in all."""
    sample = truths.sample
    height, width = sample.size_hw
    factor = max(1, -(-_MIN_WIDTH // width))
    size = (width * factor, height * factor)
    image = np.asarray(Image.fromarray(sample.image).resize(size, Image.Resampling.LANCZOS))
    colours = _page_colours(truths)
    images: list[tuple[str, str, Page | None]] = [
        ("Image classification", "classification", _draw_names(image, truths.classification, colours)),
        ("Semantic segmentation", "semantic", _draw_semantic(image, truths.semantic, factor, colours)),
        ("Object detection", "detection", _draw_objects(image, truths.detection, colours)),
        ("Instance segmentation", "instance", _draw_objects(image, truths.instance, colours)),
        ("Panoptic segmentation", "panoptic", _draw_panoptic(image, truths.panoptic, factor, colours)),
    ]
    panels = [Panel("Image", f"{sample.key}, {width} × {height} pixels", image)]
    for title, task, panel in images:
        pale = (image // 4 + 190).astype(np.uint8)  # no ground truth for this task
        panels.append(Panel(title, truths.origins[task], pale if panel is None else panel))
    return grid(panels, columns=3, width=min(size[0], _MAX_WIDTH))


def _page_colours(truths: TaskTruths) -> Colours:
    """Return a distinct colour for each category that any panel shows."""
    present_names: dict[str, None] = dict.fromkeys(truths.classification or ())
    all_names: dict[str, None] = {}
    for labels_of_task in (truths.detection, truths.panoptic, truths.semantic):
        if labels_of_task is None or labels_of_task.categories is None:
            continue
        all_names |= dict.fromkeys(labels_of_task.categories)
        if isinstance(labels_of_task, Instances):
            present = labels_of_task.labels
        elif isinstance(labels_of_task, SemanticMap):
            present = labels_of_task.labels[labels_of_task.labels != IGNORE]
        else:
            present = np.array([segment.label for segment in labels_of_task.segments], dtype=np.int64)
        present_names |= dict.fromkeys(labels_of_task.categories[label] for label in np.unique(present).tolist())
    index_of = {name: label for label, name in enumerate(all_names | present_names)}
    labels = sorted(index_of[name] for name in present_names)
    names = tuple(index_of)
    return {names[label]: colour for label, colour in colours_apart(labels, len(index_of)).items()}


def _draw_names(image: ImageArray, names: tuple[str, ...] | None, colours: Colours) -> Page | None:
    if names is None:
        return None
    size_hw = (image.shape[0], image.shape[1])
    entries = [(name, colours[name]) for name in names]
    return np.concatenate([image, legend(entries, size_hw[1], text_size(size_hw))])


def _draw_semantic(image: ImageArray, semantic: SemanticMap | None, factor: int, colours: Colours) -> Page | None:
    if semantic is None:
        return None
    return draw_semantic(image, replace(semantic, labels=_repeated(semantic.labels, factor)), colours=colours)


def _draw_objects(image: ImageArray, objects: Instances | None, colours: Colours) -> Page | None:
    return (
        None if objects is None else overlay(image, objects.resized((image.shape[0], image.shape[1])), colours=colours)
    )


def _draw_panoptic(image: ImageArray, panoptic: PanopticMap | None, factor: int, colours: Colours) -> Page | None:
    if panoptic is None:
        return None
    return draw_panoptic(image, replace(panoptic, ids=_repeated(panoptic.ids, factor)), colours=colours)


def _repeated(pixels: np.ndarray, factor: int) -> np.ndarray:
    return pixels.repeat(factor, axis=-2).repeat(factor, axis=-1)
