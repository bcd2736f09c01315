"""The masks of ``otus segment`` as JSON documents, label images, COCO and LabelMe files.

A document is the JSON object that ``otus segment --json`` prints for an image.
"""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from jaxtyping import UInt8

from otus._files import staged_file
from otus.data.dataset import Dataset, Images
from otus.data.formats import coco, labelme
from otus.data.formats.text_files import read_json_bytes
from otus.data.image_writing import write_label_image
from otus.errors import DataError
from otus.structures import Categories, Instances, MaskCandidates, Masks, Objects, Prompt, Segmentations
from otus.visualization.palette import category_colours

FORMATS = {"png": ".png", "rle": ".json", "coco": ".json", "labelme": ".json"}
"""File suffix by format."""


def read_prompts(path: str | Path) -> dict[str, Prompt]:
    """Return the prompts of a JSON file by image name: ``{"a.jpg": {"points": [[250, 180, 1]]}, …}``.

    Raises
    ------
    DataError
        If the file or a prompt in it cannot be read; the message names it.
    """
    content = read_json_bytes(Path(path))
    try:
        document = msgspec.json.decode(content)
    except msgspec.DecodeError as error:
        raise DataError(f"is not JSON: {error}", file=path, remedy="write it again", kind="broken_json") from None
    if not isinstance(document, dict) or not document:
        raise DataError(
            "expected a JSON object with a prompt for each image",
            file=path,
            remedy='write {"a.jpg": {"points": [[250, 180, 1]]}}',
            kind="bad_prompt",
        )
    return {name: Prompt.from_json(prompt, where=f"{path}: {name}") for name, prompt in document.items()}


def candidate_records(candidates: MaskCandidates) -> list[dict[str, Any]]:
    """Return a record for each mask, as in the document of ``otus segment --json``."""
    records = []
    masks = candidates.masks
    columns = zip(candidates.objects.tolist(), candidates.scores.tolist(), masks.area().tolist(), strict=True)
    for (number, score, area), box, segmentation in zip(
        columns, masks.boxes_xyxy().tolist(), masks.rle_json(), strict=True
    ):
        x1, y1, x2, y2 = box
        bbox = [x1, y1, x2 - x1, y2 - y1]
        records.append(
            {"object": number, "score": score, "area": int(area), "bbox": bbox, "segmentation": segmentation}
        )
    return records


def as_instances(candidates: MaskCandidates) -> Instances:
    """Return the masks as instances of the categories ``object 1``, ``object 2``, …, for drawing."""
    numbers = sorted(set(candidates.objects.tolist()))
    categories = Categories(tuple(f"object {number}" for number in numbers))
    return Instances(
        size_hw=candidates.masks.size_hw,
        boxes_xyxy=candidates.masks.boxes_xyxy(),
        labels=np.searchsorted(numbers, candidates.objects).astype(np.int64),
        scores=candidates.scores,
        masks=candidates.masks,
        categories=categories,
    )


def as_dataset(documents: Sequence[Mapping[str, Any]], root: Path) -> Dataset:
    """Return the masks of documents as a data set with the categories ``object 1``, ``object 2``, …"""
    rows = list(_rows(documents))
    numbers = sorted({record["object"] for _, record in rows})
    boxes = np.array([record["bbox"] for _, record in rows], dtype=np.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    names = tuple(Path(document["file"]).as_posix() for document in documents)
    sizes = np.array([[document["height"], document["width"]] for document in documents])
    objects = Objects(
        image_index=np.array([index for index, _ in rows], dtype=np.int64),
        labels=np.searchsorted(numbers, [record["object"] for _, record in rows]).astype(np.int64),
        boxes_xyxy=boxes,
        ids=np.arange(1, len(rows) + 1),
        areas=np.array([record["area"] for _, record in rows], dtype=np.float64),
        is_crowd=np.zeros(len(rows), dtype=bool),
        segmentations=Segmentations.build(record["segmentation"]["counts"].encode("ascii") for _, record in rows),
        scores=np.array([record["score"] for _, record in rows]),
    )
    images = Images(root, names, sizes, tuple(range(1, len(names) + 1)))
    categories = Categories(tuple(f"object {number}" for number in numbers))
    return Dataset(source=root, format="coco", split=None, images=images, categories=categories, objects=objects)


def _rows(documents: Sequence[Mapping[str, Any]]) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Yield the image index and the record of each mask that is not empty."""
    for index, document in enumerate(documents):
        for record in document["candidates"]:
            if record["area"]:
                yield index, record


def write_masks(path: Path, documents: Sequence[Mapping[str, Any]], *, format: str) -> None:
    """Write the masks of documents to a file, atomically.

    Parameters
    ----------
    path
        File to write.
    documents
        Documents of the images; a single one for ``png`` and ``labelme``.
    format
        ``png``: a label image; ``rle``: the documents as JSON; ``coco`` or ``labelme``.
    """
    if format == "png":
        (document,) = documents
        labels = _label_image(document)
        palette = np.concatenate([np.zeros((1, 3), np.uint8), category_colours(int(labels.max(initial=1)))])
        write_label_image(path, labels, palette=palette)
    elif format == "coco":
        coco.write_json(as_dataset(documents, path.parent), path)
    elif format == "labelme":
        with tempfile.TemporaryDirectory() as folder, staged_file(path) as stage:
            labelme.write(as_dataset(documents, path.parent), Path(folder) / "one", images="none")
            (written,) = Path(folder).rglob("*.json")
            stage.write_bytes(written.read_bytes())
    else:
        with staged_file(path) as stage:
            stage.write_bytes(msgspec.json.encode(documents[0] if len(documents) == 1 else documents))


def _label_image(document: Mapping[str, Any]) -> UInt8[np.ndarray, "h w"]:
    """Return the object number of each pixel, 0 for background; the first mask counts where masks overlap."""
    labels = np.zeros((document["height"], document["width"]), np.uint8)
    records = document["candidates"]
    masks = Masks.from_rle([record["segmentation"]["counts"] for record in records], labels.shape)
    for record, mask in zip(records, masks, strict=True):
        labels[mask & (labels == 0)] = record["object"]
    return labels
