"""Opening by path, and converting: faults are left out and named, losses counted, nothing half-written."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from otus.data.conversion import WRITERS, convert, losses_path
from otus.data.dataset import Dataset
from otus.data.formats.interface import ImageMode
from otus.data.open import find_layouts, open_dataset
from otus.errors import DataError, UsageError


def small(folder: Path) -> Path:
    """Return three images, one of which is not an image file, with four objects."""
    (folder / "images").mkdir(parents=True)
    for name in "ab":
        Image.new("RGB", (8, 6)).save(folder / f"images/{name}.jpg")
    (folder / "images/c.jpg").write_bytes(b"no image")
    box = {"category_id": 1, "bbox": [1, 1, 4, 4], "area": 16, "iscrowd": 0}
    content = {
        "images": [{"id": i, "file_name": f"{n}.jpg", "width": 8, "height": 6} for i, n in enumerate("abc", 1)],
        "categories": [{"id": 1, "name": "cat"}],
        "annotations": [
            {"id": 1, "image_id": 1, **box, "segmentation": [[1, 1, 5, 1, 5, 5, 1, 5]]},
            {
                "id": 2,
                "image_id": 2,
                **box,
                "iscrowd": 1,
                "segmentation": {"size": [6, 8], "counts": [7, 4, 2, 4, 2, 4, 2, 4, 19]},
            },
            {"id": 3, "image_id": 3, **box},
            {"id": 4, "image_id": 9, **box},
        ],
    }
    (folder / "annotations.json").write_text(json.dumps(content))
    return folder


def test_several_data_sets_are_listed(shared_data: Path) -> None:
    layouts = Counter((one.format, one.split) for one in find_layouts(shared_data / "voc2012"))
    assert layouts[("coco", "val")] == 2  # boxes and instances
    assert layouts[("voc", "val")] == 1
    with pytest.raises(UsageError, match="--format coco --split val") as raised:
        open_dataset(shared_data / "voc2007")
    assert "--format voc --split train" in str(raised.value)
    with pytest.raises(UsageError, match="give the file itself"):
        open_dataset(shared_data / "voc2012", format="coco", split="val")
    with pytest.raises(UsageError, match="holds none of format 'yolo'"):
        open_dataset(shared_data / "voc2007", format="yolo")
    with pytest.raises(UsageError, match="unknown format 'vco'"):
        open_dataset(shared_data / "voc2007", format="vco")


def test_two_formats_of_one_set_agree(shared_data: Path) -> None:
    as_coco = open_dataset(shared_data / "voc2007", format="coco", split="val")
    as_voc = open_dataset(shared_data / "voc2007", format="voc", split="val")
    assert len(as_coco) == len(as_voc) == 427
    assert as_coco.objects is not None
    assert as_voc.objects is not None
    assert sorted(as_coco.images.files) == sorted(Path(name).name for name in as_voc.images.files)
    assert len(as_coco.objects) == len(as_voc.objects)


def test_a_place_without_labels_says_what_is_understood(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="known formats: COCO JSON"):
        open_dataset(tmp_path)


def test_faults_are_left_out_and_the_rest_is_done(tmp_path: Path) -> None:
    done = convert(small(tmp_path / "in"), tmp_path / "out", to="coco")
    assert sorted((one.kind, one.file and one.file.name) for one in done.problems) == [
        ("unknown_image", "annotations.json"),
        ("unreadable_image", "c.jpg"),
    ]
    again = open_dataset(tmp_path / "out")
    assert again.images.files == ("a.jpg", "b.jpg")
    assert again.objects is not None
    assert again.objects.ids.tolist() == [1, 2]
    assert again[0].image.shape == (6, 8, 3)
    assert not losses_path(tmp_path / "out").exists()


def test_losses_are_returned_and_listed(tmp_path: Path) -> None:
    done = convert(small(tmp_path / "in"), tmp_path / "out", to="yolo")
    listed = json.loads(losses_path(tmp_path / "out").read_text())
    assert len(listed) == len(done.losses)
    assert {"kind": "crowd", "image": "b.jpg", "object_id": 2, "message": "its crowd flag"} in listed


@pytest.mark.parametrize("target", ["coco", "voc", "yolo", "sa1b", "labelme"])
def test_boxes_survive_every_pair_of_formats(tmp_path: Path, target: str) -> None:
    source = small(tmp_path / "in")
    first = convert(source, tmp_path / "first", to=target).datasets[0]
    convert(tmp_path / "first", tmp_path / "second", to="coco")
    second = open_dataset(tmp_path / "second")
    assert first.objects is not None
    assert second.objects is not None
    assert [Path(name).stem for name in second.images.files] == ["a", "b"]
    np.testing.assert_allclose(second.objects.boxes_xyxy, first.objects.boxes_xyxy, atol=1e-4)


def test_nothing_is_left_when_the_target_cannot_be_written(tmp_path: Path) -> None:
    source = small(tmp_path / "in")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(DataError, match="no panoptic maps"):
        convert(source, tmp_path / "out", to="coco_panoptic")
    with pytest.raises(DataError, match="not empty"):
        convert(source, source, to="coco")
    with pytest.raises(UsageError, match="unknown target"):
        convert(source, tmp_path / "out", to="cocoa")
    assert sorted(tmp_path.rglob("*")) == before


def test_an_empty_folder_is_kept_and_filled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = small(tmp_path / "in")
    (tmp_path / "out").mkdir()
    before = (tmp_path / "out").stat()
    monkeypatch.chdir(tmp_path / "out")
    convert(source, ".", to="yolo")
    assert (tmp_path / "out").stat().st_ino == before.st_ino
    assert open_dataset(".", split="train").images.files == ("images/train/a.jpg", "images/train/b.jpg")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out", "out.conversion_losses.json"]


def test_a_link_is_followed_to_the_folder_it_names(tmp_path: Path) -> None:
    source = small(tmp_path / "in")
    (tmp_path / "disk").mkdir()
    for name, target in (("link", tmp_path / "disk"), ("dangling", tmp_path / "new")):
        (tmp_path / name).symlink_to(target)
        convert(source, tmp_path / name, to="coco")
        assert (tmp_path / name).is_symlink()
        assert open_dataset(target).images.files == ("a.jpg", "b.jpg")


def test_images_of_another_size_are_named_as_doctor_names_them(tmp_path: Path) -> None:
    source = small(tmp_path / "in")
    Image.new("RGB", (6, 8)).save(source / "images/a.jpg")
    problem = convert(source, tmp_path / "out", to="coco").problems[-2]
    assert (problem.kind, problem.file) == ("mis_sized_image", source / "images/a.jpg")
    assert "expected 8 x 6 pixels as its labels state, got 6 x 8 (height and width are exchanged" in str(problem)


@pytest.mark.parametrize("images", ["copy", "none"])
def test_an_image_whose_name_is_not_utf8_is_left_out(tmp_path: Path, images: ImageMode) -> None:
    for folder, suffix in (("images", "png"), ("labels", "txt")):
        (tmp_path / "in" / folder).mkdir(parents=True)
        for name in ("a", "caf\udce9"):
            path = tmp_path / "in" / folder / f"{name}.{suffix}"
            Image.new("RGB", (8, 6)).save(path) if suffix == "png" else path.write_text("0 0.5 0.5 0.5 0.5\n")
    for target in WRITERS.keys() - {"coco_panoptic"}:
        done = convert(tmp_path / "in", tmp_path / target, to=target, images=images)
        assert [problem.kind for problem in done.problems] == ["not_utf8"]
        assert str(done.problems[0]).endswith("caf\udce9.png: its name is not UTF-8 (rename it)")
        assert [dataset.images.files for dataset in done.datasets] == [("images/a.png",)]


def test_names_that_lead_outside_do_not_lead_outside_the_target(tmp_path: Path) -> None:
    source = small(tmp_path / "in")
    Image.new("RGB", (8, 6)).save(tmp_path / "far.jpg")
    content = json.loads((source / "annotations.json").read_text())
    content["images"][0]["file_name"] = "../../far.jpg"
    content["annotations"] = content["annotations"][:2]
    content["images"] = content["images"][:2]
    (source / "annotations.json").write_text(json.dumps(content))
    refused = convert(source, tmp_path / "one", to="coco")
    assert [one.kind for one in refused.problems] == ["path_outside"]
    done = convert(source, tmp_path / "two", to="coco", allow_outside=True)
    assert list(done.problems) == []
    assert sorted(path.name for path in (tmp_path / "two/images").iterdir()) == ["b.jpg", "far.jpg"]


def two_splits(shared_data: Path, folder: Path, *, shared: bool = False) -> Path:
    """Write a small VOC tree: three images of train, two of val, and trainval; optionally one image in both."""
    source = shared_data / "voc2007"
    lists = {split: (source / f"ImageSets/Main/{split}.txt").read_text().split()[:3] for split in ("train", "val")}
    lists["val"] = [*lists["val"][:2], *(lists["train"][:1] if shared else [])]
    lists["trainval"] = list(dict.fromkeys(lists["train"] + lists["val"]))
    for part in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (folder / part).mkdir(parents=True)
    for split, stems in lists.items():
        (folder / f"ImageSets/Main/{split}.txt").write_text("\n".join(stems))
    for stem in lists["trainval"]:
        (folder / f"JPEGImages/{stem}.jpg").symlink_to((source / f"JPEGImages/{stem}.jpg").resolve())
        (folder / f"Annotations/{stem}.xml").write_bytes((source / f"Annotations/{stem}.xml").read_bytes())
    return folder


def content(dataset: Dataset) -> dict[str, list[tuple[str, list[float]]]]:
    """Return the category names and boxes of each image, by its stem."""
    content_by_name = {}
    for index, file in enumerate(dataset.images.files):
        instances = dataset.instances(index)
        names = [dataset.categories[label] for label in instances.labels]
        content_by_name[Path(file).stem] = list(zip(names, instances.boxes_xyxy.round(6).tolist(), strict=True))
    return content_by_name


@pytest.mark.parametrize("target", ["coco", "voc", "yolo", "labelme"])
def test_all_splits_are_converted_and_come_back(shared_data: Path, tmp_path: Path, target: str) -> None:
    source = two_splits(shared_data, tmp_path / "in")
    done = convert(source, tmp_path / "out", to=target)
    assert not done.problems
    assert [(one.split, len(one)) for one in done.datasets] == [("train", 3), ("val", 2)]
    (message,) = (loss.message for loss in done.losses if loss.kind == "split")
    assert "'trainval': it is the union of other splits" in message
    assert sum(loss.kind == "unread_field" and "object/pose" in loss.message for loss in done.losses) <= 2
    back = convert(tmp_path / "out", tmp_path / "back", to="voc")
    assert not back.problems
    for split in ("train", "val"):
        first, last = open_dataset(source, split=split), open_dataset(tmp_path / "back", split=split)
        assert content(first) == content(last)
        assert first.categories.names == last.categories.names
        assert last[0].image.shape[:2] == last.images.size_hw(0)


def test_one_split_is_chosen(shared_data: Path, tmp_path: Path) -> None:
    done = convert(two_splits(shared_data, tmp_path / "in"), tmp_path / "out", to="yolo", split="trainval")
    assert [(one.split, len(one)) for one in done.datasets] == [("trainval", 5)]
    assert "'trainval', which becomes 'train'" in next(one.message for one in done.losses if one.kind == "split")


def test_splits_that_cannot_be_told_apart_are_refused(shared_data: Path, tmp_path: Path) -> None:
    source = two_splits(shared_data, tmp_path / "in", shared=True)
    with pytest.raises(DataError, match="is in two splits"):
        convert(source, tmp_path / "out", to="sa1b")
    assert not (tmp_path / "out").exists()
    done = convert(source, tmp_path / "voc", to="voc")
    assert [len(one) for one in done.datasets] == [3, 3]
    assert len(list((tmp_path / "voc/JPEGImages").iterdir())) == 5
    (source / "ImageSets/Main/val2.txt").write_bytes((source / "ImageSets/Main/val.txt").read_bytes())
    with pytest.raises(DataError, match=r"YOLO has only the splits train, val, test, .*'val2' as val"):
        convert(source, tmp_path / "out", to="yolo")


def test_equal_names_in_two_splits_and_categories_that_differ(tmp_path: Path) -> None:
    for split, name in (("train", "cat"), ("val", "dog")):
        folder = tmp_path / "in" / split
        folder.mkdir(parents=True)
        Image.new("RGB", (8, 6), color=(len(split), 0, 0)).save(folder / "a.png")
        document = {
            "images": [{"id": 1, "file_name": "a.png", "width": 8, "height": 6}],
            "categories": [{"id": 7, "name": name, "supercategory": "animal"}],
            "annotations": [{"id": 1, "image_id": 1, "category_id": 7, "bbox": [1, 1, 4, 4]}],
        }
        (folder / "_annotations.coco.json").write_text(json.dumps(document))
    for target in ("coco", "voc", "yolo", "labelme", "sa1b"):
        done = convert(tmp_path / "in", tmp_path / target, to=target)
        assert "category_ids" in {loss.kind for loss in done.losses}
        assert {one.categories.names for one in done.datasets} == {("cat", "dog")}
        if target == "sa1b":
            again = open_dataset(tmp_path / target)
            assert sorted(sample.image[0, 0, 0] for sample in again) == [3, 5]
            continue
        for split, name, red in (("train", "cat", 5), ("val", "dog", 3)):
            back = open_dataset(tmp_path / target, split=split)
            assert back.objects is not None
            assert back.categories.names == ("cat", "dog")
            assert [back.categories[label] for label in back.objects.labels] == [name]
            assert back[0].image[0, 0, 0] == red


def test_maps_alone_are_refused_by_formats_of_objects(shared_data: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has only semantic maps, which coco cannot hold"):
        convert(shared_data / "camvid", tmp_path / "out", to="coco", split="val")
    assert not (tmp_path / "out").exists()


def test_masks_of_one_object_become_class_masks_of_voc(shared_data: Path, tmp_path: Path) -> None:
    done = convert(shared_data / "davis", tmp_path / "out", to="voc", images="link")
    assert not done.losses
    back, before = open_dataset(tmp_path / "out"), done.datasets[0]
    assert back.semantic is not None
    assert back.semantic.categories.names == ("background", "object")
    for index, name in enumerate(before.images.files):
        twin = back.images.ids.index(name.replace("/", "_").removesuffix(".jpg"))
        old, new = before.semantic_map(index), back.semantic_map(twin)
        assert old is not None
        assert new is not None
        np.testing.assert_array_equal(old.labels, new.labels)
