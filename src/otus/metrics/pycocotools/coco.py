"""``COCO`` with pycocotools' interface, and the conversion of its annotations to columns.

A small subset of ``pycocotools.coco.COCO`` with the same names. Departures: nothing is printed; results may be empty
and are copied, not changed; the error for a result of an unknown image names it.
"""

# ruff: noqa: N802, N803 - pycocotools' names
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from jaxtyping import Float, Int
from pycocotools import mask as rle_codec

from otus.errors import DataError
from otus.structures import BoxFormat, Objects, Segmentations, boxes

Record = dict[str, Any]


class COCO:
    """Images, categories and annotations of a COCO file (or of ``dataset``, if it is set before ``createIndex``).

    Parameters
    ----------
    annotation_file
        A JSON file, or its content.

    Examples
    --------
    >>> labels = {"images": [{"id": 7}], "categories": [{"id": 1, "name": "owl"}], "annotations": []}
    >>> ground_truth = COCO(labels)
    >>> predictions = ground_truth.loadRes([{"image_id": 7, "category_id": 1, "bbox": [0, 0, 4, 5], "score": 0.9}])
    >>> predictions.anns[1]["area"]
    20
    """

    def __init__(self, annotation_file: str | Path | Mapping[str, Any] | None = None) -> None:
        self.dataset: Record = {}
        self.createIndex()
        if annotation_file is not None:
            self.dataset = _read(annotation_file, dict)
            self.createIndex()

    def createIndex(self) -> None:
        """Index ``dataset``: ``anns``, ``imgs`` and ``cats`` by id, ``imgToAnns`` and ``catToImgs``."""
        annotations: list[Record] = self.dataset.get("annotations", [])
        self.anns: dict[int, Record] = {record["id"]: record for record in annotations}
        self.imgs: dict[Any, Record] = {record["id"]: record for record in self.dataset.get("images", [])}
        self.cats: dict[int, Record] = {record["id"]: record for record in self.dataset.get("categories", [])}
        self.imgToAnns: dict[Any, list[Record]] = defaultdict(list)
        self.catToImgs: dict[int, list[Any]] = defaultdict(list)
        for record in annotations:
            self.imgToAnns[record["image_id"]].append(record)
            self.catToImgs[record["category_id"]].append(record["image_id"])

    def getImgIds(self, imgIds: Any = (), catIds: Any = ()) -> list[Any]:
        """Return the ids of the images, filtered by id and by the categories that they must all show."""
        with_category = [set(self.catToImgs[category]) for category in _as_list(catIds)]
        return [
            image_id
            for image_id in _as_list(imgIds) or self.imgs
            if all(image_id in images for images in with_category)
        ]

    def getCatIds(self, catNms: Any = (), supNms: Any = (), catIds: Any = ()) -> list[int]:
        """Return the ids of the categories, filtered by name, supercategory and id."""
        filters = {"name": catNms, "supercategory": supNms, "id": catIds}
        allowed = {field: set(_as_list(values)) for field, values in filters.items()}
        return [
            record["id"]
            for record in self.dataset.get("categories", [])
            if all(record.get(field) in values for field, values in allowed.items() if values)
        ]

    def getAnnIds(
        self, imgIds: Any = (), catIds: Any = (), areaRng: Sequence[float] = (), iscrowd: bool | None = None
    ) -> list[int]:
        """Return the ids of the annotations, filtered by image, category, area range (exclusive) and crowd flag."""
        images, categories = _as_list(imgIds), set(_as_list(catIds))
        if images:
            annotations = [record for image in images for record in self.imgToAnns.get(image, ())]
        else:
            annotations = self.dataset.get("annotations", [])
        return [
            record["id"]
            for record in annotations
            if (not categories or record["category_id"] in categories)
            and (not len(areaRng) or areaRng[0] < record["area"] < areaRng[1])
            and (iscrowd is None or record["iscrowd"] == iscrowd)
        ]

    def loadAnns(self, ids: Any = ()) -> list[Record]:
        """Return the annotations with the given ids."""
        return [self.anns[annotation_id] for annotation_id in _as_list(ids)]

    def loadCats(self, ids: Any = ()) -> list[Record]:
        """Return the categories with the given ids."""
        return [self.cats[category_id] for category_id in _as_list(ids)]

    def loadImgs(self, ids: Any = ()) -> list[Record]:
        """Return the images with the given ids."""
        return [self.imgs[image_id] for image_id in _as_list(ids)]

    def loadRes(self, resFile: str | Path | Sequence[Mapping[str, Any]]) -> "COCO":
        """Return results for these images, from a JSON file or a list; missing boxes and areas are computed.

        Raises
        ------
        DataError
            If a result is of an unknown image, or has no box, segmentation or keypoints.
        """
        results = COCO()
        records = [dict(record) for record in _read(resFile, list)]
        for index, record in enumerate(records):
            if record.get("image_id") not in self.imgs:
                raise DataError(
                    f"no image has the id {record.get('image_id')!r}",
                    where=f"[{index}].image_id",
                    remedy="correct or remove this record",
                    kind="unknown_image",
                )
            box, area = _box_and_area(record, index)
            record.update(id=index + 1, bbox=box, area=area, iscrowd=0)
        results.dataset = {**self.dataset, "annotations": records}
        results.createIndex()
        return results

    def annToRLE(self, ann: Mapping[str, Any]) -> Record:
        """Return the segmentation of an annotation as compressed run lengths."""
        segmentation = ann["segmentation"]
        if isinstance(segmentation, dict) and not isinstance(segmentation["counts"], list):
            return segmentation
        image = self.imgs[ann["image_id"]]
        runs = rle_codec.frPyObjects(segmentation, image["height"], image["width"])
        return rle_codec.merge(runs) if isinstance(runs, list) else runs

    def annToMask(self, ann: Mapping[str, Any]) -> np.ndarray:
        """Return the mask (H, W) of an annotation, uint8."""
        return rle_codec.decode(self.annToRLE(ann))


def _read(source: Any, kind: type) -> Any:
    """Return the content of a JSON file, or the value itself, if it has the given type."""
    file = Path(source) if isinstance(source, str | Path) else None
    try:
        value = source if file is None else msgspec.json.decode(file.read_bytes())
    except (OSError, msgspec.MsgspecError) as error:
        raise DataError(f"cannot be read: {error}", file=file, remedy="check the path and the file") from error
    if isinstance(value, Mapping if kind is dict else Sequence):
        return value
    raise DataError(
        f"expected a JSON {'object' if kind is dict else 'array'}, got {type(value).__name__}",
        file=file,
        remedy="labels are an object with images, annotations and categories; results are an array",
    )


def _box_and_area(record: Record, index: int) -> tuple[Any, float]:
    """Return box and area as in pycocotools' ``loadRes``: of the box, else the segmentation, else the keypoints."""
    if record.get("bbox") is not None and len(record["bbox"]):
        return record["bbox"], record["bbox"][2] * record["bbox"][3]
    if record.get("segmentation"):
        return rle_codec.toBbox(record["segmentation"]), float(rle_codec.area(record["segmentation"]))
    if record.get("keypoints"):
        x, y = record["keypoints"][0::3], record["keypoints"][1::3]
        width, height = max(x) - min(x), max(y) - min(y)
        return [min(x), min(y), width, height], width * height
    raise DataError(
        "expected a bbox, a segmentation or keypoints", where=f"[{index}]", remedy="correct or remove this record"
    )


def _as_list(values: Any) -> list[Any]:
    return list(values) if isinstance(values, Iterable) and not isinstance(values, str) else [values]


def objects_of(
    coco: Any,
    side: str,
    *,
    kind: str,
    image_ids: Sequence[Any],
    category_ids: Sequence[int],
    by_category: bool = True,
) -> Objects:
    """Convert the annotations of some images and categories of a ``COCO`` (of pycocotools or Otus) exactly.

    Parameters
    ----------
    side
        ``ground_truth``, or ``predictions``, which have scores.
    kind
        ``bbox``, ``segm`` or ``keypoints``: what each annotation must have.
    image_ids, category_ids
        Image ids and category ids, in the order of image index and class index.
    by_category
        Whether to keep categories; else all labels are 0, and objects are sorted by category (default: True).

    Raises
    ------
    DataError
        If an annotation lacks a required field, or two have the same id.
    """
    records: list[Record] = coco.loadAnns(coco.getAnnIds(imgIds=image_ids)) if len(image_ids) else []
    label_of = {category: label for label, category in enumerate(category_ids)}
    records = [record for record in records if record["category_id"] in label_of]
    labels = np.array([label_of[record["category_id"]] for record in records], dtype=np.int64)
    if not by_category:
        records = [records[i] for i in np.argsort(labels, kind="stable")]
        labels = np.zeros(len(records), dtype=np.int64)
    index_of = {image: i for i, image in enumerate(image_ids)}
    # Not needed for masks, whose boxes are computed.
    xywh = np.zeros((len(records), 4)) if kind == "segm" else _numbers(records, "bbox", side, width=4)
    optional: dict[str, Any] = {"columns": {"box_sizes_wh": xywh[:, 2:]}}
    if side == "predictions":
        optional["scores"] = _numbers(records, "score", side)
    if kind == "segm":
        optional["segmentations"] = Segmentations.build(_segmentation(record, side) for record in records)
    if kind == "keypoints":
        width = len(records[0].get("keypoints", ())) if records else 0
        optional["keypoints"] = _numbers(records, "keypoints", side, width=width).reshape(len(records), width // 3, 3)
    ids = np.array([record["id"] for record in records], dtype=np.int64)
    unique, counts = np.unique(ids, return_counts=True)
    if len(unique) < len(ids):
        raise DataError(
            f"{counts.max()} annotations have the id {unique[np.argmax(counts)]}",
            where=f"{side}.id",
            remedy="give each a unique id",
            kind="duplicate_id",
        )
    return Objects.build(
        image_index=[index_of[record["image_id"]] for record in records],
        labels=labels,
        boxes_xyxy=boxes.convert(xywh, BoxFormat.XYWH, BoxFormat.XYXY),
        ids=ids,
        areas=_numbers(records, "area", side),
        is_crowd=[bool(record.get("iscrowd", 0)) for record in records] if side == "ground_truth" else None,
        **optional,
    )


def _numbers(records: Sequence[Record], field: str, side: str, *, width: int = 1) -> Float[np.ndarray, "n w"]:
    """Return a field of all records, (N, width), or (N,) for scalars."""
    try:
        values: Any = [record[field] for record in records]
        if width > 1:
            if any(len(value) != width for value in values):
                raise ValueError
            values = chain.from_iterable(values)
        flat = np.fromiter(values, np.float64, width * len(records))
    except (KeyError, TypeError, ValueError):
        for record in records:
            _check_numbers(record, field, side, width)
        raise
    return flat.reshape(-1, width) if width > 1 else flat


def _check_numbers(record: Record, field: str, side: str, width: int) -> None:
    value = record.get(field)
    try:
        if value is not None and np.asarray(value, dtype=np.float64).shape == (() if width == 1 else (width,)):
            return
    except (TypeError, ValueError):
        pass
    raise DataError(
        f"expected {'a number' if width == 1 else f'{width} numbers'}, got {value!r}",
        where=f"{side}: annotation {record.get('id')}.{field}",
        remedy="correct or remove this annotation",
        kind=f"bad_{field}",
    ) from None


def _segmentation(record: Record, side: str) -> bytes | list[np.ndarray]:
    segmentation = record.get("segmentation")
    if isinstance(segmentation, dict):
        counts = segmentation["counts"]
        if isinstance(counts, list):
            counts = rle_codec.frPyObjects(segmentation, *segmentation["size"])["counts"]
        return counts.encode() if isinstance(counts, str) else bytes(counts)
    if isinstance(segmentation, list) and segmentation:
        return [np.asarray(ring, dtype=np.float64).reshape(-1, 2) for ring in segmentation]
    raise DataError(
        f"expected polygons or run lengths, got {segmentation!r}",
        where=f"{side}: annotation {record.get('id')}.segmentation",
        remedy="correct or remove this annotation, or evaluate boxes",
        kind="bad_outline",
    )


def sizes_hw_of(image_ids: Sequence[Any], cocos: Sequence[Any]) -> Int[np.ndarray, "m 2"]:
    """Return the images' sizes from the first ``COCO`` that has them, else from the run lengths."""
    sizes = np.zeros((len(image_ids), 2), dtype=np.int64)
    for index, image in enumerate(image_ids):
        for coco in cocos:
            record = coco.imgs.get(image, {})
            if "height" in record and "width" in record:
                sizes[index] = record["height"], record["width"]
            elif not sizes[index].any():
                segmentations = (record.get("segmentation") for record in coco.imgToAnns.get(image, ()))
                sizes[index] = next(
                    (tuple(record["size"]) for record in segmentations if isinstance(record, dict)), (0, 0)
                )
    return sizes
