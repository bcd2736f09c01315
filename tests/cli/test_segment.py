"""``otus segment``: prompts, masks and documents, and wrong usage."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from otus.cli import app
from otus.data.image_writing import write_image, write_label_image
from otus.data.images import read_image, read_label_image
from otus.data.open import open_dataset
from otus.data.video import VideoWriter
from otus.structures import Masks, Prompt

SIZE_HW = (48, 64)


def scene(center_x: int = 24) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(center_x)
    rows, columns = np.mgrid[: SIZE_HW[0], : SIZE_HW[1]]
    mask = np.hypot(columns - center_x, rows - 22) <= 12
    image = np.where(mask[..., None], [170, 70, 60], [60, 110, 90]) + rng.normal(0, 10, (*SIZE_HW, 3))
    return np.clip(image, 0, 255).astype(np.uint8), mask


@pytest.fixture(autouse=True)
def methods_without_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the methods that need no weights be the defaults: these tests are about prompts and files."""
    monkeypatch.setattr(
        "otus.interactive.methods.default_method",
        lambda prompt: "graph-cut" if prompt.box_xyxy is None else "grabcut",
    )


@pytest.fixture
def photo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_image("owl.png", scene()[0])
    return Path("owl.png")


@pytest.fixture
def folder(photo: Path) -> Path:
    for name, center_x in (("a.png", 20), ("b.png", 24), ("c.png", 28)):
        write_image(Path("photos") / name, scene(center_x)[0])
    return Path("photos")


def segment(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["segment", *map(str, arguments)])


def iou(one: np.ndarray, other: np.ndarray) -> float:
    return (one & other).sum() / (one | other).sum()


def dense(document: dict[str, Any]) -> np.ndarray:
    counts = [one["segmentation"]["counts"] for one in document["candidates"]]
    return Masks.from_rle(counts, (document["height"], document["width"])).dense()


@pytest.mark.parametrize(
    "options",
    [
        ["--point", "24,22,1"],
        ["--point", "24,22,1", "--point", "60,40,0"],
        ["--points-for", "1:24,22", "--point", "60,40,0"],
        ["--box", "8,6,42,38"],
        ["--box", "8,6,42,38", "--method", "grabcut"],
        ["--scribbles", "strokes.png"],
    ],
)
def test_a_mask_of_the_marked_object(photo: Path, options: list[str]) -> None:
    strokes = np.zeros(SIZE_HW, int)
    strokes[20:24, 20:28], strokes[44, 5:60] = 1, 255
    write_label_image("strokes.png", strokes)
    result = segment(photo, *options, "--json")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert iou(dense(document)[0], scene()[1]) > 0.95
    (record,) = document["candidates"]
    assert record["area"] == dense(document).sum()
    assert record["object"] == 1
    assert set(document["seconds"]) == {"embed", "segment"}
    assert document["method"] == ("grabcut" if "--box" in options else "graph-cut")
    assert not Path("owl-mask.png").exists()


def test_the_mask_and_the_overlay_are_written(photo: Path) -> None:
    result = segment(photo, "--points-for", "1:24,22", "--points-for", "3:58,40", "--overlay", "seen")
    assert result.exit_code == 0, result.output
    labels = read_label_image("owl-mask.png")
    assert set(np.unique(labels)) <= {0, 1, 3}
    assert iou(labels == 1, scene()[1]) > 0.95
    assert labels[40, 58] == 3
    assert read_image("seen.png").shape[0] >= SIZE_HW[0]
    assert "owl-mask.png" in result.stdout


@pytest.mark.parametrize("form", ["rle", "coco", "labelme"])
def test_other_forms_hold_the_same_mask(photo: Path, form: str) -> None:
    result = segment(photo, "--point", "24,22,1", "--format", form, "--out", "owl", "--json")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    written = json.loads(Path("owl.json").read_text())
    if form == "rle":
        assert written["candidates"] == document["candidates"]
        return
    dataset = open_dataset("owl.json" if form == "coco" else ".", format=form)
    masks = dataset.instances(list(dataset.images.files).index("owl.png")).masks
    assert masks is not None
    np.testing.assert_array_equal(masks.dense(), dense(document))


def test_a_folder_with_prompts_and_again(folder: Path) -> None:
    prompts = {"a.png": Prompt([[20, 22]], [1]).to_json(), "c.png": {"box_xyxy": [12, 6, 44, 38]}}
    Path("prompts.json").write_text(json.dumps(prompts))
    result = segment(folder, "--prompts", "prompts.json", "--out", "masks", "--format", "coco", "--overlay", "seen")
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in Path("seen").iterdir()) == ["a.png.png", "c.png.png"]
    dataset = open_dataset("masks/annotations.json")
    assert len(dataset) == 2
    before = Path("masks/annotations.json").read_bytes()
    Path("masks/c.png.json").unlink()
    (folder / "a.png").write_bytes(b"no longer an image")  # it is not read again
    again = segment(folder, "--prompts", "prompts.json", "--out", "masks", "--format", "coco")
    assert again.exit_code == 0, again.output
    assert "1 of them already there" in again.stdout
    areas = [
        [one["area"] for one in json.loads(text)["annotations"]]
        for text in (before, Path("masks/annotations.json").read_bytes())
    ]
    assert areas[0] == areas[1]


def test_a_changed_prompt_is_segmented_again(folder: Path) -> None:
    def run(prompt: dict[str, Any], *options: str) -> str:
        Path("prompts.json").write_text(json.dumps({"a.png": prompt}))
        result = segment(folder, "--prompts", "prompts.json", "--out", "masks", *options)
        assert result.exit_code == 0, result.output
        return result.stdout

    assert "already there" not in run({"points": [[20, 22, 1]]})
    assert iou(read_label_image("masks/a.png.png") == 1, scene(20)[1]) > 0.95
    assert "1 of them already there" in run({"points": [[20, 22, 1]]}, "--format", "labelme")
    assert json.loads(Path("masks/a.png.labelme.json").read_text())["shapes"]
    assert "already there" not in run({"points": [[60, 44, 1], [20, 22, 0]]})
    assert not read_label_image("masks/a.png.png")[22, 20]
    assert "already there" not in run({"box_xyxy": [6, 6, 36, 38]})
    assert "1 of them already there" in run({"box_xyxy": [6, 6, 36, 38]}, "--method", "grabcut")
    for broken in ("{", "[]", '{"candidates": []}'):
        Path("masks/a.png.json").write_text(broken)
        assert "already there" not in run({"box_xyxy": [6, 6, 36, 38]})


def test_one_bad_prompt_stops_no_other(folder: Path) -> None:
    Path("prompts.json").write_text(
        json.dumps({"a.png": {"points": [[900, 22, 1]]}, "b.png": {"points": [[24, 22, 1]]}})
    )
    result = segment(folder, "--prompts", "prompts.json", "--out", "masks")
    assert result.exit_code == 1
    assert "(900, 22) lies outside the image of 64x48" in result.stderr
    assert "a.png" in result.stderr
    assert iou(read_label_image("masks/b.png.png") == 1, scene(24)[1]) > 0.95


def test_frames_of_a_video(folder: Path) -> None:
    result = segment(folder, "--frames", "--point", "20,22,1", "--out", "masks")
    assert result.exit_code == 0, result.output
    for name, center_x in (("a", 20), ("b", 24), ("c", 28)):
        assert iou(read_label_image(f"masks/{name}.png.png") == 1, scene(center_x)[1]) > 0.9
    Path("masks/b.png.json").unlink()
    again = segment(folder, "--frames", "--point", "20,22,1", "--out", "masks", "--json")
    assert [len(one["candidates"]) for one in json.loads(again.stdout)["images"]] == [1, 1, 1]


def two_objects(shift: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rows, columns = np.mgrid[: SIZE_HW[0], : SIZE_HW[1]]
    left, right = (np.hypot(columns - x - shift, rows - 22) <= 9 for x in (15, 45))
    image = np.where(left[..., None], [170, 70, 60], np.where(right[..., None], [40, 60, 200], [60, 110, 90]))
    noise = np.random.default_rng(shift).normal(0, 10, (*SIZE_HW, 3))
    return np.clip(image + noise, 0, 255).astype(np.uint8), left, right


@pytest.fixture
def film(photo: Path) -> Path:
    for shift in range(3):
        write_image(Path("film") / f"{shift}.png", two_objects(shift)[0])
    return Path("film")


def test_objects_keep_their_numbers_from_frame_to_frame(film: Path) -> None:
    result = segment(film, "--frames", "--points-for", "2:15,22", "--points-for", "5:45,22", "--out", "masks")
    assert result.exit_code == 0, result.output
    for shift in range(3):
        labels, (_, left, right) = read_label_image(f"masks/{shift}.png.png"), two_objects(shift)
        assert set(np.unique(labels).tolist()) == {0, 2, 5}
        assert min(iou(labels == 2, left), iou(labels == 5, right)) > 0.9


def test_frames_follow_a_changed_prompt(film: Path) -> None:
    assert segment(film, "--frames", "--point", "15,22,1", "--out", "masks").exit_code == 0
    again = segment(film, "--frames", "--point", "45,22,1", "--out", "masks")
    assert again.exit_code == 0, again.output
    assert "already there" not in again.stdout
    for shift in range(3):
        assert iou(read_label_image(f"masks/{shift}.png.png") == 1, two_objects(shift)[2]) > 0.9
    assert "3 of them already there" in segment(film, "--frames", "--point", "45,22,1", "--out", "masks").stdout


def test_an_empty_mask_marks_nothing(film: Path) -> None:
    write_label_image("empty.png", np.zeros(SIZE_HW, np.uint8))
    result = segment("film/0.png", "--mask", "empty.png")
    assert result.exit_code == 2
    assert "nothing is marked" in result.stderr


def test_overlays_of_images_that_are_already_there(film: Path) -> None:
    arguments = (film, "--frames", "--point", "15,22,1", "--out", "masks")
    assert segment(*arguments).exit_code == 0
    assert "3 of them already there" in segment(*arguments, "--overlay", "seen").stdout
    assert sorted(path.name for path in Path("seen").iterdir()) == ["0.png.png", "1.png.png", "2.png.png"]


@pytest.mark.parametrize("point", ["1,1,nan", "inf,1,1"])
def test_points_are_finite(photo: Path, point: str) -> None:
    result = segment(photo, "--point", point)
    assert result.exit_code == 2
    assert "--point: expected X,Y,0 or X,Y,1, got" in result.stderr


def test_a_video(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with VideoWriter("walk.mp4", frame_rate=5) as video:
        for center_x in (20, 22, 24):
            video.add(scene(center_x)[0])
    result = segment("walk.mp4", "--frames", "--point", "20,22,1", "--out", "masks")
    assert result.exit_code == 0, result.output
    for index, center_x in enumerate((20, 22, 24)):
        assert iou(read_label_image(f"masks/{index:06d}.png") == 1, scene(center_x)[1]) > 0.9
    Path("prompts.json").write_text(json.dumps({"000001": {"points": [[22, 22, 1]]}, "17": {"points": [[9, 9, 1]]}}))
    some = segment("walk.mp4", "--prompts", "prompts.json", "--out", "some", "--json")
    assert [one["file"] for one in json.loads(some.stdout)["images"]] == ["000001"]
    assert some.exit_code == 1
    assert "there is no frame '17'" in some.stderr
    assert "the last frame is 000002" in some.stderr
    assert "--frames" in segment("walk.mp4", "--point", "20,22,1").stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "there is no prompt"),
        (["--point", "24,22"], "--point: expected X,Y,0 or X,Y,1, got '24,22'"),
        (["--point", "24,x,1"], "--point: expected"),
        (["--points-for", "24,22"], "--points-for: expected NUMBER:X,Y"),
        (["--points-for", "0:24,22"], "--points-for: expected NUMBER:X,Y"),
        (["--box", "1,2,3"], "--box: expected X1,Y1,X2,Y2"),
        (["--point", "24,22,0"], "nothing is marked as object"),
        (["--point", "24,22,1", "--method", "graphcut"], "did you mean 'graph-cut'"),
        (["--point", "24,22,1", "--method", "grabcut"], "takes a box"),
        (["--point", "24,22,1", "--format", "pngs"], "did you mean 'png'"),
        (["--point", "24,22,1", "--prompts", "p.json"], "are for a folder"),
        (["--point", "24,22,1", "--out", "x.json"], "expected a file that ends in .png"),
        (["--point", "24,22,1", "--out", "x", "--overlay", "x.png"], "expected two files"),
        (["--point", "24,22,1", "--out", "owl.png"], "would overwrite the image itself"),
    ],
)
def test_commands_that_are_wrong(photo: Path, options: list[str], message: str) -> None:
    before = photo.read_bytes()
    result = segment(photo, *options)
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert photo.read_bytes() == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--point", "64,22,1"], "(64, 22) lies outside the image of 64x48 pixels"),
        (["--point", "24,22,1", "--point", "24.5,22.5,0"], "pixel (24, 22) is marked as object 1 and as background"),
        (["--scribbles", "small.png"], "scribbles: expected the size of the image, 64x48, got 5x4"),
        (["--scribbles", "owl.png"], "expected one label of 8 bits"),
        (["--box", "9,9,9,20"], "x1 < x2"),
    ],
)
def test_marks_that_cannot_be(photo: Path, options: list[str], message: str) -> None:
    write_label_image("small.png", np.ones((4, 5), int))
    result = segment(photo, *options)
    assert result.exit_code == 1, result.output
    assert message in result.stderr


def test_folders_that_are_wrong(folder: Path) -> None:
    assert segment(folder).exit_code == 2
    assert segment(folder, "--point", "1,1,1").exit_code == 2
    Path("p.json").write_text('{"z.png": {"points": [[1, 1, 1]]}}')
    assert "'z.png' is not an image" in segment(folder, "--prompts", "p.json").stderr
    Path("p.json").write_text('{"a.png": {"points": [[1, 1]]}}')
    result = segment(folder, "--prompts", "p.json")
    assert result.exit_code == 1
    assert "p.json: a.png.points: expected a list of [x, y, label]" in result.stderr
    Path("p.json").write_text("{")
    assert "is not JSON" in segment(folder, "--prompts", "p.json").stderr
    assert "the first frame has no prompt" in segment(folder, "--frames").stderr


def test_torch_is_not_imported(photo: Path) -> None:
    code = (
        "import sys; from otus.cli import app; "
        f"app(['segment', {str(photo)!r}, '--point', '24,22,1', '--method', 'graph-cut', '--json'], standalone_mode=False); "
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
