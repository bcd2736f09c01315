import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from otus.data.checks.doctor import check_path
from otus.data.conversion import convert
from otus.data.dataset import Dataset, Images, SemanticFiles
from otus.data.formats import voc
from otus.data.formats.interface import Layout
from otus.data.open import open_dataset
from otus.errors import DataError, UsageError
from otus.structures import Categories, Masks, Objects, Segmentations

SIDES = "<xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax>"
OBJECT = """<object><name>{name}</name><difficult>{difficult}</difficult>
<part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox></part>
<bndbox><xmin>{box[0]}</xmin><ymin>{box[1]}</ymin><xmax>{box[2]}</xmax><ymax>{box[3]}</ymax></bndbox></object>"""


def xml(*objects: str, size: str = "<size><width>12</width><height>8</height></size>", name: str = "a.png") -> str:
    return f"<annotation><filename>{name}</filename>{size}{''.join(objects)}</annotation>"


def one(name: str = "dog", box: tuple[object, ...] = (2, 3, 5, 7), difficult: object = 0) -> str:
    return OBJECT.format(name=name, box=box, difficult=difficult)


def make_voc(root: Path, texts: dict[str, str], splits: dict[str, str] | None = None) -> Path:
    for part in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (root / part).mkdir(parents=True)
    for stem, text in texts.items():
        (root / f"Annotations/{stem}.xml").write_text(text)
        Image.new("RGB", (12, 8)).save(root / f"JPEGImages/{stem}.png")
    for split, text in (splits or {}).items():
        (root / f"ImageSets/Main/{split}.txt").write_text(text)
    return root


def problems_of(layout: Layout) -> tuple[Dataset, list[DataError]]:
    problems: list[DataError] = []
    return voc.read(layout, report=problems.append), problems


def test_boxes_flags_and_splits_by_hand(tmp_path: Path) -> None:
    texts = {"a": xml(one("dog", (2, 3, 5.5, 7), 1), one("cat")), "b": xml()}
    root = make_voc(tmp_path, texts, {"train": "a\n", "val": "b\n", "dog_train": "a  1\n"})
    layouts = voc.find(root)
    assert [layout.split for layout in layouts] == ["train", "val"]
    dataset = voc.read(layouts[0])
    assert dataset.images.files == ("JPEGImages/a.png",)
    assert dataset.images.size_hw(0) == (8, 12)
    assert dataset.categories.names == voc.NAMES
    assert dataset.objects is not None
    # 1-based inclusive: pixel 2 is [1, 2)
    np.testing.assert_array_equal(dataset.objects.boxes_xyxy, [[1, 2, 5.5, 7], [1, 2, 5, 7]])
    assert [dataset.categories[i] for i in dataset.objects.labels] == ["dog", "cat"]
    assert dataset.objects.columns["difficult"].tolist() == [True, False]
    assert set(dataset.objects.columns) == {"difficult"}
    assert len(voc.read(layouts[1]).instances(0)) == 0


def test_images_beside_their_xml_and_size_from_the_image(tmp_path: Path) -> None:
    (tmp_path / "a.xml").write_text(xml(one("owl"), size="<size><width>0</width><height>0</height></size>"))
    Image.new("RGB", (30, 20)).save(tmp_path / "a.png")
    (layout,) = voc.find(tmp_path)
    dataset = voc.read(layout)
    assert dataset.images.files == ("a.png",)
    assert dataset.images.size_hw(0) == (20, 30)
    assert dataset.categories.names == ("owl",)


def test_other_names_mean_the_same_in_each_split(tmp_path: Path) -> None:
    root = make_voc(tmp_path, {"a": xml(one("owl")), "b": xml(one("hawk"))}, {"train": "a", "val": "b"})
    train, val = (voc.read(layout) for layout in voc.find(root))
    assert train.categories == val.categories == Categories(("hawk", "owl"))


def write_index(file: Path, values: np.ndarray) -> None:
    file.parent.mkdir(exist_ok=True)
    Image.fromarray(values.astype(np.uint8)).save(file)


def test_masks_of_objects_by_number_or_by_box(tmp_path: Path) -> None:
    # Boxes 0-based: left half, right half; the image of objects numbers the right half 1 and the left half 2.
    root = make_voc(tmp_path, {"a": xml(one(box=(1, 1, 6, 8)), one(box=(7, 1, 12, 8)))})
    values = np.zeros((8, 12))
    values[:, :6], values[:, 6:], values[0, :] = 2, 1, 255
    write_index(root / "SegmentationObject/a.png", values)
    dataset = voc.read(Layout("voc", root))
    masks = dataset.instances(0).masks
    assert masks is not None
    np.testing.assert_array_equal(masks.dense(), [values == 2, values == 1])
    assert dataset.instances(0).columns["areas"].tolist() == [42.0, 42.0]


def test_a_mask_partly_hidden_stays_with_its_number(tmp_path: Path) -> None:
    # The first fills the image but for the second; of the second one corner is left. Both boxes are nearly the same.
    root = make_voc(tmp_path, {"a": xml(one(box=(1, 1, 12, 8)), one(box=(1, 1, 12, 7)))})
    values = np.ones((8, 12))
    values[:2, :2] = 2
    write_index(root / "SegmentationObject/a.png", values)
    masks = voc.read(Layout("voc", root)).instances(0).masks
    assert masks is not None
    np.testing.assert_array_equal(masks.dense(), [values == 1, values == 2])


def test_a_mask_that_fits_no_box_is_reported(tmp_path: Path) -> None:
    root = make_voc(tmp_path, {"a": xml(one(box=(1, 1, 4, 4)))})
    values = np.zeros((8, 12))
    values[5:, 8:] = 1
    write_index(root / "SegmentationObject/a.png", values)
    dataset, (problem,) = problems_of(Layout("voc", root))
    assert problem.kind == "mask_without_box"
    assert "value 1" in str(problem)
    assert dataset.instances(0).masks is None


def test_class_masks_have_background_and_void(tmp_path: Path) -> None:
    root = make_voc(tmp_path, {"a": xml(one("cat"))})
    values = np.zeros((8, 12))
    values[2, 3], values[4, 4] = 8, 255  # cat is the eighth
    write_index(root / "SegmentationClass/a.png", values)
    semantic = voc.read(Layout("voc", root)).semantic_map(0)
    assert semantic is not None
    assert semantic.categories[8] == "cat"
    np.testing.assert_array_equal(semantic.labels, values)


def test_an_object_called_background_beside_class_masks_is_named(tmp_path: Path) -> None:
    root = make_voc(tmp_path, {"a": xml(one("dog")), "b": xml(one("background"))})
    assert "background" in voc.read(Layout("voc", root)).categories
    write_index(root / "SegmentationClass/a.png", np.zeros((8, 12)))
    with pytest.raises(DataError, match=r"b\.xml: an object has the category 'background'.*\(rename the category"):
        voc.read(Layout("voc", root))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("<annotation><object>", ["a.xml", "expected XML", "line 1"]),
        ("", ["a.xml", "expected XML"]),
        ('<!DOCTYPE a [<!ENTITY b "cc"><!ENTITY c "&b;&b;">]><annotation>&c;</annotation>', ["document type"]),
        ("<html/>", ["expected <annotation>"]),
        (xml(one(), one(box=(2, 3, "x", 7))), ["object[1].bndbox.xmax", "expected a number", "'x'"]),
        (xml(one(), one(box=("nan", 3, 4, 7))), ["object[1].bndbox.xmin"]),
        (xml(one(), one(box=(9, 3, 4, 7))), ["object[1].bndbox", "xmin <= xmax"]),
        (xml(one(), "<object><name>dog</name></object>"), ["object[1]", "no <bndbox>"]),
        (xml(one(), "<object><bndbox/></object>"), ["object[1]", "no <name>"]),
        (
            xml(one(), one().replace("</object>", f"<bndbox>{SIDES}</bndbox></object>")),
            ["object[1]", "one <bndbox>, got 2"],
        ),
        (xml(one(), one().replace("<difficult>", "<name>cat</name><difficult>")), ["object[1]", "one <name>, got 2"]),
        (xml(one(), one().replace("<ymax>7", f"{SIDES}<ymax>7")), ["object[1].bndbox", "one <xmin>, got 2"]),
        (xml(one(), one(difficult="maybe")), ["object[1].difficult", "maybe"]),
        (xml(size="<size><width>ten</width></size>"), ["size.height"]),
    ],
)
def test_bad_xml_is_named_and_the_rest_is_read(tmp_path: Path, text: str, words: list[str]) -> None:
    root = make_voc(tmp_path, {"a": text, "b": xml(one("cat"))})
    dataset, problems = problems_of(Layout("voc", root))
    assert len(problems) == 1
    assert all(word in str(problems[0]) for word in [*words, str(root)])
    assert "b.png" in dataset.images.files[-1]
    assert dataset.objects is not None
    assert dataset.categories[int(dataset.objects.labels[-1])] == "cat"
    with pytest.raises(DataError):
        voc.read(Layout("voc", root))


def test_listed_without_annotation(tmp_path: Path) -> None:
    root = make_voc(tmp_path, {"a": xml()}, {"train": "a\nb\n"})
    dataset, (problem,) = problems_of(Layout("voc", root, "train"))
    assert "b.xml" in str(problem)
    assert dataset.images.ids == ("a",)


def random_dataset(root: Path, rng: np.random.Generator, count: int) -> Dataset:
    files = ("one/x.png", "two/x.png", "y.png")
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (20, 30, 3), dtype=np.uint8)).save(root / file)
    corner = rng.uniform(0, 15, (count, 2))
    return Dataset(
        source=root,
        format="made",
        split="train",
        images=Images(root, files, np.tile([20, 30], (3, 1)), ids=files),
        categories=Categories(("zebra", "a cat", "dog & co")),
        objects=Objects.build(
            image_index=np.sort(rng.integers(0, 3, count)),
            labels=rng.integers(0, 3, count),
            boxes_xyxy=np.concatenate([corner, corner + rng.uniform(0, 9, (count, 2))], axis=1),
            columns={name: rng.random(count) < 0.5 for name in ("difficult", "truncated", "occluded")},
        ),
    )


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 10_000), count=st.integers(0, 12))
def test_what_is_written_comes_back(tmp_path_factory: pytest.TempPathFactory, seed: int, count: int) -> None:
    root = tmp_path_factory.mktemp("voc")
    dataset = random_dataset(root / "source", np.random.default_rng(seed), count)
    assert voc.write(dataset, root / "target") == []
    (layout,) = voc.find(root / "target")
    back = voc.read(layout)
    assert back.split == "train"
    assert back.categories == dataset.categories
    assert back.objects is not None
    assert dataset.objects is not None
    np.testing.assert_allclose(back.objects.boxes_xyxy, dataset.objects.boxes_xyxy, atol=1e-9, rtol=0)
    for name in ("image_index", "labels"):
        np.testing.assert_array_equal(getattr(back.objects, name), getattr(dataset.objects, name))
    if count:
        for name, column in dataset.objects.columns.items():
            np.testing.assert_array_equal(back.objects.columns[name], column)
    for index in range(len(dataset)):
        np.testing.assert_array_equal(back.image(index), dataset.image(index))


def test_masks_written_come_back_and_hidden_pixels_are_reported(tmp_path: Path) -> None:
    dataset = random_dataset(tmp_path / "source", np.random.default_rng(0), 0)
    ring, low = np.zeros((20, 30), bool), np.zeros((20, 30), bool)
    ring[2:12, 2:12], ring[5:8, 5:8] = True, False
    low[10:18, 4:20] = True  # larger, so two rows of the ring hide it
    masks = Masks.from_dense(np.stack([ring, low])).to_rle()
    objects = Objects.build(
        image_index=[0, 0],
        labels=[0, 1],
        boxes_xyxy=masks.boxes_xyxy(),
        segmentations=Segmentations.build([one["counts"] for one in masks.rle()]),  # type: ignore[misc]
    )
    values = np.where(ring, 1, np.where(low, 2, 0))
    write_index(tmp_path / "class.png", values)
    dataset = replace(
        dataset,
        objects=objects,
        semantic=SemanticFiles(
            (tmp_path / "class.png", None, None),
            Categories(("background", *dataset.categories)),
            np.where(np.arange(256) < 4, np.arange(256), 255),
        ),
    )
    losses = voc.write(dataset, tmp_path / "target", images="link")
    assert [(loss.kind, loss.object_id) for loss in losses] == [("areas", None), ("overlap", 2)]
    assert "16 of 128" in losses[1].message
    back = voc.read(voc.find(tmp_path / "target")[0])
    read_masks = back.instances(0).masks
    assert read_masks is not None
    np.testing.assert_array_equal(read_masks.dense(), [ring, low & ~ring])
    semantic = back.semantic_map(0)
    assert semantic is not None
    np.testing.assert_array_equal(semantic.labels, values)
    assert back.semantic_map(1) is None


def test_a_mask_far_from_its_box_is_reported_and_the_others_come_back(tmp_path: Path) -> None:
    dataset = random_dataset(tmp_path / "source", np.random.default_rng(0), 0)
    dense = np.zeros((3, 20, 30), bool)
    dense[0, 2:12, 2:12] = dense[1, 3:6, 20:25] = dense[2, 10:18, 20:30] = True
    masks = Masks.from_dense(dense).to_rle()
    boxes = masks.boxes_xyxy()
    boxes[1] = [0, 14, 6, 19]
    objects = Objects.build(
        image_index=[0, 0, 0],
        labels=[0, 1, 0],
        boxes_xyxy=boxes,
        segmentations=Segmentations.build([one["counts"] for one in masks.rle()]),  # type: ignore[misc]
    )
    losses = voc.write(replace(dataset, objects=objects), tmp_path / "target")
    assert [(loss.kind, loss.object_id) for loss in losses if loss.kind in ("outline", "overlap")] == [("outline", 2)]
    read_masks = voc.read(voc.find(tmp_path / "target")[0]).instances(0).masks
    assert read_masks is not None
    np.testing.assert_array_equal(read_masks.dense(), dense * np.array([True, False, True])[:, None, None])


@pytest.mark.parametrize(
    ("year", "split", "count"),
    [("2007", "train", 3689), ("2007", "val", 427), ("2012", "train", 769), ("2012", "val", 230)],
)
def test_real_xml_says_what_the_coco_json_beside_it_says(shared_data: Path, year: str, split: str, count: int) -> None:
    root = shared_data / f"voc{year}"
    assert [layout.split for layout in voc.find(root)] == ["train", "val"]
    dataset = voc.read(Layout("voc", root, split))
    assert len(dataset) == count
    coco = json.loads((root / f"{'instances' if year == '2007' else 'boxes'}_{split}.json").read_text())
    assert dataset.objects is not None
    assert len(dataset.objects) == len(coco["annotations"])
    by_image: dict[int, list[dict[str, object]]] = {image["id"]: [] for image in coco["images"]}
    for annotation in coco["annotations"]:
        by_image[annotation["image_id"]].append(annotation)
    place = {file: index for index, file in enumerate(dataset.images.files)}
    for image in coco["images"]:
        index = place[f"JPEGImages/{image['file_name']}"]
        expected, instances = by_image[image["id"]], dataset.instances(index)
        assert dataset.images.size_hw(index) == (image["height"], image["width"])
        assert (instances.labels + 1).tolist() == [one["category_id"] for one in expected]
        assert instances.columns["difficult"].tolist() == [bool(one["difficult"]) for one in expected]
        boxes = np.array([one["bbox"] for one in expected], dtype=np.float64).reshape(-1, 4)
        # The JSON rounds left and width to 0.01 each.
        np.testing.assert_allclose(instances.boxes_xyxy[:, :2], boxes[:, :2], atol=0.0101)
        np.testing.assert_allclose(instances.boxes_xyxy[:, 2:], boxes[:, :2] + boxes[:, 2:], atol=0.0201)


def test_real_masks_of_objects(shared_data: Path) -> None:
    dataset = voc.read(Layout("voc", shared_data / "voc2012", "val"))
    coco = json.loads((shared_data / "voc2012" / "instances_val.json").read_text())
    assert dataset.objects is not None
    assert dataset.objects.segmentations is not None
    masked = np.flatnonzero(dataset.objects.segmentations.kinds)
    assert len(masked) == len(coco["annotations"])
    assert len(np.unique(dataset.objects.image_index[masked])) == len(coco["images"])
    expected = sorted((one["category_id"] - 1, one["area"]) for one in coco["annotations"])
    read_areas = sorted(
        zip(dataset.objects.labels[masked].tolist(), dataset.objects.areas[masked].tolist(), strict=True)
    )
    assert read_areas == expected


def test_names_that_xml_cannot_hold(tmp_path: Path) -> None:
    dataset = random_dataset(tmp_path / "source", np.random.default_rng(0), 3)
    assert dataset.objects is not None
    names = tuple(f"bell {chr(7)} {i}" for i in range(3))
    with pytest.raises(DataError, match="cannot hold the category"):
        voc.write(replace(dataset, categories=Categories(names)), tmp_path / "target")
    assert not (tmp_path / "target").exists()


def test_lists_of_both_kinds(tmp_path: Path) -> None:
    root = make_voc(tmp_path, {"a": xml(), "b": xml()}, {"train": "a\nb\n"})
    (root / "ImageSets/Segmentation").mkdir()
    for split in ("train", "val"):
        (root / f"ImageSets/Segmentation/{split}.txt").write_text("b\n")
    layouts = voc.find(root)
    assert [layout.split for layout in layouts] == ["train", "Segmentation/train", "val"]
    assert [len(voc.read(layout)) for layout in layouts] == [2, 1, 1]
    with pytest.raises(DataError, match="no image list for the split 'test'"):
        voc.read(Layout("voc", root, "test"))


def test_lists_that_climb_are_refused(tmp_path: Path) -> None:
    root = make_voc(tmp_path / "set", {"a": xml()}, {"train": "a\n../../b\n"})
    (tmp_path / "b.xml").write_text(xml())
    dataset, (problem,) = problems_of(Layout("voc", root, "train"))
    assert problem.kind == "path_outside"
    assert len(dataset) == 1


def test_names_with_spaces_are_read_whole_and_flags_dropped(tmp_path: Path) -> None:
    texts = {stem: xml(name=f"{stem}.png") for stem in ("my", "my photo", "my photo 1", "b")}
    root = make_voc(tmp_path, texts, {"train": "my photo\nmy photo 1 \nb -1\nmy  1\n"})
    assert voc.read(Layout("voc", root, "train")).images.ids == ("my photo", "my photo 1", "b", "my")


def test_a_split_whose_name_ends_in_that_of_another_is_one(tmp_path: Path) -> None:
    splits = {"train": "a\n", "extra_train": "b c\n", "cat_train": "a -1\nb c  1\n", "dog_train": ""}
    root = make_voc(tmp_path, {"a": xml(), "b c": xml()}, splits)
    assert [layout.split for layout in voc.find(root)] == ["extra_train", "train"]
    assert voc.read(Layout("voc", root, "extra_train")).images.ids == ("b c",)


def test_categories_that_begin_with_a_number_sign(tmp_path: Path) -> None:
    dataset = random_dataset(tmp_path / "source", np.random.default_rng(0), 12)
    names = ("#1", "# two: parts", "dog")
    voc.write(replace(dataset, categories=Categories(names)), tmp_path / "target")
    label_map = tmp_path / "target/labelmap.txt"
    assert voc.read(voc.find(tmp_path / "target")[0]).categories.names == names
    label_map.write_text(label_map.read_text().replace("background", "# a comment\nbackground"))
    assert voc.read(voc.find(tmp_path / "target")[0]).categories.names == names


@pytest.mark.parametrize(
    ("declared", "encoding", "name"),
    [
        ("GB2312", "gbk", "\N{CJK UNIFIED IDEOGRAPH-732B}"),  # whose bytes would be a letter in UTF-8 too
        ("gbk", "gbk", "\N{CJK UNIFIED IDEOGRAPH-72D7}"),
        ("gbk", "utf-8", "\N{CJK UNIFIED IDEOGRAPH-732B}"),
        ("utf-16", "utf-8", "\N{CJK UNIFIED IDEOGRAPH-732B}"),
        ("utf-16", "utf-16", "\N{CJK UNIFIED IDEOGRAPH-732B}"),
        ("none-such", "utf-8", "\N{CJK UNIFIED IDEOGRAPH-732B}"),
        ("windows-1251", "cp1251", "\N{CYRILLIC SMALL LETTER KA}"),
    ],
)
def test_xml_in_the_encoding_that_it_declares(tmp_path: Path, declared: str, encoding: str, name: str) -> None:
    text = f'<?xml version="1.0" encoding="{declared}"?>' + xml(one(name))
    root = make_voc(tmp_path, {"a": ""})
    (root / "Annotations" / "a.xml").write_bytes(text.encode(encoding))
    assert voc.read(Layout("voc", root)).categories.names == (name,)


def test_xml_in_another_encoding_than_it_declares(tmp_path: Path) -> None:
    root = make_voc(tmp_path, {"a": ""})
    text = f'<?xml version="1.0" encoding="utf-8"?>{xml(one("x"))}'.encode().replace(b"x</name>", b"\xb9\xb7</name>")
    (root / "Annotations" / "a.xml").write_bytes(text)
    with pytest.raises(DataError, match=r"a\.xml: line \d: .*save it as UTF-8"):
        voc.read(Layout("voc", root))


def test_two_sizes_are_reported(tmp_path: Path) -> None:
    size = "<size><width>12</width><height>8</height></size>"
    root = make_voc(tmp_path, {"a": xml(one(), size=size * 2), "b": xml(one("cat"))})
    dataset, problems = problems_of(Layout("voc", root))
    assert len(dataset) == 1
    assert "one <size>, got 2" in str(problems[0])


def test_boxes_that_count_from_0(tmp_path: Path) -> None:
    make_voc(tmp_path, {"a": xml(one(box=(0, 2, 11, 8)), one(box=(0, 0, 12, 8))), "b": xml(one(box=(1, 1, 12, 8)))})
    (finding,) = check_path(tmp_path).without(("same_photograph",)).findings
    assert finding.kind == "counts_from_0"
    assert finding.file == str(tmp_path / "Annotations/a.xml")
    assert "like 2 of 3 boxes" in finding.message
    boxes = [[0, 2, 11, 8], [0, 0, 12, 8], [1, 1, 12, 8]]
    dataset = open_dataset(tmp_path, format="voc_from_0")
    assert dataset.objects is not None
    assert dataset.objects.boxes_xyxy.tolist() == boxes
    assert not check_path(tmp_path, format="voc_from_0").without(("same_photograph",)).findings
    convert(tmp_path, tmp_path / "again", to="voc", format="voc_from_0")
    back = open_dataset(tmp_path / "again")
    assert back.objects is not None
    assert back.objects.boxes_xyxy.tolist() == boxes
    with pytest.raises(UsageError, match="voc_from_0"):
        open_dataset(tmp_path, format="none")


def test_no_format_but_voc_counts_from_0(tmp_path: Path) -> None:
    Image.new("RGB", (12, 8)).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("0 0.25 0.5 0.5 1\n")
    with pytest.raises(DataError, match="no data set"):
        open_dataset(tmp_path, format="voc_from_0")


def test_oriented_boxes_of_rolabelimg(tmp_path: Path) -> None:
    turned = "<cx>6</cx><cy>4</cy><w>6</w><h>2</h><angle>1.5707963267948966</angle>"
    text = (
        f"<object><type>robndbox</type><name>dog</name><difficult>1</difficult><robndbox>{turned}</robndbox></object>"
    )
    root = make_voc(tmp_path, {"a": xml(text, one(), text.replace("<w>6</w>", ""))})
    dataset, problems = problems_of(Layout("voc", root))
    assert [(problem.where, problem.file) for problem in problems] == [
        ("object[2].robndbox.w", root / "Annotations/a.xml")
    ]
    objects = dataset.objects
    assert objects is not None
    np.testing.assert_allclose(objects.boxes_xyxy, [[5, 1, 7, 7], [1, 2, 5, 7]], atol=1e-9)
    np.testing.assert_allclose(objects.areas, [12, 20])
    assert objects.columns["difficult"].tolist() == [True, False]
    boxes_xywhr = dataset.instances(0).oriented_boxes_xywhr
    assert boxes_xywhr is not None
    np.testing.assert_allclose(boxes_xywhr[0], [6, 4, 6, 2, np.pi / 2])
    assert np.isnan(boxes_xywhr[1]).all()
    masks = np.zeros((8, 12), dtype=np.uint8)
    masks[1:7, 5:7] = 1
    write_index(root / "SegmentationObject/a.png", masks)
    masked = problems_of(Layout("voc", root))[0].objects
    assert masked is not None
    assert masked.corners_xy is not None
    np.testing.assert_array_equal(masked.corners_xy, objects.corners_xy)
    assert ("corners", 1) in [(loss.kind, loss.object_id) for loss in voc.write(dataset, tmp_path / "voc")]
