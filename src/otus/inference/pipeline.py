"""From samples to results in the images' own frames: the one path that every prediction takes.

Preparing (with proposals where the system looks at some), the precision, the pass, and undoing the geometry stand here once;
:class:`~otus.inference.predictor.Predictor`, evaluation, validation, comparing and explaining go through it.
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
    """A system with what its weights need around it.

    Parameters
    ----------
    system
        On whatever device it is.
    preprocess
        How its weights want images prepared.
    precision
        ``bfloat16`` for autocast; else the system runs as it is.
    averaging
        Views of each image whose scores are averaged, of a semantic segmenter (default: the image alone).
    """

    system: BaseSystem[Any, Any]
    preprocess: Preprocess
    precision: str = "exact"
    averaging: Averaging | None = None

    def __post_init__(self) -> None:
        if self.averaging is not None and self.system.task is not SEMANTIC:
            what = f"a model that predicts {self.system.task.predicts}"
            raise UsageError(
                f"averaging: flips and scales are for semantic segmentation, not for {what}; leave them out"
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
        """Which detections are reported unless a call says otherwise; None where there is nothing to choose."""
        return self.system.postprocess

    @property
    def target_size(self) -> "TargetSize | None":
        """The size that an image need not exceed much when it is read: None where proposals are searched on all of it."""
        return None if self.system.original_image_search is not None else self.preprocess.size_of

    def autocast(self) -> AbstractContextManager[None]:
        """Return the context in which the system computes in its precision."""
        return torch.autocast(self.system.device.type, torch.bfloat16, enabled=self.precision == "bfloat16")

    def prepare(self, sample: Sample) -> TensorSample:
        """Return a sample as the system wants it.

        Proposals that the system looks at are found here if the sample has none: those of the image as it came, for of the
        prepared one they would be others.
        """
        search = self.system.original_image_search
        if search is not None and "proposals_xyxy" not in sample.columns:
            found = search.search(sample.image).best(search.count).boxes_xyxy
            sample = replace(sample, columns={**sample.columns, "proposals_xyxy": found})
        return self.preprocess.prepare(sample)

    def predict(
        self,
        samples: Sequence[TensorSample],
        sizes_hw: Sequence[tuple[int, int]],
        *,
        postprocess: Postprocess | None = None,
        watch: Stopwatch | None = None,
    ) -> list[Any]:
        """Return the results of prepared samples, of the task's type, in the frames of images of ``sizes_hw``.

        Parameters
        ----------
        samples
            As :meth:`prepare` returned them.
        sizes_hw
            Heights and widths of the images that they were made of.
        postprocess
            Which detections are reported (default: the system's own).
        watch
            Measures ``network`` and ``undo``.
        """
        watch = watch or Stopwatch(self.system.device)
        results = self.results(samples, postprocess=postprocess, watch=watch)
        with watch.time("undo"):
            return [self.preprocess.undo(one, size_hw) for one, size_hw in zip(results, sizes_hw, strict=True)]

    def results(
        self, samples: Sequence[TensorSample], *, postprocess: Postprocess | None = None, watch: Stopwatch
    ) -> list[Any]:
        """Return what the system predicts of prepared samples, in their own frames; parameters as of :meth:`predict`."""
        with watch.time("network"), self.autocast():
            if self.averaging is not None:
                return self.averaging.predict(self.system, samples)
            return self.system.predict(samples, postprocess=postprocess)

    def stages(self, sample: TensorSample, *, postprocess: Postprocess | None = None) -> Stages:
        """Return the record of a pass over one prepared sample."""
        with self.autocast():
            return self.system.stages([sample], postprocess=postprocess)
