"""Exported files for prediction: their description, and the system that runs them."""

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
    """The description of a model that is stored in its exported file.

    Parameters
    ----------
    name, task
        Names of the model and of its task.
    categories, preprocess, postprocess
        Those of the model; ``postprocess`` is None for models that do not detect objects.
    score_thresholds
        Score thresholds by category name.
    size_divisor, min_size
        Height and width of a batch are multiples of ``size_divisor``, and at least ``min_size``.
    version
        Version of this description.
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
    """A system that predicts by an exported file, and cannot be trained.

    Parameters
    ----------
    session
        Session that runs the file.
    description
        Description of the model, from the file.
    file
        The file, for messages.
    """

    def __init__(self, session: Session, description: ExportedModel, *, file: Path) -> None:
        super().__init__()
        self.session, self.file = session, file
        self.categories = description.categories
        postprocess = description.postprocess
        self.postprocess = None if postprocess is None else msgspec.convert(postprocess, Postprocess)
        self.size_divisor, self._min_size = description.size_divisor, description.min_size
        self._task = next(task for task in TASKS if task.name == description.task)

    @property
    def task(self) -> Task:
        """Task of the model."""
        return self._task

    @property
    def min_size(self) -> int:
        """Minimum height and width of a batch, in pixels."""
        return self._min_size

    def predict(self, samples: Sequence[TensorSample], *, postprocess: Postprocess | None = None) -> list[Any]:
        """Return the result of each preprocessed image.

        Raises
        ------
        UsageError
            If ``postprocess`` asks for detections that the file's own postprocessing has removed.
        """
        self._check(postprocess)
        batch = make_batch(samples, size_divisor=self.size_divisor, min_size=self.min_size)
        outputs = self.session.run(images=batch.images.numpy(), sizes_hw=np.array(batch.sizes_hw, dtype=np.int64))
        return [self._result(outputs, i, size_hw, postprocess) for i, size_hw in enumerate(batch.sizes_hw)]

    def stages(self, samples: Sequence[TensorSample], *, postprocess: Postprocess | None = None) -> Stages:
        """Raise UsageError: an exported file has no access to intermediate results."""
        raise UsageError(
            f"{self.file}: an exported file does not record intermediate results; use the model it was exported from"
        )

    def _check(self, postprocess: Postprocess | None) -> None:
        fixed = self.postprocess
        if postprocess is None or fixed is None:
            return
        if postprocess.nms_iou != fixed.nms_iou:
            raise UsageError(
                f"nms_iou: is fixed to {fixed.nms_iou:g} in {self.file}, got {postprocess.nms_iou:g}; use the model it was "
                "exported from"
            )
        if postprocess.score_threshold < fixed.score_threshold:
            raise UsageError(
                f"score_threshold: {self.file} reports scores above {fixed.score_threshold:g} only, got "
                f"{postprocess.score_threshold:g}"
            )

    def _result(
        self, outputs: Mapping[str, np.ndarray], index: int, size_hw: tuple[int, int], postprocess: Postprocess | None
    ) -> Any:
        """Return the result of the image at ``index`` of the batch."""
        if "logits" in outputs:
            return SemanticScores(outputs["logits"][index, :, : size_hw[0], : size_hw[1]], self.categories)
        if "boxes" not in outputs:
            return Classification(outputs["scores"][index], self.categories)
        columns = {
            name: torch.from_numpy(x[outputs["image_index"] == index])
            for name, x in outputs.items()
            if name != "image_index"
        }
        if postprocess is not None:
            keep = columns["scores"] > postprocess.thresholds(torch.arange(len(self.categories)))[columns["labels"]]
            columns = {name: x[keep][: postprocess.max_detections] for name, x in columns.items()}
        detections = Detections(*(columns[name] for name in ("boxes", "scores", "labels", "labels")))
        optional = {name: [columns[name]] for name in ("masks", "keypoints") if name in columns}
        return as_instances([detections], [size_hw], self.categories, **optional)[0]


def load_exported(file: Path, *, runtime: str | None = None) -> tuple[ExportedSystem, ExportedModel]:
    """Return the system of an exported file and the description in the file.

    Raises
    ------
    CheckpointError
        If the file is damaged, or was not exported by Otus.
    UsageError, MissingExtraError
        See :func:`~otus.inference.runtimes.open_session`.
    """
    session = open_session(file, runtime=runtime)
    if session.metadata is None:
        raise CheckpointError(
            f"{file}: was not exported by Otus, and does not say its categories and preprocessing; export the model with "
            "otus export"
        )
    try:
        stored = msgspec.json.decode(session.metadata, type=dict[str, Any])
        if "role" in stored:  # an ExportedSamPart
            raise CheckpointError(
                f"{file}: is the {stored['role']} of a promptable model; use it with otus segment --method {file}"
            )
        description = msgspec.convert(stored, ExportedModel)
    except msgspec.MsgspecError as error:
        raise CheckpointError(f"{file}: its description is damaged, or of a newer version of Otus: {error}") from None
    if description.version != ExportedModel.version or description.task not in {task.name for task in TASKS}:
        raise CheckpointError(
            f"{file}: was exported by a newer version of Otus, as version {description.version} of task {description.task}"
        )
    return ExportedSystem(session, description, file=file), description
