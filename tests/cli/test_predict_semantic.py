"""``otus predict`` and ``otus evaluate`` with a semantic segmenter: videos, tiles, flips and scales."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from typer.testing import CliRunner

from otus.cli import app
from otus.data.video import Video, VideoWriter
from otus.parts.preprocess import Preprocess
from otus.parts.tasks import SEMANTIC
from otus.semantic.full_resolution import full_resolution
from otus.structures import Categories, SemanticMap
from otus.zoo.checkpoint import CheckpointHeader, save_checkpoint
from otus.zoo.models import MODELS, ModelEntry

CATEGORIES = Categories(tuple(f"category {number}" for number in range(21)))


@pytest.fixture
def weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Write weights of a tiny segmenter whose labels depend on the colour."""
    entry = ModelEntry(lambda categories: full_resolution(categories, widths=(8,)), SEMANTIC, "none", Preprocess())
    monkeypatch.setitem(MODELS, "tiny_segmenter", entry)
    torch.manual_seed(0)
    system = full_resolution(CATEGORIES, widths=(8,))
    nn.init.normal_(system.head.weight)
    header = CheckpointHeader(builder="tiny_segmenter", categories=CATEGORIES, preprocess=Preprocess().to_dict())
    save_checkpoint(tmp_path / "tiny.safetensors", system.state_dict(), header)
    return tmp_path / "tiny.safetensors"


def otus(*arguments: object) -> str:
    done = CliRunner().invoke(app, list(map(str, arguments)))
    assert done.exit_code == 0, done.stderr or done.exception
    return done.stdout


def test_the_frames_of_a_video_become_one_video(weights, tmp_path):
    rng = np.random.default_rng(0)
    with VideoWriter(tmp_path / "film.mp4", frame_rate=10) as writer:
        for number in range(4):
            writer.add(rng.integers(0, 60 * (number + 1), (48, 64, 3), dtype=np.uint8))
    output = otus("predict", tmp_path / "film.mp4", "--model", weights, "--device", "cpu", "--out", tmp_path / "out")
    assert "1 overlay and predictions.json" in output
    frames = [frame.image for frame in Video(tmp_path / "out" / "film.mp4")]
    assert [frame.shape for frame in frames] == [(48, 64, 3)] * 4
    records = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert {record["frame"] for record in records} == {0, 1, 2, 3}
    assert all("segmentation" in record for record in records)


def test_a_category_has_one_colour_whatever_else_is_in_the_frame():
    labels = np.arange(21).repeat(9)[None].repeat(9, axis=0)
    black = np.zeros((*labels.shape, 3), np.uint8)
    together = SEMANTIC.display.draw(black, SemanticMap(labels, CATEGORIES))
    for label in range(21):
        alone = SEMANTIC.display.draw(black, SemanticMap(np.full_like(labels, label), CATEGORIES))
        np.testing.assert_array_equal(together[4, 9 * label + 4], alone[4, 9 * label + 4])


def test_tiles_flips_and_scales_are_in_the_document_and_errors_for_detectors(weights, tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 90, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    command = ("predict", tmp_path / "a.png", "--model", weights, "--device", "cpu", "--json")
    plain = json.loads(otus(*command))
    assert "postprocess" not in plain
    options = ("--flip", "--scales", "0.5,1", "--tiles", 40, "--tile-overlap", 0.25)
    document = json.loads(otus(*command, *options))
    assert document["postprocess"]["averaging"] == {"flip": True, "scales": [0.5, 1.0]}
    assert document["postprocess"]["tiles"]["size"] == 40
    assert document["images"][0]["semantic"]
    wrong = CliRunner().invoke(app, [*map(str, command), "--scales", "half"])
    assert wrong.exit_code == 2
    assert "--scales: expected numbers separated by commas" in wrong.stderr
    detector = CliRunner().invoke(app, ["predict", str(tmp_path / "a.png"), "--flip", "--device", "cpu", "--json"])
    assert detector.exit_code == 2
    assert "flips and scales are for semantic segmentation" in detector.stderr


def test_evaluating_with_a_flip_evaluates_the_average(weights, tmp_path):
    (tmp_path / "data" / "images").mkdir(parents=True)
    (tmp_path / "data" / "masks").mkdir()
    (tmp_path / "data" / "classes.txt").write_text("\n".join(CATEGORIES))
    rng = np.random.default_rng(0)
    for number in range(2):
        Image.fromarray(rng.integers(0, 255, (20, 30, 3), dtype=np.uint8)).save(tmp_path / f"data/images/{number}.png")
        Image.fromarray(rng.integers(0, 21, (20, 30), dtype=np.uint8)).save(tmp_path / f"data/masks/{number}.png")
    command = ("evaluate", "--data", tmp_path / "data", "--model", weights, "--device", "cpu", "--json")
    plain, flipped = (json.loads(otus(*command, *more))["semantic"]["mIoU"] for more in ((), ("--flip",)))
    assert plain != flipped
