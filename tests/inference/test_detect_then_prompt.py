"""Words and detections as prompts: what is understood, which detection is meant, and the masks of its boxes."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.ndimage import find_objects, label
from typer.testing import CliRunner, Result

from otus.cli import app
from otus.data.image_writing import write_image
from otus.data.images import read_label_image
from otus.errors import CheckpointError, UsageError
from otus.inference.detect_then_prompt import Description, DetectThenPrompt, refine_masks
from otus.inference.predictor import Predictor
from otus.interactive.grab_cut import GrabCut
from otus.interactive.graph_cut import GraphCut
from otus.parts.postprocess import Postprocess
from otus.parts.preprocess import Preprocess
from otus.parts.system import BaseSystem
from otus.parts.tasks import DETECTION, SEMANTIC
from otus.structures import Categories, Instances, Masks, Prompt
from otus.zoo.checkpoint import CheckpointHeader, save_checkpoint
from otus.zoo.models import MODELS, ModelEntry

SHAPES = Categories(("red disc", "bluedisc", "green disc"))
RED, BLUE = 0, 1
DISCS = [(RED, 20, 40, 10), (RED, 60, 30, 14), (RED, 100, 50, 6), (BLUE, 60, 64, 9)]
"""Label, x and y of the centre, and radius."""


def picture(discs: list[tuple[int, int, int, int]] = DISCS) -> tuple[np.ndarray, np.ndarray]:
    """Return coloured discs on grey noise, and their masks."""
    rows, columns = np.mgrid[:80, :120]
    masks = np.stack([np.hypot(columns + 0.5 - x, rows + 0.5 - y) <= radius for _, x, y, radius in discs])
    image = np.random.default_rng(0).integers(80, 110, (80, 120, 3)).astype(np.uint8)
    for (category, *_), mask in zip(discs, masks, strict=True):
        image[mask] = np.where(np.arange(3) == 2 * category, 230, 20)
    return image, masks


class FindsDiscs(BaseSystem[Any, Instances]):
    """Not learned: a box around each coloured disc, three pixels wider, without masks; larger discs score less."""

    def __init__(self, categories: Categories = SHAPES) -> None:
        super().__init__()
        self.categories = categories
        self.postprocess = Postprocess()
        self.unused = torch.nn.Parameter(torch.zeros(1))

    def predict(self, samples: Any, *, postprocess: Postprocess | None = None) -> list[Instances]:
        results = []
        for sample in samples:
            image = sample["image"].numpy() * 255
            found = []
            for category, channel in ((RED, 0), (BLUE, 2)):
                parts = find_objects(label(image[channel] > 200)[0])
                found += [(category, columns.start - 3, rows.start - 3, columns.stop + 3, rows.stop + 3)
                          for rows, columns in parts]  # fmt: skip
            table = np.array(found, dtype=np.float64).reshape(-1, 5)
            scores = 1 - (table[:, 3] - table[:, 1]) / 100
            order = np.argsort(scores)  # not by descending score
            results.append(Instances(table[order, 1:], table[order, 0].astype(int), image.shape[1:], self.categories,
                                     scores=scores[order]))  # fmt: skip
        return results


def detector() -> Predictor:
    return Predictor(FindsDiscs(), preprocess=Preprocess(mean=(0, 0, 0), std=(1, 1, 1)), name="discs", device="cpu")


def iou(one: np.ndarray, other: np.ndarray) -> float:
    return (one & other).sum() / (one | other).sum()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("red disc", Description(0)),
        ("the LEFT  Red Disc", Description(0, ("left",))),
        ("top right blue disc", Description(1, ("top", "right"))),
        ("a smallest reddisc", Description(0, ("smallest",))),
    ],
)
def test_words_that_are_known(text: str, expected: Description) -> None:
    assert Description.parse(text, SHAPES) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("left red dics", "got 'left red dics'; it knows red disc, bluedisc, green disc; did you mean 'red disc'"),
        ("dog", "expected a category that the detector knows, got 'dog'; it knows red disc, bluedisc, green disc$"),
        ("", "expected a category"),
        ("left", "expected a category"),
        ("leftmost red disc", "'leftmost' in .* is not known; before a category stand left, .*; did you mean 'left'"),
        ("left right red disc", "left and right in .* do not go together"),
        ("largest smallest red disc", "largest and smallest in .* do not go together"),
    ],
)
def test_words_that_are_not(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Description.parse(text, SHAPES)


@pytest.mark.parametrize(
    ("text", "discs"),
    [
        ("left red disc", [0]),
        ("right red disc", [2]),
        ("top red disc", [1]),
        ("bottom red disc", [2]),
        ("smallest red disc", [2]),
        ("largest red disc", [1]),
        ("top left red disc", [0]),
        ("red disc", [2, 0, 1]),  # by descending score
        ("blue disc", [3]),
        ("green disc", []),
        ("left green disc", []),
    ],
)
def test_masks_of_what_words_describe(text: str, discs: list[int]) -> None:
    image, masks = picture()
    method = DetectThenPrompt(detector(), GrabCut())
    candidates = method.segment(method.embed(image), Prompt(text=text))
    assert candidates.objects.tolist() == list(range(1, len(discs) + 1))
    assert candidates.masks.size_hw == (80, 120)
    for mask, disc in zip(candidates.masks, discs, strict=True):
        assert iou(mask, masks[disc]) > 0.95


def test_prompts_of_other_kinds_go_to_the_method_beneath() -> None:
    image, masks = picture()
    method = DetectThenPrompt(detector(), GrabCut())
    embedding = method.embed(image)
    box = Prompt(box_xyxy=[43, 13, 77, 47])
    assert iou(method.segment(embedding, box).best(), masks[1]) > 0.95
    for prompt in (replace(box, text="red disc"), Prompt([[60, 30]], [1], text="red disc")):
        with pytest.raises(UsageError, match="they stand alone"):
            method.segment(embedding, prompt)


class Labels(FindsDiscs):
    task = SEMANTIC


def test_what_detects_no_objects_finds_no_words() -> None:
    semantic = Predictor(Labels(), preprocess=Preprocess(), name="labels", device="cpu")
    with pytest.raises(UsageError, match="labels predicts the category of every pixel, not objects"):
        DetectThenPrompt(semantic, GrabCut())
    with pytest.raises(UsageError, match="refine_masks: labels predicts the category"):
        semantic.predict(picture()[0], refine_masks=GrabCut())


def test_detections_keep_all_but_their_masks() -> None:
    image, masks = picture()
    detections = detector().predict(image)[0].instances
    coarse = replace(detections, masks=Masks.from_dense(np.zeros((4, 80, 120), bool)), keypoints=np.ones((4, 2, 3)))
    refined = refine_masks(GrabCut(), image, coarse.with_columns(ids=np.arange(4)))
    for name in ("boxes_xyxy", "labels", "scores", "keypoints"):
        np.testing.assert_array_equal(getattr(refined, name), getattr(coarse, name))
    assert refined.columns["ids"].tolist() == [0, 1, 2, 3]
    assert refined.masks is not None
    for mask, disc in zip(refined.masks, (1, 0, 3, 2), strict=True):
        assert iou(mask, masks[disc]) > 0.95


def test_an_image_decoded_at_half_its_size() -> None:
    image, masks = picture()
    detections = detector().predict(image)[0].instances
    refined = refine_masks(GrabCut(), image, detections.resized((160, 240)))
    assert refined.masks is not None
    assert refined.masks.size_hw == (160, 240)
    assert iou(refined.masks.dense()[0], masks[1].repeat(2, axis=0).repeat(2, axis=1)) > 0.95


def test_boxes_without_area_and_no_boxes() -> None:
    image, masks = picture()
    boxes = [[-9, -9, 0, 0], [30, 30, 30, 40], [-5, 26, 34, 54], [119.5, 79.5, 300, 300]]
    refined = refine_masks(GrabCut(), image, Instances(boxes, [0, 0, 0, 0], (80, 120), SHAPES, scores=np.ones(4)))
    assert refined.masks is not None
    assert refined.masks.area()[:2].tolist() == [0, 0]
    assert iou(refined.masks.dense()[2], masks[0]) > 0.95
    assert refined.boxes_xyxy.tolist() == boxes
    empty = refine_masks(GrabCut(), image, Instances.empty((80, 120), SHAPES, scores=np.zeros(0)))
    assert empty.masks is not None
    assert len(empty.masks) == 0


def test_predictor_option() -> None:
    image, masks = picture()
    plain, refined = detector().predict(image)[0], detector().predict([image], refine_masks="grabcut", tiles=64)[0]
    assert plain.instances.masks is None
    assert refined.milliseconds["masks"] > 0
    assert refined.instances.masks is not None
    assert max(iou(mask, masks[1]) for mask in refined.instances.masks) > 0.95
    with pytest.raises(UsageError, match=r"graph-cut: takes .*no box"):
        detector().predict(image, refine_masks=GraphCut())
    with pytest.raises(CheckpointError, match=r"nowhere\.safetensors: there is no such file"):
        detector().predict(image, refine_masks=Path("nowhere.safetensors"))


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    entry = ModelEntry(FindsDiscs, DETECTION, "none", Preprocess(mean=(0, 0, 0), std=(1, 1, 1)))
    monkeypatch.setitem(MODELS, "discs", entry)
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "discs.safetensors"
    save_checkpoint(path, FindsDiscs().state_dict(), CheckpointHeader(builder="discs", categories=SHAPES))
    write_image("a.png", picture()[0])
    for name, discs in (("b.png", DISCS), ("c.png", DISCS[3:]), ("d.png", DISCS[1:])):
        write_image(Path("photos") / name, picture(discs)[0])
    return path


def run(*arguments: object, code: int = 0) -> Result:
    result = CliRunner().invoke(app, list(map(str, arguments)))
    assert result.exit_code == code, result.output
    return result


def test_segment_by_words(weights: Path) -> None:
    by_words = ("segment", "a.png", "--method", "grabcut", "--detector", weights, "--text")
    masks = picture()[1]
    assert "(grabcut, detector discs, " in run(*by_words, "left red disc").stdout
    assert iou(read_label_image("a-mask.png") == 1, masks[0]) > 0.95
    document = json.loads(run(*by_words, "red disc", "--json", "--overlay", "seen.png").stdout)
    assert document["text"] == {"words": "red disc", "answered_by": "detector discs"}
    assert document["method"] == "grabcut"
    assert [record["object"] for record in document["candidates"]] == [1, 2, 3]
    assert Path("seen.png").exists()


@pytest.mark.parametrize("format_", ["png", "rle", "coco", "labelme"])
def test_nothing_is_found(weights: Path, format_: str) -> None:
    result = run("segment", "a.png", "--detector", weights, "--text", "green disc", "--format", format_, "--out", "none",
                 "--overlay", "seen.png")  # fmt: skip
    assert "found no green disc, no masks" in result.stdout
    if format_ == "png":
        assert not read_label_image("none.png").any()
    else:
        assert "segmentation" not in Path("none.json").read_text()


def test_words_that_a_command_gets_wrong(weights: Path) -> None:
    by_words = ("segment", "--detector", weights, "--out", "masks", "--text")
    assert "did you mean 'red disc'" in run(*by_words, "red dics", "photos", code=2).stderr
    assert not list(Path().glob("masks/*"))
    assert "expected a category" in run(*by_words, "", "a.png", code=2).stderr
    assert "they stand alone" in run(*by_words, "red disc", "a.png", "--point", "9,9,1", code=2).stderr
    assert "takes points" in run(*by_words, "red disc", "a.png", "--method", "graph-cut", code=2).stderr
    assert "did you mean" in run("segment", "a.png", "--text", "dog", "--detector", "mask_rcnn", code=2).stderr


def test_words_for_a_folder(weights: Path) -> None:
    arguments = ("segment", "photos", "--detector", weights, "--text", "largest red disc", "--out", "masks", "--json",
                 "--method", "grabcut")  # fmt: skip
    images = json.loads(run(*arguments).stdout)["images"]
    assert [len(image["candidates"]) for image in images] == [1, 0, 1]
    assert json.loads(run(*arguments).stdout)["images"] == images  # read, not computed again
    Path("other.safetensors").write_bytes(weights.read_bytes())
    again = json.loads(run(*arguments, "--detector", "other.safetensors").stdout)["images"]  # the last one counts
    assert {image["detector"] for image in again} == {"other.safetensors"}
    other = json.loads(run(*arguments[:5], "blue disc", *arguments[6:]).stdout)["images"]
    assert [len(image["candidates"]) for image in other] == [1, 1, 1]
    Path("p.json").write_text(json.dumps({"b.png": {"text": "top red disc"}, "c.png": {"text": "red dics"}}))
    result = run("segment", "photos", "--method", "grabcut", "--detector", weights, "--prompts", "p.json", "--out", "masks",
                 code=1)  # fmt: skip
    assert "c.png: text: expected a category" in result.stderr
    assert iou(read_label_image("masks/b.png.png") == 1, picture()[1][1]) > 0.95


def test_words_for_the_frames_of_a_video(weights: Path) -> None:
    write_image(Path("film") / "0.png", picture(DISCS[3:])[0])
    for frame in (1, 2):
        write_image(Path("film") / f"{frame}.png", picture([(RED, 40 + 2 * frame, 40, 12)])[0])
    run("segment", "film", "--frames", "--detector", weights, "--text", "red disc", "--out", "masks", "--method", weights,
        code=2)  # fmt: skip
    Path("p.json").write_text(json.dumps({"0.png": {"text": "red disc"}}))
    result = run("segment", "film", "--frames", "--prompts", "p.json", "--detector", weights, "--out", "o", code=1)
    assert "nothing was found on the previous frame" in result.stderr
    result = run("segment", "film", "--frames", "--detector", weights, "--text", "red disc", "--out", "masks", "--json")
    images = json.loads(result.stdout)["images"]
    assert [len(image["candidates"]) for image in images] == [0, 1, 1]
    assert ["text" in image for image in images] == [True, True, False]  # until something is found


def test_predict_with_masks_for_the_boxes(weights: Path) -> None:
    masks = picture()[1]
    arguments = ("predict", "a.png", "--model", weights, "--refine-masks", "grabcut")
    document = json.loads(run(*arguments, "--json").stdout)
    assert document["refine_masks"] == "grabcut"
    instances = document["images"][0]["instances"]
    counts = [instance["segmentation"]["counts"] for instance in instances]
    assert iou(Masks.from_rle(counts, (80, 120)).dense()[0], masks[1]) > 0.95
    plain = json.loads(run(*arguments[:4], "--json").stdout)["images"][0]["instances"]
    assert [instance["bbox"] for instance in instances] == [instance["bbox"] for instance in plain]
    assert all("segmentation" not in instance for instance in plain)
    assert ", masks " in run("predict", "photos", *arguments[2:], "--out", "found").stdout
    records = json.loads(Path("found/predictions.json").read_text())
    assert len(records) == 8
    assert all(record["segmentation"]["size"] == [80, 120] for record in records)
    assert "did you mean 'grabcut'" in run(*arguments[:4], "--refine-masks", "grab-cut", code=2).stderr
    assert "no box" in run(*arguments[:4], "--refine-masks", "graph-cut", "--out", "x", code=2).stderr
