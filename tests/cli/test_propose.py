"""``otus propose``: the document, the drawing, messages, and that torch is not imported."""

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from otus.cli import app
from otus.data.dataset import Dataset, Images
from otus.data.image_writing import write_image
from otus.data.images import read_image
from otus.errors import UsageError
from otus.proposals.methods import find_proposals, make_proposer
from otus.proposals.selective_search import selective_search
from otus.proposals.windows import SlidingWindows
from otus.structures import Categories


@pytest.fixture
def photo(tmp_path):
    image = np.full((60, 80, 3), 60, np.uint8)
    image[10:40, 20:50] = 220, 40, 40
    image[20:55, 60:75] = 30, 200, 60
    path = tmp_path / "things.png"
    write_image(path, image)
    return path


def propose(*arguments):
    return CliRunner().invoke(app, ["propose", *map(str, arguments)])


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], lambda image: selective_search(image)),
        (["--mode", "quality", "--seed", 3], lambda image: selective_search(image, mode="quality", seed=3)),
        (["--method", "sliding-window"], SlidingWindows()),
    ],
)
def test_the_document_equals_the_result_in_python(photo, options, expected):
    done = propose(photo, *options, "--json")
    assert done.exit_code == 0, done.stderr
    document = json.loads(done.stdout)
    found = expected(read_image(photo))
    assert document["method"] == ("sliding-window" if "sliding-window" in options else "selective-search")
    assert document["count"] == len(document["proposals"]) == len(found)
    assert document["seconds"] > 0
    np.testing.assert_allclose([one["box_xyxy"] for one in document["proposals"]], found.boxes_xyxy)
    np.testing.assert_allclose([one["score"] for one in document["proposals"]], found.scores)


def test_so_many_at_most_and_a_image_of_them(photo, tmp_path):
    out = tmp_path / "new" / "seen.png"
    done = propose(photo, "--count", 5, "--out", out)
    assert done.exit_code == 0, done.stderr
    assert "5 proposals" in done.stdout
    assert str(out) in done.stdout
    drawn, image = np.asarray(Image.open(out)), read_image(photo)
    drawn = drawn[: len(image)]  # below it is a legend
    assert drawn.shape == image.shape
    assert (drawn != image).any()


def test_a_fresh_process_does_not_import_torch(photo):
    code = (
        "import sys, otus.cli\n"
        f"sys.argv = ['otus', 'propose', {str(photo)!r}, '--json']\n"
        "try:\n    otus.cli.main()\nexcept SystemExit:\n    pass\n"
        "print([name for name in ('torch', 'matplotlib') if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stderr.strip() == "[]"
    assert json.loads(done.stdout)["count"] > 0


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--method", "guess"], 2, "selective-search, sliding-window, rpn, got 'guess'"),
        (["--mode", "slow"], 2, "fast or quality"),
        (["--method", "sliding-window", "--mode", "fast"], 2, "mode"),
        (["--method", "rpn", "--mode", "fast"], 2, "--mode"),
        (["--model", "faster_rcnn"], 2, "--model"),
        (["--count", 0], 2, "--count"),
        (["--out", "seen.jpg"], 2, ".png"),
        (["--method", "rpn", "--model", "no_such_model"], 2, "no_such_model"),
    ],
)
def test_errors_of_wrong_commands(photo, options, code, words):
    done = propose(photo, *options)
    assert done.exit_code == code
    assert words in done.stderr
    assert done.stdout == ""


def test_a_missing_image_is_named(tmp_path):
    done = propose(tmp_path / "nowhere.png")
    assert done.exit_code == 1
    assert "nowhere.png" in done.stderr


@pytest.mark.parametrize("size_hw", [(1, 1), (1, 2000), (30, 40)])
@pytest.mark.parametrize("method", ["selective-search", "sliding-window"])
def test_odd_images_have_proposals(tmp_path, size_hw, method):
    write_image(tmp_path / "flat.png", np.full((*size_hw, 3), 9, np.uint8))
    done = propose(tmp_path / "flat.png", "--method", method, "--json", "--count", 3, "--out", tmp_path / "seen.png")
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["count"] >= 1


def test_a_data_set_by_the_name_of_a_method(photo, tmp_path, monkeypatch):
    monkeypatch.setenv("OTUS_CACHE", str(tmp_path / "kept"))
    images = Images(photo.parent, (photo.name,), np.array([[60, 80]]), (1,))
    dataset = Dataset(photo.parent, "made up", images, Categories(()))
    proposed = find_proposals(dataset, count=7, mode="fast")
    expected = selective_search(read_image(photo)).best(7).boxes_xyxy
    np.testing.assert_array_equal(proposed[0].columns["proposals_xyxy"], expected)
    assert len(list((tmp_path / "kept" / "proposals").rglob("*.npz"))) == 1
    find_proposals(dataset, method="sliding-window", count=7, cache=tmp_path / "elsewhere")
    assert len(list((tmp_path / "elsewhere").rglob("*.npz"))) == 1
    with pytest.raises(UsageError, match="stride: the method selective-search has no such option"):
        make_proposer("selective-search", stride=1)
