"""Exported files for prediction: what they say of themselves, and the system that runs them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch

from otus.data.tensors import TensorSample
from otus.errors import CheckpointError, UsageError
from otus.inference.runtimes import Session, open_session
from otus.parts.batching import make_batch
from otus.parts.detections import Detections, as_instances
from otus.parts.postprocess import Postprocess
from otus.parts.system import BaseSystem, Stages
from otus.parts.tasks import TASKS, Task
from otus.structures import Categories, Classification, SemanticScores


@dataclass(frozen=True)
class ExportedModel:
    """What an exported file says of itself.

    Parameters
    ----------
    name, task
        Names of the model and of its task.
    categories, preprocess, postprocess
        As of the model; ``postprocess`` is None where there is nothing to choose.
    score_thresholds
        Score thresholds by category name.
    size_divisor, min_size
        Sides of a batch are multiples of the first, and at least the second.
    version
        Of this description.
    """

    name: str
    task: str
    categories: Categories
    preprocess: dict[str, Any]
    postprocess: dict[str, Any] | None = None
    score_thresholds: dict[str, float] = field(default_factory=dict)
    size_divisor: int = 1
    min_size: int = 1
    version: int = 1


class ExportedSystem(BaseSystem[Stages, Any]):
    """The predicting half of a system, from an exported file.

    Parameters
    ----------
    session
        Runs the file.
    facts
        What it says of itself.
    file
        For errors.
    """

    def __init__(self, session: Session, facts: ExportedModel, *, file: Path) -> None:
        super().__init__()
        self.session, self.file = session, file
        self.categories = facts.categories
        self.postprocess = None if facts.postprocess is None else msgspec.convert(facts.postprocess, Postprocess)
        self.size_divisor, self._min_size = facts.size_divisor, facts.min_size
        self._task = next(task for task in TASKS if task.name == facts.task)

    @property
    def task(self) -> Task:
        """As of the model."""
        return self._task

    @property
    def min_size(self) -> int:
        """As of the model."""
        return self._min_size

    def predict(self, samples: Sequence[TensorSample], *, postprocess: Postprocess | None = None) -> list[Any]:
        """Return the result of each prepared image.

        Raises
        ------
        UsageError
            If the file has already left out what ``postprocess`` asks for.
        """
        self._check(postprocess)
        batch = make_batch(samples, size_divisor=self.size_divisor, min_size=self.min_size)
        outputs = self.session.run(images=batch.images.numpy(), sizes_hw=np.array(batch.sizes_hw, dtype=np.int64))
        return [self._result(outputs, i, size_hw, postprocess) for i, size_hw in enumerate(batch.sizes_hw)]

    def stages(self, samples: Sequence[TensorSample], *, postprocess: Postprocess | None = None) -> Stages:
        """Raise UsageError: an exported file shows nothing of what happens inside."""
        raise UsageError(f"{self.file}: an exported file does not say how it predicts; use the model it was made of")

    def _check(self, postprocess: Postprocess | None) -> None:
        own = self.postprocess
        if postprocess is None or own is None:
            return
        if postprocess.nms_iou != own.nms_iou:
            raise UsageError(f"nms_iou: is {own.nms_iou:g} in {self.file}; use the model it was made of for another")
        if postprocess.score_threshold < own.score_threshold:
            raise UsageError(
                f"score_threshold: {self.file} reports scores above {own.score_threshold:g} only, got "
                f"{postprocess.score_threshold:g}"
            )

    def _result(
        self, outputs: Mapping[str, np.ndarray], place: int, size_hw: tuple[int, int], postprocess: Postprocess | None
    ) -> Any:
        if "logits" in outputs:
            return SemanticScores(outputs["logits"][place, :, : size_hw[0], : size_hw[1]], self.categories)
        if "boxes" not in outputs:
            return Classification(outputs["scores"][place], self.categories)
        of_image = {
            name: torch.from_numpy(x[outputs["image_index"] == place])
            for name, x in outputs.items()
            if name != "image_index"
        }
        if postprocess is not None:
            kept = of_image["scores"] > postprocess.thresholds(torch.arange(len(self.categories)))[of_image["labels"]]
            of_image = {name: x[kept][: postprocess.max_detections] for name, x in of_image.items()}
        found = Detections(*(of_image[name] for name in ("boxes", "scores", "labels", "labels")))
        further = {name: [of_image[name]] for name in ("masks", "keypoints") if name in of_image}
        return as_instances([found], [size_hw], self.categories, **further)[0]


def load_exported(file: Path, *, runtime: str | None = None) -> tuple[ExportedSystem, ExportedModel]:
    """Return the system of an exported file, and what the file says of itself.

    Raises
    ------
    CheckpointError
        If the file is damaged, or was not exported by Otus.
    UsageError, MissingExtraError
        As of :func:`~otus.inference.runtimes.open_session`.
    """
    session = open_session(file, runtime=runtime)
    if session.metadata is None:
        raise CheckpointError(
            f"{file}: was not exported by Otus: it does not say its categories nor how images are prepared; "
            "export the model with otus export"
        )
    try:
        facts = msgspec.json.decode(session.metadata, type=ExportedModel)
    except msgspec.MsgspecError as error:
        raise CheckpointError(f"{file}: what it says of itself is damaged, or newer than this Otus: {error}") from None
    return ExportedSystem(session, facts, file=file), facts
