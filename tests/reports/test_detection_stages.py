"""The explanation of a detection: what predict answers, and every figure of the page in its document."""

import html
import json
import re

import numpy as np
import pytest
import torch
from torch import nn

from otus.detection.region_based.faster_rcnn import faster_rcnn_mobilenet_v3_large_320_fpn
from otus.errors import UsageError
from otus.inference.predictor import Predictor
from otus.instance.keypoint_rcnn import keypoint_rcnn
from otus.instance.mask_rcnn import mask_rcnn_efficientnet_lite0_fpn
from otus.parts.display import instance_records
from otus.parts.preprocess import Preprocess
from otus.parts.system import BaseSystem
from otus.reports.explain.detection import explain_detection
from otus.structures import Categories, KeypointNames

CATEGORIES = Categories(("cat", "dog"), keypoints=(("cat", KeypointNames(("nose", "tail"))),))


def predictor_of(kind: str, *, precision: str = "exact") -> Predictor:
    """Random weights that find both categories everywhere, some more certainly than others."""
    torch.manual_seed(0)
    if kind == "masks":
        system = mask_rcnn_efficientnet_lite0_fpn(CATEGORIES)
    else:
        system = faster_rcnn_mobilenet_v3_large_320_fpn(CATEGORIES)
        if kind == "keypoints":
            system = keypoint_rcnn(system, hidden_channels=8, num_convs=1)
    nn.init.normal_(system.proposer.cls_logits.weight, std=0.1)
    nn.init.normal_(system.box_head.cls_score.weight, std=0.3)
    nn.init.constant_(system.box_head.cls_score.bias[1:], 1.0)
    preprocess = Preprocess(shorter_side=96, longer_side=128)
    return Predictor(system, preprocess=preprocess, name="tiny", device="cpu", precision=precision)


def photo() -> np.ndarray:
    rng = np.random.default_rng(5)
    image = rng.integers(0, 60, (150, 210, 3), dtype=np.uint8)
    image[40:100, 30:90] = (200, 30, 30)
    image[20:140, 120:180] = (30, 30, 220)
    return image


@pytest.fixture(scope="module", params=["boxes", "masks", "keypoints"])
def explained(request):
    predictor = predictor_of(request.param)
    stages = explain_detection(predictor, photo(), name="photos/one.jpg", score_threshold=0.4)
    found = predictor.predict(photo(), score_threshold=0.4)[0].instances
    assert len(found) > 1, "the weights find too little"
    return request.param, predictor, stages, found


def test_detections_are_those_of_predict(explained):
    kind, predictor, stages, found = explained
    document = stages.document()
    detections = document["detections"]
    assert [one["category"] for one in detections] == [predictor.categories[label] for label in found.labels]
    assert [one["score"] for one in detections] == found.scores.tolist()
    assert [one["box_xyxy"] for one in detections] == found.boxes_xyxy.tolist()
    records = list(instance_records(found, predictor.categories))
    if kind == "masks":
        assert 0 < len(document["masks"]) <= 6
        for one, record in zip(document["masks"], records, strict=False):
            assert one["segmentation"] == record["segmentation"]
            assert np.shape(one["probabilities"]) == (28, 28)
    if kind == "keypoints":
        points = [(one["keypoint"], one["x"], one["y"]) for one in document["keypoints"]]
        assert points == [
            (name, x, y)
            for record in records
            if record["category"] == "cat"
            for name, (x, y, _) in zip(("nose", "tail"), np.reshape(record["keypoints"], (2, 3)).tolist(), strict=True)
        ]
        assert [one["score"] for one in document["keypoints"]] == found.keypoint_scores[found.labels == 0].reshape(
            -1
        ).tolist()


def test_one_stage_follows_from_another(explained):
    kind, predictor, stages, _ = explained
    document = stages.document()
    assert [one["stride"] for one in document["maps"]] == ([8, 16, 32, 64] if kind == "masks" else [32, 32, 64])
    assert (document["width"], document["height"]) == (210, 150)
    assert (document["prepared"]["width"], document["prepared"]["height"]) == (128, 91)
    anchors = document["anchors"]
    steps = [one["width"] * one["height"] for one in document["maps"]]
    assert anchors["count_by_map"] == [anchors["per_location"] * count for count in steps]
    assert anchors["count"] == sum(anchors["count_by_map"])
    proposals = document["proposals"]
    objectness = [one["objectness"] for one in proposals]
    assert objectness == sorted(objectness, reverse=True)
    assert {one["map"] for one in proposals} <= set(range(len(steps)))
    assert document["score_threshold"] == 0.4
    before = [(one["category"], one["score"], one["proposal"]) for one in document["before_nms"]]
    assert min(score for _, score, _ in before) > 0.4
    after = [(one["category"], one["score"], one["proposal"]) for one in document["detections"]]
    assert set(after) <= set(before)
    assert len(after) < len(before)
    for one in document["detections"]:
        assert one["proposal_box_xyxy"] == proposals[one["proposal"]]["box_xyxy"]
    # Another threshold in the explanation leaves the model as it was.
    assert predictor.system.postprocess == predictor_of(kind).system.postprocess


def figures_of(value: object) -> set[str]:
    """All numbers and words of a document, as a page writes them."""
    if isinstance(value, dict):
        return set().union(*(figures_of(one) for one in (*value, *value.values())))
    if isinstance(value, list | tuple):
        return set().union(*map(figures_of, value))
    if isinstance(value, float):
        return {f"{value:.4g}", f"{value:.0f}", f"{value:.2f}", str(value)}
    return {str(value)}


def test_every_figure_of_the_page_is_in_the_document(explained):
    kind, predictor, stages, _ = explained
    text = stages.page().html()
    assert not re.search(r"https?://|<script|<link", text)
    last = {"boxes": [], "masks": ["6. Masks"], "keypoints": ["6. Keypoints"]}[kind]
    assert re.findall("<h2>(.*?)</h2>", text) == [
        "The image",
        "1. Feature maps",
        "2. Anchors",
        "3. Proposals",
        "4. Candidates before NMS",
        "5. Detections",
        *last,
    ]
    assert "category score above 0.4." in text
    document = json.loads(json.dumps(stages.document(), default=lambda array: array.tolist()))
    counts = [len(document[name]) for name in ("proposals", "before_nms", "detections", "masks")]
    by_category = [sum(one["category"] == name for one in document["before_nms"]) for name in predictor.categories]
    known = figures_of([document, counts, by_category]) | {"10", "100", "0.5", "tiny"}
    tables = " ".join(re.findall("<td[^>]*>(.*?)</td>", text))
    sentences = " ".join(re.findall(r"(?<=<p>)[^<]*|(?<=<figcaption>)[^<]*", text))
    for figure in re.findall(r"-?\d+(?:\.\d+)?(?:e-?\d+)?", html.unescape(f"{tables} {sentences}")):
        assert figure in known, figure


def test_nothing_found_is_explained_too():
    stages = explain_detection(predictor_of("masks"), photo(), name="x.jpg", score_threshold=1.0)
    document = stages.document()
    assert document["before_nms"] == document["detections"] == document["masks"] == []
    assert "0 pairs" in stages.page().html()


@pytest.mark.parametrize("size_hw", [(1, 1), (1, 300)])
def test_tiny_and_thin_images(size_hw):
    stages = explain_detection(predictor_of("boxes"), np.zeros((*size_hw, 3), np.uint8), name="x.jpg")
    assert "5. Detections" in stages.page().html()


@pytest.mark.parametrize("precision", ["float32", pytest.param("bfloat16", marks=pytest.mark.bfloat16)])
def test_fast_copies_are_explained_as_they_predict(precision):
    predictor = predictor_of("boxes", precision=precision)
    stages = explain_detection(predictor, photo(), name="x.jpg", score_threshold=0.4)
    found = predictor.predict(photo(), score_threshold=0.4)[0].instances
    assert [one["box_xyxy"] for one in stages.document()["detections"]] == found.boxes_xyxy.tolist()


def test_other_kinds_of_model_are_refused():
    class Other(BaseSystem):
        categories = CATEGORIES

    predictor = Predictor(Other(), preprocess=Preprocess(shorter_side=96, longer_side=128), name="other", device="cpu")
    with pytest.raises(UsageError, match="other has no explanation"):
        explain_detection(predictor, photo(), name="x.jpg")
