"""The table of the lineage: measured times, cached timings, and published times."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch import nn
from typer.testing import CliRunner

from otus.cli import app
from otus.detection.region_based.fast_rcnn import fast_rcnn
from otus.detection.region_based.faster_rcnn import RegionProposalNetwork, faster_rcnn
from otus.detection.region_based.rcnn import rcnn
from otus.detection.region_based.spp_net import SpatialPyramidPooling, spp_net
from otus.errors import UsageError
from otus.experiments import lineage
from otus.experiments.lineage import SYSTEMS, LineageTable, Timing, measure_lineage
from otus.parts.backbones import LayeredBackbone
from otus.parts.boxes.anchors import GridAnchorGenerator
from otus.parts.preprocess import Preprocess
from otus.parts.regions.crops import WarpedCrops
from otus.parts.regions.roi_features import RoIFeatures, RoIPooler
from otus.parts.tasks import DETECTION
from otus.proposals.proposers import PrecomputedProposals
from otus.zoo.models import MODELS, ModelEntry


def backbone() -> LayeredBackbone:
    layers = {
        "c1": nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ReLU()),
        "c2": nn.Sequential(nn.Conv2d(8, 8, 3, stride=2, padding=1), nn.ReLU()),
    }
    return LayeredBackbone(layers, levels=(2,))


def maps() -> RoIFeatures:
    one = backbone()
    return RoIFeatures(one, RoIPooler(4, strides=one.strides, method="pool"))


BUILDERS = {
    "rcnn": lambda categories, proposals: rcnn(
        WarpedCrops(backbone(), crop_size=16),
        categories,
        proposer=PrecomputedProposals(proposals),
        representation_size=8,
    ),
    "spp_net": lambda categories, proposals: spp_net(
        SpatialPyramidPooling(backbone(), bins=(2, 1)),
        categories,
        proposer=PrecomputedProposals(proposals),
        representation_size=8,
    ),
    "fast_rcnn": lambda categories, proposals: fast_rcnn(
        maps(), categories, proposer=PrecomputedProposals(proposals), representation_size=8
    ),
    "faster_rcnn": lambda categories: faster_rcnn(
        maps(),
        RegionProposalNetwork(8, GridAnchorGenerator([[16, 32]]), post_nms_top_n=10),
        categories,
        representation_size=8,
    ),
}


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, builder in BUILDERS.items():
        entry = ModelEntry(builder, DETECTION, "none", Preprocess(shorter_side=64, longer_side=64))
        monkeypatch.setitem(MODELS, f"{name}_efficientnet_lite0", entry)


@pytest.fixture
def images(tmp_path: Path) -> list[str]:
    rng = np.random.default_rng(0)
    paths = []
    for i in range(3):
        pixels = np.kron(rng.integers(0, 255, (6, 8, 3)), np.ones((10, 10, 1))).astype(np.uint8)
        paths.append(str(tmp_path / f"{i}.png"))
        Image.fromarray(pixels).save(paths[-1])
    return paths


def test_the_command_measures_all_and_goes_on_where_it_stopped(
    images: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["benchmark", "lineage", *images, "--small", "--proposals", "30", "--precision", "exact"]
    command += ["--out", str(tmp_path / "kept")]
    original, calls = lineage._detect, []

    def stopping(predictor, *arguments):
        calls.append(predictor.name)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return original(predictor, *arguments)

    monkeypatch.setattr(lineage, "_detect", stopping)
    assert CliRunner().invoke(app, command).exit_code == 130
    assert len(list((tmp_path / "kept").glob("*.json"))) == 3
    result = CliRunner().invoke(app, [*command, "--json"])
    assert result.exit_code == 0, result.stderr
    assert len(calls) == 6 + 3 * 4  # of each system that was missing: a warm-up and three images
    document = json.loads(result.stdout)
    assert [row["system"] for row in document["rows"]] == list(SYSTEMS)
    assert [row["proposals"] for row in document["rows"]] == [30, 30, 30, 10]
    assert (document["weights"], document["precision"], len(document["timings"])) == ("random", "exact", 12)
    for row in document["rows"][:3]:
        own = [one for one in document["timings"] if one["system"] == row["system"]]
        assert row["without_s"] == pytest.approx(np.mean([one["network_s"] for one in own]))
        assert row["with_proposals_s"] == pytest.approx(np.mean([one["network_s"] + one["proposal_s"] for one in own]))
    assert document["rows"][3]["without_s"] is None
    shown = CliRunner().invoke(app, command)
    assert "published" in shown.stdout
    assert "faster_rcnn" in shown.stdout
    assert len(calls) == 18
    half, other = sorted((tmp_path / "kept").glob("rcnn-*.json"))[:2]
    half.write_bytes(half.read_bytes()[:20])
    other.write_text('{"another": "file"}')
    again = CliRunner().invoke(app, [*command, "--json"])
    assert again.exit_code == 0, again.stderr
    assert len(calls) == 18 + 3  # a warm-up, and the two that cannot be believed
    assert len(json.loads(again.stdout)["timings"]) == 12


def test_ratios_are_over_rcnn() -> None:
    timings = [Timing(system, "a", 1, 1.0, seconds) for system, seconds in zip(SYSTEMS[:3], (8, 3, 1), strict=True)]
    rows = LineageTable("t", "exact", 1, [*timings, Timing("faster_rcnn", "a", 1, None, 0.5)]).rows()
    assert [row["with_proposals_speedup"] for row in rows] == [1, 9 / 4, 9 / 2, 18]
    assert [row["without_speedup"] for row in rows] == [1, 8 / 3, 8, None]
    assert [row["with_proposals_published_speedup"] for row in rows] == pytest.approx([1, 49 / 4.3, 49 / 2.3, 245])
    assert [row["without_published_s"] for row in rows] == [47.0, 2.3, 0.32, None]


def test_too_few_images() -> None:
    with pytest.raises(UsageError, match="at least 3 images, got 1"):
        measure_lineage([("a", np.zeros((9, 9, 3), np.uint8))])
