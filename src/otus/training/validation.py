"""Validation during training, with the same metrics as ``otus evaluate``, distributed over the processes."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_fabric import Fabric

from otus.data.dataset import Dataset
from otus.data.image_writing import write_image
from otus.evaluation.on_dataset import predict_dataset
from otus.evaluation.protocols import Options, protocol_of
from otus.inference.pipeline import Pipeline
from otus.parts.inference_mode import inference_mode
from otus.parts.preprocess import Preprocess
from otus.parts.system import BaseSystem
from otus.training.devices import gather
from otus.training.snapshots import draw_predictions
from otus.training.state import Validation

MAX_CLICKS = 5
"""Simulated clicks per object for promptable models; fewer than in an evaluation, enough to select the best weights."""


@dataclass(frozen=True)
class Validator:
    """Evaluate a system on the validation set, by the protocol of its task.

    The score that selects the best weights is the first of the task's ``validation_metrics`` that is available: for
    objects, the AP of keypoints, masks or boxes.

    Parameters
    ----------
    dataset
        Validation set with the labels that the task needs.
    preprocess
        Resizing and normalisation, as in training.
    fabric
        Fabric whose processes share the batches; each gets the metrics of all.
    batch_size, workers
        Images per batch, and number of threads that load them.
    image
        Image file to write, with ground truth and predictions of a few images (default: none).
    """

    dataset: Dataset
    preprocess: Preprocess
    fabric: Fabric
    batch_size: int = 4
    workers: int = 2
    image: Path | None = None

    def __call__(self, system: BaseSystem[Any, Any]) -> Validation:
        """Return the metrics of a system in float32, equal to those of ``otus evaluate`` for its checkpoint."""
        task = system.task
        dataset = task.validation_set(self.dataset)
        protocol, options = protocol_of(task.protocol), Options(max_clicks=MAX_CLICKS)
        if protocol.evaluate_system is not None:  # not distributed: every process evaluates all images
            with inference_mode(system) as inference_system:
                evaluated = protocol.evaluate_system(
                    Pipeline(inference_system, self.preprocess), dataset, options, None
                )
        else:
            results = self.predict(system)
            if self.image is not None and self.fabric.is_global_zero:
                write_image(self.image, draw_predictions(dataset, results, task))
            evaluated = protocol.evaluate(dataset, protocol.from_results(results, dataset), options)
        figures = {
            f"{kind}/{name}": float(value)
            for kind, result in evaluated.results.items()
            for name, value in result.figures.items()
        }
        return Validation(figures, score=task.score(figures))

    def predict(self, system: BaseSystem[Any, Any]) -> dict[int, Any]:
        """Return the results of a system on all images, by index, in every process."""
        with inference_mode(system) as inference_system:
            part = predict_dataset(
                Pipeline(inference_system, self.preprocess),
                system.task.validation_set(self.dataset),
                batch_size=self.batch_size,
                workers=self.workers,
                part=self.fabric.global_rank,
                parts=self.fabric.world_size,
            )
        return {index: result for results in gather(self.fabric, part) for index, result in results.items()}
