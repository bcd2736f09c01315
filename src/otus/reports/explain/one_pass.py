"""What the explanations of one-pass detectors share: the image, the record of its pass, and the way back to its pixels."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from matplotlib import colormaps
from PIL import Image
from torch import Tensor

from otus.data.dataset import Dataset
from otus.data.image_lookup import find_image_index
from otus.data.sample import Sample
from otus.errors import UsageError
from otus.inference.prediction import threshold_facts
from otus.inference.predictor import Predictor
from otus.parts.batching import Batch
from otus.parts.detections import Detections, as_instances
from otus.parts.postprocess import Postprocess
from otus.reports.page import Page, Section
from otus.structures import Categories, Instances

ImageArray = UInt8[np.ndarray, "h w 3"]


@dataclass(frozen=True, eq=False)
class Explained:
    """An image, and what was found on it in a pass whose record is kept.

    ``before`` is what stood before suppression and ``truth`` the labels, if any, all in the image's own pixels.
    """

    model: str
    name: str
    image: ImageArray
    record: Any
    found: Instances
    before: Instances
    truth: Instances | None
    system: Any
    postprocess: Postprocess

    @property
    def size_hw(self) -> tuple[int, int]:
        """Of the image as it came."""
        return self.image.shape[0], self.image.shape[1]

    def boxes(self, boxes: Tensor) -> Float[np.ndarray, "n 4"]:
        """Boxes of the prepared image in the pixels of the image as it came."""
        ratio = np.array(self.size_hw)[::-1] / np.array(self.record.batch.sizes_hw[0])[::-1]
        return boxes.detach().cpu().numpy().astype(np.float64) * np.tile(ratio, 2)

    def facts(self) -> dict[str, Any]:
        """What every explanation says first."""
        height, width = self.size_hw
        prepared = self.record.batch.sizes_hw[0]
        return {
            "model": self.model,
            "file": self.name,
            "width": width,
            "height": height,
            "prepared": {"width": prepared[1], "height": prepared[0]},
            "milliseconds": dict(self.record.milliseconds),
            **threshold_facts(self.postprocess, self.system.categories),
            "nms_iou": self.postprocess.nms_iou,
            "max_detections": self.postprocess.max_detections,
        }

    def page_of(self, facts: dict[str, Any], sections: Iterable[Section]) -> Page:
        """The page with its heading."""
        took = ", ".join(f"{name} {value:.0f}" for name, value in facts["milliseconds"].items())
        title = f"How {self.model} sees {self.name.rsplit('/', 1)[-1]}"
        prepared = facts["prepared"]
        subtitle = (
            f"{facts['width']} x {facts['height']} pixels, prepared as {prepared['width']} x {prepared['height']}; "
            f"milliseconds: {took}"
        )
        return Page(title, subtitle, tuple(sections))


def run(
    predictor: Predictor, image: ImageArray, *, name: str, score_threshold: float | None, truth: Instances | None
) -> dict[str, Any]:
    """The fields of an :class:`Explained`: one pass of a one-pass detector by the threshold."""
    system: Any = predictor.system
    size_hw = (image.shape[0], image.shape[1])
    prepared = predictor.preprocess.prepare(Sample(image, name))
    postprocess = predictor.postprocess(score_threshold)
    with predictor.autocast():
        record = system.stages([prepared], postprocess=postprocess)

    def undone(detections: list[Detections]) -> Instances:
        batch: Batch = record.batch
        categories: Categories = system.categories
        return predictor.preprocess.undo(as_instances(detections, batch.sizes_hw, categories)[0], size_hw)

    return {
        "model": predictor.name,
        "name": name,
        "image": image,
        "record": record,
        "found": undone(record.detections),
        "before": undone(record.candidates),
        "truth": None if truth is None else with_area(truth),
        "system": system,
        "postprocess": postprocess,
    }


def with_area(objects: Instances) -> Instances:
    """What is learned: no crowds, no boxes without area."""
    sizes = objects.boxes_xyxy[:, 2:] - objects.boxes_xyxy[:, :2]
    return objects[(sizes > 0).all(axis=1) & ~objects.column("is_crowd", False).astype(bool)]


def prepared_target(predictor: Predictor, image: ImageArray, name: str, objects: Instances) -> Any:
    """A tensor sample of the image with these objects, crowds among them, prepared as the model wants it."""
    return predictor.preprocess.prepare(Sample(image, name, instances=replace(objects, scores=None)))


def labels_of(
    dataset: Dataset, image: str, categories: Categories, *, say: Callable[[str], None] = lambda text: None
) -> Instances:
    """The labels of an image in a data set, those of a model's categories by their names; told how many are of others.

    Raises
    ------
    DataError, UsageError
        If the data has no such image, no objects, or none of the categories.
    """
    sample = dataset[find_image_index(dataset, image)]
    if sample.instances is None:
        raise UsageError(f"{dataset.source}: has no objects to explain by; leave the labels out, or name others")
    if not set(dataset.categories) & set(categories):
        raise UsageError(
            f"{dataset.source}: has none of the model's categories ({', '.join(categories)}), but "
            f"{', '.join(dataset.categories)}: rename them, or take another model"
        )
    labels = np.array([categories.index(n) if n in categories else -1 for n in dataset.categories], dtype=np.int64)
    known = sample.instances[labels[sample.instances.labels] >= 0]
    if others := len(sample.instances) - len(known):
        say(f"left out: {others} of {len(sample.instances)} labels are of categories that the model does not know")
    return replace(known, labels=labels[known.labels], categories=categories)


def overlaid(image: ImageArray, values: Float[np.ndarray, "h w"]) -> ImageArray:
    """A map of values over an image: bright where they are highest, the image dark where they are 0."""
    share = values / max(float(values.max()), 1e-12)
    size_wh = (image.shape[1], image.shape[0])
    smooth = Image.fromarray(share.astype(np.float32)).resize(size_wh, Image.Resampling.BILINEAR)
    strength = np.clip(np.asarray(smooth), 0, 1)[..., None]
    colours = colormaps["inferno"](0.25 + 0.75 * strength[..., 0])[..., :3] * 255
    opacity = 0.9 * strength**0.6
    return (0.6 * image * (1 - opacity) + colours * opacity).clip(0, 255).astype(np.uint8)
