"""Base class of the explanations of systems: the image, the record of a forward pass, and the heading of the page."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float, UInt8
from torch import Tensor

from otus.data.dataset import Dataset
from otus.data.image_lookup import find_image_index
from otus.data.sample import Sample
from otus.errors import UsageError
from otus.inference.prediction import threshold_settings
from otus.inference.predictor import Predictor
from otus.parts.detections import Detections, as_instances
from otus.parts.postprocess import Postprocess
from otus.reports.explain.figures import unpadded_size
from otus.reports.page import Page, Section
from otus.structures import Categories, Instances

ImageArray = UInt8[np.ndarray, "h w 3"]


@dataclass(frozen=True, eq=False)
class PassExplanation:
    """One image, and the record of a system's forward pass over it.

    Parameters
    ----------
    model, name
        Names of the model and of the image.
    image
        uint8 (H, W, 3) RGB image, before preprocessing.
    record
        Result of the system's ``stages``.
    system
        The system.
    """

    does: ClassVar[str] = "detects objects in"

    model: str
    name: str
    image: ImageArray
    record: Any
    system: Any

    @property
    def size_hw(self) -> tuple[int, int]:
        """Height and width of the image before preprocessing, in pixels."""
        return self.image.shape[0], self.image.shape[1]

    def unpadded_hw(self, feature_map: Tensor) -> tuple[int, int]:
        """Return the numbers of rows and columns of a feature map (…, h, w) that show the image, not the padding."""
        batch = self.record.batch
        grid_hw = (feature_map.shape[-2], feature_map.shape[-1])
        return unpadded_size(grid_hw, batch.sizes_hw[0], batch.padded_hw)

    def facts(self) -> dict[str, Any]:
        """Return the members that the document of every explanation starts with."""
        height, width = self.size_hw
        prepared = self.record.batch.sizes_hw[0]
        return {
            "model": self.model,
            "file": self.name,
            "width": width,
            "height": height,
            "prepared": {"width": prepared[1], "height": prepared[0]},
            "milliseconds": dict(self.record.milliseconds),
        }

    def page_of(self, facts: dict[str, Any], sections: Iterable[Section]) -> Page:
        """Return the page of these sections, with its heading."""
        times = ", ".join(f"{name} {value:.0f} ms" for name, value in facts["milliseconds"].items())
        title = f"How {self.model} {self.does} {self.name.rsplit('/', 1)[-1]}"
        prepared = facts["prepared"]
        resized = f"resized to {prepared['width']} x {prepared['height']}"
        subtitle = f"{facts['width']} x {facts['height']} pixels, {resized}; {times}"
        return Page(title, subtitle, tuple(sections))


@dataclass(frozen=True, eq=False)
class Explanation(PassExplanation):
    """One image, the record of a detector's forward pass over it, and the results. Each kind of detector extends it.

    Parameters
    ----------
    detections
        The final detections, boxes in pixels of ``image``.
    candidates
        The boxes before NMS, in pixels of ``image``.
    ground_truth
        The image's labels with the model's categories, without crowds and empty boxes; None if they were not given.
    postprocess
        The thresholds that were applied.
    """

    detections: Instances
    candidates: Instances
    ground_truth: Instances | None
    postprocess: Postprocess

    def boxes(self, boxes: Tensor) -> Float[np.ndarray, "n 4"]:
        """Scale xyxy boxes from the preprocessed image to the original image."""
        ratio = np.array(self.size_hw)[::-1] / np.array(self.record.batch.sizes_hw[0])[::-1]
        return boxes.detach().cpu().numpy().astype(np.float64) * np.tile(ratio, 2)

    def facts(self) -> dict[str, Any]:
        """Return the members that the document of every detector's explanation starts with."""
        return super().facts() | {
            **threshold_settings(self.postprocess, self.system.categories),
            "nms_iou": self.postprocess.nms_iou,
            "max_detections": self.postprocess.max_detections,
        }


def pass_fields(
    predictor: Predictor, image: ImageArray, *, name: str, postprocess: Postprocess | None = None
) -> dict[str, Any]:
    """Run a system on one image and return the fields of a :class:`PassExplanation`."""
    start = time.perf_counter()
    prepared = predictor.prepare(image, name)  # with proposals, if the system needs external ones
    prepare_ms = (time.perf_counter() - start) * 1e3
    record: Any = predictor.pipeline.stages(prepared, postprocess=postprocess)
    record.milliseconds = {"prepare": prepare_ms, **record.milliseconds}
    return {"model": predictor.name, "name": name, "image": image, "record": record, "system": predictor.system}


def explain_fields(
    predictor: Predictor,
    image: ImageArray,
    *,
    name: str,
    score_threshold: float | None,
    ground_truth: Instances | None = None,
) -> dict[str, Any]:
    """Run a detector on one image and return the fields of an :class:`Explanation`."""
    postprocess = predictor.postprocess(score_threshold)
    fields = pass_fields(predictor, image, name=name, postprocess=postprocess)
    record, categories = fields["record"], predictor.categories
    size_hw = (image.shape[0], image.shape[1])

    def undone(detections: list[Detections]) -> Instances:
        return predictor.preprocess.undo(as_instances(detections, record.batch.sizes_hw, categories)[0], size_hw)

    return fields | {
        "detections": undone(record.detections),
        "candidates": undone(record.candidates),
        "ground_truth": None if ground_truth is None else trainable_objects(ground_truth),
        "postprocess": postprocess,
    }


def trainable_objects(objects: Instances) -> Instances:
    """Return the objects that training assigns targets to: no crowds, no boxes without area."""
    sizes = objects.boxes_xyxy[:, 2:] - objects.boxes_xyxy[:, :2]
    return objects[(sizes > 0).all(axis=1) & ~objects.column("is_crowd", False).astype(bool)]


def prepared_target(predictor: Predictor, image: ImageArray, name: str, objects: Instances) -> Any:
    """Return the preprocessed image with these objects, crowds included, as a training sample."""
    return predictor.preprocess.prepare(Sample(image, name, instances=replace(objects, scores=None)))


def ground_truth_of(
    dataset: Dataset, image: str, categories: Categories, *, log: Callable[[str], None] = lambda text: None
) -> Instances:
    """Return the labels of an image of a data set, with a model's categories, matched by name.

    Parameters
    ----------
    image
        Name or path of the image.
    log
        Called with a message if labels are skipped because the model has no such category.

    Raises
    ------
    DataError, UsageError
        If the data set has no such image, no objects, or none of the categories.
    """
    sample = dataset[find_image_index(dataset, image)]
    if sample.instances is None:
        raise UsageError(f"{dataset.source}: has no objects; give other data, or omit --data")
    if not set(dataset.categories) & set(categories):
        raise UsageError(
            f"{dataset.source}: has none of the model's categories ({', '.join(categories)}), but "
            f"{', '.join(dataset.categories)}: rename them, or use another model"
        )
    labels = np.array([categories.index(n) if n in categories else -1 for n in dataset.categories], dtype=np.int64)
    instances = sample.instances[labels[sample.instances.labels] >= 0]
    if unknown := len(sample.instances) - len(instances):
        log(f"skipped {unknown} of {len(sample.instances)} labels: the model does not have their categories")
    return replace(instances, labels=labels[instances.labels], categories=categories)
