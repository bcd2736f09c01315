"""Interactive methods evaluated by simulated clicks, by ``otus.evaluate`` and ``otus evaluate``."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import otus
from otus.cli import app
from otus.data.image_writing import write_image, write_label_image
from otus.errors import UsageError
from otus.interactive.graph_cut import GraphCut
from otus.structures import MaskCandidates, Masks, Prompt


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write two discs, one with an ignored border, as index PNGs and images."""
    folder = tmp_path_factory.mktemp("discs")
    rows, columns = np.mgrid[:48, :64]
    for name, center_x in (("a", 20), ("b", 40)):
        far = np.hypot(columns - center_x, rows - 24)
        image = np.where((far <= 12)[..., None], [170, 70, 60], [60, 110, 90])
        noise = np.random.default_rng(center_x).normal(0, 8, image.shape)
        write_image(folder / "images" / f"{name}.png", np.clip(image + noise, 0, 255).astype(np.uint8))
        write_label_image(folder / "masks" / f"{name}.png", np.where(far <= 11, 255, np.where(far <= 13, 128, 0)))
    return folder


class Painter:
    """A method that marks another tenth of the image from the top with every click on the object, and counts its calls."""

    name = "painter"
    asked = 0

    def embed(self, image: np.ndarray) -> tuple[int, int]:
        return image.shape[:2]

    def segment(self, embedding: tuple[int, int], prompt: Prompt) -> MaskCandidates:
        self.asked += 1
        mask = np.zeros((1, *embedding), bool)
        mask[:, : round(len(prompt.points_xy) * embedding[0] / 10)] = True
        return MaskCandidates(Masks.from_dense(mask), np.ones(1), np.ones(1, int))


def test_any_method_is_clicked_at(labelled: Path) -> None:
    painter = Painter()
    report = otus.evaluate(labelled, method=painter)
    figures = report.results["interactive"].figures
    assert report.images == 2
    assert painter.asked == 40
    assert figures["NoC@85"] == 20
    rows, columns = np.mgrid[:48, :64]
    far = np.hypot(columns - 20, rows - 24)
    for click in (3, 7):
        painted, evaluated = rows < round(click * 4.8), (far <= 11) | (far > 13)
        expected = ((far <= 11) & painted).sum() / (((far <= 11) | painted) & evaluated).sum()
        assert figures[f"IoU@{click}"] == pytest.approx(expected, abs=1e-9)
    assert figures["seconds_per_click"] > 0


class Learned(Painter):
    """A method whose logits are the number of its clicks; it remembers those that it is given."""

    def __init__(self) -> None:
        self.given: list[float | None] = []

    def segment(
        self, embedding: tuple[int, int], prompt: Prompt, mask_logits: np.ndarray | None = None
    ) -> MaskCandidates:
        self.given.append(None if mask_logits is None else float(mask_logits[0, 0]))
        candidates = super().segment(embedding, prompt)
        return replace(candidates, low_resolution_logits=np.full((1, 2, 2), len(prompt.points_xy)))


def test_a_learned_method_gets_the_logits_of_its_previous_mask(labelled: Path) -> None:
    learned = Learned()
    otus.evaluate(labelled, method=learned)
    assert learned.given == [None, *range(1, 20)] * 2


def test_graph_cut_needs_few_clicks(labelled: Path) -> None:
    done = CliRunner().invoke(app, ["evaluate", "--data", str(labelled), "--method", "graph-cut", "--json"])
    assert done.exit_code == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["protocol"] == "interactive"
    figures = document["interactive"]
    assert figures["NoC@90"] <= 2
    assert figures["IoU@20"] > 0.97
    again = otus.evaluate(labelled, method=GraphCut(), protocol="interactive").results["interactive"].figures
    assert {**figures, "seconds_per_click": 0, "per_category": {}} == {
        **again,
        "seconds_per_click": 0,
        "per_category": {},
    }


def test_objects_with_outlines_are_clicked_at_each(tmp_path: Path) -> None:
    rows, columns = np.mgrid[:40, :60]
    masks = [
        np.hypot(columns - 15, rows - 20) <= 8,
        np.hypot(columns - 42, rows - 20) <= 10,
        (rows < 3) & (columns < 9),
    ]
    image = np.full((40, 60, 3), [60, 110, 90], np.uint8)
    image[masks[0]], image[masks[1]] = [170, 70, 60], [60, 70, 170]
    write_image(tmp_path / "a.png", image)
    annotations = [
        {
            "id": i,
            "image_id": 1,
            "category_id": 1,
            "iscrowd": int(i == 3),
            "bbox": [0, 0, 9, 9],
            "area": int(mask.sum()),
        }
        | {"segmentation": {"size": [40, 60], "counts": Masks.from_dense(mask[None]).rle()[0]["counts"].decode()}}
        for i, mask in enumerate(masks, start=1)
    ]
    images = [{"id": 1, "file_name": "a.png", "width": 60, "height": 40}]
    document = {"images": images, "categories": [{"id": 1, "name": "ball"}], "annotations": annotations}
    (tmp_path / "annotations.json").write_text(json.dumps(document))
    result = otus.evaluate(tmp_path / "annotations.json", method="graph-cut").results["interactive"]
    assert result.curves.shape == (2, 20)  # the crowd is no object to click at
    assert result.figures["NoC@85"] <= 2


def test_requests_that_cannot_be(labelled: Path) -> None:
    with pytest.raises(UsageError, match="did you mean 'graph-cut'"):
        otus.evaluate(labelled, method="graph_cut")
    with pytest.raises(UsageError, match="evaluated by the protocol interactive"):
        otus.evaluate(labelled, method="graph-cut", protocol="semantic")
    with pytest.raises(UsageError, match="takes either predictions"):
        otus.evaluate(labelled, method="graph-cut", predictions="x.json")
    with pytest.raises(UsageError, match="takes a box"):
        otus.evaluate(labelled, method="grabcut")


def test_a_method_may_be_a_path(labelled: Path) -> None:
    by_path, by_name = (otus.evaluate(labelled, method=name) for name in (Path("graph-cut"), "graph-cut"))
    figures = [report.results["interactive"].figures for report in (by_path, by_name)]
    assert figures[0]["IoU@1"] == figures[1]["IoU@1"] > 0
