from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from otus.data.dataset import Dataset
from otus.data.formats import kitti
from otus.errors import DataError
from otus.structures import Objects

CAR = "Car 0.25 2 -1.5 10.5 20 90 60  1.5 1.6 4.0  2.0 1.7 20.0  {rotation}"
DONT_CARE = "DontCare -1 -1 -10 5 6 7 8 -1 -1 -1 -1000 -1000 -1000 -10"


def make(root: Path, text: str) -> Path:
    for part in ("image_2", "label_2"):
        (root / "training" / part).mkdir(parents=True)
    Image.new("RGB", (120, 70)).save(root / "training/image_2/000000.png")
    (root / "training/label_2/000000.txt").write_text(text)
    return root


def read_all(root: Path) -> tuple[Dataset, Objects, list[DataError]]:
    (layout,) = kitti.find(root)
    problems: list[DataError] = []
    dataset = kitti.read(layout, report=problems.append)
    assert dataset.objects is not None
    return dataset, dataset.objects, problems


def test_boxes_and_columns_by_hand(tmp_path: Path) -> None:
    dataset, objects, problems = read_all(make(tmp_path, f"{CAR.format(rotation=0.1)}\n{DONT_CARE}\n"))
    assert (problems, dataset.split, dataset.images.files) == ([], "training", ("training/image_2/000000.png",))
    assert [dataset.categories[i] for i in objects.labels] == ["Car", "DontCare"]
    assert objects.boxes_xyxy.tolist() == [[10.5, 20, 90, 60], [5, 6, 7, 8]]
    assert objects.is_crowd.tolist() == objects.columns["ignored"].tolist() == [False, True]
    assert objects.columns["truncated"].tolist() == [0.25, 0]
    assert objects.columns["occluded"].tolist() == [2, 0]
    assert objects.columns["alpha"].tolist() == [-1.5, 0]
    assert objects.scores is None
    assert objects.cuboids is not None
    assert np.isnan(objects.cuboids[1]).all()


# In KITTI rotation_y 0 points along x (right of the camera), -pi/2 along z (away from it).
@pytest.mark.parametrize(
    ("rotation", "yaw"), [(0.0, -np.pi / 2), (-np.pi / 2, 0.0), (np.pi / 2, np.pi), (3.0, 2 * np.pi - 3 - np.pi / 2)]
)
def test_cuboids_have_z_up_and_x_forward(tmp_path: Path, rotation: float, yaw: float) -> None:
    _, objects, _ = read_all(make(tmp_path, CAR.format(rotation=rotation)))
    assert objects.cuboids is not None
    # 20 m ahead, 2 m to the right, the bottom 1.7 m below the camera, 1.5 m high.
    np.testing.assert_allclose(objects.cuboids[0], [20, -2, -0.95, 4, 1.6, 1.5, yaw], atol=1e-12)


def test_corners_of_the_cuboid_are_those_of_the_development_kit(tmp_path: Path) -> None:
    rotation = 0.7
    _, objects, _ = read_all(make(tmp_path, CAR.format(rotation=rotation)))
    assert objects.cuboids is not None
    x, y, _, length, width, _, yaw = objects.cuboids[0]
    sine, cosine = np.sin(rotation), np.cos(rotation)
    for along, across in ((1, 1), (1, -1), (-1, 1), (-1, -1)):
        # devkit: R = [cos 0 sin; 0 1 0; -sin 0 cos] on corners (± l/2, 0, ± w/2), then moved to (2.0, 1.7, 20.0)
        a, b = along * 4.0 / 2, across * 1.6 / 2
        x_camera, z_camera = cosine * a + sine * b + 2, -sine * a + cosine * b + 20
        c, d = along * length / 2, across * width / 2
        ours = x + np.cos(yaw) * c - np.sin(yaw) * d, y + np.sin(yaw) * c + np.cos(yaw) * d
        np.testing.assert_allclose(ours, (z_camera, -x_camera), atol=1e-12)


def test_scores_of_results(tmp_path: Path) -> None:
    _, objects, problems = read_all(make(tmp_path, f"{CAR.format(rotation=0)} 0.9\n{DONT_CARE} 0.1\n"))
    assert problems == []
    assert objects.scores is not None
    assert objects.scores.tolist() == [0.9, 0.1]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("Car 0 0", ["got 3 words"]),
        (CAR.format(rotation="x"), ["word 15", "'x'"]),
        (CAR.format(rotation="nan"), ["word 15", "'nan'"]),
        (CAR.format(rotation=0).replace("10.5", "95"), ["left <= right", "95"]),
        (CAR.format(rotation=0) + " 0.5", ["got 16 words", "score"]),
    ],
)
def test_a_bad_line_is_named_and_the_rest_is_read(tmp_path: Path, line: str, words: list[str]) -> None:
    _, objects, problems = read_all(make(tmp_path, f"{DONT_CARE}\n{line}\n{DONT_CARE}\n"))
    assert len(problems) == 1
    assert all(word in str(problems[0]) for word in [*words, "000000.txt", "line 2"])
    assert len(objects) == 2


def test_no_labels_and_no_data(tmp_path: Path) -> None:
    root = make(tmp_path / "set", "")
    (root / "training/label_2/000000.txt").unlink()
    assert len(read_all(root)[1]) == 0
    assert kitti.find(tmp_path / "nowhere") == []
