"""Predict on images that were read: in a batch, or on overlapping tiles of one large image; refine the masks."""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from otus.data.images import reduce_image
from otus.data.sample import Sample
from otus.data.sources import SourceImage
from otus.inference.blending import blended
from otus.inference.detect_then_prompt import refine_masks
from otus.inference.pipeline import Pipeline
from otus.inference.prediction import Prediction
from otus.inference.tiling import Tiles, Window, merged, moved
from otus.parts.inference_mode import Stopwatch
from otus.parts.postprocess import Postprocess
from otus.structures import PromptableMethod, SemanticScores


def predict_batch(
    images: Sequence[SourceImage], pipeline: Pipeline, *, postprocess: Postprocess | None = None
) -> list[Prediction]:
    """Return the predictions for images that are run through the system in one batch.

    Parameters
    ----------
    images
        Images of any sizes.
    pipeline
        The system with its preprocessing.
    postprocess
        Which detections are reported (default: the system's own).
    """
    watch = Stopwatch(pipeline.system.device)
    with watch.time("prepare"):
        samples = [pipeline.prepare(Sample(image.image, image.name)) for image in images]
    sizes_hw = [image.size_hw for image in images]
    results = pipeline.predict(samples, sizes_hw, postprocess=postprocess, watch=watch)
    milliseconds = {name: total / len(images) for name, total in watch.milliseconds.items()}
    return [_prediction(*pair, pipeline, milliseconds) for pair in zip(images, results, strict=True)]


def predict_tiled(
    image: SourceImage, pipeline: Pipeline, tiles: Tiles, *, postprocess: Postprocess | None = None, batch_size: int
) -> Prediction:
    """Return the detections on the tiles of an image, merged; ``batch_size`` tiles are predicted at once."""
    size_hw = (image.image.shape[0], image.image.shape[1])
    windows, instances = list(tiles.windows(size_hw)), []
    if len(windows) == 1:
        return predict_batch([image], pipeline, postprocess=postprocess)[0]
    milliseconds: Counter[str] = Counter()
    for start in range(0, len(windows), batch_size):
        batch = windows[start : start + batch_size]
        crops = [_crop(image, window, pipeline) for window in batch]
        for (rows, columns), prediction in zip(
            batch, predict_batch(crops, pipeline, postprocess=postprocess), strict=True
        ):
            instances.append(moved(prediction.instances, top=rows.start, left=columns.start, size_hw=size_hw))
            milliseconds.update(prediction.milliseconds)
    detections = merged(instances, windows, threshold=tiles.merge_threshold)
    return _prediction(replace(image, size_hw=size_hw), detections, pipeline, dict(milliseconds))


def predict_blended(image: SourceImage, pipeline: Pipeline, tiles: Tiles, *, batch_size: int) -> Prediction:
    """Return the semantic map of an image, from the blended scores of its tiles, ``batch_size`` of them at once."""
    size_hw = (image.image.shape[0], image.image.shape[1])
    windows, watch = list(tiles.windows(size_hw)), Stopwatch(pipeline.system.device)
    if len(windows) == 1:
        return predict_batch([image], pipeline)[0]

    def scores(batch: Sequence[Window]) -> list[SemanticScores]:
        with watch.time("prepare"):
            crops = [_crop(image, window, pipeline) for window in batch]
            samples = [pipeline.prepare(Sample(crop.image, image.name)) for crop in crops]
        return pipeline.results(samples, watch=watch)

    full_image = scores([windows.pop()])[0] if tiles.whole_image else None
    batches = (windows[start : start + batch_size] for start in range(0, len(windows), batch_size))
    tile_scores = (pair for batch in batches for pair in zip(batch, scores(batch), strict=True))
    semantic = blended(tile_scores, tiles, size_hw, full_image=full_image)
    return _prediction(replace(image, size_hw=size_hw), semantic, pipeline, watch.milliseconds)


def with_refined_masks(prediction: Prediction, method: PromptableMethod[Any]) -> Prediction:
    """Return a prediction whose masks are those that a promptable method predicts for the boxes."""
    start = time.perf_counter()
    instances = refine_masks(method, prediction.image, prediction.instances)
    milliseconds = prediction.milliseconds | {"masks": (time.perf_counter() - start) * 1e3}
    return replace(prediction, result=instances, milliseconds=milliseconds)


def _prediction(image: SourceImage, result: Any, pipeline: Pipeline, milliseconds: dict[str, float]) -> Prediction:
    return Prediction(
        image.name,
        image.image,
        result,
        milliseconds,
        image.frame,
        image.time_s,
        image.notes,
        pipeline.task,
        image.size_hw,
    )


def _crop(image: SourceImage, window: Window, pipeline: Pipeline) -> SourceImage:
    """Return a window of an image, at reduced resolution if it is much larger than the network's input.

    That concerns the window of the whole image, which is predicted along with the tiles.
    """
    pixels = np.ascontiguousarray(image.image[window])
    size_hw = (pixels.shape[0], pixels.shape[1])
    if (target_size := pipeline.target_size) is not None:
        pixels = reduce_image(pixels, target_size)
    return replace(image, image=pixels, size_hw=size_hw)
