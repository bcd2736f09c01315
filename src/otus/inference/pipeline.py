"""From samples to results in the coordinates of the original images.

Preprocessing (with external proposals if the system needs them), precision, forward pass, and the mapping of results back to
the image are implemented here, once: :class:`~otus.inference.predictor.Predictor`, evaluation, validation, comparisons and
explanations all use this pipeline.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from otus.data.sample import Sample
from otus.data.tensors import TensorSample
from otus.errors import UsageError
from otus.inference.averaging import Averaging
from otus.parts.inference_mode import Stopwatch
from otus.parts.postprocess import Postprocess
from otus.parts.preprocess import Preprocess
from otus.parts.system import BaseSystem, Stages
from otus.parts.tasks import SEMANTIC, Task
from otus.structures import Categories

if TYPE_CHECKING:
    from otus.data.images import TargetSize


@dataclass(frozen=True)
class Pipeline:
    """A system with the preprocessing and precision of its weights.

    Parameters
    ----------
    system
        A system, on any device.
    preprocess
        Preprocessing that its weights were trained with.
    precision
        ``bfloat16`` runs the system under autocast; any other value runs it as it is.
    averaging
        Test-time augmentation of a semantic model (default: none).
    """

    system: BaseSystem[Any, Any]
    preprocess: Preprocess
    precision: str = "exact"
    averaging: Averaging | None = None

    def __post_init__(self) -> None:
        if self.averaging is not None and self.system.task is not SEMANTIC:
            raise UsageError(
                "averaging: flips and scales are for semantic segmentation, not for a model that predicts "
                f"{self.system.task.predicts}; leave them out"
            )

    @property
    def task(self) -> Task:
        """Task of the results."""
        return self.system.task

    @property
    def categories(self) -> Categories:
        """Categories of the results."""
        return self.system.categories

    @property
    def postprocess(self) -> Postprocess | None:
        """Default postprocessing of detections; None for models that do not detect objects."""
        return self.system.postprocess

    @property
    def target_size(self) -> "TargetSize | None":
        """Size of the network's input, to decode large files at lower resolution; None if proposals need the original."""
        return None if self.system.original_image_search is not None else self.preprocess.size_of

    def autocast(self) -> AbstractContextManager[None]:
        """Return the context in which the system computes in its precision."""
        return torch.autocast(self.system.device.type, torch.bfloat16, enabled=self.precision == "bfloat16")

    def prepare(self, sample: Sample) -> TensorSample:
        """Return a sample preprocessed for the system.

        If the system needs external proposals and the sample has none, they are computed here, on the original image: on
        the resized one they would differ.
        """
        search = self.system.original_image_search
        if search is not None and "proposals_xyxy" not in sample.columns:
            proposals = search.search(sample.image).best(search.count).boxes_xyxy
            sample = replace(sample, columns={**sample.columns, "proposals_xyxy": proposals})
        return self.preprocess.prepare(sample)

    def predict(
        self,
        samples: Sequence[TensorSample],
        sizes_hw: Sequence[tuple[int, int]],
        *,
        postprocess: Postprocess | None = None,
        watch: Stopwatch | None = None,
    ) -> list[Any]:
        """Return the results of prepared samples, of the task's type, in pixels of the original images.

        Parameters
        ----------
        samples
            Results of :meth:`prepare`.
        sizes_hw
            Heights and widths of the original images.
        postprocess
            Which detections are reported (default: the system's own).
        watch
            Stopwatch that measures ``network`` and ``undo`` (default: a new one).
        """
        watch = watch or Stopwatch(self.system.device)
        results = self.results(samples, postprocess=postprocess, watch=watch)
        with watch.time("undo"):
            return [self.preprocess.undo(result, size_hw) for result, size_hw in zip(results, sizes_hw, strict=True)]

    def results(
        self, samples: Sequence[TensorSample], *, postprocess: Postprocess | None = None, watch: Stopwatch
    ) -> list[Any]:
        """Return the results of prepared samples in their own pixels; the parameters are those of :meth:`predict`."""
        with watch.time("network"), self.autocast():
            if self.averaging is not None:
                return self.averaging.predict(self.system, samples)
            return self.system.predict(samples, postprocess=postprocess)

    def stages(self, sample: TensorSample, *, postprocess: Postprocess | None = None) -> Stages:
        """Return the record of a forward pass over one prepared sample."""
        with self.autocast():
            return self.system.stages([sample], postprocess=postprocess)
