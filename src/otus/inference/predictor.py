"""Predict on images with a trained system.

A :class:`Predictor` combines a system and the :class:`~otus.parts.preprocess.Preprocess` that its weights were trained
with, and maps results back to the coordinates of the original image.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Never, NoReturn

import numpy as np
import torch
from jaxtyping import Float, UInt8

from otus.data.images import MAX_PIXELS
from otus.data.sample import Sample
from otus.data.sources import Source, read_source
from otus.data.tensors import TensorSample
from otus.errors import DataError, UsageError, did_you_mean
from otus.inference.averaging import Averaging
from otus.inference.devices import choose_device, choose_precision
from otus.inference.image_prediction import predict_batch, predict_blended, predict_tiled, with_refined_masks
from otus.inference.panoptic_pair import PanopticPipeline
from otus.inference.pipeline import Pipeline
from otus.inference.prediction import Prediction
from otus.inference.tiling import Tiles
from otus.parts.fast.fusion import fused_for_inference
from otus.parts.postprocess import Postprocess
from otus.parts.preprocess import Preprocess
from otus.parts.system import BaseSystem
from otus.parts.tasks import SEMANTIC, Task
from otus.structures import Categories, Instances, PromptableMethod

SCORE_THRESHOLD = 0.5
"""Default score threshold of predictions, for models without score thresholds of their own, unless the system's minimum
score is higher. Evaluation does not apply it: it uses all detections of the system."""


# Options of other libraries, and their equivalents here.
_OTHER_LIBRARIES_OPTIONS = {
    **dict.fromkeys(("conf", "confidence", "threshold", "score_thr"), "use score_threshold"),
    **dict.fromkeys(("iou", "iou_threshold", "nms", "nms_thr"), "use nms_iou"),
    **dict.fromkeys(("classes", "labels"), "use categories, with their names"),
    **dict.fromkeys(
        ("imgsz", "image_size", "size"),
        "the image size is that of the weights (predictor.preprocess); use tiles for small objects on large images",
    ),
    **dict.fromkeys(("device", "precision", "half"), "set it when loading: otus.load(…, device=…, precision=…)"),
    **dict.fromkeys(("vid_stride", "frame_stride"), "use stride"),
    **dict.fromkeys(("batch", "bs"), "use batch_size"),
    **dict.fromkeys(("save", "show"), "each prediction has .save(path) and .show()"),
}


class Predictor:
    """Predict on images, folders and videos with a trained system.

    Parameters
    ----------
    system
        See :class:`~otus.parts.system.System`. It is set to evaluation mode and not modified afterwards, so that
        several threads may predict at once, each with its own :class:`~otus.parts.postprocess.Postprocess`.
    preprocess
        Resizing and normalisation that the weights were trained with.
    name
        Name of the model in JSON documents.
    device
        ``cpu``, ``cuda``, ``mps``, a torch device, the index of a CUDA device, or ``auto``: the fastest available.
    precision
        ``exact``: the system as trained, bit-identical to its reference. On a CPU also ``float32``: a fused copy whose
        results differ by rounding (see :mod:`otus.parts.fast.fusion`); ``bfloat16``: backbone, pyramid and heads in
        bfloat16 (boxes and scores stay float32); and ``auto``: bfloat16 if the CPU has instructions for it, else
        float32.
    runtime
        Library that runs backbone, pyramid and dense heads on a CPU: ``torch``, ``onnxruntime``, ``openvino``, or
        ``auto``, the fastest on this machine. All but ``torch`` imply precision ``float32``.
    score_thresholds
        Score thresholds by category name (default of a category: :data:`SCORE_THRESHOLD`).
    training
        Training record of the weights, from their file.
    semantic
        Predictor of a semantic model whose maps are merged with the instances of ``system`` into panoptic maps; see
        :mod:`otus.inference.panoptic_pair` (default: none, the results are those of ``system``).

    Raises
    ------
    UsageError
        If the device or precision does not exist, or ``semantic`` is given and the two models are not an instance model
        and a semantic model.
    """

    def __init__(
        self,
        system: BaseSystem[Any, Any],
        *,
        preprocess: Preprocess,
        name: str,
        device: str | int | torch.device = "auto",
        precision: str = "exact",
        runtime: str = "torch",
        score_thresholds: Mapping[str, float] | None = None,
        training: Mapping[str, Any] | None = None,
        semantic: "Predictor | None" = None,
    ) -> None:
        self.device = choose_device(device)
        self.precision = choose_precision(precision, self.device)
        system = system.to(self.device).eval()
        self.runtime = runtime
        if runtime != "torch":
            from otus.inference.acceleration import accelerated, choose_runtime  # rarely needed, slow to import

            self._check_runtime(precision)
            self.runtime = choose_runtime(runtime, system, preprocess)
        if self.runtime != "torch":
            self.precision = "float32"
            system = accelerated(system, self.runtime)
        elif self.device.type == "cpu" and self.precision != "exact":
            system = fused_for_inference(system, precision=self.precision)
        self.system: Any = system  # Any: each explanation in otus.reports expects its own kind of system
        self.preprocess = preprocess
        self.name = name
        self.training = training or {}
        self.semantic = semantic
        if semantic is not None:
            self.name = f"{name} + {semantic.name}"
        self.score_thresholds = {
            category: value for category, value in (score_thresholds or {}).items() if category in system.categories
        }

    def _check_runtime(self, precision: str) -> None:
        if self.device.type != "cpu" or precision == "bfloat16":
            option = f"device {self.device}" if self.device.type != "cpu" else "precision bfloat16"
            raise UsageError(
                f"runtime: {self.runtime} computes on the CPU in float32, got {option}; leave one of them out"
            )

    def __repr__(self) -> str:
        count = len(self.categories)
        return f"Predictor({self.name!r}, {count} categories, device {self.device}, precision {self.precision})"

    @property
    def categories(self) -> Categories:
        """Names of the class indices."""
        return self.pipeline.categories

    def __call__(self, *_: Any, **__: Any) -> NoReturn:
        """Raise an error that points to :meth:`predict`: in other libraries a model is called."""
        raise TypeError("a Predictor is not callable: use .predict(image)")

    def predict(self, source: Source, **options: Any) -> list[Prediction]:
        """Return the predictions for all images of a source; the options are those of :meth:`stream`."""
        return list(self.stream(source, **options))

    def stream(
        self,
        source: Source,
        *,
        score_threshold: float | Mapping[str, float] | None = None,
        nms_iou: float | None = None,
        categories: str | Sequence[str] | None = None,
        tiles: Tiles | int | None = None,
        averaging: Averaging | None = None,
        refine_masks: PromptableMethod[Any] | str | None = None,
        batch_size: int = 1,
        stride: int = 1,
        report: Callable[[DataError], None] | None = None,
        max_pixels: int = MAX_PIXELS,
        **unknown: Never,
    ) -> Iterator[Prediction]:
        """Yield predictions one by one, for folders and videos of any length.

        Parameters
        ----------
        source
            Path of an image, folder or video, a glob pattern, a PIL image, a uint8 array (H, W, 3) RGB, or a sequence
            of these.
        score_threshold
            Minimum score in [0, 1], one value or one per category name (default: the model's own).
        nms_iou
            NMS: boxes of the same class whose IoU with a higher-scoring one exceeds this are removed (default: the
            model's own).
        categories
            Name or names of the categories to report (default: all). The limit on detections counts only these.
        tiles
            Predict on overlapping tiles of large images and merge the detections, or blend the scores of a semantic
            model; a number is the tile side in pixels (default: no tiles).
        averaging
            Test-time augmentation of a semantic model: flips and scales whose probabilities are averaged (default:
            none).
        refine_masks
            Promptable method that predicts the masks for the boxes, or its name or file; see
            :func:`~otus.inference.detect_then_prompt.refine_masks` (default: none, masks are the model's own, if it
            predicts any).
        batch_size
            Images, or tiles of an image, per batch.
        stride
            Step between predicted frames of a video.
        report
            Called with the error of each file that cannot be read, which is then skipped (default: raise the first).
        max_pixels
            Maximum number of pixels; larger images are rejected before decoding.

        Raises
        ------
        ImageError
            If a file is missing or not an image.
        UsageError
            If an option is out of range, the model does not know a category, or an option is not for models of this
            task: thresholds, categories and masks for boxes are for detectors, averaging is for semantic models, tiles
            are for both.
        TypeError
            If an option is unknown; for options of other libraries the message names the equivalent.
        """
        for name in unknown:
            options = inspect.signature(self.stream).parameters.keys() - {"source", "unknown"}
            hint = _OTHER_LIBRARIES_OPTIONS.get(name)
            remedy = did_you_mean(name, sorted(options)) if hint is None else f": {hint}"
            raise TypeError(f"predict: there is no option {name!r}{remedy}; options are {', '.join(sorted(options))}")
        postprocess = self.postprocess(score_threshold, nms_iou, categories)
        tiles = Tiles(tiles) if isinstance(tiles, int) else tiles
        pipeline = replace(self.pipeline, averaging=averaging)
        if tiles is not None and self.task.result_type is not Instances and self.task is not SEMANTIC:
            raise self._not_a_detector("tiles")
        if refine_masks is not None and self.task.result_type is not Instances:
            raise self._not_a_detector("refine_masks")
        if isinstance(refine_masks, str | Path):
            from otus.inference.promptable import load_method  # which loads by this module

            refine_masks = load_method(refine_masks, device=self.device, precision=self.precision)
        for name, value in (("batch_size", batch_size), ("stride", stride), ("max_pixels", max_pixels)):
            if value < 1:
                raise UsageError(f"{name}: expected 1 or more, got {value}")
        target_size = None if tiles is not None else pipeline.target_size  # tiles are cut at full resolution
        report = report or partial(_stop_at_first, source)
        images = read_source(source, stride=stride, report=report, target_size=target_size, max_pixels=max_pixels)

        def predictions() -> Iterator[Prediction]:
            while batch := list(islice(images, batch_size)):
                if tiles is None:
                    yield from predict_batch(batch, pipeline, postprocess=postprocess)
                    continue
                for image in batch:
                    if self.task is SEMANTIC:
                        yield predict_blended(image, pipeline, tiles, batch_size=batch_size)
                    else:
                        yield predict_tiled(image, pipeline, tiles, postprocess=postprocess, batch_size=batch_size)

        if refine_masks is None:
            return predictions()
        return (with_refined_masks(prediction, refine_masks) for prediction in predictions())

    def autocast(self) -> AbstractContextManager[None]:
        """Return the context in which the system computes in its precision."""
        return self.pipeline.autocast()

    def _labels(self, names: str | Sequence[str]) -> list[int]:
        names = [names] if isinstance(names, str) else names
        unknown = [name for name in names if name not in self.categories]
        if unknown:
            known = f"{', '.join(self.categories)}{did_you_mean(unknown[0], self.categories)}"
            raise UsageError(f"categories: {self.name} does not know {', '.join(unknown)}; it knows {known}")
        return [self.categories.index(name) for name in names]

    def thresholds(self, score_threshold: float | Mapping[str, float] | None = None) -> Float[np.ndarray, "k"]:
        """Return the score thresholds (K,) from one value or one per category name (default: the model's own).

        Raises
        ------
        UsageError
            If a threshold is not in [0, 1], or the model does not know a category.
        """
        thresholds = self.score_thresholds if score_threshold is None else score_threshold
        if isinstance(thresholds, Mapping):
            self._labels(list(thresholds))
            default_postprocess = self.pipeline.postprocess
            minimum = 0.0 if default_postprocess is None else default_postprocess.score_threshold
            default = max(SCORE_THRESHOLD, minimum)
            values = np.array([thresholds.get(name, default) for name in self.categories], dtype=np.float64)
        else:
            values = np.full(len(self.categories), thresholds, dtype=np.float64)
        invalid = values[~((values >= 0) & (values <= 1))]
        if len(invalid):
            raise UsageError(f"score_threshold: expected 0 to 1, got {invalid[0]:g}")
        return values

    def postprocess(
        self,
        score_threshold: float | Mapping[str, float] | None = None,
        nms_iou: float | None = None,
        categories: str | Sequence[str] | None = None,
    ) -> Postprocess | None:
        """Return the system's postprocess, changed by these options of :meth:`stream`; None for models without objects.

        Raises
        ------
        UsageError
            As :meth:`stream`.
        """
        default = self.pipeline.postprocess
        if default is None:
            options = {"score_threshold": score_threshold, "nms_iou": nms_iou, "categories": categories}
            if given := [name for name, value in options.items() if value is not None]:
                raise self._not_a_detector(*given)
            return None
        if not 0 <= (nms_iou or 0.0) <= 1:
            raise UsageError(f"nms_iou: expected 0 to 1, got {nms_iou:g}")
        thresholds = self.thresholds(score_threshold)
        minimum = float(thresholds.min(initial=1))
        return replace(
            default,
            score_threshold=minimum,
            score_thresholds=tuple(thresholds.tolist()) if (thresholds > minimum).any() else (),
            nms_iou=default.nms_iou if nms_iou is None else nms_iou,
            labels=None if categories is None else tuple(self._labels(categories)),
        )

    def category_thresholds(self, score_threshold: float | Mapping[str, float] | None = None) -> dict[str, float]:
        """Return the score thresholds by category name, without those that are not above the system's minimum score."""
        postprocess = self.pipeline.postprocess
        if postprocess is None:
            return {}
        thresholds = zip(self.categories, self.thresholds(score_threshold).tolist(), strict=True)
        return {name: value for name, value in thresholds if value > postprocess.score_threshold}

    def _not_a_detector(self, *options: str) -> UsageError:
        names = ", ".join(options)
        return UsageError(f"{names}: {self.name} predicts {self.task.predicts}, not objects; leave {names} out")

    @property
    def task(self) -> Task:
        """Task of the results: the system's, or panoptic segmentation with a semantic model."""
        return self.pipeline.task

    @property
    def pipeline(self) -> Pipeline:
        """The pipeline from samples to results."""
        if self.semantic is None:
            return Pipeline(self.system, self.preprocess, self.precision)
        return PanopticPipeline(
            self.system,
            self.preprocess,
            self.precision,
            semantic=self.semantic.pipeline,
            score_thresholds=self.score_thresholds,
        )

    def prepare(self, image: UInt8[np.ndarray, "h w 3"], key: str) -> TensorSample:
        """Return an image preprocessed for the system, see :meth:`~otus.inference.pipeline.Pipeline.prepare`."""
        return self.pipeline.prepare(Sample(image, key))


def _stop_at_first(source: Source, error: DataError) -> NoReturn:
    """Raise the error of a file, with advice on skipping it if there are several files.

    Files are not skipped by default, because the returned list would not show that an image is missing.
    """
    if error.file is None or (isinstance(source, str | Path) and Path(source) == error.file):
        raise error
    how_to_skip = "pass report=errors.append, with errors = [], to skip such files"
    remedy = f"{error.remedy}; {how_to_skip}" if error.remedy else how_to_skip
    raise type(error)(error.problem, file=error.file, where=error.where, remedy=remedy, kind=error.kind) from None
