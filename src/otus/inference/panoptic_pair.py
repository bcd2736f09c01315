"""Panoptic segmentation by two models: an instance model and a semantic model.

Each preprocesses images as its own weights require; their results are merged at the size of the original image by
:func:`otus.instance.panoptic.merge_panoptic`. ``otus.load(…, semantic_model=…)`` returns a predictor of such a pair.
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
"""Default score threshold of the instances that are merged."""
_SEMANTIC_SAMPLE = "semantic_sample"


@dataclass(frozen=True)
class PanopticPipeline(Pipeline):
    """The pipelines of an instance model and a semantic model, whose results are merged.

    The fields of :class:`~otus.inference.pipeline.Pipeline` are those of the instance model, except ``averaging``, which
    applies to the semantic model.

    Parameters
    ----------
    semantic
        Pipeline of the semantic model.
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
            got = pipeline.system.task
            if got is not task:
                raise UsageError(
                    "semantic_model: a panoptic pair is an instance model and a semantic model: expected one of the task "
                    f"{task.name}, got one of the task {got.name}; use {remedy} (otus models lists all)"
                )

    @property
    def task(self) -> Task:
        """Panoptic segmentation."""
        return PANOPTIC

    @property
    def categories(self) -> Categories:
        """Categories of the instance model (things), then the remaining ones of the semantic model (stuff)."""
        return panoptic_categories(self.system.categories, self.semantic.system.categories)

    @property
    def postprocess(self) -> Postprocess | None:
        """The instance model's postprocessing with ``score_thresholds``, which apply in evaluation too."""
        postprocess = self.system.postprocess
        thresholds = tuple(self.score_thresholds.get(name, SCORE_THRESHOLD) for name in self.categories)
        if postprocess is None:
            return None
        return replace(postprocess, score_threshold=min(thresholds), score_thresholds=thresholds)

    @property
    def target_size(self) -> "TargetSize | None":
        """The larger of the two models' input sizes."""
        first, second = super().target_size, self.semantic.target_size
        if first is None or second is None:
            return None
        sizes_of = (first, second)

        def larger(size_hw: tuple[int, int]) -> tuple[int, int]:
            heights, widths = zip(*(size_of(size_hw) for size_of in sizes_of), strict=True)
            return max(heights), max(widths)

        return larger

    def prepare(self, sample: Sample) -> TensorSample:
        """Return a sample preprocessed for the instance model, with the semantic model's sample under a key of its own."""
        return super().prepare(sample) | {_SEMANTIC_SAMPLE: self.semantic.prepare(sample)}

    def predict(
        self,
        samples: Sequence[TensorSample],
        sizes_hw: Sequence[tuple[int, int]],
        *,
        postprocess: Postprocess | None = None,
        watch: Stopwatch | None = None,
    ) -> list[Any]:
        """Return the panoptic map of each image, see :meth:`Pipeline.predict`; ``watch`` measures ``merge`` too."""
        watch = watch or Stopwatch(self.system.device)
        postprocess = postprocess or self.postprocess
        pairs = self.predict_separately(samples, sizes_hw, postprocess=postprocess, watch=watch)
        with watch.time("merge"):
            merged = [merge_panoptic(*pair) for pair in pairs]
            labels = None if postprocess is None else postprocess.labels
            return merged if labels is None else [panoptic.select(labels) for panoptic in merged]

    def predict_separately(
        self,
        samples: Sequence[TensorSample],
        sizes_hw: Sequence[tuple[int, int]],
        *,
        postprocess: Postprocess | None = None,
        watch: Stopwatch | None = None,
    ) -> list[tuple[Instances, SemanticMap]]:
        """Return the instances and the semantic map of each image, which :meth:`predict` merges."""
        thing_postprocess = None if postprocess is None else postprocess.for_labels(range(len(self.system.categories)))
        instance_pipeline = Pipeline(self.system, self.preprocess, self.precision)
        instances = instance_pipeline.predict(samples, sizes_hw, postprocess=thing_postprocess, watch=watch)
        semantic_pipeline = replace(self.semantic, averaging=self.averaging)
        semantic_samples = [sample[_SEMANTIC_SAMPLE] for sample in samples]
        semantic = semantic_pipeline.predict(semantic_samples, sizes_hw, watch=watch)
        return list(zip(instances, semantic, strict=True))
