"""What every trainable system answers, and the record of one pass that all its answers are read from.

A *system* is a network with everything that makes its outputs mean something: categories, targets, losses, postprocessing.
Whatever the task, it has the same verbs (:class:`System`): ``losses`` to train, ``predict`` to use, ``stages`` to explain
and time, ``forward`` to export. :class:`BaseSystem` writes them once. A subclass writes its pass,
:meth:`BaseSystem.compute_stages`, and, unless it detects boxes, how the record of a pass becomes results and tensors.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from otus.data.dataset import Dataset
from otus.data.tensors import TensorSample
from otus.errors import UsageError
from otus.parts.batching import Batch, make_batch, make_target
from otus.parts.detections import Detections, as_instances, as_tensors
from otus.parts.inference_mode import Stopwatch, inference_mode
from otus.parts.postprocess import Postprocess
from otus.parts.preprocess import Preprocess
from otus.parts.regions.proposals import OriginalImageSearch
from otus.parts.tasks import DETECTION, Task
from otus.structures import Categories, PromptableMethod


@dataclass(kw_only=True)
class Stages:
    """The record of one pass over a batch, in the frame of the prepared images; each kind of system extends it.

    Parameters
    ----------
    batch
        The padded images, and the samples that they were made of.
    features
        Feature maps, fine to coarse.
    milliseconds
        By part of the pass.
    losses
        Of a pass that learns, by name, to be summed.
    candidates, kept, detections
        Of a detector's pass that predicts, one entry per image: what scores above the thresholds, the indices of what NMS
        leaves of it, and the detections that are reported.
    """

    batch: Batch
    features: list[Tensor]
    milliseconds: dict[str, float]
    losses: dict[str, Tensor] = field(default_factory=dict)
    candidates: list[Detections] = field(default_factory=list)
    kept: list[Int[Tensor, "_"]] = field(default_factory=list)
    detections: list[Detections] = field(default_factory=list)

    def keep(self, candidates: Detections, postprocess: Postprocess) -> None:
        """Add the candidates of the next image, and what ``postprocess`` keeps of them."""
        kept = postprocess.keep(candidates.boxes, candidates.scores, candidates.labels)
        self.candidates.append(candidates)
        self.kept.append(kept)
        self.detections.append(candidates[kept])


AnyStages = TypeVar("AnyStages", bound=Stages)
AnyResult = TypeVar("AnyResult")
AnyResult_co = TypeVar("AnyResult_co", covariant=True)


class System(Protocol[AnyResult_co]):
    """The verbs of every trainable system, and what it says of itself.

    ``postprocess`` is what it reports by unless a call says otherwise; None where there is nothing to choose.
    """

    categories: Categories
    postprocess: Postprocess | None

    @property
    def task(self) -> Task: ...

    @property
    def device(self) -> torch.device: ...

    def losses(
        self, samples: Sequence[TensorSample], *, generator: torch.Generator | None = None
    ) -> dict[str, Float[Tensor, ""]]: ...

    def predict(
        self, samples: Sequence[TensorSample], *, postprocess: Postprocess | None = None
    ) -> Sequence[AnyResult_co]: ...

    def stages(self, samples: Sequence[TensorSample], *, postprocess: Postprocess | None = None) -> Stages: ...

    def forward(self, images: Float[Tensor, "b 3 h w"], sizes_hw: Int[Tensor, "b 2"]) -> dict[str, Tensor]: ...

    def warnings(self, dataset: Dataset) -> list[str]: ...


class BaseSystem(nn.Module, Generic[AnyStages, AnyResult]):
    """The verbs of a system, over the one method that a subclass must write: :meth:`compute_stages`.

    Attributes
    ----------
    categories
        What the labels mean.
    postprocess
        Which detections are reported (default of ``predict`` and ``stages``); None where there is nothing to choose.
    size_divisor
        Batches are padded to multiples of this.
    """

    categories: Categories
    postprocess: Postprocess | None = None
    size_divisor: int = 1

    @property
    def task(self) -> Task:
        """What the system is asked; by it training, evaluation and reports know how to go about its results."""
        return DETECTION

    @property
    def original_image_search(self) -> OriginalImageSearch | None:
        """Finds the proposals that the system looks at, on the image as it came; None where it needs none from outside."""
        return None

    @property
    def learns_proposals(self) -> bool:
        """Whether the system has a region proposal network, whose proposals are in its record."""
        return False

    def promptable_method(self, preprocess: Preprocess) -> PromptableMethod[Any]:
        """Return what answers prompts with these weights.

        Raises
        ------
        UsageError
            If the system answers no prompts.
        """
        raise UsageError(f"a model that predicts {self.task.predicts} answers no prompts")

    @property
    def heavy_parts(self) -> tuple[str, ...]:
        """Names of the submodules that take most of the time, tensors to tensors, so that another runtime may run them."""
        return ()

    @property
    def device(self) -> torch.device:
        """Device of the parameters; samples are moved there."""
        return next((parameter.device for parameter in self.parameters()), torch.device("cpu"))

    @property
    def min_size(self) -> int:
        """Pixels that each side of a batch must have at least."""
        return 1

    def losses(
        self, samples: Sequence[TensorSample], *, generator: torch.Generator | None = None
    ) -> dict[str, Float[Tensor, ""]]:
        """Return the losses by name, to be summed.

        Parameters
        ----------
        samples
            Prepared images with their targets (see :mod:`otus.data.tensors`).
        generator
            Source of all randomness: sampling, dropout, noise.

        Raises
        ------
        ShapeError
            If a sample has no target, or a label that is none of the categories'.
        """
        return self.training_stages(samples, generator=generator).losses

    def predict(self, samples: Sequence[TensorSample], *, postprocess: Postprocess | None = None) -> list[AnyResult]:
        """Return the result of each prepared image, in its own frame (``Preprocess.undo`` brings it to the original's).

        Parameters
        ----------
        samples
            Prepared images; targets are not looked at.
        postprocess
            Which detections are reported (default: the system's own).
        """
        return self.results(self.stages(samples, postprocess=postprocess))

    def stages(self, samples: Sequence[TensorSample], *, postprocess: Postprocess | None = None) -> AnyStages:
        """Return the record of a pass that predicts; parameters as of :meth:`predict`."""
        with inference_mode(self) as system:
            return system._pass(samples, learns=False, postprocess=postprocess or self.postprocess)

    def training_stages(
        self, samples: Sequence[TensorSample], *, generator: torch.Generator | None = None
    ) -> AnyStages:
        """Return the record of a pass that learns, its losses among it; parameters as of :meth:`losses`."""
        return self._pass(samples, learns=True, generator=generator)

    def forward(self, images: Float[Tensor, "b 3 h w"], sizes_hw: Int[Tensor, "b 2"]) -> dict[str, Tensor]:
        """Return the raw tensors of a batch, which is what export sees; see :meth:`tensors`.

        A system whose program serves batches of any number and size computes them without a loop over the images.

        Parameters
        ----------
        images
            Padded to multiples of ``size_divisor``.
        sizes_hw
            Heights and widths without the padding.
        """
        samples: list[TensorSample] = [
            {"image": image[:, :height, :width]}
            for image, (height, width) in zip(images, sizes_hw.tolist(), strict=True)
        ]
        return self.tensors(self._pass(samples, learns=False, postprocess=self.postprocess))

    def raw_stages(self, images: Float[Tensor, "b 3 h w"], sizes_hw: Int[Tensor, "b 2"]) -> AnyStages:
        """Return the record of a pass up to the raw outputs; parameters as of :meth:`forward`."""
        batch = Batch(
            (), images, cast(Any, sizes_hw)
        )  # a tensor, which an exported program does not know the values of
        watch = Stopwatch(self.device)
        return self.compute_stages(batch, None, postprocess=None, generator=None, watch=watch)

    def warnings(self, dataset: Dataset) -> list[str]:
        """Return what a person should know before training on a data set: labels that this system cannot learn."""
        return []

    def compute_stages(
        self,
        batch: Batch,
        targets: list[Any] | None,
        *,
        postprocess: Postprocess | None,
        generator: torch.Generator | None,
        watch: Stopwatch,
    ) -> AnyStages:
        """Compute one pass: with ``targets`` one that learns, whose record has losses, without them one that predicts.

        Parameters
        ----------
        batch
            The images.
        targets
            What :meth:`target` returned for each sample.
        postprocess
            Which detections are reported, of a pass that predicts.
        generator
            As of :meth:`losses`.
        watch
            Measures the parts; its ``milliseconds`` go into the record.
        """
        raise NotImplementedError

    def target(self, sample: TensorSample) -> Any:
        """Return what is learned from a sample."""
        return make_target(sample, category_count=len(self.categories), device=self.device)

    def results(self, record: AnyStages) -> list[AnyResult]:
        """Return the results of a recorded pass as numpy values: its detections."""
        return cast(list[AnyResult], as_instances(record.detections, record.batch.sizes_hw, self.categories))

    def tensors(self, record: AnyStages) -> dict[str, Tensor]:
        """Return the results of a recorded pass as tensors, see :func:`~otus.parts.detections.as_tensors`."""
        return as_tensors(record.detections)

    def _pass(
        self,
        samples: Sequence[TensorSample],
        *,
        learns: bool,
        postprocess: Postprocess | None = None,
        generator: torch.Generator | None = None,
    ) -> AnyStages:
        watch = Stopwatch(self.device)
        with watch.time("batch"):
            batch = make_batch(samples, size_divisor=self.size_divisor, min_size=self.min_size, device=self.device)
            targets = [self.target(sample) for sample in samples] if learns else None
        return self.compute_stages(batch, targets, postprocess=postprocess, generator=generator, watch=watch)
