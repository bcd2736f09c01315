"""The first calls of a notebook: what others call otherwise works, or says what to write."""

import io
import json
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import otus
from otus.errors import ImageError
from otus.inference.devices import choose_device
from otus.inference.prediction import Prediction
from otus.inference.predictor import Predictor
from otus.parts.tasks import CLASSIFICATION
from otus.structures import Categories, Classification, Instances, Masks

CATS = Categories(("cat", "dog"))


@pytest.fixture
def prediction() -> Prediction:
    masks = Masks.from_dense(np.ones((2, 40, 60), bool))
    found = Instances([[5, 5, 30, 30], [20, 2, 50, 38]], [0, 1], (40, 60), CATS, scores=[0.9, 0.8], masks=masks)
    return Prediction("a.png", np.full((40, 60, 3), 90, np.uint8), found, {"network": 3.0})


def test_a_prediction_draws_writes_and_describes_itself(prediction, tmp_path, monkeypatch):
    drawn = prediction.plot()
    assert drawn.shape == (40, 60, 3)
    assert (drawn != prediction.image).any()
    assert (prediction.image == 90).all()
    with Image.open(prediction.save(tmp_path / "drawn.png")) as written:
        assert written.size[0] >= 60
    shown = []
    monkeypatch.setattr(Image.Image, "show", lambda self, title: shown.append((self.size, title)))
    prediction.show()
    assert shown[0][1] == "a.png"
    document = json.loads(json.dumps(prediction.to_dict()))
    assert [one["category"] for one in document["instances"]] == ["cat", "dog"]


@pytest.mark.parametrize(("habit", "ours"), [("boxes", "instances.boxes_xyxy"), ("conf", "instances.scores")])
def test_names_of_other_libraries_say_what_to_write(prediction, habit, ours):
    with pytest.raises(AttributeError, match=f"use .{ours}"):
        getattr(prediction, habit)
    with pytest.raises(AttributeError, match="has no attribute 'colour'"):
        prediction.colour  # noqa: B018


def test_every_value_shows_itself_in_a_line(prediction, tmp_path):
    Image.fromarray(prediction.image).save(tmp_path / "a.png")
    labels = {
        "images": [{"id": 1, "file_name": "a.png", "width": 60, "height": 40}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [5, 5, 25, 25], "iscrowd": 0}],
        "categories": [{"id": 1, "name": "cat"}],
    }
    (tmp_path / "instances.json").write_text(json.dumps(labels))
    results = [{"image_id": 1, "category_id": 1, "bbox": [5, 5, 25, 25], "score": 0.5}]
    (tmp_path / "results.json").write_text(json.dumps(results))
    dataset = otus.open_dataset(tmp_path / "instances.json")
    report = otus.evaluate(dataset, predictions=tmp_path / "results.json")
    values = [prediction, prediction.instances, prediction.instances.masks, dataset, report, prediction.instances[:0]]
    for value in values:
        text = repr(value)
        assert text.startswith(type(value).__name__ + "(")
        assert "\n" not in text
        assert len(text) < 250
    assert "1 cat, 1 dog" in repr(prediction)
    assert "bbox AP 1.000" in repr(report)


def test_sources_and_devices_as_people_write_them(tmp_path):
    predictor = otus.load(device=torch.device("cpu"))
    assert repr(predictor).startswith("Predictor('mask_rcnn")
    image = np.zeros((48, 64, 3), np.uint8)
    encoded = io.BytesIO()
    Image.fromarray(image).save(encoded, "JPEG")
    (tmp_path / "scan.jfif").write_bytes(encoded.getvalue())
    for source in (encoded.getvalue(), [encoded.getvalue()], tmp_path, tmp_path / "scan.jfif"):
        (found,) = predictor.predict(source, tiles=320, categories="person")
        assert found.instances.size_hw == (48, 64)
    with pytest.raises(ImageError, match=r"is a URL.*download it"):
        predictor.predict("https://example.org/a.jpg")
    if not torch.cuda.is_available():
        with pytest.raises(otus.OtusError, match="got 'cuda:0'"):
            choose_device(0)


def test_a_notebook_shows_a_prediction_as_its_overlay(prediction):
    with Image.open(io.BytesIO(prediction._repr_png_())) as shown:
        assert shown.format == "PNG"
        assert max(shown.size) <= 1280
        assert np.asarray(shown).std() > 0  # the image itself is of one colour
    with pytest.raises(AttributeError):
        prediction._repr_html_  # noqa: B018, else IPython would take it before the image


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return otus.load(device="cpu")


def test_a_model_that_is_called_says_to_predict(predictor):
    with pytest.raises(TypeError, match=r"use \.predict\(image\)"):
        predictor(np.zeros((48, 64, 3), np.uint8), conf=0.3)


@pytest.mark.parametrize(
    ("option", "remedy"),
    [
        ("conf", "use score_threshold"),
        ("iou", "use nms_iou"),
        ("classes", "use categories"),
        ("imgsz", "image size is that of the weights"),
        ("score_treshold", "did you mean 'score_threshold'"),
        ("colour", "options are averaging, batch_size, categories, max_pixels"),
    ],
)
def test_options_of_other_libraries_say_what_to_write(predictor, option, remedy):
    for call in (predictor.predict, predictor.stream):
        with pytest.raises(TypeError, match=rf"^predict: there is no option '{option}'.*{remedy}"):
            call(np.zeros((48, 64, 3), np.uint8), **{option: 0.3})


def test_one_bad_file_of_many_says_how_to_go_on(predictor, tmp_path):
    Image.fromarray(np.zeros((48, 64, 3), np.uint8)).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"no image")
    for source in (tmp_path, str(tmp_path / "*.png"), [tmp_path / "a.png", tmp_path / "b.png"]):
        with pytest.raises(ImageError, match=r"b\.png.*report=errors\.append"):
            predictor.predict(source)
    with pytest.raises(ImageError) as alone:
        predictor.predict(tmp_path / "b.png")
    assert "report=" not in str(alone.value)
    errors: list[otus.OtusError] = []
    assert len(predictor.predict([tmp_path, b"no image"], report=errors.append)) == 1
    assert len(errors) == 2


def test_a_prediction_is_json_and_coco(prediction, tmp_path):
    assert json.loads(prediction.to_json()) == prediction.to_dict()
    records = prediction.to_coco(image_id=42)
    assert [(one["image_id"], one["category_id"], one["bbox"]) for one in records] == [
        (42, 0, [5, 5, 25, 25]),
        (42, 1, [20, 2, 30, 36]),
    ]
    assert all(set(one["segmentation"]) == {"size", "counts"} for one in records)
    assert replace(prediction, result=prediction.instances[:0]).to_coco(image_id=42) == []
    labels = {
        "images": [{"id": 42, "file_name": "a.png", "width": 60, "height": 40}],
        "annotations": [
            {"id": i, "image_id": 42, "category_id": one["category_id"], "bbox": one["bbox"], "iscrowd": 0}
            for i, one in enumerate(records, start=1)
        ],
        "categories": [{"id": 0, "name": "cat"}, {"id": 1, "name": "dog"}],
    }
    (tmp_path / "instances.json").write_text(json.dumps(labels))
    for image_id in (42, "a.png"):
        (tmp_path / "results.json").write_text(json.dumps(prediction.to_coco(image_id=image_id)))
        report = otus.evaluate(tmp_path / "instances.json", predictions=tmp_path / "results.json")
        assert report.results["bbox"].figures["AP"] == pytest.approx(1)


def test_a_classified_image_is_coco_and_a_table_too(prediction):
    shown = Classification(np.array([0.25, 0.75]), CATS)
    classified = replace(prediction, result=shown, task=CLASSIFICATION)
    first = {"image_id": "a.png", "category_id": 1, "category": "dog", "score": 0.75}
    assert classified.to_coco(image_id="a.png")[0] == first
    pytest.importorskip("pandas")
    assert classified.to_pandas().to_dict("records") == [
        {"image": "a.png", "category": "dog", "score": 0.75},
        {"image": "a.png", "category": "cat", "score": 0.25},
    ]


def test_a_prediction_is_a_table(prediction):
    pytest.importorskip("pandas")
    table = replace(prediction, frame=3).to_pandas()
    assert list(table) == ["image", "frame", "category", "score", "x1", "y1", "x2", "y2", "mask_area"]
    assert table.iloc[1].tolist() == ["a.png", 3, "dog", 0.8, 20, 2, 50, 38, 2400]
    empty = replace(prediction, result=prediction.instances[:0]).to_pandas()
    assert empty.shape == (0, 8)


def test_without_pandas_the_error_says_the_command(prediction, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(otus.MissingExtraError, match=r"pip install 'otus\[pandas\]'"):
        prediction.to_pandas()
