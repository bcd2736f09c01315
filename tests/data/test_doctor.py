"""Each kind of finding in a data set that has nothing else wrong; then the real data sets, which have none."""

import json
import os
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from otus.data.checks.doctor import DataReport, check_datasets, check_path
from otus.data.checks.images import check_images
from otus.data.dataset import Dataset, Images, PanopticFiles, SemanticFiles
from otus.data.formats import coco, voc
from otus.data.image_writing import write_image, write_label_image
from otus.errors import DataError
from otus.metrics.detection.mask_pairs import mask_areas
from otus.structures import Categories, Masks, Objects, Segmentations
from otus.structures.boxes import area

H, W = 60, 80
BOXES = [[10.0, 10, 30, 40], [5, 5, 15, 15], [20, 20, 70, 50], [0, 0, W, H]]


def photograph(seed: int, size_hw: tuple[int, int] = (H, W)) -> np.ndarray:
    """Smooth colours, different for each seed."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    return np.asarray(small.resize((size_hw[1], size_hw[0]), Image.Resampling.BICUBIC))


def rectangle(box: list[float]) -> np.ndarray:
    x1, y1, x2, y2 = box
    return np.array([[x1, y1], [x2, y1], [x2, y2], [x1, y2]])


def valid_dataset(folder: Path, *, first_seed: int = 0, split: str | None = "train") -> Dataset:
    """Four images with an object each, one of two categories, with polygons for boxes; nothing is wrong."""
    names = tuple(f"{split}_{i}.png" for i in range(4))
    for i, name in enumerate(names):
        write_image(folder / name, photograph(first_seed + i))
    source = folder / f"{split}.json"
    source.write_text("{}")
    return Dataset(
        source=source,
        format="coco",
        split=split,
        images=Images(folder, names, np.full((4, 2), (H, W)), (1, 2, 3, 4)),
        categories=Categories(("cat", "dog")),
        objects=Objects.build(
            image_index=[0, 1, 2, 3],
            labels=[0, 1, 0, 1],
            boxes_xyxy=BOXES,
            ids=[11, 12, 13, 14],
            segmentations=Segmentations.build([[rectangle(box)] for box in BOXES]),
        ),
    )


def change(dataset: Dataset, **columns: object) -> Dataset:
    """The data set with other columns, and with the areas that follow from these."""
    assert dataset.objects is not None
    objects = replace(dataset.objects, **columns)
    areas = area(objects.boxes_xyxy)
    if objects.segmentations is not None:
        areas = mask_areas(objects, sizes_hw=dataset.images.sizes_hw, side="labels")
    return replace(dataset, objects=replace(objects, areas=areas))


def only(examination: DataReport, kind: str, *, file: object, where: str | None, says: str) -> None:
    assert examination.counts == {kind: 1}, examination.findings
    (finding,) = examination.findings
    assert (finding.file, finding.where) == (str(file), where)
    assert says in finding.message


def test_nothing_is_wrong(tmp_path):
    seen = []
    examination = check_datasets([valid_dataset(tmp_path)], progress=lambda done, total: seen.append((done, total)))
    assert (examination.image_count, examination.object_count, examination.findings) == (4, 4, ())
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert check_datasets([]).findings == ()


def test_images(tmp_path):
    dataset = valid_dataset(tmp_path)
    paths = [dataset.images.path(i) for i in range(4)]
    paths[0].unlink()
    only(check_datasets([dataset]), "missing_image", file=paths[0], where=None, says="no such file")
    for content in (b"", b"hello", paths[1].read_bytes()[:-200]):
        paths[0].write_bytes(content)
        only(check_datasets([dataset]), "unreadable_image", file=paths[0], where=None, says=" ")
    write_image(paths[0], photograph(0, (W, H)))
    only(check_datasets([dataset]), "mis_sized_image", file=paths[0], where=None, says="got 60 x 80")


def test_further_pages_and_dark_images(tmp_path):
    dataset = valid_dataset(tmp_path)
    path = dataset.images.path(0)
    page = Image.fromarray(photograph(0, (H, W)))
    page.save(path, format="TIFF", save_all=True, append_images=[page])
    only(check_datasets([dataset]), "further_pages", file=path, where=None, says="2 pages")
    Image.fromarray(photograph(0, (H, W))[..., 0].astype(np.uint16) * 16).save(path, format="TIFF")
    only(check_datasets([dataset]), "dark_image", file=path, where=None, says="16 bits")


def test_boxes(tmp_path):
    dataset = change(valid_dataset(tmp_path), segmentations=None)
    for box, kind, says in (
        ([10, 10, W + 5, 40], "box_outside", "reaches 5.0 pixels outside the image of 80 x 60"),
        ([-3.5, 10, 20, 40], "box_outside", "reaches 3.5 pixels"),
        ([200, 200, 220, 220], "box_outside", "reaches 160.0 pixels"),
        ([10, 10, 10, 40], "box_without_area", "[10, 10, 10, 40] has no area"),
        ([10, 40, 20, 30], "box_without_area", "has no area"),
        ([np.nan, 10, 20, 30], "box_without_area", "nan"),
        ([0, 0, np.inf, 30], "box_outside", "inf"),
    ):
        broken = change(dataset, boxes_xyxy=np.array([*BOXES[:2], box, BOXES[3]]))
        only(check_datasets([broken]), kind, file=dataset.source, where="annotation 13 (train_2.png)", says=says)
    rounded = change(dataset, boxes_xyxy=np.array([*BOXES[:3], [0, 0, W + 0.5, H]]))
    assert check_datasets([rounded]).findings == ()


def test_masks(tmp_path):
    dataset = valid_dataset(tmp_path)
    moved = [[rectangle(box)] for box in BOXES]
    moved[0] = [rectangle([14, 10, 34, 40])]
    expected = {"file": dataset.source, "where": "annotation 11 (train_0.png)"}
    only(
        check_datasets([change(dataset, segmentations=Segmentations.build(moved))]),
        "mask_disagrees",
        says="the mask fills [14, 10, 34, 40], the box is [10, 10, 30, 40]: up to 4.0 pixels apart",
        **expected,
    )
    dense = np.zeros((4, H, W), bool)
    for mask, (x1, y1, x2, y2) in zip(dense, np.array(BOXES, dtype=int), strict=True):
        mask[y1:y2, x1:x2] = True

    def with_masks(dense: np.ndarray) -> Dataset:
        counts = [one["counts"] for one in Masks.from_dense(dense).to_rle().rle()]
        return change(dataset, segmentations=Segmentations.build(counts))

    assert check_datasets([with_masks(dense)]).findings == ()
    dense[0] = np.roll(dense[0], 4, axis=1)
    only(check_datasets([with_masks(dense)]), "mask_disagrees", says="[14, 10, 34, 40]", **expected)
    dense[0] = False
    only(check_datasets([with_masks(dense)]), "empty_mask", says="no pixel", **expected)


def test_a_mask_may_reach_over_the_border(tmp_path):
    dataset = valid_dataset(tmp_path)
    beyond = [[rectangle(box)] for box in BOXES]
    beyond[3] = [rectangle([-20, -20, W + 20, H + 20])]
    assert check_datasets([change(dataset, segmentations=Segmentations.build(beyond))]).findings == ()


def test_ids_and_duplicates(tmp_path):
    dataset = valid_dataset(tmp_path)
    only(
        check_datasets([change(dataset, ids=np.array([11, 12, 12, 14]))]),
        "duplicate_annotation_id", file=dataset.source, where="annotation 12", says="2 annotations have the id 12",
    )  # fmt: skip
    images = replace(dataset.images, ids=(1, 2, 3, 1))
    only(
        check_datasets([replace(dataset, images=images)]),
        "duplicate_image_id", file=dataset.source, where="image 1", says="2 images have the id 1",
    )  # fmt: skip
    twice = {
        "image_index": np.array([0, 1, 1, 3]),
        "labels": np.array([0, 1, 1, 1]),
        "boxes_xyxy": np.array([BOXES[0], BOXES[1], BOXES[1], BOXES[3]]),
    }
    outlines = [[rectangle(BOXES[0])], [rectangle(BOXES[1])], [rectangle(BOXES[1])], [rectangle(BOXES[3])]]
    only(
        check_datasets([change(dataset, **twice, segmentations=Segmentations.build(outlines))]),
        "duplicate_annotation", file=dataset.source, where="annotation 13 (train_1.png)", says="as annotation 12",
    )  # fmt: skip
    outlines[2] = [np.array([[5.0, 5], [15, 5], [15, 15]])]
    assert check_datasets([change(dataset, **twice, segmentations=Segmentations.build(outlines))]).findings == ()
    twice["labels"] = np.array([0, 1, 0, 1])
    assert check_datasets([change(dataset, **twice, segmentations=None)]).findings == ()


def test_unused_categories_of_all_splits_together(tmp_path):
    train, val = valid_dataset(tmp_path), valid_dataset(tmp_path, first_seed=10, split="val")
    names = Categories(("cat", "dog", "owl", "bat"))
    used = change(replace(val, categories=names), labels=np.array([0, 1, 2, 1]))
    examination = check_datasets([replace(train, categories=names), used])
    only(examination, "unused_category", file=train.source, where="category 'bat'", says="no object")
    assert examination.without(["unused_category"]).findings == ()


def test_what_the_readers_report(tmp_path):
    problem = DataError(
        "expected a number, got 'x'", file="a.txt", where="line 3", remedy="correct it", kind="bad_line"
    )
    only(
        check_datasets([valid_dataset(tmp_path)], problems=[problem]),
        "bad_line",
        file="a.txt",
        where="line 3",
        says="(correct it)",
    )


@pytest.mark.parametrize(
    ("suffix", "resize", "says"),
    [("png", False, "the same bytes"), ("bmp", False, "the same pixels"), ("png", True, "thumbnails agree to")],
)
@pytest.mark.parametrize("across", [False, True])
def test_the_same_photograph(tmp_path, suffix, resize, says, across):
    train, val = valid_dataset(tmp_path), valid_dataset(tmp_path, first_seed=10, split="val")
    first = train.images.path(1)
    second = (val if across else train).images.path(3).with_suffix(f".{suffix}")
    size_hw = (2 * H, 2 * W) if resize else (H, W)
    write_image(second, np.asarray(Image.open(first).resize(size_hw[::-1], Image.Resampling.BICUBIC)))
    dataset = val if across else train
    images = replace(
        dataset.images,
        files=(*dataset.images.files[:3], second.name),
        sizes_hw=np.array([(H, W), (H, W), (H, W), size_hw]),
    )
    dataset = replace(dataset, images=images)
    examination = check_datasets([train, dataset] if across else [dataset, val])
    if across:
        only(examination, "shared_between_splits", file=second, where="train and val", says=says)
    else:
        only(examination, "same_photograph", file=second, where=None, says=says)
    assert str(first) in examination.findings[0].message


def test_one_file_in_two_splits(tmp_path):
    train, val = valid_dataset(tmp_path), valid_dataset(tmp_path, first_seed=10, split="val")
    shared = replace(val.images, files=(train.images.files[0], *val.images.files[1:]))
    only(
        check_datasets([train, replace(val, images=shared)]),
        "shared_between_splits", file=train.images.path(0), where="train and val", says="each of these splits",
    )  # fmt: skip
    other_labels = replace(train, split="Segmentation/train")
    both = Dataset(
        source=tmp_path, format="coco", split="trainval", categories=train.categories,
        images=Images(tmp_path, train.images.files + val.images.files, np.full((8, 2), (H, W)), tuple(range(8))),
    )  # fmt: skip
    assert check_datasets([train, val, other_labels, both]).findings == ()


def test_even_images_are_not_one_photograph(tmp_path):
    dataset = valid_dataset(tmp_path)
    write_image(dataset.images.path(0), np.full((H, W, 3), 255, np.uint8))
    spot = np.full((H, W, 3), 255, np.uint8)
    spot[3, 3] = 250
    write_image(dataset.images.path(1), spot)
    assert check_datasets([dataset]).findings == ()


def test_maps(tmp_path):
    dataset = valid_dataset(tmp_path)
    files = tuple(tmp_path / f"map_{i}.png" for i in range(4))
    for i, file in enumerate(files):
        write_label_image(file, np.full((H, W), i % 2))
    lookup = np.full(256, 255)
    lookup[:3] = range(3)
    semantic = SemanticFiles((*files[:3], None), Categories(("cat", "dog", "sky")), lookup)
    plain = replace(dataset, objects=None)
    declared = replace(plain, categories=Categories(()), semantic=semantic)
    only(check_datasets([declared]), "unused_category", file=dataset.source, where="category 'sky'", says="no object")
    write_label_image(files[0], np.full((H, W), 2))
    assert check_datasets([declared]).findings == ()
    write_label_image(files[1], np.zeros((H, W - 1), int))
    values = np.zeros((H, W), int)
    values[0] = 1
    write_label_image(files[2], values)
    only(check_datasets([declared]), "mis_sized_image", file=files[1], where=None, says="got 79 x 60")
    panoptic = PanopticFiles((files[0], None, None, None), ((), (), (), ()), Categories(()))
    examination = check_datasets([replace(plain, categories=Categories(()), panoptic=panoptic)])
    only(examination, "wrong_map", file=files[0], where=None, says="no segment has (add them to segments_info")
    with pytest.raises(DataError, match=re.escape(f"{files[0]}: pixels have the ids")):
        check_images([replace(plain, panoptic=panoptic)])


def test_the_label_file_of_a_image_is_named(tmp_path):
    dataset = valid_dataset(tmp_path)
    (tmp_path / "Annotations").mkdir()
    (tmp_path / "Annotations" / "train_2.xml").touch()
    assert dataset.objects is not None
    boxes = np.array([*BOXES[:2], [5, 5, 5, 9], BOXES[3]])
    broken = replace(change(dataset, segmentations=None, boxes_xyxy=boxes), format="voc", source=tmp_path)
    only(
        check_datasets([broken]),
        "box_without_area", file=tmp_path / "Annotations" / "train_2.xml", where="object[0]", says="no area",
    )  # fmt: skip


def test_real_sets_are_well(shared_data):
    for reader, folder, images in ((coco, "coco", 404), (coco, "voc2012", 999), (voc, "voc2007", 4116)):
        problems: list[DataError] = []
        datasets = [reader.read(layout, report=problems.append) for layout in reader.find(shared_data / folder)]
        examination = check_datasets(datasets, problems=problems)
        assert (examination.image_count, examination.counts) == (images, {})


def test_images_shared_by_the_two_voc_years(shared_data):
    def read(year: str, split: str) -> Dataset:
        layouts = {layout.split: layout for layout in voc.find(shared_data / year)}
        return voc.read(layouts[split])

    examination = check_datasets([read("voc2007", "val"), replace(read("voc2012", "val"), split="train")])
    listed = {
        tuple(str(shared_data / name) for name in line.split())
        for line in (shared_data / "duplicates.tsv").read_text().splitlines()[1:]
    }
    found = {
        (finding.message.split(" as ")[1].split(" (")[0], finding.file)
        for finding in examination.findings
        if finding.kind == "shared_between_splits"
    }
    assert found <= listed
    assert len(found) > 10


def test_masks_may_leave_out_a_border_but_not_leave_the_box(tmp_path):
    dataset = valid_dataset(tmp_path)

    def moved(by: tuple[int, int, int, int]) -> DataReport:
        outlines = [[rectangle(box)] for box in BOXES]
        outlines[0] = [rectangle(np.add(BOXES[0], by))]
        return check_datasets([change(dataset, segmentations=Segmentations.build(outlines))])

    for inside in ((5, 5, -5, -5), (0, 0, -6, 0)):  # the border of Pascal VOC's masks, whatever format they are in now
        assert moved(inside).findings == ()
    for wrong in ((0, 0, 4, 0), (-4, 0, 0, 0), (7, 0, 0, 0), (0, 0, 0, -7)):
        assert moved(wrong).counts == {"mask_disagrees": 1}


def test_a_finding_of_yolo_names_the_label_file(tmp_path):
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    write_image(tmp_path / "images" / "a.png", photograph(0, (W, H)))
    (tmp_path / "labels" / "a.txt").write_text("0 0.95 0.5 0.4 0.2\n")
    (tmp_path / "data.yaml").write_text("train: images\nnames: [cat]\n")
    only(
        check_path(tmp_path),
        "box_outside", file=tmp_path / "labels" / "a.txt", where="object[0]", says="pixels out",
    )  # fmt: skip


@pytest.mark.parametrize("format", ["yolo", "labelme"])
def test_a_finding_in_the_working_folder_names_the_label_file(tmp_path, monkeypatch, format):
    folder = tmp_path / "images" / "pets"  # a folder above that is called images has no labels
    write_image(folder / "a.png", photograph(0, (W, H)))
    if format == "yolo":
        (folder / "a.txt").write_text("0 0.95 0.5 0.4 0.2\n")
    else:
        shape = {"label": "cat", "shape_type": "rectangle", "points": [[50, 10], [99, 20]]}
        document = {"imagePath": "a.png", "imageHeight": W, "imageWidth": H, "shapes": [shape]}
        (folder / "a.json").write_text(json.dumps(document))
    monkeypatch.chdir(folder)
    report = check_path(".", format=format)
    label_file = folder / ("a.txt" if format == "yolo" else "a.json")
    only(report, "box_outside", file=label_file, where="object[0]", says="pixels outside")


def test_two_formats_may_name_one_image_by_relative_and_absolute_paths(tmp_path):
    dataset = valid_dataset(tmp_path)
    relative = replace(dataset.images, root=Path(os.path.relpath(tmp_path)))
    report = check_datasets([dataset, replace(dataset, images=relative)])
    assert (report.image_count, report.findings) == (4, ())


def test_a_photograph_is_compared_with_each_split(tmp_path):
    train = valid_dataset(tmp_path)
    val = valid_dataset(tmp_path, first_seed=10, split="val")
    for i in range(2):
        write_image(val.images.path(i), np.minimum(photograph(0), 250) + np.uint8(i + 1))
    report = check_datasets([train, val])
    assert report.counts == {"shared_between_splits": 2, "same_photograph": 1}


def test_categories_spelled_in_two_ways(tmp_path):
    names = ("cat", "dog", "Cat", "dog ", "traffic light", "traffic_light", "owl")
    dataset = replace(valid_dataset(tmp_path), categories=Categories(names))
    report = check_datasets([dataset]).without(["unused_category"])
    assert [(finding.kind, finding.where) for finding in report.findings] == [
        ("category_spelling", f"category {name!r}") for name in ("cat", "dog ", "traffic_light")
    ]
    assert "is spelled 'Cat' elsewhere" in report.findings[0].message


@pytest.mark.parametrize("format", ["kitti", "dota", "sa1b"])
def test_fixed_categories_may_be_unused(tmp_path, format):
    dataset = replace(valid_dataset(tmp_path), format=format, categories=Categories(("cat", "dog", "owl")))
    assert check_datasets([dataset]).findings == ()


def test_images_that_no_file_lists(tmp_path):
    folder = tmp_path / "images"
    for name in ("a.png", "b.png", "c.png"):
        write_image(folder / name, photograph(len(name)))
    for split in ("train", "val"):
        records = {
            "images": [{"id": 1, "file_name": f"{'a' if split == 'train' else 'b'}.png", "width": W, "height": H}]
        }
        box = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 9, 9], "area": 81, "iscrowd": 0}
        document = records | {"annotations": [box], "categories": [{"id": 1, "name": "cat"}]}
        (tmp_path / f"instances_{split}.json").write_text(json.dumps(document))
    assert check_path(tmp_path).unlisted == (folder / "c.png",)
    assert check_path(tmp_path, split="train").unlisted == ()
    (folder / "c.png").unlink()
    assert check_path(tmp_path).unlisted == ()


def test_a_folder_of_images_alone_has_no_labels(tmp_path):
    write_image(tmp_path / "a.png", photograph(0))
    write_image(tmp_path / "b.png", photograph(1))
    with pytest.raises(DataError, match=r"holds images without labels \(label some.*otus predict"):
        check_path(tmp_path)
    (tmp_path / "labels.tsv").write_text("what this is, nobody knows")
    with pytest.raises(DataError, match="found no data set here"):
        check_path(tmp_path)


@pytest.mark.parametrize(
    ("ring", "advice"), [([-9, 10, 30, 40], "as its mask does: clip both"), ([0, 10, 30, 40], "clip it")]
)
def test_a_box_outside_is_clipped_with_its_mask(tmp_path, ring, advice):
    dataset = valid_dataset(tmp_path)
    masks = Segmentations.build([[rectangle(box)] for box in (ring, *BOXES[1:])])
    report = check_datasets(
        [change(dataset, boxes_xyxy=np.array([[-9.0, 10, 30, 40], *BOXES[1:]]), segmentations=masks)]
    ).findings
    assert [one.message.endswith(f"({advice})") for one in report if one.kind == "box_outside"] == [True]
