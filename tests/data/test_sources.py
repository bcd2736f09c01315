"""What a person points at becomes images one after the other."""

import numpy as np
import pytest
from PIL import Image

from otus.data.sources import is_video, read_source, source_files
from otus.data.video import VideoWriter
from otus.errors import ImageError

IMAGE = np.full((6, 8, 3), 90, np.uint8)


@pytest.fixture
def folder(tmp_path):
    for name in ("b.png", "a.png", "deep/c.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(IMAGE).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    return tmp_path


def test_folders_in_depth_and_patterns_in_order(folder):
    assert source_files(folder) == [folder / "a.png", folder / "b.png", folder / "deep" / "c.png"]
    assert source_files(f"{folder}/*.png") == [folder / "a.png", folder / "b.png"]
    assert source_files(f"{folder}/**/*.png") == [folder / "a.png", folder / "b.png", folder / "deep" / "c.png"]


def test_a_name_with_the_letters_of_a_pattern_is_a_file(folder):
    path = folder / "a[1].png"
    Image.fromarray(IMAGE).save(path)
    assert source_files(str(path)) == [path]


def test_what_is_not_there(folder):
    (folder / "empty").mkdir()
    with pytest.raises(ImageError, match="holds no image or video"):
        source_files(folder / "empty")
    with pytest.raises(ImageError, match="no file matches this pattern"):
        source_files(f"{folder}/*.webp")
    with pytest.raises(ImageError, match="no such file"):
        list(read_source(folder / "x.png"))


def test_names_of_what_has_none(folder):
    images = list(read_source([IMAGE, folder / "a.png", Image.fromarray(IMAGE), [IMAGE]]))
    assert [one.name for one in images] == ["image 0", str(folder / "a.png"), "image 2", "image 3"]
    assert all(np.array_equal(one.image, IMAGE) for one in images)


def test_nothing_is_read_before_its_turn(folder):
    images = read_source([folder / "a.png", folder / "missing.png"])
    assert next(images).name.endswith("a.png")
    with pytest.raises(ImageError, match=r"missing\.png"):
        next(images)


def test_frames_of_a_video_have_index_and_time(tmp_path):
    path = tmp_path / "film.MP4"
    with VideoWriter(path, frame_rate=4) as writer:
        for _ in range(5):
            writer.add(IMAGE)
    assert is_video(path)
    assert [(one.frame, one.time_s) for one in read_source(path, stride=2)] == [(0, 0.0), (2, 0.5), (4, 1.0)]


def test_bad_files_are_reported_and_left_out(folder):
    (folder / "a.png").write_bytes(b"")
    (folder / "bad.mp4").write_bytes(b"no video")
    reported = []
    images = list(read_source(folder, report=reported.append))
    assert [one.name for one in images] == [str(folder / "b.png"), str(folder / "deep" / "c.png")]
    assert [error.file.name for error in reported] == ["a.png", "bad.mp4"]


def test_folders_and_patterns_without_a_image_are_reported_and_left_out(folder):
    (folder / "empty").mkdir()
    reported = []
    sources = [folder / "a.png", folder / "empty", f"{folder}/*.webp", folder / "b.png"]
    images = list(read_source(sources, report=reported.append))
    assert [one.name for one in images] == [str(folder / "a.png"), str(folder / "b.png")]
    assert [error.file.name for error in reported] == ["empty", "*.webp"]


def test_a_file_of_annotations_is_called_one(tmp_path):
    (tmp_path / "annotations.json").write_text("{}")
    with pytest.raises(
        ImageError, match=r"annotations\.json: is not an image but seems to be a label file.*otus predict FOLDER"
    ):
        source_files(tmp_path / "annotations.json")
