"""Scenes on disk say what the scenes in memory say."""

from pathlib import Path

import numpy as np
import pytest

from otus.data.open import open_dataset
from otus.data.scenes.files import write_scenes
from otus.data.scenes.generator import Scenes
from otus.errors import DataError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    write_scenes(folder / "train", 6, split="train", size_hw=(90, 120), seed=4)
    write_scenes(folder / "val", 2, split="val", size_hw=(90, 120), seed=5)
    return folder


def test_what_was_written_is_read_again(folder: Path) -> None:
    dataset = open_dataset(folder, split="train")
    assert len(dataset) == 6
    for read, made in zip(dataset, Scenes(6, size_hw=(90, 120), seed=4), strict=True):
        a, b = read.instances, made.instances
        assert read.key == made.key
        assert np.abs(read.image.astype(int) - made.image).mean() < 6  # JPEG
        np.testing.assert_array_equal(a.labels, b.labels)
        for name in ("boxes_xyxy", "amodal_boxes_xyxy", "keypoints"):
            np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
        np.testing.assert_allclose(a.oriented_boxes_xywhr[:, :4], b.oriented_boxes_xywhr[:, :4])
        for name in ("masks", "amodal_masks"):
            np.testing.assert_array_equal(getattr(a, name).dense(), getattr(b, name).dense())
        np.testing.assert_array_equal(a.columns["areas"], b.columns["areas"])
        np.testing.assert_allclose(a.columns["occluded"].astype(float), b.columns["occluded"])
    assert dataset.categories.keypoints_of("kite").flip_pairs == ((1, 2),)


def test_panoptic_maps_lie_beside_the_objects(folder: Path) -> None:
    dataset = open_dataset(folder / "val" / "panoptic")
    for read, made in zip(dataset, Scenes(2, size_hw=(90, 120), seed=5), strict=True):
        np.testing.assert_array_equal(read.panoptic.ids, made.panoptic.ids)
        assert read.panoptic.segments == made.panoptic.segments
        assert read.panoptic.categories.is_thing == made.panoptic.categories.is_thing


def test_a_folder_with_something_in_it_is_left_alone(folder: Path) -> None:
    before = sorted(folder.rglob("*"))
    with pytest.raises(DataError, match="not empty"):
        write_scenes(folder / "val", 1)
    assert sorted(folder.rglob("*")) == before
