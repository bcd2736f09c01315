"""``otus explain graph-cut``: its figures are those of the answer."""

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from otus.cli import app
from otus.data.image_writing import write_image
from otus.interactive.graph_cut import GraphCut
from otus.interactive.mask_files import candidate_records
from otus.reports.explain.graph_cut import explain_graph_cut
from otus.structures import Prompt


@pytest.fixture
def image() -> np.ndarray:
    rows, columns = np.mgrid[:48, :64]
    colors = np.where((np.hypot(columns - 24, rows - 22) <= 12)[..., None], [170, 70, 60], [60, 110, 90])
    return np.clip(colors + np.random.default_rng(0).normal(0, 10, colors.shape), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("labels", [[1, 0], [1, 2]])
def test_its_figures_are_those_of_the_answer(image: np.ndarray, labels: list[int]) -> None:
    prompt = Prompt([[24, 22], [58, 40]], labels)
    explanation = explain_graph_cut(image, prompt, name="owl.png")
    document = explanation.document()
    method = GraphCut()
    assert document["candidates"] == candidate_records(method.segment(method.embed(image), prompt))
    assert document["grid"] == [64, 48]
    assert sum(document["marks"].values()) == (prompt.seeds((48, 64), point_radius=0.015 * 64) >= 0).sum()
    assert [sum(one.values()) for one in document["rounds"]] == [48 * 64] * method.rounds
    assert len(document["rounds"][0]) == max(labels) + 1
    html = explanation.page().html()
    for one in document["candidates"]:
        assert f"{one['area']:,} pixels" in html
    assert html.count("<img") == 6 + 5 * max(labels)


def test_the_command(image: np.ndarray, tmp_path: Path) -> None:
    write_image(tmp_path / "owl.png", image)
    arguments = ["explain", "graph-cut", str(tmp_path / "owl.png"), "--out", str(tmp_path / "page")]
    done = CliRunner().invoke(app, [*arguments, "--point", "24,22,1", "--json"])
    assert done.exit_code == 0, done.stderr
    document = json.loads(done.stdout)
    assert Path(document["page"]).read_text().startswith("<!doctype html>")
    assert document["candidates"][0]["area"] > 300
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 2
    assert "there is no prompt" in done.stderr


def test_a_reduced_image(image: np.ndarray) -> None:
    large = np.repeat(np.repeat(image, 17, axis=0), 17, axis=1)[:-5, :-3]
    explanation = explain_graph_cut(large, Prompt([[400, 370]], [1]), name="large.png")
    assert explanation.embedding.factor == 2
    assert explanation.page().html()
