"""What was found on one image, and how it is drawn, told and written down."""

import io
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from otus.data.image_writing import write_image
from otus.errors import MissingExtraError
from otus.inference.tiling import Tiles
from otus.parts.postprocess import Postprocess
from otus.structures import BoxFormat, Categories, Classification, Instances
from otus.structures.boxes import as_boxes, convert
from otus.visualization.drawing import draw, overlay

if TYPE_CHECKING:
    import pandas

_SHOWN_CATEGORIES = 5
_NOTEBOOK_SIDE = 1280


@dataclass(frozen=True, eq=False)
class Prediction:
    """What was found on one image, in its own pixels.

    ``image`` is the image. A file of more than 25 megapixels, far larger than the network sees it, is decoded at a half, a
    quarter or an eighth: then ``instances``, whose ``size_hw`` is the file's, are in the frame of the file.
    ``name``, ``frame``, ``time_s`` and ``notes`` as in :class:`~otus.data.sources.SourceImage`; ``milliseconds`` by part:
    ``prepare`` (with the search for proposals where the system is given them), ``network``, ``undo``, this image's share
    of its batch. ``classification`` is what the whole image shows, of models that say that; they find no instances.
    """

    name: str
    image: np.ndarray
    instances: Instances
    milliseconds: dict[str, float]
    frame: int | None = None
    time_s: float | None = None
    classification: Classification | None = None
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        frame = "" if self.frame is None else f", frame {self.frame}"
        shown = self.classification if self.classification is not None else self.instances
        return f"Prediction({self.name!r}{frame}, {shown!r})"

    def __getattr__(self, name: str) -> Any:
        if name in _ELSEWHERE:
            raise AttributeError(f"a Prediction has no {name!r}: write .{_ELSEWHERE[name]}")
        raise AttributeError(f"'Prediction' object has no attribute {name!r}")

    def plot(self) -> UInt8[np.ndarray, "h w 3"]:
        """Return a copy of the image, RGB, with what was found drawn on it."""
        return draw(self.image, drawn_objects(self))

    def save(self, path: str | Path) -> Path:
        """Write the overlay that ``otus predict`` writes, in the format of the path's suffix, and return the path."""
        write_image(path, self._overlay())
        return Path(path)

    def show(self) -> None:
        """Open the overlay in the system's viewer."""
        Image.fromarray(self._overlay()).show(title=self.name)

    def _repr_png_(self) -> bytes:
        """Return the overlay as PNG, no longer than a screen: what a notebook shows of the last value of a cell."""
        overlay, encoded = Image.fromarray(self._overlay()), io.BytesIO()
        overlay.thumbnail((_NOTEBOOK_SIDE, _NOTEBOOK_SIDE))
        overlay.save(encoded, "PNG")
        return encoded.getvalue()

    def to_dict(self) -> dict[str, Any]:
        """Return what ``otus predict --json`` says of an image: plain numbers and text."""
        shown = self.instances if self.classification is None else self.classification
        assert shown.categories is not None  # a predictor names them
        return prediction_document(self, shown.categories)

    def to_json(self) -> str:
        """Return :meth:`to_dict` as JSON text."""
        return json.dumps(self.to_dict(), ensure_ascii=False, allow_nan=False)

    def to_coco(self, *, image_id: int | str) -> list[dict[str, Any]]:
        """Return the records of COCO's results: those of several images, in one list, are a file of predictions.

        Parameters
        ----------
        image_id
            The image's id in the labels that the predictions belong to; or its file name, which :func:`otus.evaluate` takes
            as well.

        Returns
        -------
        list of dict
            One an object (of a classified image one a category, the five likeliest): ``image_id``, ``category_id`` as the
            model's categories have it, ``category``, ``score``, ``bbox`` (xywh, pixels), ``segmentation`` (RLE) and
            ``keypoints`` where there are some.
        """
        shown = self.instances if self.classification is None else self.classification
        categories = shown.categories
        assert categories is not None  # a predictor names them
        (records,) = answer_document(self, categories).values()
        ids = dict(zip(categories, categories.ids, strict=True))
        return [{"image_id": image_id, "category_id": ids[record["category"]], **record} for record in records]

    def to_pandas(self) -> "pandas.DataFrame":
        """Return a table with a row for each object, or for each category of a classified image.

        Returns
        -------
        pandas.DataFrame
            Columns ``image``, ``frame`` (of a video), ``category``, ``score``, and of objects ``x1``, ``y1``, ``x2``, ``y2``
            in pixels, and ``mask_area`` in square pixels where there are masks.

        Raises
        ------
        MissingExtraError
            If pandas is not installed.
        """
        try:
            import pandas
        except ImportError:
            raise MissingExtraError("pandas", "pandas", "a table of predictions") from None
        place: dict[str, Any] = {"image": self.name} | ({} if self.frame is None else {"frame": self.frame})
        if self.classification is not None:
            shown, order = self.classification, self.classification.order()
            columns: dict[str, Any] = {
                "category": [shown.categories[label] for label in order],
                "score": shown.scores[order],
            }
        else:
            found = self.instances
            assert found.categories is not None  # a predictor names them
            columns = {"category": [found.categories[label] for label in found.labels], "score": found.scores}
            columns |= dict(zip(("x1", "y1", "x2", "y2"), found.boxes_xyxy.T, strict=True))
            columns |= {} if found.masks is None else {"mask_area": found.masks.area()}
        count = len(columns["category"])
        return pandas.DataFrame({**{name: [value] * count for name, value in place.items()}, **columns})

    def _overlay(self) -> np.ndarray:
        return overlay(self.image, drawn_objects(self))


# Names by which other libraries call what stands in a prediction.
_ELSEWHERE = {
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
    "summary": "to_dict()",
}


def instance_records(instances: Instances, categories: Categories) -> Iterator[dict[str, Any]]:
    """Each object as the ``predict`` document has it: ``category``, ``score``, ``bbox`` (xywh), outline, keypoints."""
    boxes = convert(instances.boxes_xyxy, BoxFormat.XYXY, BoxFormat.XYWH)
    outlines = None if instances.masks is None else instances.masks.rle()
    for i, label in enumerate(instances.labels):
        record: dict[str, Any] = {"category": categories[int(label)]}
        if instances.scores is not None:
            record["score"] = float(instances.scores[i])
        record["bbox"] = [float(value) for value in boxes[i]]
        if outlines is not None:
            size, counts = outlines[i]["size"], outlines[i]["counts"]
            record["segmentation"] = {"size": size, "counts": counts.decode("ascii")}  # type: ignore[attr-defined]
        if instances.keypoints is not None:
            record["keypoints"] = [float(value) for value in instances.keypoints[i].reshape(-1)]
        yield record


def prediction_document(prediction: Prediction, categories: Categories) -> dict[str, Any]:
    """One entry of ``images`` in the document of ``otus predict --json``."""
    height, width = prediction.instances.size_hw
    document: dict[str, Any] = {"file": prediction.name}
    if prediction.frame is not None:
        document |= {"frame": prediction.frame, "time_s": prediction.time_s}
    return document | {
        "width": width,
        "height": height,
        "seconds": sum(prediction.milliseconds.values()) / 1e3,
        "milliseconds": prediction.milliseconds,
        **({"notes": list(prediction.notes)} if prediction.notes else {}),
        **answer_document(prediction, categories),
    }


def threshold_facts(postprocess: Postprocess, categories: Categories) -> dict[str, Any]:
    """The score threshold that was applied; by category where these differ."""
    of_labels = dict(zip(categories, postprocess.score_thresholds, strict=False))
    return {"score_threshold": postprocess.score_threshold, **({"score_thresholds": of_labels} if of_labels else {})}


def postprocess_facts(postprocess: Postprocess | None, categories: Categories, tiles: Tiles | None) -> dict[str, Any]:
    """The member ``postprocess`` of the document of ``otus predict --json``: by what its detections were chosen."""
    if postprocess is None:
        return {}
    facts = {
        **threshold_facts(postprocess, categories),
        "nms_iou": postprocess.nms_iou,
        "max_detections": postprocess.max_detections,
    }
    if postprocess.labels is not None:
        facts["categories"] = [categories[label] for label in postprocess.labels]
    return {"postprocess": facts | ({} if tiles is None else {"tiles": asdict(tiles)})}


def answer_document(prediction: Prediction, categories: Categories) -> dict[str, list[dict[str, Any]]]:
    """``instances``, or ``classification``: the likeliest categories of the image as a whole."""
    shown = prediction.classification
    if shown is None:
        return {"instances": list(instance_records(prediction.instances, categories))}
    best = shown.order()[:_SHOWN_CATEGORIES].tolist()
    return {"classification": [{"category": categories[i], "score": float(shown.scores[i])} for i in best]}


def document_in_words(document: Mapping[str, Any]) -> str:
    """What a document says is on the image: ``3 person, 1 dog``, or ``dog 0.93, cat 0.05``."""
    if "classification" in document:
        return ", ".join(f"{one['category']} {one['score']:.2f}" for one in document["classification"])
    return found_in_words(document["instances"])


def found_in_words(documents: Sequence[Mapping[str, Any]]) -> str:
    """``3 person, 1 dog`` for the ``instances`` of a document, the most frequent first."""
    counts = Counter(one["category"] for one in documents)
    return ", ".join(f"{count} {name}" for name, count in counts.most_common()) or "nothing"


def drawn_objects(prediction: Prediction) -> Instances:
    """The objects in the frame of ``prediction.image``; of one that was classified, the likeliest category around all."""
    shown, (height, width) = prediction.classification, prediction.image.shape[:2]
    objects = prediction.instances.resized((height, width))
    if shown is None:
        return objects
    best = shown.order()[:1]
    return replace(objects, boxes_xyxy=as_boxes([[0, 0, width, height]]), labels=best, scores=shown.scores[best])
