"""Explanations of YOLO and of set detectors: what predict answers, and every figure of the page in its document."""

import base64
import html
import io
import json
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from otus.detection.set_prediction.detr import DETRHead
from otus.detection.set_prediction.query_selection_detr import QuerySelectionHead
from otus.detection.set_prediction.set_detector import SetDetector
from otus.detection.single_stage.yolo import YOLO
from otus.inference.predictor import SCORE_THRESHOLD, Predictor
from otus.parts.backbones import LayeredBackbone
from otus.parts.preprocess import Preprocess
from otus.reports.explain.figures import attention_overlay
from otus.reports.explain.set_prediction import explain_set
from otus.reports.explain.yolo import explain_yolo
from otus.structures import Categories, Instances

CATEGORIES = Categories(("cat", "dog", "owl"))


def predictor_of(kind: str, *, precision: str = "exact") -> Predictor:
    torch.manual_seed(0)
    channels = [(3, 8), (8, 16), (16, 16)]
    backbone = LayeredBackbone({f"c{i}": nn.Conv2d(a, b, 3, 2, 1) for i, (a, b) in enumerate(channels)}, levels=(2, 3))
    preprocess = Preprocess(shorter_side=48, longer_side=64)
    if kind == "yolo":
        system: Any = YOLO(
            categories=CATEGORIES,
            backbone=backbone,
            conv=nn.Identity(),
            in_channels=16,
            hidden_features=16,
            dropout=0.0,
            grid_size=4,
        )
        nn.init.normal_(system.fc[3].weight, std=0.5)
        nn.init.normal_(system.fc[3].bias, mean=0.4, std=0.2)
        preprocess = Preprocess(fixed_hw=(64, 64))
    else:
        sizes = {"embed_dim": 16, "num_heads": 2, "ffn_dim": 32, "num_queries": 8}
        head: Any
        if kind == "detr":
            head = DETRHead(16, (0, 1, 2), num_encoder_layers=1, num_decoder_layers=2, **sizes)
            nn.init.normal_(head.class_embed.weight, std=1.0)
        else:
            head = QuerySelectionHead((16, 16), (4, 8), 3, num_layers=2, **sizes)
            for layer in head.class_embed:
                nn.init.normal_(layer.weight, std=1.0)
                nn.init.zeros_(layer.bias)
        system = SetDetector(categories=CATEGORIES, backbone=backbone, head=head)
    return Predictor(system, preprocess=preprocess, name="tiny", device="cpu", precision=precision)


def photo() -> np.ndarray:
    image = np.random.default_rng(5).integers(0, 60, (90, 120, 3), dtype=np.uint8)
    image[20:60, 20:60] = (200, 30, 30)
    return image


def labels() -> Instances:
    boxes = np.array([[20.0, 20, 60, 60], [22, 22, 56, 54], [80, 10, 110, 80], [5, 5, 5, 9]])
    return Instances(boxes, np.array([0, 1, 2, 0]), (90, 120), CATEGORIES)


EXPLAIN = {"yolo": explain_yolo, "detr": explain_set, "deformable": explain_set}


@pytest.fixture(scope="module", params=EXPLAIN)
def explained(request):
    predictor = predictor_of(request.param)
    explain = EXPLAIN[request.param]
    stages = explain(predictor, photo(), name="photos/one.jpg", score_threshold=0.25, ground_truth=labels())
    found = predictor.predict(photo(), score_threshold=0.25)[0].instances
    assert len(found) > 1
    return request.param, predictor, stages, found


def test_detections_are_those_of_predict(explained):
    _, predictor, stages, found = explained
    detections = stages.document()["detections"]
    assert [one["category"] for one in detections] == [predictor.categories[label] for label in found.labels]
    assert [one["score"] for one in detections] == found.scores.tolist()
    assert [one["box_xyxy"] for one in detections] == found.boxes_xyxy.tolist()
    assert predictor.system.postprocess.score_threshold != 0.25


def test_cells_answer_for_their_boxes():
    stages = explain_yolo(predictor_of("yolo"), photo(), name="x", score_threshold=0.25, ground_truth=labels())
    document = stages.document()
    assert document["grid"] == {"side": 4, "boxes": 2, "numbers": 13}
    assert [(one["row"], one["column"]) for one in document["cells"]] == [(i, j) for i in range(4) for j in range(4)]
    assert document["truth"] == "labels"
    assert document["objects_lost"] == 1  # two centres lie in one cell, one box has no area
    assert [(one["category"], one["row"], one["column"]) for one in document["responsible"]] == [
        ("cat", 1, 1),
        ("owl", 2, 3),
    ]
    for one in document["responsible"] + document["detections"]:
        cell = document["cells"][4 * one["row"] + one["column"]]
        limit = np.array([120, 90, 120, 90])
        wanted = np.clip(cell["boxes_xyxy"][one["box_of_cell"]], 0, limit)
        np.testing.assert_allclose(np.clip(one["box_xyxy"], 0, limit), wanted, atol=1e-3)
    for one in document["detections"]:
        cell = document["cells"][4 * one["row"] + one["column"]]
        sure = min(max(cell["confidences"][one["box_of_cell"]], 0), 1)
        if one["category"] == cell["category"]:
            assert one["score"] == pytest.approx(sure * min(max(cell["class_score"], 0), 1), rel=1e-5)
    without = explain_yolo(predictor_of("yolo"), photo(), name="x", score_threshold=0.25).document()
    assert without["truth"] == "detections"


@pytest.mark.parametrize("kind", ["detr", "deformable"])
def test_queries_are_matched_as_in_training_and_look_at_the_image(kind):
    predictor = predictor_of(kind)
    stages = explain_set(predictor, photo(), name="x", score_threshold=0.25, ground_truth=labels())
    document = stages.document()
    assert len(document["queries"]) == 8
    matching = document["matching"]
    assert (matching["objects"], matching["unmatched_objects"], matching["unmatched_queries"]) == (3, 0, 5)
    for pair in matching["pairs"]:
        query = document["queries"][pair["query"]]
        assert (pair["says"], pair["score"]) == (query["category"], query["score"])
    for one in document["detections"]:
        query = document["queries"][one["query"]]
        np.testing.assert_allclose(one["box_xyxy"], query["box_xyxy"], atol=1e-3)
        assert one["score"] <= query["score"] + 1e-6
    for query in document["queries"]:
        x, y = query["looks_most_at"]
        assert 0 < x < 120
        assert 0 < y < 90
    assert stages.attention.shape[0] == 8
    assert (stages.attention >= 0).all()
    assert (stages.attention.sum(axis=(1, 2)) <= 1 + 1e-5).all()
    assert explain_set(predictor, photo(), name="x").document()["matching"] is None


def test_queries_inside_a_crowd_would_not_learn_to_say_nothing():
    predictor, everything = predictor_of("detr"), Instances([[0, 0, 120, 90]], [0], (90, 120), CATEGORIES)
    crowd = replace(everything, columns={"is_crowd": np.array([True])})
    stages = explain_set(predictor, photo(), name="x", score_threshold=0.25, ground_truth=crowd)
    matching = stages.document()["matching"]
    assert (matching["objects"], matching["unmatched_queries"], matching["queries_in_crowds"]) == (0, 0, 8)
    assert "8 in crowd regions, which are ignored" in stages.page().html()


@pytest.mark.parametrize("kind", EXPLAIN)
def test_an_explanation_decides_by_the_models_own_thresholds_as_predict_does(kind):
    predictor = predictor_of(kind)
    everything = predictor.predict(photo(), score_threshold=0.0)[0].instances
    cats = everything.scores[everything.labels == 0]
    predictor.score_thresholds = {"cat": float(np.median(cats)), "dog": 0.3}
    found = predictor.predict(photo())[0].instances
    assert (found.labels == 0).sum() == len(cats) // 2
    assert (found.scores > np.array([np.median(cats), 0.3, SCORE_THRESHOLD])[found.labels]).all()
    stages = EXPLAIN[kind](predictor, photo(), name="x")
    assert [one["score"] for one in stages.document()["detections"]] == found.scores.tolist()
    stages.page()


@pytest.mark.parametrize("kind", EXPLAIN)
@pytest.mark.parametrize("precision", ["float32", pytest.param("bfloat16", marks=pytest.mark.bfloat16)])
def test_every_precision_is_explained(kind, precision):
    predictor = predictor_of(kind, precision=precision)
    stages = EXPLAIN[kind](predictor, photo(), name="x", score_threshold=0.25, ground_truth=labels())
    found = predictor.predict(photo(), score_threshold=0.25)[0].instances
    assert [one["score"] for one in stages.document()["detections"]] == found.scores.tolist()
    stages.page()


@pytest.mark.parametrize("kind", EXPLAIN)
@pytest.mark.parametrize("size_hw", [(1, 1), (1, 2000), (2000, 1)])
def test_a_strip_is_explained_on_a_page_of_reasonable_height(kind, size_hw):
    page = EXPLAIN[kind](predictor_of(kind), np.full((*size_hw, 3), 90, np.uint8), name="x").page()
    for figure in (one for section in page.sections for one in section.figures):
        with Image.open(io.BytesIO(base64.b64decode(figure.source.split(",")[1]))) as carried:
            assert figure.width * carried.height / carried.width <= 2000


@pytest.mark.parametrize("truth", [None, labels()])
def test_sections_are_counted_without_a_gap(truth):
    page = explain_set(predictor_of("detr"), photo(), name="x", ground_truth=truth).page()
    numbers = [section.title.split(".")[0] for section in page.sections[1:]]
    assert numbers == [str(i) for i in range(1, 5 if truth is None else 6)]


def figures_of(value: object) -> set[str]:
    """Every number of a document, as pages print them."""
    if isinstance(value, dict):
        return set().union(*(figures_of(one) for one in value.values()), {str(len(value))})
    if isinstance(value, list):
        return set().union(*(figures_of(one) for one in value), {str(len(value))})
    if isinstance(value, bool) or value is None:
        return set()
    if isinstance(value, int | float):
        return {f"{value:.0f}", f"{value:.2f}", f"{value:.3f}", f"{value:.4g}", str(value)}
    return set(re.findall(r"\d+(?:\.\d+)?", str(value)))


def test_every_figure_of_the_page_is_in_the_document(explained):
    kind, predictor, stages, _ = explained
    page = stages.page()
    text = page.html()
    headings = re.findall("<h2>(.*?)</h2>", text)
    assert len(headings) == (7 if kind == "yolo" else 6)
    document = json.loads(json.dumps(stages.document()))
    names = list(predictor.categories)
    cells = [] if kind != "yolo" else [sum(one["category"] == name for one in document["cells"]) for name in names]
    counts = [
        sum(one["category"] == name for one in document.get("before_nms", document["detections"])) for name in names
    ]
    boxes = 32 if kind == "yolo" else 0
    known = figures_of([document, cells, counts, boxes, len(names), 5, 0, 1])
    known |= {str(side) for one in stages.record.features for side in one.shape[-2:]}
    tables = " ".join(re.findall("<td[^>]*>(.*?)</td>", text))
    sentences = " ".join(re.findall(r"(?<=<p>)[^<]*|(?<=<figcaption>)[^<]*", text))
    for figure in re.findall(r"(?<![\w.])-?\d+(?:\.\d+)?(?:e-?\d+)?", html.unescape(f"{tables} {sentences}")):
        assert figure in known or figure.lstrip("-") in known, figure


@pytest.mark.parametrize("kind", EXPLAIN)
@pytest.mark.parametrize("size_hw", [(1, 1), (1, 300)])
def test_tiny_and_thin_images_and_nothing_found(kind, size_hw):
    stages = EXPLAIN[kind](predictor_of(kind), np.zeros((*size_hw, 3), np.uint8), name="x.jpg", score_threshold=1.0)
    assert stages.document()["detections"] == []
    assert "Detections" in stages.page().html()


def test_an_overlay_is_bright_where_values_are_high():
    values = np.zeros((3, 4))
    values[1, 2] = 1.0
    shown = attention_overlay(np.full((30, 40, 3), 100, np.uint8), values).astype(int).sum(axis=2)
    assert shown[15, 25] > 2 * shown[5, 5]
    assert attention_overlay(np.full((3, 4, 3), 100, np.uint8), values * 0).max() <= 60
