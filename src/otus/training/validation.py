"""Validation while training: what ``otus evaluate`` would say of the weights so far, shared among the processes."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from lightning_fabric import Fabric
from torch import nn

from otus.classification.classifier import ImageClassifier
from otus.data.dataset import Dataset
from otus.data.image_writing import write_image
from otus.data.prefetching import prefetch
from otus.data.tensors import TensorSample
from otus.evaluation.evaluate import evaluate_predictions
from otus.evaluation.on_dataset import as_objects, predict_dataset
from otus.metrics.classification import ClassificationAccuracy
from otus.parts.inference_mode import inference_mode
from otus.parts.preprocess import Preprocess
from otus.structures import Instances
from otus.training.devices import gather
from otus.training.snapshots import draw_predictions
from otus.training.state import Validation


@dataclass(frozen=True)
class Validator:
    """Judges systems that find objects on a data set kept aside.

    The score by which weights are chosen is the AP of the finest answer that can be judged: keypoints, masks or boxes.

    Parameters
    ----------
    dataset
        With objects.
    preprocess
        As for the training.
    fabric
        Its processes share the batches; each ends with the figures of all.
    batch_size, workers
        Images together, and threads that load them.
    image
        Where to draw what was found on a few images.
    """

    dataset: Dataset
    preprocess: Preprocess
    fabric: Fabric
    batch_size: int = 4
    workers: int = 2
    image: Path | None = None

    def __call__(self, system: nn.Module) -> Validation:
        """The figures of a system in float32, which is what ``otus evaluate`` will say of its checkpoint."""
        found = self.predict(system)
        if self.image is not None and self.fabric.is_global_zero:
            write_image(self.image, draw_predictions(self.dataset, found))
        report = evaluate_predictions(self.dataset, as_objects(found, categories=self.dataset.categories))
        figures = {
            f"{kind}/{name}": float(value)
            for kind, result in report.results.items()
            for name, value in result.figures.items()
        }
        finest: Any = next(kind for kind in ("keypoints", "segm", "bbox") if kind in report.results)
        score = figures[f"{finest}/AP"]
        return Validation(figures, score=0.0 if math.isnan(score) else score)

    def predict(self, system: nn.Module) -> dict[int, Instances]:
        """What a system finds on all images, by index, in every process."""
        with inference_mode(system) as evaluated:
            mine = predict_dataset(
                evaluated,  # type: ignore[arg-type]
                self.dataset,
                preprocess=self.preprocess,
                batch_size=self.batch_size,
                workers=self.workers,
                part=self.fabric.global_rank,
                parts=self.fabric.world_size,
            )
        return {index: instances for part in gather(self.fabric, mine) for index, instances in part.items()}


@dataclass(frozen=True)
class ClassificationValidator:
    """Judges classifiers on whole images, or crop by crop where a data set has objects; the score is top-1 accuracy.

    Parameters as of :class:`Validator`.
    """

    dataset: Dataset
    preprocess: Preprocess
    fabric: Fabric
    batch_size: int = 8
    workers: int = 2

    def __call__(self, system: nn.Module) -> Validation:
        """The figures of a classifier in float32."""
        assert isinstance(system, ImageClassifier)
        firsts = range(0, len(self.dataset), self.batch_size)[self.fabric.global_rank :: self.fabric.world_size]
        batches = [range(first, min(first + self.batch_size, len(self.dataset))) for first in firsts]
        labels, scores = [np.zeros(0, np.int64)], [np.zeros((0, len(system.categories)))]
        with inference_mode(system) as evaluated:
            for samples in prefetch(batches, self._load, workers=self.workers):
                record = evaluated.training_stages(samples)
                labels += [one.cpu().numpy() for one in record.labels or ()]
                scores += [one.cpu().numpy() for one in record.scores()]
        metric = ClassificationAccuracy(system.categories)
        for part in gather(self.fabric, (np.concatenate(labels), np.concatenate(scores))):
            metric.update(*part)
        figures = {f"classification/{name}": float(value) for name, value in metric.compute().figures.items()}
        score = figures["classification/top1"]
        return Validation(figures, score=0.0 if math.isnan(score) else score)

    def _load(self, index: int) -> TensorSample:
        return self.preprocess.prepare(self.dataset[index])
