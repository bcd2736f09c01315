"""The prediction for an image: drawing, summary and export, by task."""

import io
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from otus.data.image_writing import write_image
from otus.errors import MissingExtraError
from otus.inference.averaging import Averaging
from otus.inference.tiling import Tiles
from otus.parts.postprocess import Postprocess
from otus.parts.tasks import DETECTION, Task
from otus.structures import Categories, Classification, Instances, PanopticMap, SemanticMap
from otus.visualization.drawing import Page

if TYPE_CHECKING:
    import pandas

_NOTEBOOK_SIDE = 1280


@dataclass(frozen=True, eq=False)
class Prediction:
    """The prediction for one image, in its pixel coordinates.

    Parameters
    ----------
    name
        See :class:`~otus.data.sources.SourceImage`, also for ``frame``, ``time_s`` and ``notes``.
    image
        uint8 (H, W, 3) RGB. A file of more than 25 megapixels that is far larger than the network's input is decoded at a
        half, a quarter or an eighth of its resolution; the ``result`` is in pixels of the file, whose size is ``size_hw``.
    result
        Result of the task's type: :class:`~otus.structures.Instances`, ``Classification``, ``SemanticMap`` or
        ``PanopticMap``; ``instances``, ``classification``, ``semantic`` and ``panoptic`` return it by type.
    milliseconds
        Time of each step, divided by the number of images in the batch: ``prepare`` (including external proposals, if the
        system needs them), ``network``, ``undo`` (mapping results back to the image), ``masks`` (if they are refined).
    task
        Task of the model.
    size_hw
        Height and width of the file (default: those of ``image``).
    ids_file
        File to which the segment ids of a panoptic result were written (default: none).
    """

    name: str
    image: np.ndarray
    result: Instances | Classification | SemanticMap | PanopticMap
    milliseconds: dict[str, float]
    frame: int | None = None
    time_s: float | None = None
    notes: tuple[str, ...] = ()
    task: Task = DETECTION
    size_hw: tuple[int, int] = (0, 0)
    ids_file: Path | None = None

    def __post_init__(self) -> None:
        if self.size_hw == (0, 0):
            object.__setattr__(self, "size_hw", (self.image.shape[0], self.image.shape[1]))

    def __repr__(self) -> str:
        frame = "" if self.frame is None else f", frame {self.frame}"
        return f"Prediction({self.name!r}{frame}, {self.result!r})"

    def __getattr__(self, name: str) -> Any:
        if name in _OTHER_LIBRARIES_NAMES:
            raise AttributeError(f"a Prediction has no {name!r}: use .{_OTHER_LIBRARIES_NAMES[name]}")
        raise AttributeError(f"'Prediction' object has no attribute {name!r}")

    @property
    def instances(self) -> Instances:
        """Detected objects; empty for models that do not detect objects."""
        if isinstance(self.result, Instances):
            return self.result
        return Instances.empty(self.size_hw, self.result.categories, scores=np.zeros(0))

    @property
    def classification(self) -> Classification | None:
        """Classification of the whole image; None for models of other tasks."""
        return self.result if isinstance(self.result, Classification) else None

    @property
    def semantic(self) -> SemanticMap | None:
        """Category of every pixel; None for models of other tasks."""
        return self.result if isinstance(self.result, SemanticMap) else None

    @property
    def panoptic(self) -> PanopticMap | None:
        """Segment of every pixel; None for models of other tasks."""
        return self.result if isinstance(self.result, PanopticMap) else None

    @property
    def categories(self) -> Categories:
        """Names of the result's class indices."""
        assert self.result.categories is not None  # set by the predictor
        return self.result.categories

    def plot(self) -> UInt8[np.ndarray, "h w 3"]:
        """Return a copy of the image, uint8 (H, W, 3) RGB, with the predictions drawn on it."""
        return self.task.display.draw(self.image, self._result_at_image_size())

    def overlay(self, *, factor: int = 1) -> Page:
        """Return the overlay of ``otus predict``, downscaled by ``factor``, with a legend if needed."""
        if factor == 1:
            return self.task.display.overlay(self.image, self._result_at_image_size())
        image = np.asarray(Image.fromarray(self.image).reduce(factor))
        return self.task.display.overlay(image, self.result.resized((image.shape[0], image.shape[1])))

    def summary(self) -> str:
        """Return a short summary: ``3 person, 1 dog``, or ``dog 0.93, cat 0.05``."""
        return self.task.display.summary(self.result, self.categories)

    def save(self, path: str | Path) -> Path:
        """Write the overlay that ``otus predict`` writes, in the format of the path's suffix, and return the path."""
        write_image(path, self.overlay())
        return Path(path)

    def show(self) -> None:
        """Open the overlay in the operating system's image viewer."""
        Image.fromarray(self.overlay()).show(title=self.name)

    def _repr_png_(self) -> bytes:
        """Return the overlay as PNG at screen size, for display in notebooks."""
        overlay, encoded = Image.fromarray(self.overlay()), io.BytesIO()
        overlay.thumbnail((_NOTEBOOK_SIDE, _NOTEBOOK_SIDE))
        overlay.save(encoded, "PNG")
        return encoded.getvalue()

    def to_dict(self) -> dict[str, Any]:
        """Return the record of the image in ``otus predict --json``, as plain numbers and text."""
        height, width = self.size_hw
        document: dict[str, Any] = {"file": self.name}
        if self.frame is not None:
            document |= {"frame": self.frame, "time_s": self.time_s}
        document |= {
            "width": width,
            "height": height,
            "seconds": sum(self.milliseconds.values()) / 1e3,
            "milliseconds": self.milliseconds,
            **({"notes": list(self.notes)} if self.notes else {}),
            **self.task.display.document(list(self.task.display.records(self.result, self.categories))),
        }
        if self.ids_file is not None:
            document["panoptic"]["file"] = str(self.ids_file)
        return document

    def to_json(self) -> str:
        """Return :meth:`to_dict` as JSON text."""
        return json.dumps(self.to_dict(), ensure_ascii=False, allow_nan=False)

    def to_coco(self, *, image_id: int | str) -> list[dict[str, Any]]:
        """Return records in COCO's results format; the records of several images in one list form a results file.

        Parameters
        ----------
        image_id
            Id of the image in the annotation file, or its file name, which :func:`otus.evaluate` accepts too.

        Returns
        -------
        list of dict
            One record per object, or for a classified image one for each of the five highest-scoring categories:
            ``image_id``, ``category_id`` (id in the model's categories), ``category``, ``score``, ``bbox`` (xywh,
            pixels), and ``segmentation`` (RLE) and ``keypoints`` if the model predicts them.
        """
        categories = self.categories
        records = self.task.display.records(self.result, categories)
        ids = dict(zip(categories, categories.ids, strict=True))
        return [{"image_id": image_id, "category_id": ids[record["category"]], **record} for record in records]

    def to_pandas(self) -> "pandas.DataFrame":
        """Return a table with a row for each object, or for each category of a classified or segmented image.

        Returns
        -------
        pandas.DataFrame
            Columns ``image``, ``frame`` (of a video), ``category``, ``score``; for objects ``x1``, ``y1``, ``x2``,
            ``y2`` in pixels, and ``mask_area`` in square pixels if there are masks; for a segmented image ``share``,
            the fraction of its pixels; for a panoptic one, which has a row for each segment, ``is_thing`` too.

        Raises
        ------
        MissingExtraError
            If pandas is not installed.
        """
        try:
            import pandas
        except ImportError:
            raise MissingExtraError("pandas", "pandas", "a table of predictions") from None
        source: dict[str, Any] = {"image": self.name} | ({} if self.frame is None else {"frame": self.frame})
        columns = self.task.display.columns(self.result, self.categories)
        num_rows = len(columns["category"])
        return pandas.DataFrame({**{name: [value] * num_rows for name, value in source.items()}, **columns})

    def _result_at_image_size(self) -> Instances | Classification | SemanticMap | PanopticMap:
        """Return the result in pixels of ``image``, which may have a lower resolution than the file."""
        return self.result.resized((self.image.shape[0], self.image.shape[1]))


# Attribute names of other libraries, and their equivalents here.
_OTHER_LIBRARIES_NAMES = {
    "boxes": "instances.boxes_xyxy",
    "xyxy": "instances.boxes_xyxy",
    "labels": "instances.labels",
    "class_id": "instances.labels",
    "scores": "instances.scores",
    "conf": "instances.scores",
    "confidence": "instances.scores",
    "masks": "instances.masks",
    "keypoints": "instances.keypoints",
    "obb": "instances.oriented_boxes_xywhr",
    "probs": "classification",
    "names": "instances.categories",
    "path": "name",
    "orig_img": "image",
    "orig_shape": "instances.size_hw",
    "speed": "milliseconds",
    "verbose": "summary()",
}


def threshold_settings(postprocess: Postprocess, categories: Categories) -> dict[str, Any]:
    """Return the applied score threshold, and those of the categories if they differ."""
    by_category = dict(zip(categories, postprocess.score_thresholds, strict=False))
    return {
        "score_threshold": postprocess.score_threshold,
        **({"score_thresholds": by_category} if by_category else {}),
    }


def postprocess_settings(
    postprocess: Postprocess | None, categories: Categories, tiles: Tiles | None, averaging: Averaging | None = None
) -> dict[str, Any]:
    """Return the member ``postprocess`` of ``otus predict --json``: the settings by which results were filtered."""
    document: dict[str, Any] = {}
    if postprocess is not None:
        document = {
            **threshold_settings(postprocess, categories),
            "nms_iou": postprocess.nms_iou,
            "max_detections": postprocess.max_detections,
        }
        if postprocess.labels is not None:
            document["categories"] = [categories[label] for label in postprocess.labels]
    for name, settings in (("tiles", tiles), ("averaging", averaging)):
        if settings is not None:
            document[name] = asdict(settings)
    return {"postprocess": document} if document else {}
