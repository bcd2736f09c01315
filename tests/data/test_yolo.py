from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from otus.data.conversion import convert
from otus.data.dataset import Dataset, Images
from otus.data.formats import yolo
from otus.data.formats.interface import Layout
from otus.data.formats.text_results import read_text_results
from otus.data.image_writing import write_image
from otus.data.open import open_dataset
from otus.errors import DataError
from otus.structures import Categories, KeypointNames, Masks, Objects, SegmentationKind, Segmentations

YAML = "train: images/train\nnames: [cat, dog]\n"


def make_yolo(root: Path, labels: dict[str, str], yaml: str | None = YAML) -> Path:
    """Images of 200 x 100 with their labels in the split train; a label of '-' is no file."""
    for part in ("images/train", "labels/train"):
        (root / part).mkdir(parents=True)
    for stem, text in labels.items():
        Image.new("RGB", (200, 100)).save(root / f"images/train/{stem}.png")
        if text != "-":
            (root / f"labels/train/{stem}.txt").write_text(text)
    if yaml is not None:
        (root / "data.yaml").write_text(yaml)
    return root


def read_one(root: Path) -> Dataset:
    (layout,) = yolo.find(root)
    return yolo.read(layout)


def objects_of(dataset: Dataset) -> Objects:
    assert dataset.objects is not None
    return dataset.objects


def test_boxes_by_hand(tmp_path: Path) -> None:
    dataset = read_one(make_yolo(tmp_path, {"a": "1 0.5 0.5 0.2 0.4\n\n0 .25 .1 .5 .2\n", "b": "-", "c": ""}))
    assert dataset.split == "train"
    assert dataset.images.files == ("images/train/a.png", "images/train/b.png", "images/train/c.png")
    assert dataset.images.size_hw(0) == (100, 200)
    objects = objects_of(dataset)
    np.testing.assert_allclose(objects.boxes_xyxy, [[80, 30, 120, 70], [0, 0, 100, 20]], atol=1e-12)
    assert objects.labels.tolist() == [1, 0]
    assert objects.image_index.tolist() == [0, 0]
    assert objects.scores is None
    assert objects.segmentations is None


def test_polygons_and_boxes_in_one_set(tmp_path: Path) -> None:
    text = "0 0.1 0.1 0.3 0.1 0.3 0.5\n1 0.5 0.5 0.2 0.4\n1 0 0 1 0 1 1 0 1\n"
    objects = objects_of(read_one(make_yolo(tmp_path, {"a": text})))
    np.testing.assert_allclose(objects.boxes_xyxy, [[20, 10, 60, 50], [80, 30, 120, 70], [0, 0, 200, 100]], atol=1e-12)
    np.testing.assert_allclose(objects.areas, [800, 1600, 20000])
    outlines = objects.segmentations
    assert outlines is not None
    assert objects.corners_xy is None
    assert outlines.kinds.tolist() == [SegmentationKind.POLYGONS, SegmentationKind.NONE, SegmentationKind.POLYGONS]
    np.testing.assert_allclose(outlines.polygons(0)[0], [[20, 10], [60, 10], [60, 50]])
    assert outlines.polygons(1) == []
    np.testing.assert_allclose(outlines.polygons(2)[0], [[0, 0], [200, 0], [200, 100], [0, 100]])


def test_eight_corners_on_every_line_are_oriented_boxes_even_beyond_the_border(tmp_path: Path) -> None:
    line = "0 0.1 0.1 0.3 0.1 0.3 0.5 -0.04 1.04\n"
    objects = objects_of(read_one(make_yolo(tmp_path, {"a": line, "b": line})))
    assert objects.segmentations is None
    assert objects.corners_xy is not None
    np.testing.assert_allclose(objects.corners_xy[1], [[20, 10], [60, 10], [60, 50], [-8, 104]])
    np.testing.assert_allclose(objects.boxes_xyxy[1], [-8, 10, 60, 104])


@pytest.mark.parametrize("other", ["0 0.1 0.1 0.3 0.1 0.3 0.5\n", "0 0.5 0.5 0.1 0.2\n", ""])
def test_four_points_are_the_same_in_all_splits(tmp_path: Path, other: str) -> None:
    four = "0 0.1 0.1 0.3 0.1 0.3 0.5 0.1 0.5\n"
    root = make_yolo(tmp_path, {"a": four + other}, "train: images/train\nval: images/val\ntest: none\nnames: [cat]\n")
    for part in ("images", "labels"):
        (root / part / "val").mkdir()
    Image.new("RGB", (200, 100)).save(root / "images/val/b.png")
    (root / "labels/val/b.txt").write_text(four)
    dataset = open_dataset(root, split="val")
    objects = objects_of(dataset)
    assert (objects.corners_xy is None, objects.segmentations is None) == (bool(other), not other)
    predictions = tmp_path / "predictions"
    predictions.mkdir()
    (predictions / "b.txt").write_text(f"{four.strip()} 0.9\n")
    predicted = read_text_results(predictions, dataset)
    assert (predicted.corners_xy is None, predicted.segmentations is None) == (bool(other), not other)


def test_confidences_of_boxes_and_polygons(tmp_path: Path) -> None:
    text = "0 0.5 0.5 0.2 0.4 0.75\n0 0.1 0.1 0.3 0.1 0.3 0.5 0.25\n"
    objects = objects_of(read_one(make_yolo(tmp_path, {"a": text})))
    assert objects.scores is not None
    assert objects.scores.tolist() == [0.75, 0.25]
    assert objects.segmentations is not None
    assert len(objects.segmentations.polygons(1)[0]) == 3


@pytest.mark.parametrize(
    ("shape", "points", "expected"),
    [
        ("[2, 3]", "0.1 0.2 2 0 0 0", [[20, 20, 2], [0, 0, 0]]),
        ("[2, 2]", "0.1 0.2 0 0", [[20, 20, 2], [0, 0, 0]]),
        ("[2, 3]", "0.1 0.2 1 0.5 0.5 2", [[20, 20, 1], [100, 50, 2]]),
    ],
)
def test_keypoints(tmp_path: Path, shape: str, points: str, expected: list[list[float]]) -> None:
    yaml = f"train: images/train\nnames: [cat]\nkpt_shape: {shape}\nflip_idx: [1, 0]\n"
    dataset = read_one(make_yolo(tmp_path, {"a": f"0 0.5 0.5 0.2 0.4 {points}\n"}, yaml))
    objects = objects_of(dataset)
    assert objects.keypoints is not None
    np.testing.assert_allclose(objects.keypoints[0], expected)
    np.testing.assert_allclose(objects.boxes_xyxy[0], [80, 30, 120, 70])
    names = dataset.categories.keypoints_of("cat")
    assert names is not None
    assert names.flip_order() == [1, 0]


def test_folders_without_yaml(tmp_path: Path) -> None:
    root = make_yolo(tmp_path, {"a": "2 0.5 0.5 0.2 0.4\n"}, yaml=None)
    assert read_one(root).categories.names == ("0", "1", "2")
    (root / "classes.txt").write_text("cat\ndog\nowl\n")
    assert read_one(root).categories.names == ("cat", "dog", "owl")
    (root / "classes.txt").write_text("cat\n\nowl\n\n")
    assert read_one(root).categories.names == ("cat", "1", "owl")
    (root / "classes.txt").write_text("cat\nowl\nowl\n")
    with pytest.raises(DataError, match=r"classes.txt: duplicate names: owl \(give each"):
        read_one(root)
    assert yolo.find(tmp_path / "images") == []


@pytest.mark.parametrize("name", ["valid", "validation"])
def test_other_names_of_the_split_val(tmp_path: Path, name: str) -> None:
    for split in ("train", name):
        (tmp_path / split / "images").mkdir(parents=True)
        (tmp_path / split / "labels").mkdir()
        Image.new("RGB", (20, 10)).save(tmp_path / split / "images/a.png")
        (tmp_path / split / "labels/a.txt").write_text("0 0.5 0.5 0.2 0.4\n")
    assert [layout.split for layout in yolo.find(tmp_path)] == ["train", name]
    (tmp_path / "data.yaml").write_text(f"train: train/images\n{name}: {name}/images\nnames: [cat]\n")
    layouts = yolo.find(tmp_path)
    assert [layout.split for layout in layouts] == ["train", "val"]
    dataset = yolo.read(layouts[1])
    assert (dataset.images.files, dataset.unread) == ((f"{name}/images/a.png",), ())
    (tmp_path / "data.yaml").write_text(f"{name}: ../../images\nnames: [cat]\n")
    with pytest.raises(DataError, match=rf"data.yaml: {name}:"):
        yolo.read(layouts[1])


def test_lists_of_images_and_mappings_of_names(tmp_path: Path) -> None:
    root = make_yolo(tmp_path, {"a": "1 0.5 0.5 0.2 0.4\n", "b": ""}, "val: val.txt\nnames: {0: cat, 1: dog}\n")
    (root / "val.txt").write_text("./images/train/a.png\n")
    dataset = read_one(root)
    assert (dataset.split, dataset.images.files) == ("val", ("images/train/a.png",))
    assert len(objects_of(dataset)) == 1


def test_lists_of_images_without_names(tmp_path: Path) -> None:
    labels = {"a": "1 0.5 0.5 0.2 0.4\n", "b": "4 0.5 0.5 0.2 0.4\n"}
    root = make_yolo(tmp_path, labels, "train: train.txt\nval: val.txt\nnames:\n")
    for stem, split in (("a", "train"), ("b", "val")):
        (root / f"{split}.txt").write_text(f"images/train/{stem}.png\n../outside.png\n")
    for layout in yolo.find(root):
        problems: list[DataError] = []
        dataset = yolo.read(layout, report=problems.append)
        assert (len(dataset), len(problems)) == (1, 1)
        assert dataset.categories.names == ("0", "1", "2", "3", "4")


def test_paths_are_relative_to_the_yaml_and_stay_inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make_yolo(tmp_path / "set", {"a": ""})
    monkeypatch.chdir("/")
    (root / "sub").mkdir()
    for yaml in ("path: ..\ntrain: images/train\nnc: 2\n", f"path: {root}\ntrain: images/train\nnc: 2\n"):
        (root / "sub" / "data.yaml").write_text(yaml)
        layout = Layout("yolo", root / "sub" / "data.yaml", "train")
        with pytest.raises(DataError, match=r"path: .*outside") as caught:
            yolo.read(layout)
        assert caught.value.kind == "path_outside"
        assert len(yolo.read(layout, allow_outside=True)) == 1
    (root / "data.yaml").write_text(
        f"path: {root}\ntrain: ../images/train\nnc: 2\n"
    )  # absolute but inside; Roboflow's slip
    assert read_one(root).categories.names == ("0", "1")
    (root / "data.yaml").write_text("train: list.txt\nnc: 2\n")
    (root / "list.txt").write_text("../../etc/passwd\n")
    with pytest.raises(DataError, match=r"list.txt: line 1: .*outside"):
        read_one(root)
    (root / "list.txt").write_text("../../etc/passwd\nimages/train/a.png\n")
    problems: list[DataError] = []
    assert len(yolo.read(yolo.find(root)[0], report=problems.append)) == len(problems) == 1


def test_yaml_that_grows_when_printed(tmp_path: Path) -> None:
    laughs = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 60))
    for field in ("names: [*a59]", "nc: *a59", "kpt_shape: *a59\nnc: 1", "kpt_shape: [1, 2]\nkpt_names: [*a59]\nnc: 1"):
        root = make_yolo(tmp_path / str(hash(field)), {}, f"{laughs}train: images\n{field}\n")
        with pytest.raises(DataError) as caught:
            read_one(root)
        assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    ("yaml", "words"),
    [
        ("train: [images\nnames", ["expected YAML"]),
        ("- a\n- b\n", ["expected a mapping", "list"]),
        ("", ["expected a mapping", "nothing"]),
        ("train: images/train\nnames: 3\n", ["names", "got 3"]),
        ("train: images/train\nnames: [no, yes]\n", ["names[0]", "quotes"]),
        ("train: images/train\nnames: {1: a, 2: b}\n", ["names", "[1, 2]"]),
        ("train: images/train\nnames: [a, a]\n", ["duplicate names"]),
        ("train: images/train\nnames: [a]\nnames: [b]\n", ["duplicate key 'names'"]),
        ("train: images/train\nnames: [a]\nnc: 2\n", ["nc", "got 2"]),
        ("train: images/train\nnc: many\n", ["nc", "'many'"]),
        ("train: images/train\nnc: 1\nkpt_shape: [0, 7]\n", ["kpt_shape", "[0, 7]"]),
        ("train: images/train\nnc: 1\nkpt_shape: [2, 3]\nflip_idx: [0, 0]\n", ["flip_idx"]),
        ("train: 7\nnc: 1\n", ["train", "got 7"]),
        ("train: nowhere\nnc: 1\n", ["nowhere", "no such file"]),
        ("nc: 1\n", ["any split"]),
        ("[" * 5000, ["data.yaml"]),
    ],
)
def test_bad_yaml(tmp_path: Path, yaml: str, words: list[str]) -> None:
    root = make_yolo(tmp_path, {"a": ""}, yaml)
    with pytest.raises(DataError) as caught:
        read_one(root)
    assert all(word in str(caught.value) for word in words)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("0 0.5 0.5 0.2", ["line 2", "got 4 words"]),
        ("0 0.5 0.5 0.2 x", ["line 2: word 5", "'x'"]),
        ("cat 0.5 0.5 0.2 0.4", ["line 2: word 1", "'cat'"]),
        ("0 0.5 0.5 nan 0.4", ["line 2: word 4", "'nan'"]),
        ("2 0.5 0.5 0.2 0.4", ["line 2", "0..1", "got 2"]),
        ("-1 0.5 0.5 0.2 0.4", ["line 2", "got -1"]),
        ("0.5 0.5 0.5 0.2 0.4", ["line 2", "got 0.5"]),
        ("0 100 50 20 40", ["line 2", "fractions"]),
        ("0 0.5 0.5 -0.2 0.4", ["line 2", "negative"]),
        ("0 0.5 0.5 0.2 0.4 0.9", ["confidence"]),
    ],
)
def test_a_bad_line_is_named_and_the_rest_is_read(tmp_path: Path, line: str, words: list[str]) -> None:
    good = "1 0.5 0.5 0.2 0.4\n"
    root = make_yolo(tmp_path, {"a": f"{good}{line}\n", "b": good})
    problems: list[DataError] = []
    dataset = yolo.read(yolo.find(root)[0], report=problems.append)
    assert all(word in str(problems[0]) for word in [*words, "labels/train/"])
    if "confidence" not in words:
        assert len(problems) == 1
        assert objects_of(dataset).image_index.tolist() == [0, 1]
    with pytest.raises(DataError):
        read_one(root)


@pytest.mark.parametrize(
    ("damaged", "good", "words"),
    [
        ("0 .1 .1 .2 .1 .2 .2 .3", "0 .1 .1 .2 .1 .2 .2", ["7 numbers", "one is a confidence"]),
        ("0 .1 .1 .2 .2 .9", "0 .1 .1 .2 .2", ["5 numbers"]),
        ("0 .1 .1 .2 .2", "0 .1 .1 .2 .2 .9", ["no confidence"]),
        ("0 .1 .1 .2 .1 .2 .2 1.5", "0 .1 .1 .2 .1 .2 .2", ["0..1"]),  # faulty already, so no reason to blame others
    ],
)
def test_of_lines_with_and_without_a_confidence_the_rarer_are_blamed(
    tmp_path: Path, damaged: str, good: str, words: list[str]
) -> None:
    root = make_yolo(tmp_path, {"a": f"{good}\n{good}\n{damaged}\n", "b": good})
    problems: list[DataError] = []
    dataset = yolo.read(yolo.find(root)[0], report=problems.append)
    assert len(problems) == 1
    assert all(word in str(problems[0]) for word in ["a.txt: line 3", *words])
    assert objects_of(dataset).image_index.tolist() == [0, 0, 1]


def test_unreadable_images_and_labels_are_left_out(tmp_path: Path) -> None:
    root = make_yolo(tmp_path, {"a": "0 .5 .5 .2 .4", "b": "1 .5 .5 .2 .4", "c": ""})
    (root / "images/train/a.png").write_bytes(b"")
    (root / "labels/train/c.txt").write_bytes(b"\xff\xfe\x00")
    problems: list[DataError] = []
    dataset = yolo.read(yolo.find(root)[0], report=problems.append)
    assert [problem.file.name for problem in problems if problem.file] == ["a.png", "c.txt"]
    assert dataset.images.ids == ("b", "c")
    assert objects_of(dataset).labels.tolist() == [1]


def made(root: Path, objects: Objects, categories: Categories | None = None) -> Dataset:
    files = ("one/x.png", "two/x.png")
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (37, 23)).save(root / file)
    images = Images(root, files, np.tile([23, 37], (2, 1)), ids=files)
    return Dataset(root, "made", images, categories or Categories(("no", "b c", "1")), objects, split="val")


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 10_000),
    count=st.integers(0, 8),
    kind=st.sampled_from(["boxes", "polygons", "squares", "corners", "keypoints"]),
    scored=st.booleans(),
)
def test_what_is_written_comes_back(
    tmp_path_factory: pytest.TempPathFactory, seed: int, count: int, kind: str, scored: bool
) -> None:
    root, rng = tmp_path_factory.mktemp("yolo"), np.random.default_rng(seed)
    corner = rng.uniform(0, 14, (count, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(0.1, 9, (count, 2))], axis=1)
    categories, more = Categories(("no", "b c", "1")), {}
    if kind in ("polygons", "squares"):
        sizes = rng.integers(3, 9, count) if kind == "polygons" else np.full(count, 4)
        rings = [rng.uniform(0, 23, (size, 2)) for size in sizes]
        boxes = np.array([[*ring.min(0), *ring.max(0)] for ring in rings]).reshape(-1, 4)
        more["segmentations"] = Segmentations.build([[ring] for ring in rings])
    elif kind == "corners":
        more["corners_xy"] = rng.uniform(0, 23, (count, 4, 2))
        boxes = np.concatenate([more["corners_xy"].min(1), more["corners_xy"].max(1)], axis=1)
    elif kind == "keypoints":
        more["keypoints"] = np.concatenate(
            [rng.uniform(1, 20, (count, 2, 2)), rng.integers(1, 3, (count, 2, 1))], axis=2
        )
        names = KeypointNames(("left_eye", "right_eye"))
        categories = Categories(categories.names, keypoints=tuple((name, names) for name in categories))
    if scored:
        more["scores"] = rng.random(count)
    objects = Objects.build(
        image_index=np.sort(rng.integers(0, 2, count)), labels=rng.integers(0, 3, count), boxes_xyxy=boxes, **more
    )
    dataset = made(root / "source", objects, categories)
    assert {loss.kind for loss in yolo.write(dataset, root / "target")} <= ({"areas"} if count else {"keypoint_names"})
    back = read_one(root / "target")
    assert (back.split, len(back)) == ("val", 2)
    assert back.categories.names == categories.names
    if kind == "keypoints" and count:
        assert back.categories == categories
    read_back = objects_of(back)
    for name in ("image_index", "labels"):
        np.testing.assert_array_equal(getattr(read_back, name), getattr(objects, name))
    for name in ("boxes_xyxy", *more):
        if name != "segmentations" and count:
            np.testing.assert_allclose(getattr(read_back, name), getattr(objects, name), atol=1e-9, rtol=0)
    if "segmentations" in more and count:
        assert read_back.segmentations is not None
        for row, ring in enumerate(rings):
            np.testing.assert_allclose(read_back.segmentations.polygons(row)[0][: len(ring)], ring, atol=1e-9)


def test_holes_parts_and_moved_boxes_are_reported_and_the_largest_ring_is_written(tmp_path: Path) -> None:
    masks = np.zeros((2, 23, 37), dtype=bool)
    masks[0, 2:12, 2:12], masks[0, 5:8, 5:8] = True, False
    masks[1, 1:4, 1:4], masks[1, 10:20, 10:30] = True, True
    rle = Masks.from_dense(masks).to_rle()
    objects = Objects.build(
        image_index=[0, 0],
        labels=[0, 1],
        boxes_xyxy=rle.boxes_xyxy(),
        is_crowd=[False, True],
        segmentations=Segmentations.build([one["counts"] for one in rle.rle()]),  # type: ignore[misc]
    )
    losses = yolo.write(made(tmp_path / "source", objects), tmp_path / "target", images="link")
    assert {(loss.kind, loss.object_id) for loss in losses} == {
        ("holes", 1), ("parts", 2), ("crowd", 2), ("box", 2), ("areas", None)
    }  # fmt: skip
    outlines = objects_of(read_one(tmp_path / "target")).segmentations
    assert outlines is not None
    expected = masks.copy()
    expected[0, 5:8, 5:8], expected[1, 1:4, 1:4] = True, False
    read_masks = outlines.masks([0, 1], (23, 37))
    assert read_masks is not None
    np.testing.assert_array_equal(read_masks.dense(), expected)


def test_what_most_objects_have_is_written(tmp_path: Path) -> None:
    ring = np.array([[1.0, 1], [9, 1], [9, 9]])
    points = np.array([[[3.0, 3, 2]], [[0, 0, 0]], [[0, 0, 0]]])
    objects = Objects.build(
        image_index=[0, 0, 1],
        labels=[0, 1, 2],
        boxes_xyxy=[[1, 1, 9, 9]] * 3,
        segmentations=Segmentations.build([[ring], [ring], None]),
        keypoints=points,
    )
    losses = yolo.write(made(tmp_path / "source", objects), tmp_path / "target")
    assert [(loss.kind, loss.object_id) for loss in losses] == [("keypoints", 1), ("areas", None)]
    back = objects_of(read_one(tmp_path / "target"))
    assert back.segmentations is not None
    assert back.segmentations.kinds.tolist() == [
        SegmentationKind.POLYGONS,
        SegmentationKind.POLYGONS,
        SegmentationKind.NONE,
    ]
    np.testing.assert_allclose(back.boxes_xyxy, objects.boxes_xyxy, atol=1e-9)


def test_confidences_of_some_are_reported(tmp_path: Path) -> None:
    objects = Objects.build(
        image_index=[0, 0], labels=[0, 1], boxes_xyxy=[[1, 1, 9, 9]] * 2, scores=np.array([0.5, np.nan])
    )
    losses = yolo.write(made(tmp_path / "source", objects), tmp_path / "target")
    assert [(loss.kind, loss.object_id) for loss in losses] == [("score", 1)]
    assert objects_of(read_one(tmp_path / "target")).scores is None


def fractions(folder: Path) -> np.ndarray:
    """All numbers of all lines but for the categories, as they stand in the files."""
    lines = [line for file in sorted(folder.rglob("labels/**/*.txt")) for line in file.read_text().splitlines()]
    return np.array([float(word) for line in lines for word in line.split()[1:]])


def test_what_lies_beyond_the_image_is_cut_off_and_reported(tmp_path: Path) -> None:
    boxes = [[-80, 0, 120, 20], [1, 1, 9, 9], [80, 1, 90, 9], [-37, 0, 30, 23], [9, 1, 5, 9], [0, 0, 37.00001, 23]]
    scores = np.array([0.5, 1, 0, 0.2, 0.3, 0.4])
    objects = Objects.build(image_index=[0, 0, 0, 1, 1, 1], labels=[0] * 6, boxes_xyxy=boxes, scores=scores)
    losses = yolo.write(made(tmp_path / "boxes", objects), tmp_path / "of boxes")
    assert [(loss.kind, loss.image, loss.object_id) for loss in losses if loss.kind != "areas"] == [
        ("object", "one/x.png", 3), ("object", "two/x.png", 5), ("box", "one/x.png", 1), ("box", "two/x.png", 4),
        ("box", "", None),
    ]  # fmt: skip
    back = objects_of(read_one(tmp_path / "of boxes"))
    expected = [[0, 0, 37, 20], [1, 1, 9, 9], [0, 0, 30, 23], [0, 0, 37, 23]]
    np.testing.assert_allclose(back.boxes_xyxy, expected, atol=1e-9)
    assert back.scores is not None
    assert back.scores.tolist() == [0.5, 1, 0.2, 0.4]


@pytest.mark.parametrize("kind", ["corners", "outline", "run lengths beside a far box"])
def test_no_number_of_a_line_is_beyond_0_and_1(tmp_path: Path, kind: str) -> None:
    rings = np.array([[[-4.0, 4], [8, 4], [8, 8], [-4, 8]], [[30, 15], [38.4, 15], [38.4, 22], [30, 22]]])
    more: dict[str, object] = {"corners_xy": rings}
    if kind == "outline":
        more = {"segmentations": Segmentations.build([[ring] for ring in rings])}
    elif kind == "run lengths beside a far box":
        masks = np.zeros((2, 23, 37), dtype=bool)
        masks[0, 4:8, :8], masks[1, 15:22, 30:] = True, True
        counts = [one["counts"] for one in Masks.from_dense(masks).to_rle().rle()]
        more = {"segmentations": Segmentations.build(counts)}  # type: ignore[arg-type]
    boxes = np.concatenate([rings.min(axis=1), rings.max(axis=1)], axis=1)
    objects = Objects.build(image_index=[0, 1], labels=[0, 1], boxes_xyxy=boxes, **more)
    losses = yolo.write(made(tmp_path / "source", objects), tmp_path / "target")
    told = {(loss.kind, loss.object_id) for loss in losses} - {("areas", None)}
    assert told == {(what, row) for what in {kind, "box"} & {"corners", "outline", "box"} for row in (1, 2)}
    assert 0 <= fractions(tmp_path / "target").min() <= fractions(tmp_path / "target").max() <= 1
    back = objects_of(read_one(tmp_path / "target"))
    np.testing.assert_allclose(back.boxes_xyxy, [[0, 4, 8, 8], [30, 15, 37, 22]], atol=1e-9)


def test_an_outline_keeps_its_slopes_when_it_is_cut(tmp_path: Path) -> None:
    ring = np.array([[-20.0, 1], [50, 12], [-20, 20]])
    outlines = Segmentations.build([[ring]])
    objects = Objects.build(image_index=[0], labels=[0], boxes_xyxy=[[-20, 1, 50, 20]], segmentations=outlines)
    yolo.write(made(tmp_path / "source", objects), tmp_path / "target")
    segmentations = objects_of(read_one(tmp_path / "target")).segmentations
    assert segmentations is not None
    points = {tuple(point) for point in segmentations.polygons(0)[0].round(6).tolist()}
    heights = [(0, 1 + 20 * 11 / 70), (37, 1 + 57 * 11 / 70), (37, 12 + 13 * 8 / 70), (0, 12 + 50 * 8 / 70)]
    assert points == {(x, round(y, 6)) for x, y in heights}


def test_polygons_of_four_points_are_closed_whatever_is_left_out(tmp_path: Path) -> None:
    square, far = np.array([[1.0, 1], [9, 1], [9, 9], [1, 9]]), np.array([[800.0, 1], [900, 1], [800, 9]])
    boxes = [[*ring.min(axis=0), *ring.max(axis=0)] for ring in (square, far)]
    rings = Segmentations.build([[square], [far]])
    objects = Objects.build(image_index=[0, 0], labels=[0, 1], boxes_xyxy=boxes, segmentations=rings)
    losses = yolo.write(made(tmp_path / "source", objects), tmp_path / "target")
    assert ("object", 2) in [(loss.kind, loss.object_id) for loss in losses]
    back = objects_of(read_one(tmp_path / "target"))
    assert back.corners_xy is None
    assert back.segmentations is not None
    np.testing.assert_allclose(back.segmentations.polygons(0)[0][:4], square)


def test_keypoints_beyond_the_image_are_left_out(tmp_path: Path) -> None:
    keypoints = np.array([[[3.0, 3, 2], [4, 4, 2]], [[38, 3, 2], [5, 5, 1]], [[3, 3, 2], [-9, 3, 0]]])
    objects = Objects.build(image_index=[0] * 3, labels=[0, 1, 2], boxes_xyxy=[[1, 1, 9, 9]] * 3, keypoints=keypoints)
    losses = yolo.write(made(tmp_path / "source", objects), tmp_path / "target")
    assert [(loss.kind, loss.object_id) for loss in losses] == [("keypoints", 2)]
    read_keypoints = objects_of(read_one(tmp_path / "target")).keypoints
    assert read_keypoints is not None
    np.testing.assert_allclose(read_keypoints[1], [[0, 0, 0], [5, 5, 1]], atol=1e-9)


@pytest.mark.parametrize(("format", "suffix"), [("PNG", ".png"), ("JPEG", ".jpg"), ("TIFF", ".tiff")])
def test_images_without_a_suffix_get_one(tmp_path: Path, format: str, suffix: str) -> None:
    (tmp_path / "source").mkdir()
    for file in ("v1.2", "dashcam"):
        Image.new("RGB", (20, 10)).save(tmp_path / "source" / file, format=format)
    images = Images(tmp_path / "source", ("v1.2", "dashcam"), np.array([[10, 20]] * 2), (1, 2))
    objects = Objects.build(image_index=[0, 1], labels=[0, 0], boxes_xyxy=[[0, 0, 4, 4]] * 2)
    dataset = Dataset(tmp_path, "coco", images, Categories(("cat",)), objects)
    yolo.write(dataset, tmp_path / "target")
    back = read_one(tmp_path / "target")
    assert back.images.files == (f"images/train/dashcam{suffix}", f"images/train/v1.2{suffix}")
    assert objects_of(back).image_index.tolist() == [0, 1]


def test_the_description_has_no_path(tmp_path: Path) -> None:
    yolo.write(made(tmp_path / "source", Objects.empty()), tmp_path / "target")
    assert (tmp_path / "target/data.yaml").read_text().startswith("val: images/val\nnames:\n")


def test_scores_that_are_no_confidences_are_reported(tmp_path: Path) -> None:
    scores = np.array([0.5, 1.5])
    objects = Objects.build(image_index=[0, 0], labels=[0, 1], boxes_xyxy=[[1, 1, 9, 9]] * 2, scores=scores)
    losses = yolo.write(made(tmp_path / "source", objects), tmp_path / "target")
    assert [(loss.kind, loss.object_id) for loss in losses] == [("score", 1), ("score", 2)]
    back = objects_of(read_one(tmp_path / "target"))
    assert (len(back), back.scores) == (2, None)


def test_real_oriented_boxes(shared_data: Path) -> None:
    layouts = yolo.find(shared_data / "dota8")
    assert [layout.split for layout in layouts] == ["train", "val"]
    datasets = [yolo.read(layout) for layout in layouts]
    assert [len(dataset) for dataset in datasets] == [4, 4]
    assert sum(len(objects_of(dataset)) for dataset in datasets) == 133
    assert datasets[0].categories == datasets[1].categories
    plane = datasets[0].images.ids.index("P1142__1024__0___824")
    corners = objects_of(datasets[0]).corners_xy
    assert corners is not None
    (row,) = np.flatnonzero(objects_of(datasets[0]).image_index == plane)
    # The file says 0.779296 0.690429 0.625976 0.451171 0.88965 0.266601 1.04199 0.51465 of 1024 pixels.
    np.testing.assert_allclose(corners[row, 0], [797.999, 706.999], atol=1e-3)
    np.testing.assert_allclose(corners[row, 3], [1066.998, 527.0016], atol=1e-3)


def test_splits_keep_their_folders_in_coco_and_back(tmp_path):
    root = tmp_path / "yolo"
    for split, name in (("train", "a"), ("val", "b")):
        write_image(root / f"images/{split}/{name}.jpg", np.zeros((50, 100, 3), np.uint8))
        (root / f"labels/{split}").mkdir(parents=True)
        (root / f"labels/{split}/{name}.txt").write_text("1 0.5 0.5 0.25 0.5\n")
    (root / "data.yaml").write_text("train: images/train\nval: images/val\nnames: {0: cat, 1: dog}\n")
    convert(root, tmp_path / "coco", to="coco")
    convert(root, tmp_path / "one", to="coco", split="val")
    convert(tmp_path / "coco", tmp_path / "again", to="yolo")
    convert(tmp_path / "coco", tmp_path / "coco again", to="coco")

    def files(folder: str, part: str) -> list[str]:
        return sorted(file.relative_to(tmp_path / folder).as_posix() for file in (tmp_path / folder).rglob(part))

    both = ["images/train/a.jpg", "images/val/b.jpg"]
    assert files("coco", "*.jpg") == files("again", "*.jpg") == files("coco again", "*.jpg") == both
    assert files("one", "*.jpg") == both[1:]
    assert files("again", "*.txt") == files("yolo", "*.txt")
    for split in ("train", "val"):
        first, through, again = (open_dataset(tmp_path / name, split=split) for name in ("yolo", "coco", "again"))
        assert through.objects is not None
        for other in (through, again):
            np.testing.assert_array_equal(objects_of(other).boxes_xyxy, objects_of(first).boxes_xyxy)
            assert other[0].image.shape == (50, 100, 3)
