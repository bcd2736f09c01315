"""Predict on all images of a data set, for evaluation."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from otus.data.dataset import Dataset
from otus.data.prefetching import prefetch
from otus.data.tensors import TensorSample
from otus.inference.pipeline import Pipeline
from otus.proposals.proposers import with_proposals


def predict_dataset(
    pipeline: Pipeline,
    dataset: Dataset,
    *,
    batch_size: int = 4,
    workers: int = 2,
    part: int = 0,
    parts: int = 1,
    progress: Callable[[int], None] | None = None,
) -> dict[int, Any]:
    """Return the results of a system by image index, in pixels of the original image, with compact masks.

    Detections of categories that the data set does not have are removed, because they would count towards the limit on
    detections. The composition of the batches does not depend on the number of parts, because padding affects rounding.

    Parameters
    ----------
    pipeline
        The system with its preprocessing.
    batch_size
        Images per batch.
    workers
        Number of threads that load images.
    part, parts
        Predict only the batches ``part``, ``part + parts``, ``part + 2 * parts`` …
    progress
        Called after each batch with the number of finished images.
    """
    batches = [range(first, min(first + batch_size, len(dataset))) for first in range(0, len(dataset), batch_size)]
    postprocess, names = pipeline.postprocess, pipeline.task.categories(dataset)
    known = tuple(label for label, name in enumerate(pipeline.categories) if name in names)
    if postprocess is not None and len(known) < len(pipeline.categories):
        postprocess = replace(postprocess, labels=known)
    dataset = with_proposals(dataset, pipeline.system)

    def load(index: int) -> TensorSample:
        return pipeline.prepare(dataset.input(index, target_size=pipeline.target_size))

    results = {}
    own_batches = batches[part::parts]
    for indices, samples in zip(own_batches, prefetch(own_batches, load, workers=workers), strict=True):
        sizes_hw = [dataset.images.size_hw(index) for index in indices]
        for index, result in zip(indices, pipeline.predict(samples, sizes_hw, postprocess=postprocess), strict=True):
            results[index] = pipeline.task.compact(result)
        if progress is not None:
            progress(len(results))
    return results
