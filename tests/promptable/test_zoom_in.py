"""Zoom-in: what is predicted in a window is what the model predicts for a picture of the window."""

import json

import numpy as np
import pytest
from PIL import Image, ImageDraw
from typer.testing import CliRunner

import otus
from otus.cli import app
from otus.data.image_writing import write_image
from otus.errors import OtusError, UsageError
from otus.inference.promptable import load_method, load_sam
from otus.promptable.method import SamMethod
from otus.promptable.zoom_in import ZoomIn, _logits_in_image, _logits_in_window, window_around
from otus.structures import MaskCandidates, Prompt

SIZE_HW = (450, 600)
SMALL, LARGE = (400.0, 300.0, 436.0, 330.0), (20.0, 30.0, 330.0, 400.0)  # boxes of two ellipses


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    noise = np.random.default_rng(0).integers(60, 110, (*SIZE_HW, 3)).astype(np.uint8)
    picture = Image.fromarray(noise)
    ImageDraw.Draw(picture).ellipse(SMALL, fill=(220, 60, 40))
    ImageDraw.Draw(picture).ellipse(LARGE, fill=(40, 90, 220))
    return np.asarray(picture)


@pytest.fixture(scope="module")
def method() -> SamMethod:
    return load_sam("sam_efficientnet_lite0")


def test_a_small_object_is_predicted_in_its_window(method: SamMethod, image: np.ndarray) -> None:
    zoom_in = ZoomIn(method)
    embedding = zoom_in.embed(image)
    found = zoom_in.segment(embedding, Prompt([[418, 315]], [1]))
    (window,) = embedding._windows
    x1, y1, x2, y2 = window
    assert 0 <= x1 < SMALL[0] < SMALL[2] < x2
    assert x2 - x1 <= SIZE_HW[1] / 3
    in_window = method.segment(method.embed(image[y1:y2, x1:x2]), Prompt([[418 - x1, 315 - y1]], [1]))
    dense = found.masks.dense()
    assert np.array_equal(dense[:, y1:y2, x1:x2], in_window.masks.dense())
    assert dense.sum() == in_window.masks.dense().sum() > 0
    assert np.array_equal(found.scores, in_window.scores)


def test_further_clicks_share_the_window_and_refine_the_mask(method: SamMethod, image: np.ndarray) -> None:
    zoom_in = ZoomIn(method)
    embedding = zoom_in.embed(image)
    first = zoom_in.segment(embedding, Prompt([[418, 315]], [1]))
    second = zoom_in.segment(embedding, Prompt([[418, 315], [425, 320]], [1, 1]), mask_logits=_logits(first))
    number = len(embedding._windows)
    prompt = Prompt([[418, 315], [425, 320], [405, 302]], [1, 1, 0])
    third = zoom_in.segment(embedding, prompt, mask_logits=_logits(second))
    assert len(embedding._windows) == number
    # The logits in the image's frame show the mask that they are of.
    coarse = third.low_resolution_logits[0] > 0
    cell = max(SIZE_HW) / len(coarse)
    rows, columns = np.nonzero(third.best())
    centre = np.argwhere(coarse).mean(axis=0) * cell
    assert np.abs(centre - [rows.mean(), columns.mean()]).max() < cell
    again = zoom_in.segment(zoom_in.embed(image), prompt, mask_logits=_logits(second))
    assert np.array_equal(again.best(), third.best())  # whatever was asked before


def _logits(candidates: MaskCandidates) -> np.ndarray:
    assert candidates.low_resolution_logits is not None
    return candidates.low_resolution_logits[0]


def test_a_large_object_needs_no_window(method: SamMethod, image: np.ndarray) -> None:
    zoom_in = ZoomIn(method)
    embedding = zoom_in.embed(image)
    prompt = Prompt(box_xyxy=LARGE)
    found, plain = zoom_in.segment(embedding, prompt), method.segment(method.embed(image), prompt)
    assert not embedding._windows
    assert np.array_equal(found.masks.dense(), plain.masks.dense())
    for number in range(20):  # boxes far from one another: windows of their own, of which the last ones are kept
        zoom_in.segment(embedding, Prompt(box_xyxy=[20 + 25 * number, 20, 30 + 25 * number, 30]))
    assert 1 < len(embedding._windows) <= 16


@pytest.mark.parametrize("box", [(100, 80, 130, 140), (0, 0, 4, 4), (590, 440, 600, 450), (300, 100, 310, 250)])
@pytest.mark.parametrize("size_hw", [(450, 600), (600, 450), (451, 1201)])
def test_a_window_contains_its_boxes(box: tuple[float, ...], size_hw: tuple[int, int]) -> None:
    box = np.minimum(box, [*size_hw[::-1]] * 2).astype(float)
    x1, y1, x2, y2 = window_around(box[None], size_hw)
    assert 0 <= x1 <= box[0]
    assert box[2] <= x2 <= size_hw[1]
    assert 0 <= y1 <= box[1]
    assert box[3] <= y2 <= size_hw[0]
    assert max(x2 - x1, y2 - y1) <= 0.7 * max(size_hw) + 1


def test_windows_of_nothing_and_of_everything() -> None:
    assert window_around(np.zeros((0, 4)), (450, 600)) is None
    assert window_around(np.array([[0.0, 0.0, 1.0, 1.0]]), (1, 1)) is None
    assert window_around(np.array([[0.0, 0.0, 330.0, 20.0]]), (450, 600)) is None


@pytest.mark.parametrize("size_hw", [(1, 3000), (3000, 2), (1, 1), (7, 9)])
def test_images_of_any_shape(method: SamMethod, size_hw: tuple[int, int]) -> None:
    zoom_in = ZoomIn(method)
    embedding = zoom_in.embed(np.random.default_rng(0).integers(0, 255, (*size_hw, 3)).astype(np.uint8))
    x, y = size_hw[1] // 2, size_hw[0] // 2
    first = zoom_in.segment(embedding, Prompt([[x, y]], [1]))
    second = zoom_in.segment(embedding, Prompt([[x, y], [0, 0]], [1, 0]), mask_logits=_logits(first))
    assert first.masks.size_hw == second.masks.size_hw == size_hw
    assert np.isfinite(_logits(second)).all()


def test_logits_survive_a_round_trip() -> None:
    logits = np.full((96, 96), -8.0, np.float32)
    logits[40:48, 58:66] = 8
    window = window_around(np.array([[362.0, 250.0, 412.0, 300.0]]), SIZE_HW)
    there = _logits_in_window(logits, window, SIZE_HW)
    assert (there > 0).sum() > 3 * (logits > 0).sum()
    back = _logits_in_image(there[None], window, SIZE_HW)[0]
    assert np.array_equal(back > 0, logits > 0)


@pytest.mark.parametrize(
    "prompt",
    [
        Prompt([[700, 20]], [1]),
        Prompt([[20, 20]], [0]),
        Prompt(),
        Prompt(mask=np.zeros((4, 4), bool)),
        Prompt(box_xyxy=[700, 500, 710, 510]),
        Prompt(scribbles=np.zeros(SIZE_HW, int)),
    ],
)
def test_prompts_that_cannot_be_raise_the_same_errors(method: SamMethod, image: np.ndarray, prompt: Prompt) -> None:
    zoom_in = ZoomIn(method)
    with pytest.raises(OtusError) as plain:
        method.segment(method.embed(image), prompt)
    with pytest.raises(OtusError) as zoomed:
        zoom_in.segment(zoom_in.embed(image), prompt)
    assert str(plain.value) == str(zoomed.value)


def test_the_command_zooms_in(image: np.ndarray, tmp_path) -> None:
    write_image(tmp_path / "a.png", image)
    options = ["--point", "418,315,1", "--json"]
    documents = [
        json.loads(CliRunner().invoke(app, ["segment", str(tmp_path / "a.png"), *options, *more]).stdout)
        for more in ([], ["--zoom-in"])
    ]
    plain, zoomed = (document["candidates"][0] for document in documents)
    assert plain["segmentation"] != zoomed["segmentation"]
    assert documents[0]["method"] == documents[1]["method"] == "sam_efficientnet_lite0"


def test_classical_methods_and_detectors_do_not_zoom_in(tmp_path) -> None:
    with pytest.raises(UsageError, match="graph-cut segments at full resolution"):
        load_method("graph-cut", zoom_in=True)
    with pytest.raises(UsageError, match="only for an interactive method"):
        otus.evaluate(tmp_path, model="fcos_efficientnet_lite0_fpn", zoom_in=True)
