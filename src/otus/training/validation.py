"""Validation while training: what ``otus evaluate`` would say of the weights so far, shared among the processes."""

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
"""Simulated clicks on each object of a promptable model: enough to tell which weights are the best."""


@dataclass(frozen=True)
class Validator:
    """Judges a system on a data set kept aside, by the protocol of its task.

    The score by which weights are chosen is the first of the task's that can be computed: of objects the AP of keypoints,
    masks or boxes.

    Parameters
    ----------
    dataset
        With the labels that the task needs.
    preprocess
        As for the training.
    fabric
        Its processes share the batches; each ends with the figures of all.
    batch_size, workers
        Images together, and threads that load them.
    image
        Where to draw what was predicted on a few images.
    """

    dataset: Dataset
    preprocess: Preprocess
    fabric: Fabric
    batch_size: int = 4
    workers: int = 2
    image: Path | None = None

    def __call__(self, system: BaseSystem[Any, Any]) -> Validation:
        """Return the figures of a system in float32, which is what ``otus evaluate`` will say of its checkpoint."""
        task = system.task
        dataset = task.validation_set(self.dataset)
        protocol, options = protocol_of(task.protocol), Options(max_clicks=MAX_CLICKS)
        if protocol.evaluate_system is not None:  # the same in every process
            with inference_mode(system) as evaluating:
                evaluated = protocol.evaluate_system(Pipeline(evaluating, self.preprocess), dataset, options, None)
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
        with inference_mode(system) as evaluated:
            mine = predict_dataset(
                Pipeline(evaluated, self.preprocess),
                system.task.validation_set(self.dataset),
                batch_size=self.batch_size,
                workers=self.workers,
                part=self.fabric.global_rank,
                parts=self.fabric.world_size,
            )
        return {index: result for part in gather(self.fabric, mine) for index, result in part.items()}
