"""Ignore regions from files of every kind that has them: judged by none, learnt by none, and lost only with a word."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import otus
from otus.cli import app
from otus.data.conversion import convert
from otus.data.image_writing import write_image
from otus.data.open import open_dataset
from otus.structures import Objects

OBJECT, INSIDE = (5.0, 6, 25, 26), (42.0, 12, 58, 28)
REGION = (40.0, 10, 80, 40)


def image(path: Path) -> None:
    path.parent.mkdir(parents=True)
    write_image(path, np.random.default_rng(0).integers(0, 256, (50, 100, 3), dtype=np.uint8))


def kitti(root: Path) -> None:
    image(root / "training/image_2/a.png")
    (root / "training/label_2").mkdir()
    rows = [("Car", OBJECT, "1.5 1.6 4 2 1.7 20 0"), ("DontCare", REGION, "-1 -1 -1 -1000 -1000 -1000 -10")]
    lines = [f"{name} 0 0 0 {' '.join(map(str, box))} {rest}" for name, box, rest in rows]
    (root / "training/label_2/a.txt").write_text("\n".join(lines))


def visdrone_as_coco(root: Path) -> None:
    image(root / "images/a.png")
    annotations = [
        {"id": k, "image_id": 1, "category_id": k, "bbox": [x1, y1, x2 - x1, y2 - y1], "iscrowd": 0}
        for k, (x1, y1, x2, y2) in ((0, REGION), (1, OBJECT))
    ]
    categories = [{"id": 0, "name": "ignored regions"}, {"id": 1, "name": "Car"}]
    images = [{"id": 1, "file_name": "a.png", "width": 100, "height": 50}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (root / "annotations.json").write_text(json.dumps(content))


def visdrone_as_yolo(root: Path) -> None:
    image(root / "images/a.png")
    (root / "labels").mkdir()
    (root / "data.yaml").write_text("train: images\nnames: [ignored_regions, Car]\n")
    boxes = [(0, REGION), (1, OBJECT)]
    lines = [f"{k} {(a + c) / 200} {(b + d) / 100} {(c - a) / 100} {(d - b) / 50}" for k, (a, b, c, d) in boxes]
    (root / "labels/a.txt").write_text("\n".join(lines))


def labelme(root: Path) -> None:
    image(root / "a.png")
    shapes = [
        {"label": name, "shape_type": "rectangle", "points": [list(box[:2]), list(box[2:])]}
        for name, box in (("__ignore__", REGION), ("Car", OBJECT))
    ]
    content = {"version": "5.0", "flags": {}, "shapes": shapes, "imagePath": "a.png", "imageData": None}
    (root / "a.json").write_text(json.dumps(content | {"imageHeight": 50, "imageWidth": 100}))


MAKERS = [kitti, visdrone_as_coco, visdrone_as_yolo, labelme]


@pytest.mark.parametrize("protocol", ["coco", "voc07", "voc12"])
@pytest.mark.parametrize("make", MAKERS)
def test_a_detection_in_a_region_is_not_false(tmp_path: Path, make: Callable[[Path], None], protocol: str) -> None:
    make(tmp_path / "data")
    dataset = open_dataset(tmp_path / "data")
    assert dataset.objects is not None
    car = dataset.categories.index("Car")
    predictions = Objects.build(
        image_index=[0, 0], labels=[car, car], boxes_xyxy=[INSIDE, OBJECT], scores=np.array([0.9, 0.5])
    )
    figures = otus.evaluate(dataset, predictions=predictions, protocol=protocol).results["bbox"]
    assert figures.figures["AP"] == pytest.approx(1)
    assert np.isnan([one["AP"] for name, one in figures.per_category.items() if name != "Car"]).all()


def test_the_page_of_an_ap_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    visdrone_as_coco(tmp_path / "data")
    records = [
        {"image_id": 1, "category_id": 1, "bbox": [x1, y1, x2 - x1, y2 - y1], "score": score}
        for score, (x1, y1, x2, y2) in ((0.9, INSIDE), (0.5, OBJECT))
    ]
    (tmp_path / "found.json").write_text(json.dumps(records))
    options = ["--data", "data/annotations.json", "--predictions", "found.json", "--category", "Car", "--json"]
    done = CliRunner().invoke(app, ["explain", "ap", *options])
    assert done.exit_code == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["AP"] == pytest.approx(1)
    assert document["detections"][0]["why"] == "is in an ignore region"


@pytest.mark.parametrize("make", MAKERS)
def test_regions_are_not_learnt(tmp_path: Path, make: Callable[[Path], None]) -> None:
    torch = pytest.importorskip("torch")
    from otus.data.tensors import to_tensors
    from otus.parts.batching import make_target
    from otus.parts.boxes.matching import NEUTRAL, IoUMatcher

    make(tmp_path / "data")
    dataset = open_dataset(tmp_path / "data")
    target = make_target(to_tensors(dataset[0]), category_count=len(dataset.categories), device=torch.device("cpu"))
    np.testing.assert_allclose(target.boxes.numpy(), [OBJECT], atol=1e-4)
    np.testing.assert_allclose(target.crowds.numpy(), [REGION], atol=1e-4)
    matches = IoUMatcher(0.5, 0.3)(torch.tensor([INSIDE]), target.boxes, crowds=target.crowds)
    assert matches.tolist() == [NEUTRAL]


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("to", ["coco", "voc", "yolo", "labelme"])
def test_conversions_keep_them_or_say_so(tmp_path: Path, make: Callable[[Path], None], to: str) -> None:
    make(tmp_path / "data")
    done = convert(tmp_path / "data", tmp_path / "out", to=to)
    lost = {loss.kind for loss in done.losses} & {"crowd", "ignored"}
    assert lost == (set() if to in ("coco", "labelme") else {"crowd", "ignored"})
    again = open_dataset(tmp_path / "out")
    assert again.objects is not None
    assert sorted(again.objects.is_crowd.tolist()) == [False, True]  # by the category's name where the flag is lost
