"""``otus predict`` with unreadable input or unwritable output: the rest is done, and the JSON is valid."""

import json
import os
import re
import resource
import signal
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

import otus.inference.loading
from otus.cli import app
from otus.data.images import image_size_hw
from otus.data.video import Video, VideoWriter
from otus.inference.predictor import Predictor
from otus.parts.postprocess import Postprocess
from otus.parts.preprocess import Preprocess
from otus.parts.system import BaseSystem
from otus.structures import Categories, Instances

OWLS = Categories(("owl",))


class OneOwl(BaseSystem):
    """Detect an owl in the top left quarter of every image."""

    categories = OWLS
    postprocess = Postprocess()

    def predict(self, samples, **_):
        sizes = [tuple(sample["image"].shape[1:]) for sample in samples]
        return [Instances([[0, 0, w / 2, h / 2]], [0], (h, w), OWLS, scores=[0.9]) for h, w in sizes]


@pytest.fixture(autouse=True)
def owls(monkeypatch):
    """Make the command load a fast system."""
    predictor = Predictor(OneOwl(), preprocess=Preprocess(fixed_hw=(32, 32)), name="owls", device="cpu")
    monkeypatch.setattr(otus.inference.loading, "load", lambda *_, **__: predictor)


@pytest.fixture
def photos(tmp_path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(5):
        image = np.random.default_rng(number).integers(0, 255, (60, 80, 3), dtype=np.uint8)
        Image.fromarray(image).save(folder / f"{number}.jpg")
    return folder


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["predict", *map(str, arguments)])


def names(done: Result) -> list[str]:
    return [Path(image["file"]).name for image in json.loads(done.stdout)["images"]]


def records(out: Path) -> list[str]:
    return [Path(record["file_name"]).name for record in json.loads((out / "predictions.json").read_text())]


@pytest.mark.parametrize("batch_size", [1, 3])
def test_truncated_and_missing_images_among_good_ones(photos, tmp_path, batch_size):
    for name in ("1.jpg", "3.jpg"):
        content = (photos / name).read_bytes()
        (photos / name).write_bytes(content[: len(content) // 2])
    Image.open(photos / "4.jpg").save(photos / "5.png")
    (photos / "5.png").write_bytes((photos / "5.png").read_bytes()[:3000])
    out = tmp_path / "out"
    done = run(photos, photos / "gone.jpg", photos / "2.jpg", "--batch-size", batch_size, "--out", out, "--json")
    assert done.exit_code == 1
    assert names(done) == records(out) == ["0.jpg", "2.jpg", "4.jpg", "2.jpg"]
    for name in ("1.jpg", "3.jpg", "5.png"):
        assert re.search(rf"skipped: .*{name}: cannot be decoded: .*truncated", done.stderr)
    assert re.search(r"skipped: .*gone\.jpg: there is no such file", done.stderr)


def test_a_file_that_vanishes_during_the_run(photos, tmp_path, monkeypatch):
    before = OneOwl.predict

    def predict(self, samples, **options):
        (photos / "3.jpg").unlink(missing_ok=True)
        return before(self, samples, **options)

    monkeypatch.setattr(OneOwl, "predict", predict)
    done = run(photos, "--out", tmp_path / "out", "--json")
    assert done.exit_code == 1
    assert names(done) == ["0.jpg", "1.jpg", "2.jpg", "4.jpg"]
    assert re.search(r"skipped: .*3\.jpg: there is no such file", done.stderr)


def test_files_and_folders_that_may_not_be_read(photos, tmp_path, monkeypatch):
    opened, listed = Image.open, os.scandir

    def open_image(path, *arguments, **options):
        if str(path).endswith("1.jpg"):
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *arguments, **options)

    def scan(path):
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(path))
        return listed(path)

    (photos / "locked").mkdir()
    monkeypatch.setattr(Image, "open", open_image)
    monkeypatch.setattr(os, "scandir", scan)
    done = run(photos, "--out", tmp_path / "out", "--json")
    assert done.exit_code == 1
    assert names(done) == ["0.jpg", "2.jpg", "3.jpg", "4.jpg"]
    assert re.search(r"skipped: .*1\.jpg: cannot be read", done.stderr)
    assert re.search(r"skipped: .*locked: cannot be read", done.stderr)


def test_an_overlay_that_would_be_too_large_for_a_jpeg_is_drawn_smaller(photos, tmp_path):
    Image.fromarray(np.full((6, 70_000, 3), 90, np.uint8)).save(photos / "2.png")
    (photos / "2.jpg").unlink()
    done = run(photos, "--out", tmp_path / "out")
    assert done.exit_code == 0, done.stderr
    assert "smaller than their image: 2.png, by 2" in done.stdout
    assert image_size_hw(tmp_path / "out" / "2.jpg") == (3, 35_000)
    (strip,) = [
        one for one in json.loads((tmp_path / "out/predictions.json").read_text()) if "2.png" in one["file_name"]
    ]
    assert strip["bbox"] == [0, 0, 35_000, 3]


def test_a_video_whose_size_changes_becomes_a_video_for_each_size(photos, tmp_path):
    parts = []
    for number, size_hw in enumerate([(96, 128), (64, 96)]):
        with VideoWriter(tmp_path / f"{number}.ts", frame_rate=25) as writer:
            for shade in range(6):
                writer.add(np.full((*size_hw, 3), 20 * shade, np.uint8))
        parts.append((tmp_path / f"{number}.ts").read_bytes())
    (tmp_path / "film.ts").write_bytes(b"".join(parts))
    out = tmp_path / "out"
    done = run(tmp_path / "film.ts", photos / "0.jpg", "--out", out, "--json")
    assert done.exit_code == 0, done.stderr
    images = json.loads(done.stdout)["images"]
    assert [(one.get("frame"), one["width"]) for one in images] == [(i, 128 if i < 6 else 96) for i in range(12)] + [
        (None, 80)
    ]
    sizes = {path.name: (Video(path).size_hw, sum(1 for _ in Video(path))) for path in out.glob("*.mp4")}
    assert sizes == {"film.mp4": ((96, 128), 6), "film-2.mp4": ((64, 96), 6)}


@pytest.fixture
def small_files():
    """Limit the size of files, as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(size: int) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))

    yield limit
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_overlays_that_do_not_fit_are_named_and_the_rest_is_done(photos, tmp_path, small_files):
    image = np.random.default_rng(0).integers(0, 255, (1200, 1200, 3), dtype=np.uint8)
    Image.fromarray(image).save(photos / "2.jpg", quality=95)
    with VideoWriter(tmp_path / "film.mp4", frame_rate=10) as writer:
        for seed in range(12):
            writer.add(np.random.default_rng(seed).integers(0, 255, (400, 600, 3), dtype=np.uint8))
    out = tmp_path / "out"
    small_files(300_000)
    done = run(tmp_path / "film.mp4", photos, "--out", out, "--page", "--json")
    assert done.exit_code == 1
    assert names(done) == records(out) == ["film.mp4"] * 12 + ["0.jpg", "1.jpg", "2.jpg", "3.jpg", "4.jpg"]
    assert {path.name for path in out.iterdir()} == {
        *("0.jpg", "1.jpg", "3.jpg", "4.jpg", "predictions.json", "index.html")
    }
    for name in ("film.mp4", "2.jpg"):
        assert len(re.findall(rf"no overlay: .*{name}: cannot be written, File too large", done.stderr)) == 1


def test_predictions_that_do_not_fit_end_the_run_and_those_before_can_be_read(
    photos, tmp_path, small_files, monkeypatch
):
    monkeypatch.setattr("otus.reports.predictions.write_image", lambda path, image: None)
    out = tmp_path / "out"
    run(photos / "0.jpg", "--out", out)
    small_files(3 * (out / "predictions.json").stat().st_size + 5)
    done = run(photos, photos / "gone.jpg", "--out", out, "--json")
    assert done.exit_code == 1
    assert records(out) == ["0.jpg", "1.jpg", "2.jpg"]
    assert names(done) == ["0.jpg", "1.jpg", "2.jpg"]
    assert re.search(
        r"predictions\.json: cannot be written any further, File too large; it ends before image 4", done.stderr
    )


def test_on_a_full_disk_earlier_predictions_are_kept(photos, tmp_path, small_files):
    out = tmp_path / "out"
    run(photos / "0.jpg", "--out", out)
    small_files(2)
    done = run(photos, "--out", out)
    assert done.exit_code == 1
    assert records(out) == ["0.jpg"]
    assert re.search(r"predictions\.json: cannot be written.*File too large", done.stderr)
    assert {path.name for path in out.iterdir()} == {"0.jpg", "predictions.json"}


def test_a_folder_that_cannot_be_written(photos, tmp_path):
    (tmp_path / "file").write_text("mine")
    done = run(photos, "--out", tmp_path / "file" / "out", "--json")
    assert done.exit_code == 1
    assert json.loads(done.stdout)["images"] == []
    assert re.search(r"predictions\.json: cannot be written, Not a directory", done.stderr)


def test_output_that_cannot_be_written(photos, monkeypatch, capfd):
    with open("/dev/full", "w") as full, monkeypatch.context() as patch:
        patch.setattr("sys.stdout", full)
        with pytest.raises(SystemExit) as caught:
            app(["predict", str(photos), "--json"])
    assert caught.value.code == 1
    assert "the output cannot be written, No space left on device" in capfd.readouterr().err


def test_ctrl_c_completes_all_files(photos, tmp_path, monkeypatch):
    with VideoWriter(photos / "film.mp4", frame_rate=10) as writer:
        for shade in range(12):
            writer.add(np.full((64, 96, 3), 20 * shade, np.uint8))
    calls = []

    def predict(self, samples, **options):
        calls.append(len(samples))
        if len(calls) == 7:
            os.kill(os.getpid(), signal.SIGINT)
        return before(self, samples, **options)

    before = OneOwl.predict
    monkeypatch.setattr(OneOwl, "predict", predict)
    out = tmp_path / "out"
    done = run(photos / "0.jpg", photos / "film.mp4", photos, "--out", out, "--json")
    assert done.exit_code == 130
    assert names(done) == records(out) == ["0.jpg"] + ["film.mp4"] * 6
    assert {path.name for path in out.iterdir()} == {"0.jpg", "film.mp4", "predictions.json"}
    assert sum(1 for _ in Video(out / "film.mp4")) == 6
    assert "stopped" in done.stderr


def test_a_huge_image_has_a_smaller_overlay_and_boxes_in_its_own_frame(photos, tmp_path, monkeypatch):
    monkeypatch.setattr("otus.data.images.REDUCED_FROM", 1_000_000)
    Image.fromarray(np.full((1200, 1600, 3), 90, np.uint8)).save(photos / "2.jpg")
    done = run(photos / "2.jpg", "--out", tmp_path / "out", "--page")
    assert done.exit_code == 0, done.stderr
    assert "smaller than their image: 2.jpg, by 8" in done.stdout
    (record,) = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert record["bbox"] == [0, 0, 800, 600]
    assert re.search(r"<td[^>]*>800</td>\s*<td[^>]*>600</td>", (tmp_path / "out" / "index.html").read_text())


def test_the_limit_of_pixels_is_an_option(photos):
    assert run(photos / "0.jpg", "--max-pixels", 4799, "--json").exit_code == 1
    assert run(photos / "0.jpg", "--max-pixels", 4800, "--json").exit_code == 0


def test_videos_of_a_folder_are_predicted_on_and_stand_on_the_page(photos, tmp_path):
    with VideoWriter(photos / "film.mp4", frame_rate=10) as writer:
        for seed in range(3):
            writer.add(np.random.default_rng(seed).integers(0, 255, (60, 80, 3), dtype=np.uint8))
    done = run(photos, "--out", tmp_path / "out", "--page")
    assert done.exit_code == 0, done.stderr
    page = (tmp_path / "out" / "index.html").read_text()
    images = len(list(photos.glob("*.jpg")))
    assert f"on {images} images and 3 frames of videos" in page
    assert re.search(r'<video [^>]*src="film.mp4"', page)
