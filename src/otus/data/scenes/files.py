"""Write synthetic scenes to disk as a data set."""

import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from otus.data.dataset import Dataset, Images, PanopticFiles
from otus.data.formats import coco, coco_panoptic
from otus.data.sample import Sample
from otus.data.scenes.generator import ALL_CATEGORIES, THING_CATEGORIES, Scenes
from otus.structures import Instances, Objects, Segmentations, oriented


def write_scenes(
    folder: str | Path,
    count: int,
    *,
    split: str | None = None,
    size_hw: tuple[int, int] = Scenes.size_hw,
    seed: int = Scenes.seed,
    min_objects: int = Scenes.min_objects,
    max_objects: int = Scenes.max_objects,
    object_sizes: tuple[float, float] = Scenes.object_sizes,
) -> None:
    """Write ``count`` scenes as COCO data sets: objects in ``folder``, panoptic maps in ``folder/panoptic``.

    Call it twice, with different seeds, for a training and a validation split in one folder. Other parameters as in
    :class:`~otus.data.scenes.generator.Scenes`.

    Raises
    ------
    DataError
        If the folder exists and is not empty.

    Examples
    --------
    >>> write_scenes("scenes/train", 400, split="train", seed=0)  # doctest: +SKIP
    >>> write_scenes("scenes/val", 100, split="val", seed=1)  # doctest: +SKIP
    >>> otus.open_dataset("scenes", split="train")  # doctest: +SKIP
    """
    folder = Path(folder).absolute()
    folder.parent.mkdir(parents=True, exist_ok=True)
    scenes = Scenes(
        count,
        size_hw=size_hw,
        seed=seed,
        min_objects=min_objects,
        max_objects=max_objects,
        object_sizes=object_sizes,
    )
    with tempfile.TemporaryDirectory(prefix=".scenes-", dir=folder.parent) as work:
        dataset = _dataset(scenes, Path(work), split)
        coco.write(dataset, folder, images="link")
        coco_panoptic.write(dataset, folder / "panoptic", images="none")


def _dataset(scenes: Scenes, folder: Path, split: str | None) -> Dataset:
    """Return the scenes as a data set whose images and panoptic PNGs are files in ``folder``."""
    names, maps, segments, instances = [], [], [], []
    for sample in scenes:
        Image.fromarray(sample.image).save(folder / sample.key, quality=95)
        names.append(sample.key)
        maps.append(_save_map(sample, folder))
        segments.append(() if sample.panoptic is None else sample.panoptic.segments)
        instances.append(sample.instances)
    sizes_hw = np.tile(scenes.size_hw, (len(scenes), 1))
    return Dataset(
        source=folder,
        format="coco",
        split=split,
        images=Images(folder, tuple(names), sizes_hw, tuple(range(1, len(scenes) + 1))),
        categories=THING_CATEGORIES,
        objects=_objects([objects for objects in instances if objects is not None]),
        panoptic=PanopticFiles(tuple(maps), tuple(segments), ALL_CATEGORIES),
    )


def _save_map(sample: Sample, folder: Path) -> Path:
    assert sample.panoptic is not None
    path = (folder / sample.key).with_suffix(".png")
    Image.fromarray(coco_panoptic.ids_to_rgb(sample.panoptic.ids)).save(path)
    return path


def _objects(scenes: list[Instances]) -> Objects:
    def concatenated(name: str) -> np.ndarray:
        return np.concatenate([getattr(instances, name) for instances in scenes])

    def segmentations(name: str) -> Segmentations:
        return Segmentations.build(rle["counts"] for instances in scenes for rle in getattr(instances, name).rle())

    return Objects.build(
        image_index=np.repeat(np.arange(len(scenes)), [len(instances) for instances in scenes]),
        labels=concatenated("labels"),
        boxes_xyxy=concatenated("boxes_xyxy"),
        areas=np.concatenate([instances.columns["areas"] for instances in scenes]),
        segmentations=segmentations("masks"),
        keypoints=concatenated("keypoints"),
        corners_xy=oriented.corners(concatenated("oriented_boxes_xywhr")),
        amodal_boxes_xyxy=concatenated("amodal_boxes_xyxy"),
        amodal_segmentations=segmentations("amodal_masks"),
        columns={"occluded": np.concatenate([instances.columns["occluded"] for instances in scenes])},
    )
