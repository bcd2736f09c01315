"""Data sets joined: every object keeps its image, box, outline and the name of its category."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from otus.data.dataset import Dataset, Images
from otus.data.merging import merge, merge_categories, remap_categories, remap_panoptic_categories
from otus.data.open import open_dataset
from otus.data.scenes.files import write_scenes
from otus.errors import DataError
from otus.structures import Categories, KeypointNames, Objects, Segmentations


def dataset(root: str, names: tuple[str, ...], labels: list[int], **columns: object) -> Dataset:
    """One image more than objects; object i is on image i."""
    count = len(labels) + 1
    boxes = [[i, 0, i + 2, 3] for i in range(len(labels))]
    return Dataset(
        source=Path(root),
        format="made",
        images=Images(Path(root), tuple(f"{i}.jpg" for i in range(count)), [[10, 20]] * count, tuple(range(count))),
        categories=Categories(names),
        objects=Objects.build(image_index=range(len(labels)), labels=labels, boxes_xyxy=boxes, **columns),
    )


RING = np.array([[0.0, 0], [2, 0], [2, 3]])


def test_every_object_keeps_what_is_known_of_it() -> None:
    first = dataset("/a/x", ("cat", "dog"), [0, 1], segmentations=Segmentations.build([[RING], None]))
    second = dataset("/a/y/z", ("cow", "dog"), [1, 0, 1], columns={"difficult": np.array([True, False, True])})
    both = merge([first, second])
    assert both.categories.names == ("cat", "dog", "cow")
    assert both.images.root == Path("/a")
    assert both.images.files[:4] == ("x/0.jpg", "x/1.jpg", "x/2.jpg", "y/z/0.jpg")
    assert len(set(both.images.ids)) == len(both) == 7
    offset = 0
    for part in (first, second):
        for index in range(len(part)):
            ours, theirs = both.instances(offset + index), part.instances(index)
            assert both.images.path(offset + index) == part.images.path(index)
            assert [both.categories[i] for i in ours.labels] == [part.categories[i] for i in theirs.labels]
            np.testing.assert_array_equal(ours.boxes_xyxy, theirs.boxes_xyxy)
            assert (ours.masks is None) == (theirs.masks is None)
            if theirs.masks is not None:
                np.testing.assert_array_equal(ours.masks.dense(), theirs.masks.dense())
        offset += len(part)
    assert both.objects is not None
    assert both.objects.columns["difficult"].tolist() == [False, False, True, False, True]


def test_keypoints_of_one_set_are_not_labelled_in_the_other() -> None:
    points = np.ones((1, 2, 3))
    both = merge([dataset("/a", ("cat",), [0, 0]), dataset("/b", ("cat",), [0], keypoints=points)])
    assert both.objects is not None
    np.testing.assert_array_equal(both.objects.keypoints, np.concatenate([np.zeros((2, 2, 3)), points]))
    with pytest.raises(DataError, match="different shapes"):
        merge(
            [dataset("/a", ("cat",), [0], keypoints=np.ones((1, 3, 3))), dataset("/b", ("cat",), [0], keypoints=points)]
        )


def test_categories_keep_their_keypoints_or_are_refused() -> None:
    nose, ear = (Categories(("cat",), keypoints=(("cat", KeypointNames((name,))),)) for name in ("nose", "ear"))
    assert merge_categories([Categories(("dog",)), nose]).keypoints_of("cat") == nose.keypoints_of("cat")
    with pytest.raises(DataError, match="different keypoints, nose and ear"):
        merge_categories([nose, ear])


def test_labels_by_another_list_of_categories() -> None:
    one = dataset("/a", ("cat", "dog"), [1, 1])
    moved = remap_categories(one, Categories(("cow", "dog")))
    assert moved.objects is not None
    assert moved.objects.labels.tolist() == [1, 1]
    with pytest.raises(DataError, match="objects of dog, expected only cow"):
        remap_categories(one, Categories(("cow",)))


def test_one_set_is_itself_and_none_without_objects_is_joined() -> None:
    one = dataset("/a", ("cat",), [0])
    assert merge([one]) is one
    with pytest.raises(DataError, match="no objects"):
        merge([one, replace(one, objects=None)])


def test_panoptic_maps_are_merged_by_the_names_of_their_categories(tmp_path):
    folders = [tmp_path / name for name in ("a", "b")]
    for seed, folder in enumerate(folders):
        write_scenes(folder, 2, size_hw=(60, 80), seed=seed)
    first, second = (open_dataset(folder / "panoptic") for folder in folders)
    panoptic = second.panoptic
    names = panoptic.categories.names
    turned = Categories(names[::-1], is_thing=panoptic.categories.is_thing[::-1])
    second_turned = remap_panoptic_categories(second, turned)
    both = merge([first, second_turned])
    assert len(both) == 4
    assert both.panoptic.categories.names == first.panoptic.categories.names
    for index, (dataset, number) in enumerate([(first, 0), (first, 1), (second, 0), (second, 1)]):
        merged, source = both.panoptic_map(index), dataset.panoptic_map(number)
        np.testing.assert_array_equal(merged.ids, source.ids)
        assert [merged.categories[segment.label] for segment in merged.segments] == [
            source.categories[segment.label] for segment in source.segments
        ]
    assert merge([first, open_dataset(folders[1] / "annotations.json")]).panoptic is None
