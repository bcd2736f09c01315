"""``otus models`` for people and for programs."""

import json

from typer.testing import CliRunner

from otus.cli import app
from otus.zoo.models import MODELS


def test_names_and_figures_are_whole_on_a_narrow_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    lines = CliRunner().invoke(app, ["models"]).stdout.splitlines()
    assert [line.split()[0] for line in lines if not line.startswith(" ")] == list(MODELS)
    assert "    COCO val2017: bbox AP 0.379, segm AP 0.346" in lines
    assert max(map(len, lines)) < 80


def test_the_document_has_each_model():
    (rows,) = json.loads(CliRunner().invoke(app, ["models", "--json"]).stdout).values()
    assert [one["name"] for one in rows] == list(MODELS)
    for one in rows:
        assert one.keys() == {"name", "task", "packaged", "trained", "weights", "paper", "licence", "figures"}
        assert one["trained"] == bool(one["weights"])
