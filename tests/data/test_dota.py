from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from otus.data.dataset import Dataset
from otus.data.formats import dota
from otus.errors import DataError
from otus.structures import Objects

HEADER = "imagesource:GoogleEarth\ngsd:0.25\n"


def make(root: Path, labels: dict[str, str], *, labelled: str = "labelTxt", images: str = "images") -> Path:
    for part in (labelled, images):
        (root / part).mkdir(parents=True, exist_ok=True)
    for stem, text in labels.items():
        (root / labelled / f"{stem}.txt").write_text(text)
        Image.new("RGB", (200, 100)).save(root / images / f"{stem}.png")
    return root


def read_all(root: Path) -> tuple[Dataset, Objects, list[DataError]]:
    (layout,) = dota.find(root)
    problems: list[DataError] = []
    dataset = dota.read(layout, report=problems.append)
    assert dataset.objects is not None
    return dataset, dataset.objects, problems


@pytest.mark.parametrize("mixed", [False, True])
def test_corners_by_hand(tmp_path: Path, mixed: bool) -> None:
    text = f"{HEADER}10 20 30 20 30 60 10 60 ship 0\n0 0 4 4 0 8 -4 4 plane 1\n"
    where = {"labelled": ".", "images": "."} if mixed else {}
    dataset, objects, problems = read_all(make(tmp_path, {"a": text, "b": "1 1 2 1 2 2 1 2 ship\n"}, **where))
    assert problems == []
    assert dataset.images.size_hw(0) == (100, 200)
    assert dataset.categories.names == dota.NAMES[:15]
    assert [dataset.categories[i] for i in objects.labels] == ["ship", "plane", "ship"]
    assert objects.image_index.tolist() == [0, 0, 1]
    assert objects.corners_xy is not None
    assert objects.corners_xy[1].tolist() == [[0, 0], [4, 4], [0, 8], [-4, 4]]
    assert objects.boxes_xyxy[:2].tolist() == [[10, 20, 30, 60], [-4, 0, 4, 8]]
    assert objects.areas.tolist() == [800, 32, 1]
    assert objects.columns["difficult"].tolist() == [False, True, False]
    oriented = dataset.instances(0).oriented_boxes_xywhr
    assert oriented is not None
    np.testing.assert_allclose(oriented[1], [0, 4, 32**0.5, 32**0.5, np.pi / 4])


def test_later_names_and_other_names(tmp_path: Path) -> None:
    line = "10 20 30 20 30 60 10 60 {} 0\n"
    assert read_all(make(tmp_path / "a", {"a": line.format("container-crane")}))[0].categories.names == dota.NAMES[:16]
    both = line.format("ship") + line.format("canoe")
    assert read_all(make(tmp_path / "b", {"a": both}))[0].categories.names == ("canoe", "ship")


def test_splits_mean_the_same(tmp_path: Path) -> None:
    for split, name in (("train", "canoe"), ("val", "barge")):
        make(tmp_path / split, {"a": f"10 20 30 20 30 60 10 60 {name} 0\n"})
    layouts = dota.find(tmp_path)
    assert [layout.split for layout in layouts] == ["train", "val"]
    assert [dota.read(layout).categories.names for layout in layouts] == [("barge", "canoe")] * 2


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("10 20 30 20 30 60 10 ship 0", ["line 4: word 8", "'ship'"]),
        ("10 20 30 20 30 60 10 60", ["line 4", "got 8 words"]),
        ("10 20 30 x 30 60 10 60 ship 0", ["line 4: word 4", "'x'"]),
        ("10 20 30 inf 30 60 10 60 ship 0", ["line 4: word 4", "'inf'"]),
        ("10 20 30 20 30 60 10 60 ship hard", ["line 4", "difficult", "'hard'"]),
        ("imagesource:twice", ["line 4", "got 1 words"]),
    ],
)
def test_a_bad_line_is_named_and_the_rest_is_read(tmp_path: Path, line: str, words: list[str]) -> None:
    good = "10 20 30 20 30 60 10 60 ship 0\n"
    _, objects, problems = read_all(make(tmp_path, {"a": f"{HEADER}{good}{line}\n{good}"}))
    assert len(problems) == 1
    assert all(word in str(problems[0]) for word in [*words, "a.txt"])
    assert len(objects) == 2


def test_real_labels(shared_data: Path) -> None:
    folder = shared_data / "dota8" / "dota_devkit_example"
    dataset, objects, problems = read_all(folder)
    assert dataset.images.ids == ("P0706", "P1888")
    assert {problem.kind for problem in problems} == {"missing_image"}
    assert len(problems) == 5
    lines = (folder / "labelTxt" / "P0706.txt").read_text().splitlines()[2:]
    assert (objects.image_index == 0).sum() == len(lines)
    assert objects.corners_xy is not None
    expected = [[float(word) for word in line.split()[:8]] for line in lines]
    np.testing.assert_array_equal(objects.corners_xy[: len(lines)].reshape(-1, 8), expected)
