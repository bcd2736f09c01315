"""``otus models``: the list and the JSON document."""

import json
from pathlib import Path

from typer.testing import CliRunner

from otus.cli import app
from otus.zoo.models import MODELS


def test_lines_are_not_wrapped_on_a_narrow_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    lines = CliRunner().invoke(app, ["models"]).stdout.splitlines()
    assert [line.split()[0] for line in lines if line and not line.startswith(" ")][:-3] == list(MODELS)
    assert lines[-4].startswith("Start with mask_rcnn_efficientnet_lite0_fpn")
    assert "    weights 13 MB, 60 ms per image on two cores of an AMD EPYC in bfloat16" in lines
    assert "    weights 170 MB" in lines
    assert "    COCO val2017: bbox AP 0.379, segm AP 0.346" in lines
    assert max(map(len, lines)) < 80


def test_the_document_has_each_model():
    (rows,) = json.loads(CliRunner().invoke(app, ["models", "--json"]).stdout).values()
    assert [one["name"] for one in rows] == list(MODELS)
    for one in rows:
        assert one.keys() == {
            "name", "task", "packaged", "trained", "weights", "paper", "licence", "figures",
            "megabytes", "milliseconds",
        }  # fmt: skip
        assert one["trained"] == bool(one["weights"])


def test_sizes_and_times_are_those_that_are_stated_elsewhere():
    """Sizes equal those in torchvision's metadata, times those in the decision on the packaged models."""
    from torchvision.models import detection, get_model_weights, list_models

    stated = {
        one.url: one.meta["_file_size"] for name in list_models(module=detection) for one in get_model_weights(name)
    }
    published = [one for entry in MODELS.values() for one in entry.weights.values()]
    known = [one for one in published if one.url in stated]
    assert len(known) == 13
    assert [one.megabytes for one in known] == [round(stated[one.url]) for one in known]
    decision = (Path(__file__).parents[2] / "docs/decisions/0007-two-packaged-detectors.md").read_text()
    assert f"7.2 MB | {MODELS['fcos_efficientnet_lite0_fpn'].milliseconds} |" in decision
    assert f"13.0 MB | {MODELS['mask_rcnn_efficientnet_lite0_fpn'].milliseconds} |" in decision
