"""Panoptic prediction by two models: one that finds objects with masks, and one that labels pixels.

Both see each image as their own weights want it prepared; their results are merged in the frame of the original image by
:func:`otus.instance.panoptic.merge_panoptic`. ``otus.load(…, semantic_model=…)`` makes such a pair of a predictor.
"""

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from otus.data.sample import Sample
from otus.data.tensors import TensorSample
from otus.errors import UsageError
from otus.inference.pipeline import Pipeline
from otus.instance.panoptic import merge_panoptic, panoptic_categories
from otus.parts.inference_mode import Stopwatch
from otus.parts.postprocess import Postprocess
from otus.parts.tasks import INSTANCE, PANOPTIC, SEMANTIC, Task
from otus.structures import Categories, Instances, SemanticMap

if TYPE_CHECKING:
    from otus.data.images import TargetSize

SCORE_THRESHOLD = 0.5
"""Of the instances that are merged, unless a call says otherwise."""
_SEMANTIC_SAMPLE = "semantic_sample"


@dataclass(frozen=True)
class PanopticPipeline(Pipeline):
    """The pipeline of an instance model, its fields, and that of a semantic model, merged; ``averaging`` is of the latter.

    Parameters
    ----------
    semantic
        The pipeline of the semantic model.
    score_thresholds
        Minimum score of the instances that are merged, by category name (default: :data:`SCORE_THRESHOLD`).
    """

    _: KW_ONLY
    semantic: Pipeline
    score_thresholds: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for pipeline, task, remedy in (
            (self, INSTANCE, "a model with masks, e.g. mask_rcnn_efficientnet_lite0_fpn"),
            (self.semantic, SEMANTIC, "a semantic model, e.g. semantic_fpn_efficientnet_lite0"),
        ):
            own = pipeline.system.task
            if own is not task:
                raise UsageError(
                    f"a panoptic pair is an instance model and a semantic model: expected one of the task {task.name}, "
                    f"got one of the task {own.name}; name {remedy} (otus models lists all)"
                )

    @property
    def task(self) -> Task:
        """Panoptic segmentation."""
        return PANOPTIC

    @property
    def categories(self) -> Categories:
        """What instances can be, then the stuff of the semantic model."""
        return panoptic_categories(self.system.categories, self.semantic.system.categories)

    @property
    def postprocess(self) -> Postprocess | None:
        """The instance model's, with score thresholds for what is to be believed, in evaluation too."""
        own = self.system.postprocess
        values = tuple(self.score_thresholds.get(name, SCORE_THRESHOLD) for name in self.categories)
        return None if own is None else replace(own, score_threshold=min(values), score_thresholds=values)

    @property
    def target_size(self) -> "TargetSize | None":
        """The larger of the two sizes."""
        first, second = super().target_size, self.semantic.target_size
        if first is None or second is None:
            return None
        sizes_of = (first, second)

        def larger(size_hw: tuple[int, int]) -> tuple[int, int]:
            heights, widths = zip(*(size_of(size_hw) for size_of in sizes_of), strict=True)
            return max(heights), max(widths)

        return larger

    def prepare(self, sample: Sample) -> TensorSample:
        """Return a sample as the instance model wants it, and under one more key as the semantic model does."""
        return super().prepare(sample) | {_SEMANTIC_SAMPLE: self.semantic.prepare(sample)}

    def predict(
        self,
        samples: Sequence[TensorSample],
        sizes_hw: Sequence[tuple[int, int]],
        *,
        postprocess: Postprocess | None = None,
        watch: Stopwatch | None = None,
    ) -> list[Any]:
        """Return a panoptic map of each image; ``watch`` measures ``merge`` too. See :meth:`Pipeline.predict`."""
        watch = watch or Stopwatch(self.system.device)
        postprocess = postprocess or self.postprocess
        answers = self.answers(samples, sizes_hw, postprocess=postprocess, watch=watch)
        with watch.time("merge"):
            merged = [merge_panoptic(*pair) for pair in answers]
            labels = None if postprocess is None else postprocess.labels
            return merged if labels is None else [panoptic.select(labels) for panoptic in merged]

    def answers(
        self,
        samples: Sequence[TensorSample],
        sizes_hw: Sequence[tuple[int, int]],
        *,
        postprocess: Postprocess | None = None,
        watch: Stopwatch | None = None,
    ) -> list[tuple[Instances, SemanticMap]]:
        """Return what :meth:`predict` merges: the instances and the semantic map of each image."""
        of_things = None if postprocess is None else postprocess.for_labels(range(len(self.system.categories)))
        things = Pipeline(self.system, self.preprocess, self.precision)
        instances = things.predict(samples, sizes_hw, postprocess=of_things, watch=watch)
        stuff = replace(self.semantic, averaging=self.averaging)
        semantic = stuff.predict([sample[_SEMANTIC_SAMPLE] for sample in samples], sizes_hw, watch=watch)
        return list(zip(instances, semantic, strict=True))
