"""Predict on images with a trained system.

A :class:`Predictor` combines a system and the :class:`~otus.parts.preprocess.Preprocess` that its weights were trained
with, and maps results back to the coordinates of the original image.
"""

import inspect
from collections import Counter
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

from otus.data.images import MAX_PIXELS, reduce_image
from otus.data.sample import Sample
from otus.data.sources import Source, SourceImage, read_source
from otus.data.tensors import TensorSample
from otus.errors import DataError, UsageError, did_you_mean
from otus.inference.averaging import Averaging
from otus.inference.blending import blended
from otus.inference.panoptic_pair import PanopticPipeline
from otus.inference.pipeline import Pipeline
from otus.inference.prediction import Prediction
from otus.inference.tiling import Tiles, Window, merged, moved
from otus.parts.fast.fusion import fused_for_inference
from otus.parts.inference_mode import Stopwatch
from otus.parts.postprocess import Postprocess
from otus.parts.precision import check_bfloat16, multiplies_bfloat16
from otus.parts.preprocess import Preprocess
from otus.parts.system import BaseSystem
from otus.parts.tasks import SEMANTIC, Task
from otus.structures import Categories, Instances, SemanticScores

PRECISIONS = ("exact", "float32", "bfloat16")
SCORE_THRESHOLD = 0.5
"""Default score threshold of displayed predictions, if none were chosen for the model and its own is not higher.
Evaluation ignores it and uses all detections of the system."""


# Options of other libraries, and their equivalents here.
_OPTIONS_ELSEWHERE = {
    **dict.fromkeys(("conf", "confidence", "threshold", "score_thr"), "write score_threshold"),
    **dict.fromkeys(("iou", "iou_threshold", "nms", "nms_thr"), "write nms_iou"),
    **dict.fromkeys(("classes", "labels"), "write categories, by their names"),
    **dict.fromkeys(
        ("imgsz", "image_size", "size"),
        "the image size is that of the weights (predictor.preprocess); tiles find small objects on large images",
    ),
    **dict.fromkeys(("device", "precision", "half"), "say it when loading: otus.load(…, device=…, precision=…)"),
    **dict.fromkeys(("vid_stride", "frame_stride"), "write stride"),
    **dict.fromkeys(("batch", "bs"), "write batch_size"),
    **dict.fromkeys(("save", "show"), "each prediction has .save(path) and .show()"),
}


class Predictor:
    """A trained system, ready for images.

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
        What runs backbone, pyramid and dense heads on a CPU: ``torch``, ``onnxruntime``, ``openvino``, or ``auto``, the
        fastest on this machine. Another than ``torch`` means precision ``float32``.
    score_thresholds
        Score thresholds by category name (default: :data:`SCORE_THRESHOLD` for every category that is not listed).
    training
        Training record of the weights, from their file.
    semantic
        Predictor of a semantic model whose maps are merged with the instances of ``system``, so that this one predicts
        panoptic maps; see :mod:`otus.inference.panoptic_pair`.

    Raises
    ------
    UsageError
        If the device or precision does not exist, or the two are no instance model and semantic model.
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
            from otus.inference.acceleration import accelerated, choose_runtime  # few need it

            self._check_runtime(precision)
            self.runtime = choose_runtime(runtime, system, preprocess)
        if self.runtime != "torch":
            self.precision = "float32"
            system = accelerated(system, self.runtime)
        elif self.device.type == "cpu" and self.precision != "exact":
            system = fused_for_inference(system, precision=self.precision)
        self.system: Any = system  # any kind of system; each explanation expects its own kind
        self.preprocess = preprocess
        self.name = name
        self.training = training or {}
        self.semantic = semantic
        if semantic is not None:
            self.name = f"{name} + {semantic.name}"
        chosen = (score_thresholds or {}).items()
        self.score_thresholds = {name: value for name, value in chosen if name in system.categories}

    def _check_runtime(self, precision: str) -> None:
        if self.device.type != "cpu" or precision == "bfloat16":
            what = f"device {self.device}" if self.device.type != "cpu" else "precision bfloat16"
            raise UsageError(
                f"runtime: {self.runtime} computes on the CPU in float32, got {what}; leave one of them out"
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
        raise TypeError("a Predictor is not called: write .predict(image)")

    def predict(self, source: Source, **options: Any) -> list[Prediction]:
        """Return the predictions of all images of a source; the options are those of :meth:`stream`."""
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
            segmenter; a number is the tile side in pixels (default: no tiles).
        averaging
            Flips and scales whose probabilities are averaged, of a semantic segmenter (default: the image alone).
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
            If an option is out of range, the model does not know a category, or an option is not for models of its task:
            thresholds and categories are of detectors, averaging is of semantic segmenters, tiles of both.
        TypeError
            If an option is unknown; for options of other libraries the message names the equivalent.
        """
        for name in unknown:
            options = inspect.signature(self.stream).parameters.keys() - {"source", "unknown"}
            remedy = (
                f": {_OPTIONS_ELSEWHERE[name]}" if name in _OPTIONS_ELSEWHERE else did_you_mean(name, sorted(options))
            )
            raise TypeError(f"predict: there is no option {name!r}{remedy}; there are {', '.join(sorted(options))}")
        postprocess = self.postprocess(score_threshold, nms_iou, categories)
        tiles = Tiles(tiles) if isinstance(tiles, int) else tiles
        pipeline = replace(self.pipeline, averaging=averaging)
        if tiles is not None and self.task.result_type is not Instances and self.task is not SEMANTIC:
            raise self._finds_no_objects("tiles")
        for name, number in (("batch_size", batch_size), ("stride", stride), ("max_pixels", max_pixels)):
            if number < 1:
                raise UsageError(f"{name}: expected 1 or more, got {number}")
        target_size = None if tiles is not None else pipeline.target_size  # tiles are cut from the whole image
        report = report or partial(_stop_at_first, source)
        images = read_source(source, stride=stride, report=report, target_size=target_size, max_pixels=max_pixels)

        def predictions() -> Iterator[Prediction]:
            while batch := list(islice(images, batch_size)):
                if tiles is None:
                    yield from self._whole(batch, pipeline, postprocess)
                elif self.task is SEMANTIC:
                    yield from (self._blended(one, tiles, pipeline, batch_size=batch_size) for one in batch)
                else:
                    yield from (self._tiled(one, tiles, pipeline, postprocess, batch_size=batch_size) for one in batch)

        return predictions()

    def autocast(self) -> AbstractContextManager[None]:
        """Return the context in which the system computes in its precision."""
        return self.pipeline.autocast()

    def _labels(self, names: str | Sequence[str]) -> list[int]:
        names = [names] if isinstance(names, str) else names
        unknown = [name for name in names if name not in self.categories]
        if unknown:
            known = f"{', '.join(self.categories)}{did_you_mean(unknown[0], self.categories)}"
            raise UsageError(f"categories: {', '.join(unknown)} not known to {self.name}: {known}")
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
            own = self.pipeline.postprocess
            usual = SCORE_THRESHOLD if own is None else max(SCORE_THRESHOLD, own.score_threshold)
            values = np.array([thresholds.get(name, usual) for name in self.categories], dtype=np.float64)
        else:
            values = np.full(len(self.categories), thresholds, dtype=np.float64)
        wrong = values[~((values >= 0) & (values <= 1))]
        if len(wrong):
            raise UsageError(f"score_threshold: expected 0 to 1, got {wrong[0]:g}")
        return values

    def postprocess(
        self,
        score_threshold: float | Mapping[str, float] | None = None,
        nms_iou: float | None = None,
        categories: str | Sequence[str] | None = None,
    ) -> Postprocess | None:
        """Return the system's own postprocess with these options of :meth:`stream`; None for a model of whole images.

        Raises
        ------
        UsageError
            As of :meth:`stream`.
        """
        own = self.pipeline.postprocess
        if own is None:
            options = {"score_threshold": score_threshold, "nms_iou": nms_iou, "categories": categories}
            if typed := [name for name, value in options.items() if value is not None]:
                raise self._finds_no_objects(*typed)
            return None
        if not 0 <= (nms_iou or 0.0) <= 1:
            raise UsageError(f"nms_iou: expected 0 to 1, got {nms_iou:g}")
        values = self.thresholds(score_threshold)
        least = float(values.min(initial=1))
        return replace(
            own,
            score_threshold=least,
            score_thresholds=tuple(values.tolist()) if (values > least).any() else (),
            nms_iou=own.nms_iou if nms_iou is None else nms_iou,
            labels=None if categories is None else tuple(self._labels(categories)),
        )

    def cuts(self, score_threshold: float | Mapping[str, float] | None = None) -> dict[str, float]:
        """Return the score thresholds of the categories whose threshold is above the system's own minimum score."""
        own = self.pipeline.postprocess
        if own is None:
            return {}
        named = zip(self.categories, self.thresholds(score_threshold).tolist(), strict=True)
        return {name: value for name, value in named if value > own.score_threshold}

    def _finds_no_objects(self, *options: str) -> UsageError:
        what = f"predicts {self.task.predicts}, not objects"
        return UsageError(f"{', '.join(options)}: {self.name} {what}; leave them out")

    @property
    def task(self) -> Task:
        """Task of the system, or of the pair."""
        return self.pipeline.task

    @property
    def pipeline(self) -> Pipeline:
        """Pipeline from samples to results."""
        if self.semantic is None:
            return Pipeline(self.system, self.preprocess, self.precision)
        own = (self.system, self.preprocess, self.precision)
        return PanopticPipeline(*own, semantic=self.semantic.pipeline, score_thresholds=self.score_thresholds)

    def prepared(self, image: UInt8[np.ndarray, "h w 3"], key: str) -> TensorSample:
        """Return an image preprocessed for the system, see :meth:`~otus.inference.pipeline.Pipeline.prepare`."""
        return self.pipeline.prepare(Sample(image, key))

    def _whole(self, batch: list[SourceImage], pipeline: Pipeline, postprocess: Postprocess | None) -> list[Prediction]:
        watch = Stopwatch(self.device)
        with watch.time("prepare"):
            samples = [self.prepared(one.image, one.name) for one in batch]
        sizes_hw = [image.size_hw for image in batch]
        results = pipeline.predict(samples, sizes_hw, postprocess=postprocess, watch=watch)
        share = {name: milliseconds / len(batch) for name, milliseconds in watch.milliseconds.items()}
        return [self._prediction(*pair, share) for pair in zip(batch, results, strict=True)]

    def _prediction(self, source: SourceImage, result: Any, milliseconds: dict[str, float]) -> Prediction:
        return Prediction(
            source.name,
            source.image,
            result,
            milliseconds,
            source.frame,
            source.time_s,
            source.notes,
            self.task,
            source.size_hw,
        )

    def _tiled(
        self,
        image: SourceImage,
        tiles: Tiles,
        pipeline: Pipeline,
        postprocess: Postprocess | None,
        *,
        batch_size: int,
    ) -> Prediction:
        size_hw = (image.image.shape[0], image.image.shape[1])
        windows, instances = list(tiles.windows(size_hw)), []
        if len(windows) == 1:
            return self._whole([image], pipeline, postprocess)[0]
        total: Counter[str] = Counter()
        for first in range(0, len(windows), batch_size):
            here = windows[first : first + batch_size]
            parts = [self._part(image, window) for window in here]
            for (rows, columns), part in zip(here, self._whole(parts, pipeline, postprocess), strict=True):
                instances.append(moved(part.instances, top=rows.start, left=columns.start, size_hw=size_hw))
                total.update(part.milliseconds)
        found = merged(instances, windows, threshold=tiles.merge_threshold)
        return self._prediction(replace(image, size_hw=size_hw), found, dict(total))

    def _blended(self, image: SourceImage, tiles: Tiles, pipeline: Pipeline, *, batch_size: int) -> Prediction:
        size_hw = (image.image.shape[0], image.image.shape[1])
        windows, watch = list(tiles.windows(size_hw)), Stopwatch(self.device)
        if len(windows) == 1:
            return self._whole([image], pipeline, None)[0]

        def scores(here: Sequence[Window]) -> list[SemanticScores]:
            with watch.time("prepare"):
                samples = [self.prepared(self._part(image, window).image, image.name) for window in here]
            return pipeline.results(samples, watch=watch)

        whole = scores([windows.pop()])[0] if tiles.whole_image else None
        batches = (windows[first : first + batch_size] for first in range(0, len(windows), batch_size))
        of_tiles = (pair for here in batches for pair in zip(here, scores(here), strict=True))
        semantic = blended(of_tiles, tiles, size_hw, whole=whole)
        return self._prediction(replace(image, size_hw=size_hw), semantic, watch.milliseconds)

    def _part(self, source_image: SourceImage, window: Window) -> SourceImage:
        """Return a window of an image, at reduced size if it is huge, as the whole image beside its tiles may be."""
        image = np.ascontiguousarray(source_image.image[window])
        size_hw = (image.shape[0], image.shape[1])
        if (target_size := self.pipeline.target_size) is not None:
            image = reduce_image(image, target_size)
        return replace(source_image, image=image, size_hw=size_hw)


def _stop_at_first(source: Source, error: DataError) -> NoReturn:
    """Raise the error of a file, with advice on skipping it if there are several files.

    Files are not skipped by default, because a returned list could not show that an image is missing.
    """
    if error.file is None or (isinstance(source, str | Path) and Path(source) == error.file):
        raise error
    way = "report=errors.append, with errors = [], goes on without such files"
    remedy = f"{error.remedy}; {way}" if error.remedy else way
    raise type(error)(error.problem, file=error.file, where=error.where, remedy=remedy, kind=error.kind) from None


def choose_device(name: str | int | torch.device) -> torch.device:
    """Return the torch device of a name; ``auto`` is the fastest available, a number is a CUDA device.

    Raises
    ------
    UsageError
        If this machine has no such device.
    """
    available = {
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    name = f"cuda:{name}" if isinstance(name, int) else str(name)
    if name == "auto":
        name = next(kind for kind in ("cuda", "mps", "cpu") if available[kind])
    try:
        if available.get(name.split(":")[0], False):
            return torch.device(name)
    except RuntimeError:  # the part after the colon is not a number
        pass
    here = ", ".join(kind for kind, there in available.items() if there)
    raise UsageError(f"device: expected auto or one of those that are here ({here}), got {name!r}")


def choose_precision(name: str, device: torch.device) -> str:
    """Return ``exact``, ``float32`` or ``bfloat16``; ``auto`` is bfloat16 on a CPU that supports it, else float32.

    Raises
    ------
    UsageError
        If the name is unknown, or the device does not support bfloat16.
    """
    if name == "auto":
        return "bfloat16" if multiplies_bfloat16(device) else "float32"
    if name not in PRECISIONS:
        raise UsageError(f"precision: expected auto, {', '.join(PRECISIONS)}, got {name!r}")
    if name == "bfloat16":
        check_bfloat16(device, asked_for=name, instead="float32, or auto, the fastest here")
    return name
