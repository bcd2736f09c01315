"""Predict on all images of a data set, for evaluation."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from otus.data.dataset import Dataset
from otus.data.prefetching import prefetch
from otus.data.tensors import TensorSample
from otus.errors import DataError, Report, stop_at_first
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
    report: Report = stop_at_first,
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
    report
        Called with the error of each image that cannot be read, which has no result (default: raise the first).
    """
    batches = [range(first, min(first + batch_size, len(dataset))) for first in range(0, len(dataset), batch_size)]
    postprocess, names = pipeline.postprocess, pipeline.task.categories(dataset)
    known = tuple(label for label, name in enumerate(pipeline.categories) if name in names)
    if postprocess is not None and len(known) < len(pipeline.categories):
        postprocess = replace(postprocess, labels=known)
    dataset = with_proposals(dataset, pipeline.system)

    def load(index: int) -> TensorSample | DataError:
        try:
            return pipeline.prepare(dataset.input(index, target_size=pipeline.target_size))
        except DataError as error:
            return error

    results: dict[int, Any] = {}
    finished = 0
    own_batches = batches[part::parts]
    for batch, loaded in zip(own_batches, prefetch(own_batches, load, workers=workers), strict=True):
        samples = {}
        for index, sample in zip(batch, loaded, strict=True):
            if isinstance(sample, DataError):
                report(sample)
            else:
                samples[index] = sample
        sizes_hw = [dataset.images.size_hw(index) for index in samples]
        predicted = pipeline.predict(list(samples.values()), sizes_hw, postprocess=postprocess) if samples else []
        results |= {index: pipeline.task.compact(one) for index, one in zip(samples, predicted, strict=True)}
        finished += len(batch)
        if progress is not None:
            progress(finished)
    return results
