"""``otus convert`` and ``otus doctor`` on invalid input: they name the problem and leave no partial output."""

import json
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from otus.cli import app
from otus.data.image_writing import write_image

Change = Callable[[Path], None]


def run(*arguments: object) -> Result:
    done = CliRunner().invoke(app, [str(one) for one in arguments])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done


def coco_folder(folder: Path) -> Path:
    """Write a valid data set of two images with three objects."""
    rng = np.random.default_rng(0)
    for name in "ab":
        write_image(folder / f"images/{name}.png", rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    box = {"category_id": 1, "bbox": [1, 1, 4, 4], "area": 16, "iscrowd": 0}
    outline = {"size": [6, 8], "counts": [7, 4, 2, 4, 2, 4, 2, 4, 19]}
    document = {
        "images": [{"id": i, "file_name": f"{n}.png", "width": 8, "height": 6} for i, n in enumerate("ab", 1)],
        "categories": [{"id": 1, "name": "cat"}],
        "annotations": [
            {"id": 1, "image_id": 1, **box, "segmentation": [[1, 1, 5, 1, 5, 5, 1, 5]]},
            {"id": 2, "image_id": 2, **box, "segmentation": outline},
            {"id": 3, "image_id": 2, **box, "bbox": [2, 1, 4, 4]},
        ],
    }
    (folder / "annotations.json").write_text(json.dumps(document))
    return folder


def annotation(index: int, **changes: Any) -> Change:
    def change(folder: Path) -> None:
        document = json.loads((folder / "annotations.json").read_text())
        document["annotations"][index] |= changes
        (folder / "annotations.json").write_text(json.dumps(document))

    return change


def image(name: str, content: Callable[[bytes], bytes] | None) -> Change:
    def change(folder: Path) -> None:
        file = folder / "images" / name
        file.write_bytes(content(file.read_bytes())) if content else file.unlink()

    return change


def huge(content: bytes) -> bytes:
    """Return a PNG whose header claims 60000 x 60000 pixels."""
    import struct
    import zlib

    header = struct.pack(">II", 60000, 60000) + content[24:29]
    return content[:16] + header + struct.pack(">I", zlib.crc32(b"IHDR" + header)) + content[33:]


OUTLINE_OF_ANOTHER_SIZE = {"size": [5, 5], "counts": [25]}
FAULTS: dict[str, tuple[Change, str, str]] = {
    "NaN box": (annotation(0, bbox=[1, float("nan"), 2, 2]), "annotations[0].bbox", "not_finite"),
    "box of three": (annotation(0, bbox=[1, 2, 3]), "annotations[0].bbox", "unreadable_annotation"),
    "two points": (annotation(0, segmentation=[[1, 1, 2, 2]]), "annotations[0].segmentation", "bad_outline"),
    "another size": (annotation(1, segmentation=OUTLINE_OF_ANOTHER_SIZE), "annotations[1].segmentation", "bad_outline"),
    "id as text": (annotation(0, image_id="1"), "annotations[0].image_id", "unreadable_annotation"),
    "no such image": (annotation(2, image_id=9), "annotations[2].image_id", "unknown_image"),
    "no such category": (annotation(2, category_id=9), "annotations[2].category_id", "unknown_category"),
    "id twice": (annotation(2, id=1), "annotations[2].id", "duplicate_id"),
    "missing image": (image("b.png", None), "b.png", "missing_image"),
    "empty image": (image("b.png", lambda _: b""), "b.png", "unreadable_image"),
    "no image": (image("b.png", lambda _: b"hello"), "b.png", "unreadable_image"),
    "cut off": (image("b.png", lambda content: content[: len(content) // 2]), "b.png", "unreadable_image"),
    "huge image": (image("b.png", huge), "b.png", "unreadable_image"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_named_and_the_rest_is_done(tmp_path: Path, fault: str) -> None:
    change, place, kind = FAULTS[fault]
    source = coco_folder(tmp_path / "in")
    change(source)
    done = run("convert", source, tmp_path / "out", "--to", "yolo", "--json")
    assert done.exit_code == 1
    (problem,) = json.loads(done.stdout)["problems"]
    assert place in problem["message"]
    assert f"otus: left out: {problem['message']}" in done.stderr.splitlines()
    assert (tmp_path / "out/images/train/a.png").is_file()
    examined = run("doctor", source, "--json")
    assert examined.exit_code == 1
    findings = json.loads(examined.stdout)["findings"]
    assert kind in {one["kind"] for one in findings}
    assert any(place in f"{one['file']} {one['where']}" for one in findings)


@pytest.mark.parametrize(
    ("damage", "rest"),
    [
        (lambda text: "", 0),
        (lambda text: "\x00" * 40, 0),
        (lambda text: text[1:], 0),
        (lambda text: text[:-30], 2),
        (lambda text: text.replace('"bbox": [2, 1, 4, 4]', '"bbox": [2, 1, 4 4]'), 2),
    ],
)
def test_broken_json(tmp_path: Path, damage: Callable[[str], str], rest: int) -> None:
    source = coco_folder(tmp_path / "in")
    file = source / "annotations.json"
    file.write_text(damage(file.read_text()))
    done = run("convert", file, tmp_path / "out", "--to", "coco", "--json")
    assert done.exit_code == 1
    assert str(file) in done.stderr
    if rest:
        assert json.loads(done.stdout)["objects"] == rest
    else:
        assert sorted(one.name for one in tmp_path.iterdir()) == ["in"]
    assert run("doctor", file).exit_code == 1


def test_broken_xml_and_a_box_that_is_none(tmp_path: Path) -> None:
    run("convert", coco_folder(tmp_path / "in"), tmp_path / "voc", "--to", "voc")
    file = tmp_path / "voc/Annotations/a.xml"
    whole = file.read_text()
    for broken in (whole[:-40], whole.replace("<xmin>2.0</xmin>", "<xmin>nan</xmin>"), whole.replace("bndbox", "box")):
        file.write_text(broken)
        done = run("convert", tmp_path / "voc", tmp_path / "out", "--to", "coco")
        assert done.exit_code == 1
        assert f"otus: left out: {file}" in done.stderr
        assert "Traceback" not in done.stderr
        assert run("doctor", tmp_path / "voc").exit_code == 1
        for path in sorted((tmp_path / "out").rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()


@pytest.mark.parametrize("climbing", ["/etc", "../other"])
def test_data_yaml_that_leads_outside(tmp_path: Path, climbing: str) -> None:
    run("convert", coco_folder(tmp_path / "in"), tmp_path / "yolo", "--to", "yolo")
    (tmp_path / "other").mkdir()
    (tmp_path / "yolo/data.yaml").write_text(f"path: .\ntrain: {climbing}\nnames: [cat]\n")
    done = run("convert", tmp_path / "yolo", tmp_path / "out", "--to", "coco")
    assert done.exit_code == 1
    assert "leads outside the folder" in done.stderr
    assert not (tmp_path / "out").exists()
    assert run("doctor", tmp_path / "yolo").exit_code == 1


def test_targets_that_cannot_be_written(tmp_path: Path) -> None:
    source = coco_folder(tmp_path / "in")
    (tmp_path / "file").write_text("x")
    before = sorted(tmp_path.rglob("*"))
    for target, message in (
        (source, "exists already and is not empty"),
        (tmp_path / "file", "exists already and is not empty"),
        (tmp_path / "file/below", "cannot be written"),
        (tmp_path / ("n" * 300), "cannot be written"),
    ):
        done = run("convert", source, target, "--to", "coco")
        assert done.exit_code == 1
        assert message in done.stderr
        assert sorted(tmp_path.rglob("*")) == before
    done = run("convert", tmp_path / "nowhere", tmp_path / "out", "--to", "coco")
    assert done.exit_code == 1
    assert "there is no such file or folder" in done.stderr


def test_a_disk_that_is_full(tmp_path: Path) -> None:
    """Limit files to a few bytes, as on a full disk."""
    import signal

    source = coco_folder(tmp_path / "in")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
        done = run("convert", source, tmp_path / "out", "--to", "coco")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert done.exit_code == 1
    assert "cannot be written, File too large" in done.stderr
    assert [one.name for one in tmp_path.iterdir()] == ["in"]


def test_a_command_that_is_terminated_leaves_nothing(tmp_path: Path) -> None:
    source = coco_folder(tmp_path / "in")
    terminated_at_the_first_copy = (
        "import os, shutil, signal; from otus.cli import main\n"
        "shutil.copyfile = lambda *paths: os.kill(os.getpid(), signal.SIGTERM)\n"
        "main()"
    )
    arguments = ["convert", str(source), str(tmp_path / "out"), "--to", "coco"]
    done = subprocess.run(
        [sys.executable, "-c", terminated_at_the_first_copy, *arguments], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (130, "otus: stopped\n")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_all_splits_and_counts_first(tmp_path: Path) -> None:
    source = coco_folder(tmp_path / "in")
    text = (source / "annotations.json").read_text()
    (source / "annotations.json").unlink()
    for split in ("train", "val"):
        (source / f"instances_{split}.json").write_text(text.replace('"iscrowd": 0', '"iscrowd": 1'))
    done = run("convert", source, tmp_path / "out", "--to", "yolo")
    assert done.exit_code == 0
    lines = done.stdout.splitlines()
    assert lines[:2] == [f"{tmp_path / 'out'}: 4 images, 6 objects, coco to yolo", "splits: train 2, val 2"]
    assert lines[3].split() == ["crowd", "6"]
    document = json.loads(run("convert", source, tmp_path / "out2", "--to", "yolo", "--json").stdout)
    assert document["splits"] == {name: {"images": 2, "objects": 3} for name in ("train", "val")}
    assert document["losses"]["crowd"] == 6
    one = json.loads(run("convert", source, tmp_path / "out3", "--to", "yolo", "--split", "val", "--json").stdout)
    assert (one["images"], list(one["splits"])) == (2, ["val"])
