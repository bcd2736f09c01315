"""Any source in, results in the source's own frame out."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import otus
from otus.data.dataset import Dataset, Images
from otus.data.video import VideoWriter
from otus.detection.region_based.fast_rcnn import fast_rcnn
from otus.errors import CheckpointError, ImageError, UsageError
from otus.evaluation.on_dataset import predict_dataset
from otus.inference.devices import choose_device
from otus.inference.pipeline import Pipeline
from otus.inference.predictor import Predictor
from otus.inference.tiling import Tiles
from otus.parts.backbones import LayeredBackbone
from otus.parts.postprocess import Postprocess
from otus.parts.preprocess import Preprocess
from otus.parts.regions.roi_features import RoIFeatures, RoIPooler
from otus.parts.system import BaseSystem
from otus.parts.tasks import CLASSIFICATION
from otus.proposals.interface import Proposals
from otus.proposals.proposers import PrecomputedProposals
from otus.structures import Categories, Classification, Instances, Masks
from otus.zoo.checkpoint import CheckpointHeader, save_checkpoint
from otus.zoo.models import build_model

COLOURS = Categories(("red", "blue"))


class FindsColours(BaseSystem):
    """Not learned: one box around all red pixels, one around all blue ones, scored by their share of the box."""

    def __init__(self):
        super().__init__()
        self.categories = COLOURS
        self.postprocess = Postprocess()

    def predict(self, samples, *, postprocess=None):
        return [self._one(sample["image"], postprocess or self.postprocess) for sample in samples]

    def _one(self, image, postprocess):
        thresholds = postprocess.thresholds(torch.arange(2))
        boxes, labels, scores, masks = [], [], [], []
        for label, channel in enumerate((0, 2)):
            where = (image[channel] - image.sum(dim=0) / 2) > 0.25
            rows, columns = torch.nonzero(where, as_tuple=True)
            if not len(rows):
                continue
            box = [int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1]
            score = float(where[box[1] : box[3], box[0] : box[2]].float().mean())
            if score > thresholds[label]:
                boxes.append(box)
                labels.append(label)
                scores.append(score)
                masks.append(where.numpy())
        size_hw = (image.shape[1], image.shape[2])
        dense = np.array(masks, dtype=bool).reshape(-1, *size_hw)
        return Instances(
            np.array(boxes, dtype=np.float32).reshape(-1, 4),
            labels,
            size_hw,
            COLOURS,
            scores=np.array(scores),
            masks=Masks.from_dense(dense),
        )


@pytest.fixture
def predictor():
    preprocess = Preprocess(fixed_hw=(64, 96), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    return Predictor(FindsColours(), preprocess=preprocess, name="colours", device="cpu")


def photo(size_hw=(128, 192), *, red=(20, 30, 60, 90), blue=None):
    image = np.zeros((*size_hw, 3), np.uint8)
    for colour, box in ((0, red), (2, blue)):
        if box is not None:
            x1, y1, x2, y2 = box
            image[y1:y2, x1:x2, colour] = 255
    return image


def test_boxes_and_masks_come_back_in_the_images_frame(predictor):
    (found,) = predictor.predict(photo())
    np.testing.assert_allclose(found.instances.boxes_xyxy, [[20, 30, 60, 90]], atol=2)
    assert found.instances.size_hw == (128, 192)
    assert found.instances.masks.size_hw == (128, 192)
    assert found.instances.masks.dense()[0, 60, 40]
    assert not found.instances.masks.dense()[0, 100, 100]
    assert set(found.milliseconds) == {"prepare", "network", "undo"}


def test_every_kind_of_source(predictor, tmp_path):
    image = photo()
    folder = tmp_path / "photos" / "deep"
    folder.mkdir(parents=True)
    for name in ("a.png", "b.png"):
        Image.fromarray(image).save(folder / name)
    (folder / "notes.txt").write_text("not an image")
    with VideoWriter(tmp_path / "film.mp4", frame_rate=5) as writer:
        for _ in range(4):
            writer.add(image)
    sources = {
        "array": (image, 1),
        "PIL": (Image.fromarray(image), 1),
        "path": (folder / "a.png", 1),
        "text": (str(folder / "a.png"), 1),
        "folder": (tmp_path / "photos", 2),
        "pattern": (str(tmp_path / "photos" / "*" / "*.png"), 2),
        "list": ([image, folder / "b.png", [folder]], 4),
        "video": (tmp_path / "film.mp4", 4),
    }
    for kind, (source, count) in sources.items():
        for batch_size in (1, 3):
            found = predictor.predict(source, batch_size=batch_size)
            assert len(found) == count, kind
            assert all(len(one.instances) == 1 for one in found), kind
    assert [one.frame for one in predictor.predict(tmp_path / "film.mp4", stride=2)] == [0, 2]


def test_thresholds_and_categories(predictor):
    image = photo(red=(0, 0, 40, 40), blue=(96, 64, 160, 120))
    assert predictor.predict(image)[0].instances.labels.tolist() == [0, 1]
    assert predictor.predict(image, categories=["blue"])[0].instances.labels.tolist() == [1]
    own = predictor.system.postprocess
    assert len(predictor.predict(image, score_threshold=1.0)[0].instances) == 0
    assert predictor.system.postprocess == own
    with pytest.raises(UsageError, match="colours does not know green; it knows red, blue"):
        predictor.predict(image, categories=["green"])
    with pytest.raises(UsageError, match="score_threshold"):
        predictor.predict(image, score_threshold=1.5)


def test_tiles_find_what_is_small(predictor):
    image = photo((600, 900), red=(400, 300, 430, 330), blue=(10, 10, 40, 40))
    found = predictor.predict(image, tiles=Tiles(200, overlap=0.3), score_threshold=0.3)[0].instances
    assert sorted(found.labels.tolist()) == [0, 1]
    red = found[found.labels == 0]
    np.testing.assert_allclose(red.boxes_xyxy, [[400, 300, 430, 330]], atol=4)
    assert red.masks.dense()[0, 315, 415]


def test_an_object_larger_than_a_tile_is_found_once(predictor):
    image = photo((600, 900), red=(50, 50, 800, 500), blue=(10, 10, 40, 40))
    found = predictor.predict(image, tiles=200, score_threshold=0.3)[0].instances
    assert sorted(found.labels.tolist()) == [0, 1]
    np.testing.assert_allclose(found[found.labels == 0].boxes_xyxy, [[50, 50, 800, 500]], atol=10)
    again = predictor.predict(image, tiles=200, score_threshold=0.3, batch_size=5)[0].instances
    np.testing.assert_array_equal(again.boxes_xyxy, found.boxes_xyxy)
    pieces = predictor.predict(image, tiles=Tiles(200, whole_image=False), categories="red")[0].instances
    assert len(pieces) > 4
    assert set(pieces.labels) == {0}


@pytest.mark.parametrize("size_hw", [(1, 1), (1, 2000), (2000, 1)])
def test_tiny_and_thin_images(predictor, size_hw):
    assert len(predictor.predict(photo(size_hw, red=None))[0].instances) == 0


def test_unreadable_files_are_named_and_the_rest_is_done(predictor, tmp_path):
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "text.png").write_text("no image")
    Image.fromarray(photo()).save(tmp_path / "good.png")
    with pytest.raises(ImageError, match=r"empty\.jpg"):
        predictor.predict(tmp_path)
    bad = []
    assert [one.name for one in predictor.predict(tmp_path, report=bad.append)] == [str(tmp_path / "good.png")]
    assert [error.file.name for error in bad] == ["empty.jpg", "text.png"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A small detector of random weights as our own file."""
    torch.manual_seed(0)
    categories = Categories(("cat", "dog"))
    system = build_model("faster_rcnn_mobilenet_v3_large_320_fpn", categories)
    path = tmp_path_factory.mktemp("weights") / "mine.safetensors"
    preprocess = Preprocess(shorter_side=64, longer_side=96)
    header = CheckpointHeader(
        builder="faster_rcnn_mobilenet_v3_large_320_fpn", categories=categories, preprocess=preprocess.to_dict()
    )
    save_checkpoint(path, system.state_dict(), header)
    return path


def test_load_our_own_file(checkpoint):
    loaded = otus.load(checkpoint, device="cpu")
    assert tuple(loaded.categories) == ("cat", "dog")
    assert loaded.preprocess.shorter_side == 64
    twice = [loaded.predict(photo(), score_threshold=0.01)[0].instances for _ in range(2)]
    np.testing.assert_array_equal(twice[0].boxes_xyxy, twice[1].boxes_xyxy)
    by_name = otus.load("faster_rcnn_mobilenet_v3_large_320_fpn", weights=checkpoint)
    np.testing.assert_array_equal(
        by_name.predict(photo(), score_threshold=0.01)[0].instances.boxes_xyxy, twice[0].boxes_xyxy
    )


def test_weights_of_another_model_are_refused(checkpoint):
    with pytest.raises(CheckpointError, match="weights of faster_rcnn_mobilenet_v3_large_320_fpn, expected"):
        otus.load("mask_rcnn_resnet50_fpn", weights=checkpoint)


def test_a_name_without_weights_never_predicts(monkeypatch):
    with pytest.raises(UsageError, match="faster_rcnn_vgg16 has no trained weights: train it"):
        otus.load("faster_rcnn_vgg16")
    with pytest.raises(UsageError, match=r"did you mean 'mask_rcnn_resnet50_fpn'\?"):
        otus.load("mask_rcnn_resnet50_fnp")
    with pytest.raises(CheckpointError, match="no such file"):
        otus.load("nowhere.safetensors")


def test_without_network_the_error_says_so(monkeypatch, tmp_path):
    from otus.errors import FetchError

    monkeypatch.setenv("OTUS_CACHE", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    with pytest.raises(FetchError, match="Check the network connection"):
        otus.load("mask_rcnn_resnet50_fpn")


def test_weights_beside_a_file_are_refused(checkpoint):
    with pytest.raises(
        UsageError, match=r"mine\.safetensors is a file of weights itself; leave out other\.safetensors"
    ):
        otus.load(checkpoint, weights="other.safetensors")


@pytest.mark.parametrize("name", ["cpu:3x", "tpu", "cpu:"])
def test_devices_that_are_not_there(name):
    with pytest.raises(UsageError, match=rf"device: expected auto or a device of this machine .*, got '{name}'"):
        choose_device(name)


class SaysColours(BaseSystem):
    """Of whole images."""

    categories = COLOURS
    task = CLASSIFICATION
    postprocess = None

    def predict(self, samples, *, postprocess=None):
        return [Classification(np.array([0.7, 0.3]), COLOURS) for _ in samples]


@pytest.mark.parametrize(
    "option", [{"tiles": Tiles(20)}, {"categories": ["red"]}, {"score_threshold": 0.2}, {"nms_iou": 0.3}]
)
def test_options_of_objects_are_refused_where_whole_images_are_named(option):
    predictor = Predictor(SaysColours(), preprocess=Preprocess(fixed_hw=(8, 8)), name="says", device="cpu")
    (found,) = predictor.predict(photo())
    assert found.classification.scores.tolist() == [0.7, 0.3]
    (name,) = option
    with pytest.raises(UsageError, match=f"{name}: says predicts the category of an image"):
        predictor.predict(photo(), **option)


class HalvesOfItsImage:
    """A search whose proposals tell by their places how large the image was that it saw."""

    parameters = {"method": "halves"}  # noqa: RUF012

    def __call__(self, image):
        height, width = image.shape[:2]
        boxes = [[0, 0, width // 2 + 7, height], [width // 2 - 7, 0, width, height], [3, 3, width - 3, height // 2]]
        return Proposals(np.array(boxes, dtype=np.float32), np.array([1.0, 0.9, 0.8]))


def test_given_proposals_are_those_of_the_image_as_it_came_as_in_evaluation(tmp_path, monkeypatch):
    monkeypatch.setenv("OTUS_CACHE", str(tmp_path / "cache"))
    torch.manual_seed(0)
    backbone = LayeredBackbone({"c1": nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ReLU())}, levels=(1,))
    maps = RoIFeatures(backbone, RoIPooler(4, strides=backbone.strides, method="pool"))
    system = fast_rcnn(
        maps, COLOURS, proposer=PrecomputedProposals(2, search=HalvesOfItsImage()), representation_size=8
    )
    nn.init.normal_(system.box_head.cls_score.weight, std=2.0)
    predictor = Predictor(system, preprocess=Preprocess(shorter_side=32, longer_side=48), name="fast", device="cpu")
    Image.fromarray(photo()).save(tmp_path / "a.png")
    dataset = Dataset(tmp_path, "coco", Images(tmp_path, ("a.png",), np.array([[128, 192]]), (1,)), COLOURS)
    evaluated = predict_dataset(predictor.pipeline, dataset)[0]
    (found,) = predictor.predict(tmp_path / "a.png", score_threshold=system.postprocess.score_threshold)
    assert len(evaluated) > 0
    np.testing.assert_array_equal(found.instances.boxes_xyxy, evaluated.boxes_xyxy)
    np.testing.assert_array_equal(found.instances.scores, evaluated.scores)


def run(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "otus", *map(str, arguments)], capture_output=True, text=True, timeout=200
    )


def test_the_command_writes_overlays_and_json(checkpoint, tmp_path):
    Image.fromarray(photo()).save(tmp_path / "one.png")
    with VideoWriter(tmp_path / "film.mp4", frame_rate=5) as writer:
        for _ in range(3):
            writer.add(photo())
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8 nothing more")
    out = tmp_path / "out"
    inputs = [tmp_path / name for name in ("one.png", "film.mp4", "broken.jpg")]
    done = run("predict", *inputs, "--model", checkpoint, "--score-threshold", 0.01, "--out", out, "--json")
    assert done.returncode == 1, done.stderr
    assert "broken.jpg" in done.stderr
    document = json.loads(done.stdout)
    assert document["model"] == "faster_rcnn_mobilenet_v3_large_320_fpn"
    assert [(one["file"].rsplit("/", 1)[1], one.get("frame")) for one in document["images"]] == [
        ("one.png", None),
        ("film.mp4", 0),
        ("film.mp4", 1),
        ("film.mp4", 2),
    ]
    results = json.loads((out / "predictions.json").read_text())
    assert len(results) == sum(len(one["instances"]) for one in document["images"])
    assert {name.name for name in out.iterdir()} == {"one.jpg", "film.mp4", "predictions.json"}
    with Image.open(out / "one.jpg") as overlay:
        assert overlay.size == (576, 384), "a small image is enlarged to be looked at"


def test_a_run_without_images_keeps_what_an_earlier_one_wrote(tmp_path):
    from otus.reports.predictions import PredictionFolder

    (tmp_path / "predictions.json").write_text("[1]")
    with PredictionFolder(tmp_path, categories=COLOURS):
        pass
    assert (tmp_path / "predictions.json").read_text() == "[1]"
    assert len(list(tmp_path.iterdir())) == 1


def test_huge_files_are_decoded_smaller_and_the_answer_is_in_their_own_frame(predictor, tmp_path, monkeypatch):
    image = photo((1024, 1536), red=(160, 240, 480, 720), blue=(800, 400, 1200, 800))
    Image.fromarray(image).save(tmp_path / "huge.jpg", quality=95)
    (whole,) = predictor.predict(tmp_path / "huge.jpg")
    monkeypatch.setattr("otus.data.images.REDUCED_FROM", 1_000_000)
    (found,) = predictor.predict(tmp_path / "huge.jpg")
    assert found.image.shape == (128, 192, 3)
    assert found.instances.size_hw == (1024, 1536)
    assert found.instances.masks.size_hw == (1024, 1536)
    np.testing.assert_array_equal(found.instances.labels, whole.instances.labels)
    np.testing.assert_allclose(found.instances.boxes_xyxy, whole.instances.boxes_xyxy, atol=17)
    assert found.plot().shape == (128, 192, 3)
    found.save(tmp_path / "overlay.jpg")
    assert found.to_dict()["width"] == 1536
    (tiled,) = predictor.predict(tmp_path / "huge.jpg", tiles=Tiles(900))
    assert tiled.image.shape == (1024, 1536, 3)
    assert tiled.instances.size_hw == (1024, 1536)
    (given,) = predictor.predict(image)
    assert given.image.shape == (1024, 1536, 3)


def test_a_huge_image_joins_its_tiles_as_it_is_predicted_on_without_them(predictor, tmp_path, monkeypatch):
    monkeypatch.setattr("otus.data.images.REDUCED_FROM", 1_000_000)
    Image.fromarray(photo((1024, 1536), red=(160, 240, 480, 720))).save(tmp_path / "huge.png")
    prepared: list[np.ndarray] = []
    prepare = Pipeline.prepare
    monkeypatch.setattr(
        Pipeline, "prepare", lambda self, sample: prepared.append(sample.image) or prepare(self, sample)
    )
    (whole,) = predictor.predict(tmp_path / "huge.png")
    (tiled,) = predictor.predict(tmp_path / "huge.png", tiles=900)
    expected, *_, last = prepared
    np.testing.assert_array_equal(last, expected)
    assert last.shape == (128, 192, 3)
    (red,) = tiled.instances[tiled.instances.labels == 0].boxes_xyxy
    np.testing.assert_allclose(red, [160, 240, 480, 720], atol=17)
    assert tiled.instances.size_hw == whole.instances.size_hw == (1024, 1536)


def test_the_limit_of_pixels_can_be_raised_as_its_error_advises(predictor, tmp_path, monkeypatch):
    Image.fromarray(photo((1024, 1536))).save(tmp_path / "a.png")
    with pytest.raises(
        ImageError, match=r"the limit is 1 .*--max-pixels of otus predict, max_pixels of predict and read_image"
    ):
        predictor.predict(tmp_path / "a.png", max_pixels=1_000_000)
    assert len(predictor.predict(tmp_path / "a.png", max_pixels=2_000_000)) == 1
    with pytest.raises(UsageError, match="max_pixels"):
        predictor.predict(tmp_path / "a.png", max_pixels=0)
