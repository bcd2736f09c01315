"""Images of a run to look at: training batches with targets, and predictions on validation images."""

from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from otus.data.dataset import Dataset
from otus.data.tensors import TensorSample
from otus.inference.predictor import SCORE_THRESHOLD
from otus.parts.preprocess import Preprocess
from otus.parts.tasks import DETECTION, TASKS, Task
from otus.structures import Categories, Classification, Instances, Masks, PanopticMap, SemanticMap
from otus.visualization.drawing import object_legend
from otus.visualization.panels import mosaic

_BEST = 3  # predictions to draw on an image where none reaches the score threshold
_LONGER_SIDE = 480  # of an image in a mosaic
ImageArray = UInt8[np.ndarray, "h w 3"]


def draw_batch(
    samples: Sequence[TensorSample], *, preprocess: Preprocess, categories: Categories, task: Task = DETECTION
) -> ImageArray:
    """Draw the images of a batch as the network gets them, with their targets."""
    tiles, legends = [], []
    for sample in samples:
        target = _target(sample, categories, task)
        # Drawn by the type of the target: a classifier may train on objects.
        target_task = next((other for other in TASKS if isinstance(target, other.result_type)), task)
        drawing, objects = _draw_tile(_pixels(sample["image"], preprocess), target, target_task)
        tiles.append(("", [drawing]))
        legends.append(objects)
    return mosaic(tiles, object_legend(legends, counts=False))


def draw_predictions(dataset: Dataset, results: Mapping[int, Any], task: Task, *, count: int = 9) -> ImageArray:
    """Draw images of a data set with the ground truth on the left and the predictions on the right."""
    indices = np.unique(np.linspace(0, len(dataset) - 1, min(count, len(dataset))).round().astype(int)).tolist()
    tiles, legends = [], []
    for index in indices:
        sample = dataset[index]
        prediction, description = _filter_by_score(results[index])
        pair = [_draw_tile(sample.image, result, task) for result in (task.ground_truth(sample), prediction)]
        tiles.append((f"{PurePath(sample.key).name}: labels | {description}", [drawing for drawing, _ in pair]))
        legends += [objects for _, objects in pair]
    return mosaic(tiles, object_legend(legends, counts=False))


def _draw_tile(image: ImageArray, result: Any | None, task: Task) -> tuple[ImageArray, Instances]:
    """Draw an image with its result at tile size, with the same line width for all image sizes; return it with the
    objects of the result, for the legend."""
    scale = _LONGER_SIDE / max(image.shape)
    height, width = (max(1, round(side * scale)) for side in image.shape[:2])
    pixels = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.LANCZOS))
    if result is None:
        return pixels, Instances.empty((height, width))
    result = result.resized((height, width))
    return task.display.draw(pixels, result, labels=False), task.display.objects(result, (height, width))


def _filter_by_score(result: Any) -> tuple[Any, str]:
    """Return the objects that ``otus predict`` would draw, or else the highest-scoring few, with a description."""
    if not isinstance(result, Instances) or result.scores is None:
        return result, "predictions"
    above = result[result.scores >= SCORE_THRESHOLD]
    if len(above) or not len(result):
        return above, f"predictions, score ≥ {SCORE_THRESHOLD}"
    best = result[np.argsort(-result.scores, kind="stable")[:_BEST]]
    assert best.scores is not None
    return best, f"best {len(best)}, score ≤ {best.scores[0]:.2f}"


def _pixels(image: Tensor, preprocess: Preprocess) -> UInt8[np.ndarray, "h w 3"]:
    plain = image.as_subclass(Tensor)
    mean, std = plain.new_tensor(preprocess.mean), plain.new_tensor(preprocess.std)
    pixels = (plain * std[:, None, None] + mean[:, None, None]).clamp(0, 1) * 255
    return pixels.round().byte().permute(1, 2, 0).contiguous().numpy()


def _target(sample: TensorSample, categories: Categories, task: Task) -> Any | None:
    """Return the labels of a tensor sample as a result of the task; None if it has none."""
    size_hw = (sample["image"].shape[1], sample["image"].shape[2])
    if task.result_type is SemanticMap:
        return SemanticMap(sample["semantic"].as_subclass(Tensor).numpy(), categories) if "semantic" in sample else None
    if task.result_type is PanopticMap:
        if "panoptic" not in sample:
            return None
        ids = sample["panoptic"].as_subclass(Tensor).numpy()
        visible = set(np.unique(ids).tolist())  # augmentation may have cut off the others
        segments = tuple(segment for segment in sample["segments"] if segment.id in visible)
        return PanopticMap(ids, segments, categories)
    if "label" in sample:  # image classification
        return Classification(np.eye(len(categories))[int(sample["label"])], categories)
    if "boxes" not in sample:
        return None
    masks = sample.get("masks")
    objects = Instances(
        sample["boxes"].as_subclass(Tensor).numpy(),
        sample["labels"].numpy(),
        size_hw,
        categories,
        masks=None if masks is None else Masks.from_dense(masks.as_subclass(Tensor).numpy()),
        columns={"is_crowd": sample["is_crowd"].numpy()},
    )
    return objects
