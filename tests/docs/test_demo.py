"""``make demo``, on one photograph and a few scenes."""

import importlib.util
import json
from pathlib import Path

import pytest

DEMO = Path(__file__).parents[2] / "docs" / "demo.py"


@pytest.fixture
def demo():
    pytest.importorskip("skimage")
    spec = importlib.util.spec_from_file_location("demo", DEMO)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_demo_writes_what_it_says(demo, otus_command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(demo, "PHOTOGRAPHS", ("chelsea.png",))
    monkeypatch.setattr(demo, "SCENES", 8)
    answers = []

    def run(*words, capture=False):
        answers.append(otus_command(*map(str, words)))
        return answers[-1] if capture else None

    monkeypatch.setattr(demo, "otus", run)
    demo.main()
    said = capsys.readouterr().out
    found = json.loads(answers[0])["images"][0]["instances"]
    assert [one["category"] for one in found] == ["cat"]
    assert "1 of 1 are right" in said
    for name in (
        "photographs/index.html",
        "photographs/predictions.json",
        "found.jpg",
        "panoptic.jpg",
        "taxonomy.png",
        "predictions.json",
    ):
        assert (tmp_path / "demo-out" / name).is_file()
    assert "AP" in answers[-2]


def test_a_command_of_the_demo_is_shown_and_answers(demo, capfd):
    assert demo.otus("--version", capture=True).startswith("otus ")
    assert "$ otus --version" in capfd.readouterr().out


def test_every_category_that_is_found_has_been_looked_at(demo):
    """The verdicts are of photographs that are shown."""
    assert {name for name, _ in demo.VERDICTS} == {Path(name).stem for name in demo.PHOTOGRAPHS}
