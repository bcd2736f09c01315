"""Evaluate interactive segmentation methods by simulated clicks on every object of a data set."""

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Bool

from otus.data.dataset import Dataset
from otus.errors import DataError, Report, stop_at_first
from otus.evaluation.protocols import ProtocolResult
from otus.metrics.clicks import simulate_clicks
from otus.metrics.interactive import MAX_CLICKS, InteractiveQuality
from otus.structures import Prompt, PromptableMethod
from otus.structures.maps import IGNORE

_BACKGROUND = "background"


def click_targets(
    dataset: Dataset, index: int
) -> Iterator[tuple[Bool[np.ndarray, "h w"], Bool[np.ndarray, "h w"] | None]]:
    """Yield the target masks of an image, each with a mask of ignored pixels, or None if no pixels are ignored.

    In data sets with object masks these are the objects except crowds; else the categories of the semantic map except
    background.
    """
    if dataset.objects is not None and dataset.objects.has_mask.any():
        instances = dataset.instances(index)
        crowd = instances.column("is_crowd", np.zeros(len(instances), dtype=bool))
        if instances.masks is not None:
            for mask, is_crowd in zip(instances.masks, crowd, strict=True):
                if mask.any() and not is_crowd:
                    yield mask, None
        return
    semantic = dataset.semantic_map(index)
    if semantic is None:
        return
    for label in np.unique(semantic.labels[semantic.labels != IGNORE]).tolist():
        if semantic.categories.names[label] != _BACKGROUND:
            yield semantic.labels == label, semantic.labels == IGNORE


def evaluate_method(
    dataset: Dataset,
    method: PromptableMethod[Any],
    *,
    max_clicks: int | None = None,
    report: Report = stop_at_first,
    progress: Callable[[int, int], None] | None = None,
) -> ProtocolResult:
    """Evaluate a method by simulated clicks on all objects of a data set: number of clicks, IoU, seconds per click.

    A learned method gets the logits of its previous mask with each further click, as in Segment Anything.

    Parameters
    ----------
    dataset
        Data set with object masks or semantic maps.
    method
        The method.
    max_clicks
        Maximum number of clicks per object (default: 20, as in the definition of NoC).
    report
        Called with the error of each image that cannot be read, which is then skipped (default: raise the first).
    progress
        Called with the numbers of finished and of all images (default: not called).
    """
    max_clicks = MAX_CLICKS if max_clicks is None else max_clicks
    metric = InteractiveQuality(max_clicks=max_clicks)
    seconds, clicks, images = 0.0, 0, 0

    def segment(prompt: Prompt, *, embedding: Any, previous: dict[str, Any]) -> Bool[np.ndarray, "h w"]:
        """Return the mask for a prompt; ``previous`` holds the logits of the object's previous mask, and then this one's."""
        nonlocal seconds, clicks
        start = time.perf_counter()
        candidates = method.segment(embedding, prompt, **previous)
        mask = candidates.best()
        seconds += time.perf_counter() - start
        clicks += 1
        if candidates.low_resolution_logits is not None:
            previous["mask_logits"] = candidates.low_resolution_logits[0]
        return mask

    for index in range(len(dataset)):
        try:
            image = dataset.image(index)
            targets = list(click_targets(dataset, index))
        except DataError as error:
            report(error)
            continue
        embedding = method.embed(image)

        for target, ignore in targets:
            click = partial(segment, embedding=embedding, previous={})
            record = simulate_clicks(click, target, ignore=ignore, max_clicks=max_clicks)
            metric.update([record.ious or [0.0]])
        images += bool(targets)
        if progress is not None:
            progress(index + 1, len(dataset))
    result = metric.compute(seconds_per_click=seconds / clicks if clicks else None)
    return ProtocolResult({"interactive": result}, images)
