import base64
import json
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from otus.data.conversion import convert
from otus.data.dataset import Dataset, Images
from otus.data.formats import labelme
from otus.data.formats.interface import Layout
from otus.data.merging import merge
from otus.data.open import find_layouts
from otus.data.splitting import fingerprint
from otus.errors import DataError
from otus.structures import Categories, KeypointNames, Masks, Objects, Segmentations

TRIANGLE = [[1, 1], [5, 1], [5, 7]]


def shape(label: str = "cat", kind: str = "polygon", points: object = TRIANGLE, **more: Any) -> dict[str, Any]:
    return {"label": label, "points": points, "group_id": None, "shape_type": kind, "flags": {}, **more}


def png(mask: np.ndarray) -> str:
    file = BytesIO()
    Image.fromarray(mask).save(file, format="PNG")
    return base64.b64encode(file.getvalue()).decode()


def make(folder: Path, *shapes: object, stem: str = "a", **more: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    content = {"version": "5.5.0", "shapes": shapes, "imagePath": f"{stem}.png", "imageHeight": 8, "imageWidth": 12}
    (folder / f"{stem}.json").write_text(json.dumps({**content, **more}))
    Image.new("RGB", (12, 8)).save(folder / f"{stem}.png")
    return folder


def read(folder: Path) -> Dataset:
    (layout,) = labelme.find(folder)
    return labelme.read(layout)


def objects_of(dataset: Dataset) -> Objects:
    assert dataset.objects is not None
    return dataset.objects


def test_polygons_rectangles_and_flags(tmp_path: Path) -> None:
    shapes = shape(flags={"difficult": True}), shape("ant", "rectangle", [[9, 7], [2, 3.5]], flags={"crowd": True})
    dataset = read(make(tmp_path, *shapes))
    objects = objects_of(dataset)
    assert dataset.images.files == ("a.png",)
    assert dataset.images.size_hw(0) == (8, 12)
    assert [dataset.categories[i] for i in objects.labels] == ["cat", "ant"]
    assert objects.boxes_xyxy.tolist() == [[1, 1, 5, 7], [2, 3.5, 9, 7]]
    assert objects.areas.tolist() == [12, 24.5]
    assert objects.is_crowd.tolist() == [False, True]
    assert objects.columns["difficult"].tolist() == [True, False]
    assert objects.segmentations is not None
    assert objects.segmentations.polygons(0)[0].tolist() == TRIANGLE
    assert objects.segmentations.polygons(1) == []


def test_a_group_is_one_object_with_parts_box_and_keypoints(tmp_path: Path) -> None:
    shapes = (
        shape(group_id=4),
        shape(group_id=4, points=[[8, 1], [9, 1], [9, 2]]),
        shape(group_id=4, kind="rectangle", points=[[0, 0], [10, 8]]),
        shape("tail", "point", [[8.5, 1.5]], group_id=4),
        shape("nose", "point", [[2, 2]], group_id=4, flags={"occluded": True}),
        shape("dog"),
    )
    dataset = read(make(tmp_path, *shapes))
    objects = objects_of(dataset)
    assert objects.boxes_xyxy.tolist() == [[0, 0, 10, 8], [1, 1, 5, 7]]
    assert objects.segmentations is not None
    assert len(objects.segmentations.polygons(0)) == 2
    names = dataset.categories.keypoints_of("cat")
    assert names is not None
    assert names.names == ("tail", "nose")
    assert dataset.categories.keypoints_of("dog") is None
    assert objects.keypoints is not None
    assert objects.keypoints.tolist() == [[[8.5, 1.5, 2], [2, 2, 1]], [[0, 0, 0], [0, 0, 0]]]


def test_keypoint_names_of_the_file_come_first_and_none_is_dropped(tmp_path: Path) -> None:
    shapes = (
        shape(group_id=1),
        shape("tail", "point", [[8, 1]], group_id=1),
        shape("ear", "point", [[2, 2]], group_id=1),
    )
    dataset = read(make(tmp_path, *shapes, keypoint_names={"cat": ["nose", "ear"], "dog": []}))
    names = dataset.categories.keypoints_of("cat")
    assert names is not None
    assert names.names == ("nose", "ear", "tail")
    keypoints = objects_of(dataset).keypoints
    assert keypoints is not None
    assert keypoints.tolist() == [[[0, 0, 0], [2, 2, 2], [8, 1, 2]]]


def test_masks_fill_their_rectangle_with_its_last_row_and_column(tmp_path: Path) -> None:
    crop = np.ones((4, 5), dtype=bool)
    crop[1:3, 2] = False
    objects = objects_of(read(make(tmp_path, shape(kind="mask", points=[[2, 3], [6, 6]], mask=png(crop)))))
    expected = np.zeros((8, 12), dtype=bool)
    expected[3:7, 2:7] = crop
    assert objects.segmentations is not None
    masks = objects.segmentations.masks([0], (8, 12))
    assert masks is not None
    np.testing.assert_array_equal(masks.dense()[0], expected)
    assert objects.boxes_xyxy.tolist() == [[2, 3, 7, 7]]
    assert objects.areas.tolist() == [18]


def test_order_of_labels_file_and_splits_agree(tmp_path: Path) -> None:
    make(tmp_path / "train", shape("cat"))
    make(tmp_path / "val", shape("ant"))
    layouts = labelme.find(tmp_path)
    assert [layout.split for layout in layouts] == ["train", "val"]
    assert [labelme.read(layout).categories.names for layout in layouts] == [("ant", "cat")] * 2
    (tmp_path / "labels.txt").write_text("__ignore__\n_background_\nowl\ncat\nant\n")
    assert [labelme.read(layout).categories.names for layout in layouts] == [("owl", "cat", "ant")] * 2


def test_image_path_and_size(tmp_path: Path) -> None:
    make(tmp_path / "set" / "labels", shape(), imagePath="..\\images\\a.png", imageHeight=None, imageWidth=None)
    (tmp_path / "set" / "images").mkdir()
    Image.new("RGB", (30, 20)).save(tmp_path / "set" / "images" / "a.png")
    dataset = read(tmp_path / "set")
    assert dataset.images.files == ("images/a.png",)
    assert dataset.images.size_hw(0) == (20, 30)
    layout = Layout("labelme", tmp_path / "set" / "labels")
    with pytest.raises(DataError, match=r"imagePath: .*outside"):
        labelme.read(layout)
    assert labelme.read(layout, allow_outside=True).images.path(0).resolve().is_file()


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (shape(points=[[1, 1], [2, 2]]), ["3 or more points"]),
        (shape(points=[[1, 1], [2, "x"], [3, 3]]), ["points[1][1]", "str"]),
        (shape(points=[1, 2, 3]), ["points[0]"]),
        (shape(kind="rectangle"), ["expected 2 or 4 points of a rectangle"]),
        (shape(kind="linestrip"), ["'linestrip' is not supported"]),
        ({"points": TRIANGLE}, ["label"]),
        (shape(kind="mask", points=[[0, 0], [3, 3]], mask="@@"), ["PNG in base64"]),
        (shape(kind="mask", points=[[0, 0], [3, 3]], mask=png(np.ones((2, 2), bool))), ["4 x 4", "got 2 x 2"]),
        (shape(kind="mask", points=[[0, 0], [30, 3]], mask=png(np.ones((4, 31), bool))), ["inside the image"]),
        (shape(kind="mask", points=[[0, 0], [1e9, 3]], mask=""), ["inside the image"]),
        (shape(score=7), ["score in 0..1"]),
        (shape(group_id="x"), ["group_id"]),
        (shape("dog", group_id=1), ["'cat'", "'dog'", "group_id 1"]),
        (7, ["object"]),
    ],
)
def test_a_bad_shape_is_named_and_the_rest_is_read(tmp_path: Path, bad: object, words: list[str]) -> None:
    make(tmp_path, shape("cat", group_id=1), bad, shape("dog"))
    problems: list[DataError] = []
    dataset = labelme.read(labelme.find(tmp_path)[0], report=problems.append)
    assert len(problems) == 1
    assert all(word in str(problems[0]) for word in [*words, "a.json", "shapes[1]"])
    assert [dataset.categories[i] for i in objects_of(dataset).labels] == ["cat", "dog"]


def test_a_point_alone_is_reported(tmp_path: Path) -> None:
    problems: list[DataError] = []
    make(tmp_path, shape("nose", "point", [[1, 1]], group_id=3), shape())
    dataset = labelme.read(labelme.find(tmp_path)[0], report=problems.append)
    assert ["group_id 3" in str(problem) for problem in problems] == [True]
    assert len(objects_of(dataset)) == 1


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"shapes": 3, "imagePath": "a.png"}', '{"shapes": []}', '{"shapes": [NaN]}', "[" * 100_000]
)
def test_a_bad_file_is_named_and_the_rest_is_read(tmp_path: Path, text: str) -> None:
    make(tmp_path, shape())
    (tmp_path / "b.json").write_text(text)
    problems: list[DataError] = []
    dataset = labelme.read(Layout("labelme", tmp_path), report=problems.append)
    assert ["b.json" in str(problem) for problem in problems] == [True]
    assert dataset.images.files == ("a.png",)


def test_bad_size(tmp_path: Path) -> None:
    make(tmp_path, shape(), imageHeight=-8)
    with pytest.raises(DataError, match="imageHeight"):
        read(tmp_path)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 10_000), count=st.integers(0, 8), split=st.sampled_from([None, "train"]))
def test_what_is_written_comes_back(
    tmp_path_factory: pytest.TempPathFactory, seed: int, count: int, split: str | None
) -> None:
    root, rng = tmp_path_factory.mktemp("labelme"), np.random.default_rng(seed)
    size_hw, files = (23, 37), ("one/x.png", "two/x.png")
    for file in files:
        (root / "source" / file).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (37, 23)).save(root / "source" / file)
    outlines: list[bytes | list[np.ndarray] | None] = []
    for _ in range(count):
        rings = [rng.uniform(0, 22, (int(rng.integers(3, 7)), 2)) for _ in range(int(rng.integers(1, 3)))]
        mask = rng.random((1, *size_hw)) < 0.3
        outlines.append([None, rings, Masks.from_dense(mask).rle()[0]["counts"]][rng.integers(3)])  # type: ignore[arg-type]
    corner = rng.uniform(0, 15, (count, 2))
    keypoints = np.concatenate([rng.uniform(1, 20, (count, 3, 2)), rng.integers(0, 3, (count, 3, 1))], axis=2)
    keypoints[keypoints[..., 2] == 0] = 0
    names = KeypointNames(("left_eye", "right_eye", "beak"))
    corners = rng.uniform(-2, 25, (count, 4, 2))
    corners[rng.random(count) < 0.5] = np.nan
    objects = Objects.build(
        image_index=np.sort(rng.integers(0, 2, count)),
        labels=rng.integers(0, 2, count),
        boxes_xyxy=np.concatenate([corner, corner + rng.uniform(0, 9, (count, 2))], axis=1),
        is_crowd=rng.random(count) < 0.3,
        scores=rng.random(count),
        segmentations=Segmentations.build(outlines),
        corners_xy=corners,
        keypoints=keypoints,
        columns={"difficult": rng.random(count) < 0.5},
    )
    dataset = Dataset(
        root / "source",
        "made",
        Images(root / "source", files, np.tile(size_hw, (2, 1)), ids=files),
        Categories(("zebra", "a cat"), keypoints=(("zebra", names), ("a cat", names))),
        objects,
        split=split,
    )
    assert {loss.kind for loss in labelme.write(dataset, root / "target")} <= {"areas"}
    back = read(root / "target")
    assert (back.split, len(back), back.categories) == (split, 2, dataset.categories)
    read_back = objects_of(back)
    for name in ("image_index", "labels", "is_crowd"):
        np.testing.assert_array_equal(getattr(read_back, name), getattr(objects, name))
    np.testing.assert_allclose(read_back.boxes_xyxy, objects.boxes_xyxy, atol=1e-9, rtol=0)
    if not count:
        return
    np.testing.assert_array_equal(read_back.columns["difficult"], objects.columns["difficult"])
    np.testing.assert_array_equal(read_back.scores, objects.scores)
    np.testing.assert_array_equal(read_back.keypoints, keypoints)
    np.testing.assert_array_equal(
        read_back.corners_xy if read_back.corners_xy is not None else np.full_like(corners, np.nan), corners
    )
    for row, outline in enumerate(outlines):
        came = None if read_back.segmentations is None else read_back.segmentations.segmentation(row)
        if isinstance(outline, list):
            assert isinstance(came, list)
            assert [ring.tolist() for ring in came] == [ring.tolist() for ring in outline]
        else:
            assert came == outline


def test_what_labelme_cannot_hold_is_reported(tmp_path: Path) -> None:
    make(tmp_path / "source", shape())
    dataset = read(tmp_path / "source")
    objects = Objects.build(
        image_index=[0],
        labels=[0],
        boxes_xyxy=[[1, 1, 5, 7]],
        cuboids=np.ones((1, 7)),
        columns={"predicted_iou": np.array([0.5])},
    )
    images = dataset.images
    again = Dataset(dataset.source, "made", images, dataset.categories, objects)
    losses = labelme.write(again, tmp_path / "target", images="none")
    assert sorted(loss.kind for loss in losses) == ["cuboid", "predicted_iou"]


def test_a_mark_of_utf8_is_no_fault(tmp_path: Path) -> None:
    file = make(tmp_path, shape()) / "a.json"
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert len(objects_of(read(tmp_path))) == 1


def test_scores_that_are_no_confidences_are_reported_and_left_out(tmp_path: Path) -> None:
    dataset = read(make(tmp_path / "source", shape()))
    scores = np.array([0.5, 1.5, np.nan, -1, 1])
    objects = Objects.build(image_index=[0] * 5, labels=[0] * 5, boxes_xyxy=[[-90, 1, 50, 7]] * 5, scores=scores)
    again = Dataset(dataset.source, "made", dataset.images, dataset.categories, objects)
    losses = labelme.write(again, tmp_path / "target")
    assert [(loss.kind, loss.image, loss.object_id) for loss in losses] == [
        ("score", "a.png", 2),
        ("score", "a.png", 4),
    ]
    back = objects_of(read(tmp_path / "target"))
    np.testing.assert_array_equal(back.scores, [0.5, np.nan, np.nan, np.nan, 1])
    np.testing.assert_array_equal(back.boxes_xyxy, objects.boxes_xyxy)


CORNERS = [[2, 1], [8, 1], [8, 5], [2, 5]]
TURNED = [[5, 0], [9, 4], [7, 6], [3, 2]]


@pytest.mark.parametrize("first", range(4))
@pytest.mark.parametrize("direction", [1, -1])
def test_rectangles_of_four_corners_whatever_the_first_and_the_direction(
    tmp_path: Path, first: int, direction: int
) -> None:
    def ordered(points: list[list[int]]) -> list[list[int]]:
        return (points[first:] + points[:first])[::direction]

    kinds = {"rectangle": CORNERS, "rectangle ": TURNED, "rotation": TURNED, "oriented_rectangle": TURNED}
    shapes = [shape(kind=kind.strip(), points=ordered(points)) for kind, points in kinds.items()]
    objects = objects_of(read(make(tmp_path, *shapes)))
    assert objects.boxes_xyxy.tolist() == [[2, 1, 8, 5], *[[3, 0, 9, 6]] * 3]
    assert objects.areas.tolist() == [24, 16, 16, 16]
    assert objects.corners_xy is not None
    assert np.isnan(objects.corners_xy[0]).all()
    assert objects.corners_xy[1:].tolist() == [ordered(TURNED)] * 3
    sizes = read(tmp_path).instances(0).oriented_boxes_xywhr
    assert sizes is not None
    np.testing.assert_allclose(np.sort(sizes[1:, 2:4]), [[8**0.5, 32**0.5]] * 3)
    losses = labelme.write(read(tmp_path), tmp_path / "again", images="link")
    assert losses == []
    np.testing.assert_array_equal(objects_of(read(tmp_path / "again")).corners_xy, objects.corners_xy)


def test_fields_of_x_anylabeling(tmp_path: Path) -> None:
    box = shape(
        kind="rectangle", points=CORNERS, difficult=True, score=None, description="", attributes={}, kie_linking=[]
    )
    objects = objects_of(read(make(tmp_path, box, shape(difficult="false", flags=None), shape(kind="quadrilateral"))))
    assert objects.columns["difficult"].tolist() == [True, False, False]


def test_a_second_oriented_rectangle_of_a_group_is_reported(tmp_path: Path) -> None:
    make(tmp_path, *[shape(kind="rotation", points=TURNED, group_id=3)] * 2)
    problems: list[DataError] = []
    dataset = labelme.read(labelme.find(tmp_path)[0], report=problems.append)
    assert len(objects_of(dataset)) == 1
    assert [problem.where for problem in problems] == ["shapes[1]"]


def test_a_image_that_is_missing_is_taken_out_of_the_file(tmp_path: Path) -> None:
    mask = np.eye(8, 12, dtype=bool)
    make(tmp_path, shape(), imageData=png(mask), imageHeight=None, imageWidth=None)
    make(tmp_path, shape(), stem="b", imageData=png(~mask))
    make(tmp_path, shape(), stem="c", imageData="?")
    for name in ("a.png", "c.png"):
        (tmp_path / name).unlink()
    problems: list[DataError] = []
    dataset = labelme.read(labelme.find(tmp_path)[0], report=problems.append)
    assert [(problem.file, problem.where) for problem in problems] == [(tmp_path / "c.json", "imageData")]
    assert [dataset.images.size_hw(i) for i in range(2)] == [(8, 12)] * 2
    np.testing.assert_array_equal(dataset.image(0), np.repeat(mask[..., None] * np.uint8(255), 3, axis=2))
    assert not dataset.image(1).any()  # what lies there counts
    done = convert(tmp_path, tmp_path / "yolo", to="yolo")
    assert (tmp_path / "yolo/images/train/a.png").is_file()
    assert len(done.datasets[0]) == 2


@pytest.mark.parametrize("sort_keys", [False, True])
@pytest.mark.parametrize("num_points", [3, 100_000])
def test_files_are_recognised_whatever_the_order_of_their_fields(
    tmp_path: Path, sort_keys: bool, num_points: int
) -> None:
    polygon = shape(points=[TRIANGLE[k % 3] for k in range(num_points)])
    make(tmp_path, polygon, imageData="A" * 600_000)
    content = json.loads((tmp_path / "a.json").read_text())
    (tmp_path / "a.json").write_text(json.dumps(content, sort_keys=sort_keys))
    (tmp_path / "no_file.json").mkdir()
    (layout,) = find_layouts(tmp_path)
    assert layout.format == "labelme"


def test_images_of_the_files_have_the_same_names_in_every_process(tmp_path: Path) -> None:
    """Runs are resumed, and the validation images of a run found again, by these names."""
    for stem in ("a", "b"):
        make(tmp_path / "set", shape(), stem=stem, imagePath="images/x.png", imageData=png(np.eye(8, 12) > 0))
        (tmp_path / f"set/{stem}.png").unlink()
    first, second = read(tmp_path / "set"), read(tmp_path / "set")
    assert first.images.files == ("a.png", "b.png")
    assert first.images.path(0) != second.images.path(0)
    assert fingerprint(first) == fingerprint(second)
    make(tmp_path / "other", shape())
    merged = merge([first.select([1]), read(tmp_path / "other")])
    assert merged.images.files == ("set/b.png", "other/a.png")
    np.testing.assert_array_equal(merged.image(0), first.image(1))


def test_images_of_the_files_are_copied_even_where_images_are_linked(tmp_path: Path) -> None:
    make(tmp_path / "set", shape(), imageData=png(np.eye(8, 12) > 0))
    make(tmp_path / "set", shape(), stem="b")
    (tmp_path / "set/a.png").unlink()
    (dataset,) = convert(tmp_path / "set", tmp_path / "coco", to="coco", images="link").datasets
    links = [
        (tmp_path / "coco/images" / name).samefile(dataset.images.path(i)) for i, name in enumerate(("a.png", "b.png"))
    ]
    assert links == [False, True]
