"""The interface of every trainable system, and the record of one forward pass that losses and predictions are read from.

A *system* is a network with all that gives its outputs a meaning: categories, targets, losses, postprocessing.
Whatever the task, it has the same methods (:class:`System`): ``losses`` to train, ``predict`` to use, ``stages`` to explain
and time, ``forward`` to export. :class:`BaseSystem` implements them. A subclass implements its forward pass,
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
    """The record of one forward pass over a batch, in the frame of the prepared images; each kind of system extends it.

    Parameters
    ----------
    batch
        The padded images, and the samples that they come from.
    features
        Feature maps, fine to coarse.
    milliseconds
        Duration of each part of the pass, by name.
    losses
        Losses by name, to be summed; empty when predicting.
    candidates
        Of a predicting detector, per image: the detections above the score thresholds.
    kept
        Of a predicting detector, per image: indices of the candidates that remain after NMS and the limit.
    detections
        Of a predicting detector, per image: these candidates, which are reported.
    """

    batch: Batch
    features: list[Tensor]
    milliseconds: dict[str, float]
    losses: dict[str, Tensor] = field(default_factory=dict)
    candidates: list[Detections] = field(default_factory=list)
    kept: list[Int[Tensor, "_"]] = field(default_factory=list)
    detections: list[Detections] = field(default_factory=list)

    def keep(self, candidates: Detections, postprocess: Postprocess) -> None:
        """Append the candidates of the next image, and the detections that remain after NMS and the limit."""
        kept = postprocess.keep(candidates.boxes, candidates.scores, candidates.labels)
        self.candidates.append(candidates)
        self.kept.append(kept)
        self.detections.append(candidates[kept])


AnyStages = TypeVar("AnyStages", bound=Stages)
AnyResult = TypeVar("AnyResult")
AnyResult_co = TypeVar("AnyResult_co", covariant=True)


class System(Protocol[AnyResult_co]):
    """Methods and attributes of every trainable system.

    ``postprocess`` is the default of ``predict`` and ``stages``; None where there is nothing to choose.
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
    """The methods of a system, built on the one method that a subclass must implement: :meth:`compute_stages`.

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
        """The task, from which training, evaluation and reports know what a result is and how to judge and draw it."""
        return DETECTION

    @property
    def original_image_search(self) -> OriginalImageSearch | None:
        """The proposal method that must run on the original image; None where the system needs no external proposals."""
        return None

    @property
    def has_rpn(self) -> bool:
        """Whether the system has a region proposal network, whose proposals are recorded in ``stages``."""
        return False

    def promptable_method(self, preprocess: Preprocess) -> PromptableMethod[Any]:
        """Return the promptable segmentation method with the weights of this system.

        Raises
        ------
        UsageError
            If the system is not promptable.
        """
        raise UsageError(f"a model that predicts {self.task.predicts} takes no prompts")

    @property
    def heavy_parts(self) -> tuple[str, ...]:
        """Names of the slowest submodules; they map tensors to tensors, so that another runtime can run them."""
        return ()

    @property
    def device(self) -> torch.device:
        """Device of the parameters; samples are moved there."""
        return next((parameter.device for parameter in self.parameters()), torch.device("cpu"))

    @property
    def min_size(self) -> int:
        """Minimum height and width of a batch, in pixels."""
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
            If a sample has no target, or a label that belongs to no category.
        """
        return self.training_stages(samples, generator=generator).losses

    def predict(self, samples: Sequence[TensorSample], *, postprocess: Postprocess | None = None) -> list[AnyResult]:
        """Return the result of each prepared image, in its frame (``Preprocess.undo`` maps it back to the original image).

        Parameters
        ----------
        samples
            Prepared images; targets are ignored.
        postprocess
            Which detections are reported (default: the system's own).
        """
        return self.results(self.stages(samples, postprocess=postprocess))

    def stages(self, samples: Sequence[TensorSample], *, postprocess: Postprocess | None = None) -> AnyStages:
        """Return the record of a predicting pass; parameters as for :meth:`predict`."""
        with inference_mode(self) as system:
            return system._pass(samples, training=False, postprocess=postprocess or self.postprocess)

    def training_stages(
        self, samples: Sequence[TensorSample], *, generator: torch.Generator | None = None
    ) -> AnyStages:
        """Return the record of a training pass, with losses; parameters as for :meth:`losses`."""
        return self._pass(samples, training=True, generator=generator)

    def forward(self, images: Float[Tensor, "b 3 h w"], sizes_hw: Int[Tensor, "b 2"]) -> dict[str, Tensor]:
        """Return the outputs of a batch as tensors, for export; see :meth:`tensors`.

        A system that is exported for batches of any number and size overrides this by one without a loop over images.

        Parameters
        ----------
        images
            Images padded to multiples of ``size_divisor``.
        sizes_hw
            Height and width of each image without the padding.
        """
        samples: list[TensorSample] = [
            {"image": image[:, :height, :width]}
            for image, (height, width) in zip(images, sizes_hw.tolist(), strict=True)
        ]
        return self.tensors(self._pass(samples, training=False, postprocess=self.postprocess))

    def raw_stages(self, images: Float[Tensor, "b 3 h w"], sizes_hw: Int[Tensor, "b 2"]) -> AnyStages:
        """Return the record of a pass up to the raw outputs; parameters as for :meth:`forward`."""
        # The sizes stay a tensor: while a program is exported, its values are unknown.
        batch = Batch((), images, cast(Any, sizes_hw))
        watch = Stopwatch(self.device)
        return self.compute_stages(batch, None, postprocess=None, generator=None, watch=watch)

    def warnings(self, dataset: Dataset) -> list[str]:
        """Return warnings to show before training on a data set, such as labels that this system cannot learn."""
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
        """Compute one pass: with ``targets`` a training pass, which records losses; without, a predicting one.

        Parameters
        ----------
        batch
            The images.
        targets
            What :meth:`target` returned for each sample; None when predicting.
        postprocess
            Which detections are reported when predicting.
        generator
            Source of all randomness, see :meth:`losses`.
        watch
            Measures the parts; its ``milliseconds`` go into the record.
        """
        raise NotImplementedError

    def target(self, sample: TensorSample) -> Any:
        """Return the training target of a sample."""
        return make_target(sample, category_count=len(self.categories), device=self.device)

    def results(self, record: AnyStages) -> list[AnyResult]:
        """Return the results of a recorded pass as numpy values (here: its detections)."""
        return cast(list[AnyResult], as_instances(record.detections, record.batch.sizes_hw, self.categories))

    def tensors(self, record: AnyStages) -> dict[str, Tensor]:
        """Return the results of a recorded pass as tensors, see :func:`~otus.parts.detections.as_tensors`."""
        return as_tensors(record.detections)

    def _pass(
        self,
        samples: Sequence[TensorSample],
        *,
        training: bool,
        postprocess: Postprocess | None = None,
        generator: torch.Generator | None = None,
    ) -> AnyStages:
        watch = Stopwatch(self.device)
        with watch.time("batch"):
            batch = make_batch(samples, size_divisor=self.size_divisor, min_size=self.min_size, device=self.device)
            targets = [self.target(sample) for sample in samples] if training else None
        return self.compute_stages(batch, targets, postprocess=postprocess, generator=generator, watch=watch)
