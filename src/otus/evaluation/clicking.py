"""Interactive methods, judged by simulated clicks on every object of a data set."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from jaxtyping import Bool

from otus.data.dataset import Dataset
from otus.errors import DataError, Report, stop_at_first
from otus.evaluation.protocols import Judged
from otus.metrics.clicks import simulate_clicks
from otus.metrics.interactive import InteractiveQuality
from otus.structures import Prompt, PromptableMethod
from otus.structures.maps import IGNORE

_BACKGROUND = "background"


def click_targets(
    dataset: Dataset, index: int
) -> Iterator[tuple[Bool[np.ndarray, "h w"], Bool[np.ndarray, "h w"] | None]]:
    """Yield the mask of each object of an image, and the pixels that are not judged.

    Of a data set with outlines each object that is no crowd; of one with semantic maps each category but background.
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


def judge_method(
    dataset: Dataset,
    method: PromptableMethod[Any],
    *,
    report: Report = stop_at_first,
    progress: Callable[[int, int], None] | None = None,
) -> Judged:
    """Return how many clicks a method needs, over all objects of a data set, and how long one takes.

    An image that cannot be read goes to ``report`` and is left out.
    """
    metric = InteractiveQuality()
    seconds, clicks, images = 0.0, 0, 0
    for index in range(len(dataset)):
        try:
            image = dataset.image(index)
            targets = list(click_targets(dataset, index))
        except DataError as problem:
            report(problem)
            continue
        embedding = method.embed(image)

        def segment(prompt: Prompt, embedding: Any = embedding) -> Bool[np.ndarray, "h w"]:
            nonlocal seconds, clicks
            start = time.perf_counter()
            mask = method.segment(embedding, prompt).best()
            seconds += time.perf_counter() - start
            clicks += 1
            return mask

        metric.update([simulate_clicks(segment, mask, ignore=ignore).ious or [0.0] for mask, ignore in targets])
        images += bool(targets)
        if progress is not None:
            progress(index + 1, len(dataset))
    result = metric.compute(seconds_per_click=seconds / clicks if clicks else None)
    return Judged({"interactive": result}, images)
