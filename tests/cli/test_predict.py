"""``otus predict``: wrong usage and invalid input, and the messages."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import coco as reference
from typer.testing import CliRunner, Result

import otus
from otus.cli import app
from otus.data.video import Video, VideoWriter
from otus.detection.region_based.region_detector import RegionDetector
from otus.errors import CheckpointError
from otus.zoo.coco import COCO
from otus.zoo.models import build_model

NAME = "faster_rcnn_mobilenet_v3_large_320_fpn"
NOTHING = {
    "model": NAME,
    "postprocess": {"score_threshold": 0.5, "nms_iou": 0.5, "max_detections": 100},
    "images": [],
}


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["predict", *map(str, arguments)])


def refused(done: Result, code: int, pattern: str) -> None:
    """Assert that the command failed with a message of its own and no output."""
    assert done.exit_code == code, done.stderr or done.exception
    assert isinstance(done.exception, SystemExit)
    assert re.search(pattern, done.stderr), done.stderr
    assert done.stdout == ""


def scene(size_hw: tuple[int, int] = (90, 120), *, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 255, (*size_hw, 3), dtype=np.uint8)


class Code:
    def __reduce__(self):
        return os.mkdir, ("ran",)


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    """Write weights under torchvision's names, which detect a few categories everywhere."""
    torch.manual_seed(0)
    system = build_model(NAME, COCO, {"class_indices": COCO.ids})
    assert isinstance(system, RegionDetector)
    torch.nn.init.normal_(system.box_head.cls_score.bias, std=2)
    names = {
        "region_features.backbone.": "backbone.body.",
        "region_features.pyramid.": "backbone.fpn.",
        "proposer.": "rpn.head.",
        "box_head.network.": "roi_heads.box_head.",
        "box_head.": "roi_heads.box_predictor.",
    }
    theirs = {}
    for name, tensor in system.state_dict().items():
        ours = next(prefix for prefix in names if name.startswith(prefix))
        theirs[names[ours] + name.removeprefix(ours)] = tensor
    path = tmp_path_factory.mktemp("weights") / "good.pth"
    torch.save(theirs, path)
    return path


@pytest.fixture
def photo(tmp_path) -> Path:
    path = tmp_path / "image.png"
    Image.fromarray(scene()).save(path)
    return path


def bad_weights(kind: str, good: Path, folder: Path) -> Path:
    path = folder / f"{kind}.pth"
    content = torch.load(good)
    if kind == "missing":
        for name in list(content)[:5]:
            del content[name]
    elif kind == "extra":
        content |= {"head.one": torch.zeros(2), "head.two": torch.zeros(2, 3)}
    elif kind == "shape":
        content["rpn.head.cls_logits.weight"] = torch.zeros(3, 3, 1, 1)
    elif kind == "another":
        content = {f"layer1.{i}.weight": torch.zeros(2) for i in range(9)}
    elif kind == "code":
        content = {"model": content, "epoch": Code()}
    if kind in ("text", "empty", "half"):
        half = good.read_bytes()[:100_000]
        path.write_bytes({"text": b"not a checkpoint at all", "empty": b"", "half": half}[kind])
    else:
        torch.save(content, path)
    return path


@pytest.mark.parametrize(
    ("kind", "pattern"),
    [
        ("missing", rf"does not fit {NAME} \(nothing was loaded.*5 missing, e\.g\. \S+ \(\d.*\), \S+ \(\d"),
        ("extra", rf"does not fit {NAME}.*2 extra, e\.g\. head\.one \(2,\), head\.two \(2, 3\)"),
        ("shape", r"1 of another shape, e\.g\. \S+cls_logits\.weight: expected \(15, 256, 1, 1\), got \(3, 3, 1, 1\)"),
        ("another", rf"does not fit {NAME}.*missing, e\.g\. .*9 extra, e\.g\. layer1\.0\.weight \(2,\)"),
        ("code", r"has code or Python objects \(\w+\.mkdir\); none of it was run"),
        ("text", "is not a file of weights: expected safetensors or the output of torch.save"),
        ("empty", "is not a file of weights.*empty"),
        ("half", "is damaged"),
    ],
)
def test_invalid_weights_are_errors(good, tmp_path, photo, monkeypatch, kind, pattern):
    monkeypatch.chdir(tmp_path)
    file = bad_weights(kind, good, tmp_path)
    refused(run(photo, "--model", NAME, "--weights", file, "--out", "out"), 1, pattern)
    assert not Path("out").exists()
    assert not Path("ran").exists()


def test_weights_of_another_model_of_the_same_kind(good, photo):
    refused(
        run(photo, "--model", "faster_rcnn_resnet50_fpn", "--weights", good), 1, "does not fit faster_rcnn_resnet50"
    )
    refused(run(photo, "--model", good), 1, "does not say of which model it is: name the model")
    with pytest.raises(CheckpointError, match="does not fit mask_rcnn_resnet50_fpn"):
        otus.load("mask_rcnn_resnet50_fpn", weights=good)


@pytest.mark.parametrize(
    ("options", "pattern"),
    [
        (["--model", "faster_rcnn_vgg16"], "has no trained weights: train it"),
        (["--model", "faster_rcnn_vgg"], "did you mean 'faster_rcnn_vgg16'"),
        (["--model", NAME, "--weights", "coco_v9"], "weights of .* are: coco_v1"),
    ],
)
def test_names_without_weights_never_predict(photo, options, pattern):
    refused(run(photo, *options), 2, pattern)


@pytest.mark.parametrize(
    ("options", "pattern"),
    [
        (["--score-threshold", "1.5"], "score_threshold: expected 0 to 1, got 1.5"),
        (["--nms-iou", "-2"], "nms_iou: expected 0 to 1, got -2"),
        (["--batch-size", "0"], "batch_size: expected 1 or more, got 0"),
        (["--stride", "0"], "stride: expected 1 or more, got 0"),
        (["--tiles", "0"], "tiles: expected a size >= 1"),
        (["--tile-overlap", "0.1"], "--tile-overlap and --tile-whole need --tiles"),
        (["--no-tile-whole"], "--tile-overlap and --tile-whole need --tiles"),
        (["--categories", "dog,unicorn"], "does not know unicorn; it knows person, bicycle"),
        (["--device", "tpu"], r"device: expected auto or a device of this machine \(cpu"),
        (["--precision", "fp8"], "precision: expected one of auto, exact"),
    ],
)
def test_wrong_options(good, photo, tmp_path, options, pattern):
    refused(run(photo, "--model", NAME, "--weights", good, "--out", tmp_path / "out", *options), 2, pattern)


def test_tiny_and_thin_images_and_nothing_on_them(good, tmp_path):
    for name, size_hw in (("one", (1, 1)), ("wide", (1, 2000)), ("high", (2000, 1))):
        Image.fromarray(scene(size_hw)).save(tmp_path / f"{name}.png")
    out = tmp_path / "out"
    some = run(tmp_path, "--model", NAME, "--weights", good, "--batch-size", 3, "--out", out, "--json")
    assert some.exit_code == 0, some.stderr
    assert [(one["width"], one["height"]) for one in json.loads(some.stdout)["images"]] == [
        (1, 2000),
        (1, 1),
        (2000, 1),
    ]
    assert {path.name for path in out.iterdir()} == {"one.jpg", "wide.jpg", "high.jpg", "predictions.json"}
    none = run(tmp_path / "one.png", "--model", NAME, "--weights", good, "--score-threshold", 1, "--out", out)
    assert none.exit_code == 0
    assert "one.png 1x1: nothing" in none.stdout
    assert "1 overlay and" in none.stdout
    assert json.loads((out / "predictions.json").read_text()) == []


def test_documents_are_as_designed_and_cocos_reader_takes_them(good, photo, tmp_path):
    out = tmp_path / "out"
    done = run(photo, "--model", NAME, "--weights", good, "--score-threshold", 0.05, "--out", out, "--json")
    assert done.exit_code == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["model"] == NAME
    (image,) = document["images"]
    assert image.keys() >= {"file", "width", "height", "seconds", "instances"}
    assert image["instances"], "the weights find nothing"
    results = json.loads((out / "predictions.json").read_text())
    for one, result in zip(image["instances"], results, strict=True):
        assert one.keys() == {"category", "score", "bbox"}
        assert COCO.ids[COCO.index(one["category"])] == result["category_id"]
        assert (one["score"], one["bbox"]) == (result["score"], result["bbox"])
    ground_truth = reference.COCO()
    ground_truth.dataset = {
        "images": [{"id": 1}],
        "annotations": [],
        "categories": [{"id": category} for category in COCO.ids],
    }
    ground_truth.createIndex()
    assert len(ground_truth.loadRes(results).getAnnIds()) == len(results)


def test_a_video_cut_off_keeps_the_frames_before(good, photo, tmp_path):
    with VideoWriter(tmp_path / "whole.mp4", frame_rate=10) as writer:
        for i in range(24):
            writer.add(scene(seed=i))
    # The index is moved to the front, so that the cut is in a frame.
    import av

    with av.open(str(tmp_path / "whole.mp4")) as source:
        target = av.open(str(tmp_path / "front.mp4"), "w", options={"movflags": "faststart"})
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = stream
                target.mux(packet)
        target.close()
    content = (tmp_path / "front.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(content[: int(len(content) * 0.6)])
    out = tmp_path / "out"
    cut = tmp_path / "cut.mp4"
    done = run(cut, photo, "--model", NAME, "--weights", good, "--batch-size", 4, "--out", out, "--json")
    assert done.exit_code == 1
    assert re.search(r"damaged: .*cut\.mp4: frame \d+: .*(cut off|ends here)", done.stderr)
    images = json.loads(done.stdout)["images"]
    frames = [one["frame"] for one in images if "frame" in one]
    assert 4 < len(frames) < 24
    assert frames == list(range(len(frames)))
    assert images[-1]["file"] == str(photo)
    assert sum(1 for _ in Video(out / "cut.mp4")) == len(frames)


def test_the_overlay_of_every_third_frame_keeps_the_pace(good, tmp_path):
    with VideoWriter(tmp_path / "film.mp4", frame_rate=12) as writer:
        for i in range(7):
            writer.add(scene(seed=i))
    out = tmp_path / "out"
    done = run(tmp_path / "film.mp4", "--model", NAME, "--weights", good, "--stride", 3, "--out", out)
    assert done.exit_code == 0, done.stderr
    assert [frame.time_s for frame in Video(out / "film.mp4")] == [0, 0.25, 0.5]


def test_a_page_shows_overlays_and_detections(good, photo, tmp_path):
    out = tmp_path / "out"
    done = run(photo, "--model", NAME, "--weights", good, "--score-threshold", 0.05, "--out", out, "--page", "--json")
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)["images"][0]["instances"]
    assert found
    html = (out / "index.html").read_text()
    assert 'src="image.jpg"' in html
    assert (out / "image.jpg").is_file()
    rows = re.findall(r"<tr>(<td.*?)</tr>", html, flags=re.DOTALL)
    cells = [[cell.strip() for cell in re.findall(r"<td[^>]*>([^<]*)</td>", row)] for row in rows]
    expected = [[one["category"], f"{one['score']:.4g}", *(str(round(v)) for v in one["bbox"])] for one in found]
    assert cells == [["image.png", *row] for row in expected]
    refused(run(photo, "--model", NAME, "--weights", good, "--json", "--page"), 2, "--page needs --out")


def test_photographs_are_never_replaced(good, tmp_path):
    folder = tmp_path / "same"
    folder.mkdir()
    Image.fromarray(scene()).save(folder / "owl.jpg")
    before = (folder / "owl.jpg").read_bytes()
    options = ("--model", NAME, "--weights", good, "--out", folder)
    refused(run(folder, *options), 2, r"--out: .*same holds images to predict on, .*owl\.jpg; name another folder")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {"owl.jpg": before}


def test_a_second_run_reads_the_same_images(good, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(scene()).save("owl.png")
    files = []
    for _ in range(2):
        done = run(".", "--model", NAME, "--weights", good)
        assert done.exit_code == 0, done.stderr
        files.append(re.findall(r"^(\S+) \d+x\d+:", done.stdout, flags=re.MULTILINE))
    assert files == [["owl.png"], ["owl.png"]]


def test_json_is_valid_with_missing_files(good, photo, tmp_path):
    (tmp_path / "empty").mkdir()
    options = ("--model", NAME, "--weights", good, "--json")
    done = run(tmp_path / "nomatch*.jpg", *options)
    assert (done.exit_code, json.loads(done.stdout)) == (1, NOTHING)
    assert "nomatch*.jpg: no file matches this pattern" in done.stderr
    done = run(photo, tmp_path / "empty", photo, *options)
    assert done.exit_code == 1
    assert [one["file"] for one in json.loads(done.stdout)["images"]] == [str(photo)] * 2
    assert "empty: holds no image or video" in done.stderr


def test_json_is_closed_when_the_work_breaks_off(good, photo, tmp_path):
    (tmp_path / "taken").write_text("a file, so no folder can be there")
    out = tmp_path / "taken" / "out"
    done = run(photo, "--model", NAME, "--weights", good, "--json", "--out", out)
    assert done.exit_code == 1
    assert "cannot be written" in done.stderr
    assert json.loads(done.stdout) == NOTHING


def test_weights_with_a_file_as_model_are_an_error(good, photo, tmp_path):
    refused(run(photo, "--model", good, "--weights", good), 2, r"weights: .*good\.pth is a file of weights itself")


@pytest.mark.skipif(sys.platform in ("darwin", "win32"), reason="names of files are text there")
def test_names_that_are_no_text_are_spelt_out(good, photo, tmp_path):
    photo.rename(tmp_path / os.fsdecode(b"caf\xe9.png"))
    command = [sys.executable, "-m", "otus", "predict", tmp_path, "--model", NAME, "--weights", good]
    outputs = []
    for options in (["--json"], ["--out", tmp_path / "out", "--page"]):
        done = subprocess.run([*command, *options], capture_output=True, timeout=200, check=False)
        assert done.returncode == 0, done.stderr
        outputs.append(done.stdout.decode("utf-8"))
    assert json.loads(outputs[0])["images"][0]["file"].endswith("caf\\udce9.png")
    assert "caf\\udce9.png" in outputs[1]
    assert b"caf\xe9.jpg" in os.listdir(os.fsencode(tmp_path / "out"))


def test_evaluating_thresholded_predictions_warns(good, photo, tmp_path):
    out, model = tmp_path / "out", ("--model", NAME, "--weights", good)
    found = json.loads(run(photo, *model, "--score-threshold", 0.0, "--json").stdout)["images"][0]["instances"]
    middle = max(one["score"] for one in found) - 0.01
    assert middle > 0.05  # the model's own threshold
    labels = {
        "images": [{"id": 1, "file_name": "image.png", "width": 120, "height": 90}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": COCO.ids[0], "bbox": [5, 5, 50, 50], "iscrowd": 0}],
        "categories": [{"id": i, "name": name} for i, name in zip(COCO.ids, COCO, strict=True)],
    }
    (tmp_path / "labels.json").write_text(json.dumps(labels))
    data, file = ["--data", str(tmp_path / "labels.json")], ["--predictions", str(out / "predictions.json")]
    for threshold, cut in ((middle, middle), (0.0, None)):
        done = run(photo, *model, "--score-threshold", threshold, "--out", out, "--json")
        assert json.loads(done.stdout)["postprocess"]["score_threshold"] == threshold
        evaluation = CliRunner().invoke(app, ["evaluate", *data, *file, "--json"])
        assert json.loads(evaluation.stdout).get("prediction_threshold") == cut
        closer = CliRunner().invoke(app, ["explain", "errors", *data, *file, "--out", str(tmp_path / "e.html")])
        for stderr in (evaluation.stderr, closer.stderr):
            assert (f"applied the score threshold {threshold:g}" in stderr) == (cut is not None)


def test_unused_pages_of_an_image_are_noted(good, tmp_path):
    page = Image.fromarray(scene())
    page.save(tmp_path / "stack.tif", save_all=True, append_images=[page, page])
    done = run(tmp_path / "stack.tif", "--model", NAME, "--weights", good, "--json")
    assert done.exit_code == 0, done.stderr
    assert f"otus: note: {tmp_path / 'stack.tif'} has 3 pages" in done.stderr
    assert "3 pages" in json.loads(done.stdout)["images"][0]["notes"][0]


def test_no_page_is_written_of_nothing(good, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no image")
    done = run(tmp_path / "broken.png", "--model", NAME, "--weights", good, "--out", tmp_path / "out", "--page")
    refused(done, 1, r"skipped: .*broken\.png")
    assert not (tmp_path / "out" / "index.html").exists()


def test_a_page_of_images_without_objects_has_no_empty_table(good, photo, tmp_path):
    options = ("--score-threshold", 1, "--out", tmp_path / "out", "--page")
    assert run(photo, "--model", NAME, "--weights", good, *options).exit_code == 0
    html = (tmp_path / "out" / "index.html").read_text()
    assert "0 objects on 1 image" in html
    assert "<table" not in html


def test_annotations_given_as_an_image_are_called_so(good, tmp_path):
    (tmp_path / "annotations.json").write_text("{}")
    done = run(tmp_path / "annotations.json", "--model", NAME, "--weights", good, "--out", tmp_path / "out")
    refused(done, 1, "seems to be a label file .*otus predict FOLDER")
