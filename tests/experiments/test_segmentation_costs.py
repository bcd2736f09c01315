"""``otus benchmark semantic``: multiply-adds, receptive fields, and the table."""

import json

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from otus.cli import app
from otus.data.image_writing import write_image
from otus.experiments.segmentation_costs import WAYS, multiply_adds, receptive_field_px
from otus.semantic.full_resolution import full_resolution
from otus.semantic.sliding_window import sliding_window_segmenter
from otus.structures import Categories
from otus.zoo.models import build_model
from otus.zoo.voc import VOC_WITH_BACKGROUND

THREE = Categories(("sky", "owl", "tree"))


def test_multiply_adds_are_those_counted_by_hand() -> None:
    system = full_resolution(THREE, widths=(4, 5))
    assert multiply_adds(system, (10, 12)) == 10 * 12 * (3 * 9 * 4 + 4 * 9 * 5 + 5 * 3)
    # Of the patches of 7 x 7 pixels, 5 x 5 positions of the first layer and 1 of the second.
    alone = sliding_window_segmenter(THREE, widths=(4, 5), shared=False)
    assert multiply_adds(alone, (10, 12)) == 10 * 12 * (25 * 3 * 9 * 4 + 4 * 9 * 5 + 5 * 3)
    # Shared, the first layer is computed once on the padded image, of which two pixels are lost on each side.
    shared = sliding_window_segmenter(THREE, widths=(4, 5))
    assert multiply_adds(shared, (10, 12)) == 14 * 16 * 3 * 9 * 4 + 10 * 12 * (4 * 9 * 5 + 5 * 3)
    assert next(alone.parameters()).device.type == "cpu"  # the system itself stays where it is


def test_the_receptive_field_is_that_of_the_layers() -> None:
    torch.manual_seed(0)
    assert receptive_field_px(full_resolution(THREE, widths=(4,) * 4), 32) == 9
    assert receptive_field_px(sliding_window_segmenter(THREE, widths=(4, 5)), 32) == 7
    assert receptive_field_px(full_resolution(THREE, widths=(4,) * 4), 6) == 6  # no more than there is


def test_the_table_has_every_way(tmp_path) -> None:
    write_image(tmp_path / "owl.png", np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8))
    command = ["benchmark", "semantic", str(tmp_path / "owl.png"), "--image-size", "16", "--repeats", "1"]
    done = CliRunner().invoke(app, [*command, "--precision", "exact", "--json"])
    assert done.exit_code == 0, done.stderr
    document = json.loads(done.stdout)
    assert (document["width"], document["height"], document["precision"]) == (16, 12, "exact")
    assert [row["way"] for row in document["rows"]] == list(WAYS)
    for row, (model, arguments) in zip(document["rows"], WAYS.values(), strict=True):
        system = build_model(model, VOC_WITH_BACKGROUND, arguments)
        assert row["model"] == model
        assert row["parameters"] == sum(one.numel() for one in system.parameters())
        assert row["multiply_adds"] == multiply_adds(system, (12, 16))
        assert row["seconds"] > 0
    alone, shared = document["rows"][:2]
    assert alone["multiply_adds"] > 5 * shared["multiply_adds"]
    assert alone["parameters"] == shared["parameters"]
    done = CliRunner().invoke(app, command)
    assert "encoder and decoder" in done.stdout
    done = CliRunner().invoke(app, [*command[:3], "--image-size", "0"])
    assert (done.exit_code, "image_size: expected 1 or more, got 0" in done.stderr) == (2, True)


@pytest.mark.parametrize("way", WAYS)
def test_each_way_is_a_model_of_the_zoo(way: str) -> None:
    model, arguments = WAYS[way]
    assert build_model(model, THREE, arguments).task.name == "semantic"
