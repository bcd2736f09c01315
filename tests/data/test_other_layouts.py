"""Sets as other tools lay them out: with the smallest input, and whatever lies at the same path is not taken for another."""

import json
from pathlib import Path

import numpy as np
import pytest

from otus.data.checks.doctor import check_path
from otus.data.conversion import convert
from otus.data.formats import coco
from otus.data.formats.interface import Layout
from otus.data.image_writing import write_image
from otus.data.open import find_layouts, open_dataset, open_splits
from otus.errors import DataError

XML = """<annotation><filename>{stem}.png</filename><size><width>20</width><height>10</height></size>
<object><name>{name}</name><bndbox><xmin>3</xmin><ymin>2</ymin><xmax>12</xmax><ymax>8</ymax></bndbox></object></annotation>"""
LINE = "{label} 0.35 0.45 0.5 0.7\n"  # of an image of 20 x 10 the same box
BOX = [2, 1, 12, 8]


def write(folder: Path, **texts: str) -> Path:
    """Files by name, where / is __ and . is _ before the last part; images of 20 x 10 of those without a text."""
    for name, text in texts.items():
        *parts, suffix = name.replace("__", "/").rsplit("_", 1)
        file = folder / f"{'_'.join(parts)}.{suffix}"
        file.parent.mkdir(parents=True, exist_ok=True)
        if suffix == "png":
            write_image(file, np.full((10, 20, 3), 7, np.uint8))
        else:
            file.write_text(text)
    return folder


def one_object(folder: Path, *, format: str, split: str | None = None, name: str = "owl") -> None:
    """The folder is one set of that format, with one object in one image."""
    assert {layout.format for layout in find_layouts(folder)} == {format}
    dataset = open_dataset(folder, split=split)
    assert dataset.objects is not None
    np.testing.assert_allclose(dataset.objects.boxes_xyxy, [BOX], atol=1e-9)
    assert [dataset.categories[label] for label in dataset.objects.labels] == [name]
    assert dataset.image(0).shape == (10, 20, 3)
    done = convert(folder, folder.with_name("coco"), to="coco", split=split)
    assert not done.problems


@pytest.mark.parametrize("images", ["images__", "annotations__", "JPEGImages__", ""])
def test_voc_of_kaggle(tmp_path: Path, images: str) -> None:
    labels = "annotations__" if images else ""
    files = {f"{images}a_png": "", f"{labels}a_xml": XML.format(stem="a", name="owl")}
    one_object(write(tmp_path / "set", **files), format="voc")


def test_voc_with_a_folder_a_split(tmp_path: Path) -> None:
    folder = write(
        tmp_path / "set",
        train__a_png="", train__a_xml=XML.format(stem="a", name="owl"),
        valid__images__b_png="", valid__annotations__b_xml=XML.format(stem="b", name="cat eagle"),
    )  # fmt: skip
    one_object(folder, format="voc", split="train")
    splits = open_splits(folder)
    assert [one.split for one in splits] == ["train", "valid"]
    assert {one.categories.names for one in splits} == {("cat eagle", "owl")}
    assert [one.images.files for one in splits] == [("train/a.png",), ("valid/images/b.png",)]


@pytest.mark.parametrize("classes", [True, False])
@pytest.mark.parametrize("name", ["set", "images"])
def test_images_beside_lines_of_yolo(tmp_path: Path, classes: bool, name: str) -> None:
    folder = write(tmp_path / name, a_png="", a_txt=LINE.format(label=1), b_png="")
    if classes:
        (folder / "classes.txt").write_text("cat\nowl\n")
    one_object(folder, format="yolo", name="owl" if classes else "1")


def test_images_beside_lines_of_yolo_in_a_folder_a_split(tmp_path: Path) -> None:
    line = LINE.format(label=0)
    folder = write(
        tmp_path / "set", train__a_png="", train__a_txt=line, train__classes_txt="owl", val__b_png="", val__b_txt=""
    )
    one_object(folder, format="yolo", split="train")


@pytest.mark.parametrize("prefix", ["", "data/", "/home/me/darknet/data/", "build\\\\data\\\\"])
def test_lists_of_darknet_and_of_cvat(tmp_path: Path, prefix: str) -> None:
    prefix = prefix.replace("\\\\", "\\")
    folder = write(
        tmp_path / "set",
        obj_data=f"classes = 2\ntrain = {prefix}train.txt\nvalid={prefix}valid.txt\nnames = {prefix}obj.names\n",
        obj_names="cat\nowl\n",
        train_txt=f"{prefix}obj_train_data/a.png\n",
        valid_txt=f"{prefix}obj_valid_data/b.png\n\n",
        obj_train_data__a_png="", obj_train_data__a_txt=LINE.format(label=1), obj_valid_data__b_png="",
    )  # fmt: skip
    assert [layout.split for layout in find_layouts(folder)] == ["train", "val"]
    one_object(folder, format="yolo", split="train")
    assert len(open_dataset(folder / "obj.data", split="val")) == 1


def test_lists_of_darknet_may_not_leave_their_folder(tmp_path: Path) -> None:
    write(tmp_path, b_png="", b_txt=LINE.format(label=0))
    texts = {"obj_data": "train = train.txt\nnames = obj.names", "obj_names": "owl", "train_txt": "../b.png"}
    problems: list[DataError] = []
    open_dataset(write(tmp_path / "set", **texts), report=problems.append)
    assert problems


@pytest.mark.parametrize("labels", ["annfiles", "labelTxt", "labelTxt-v1.0"])
def test_labels_of_dota_and_mmrotate(tmp_path: Path, labels: str) -> None:
    folder = write(tmp_path / "set", trainval__images__a_png="")
    (folder / "trainval" / labels).mkdir()
    (folder / "trainval" / labels / "a.txt").write_text("2 1 12 1 12 8 2 8 owl 0\n")
    one_object(folder, format="dota", split="trainval")


@pytest.mark.parametrize("without", [("width", "height"), ("height",)])
def test_coco_without_sizes(tmp_path: Path, without: tuple[str, ...]) -> None:
    images = [
        {"id": number, "file_name": f"{stem}.png", **dict.fromkeys({"width", "height"} - set(without), 1)}
        for number, stem in ((1, "a"), (2, "missing"))
    ]
    annotation = {"image_id": 1, "category_id": 1, "bbox": [2, 1, 10, 7]}
    document = {"images": images, "annotations": [annotation, {**annotation, "image_id": 2}]}
    document["categories"] = [{"id": 1, "name": "owl"}]
    folder = write(tmp_path / "set", images__a_png="", instances_json=json.dumps(document))
    problems: list[DataError] = []
    dataset = coco.read(Layout("coco", folder / "instances.json"), report=problems.append)
    assert [problem.kind for problem in problems] == ["missing_image"]
    assert dataset.images.sizes_hw.tolist() == [[10, 20]]
    document.update(images=images[:1], annotations=[annotation])
    (folder / "instances.json").write_text(json.dumps(document))
    one_object(folder, format="coco")


SQUARE = [[2, 1], [12, 1], [12, 8], [2, 8]]
CVAT = """<annotations><version>1.1</version><meta><task><labels>
<label><name>cat</name></label><label><name>owl</name></label><label><name>beak</name><type>points</type><parent>owl</parent></label></labels></task></meta>{images}</annotations>"""
IMAGE = '<image id="0" name="a.png" width="20" height="10">{shapes}</image>'
CVAT_BOX = '<box label="owl" occluded="{occluded}" xtl="2" ytl="1" xbr="12" ybr="8" z_order="0"/>'


def cvat_set(folder: Path, shapes: str) -> Path:
    return write(folder, images__a_png="", annotations_xml=CVAT.format(images=IMAGE.format(shapes=shapes)))


def test_cvat_boxes(tmp_path: Path) -> None:
    folder = cvat_set(tmp_path / "set", CVAT_BOX.format(occluded=1))
    one_object(folder, format="cvat")
    dataset = open_dataset(folder / "annotations.xml")
    assert dataset.categories.names == ("cat", "owl")
    assert dataset.objects is not None
    assert dataset.objects.columns["occluded"].tolist() == [True]


def test_cvat_shapes(tmp_path: Path) -> None:
    points = ";".join(f"{x},{y}" for x, y in SQUARE)
    shapes = (
        f'<polygon label="owl" points="{points}"/>'
        '<box label="owl" xtl="2" ytl="3" xbr="12" ybr="5" rotation="90.0"/>'
        '<ellipse label="cat" cx="7" cy="4.5" rx="2" ry="3" rotation="90"/>'
        '<mask label="fox" rle="0, 2, 1, 3" left="3" top="2" width="3" height="2"/>'
        '<polyline label="owl" points="1,1;2,2"/><points label="owl" points="1,1"/>'
        '<box label="owl" xtl="2" ytl="1" xbr="12" ybr="8"><attribute name="age">old</attribute></box>'
    )
    dataset = open_dataset(cvat_set(tmp_path / "set", shapes))
    objects = dataset.objects
    assert objects is not None
    assert [dataset.categories[label] for label in objects.labels] == ["owl", "owl", "cat", "fox", "owl"]
    np.testing.assert_allclose(objects.boxes_xyxy[:2], [BOX, [6, -1, 8, 9]], atol=1e-9)
    np.testing.assert_allclose(objects.boxes_xyxy[2:], [[4, 2.5, 10, 6.5], [3, 2, 6, 4], BOX], atol=1e-9)
    np.testing.assert_allclose(objects.areas, [70, 20, 6 * np.pi, 5, 70], rtol=2e-3)
    turned = dataset.instances(0).oriented_boxes_xywhr
    assert turned is not None
    np.testing.assert_allclose(turned[1], [7, 4, 10, 2, np.pi / 2], atol=1e-9)
    masks = dataset.instances(0).masks
    assert masks is not None
    assert np.argwhere(masks.dense()[3]).tolist() == [[2, 3], [2, 4], [3, 3], [3, 4], [3, 5]]
    assert {one.field: one.example for one in dataset.unread} == {
        "image/polyline": "owl", "image/points": "owl", "image/attribute": "age: old"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ('<box label="owl" xtl="x" ytl="1" xbr="2" ybr="2"/>', ["xtl", "'x'"]),
        ('<box xtl="1" ytl="1" xbr="2" ybr="2"/>', ["'label'"]),
        ('<box label="owl" xtl="1" ytl="1" xbr="nan" ybr="2"/>', ["xbr"]),
        ('<polygon label="owl" points="1,1;2"/>', ["x,y"]),
        ('<polygon label="owl" points="1,1;2,2"/>', ["3 or more"]),
        ('<mask label="owl" rle="1,1" left="18" top="2" width="3" height="1"/>', ["inside the image"]),
        ('<mask label="owl" rle="1,1" left="1" top="2" width="3" height="1"/>', ["add up to 3", "got 2"]),
        ('<mask label="owl" rle="-1,4" left="1" top="2" width="3" height="1"/>', ["rle"]),
        ('<mask label="owl" rle="3" left="1" top="2" width="3" height="1"/>', ["empty"]),
    ],
)
def test_a_bad_shape_of_cvat_is_named_and_the_rest_is_read(tmp_path: Path, bad: str, words: list[str]) -> None:
    folder = cvat_set(tmp_path, bad + CVAT_BOX.format(occluded=0))
    problems: list[DataError] = []
    dataset = open_dataset(folder, report=problems.append)
    assert len(dataset.objects or ()) == 1
    (problem,) = problems
    assert all(word in str(problem) for word in [*words, "annotations.xml", "image[0]"])


def test_images_of_cvat_may_not_leave_their_folder_and_videos_are_named(tmp_path: Path) -> None:
    write(tmp_path, a_png="")
    image = IMAGE.format(shapes="").replace("a.png", "../a.png")
    write(tmp_path / "set", annotations_xml=CVAT.format(images=image))
    with pytest.raises(DataError, match="allow-outside"):
        open_dataset(tmp_path / "set")
    assert len(open_dataset(tmp_path / "set", allow_outside=True)) == 1
    write(tmp_path / "set", annotations_xml=CVAT.format(images='<track id="0" label="owl"/>'))
    with pytest.raises(DataError, match=r"tracks of a video.*CVAT for images"):
        open_dataset(tmp_path / "set")


def region(kind: str = "rectanglelabels", label: str = "owl", **value: object) -> dict[str, object]:
    return {"type": kind, "original_width": 20, "original_height": 10, "value": {**value, kind: [label]}}


PERCENT = {"x": 10, "y": 10, "width": 50, "height": 70, "rotation": 0}


def studio_set(folder: Path, *results: dict, image: str = "/data/upload/1/3f2a1b2c-a.png", **more: object) -> Path:
    task = {"id": 1, "data": {"image": image}, "annotations": [{"result": results}], "predictions": [], **more}
    return write(folder, images__a_png="", export_json=json.dumps([task]))


@pytest.mark.parametrize(
    "image",
    [
        "/data/upload/1/3f2a1b2c-a.png",
        "https://example.com/x/a.png?token=3",
        "/data/local-files/?d=photos%2Fimages%2Fa.png",
        "s3://bucket/images/a.png",
        "C:\\photos\\a.png",
    ],
)
def test_label_studio_boxes(tmp_path: Path, image: str) -> None:
    one_object(studio_set(tmp_path / "set", region(**PERCENT), image=image), format="label_studio")


def test_label_studio_shapes(tmp_path: Path) -> None:
    results = (
        region("polygonlabels", points=[[x * 5, y * 10] for x, y in SQUARE]),
        region(x=60, y=20, width=50, height=20, rotation=90),
        region("ellipselabels", "cat", x=35, y=45, radiusX=10, radiusY=30),
        region("brushlabels", "cat", format="rle", rle=[0, 1]),
        region("keypointlabels", "cat", x=1, y=1, width=0.2),
        {"type": "choices", "value": {"choices": ["day"]}},
        {"type": "rectangle", "value": PERCENT},
        {"type": "labels", "value": {**PERCENT, "labels": ["owl"]}},
    )
    folder = studio_set(tmp_path / "set", *results)
    problems: list[DataError] = []
    dataset = open_dataset(folder, report=problems.append)
    assert [problem.where for problem in problems] == ["[0].result[6]"]  # its label stands in the next
    objects = dataset.objects
    assert objects is not None
    assert [dataset.categories[label] for label in objects.labels] == ["owl", "owl", "cat", "owl"]
    expected = [BOX, [10, 2, 12, 12], [5, 1.5, 9, 7.5], BOX]
    np.testing.assert_allclose(objects.boxes_xyxy, expected, atol=1e-9)
    assert {one.field for one in dataset.unread} == {"result: brushlabels", "result: keypointlabels", "result: choices"}


@pytest.mark.parametrize(
    "geometry",
    [PERCENT, {"points": [[x * 5, y * 10] for x, y in SQUARE]}, {"x": 35, "y": 45, "radiusX": 25, "radiusY": 35}],
)
@pytest.mark.parametrize("label_first", [False, True])
def test_label_studio_shapes_whose_labels_are_results_of_their_own(
    tmp_path: Path, geometry: dict, label_first: bool
) -> None:
    kind = {4: "ellipse", 1: "polygon"}.get(len(geometry), "rectangle")
    shape = {"type": kind, "id": "b1", "value": geometry}
    label = {"type": "labels", "id": "b1", "value": {**geometry, "labels": ["owl"]}}
    text = {"type": "textarea", "id": "b1", "value": {**geometry, "text": ["hello"]}}
    folder = studio_set(tmp_path / "set", *((label, shape) if label_first else (shape, label)), text)
    one_object(folder, format="label_studio")
    assert {one.field for one in open_dataset(folder).unread} == {"result: textarea"}


def test_label_studio_counts_keypoints_whose_labels_are_results_of_their_own(tmp_path: Path) -> None:
    point = {"x": 1, "y": 1, "width": 0.2}
    results = [
        {"type": "keypoint", "id": "k", "value": point},
        {"type": "labels", "id": "k", "value": {**point, "labels": ["eye"]}},
    ]
    folder = studio_set(tmp_path / "set", region(**PERCENT), *results)
    one_object(folder, format="label_studio")
    assert {one.field for one in open_dataset(folder).unread} == {"result: keypoint", "result: labels"}


def test_label_studio_counts_the_labels_of_a_region_after_the_first(tmp_path: Path) -> None:
    several = region(**PERCENT)
    several["value"] = {**PERCENT, "rectanglelabels": ["owl", "asleep", "grey"]}
    folder = studio_set(tmp_path / "set", several)
    one_object(folder, format="label_studio")
    (unread,) = open_dataset(folder).unread
    assert (unread.field, unread.count, unread.example) == ("further labels of a region", 2, "asleep")


def test_label_studio_counts_one_annotation_of_a_task(tmp_path: Path) -> None:
    other = region(**{**PERCENT, "x": 0})
    annotations = [
        {"result": [other], "was_cancelled": True},
        {"result": [other]},
        {"result": [region(**PERCENT)], "ground_truth": True},
    ]
    folder = studio_set(tmp_path / "set", annotations=annotations, predictions=[{"result": [other]}])
    one_object(folder, format="label_studio")
    assert {one.field: one.count for one in open_dataset(folder).unread} == {
        "annotations of others": 1,
        "predictions": 1,
    }


@pytest.mark.parametrize(
    ("task", "words"),
    [
        ({"data": {"text": "hello"}, "annotations": []}, ["path of an image"]),
        ({"annotations": []}, ["data"]),
        ({"data": {"image": "none.png"}, "annotations": []}, ["none.png"]),
        ({"data": {"image": "a.png"}, "annotations": [{"result": [region(x="1")]}]}, ["result[0]", "float"]),
        ({"data": {"image": "a.png"}, "annotations": [{"result": [region()]}]}, ["result[0]", "without width"]),
        ({"data": {"image": "a.png"}, "annotations": [{"result": [region(label=" ", **PERCENT)]}]}, ["no label"]),
    ],
)
def test_a_bad_task_of_label_studio_is_named_and_the_rest_is_read(tmp_path: Path, task: dict, words: list[str]) -> None:
    folder = studio_set(tmp_path, region(**PERCENT))
    tasks = json.loads((folder / "export.json").read_text())
    (folder / "export.json").write_text(json.dumps([task, *tasks]))
    problems: list[DataError] = []
    dataset = open_dataset(folder, report=problems.append)
    assert len(dataset.objects or ()) == 1
    (problem,) = problems
    assert all(word in str(problem) for word in words)


FOREIGN = {
    "CreateML": ("a.json", [{"image": "a.png", "annotations": [{"label": "owl", "coordinates": {"x": 1, "y": 1}}]}]),
    "CreateML of its app": (
        "a.json",
        [{"imagefilename": "a.png", "annotation": [{"coordinates": {}, "label": "owl"}]}],
    ),
    "VIA": ("via.json", {"_via_img_metadata": {"a": {"regions": [{"shape_attributes": {"name": "rect"}}]}}}),
    "Supervisely": ("ann/a.png.json", {"objects": [{"classTitle": "owl", "points": {"exterior": [[1, 1]]}}]}),
    "Labelbox": ("a.ndjson", {"data_row": {"id": "a"}}),
    "VoTT": ("a.json", {"asset": {"name": "a.png"}, "regions": []}),
    "Datumaro": ("annotations/a.json", {"info": {}, "categories": {}, "items": [{"id": "a", "annotations": []}]}),
    "JSON-MIN": ("a.json", [{"image": "a.png", "label": [{"original_width": 20, "rectanglelabels": ["owl"]}]}]),
    "Keras": ("train/_annotations.txt", "a.png 2,1,12,8,0\n"),
    "table": ("train/_annotations.csv", "filename,width,height,class,xmin,ymin,xmax,ymax\n"),
    "TensorFlow": ("train/a.tfrecord", "\0"),
    "Hugging Face": ("a.parquet", "PAR1"),
}


@pytest.mark.parametrize("tool", FOREIGN)
def test_files_of_other_tools_are_named_with_what_to_export(tmp_path: Path, tool: str) -> None:
    name, content = FOREIGN[tool]
    write(tmp_path, a_png="")
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    for path in (tmp_path, file):
        with pytest.raises(DataError, match=f"{tool.split(' of ')[0]}.*export .*(COCO|VOC|YOLO|JSON)") as caught:
            open_dataset(path)
        assert caught.value.file == file
        assert caught.value.kind == "foreign_format"


@pytest.mark.parametrize(
    ("files", "place"),
    [
        ({"images__a_png": "", "annotations__a_xml": XML}, "annotations/a.xml"),
        ({"a_png": "", "a_xml": XML}, "a.xml"),
        ({"train__images__a_png": "", "train__annotations__a_xml": XML}, "train/annotations/a.xml"),
        ({"a_png": "", "a_txt": "0 0.9 0.5 0.8 0.5\n"}, "a.txt"),
        (
            {"images__a_png": "", "annotations_xml": CVAT.format(images=IMAGE.format(shapes=CVAT_BOX))},
            "annotations.xml",
        ),
    ],
)
def test_doctor_names_the_file_of_the_labels(tmp_path: Path, files: dict[str, str], place: str) -> None:
    far = {name: text.replace(">12<", ">40<").replace('"12"', '"40"') for name, text in files.items()}
    findings = check_path(write(tmp_path, **far)).without(("unused_category",)).findings
    assert [(one.kind, one.file) for one in findings] == [("box_outside", str(tmp_path / place))]
