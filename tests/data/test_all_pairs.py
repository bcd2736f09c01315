"""Every pair of writable formats on real labels: what comes back is what went in, or a loss names it.

A slice of each data set goes slice -> A -> B -> A round_trip files. Each step is judged by itself: a difference between what
was written and what is read must be among the losses of that step, of that object and of a kind that fits.
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from otus.data.checks.doctor import check_path
from otus.data.conversion import WRITERS, convert
from otus.data.dataset import Dataset, PanopticFiles
from otus.data.formats.interface import ConversionLoss
from otus.data.image_writing import write_image
from otus.data.open import choose_layouts, open_dataset, open_layout, open_splits
from otus.data.scenes.files import write_scenes
from otus.errors import DataError
from otus.structures import Instances, Segment

SLICES = {
    "coco": ("coco", "coco", None),
    "coco_person": ("coco_person", "coco", None),
    "voc2007 of VOC": ("voc2007", "voc", "val"),
    "voc2007 of COCO": ("voc2007/instances_val.json", "coco", None),
    "voc2012 of VOC": ("voc2012", "voc", "val"),
    "voc2012 of COCO": ("voc2012/instances_val.json", "coco", None),
    "dota8": ("dota8", "yolo", "train"),
    "coco_panoptic": ("coco_panoptic", "coco_panoptic", "val"),
    "penn_fudan": ("penn_fudan/annotations.json", "coco", None),
}
FORMATS = tuple(WRITERS)
# What is told of each object by itself, never of the whole data set in one line.
OF_THE_OBJECT = {"category", "crowd", "mask", "oriented box", "amodal box", "cuboid", "score", "keypoints", "far box"}
Place = tuple[str, int | None]  # the image and the object, "" and None for the whole data set


def slice_of(shared_data: Path, name: str, count: int, seed: int = 0) -> Dataset:
    path, format_, split = SLICES[name]
    dataset = open_dataset(shared_data / path, format=format_, split=split)
    chosen = np.random.default_rng(seed).permutation(len(dataset))[:count]
    return dataset.select(np.sort(chosen))


def round_trip(dataset: Dataset, target: str, folder: Path) -> Dataset:
    """Write and read a data set; check that every difference is among the losses."""
    losses = WRITERS[target].write(dataset, folder, images="link")
    (layout,) = choose_layouts(folder)
    assert layout.format == target
    back = open_layout(layout)
    reported: dict[Place, set[str]] = defaultdict(set)
    for loss in losses:
        reported[loss.image, loss.object_id].add(loss.kind)
    check(losses, dataset)
    for kinds, place, what in differences(dataset, back):
        named = reported[place] | reported[place[0], None] | (set() if what in OF_THE_OBJECT else reported["", None])
        assert kinds & named, f"{target}, {place}: {what}; only {sorted(named)} are reported"
    return back


def check(losses: list[ConversionLoss], dataset: Dataset) -> None:
    """Check that losses name existing images and objects."""
    files = set(dataset.images.files)
    ids = set() if dataset.objects is None else set(dataset.objects.ids.tolist())
    assert {loss.image for loss in losses} <= files | {""}
    assert {loss.object_id for loss in losses} <= ids | {None}


Difference = tuple[set[str], Place, str]


def differences(before: Dataset, after: Dataset) -> Iterator[Difference]:
    """Yield the differences, with the kinds of losses that would report them."""
    whole = ("", None)
    if before.split not in (None, after.split):
        yield {"split"}, whole, f"split {before.split} is {after.split}"
    if before.categories.names != after.categories.names:
        yield {"categories"}, whole, "names of categories"
    if before.categories.ids != after.categories.ids:
        yield {"categories", "category_ids"}, whole, "ids of categories"
    if before.categories.is_thing != after.categories.is_thing:
        yield {"categories", "stuff"}, whole, "which categories are stuff"
    if before.categories.supercategories != after.categories.supercategories:
        yield {"categories", "supercategories"}, whole, "supercategories"
    if before.categories.keypoints != after.categories.keypoints:
        yield {"keypoint_names", "skeleton", "flip_pairs", "sigmas"}, whole, "keypoints of categories"
    stems = {Path(file).stem: index for index, file in enumerate(after.images.files)}
    assert len(stems) == len(after) == len(before)
    for index, file in enumerate(before.images.files):
        twin = stems[Path(file).stem]
        if before.images.ids[index] != after.images.ids[twin] and isinstance(before.images.ids[index], int):
            yield {"image_ids"}, (file, None), "id of the image"
        assert before.images.size_hw(index) == after.images.size_hw(twin)
        assert after.images.path(twin).samefile(before.images.path(index))
        yield from of_maps(before, index, after, twin)
        yield from of_objects(before.instances(index), after.instances(twin), file)


def of_maps(before: Dataset, index: int, after: Dataset, twin: int) -> Iterator[Difference]:
    place = (before.images.files[index], None)
    old, new = before.semantic_map(index), after.semantic_map(twin)
    if old is not None and (new is None or not np.array_equal(old.labels, new.labels)):
        yield {"semantic"}, place, "semantic map"
    was, now = before.panoptic_map(index), after.panoptic_map(twin)
    if was is not None and (now is None or not np.array_equal(was.ids, now.ids) or was.segments != now.segments):
        yield {"panoptic"}, place, "panoptic map"


def of_objects(before: Instances, after: Instances, file: str) -> Iterator[Difference]:
    if not len(before):
        assert not len(after)
        return
    ids = before.columns["ids"].tolist()
    if len(after) != len(before):
        assert len(after) == 0
        yield from (({"object"}, (file, one), "the object") for one in ids)
        return
    far = np.abs(before.boxes_xyxy - after.boxes_xyxy) > 0.01
    names = [[instances.categories[label] for label in instances.labels] for instances in (before, after)]
    columns = [
        ({"category"}, "category", *map(np.array, names)),
        ({"box"}, "box", before.boxes_xyxy, after.boxes_xyxy),
        ({"box"}, "far box", np.zeros_like(far), far),
        ({"annotation_ids"}, "id", before.columns["ids"], after.columns["ids"]),
        ({"crowd"}, "crowd", before.columns["is_crowd"], after.columns["is_crowd"]),
        ({"areas", "overlap"}, "area", before.columns["areas"], after.columns["areas"]),
        ({"outline", "holes", "parts", "overlap"}, "mask", dense(before), dense(after)),
        ({"corners"}, "oriented box", before.oriented_boxes_xywhr, after.oriented_boxes_xywhr),
        ({"amodal_box"}, "amodal box", before.amodal_boxes_xyxy, after.amodal_boxes_xyxy),
        ({"cuboid"}, "cuboid", before.cuboids, after.cuboids),
        ({"score"}, "score", before.scores, after.scores),
        ({"keypoints"}, "keypoints", labelled(before.keypoints), labelled(after.keypoints)),
    ]
    named = before.columns.keys() - {"ids", "areas", "is_crowd"}
    columns += [({name}, name, before.columns[name], after.columns.get(name)) for name in named]
    for kinds, what, old, new in columns:
        for row in np.flatnonzero(differ(old, new)) if old is not None else ():
            yield kinds, (file, ids[row]), what


def dense(instances: Instances) -> np.ndarray | None:
    return None if instances.masks is None else instances.masks.dense()


def labelled(keypoints: np.ndarray | None) -> np.ndarray | None:
    """Set the coordinates of unlabelled keypoints to 0: they have no meaning."""
    return None if keypoints is None else keypoints * (keypoints[..., 2:] > 0)


def differ(old: np.ndarray, new: np.ndarray | None) -> np.ndarray:
    """Return which rows differ; empty values (NaN, 0, no pixel) cannot be lost."""
    if old.dtype.kind == "U":
        assert new is not None
        return old != new
    old = old.reshape(len(old), -1)
    if new is None or new.size != old.size:
        return (old != 0).any(axis=1) & ~np.isnan(old.astype(float)).all(axis=1)
    new = new.reshape(old.shape)
    if old.dtype == bool:
        return (old != new).any(axis=1)
    return ~np.isclose(old, new, rtol=1e-6, atol=1e-6, equal_nan=True).all(axis=1)


def all_pairs(dataset: Dataset, folder: Path) -> None:
    targets = [target for target in FORMATS if target != "coco_panoptic" or dataset.panoptic is not None]
    for first in targets:
        as_first = round_trip(dataset, first, folder / first)
        for second in targets:
            if second == "coco_panoptic" and as_first.panoptic is None:
                continue
            as_second = round_trip(as_first, second, folder / f"{first} {second}")
            if first != "coco_panoptic" or as_second.panoptic is not None:
                round_trip(as_second, first, folder / f"{first} {second} {first}")


@pytest.mark.parametrize("name", SLICES)
def test_what_is_not_named_comes_back(shared_data: Path, tmp_path: Path, name: str) -> None:
    all_pairs(slice_of(shared_data, name, 8), tmp_path)


def test_made_up_scenes_with_everything(tmp_path: Path) -> None:
    write_scenes(tmp_path / "scenes", 4, split="train", seed=3)
    dataset = open_dataset(tmp_path / "scenes", format="coco")
    assert dataset.objects is not None
    scores = np.random.default_rng(0).random(len(dataset.objects))
    all_pairs(replace(dataset, objects=replace(dataset.objects, scores=scores)), tmp_path)


@pytest.mark.parametrize("images", [[2], []], ids=["an image without objects", "no image"])
@pytest.mark.parametrize("first", FORMATS)
def test_one_split_is_empty(tmp_path: Path, first: str, images: list[int]) -> None:
    write_scenes(tmp_path / "scenes", 3, split="train", seed=3)
    scenes = open_dataset(tmp_path / "scenes", format="coco")
    assert scenes.objects is not None
    train, val = scenes.select([0, 1]), replace(scenes, objects=scenes.objects.take([])).select(images)
    splits = [train, replace(val, split="val")]
    if first == "coco_panoptic":
        write_image(tmp_path / "map.png", np.full((*train.images.size_hw(0), 3), (7, 0, 0), np.uint8))
        of_train = PanopticFiles((tmp_path / "map.png", None), ((Segment(7, 0),), ()), train.categories)
        of_val = PanopticFiles((None,) * len(val), ((),) * len(val), train.categories)
        splits = [replace(one, panoptic=maps) for one, maps in zip(splits, (of_train, of_val), strict=True)]
    WRITERS[first].write(splits, tmp_path / first)
    objects = 0 if first == "coco_panoptic" else len(train.objects)
    check_path(tmp_path / first)
    for second in FORMATS:
        target = tmp_path / f"{first} {second}"
        if (first == "coco_panoptic") != (second == "coco_panoptic"):
            with pytest.raises(DataError, match="panoptic maps"):
                convert(tmp_path / first, target, to=second)
            continue
        done = convert(tmp_path / first, target, to=second)
        assert not done.problems
        back = open_splits(target)
        assert sum(map(len, back)) == 2 + len(images)
        assert sum(len(one.objects or ()) for one in back) == objects
        check_path(target)


@pytest.mark.slow
@pytest.mark.parametrize("name", SLICES)
def test_what_is_not_named_comes_back_of_more_images(shared_data: Path, tmp_path: Path, name: str) -> None:
    all_pairs(slice_of(shared_data, name, 60, seed=1), tmp_path)
