"""The explanation of a dense detector: what predict answers, which anchors match, no figure that is not in the document."""

import html
import json
import re

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from otus.data.open import open_dataset
from otus.data.sample import Sample
from otus.data.tensors import to_tensors
from otus.detection.single_stage.oriented_fcos import oriented_fcos_efficientnet_lite0_fpn
from otus.detection.single_stage.retinanet import retinanet_efficientnet_lite0_fpn
from otus.detection.single_stage.ssdlite import ssdlite_efficientnet_lite0
from otus.errors import UsageError
from otus.inference.predictor import Predictor
from otus.parts.boxes.matching import pairwise_ioa
from otus.parts.preprocess import Preprocess
from otus.reports.explain.dense import explain_dense
from otus.reports.explain.explanation import ground_truth_of
from otus.structures import Categories, Instances
from otus.structures.boxes import pairwise_iou

CATEGORIES = Categories(("cat", "dog"))
LABELS = Instances(
    [[30, 40, 90, 100], [120, 20, 180, 140], [5, 5, 5, 9], [0, 0, 200, 150]],
    [0, 1, 0, 1],
    size_hw=(150, 210),
    categories=CATEGORIES,
    columns={"is_crowd": np.array([False, False, False, True])},
)


def predictor_of(kind: str) -> Predictor:
    """Random weights that find both categories, some places more certainly than others."""
    torch.manual_seed(0)
    build = {
        "retinanet": retinanet_efficientnet_lite0_fpn,
        "ssd": ssdlite_efficientnet_lite0,
        "oriented": oriented_fcos_efficientnet_lite0_fpn,
    }[kind]
    system = build(CATEGORIES)
    if kind == "ssd":
        for layer in system.head.classification:
            nn.init.normal_(layer[1].weight, std=0.2)
    else:
        nn.init.normal_(system.head.classification["cls_logits"].weight, std=0.1)
        nn.init.constant_(system.head.classification["cls_logits"].bias, -2.0)
    preprocess = Preprocess(fixed_hw=(96, 96)) if kind == "ssd" else Preprocess(shorter_side=96, longer_side=128)
    return Predictor(system, preprocess=preprocess, name="tiny", device="cpu")


def photo() -> np.ndarray:
    rng = np.random.default_rng(5)
    image = rng.integers(0, 60, (150, 210, 3), dtype=np.uint8)
    image[40:100, 30:90] = (200, 30, 30)
    image[20:140, 120:180] = (30, 30, 220)
    return image


@pytest.fixture(scope="module", params=["retinanet", "ssd", "oriented"])
def explained(request):
    predictor = predictor_of(request.param)
    stages = explain_dense(predictor, photo(), name="photos/one.jpg", score_threshold=0.3, ground_truth=LABELS)
    found = predictor.predict(photo(), score_threshold=0.3)[0].instances
    assert len(found) > 1, "the weights find too little"
    return request.param, predictor, stages, found


def test_detections_are_those_of_predict(explained):
    kind, predictor, stages, found = explained
    document = stages.document()
    assert [one["category"] for one in document["detections"]] == [CATEGORIES[label] for label in found.labels]
    assert [one["score"] for one in document["detections"]] == found.scores.tolist()
    assert [one["box_xyxy"] for one in document["detections"]] == found.boxes_xyxy.tolist()
    if kind == "oriented":
        turned = [one["oriented_box_xywhr"] for one in document["detections"]]
        assert turned == found.oriented_boxes_xywhr.tolist()
    before = {(one["category"], one["score"], one["anchor"]) for one in document["before_nms"]}
    after = {(one["category"], one["score"], one["anchor"]) for one in document["detections"]}
    assert after < before
    assert (
        predictor.system.postprocess.score_threshold < 0.3
    )  # another threshold in the explanation leaves the model alone


def test_the_anchors_that_match_are_those_that_overlap(explained):
    kind, _, stages, _ = explained
    document = stages.document()
    matching, counts = document["matching"], [one["anchors"] for one in document["maps"]]
    assert document["truth"] == "labels"
    assert sum(counts) == matching["positive"] + matching["negative"] + matching["neutral"]
    assert matching["positive"] == len(matching["anchors"]) == sum(one["anchors"] for one in matching["objects"])
    # A crowd and a box without area are no objects.
    assert [one["category"] for one in matching["objects"]] == ["cat", "dog"]
    everywhere = stages.boxes(torch.cat(stages.record.anchors))
    for i, one in enumerate(matching["objects"]):
        assert one["anchors"] > 0
        assert one["anchors"] == sum(one[f"map {level}"] for level in range(len(counts)))
        own = [pair["anchor"] for pair in matching["anchors"] if pair["object"] == i]
        if kind != "oriented":
            assert pairwise_iou(everywhere[own], LABELS.boxes_xyxy[[i]]).max() > 0.3
    for pair in matching["anchors"]:
        assert sum(counts[: pair["map"]]) <= pair["anchor"] < sum(counts[: pair["map"] + 1])


def test_scores_of_maps_are_those_of_the_candidates(explained):
    _, _, stages, found = explained
    document = stages.document()
    assert max(one["best_score"] for one in document["maps"]) == pytest.approx(float(found.scores.max()), abs=1e-6)
    above = sum(one["above_threshold"] for one in document["maps"])
    assert above >= len(document["before_nms"]) >= len(document["detections"])


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
    _, _, stages, _ = explained
    text = stages.page().html()
    assert not re.search(r"https?://|<script|<link", text)
    assert re.findall("<h2>(.*?)</h2>", text) == [
        "The image",
        "1. Feature maps",
        "2. Anchors",
        "3. Assignment of anchors",
        "4. Scores of each map",
        "5. Candidates before NMS",
        "6. Detections",
    ]
    document = json.loads(json.dumps(stages.document()))
    counts = [len(document[name]) for name in ("before_nms", "detections")]
    counts += [sum(one[name] for one in document["maps"]) for name in ("anchors", "above_threshold")]
    by_category = [sum(one["category"] == name for one in document["before_nms"]) for name in CATEGORIES]
    by_map = [sum(pair["map"] == i for pair in document["matching"]["anchors"]) for i in range(len(document["maps"]))]
    drawn = [len(range(0, count, -(-count // 60))) for count in by_map if count]
    known = figures_of([document, counts, by_category, by_map, drawn]) | {"0", "1", "tiny"}
    known |= {str(i) for i in range(len(document["maps"]))}
    tables = " ".join(re.findall("<td[^>]*>(.*?)</td>", text))
    sentences = " ".join(re.findall(r"(?<=<p>)[^<]*|(?<=<figcaption>)[^<]*", text))
    for figure in re.findall(r"-?\d+(?:\.\d+)?(?:e-?\d+)?", html.unescape(f"{tables} {sentences}")):
        assert figure in known, figure


def test_without_labels_what_was_found_is_matched_and_nothing_is_explained_too():
    predictor = predictor_of("retinanet")
    document = explain_dense(predictor, photo(), name="x.jpg", score_threshold=0.3).document()
    assert document["truth"] == "detections"
    boxes = [one["box_xyxy"] for one in document["detections"]]
    with_area = [box for box in boxes if box[2] > box[0] and box[3] > box[1]]  # what lies outside is clipped to no area
    assert len(document["matching"]["objects"]) == len(with_area) > 0
    nothing = explain_dense(predictor, np.zeros((1, 1, 3), np.uint8), name="x.jpg", score_threshold=1.0)
    assert nothing.document()["matching"]["positive"] == 0
    assert "0 anchors are positive" in nothing.page().html()


def test_labels_are_found_by_the_images_name(tmp_path):
    coco = {
        "images": [{"id": 1, "file_name": "one.jpg", "height": 150, "width": 210}],
        "categories": [{"id": 7, "name": "dog"}, {"id": 9, "name": "bird"}],
        "annotations": [
            {"id": i, "image_id": 1, "category_id": c, "bbox": [10, 10, 20, 30], "area": 600, "iscrowd": 0}
            for i, c in enumerate((9, 7), start=1)
        ],
    }
    (tmp_path / "labels.json").write_text(json.dumps(coco))
    Image.fromarray(photo()).save(tmp_path / "one.jpg")
    dataset, said = open_dataset(tmp_path / "labels.json"), []
    found = ground_truth_of(dataset, str(tmp_path / "one.jpg"), CATEGORIES, log=said.append)
    assert found.labels.tolist() == [1]
    assert found.boxes_xyxy.tolist() == [[10, 10, 30, 40]]
    assert said == ["skipped 1 of 2 labels: the model does not have their categories"]
    with pytest.raises(UsageError, match=r"two\.jpg"):
        ground_truth_of(dataset, str(tmp_path / "two.jpg"), CATEGORIES)
    with pytest.raises(UsageError, match=r"categories \(horse\), but dog, bird"):
        ground_truth_of(dataset, str(tmp_path / "one.jpg"), Categories(("horse",)))


def test_of_two_images_with_one_name_the_path_says_which(tmp_path):
    coco = {
        "images": [{"id": i, "file_name": f"{i}/x.jpg", "height": 150, "width": 210} for i in (1, 2)],
        "categories": [{"id": 7, "name": "dog"}],
        "annotations": [
            {"id": 1, "image_id": 2, "category_id": 7, "bbox": [10, 10, 20, 30], "area": 600, "iscrowd": 0}
        ],
    }
    (tmp_path / "labels.json").write_text(json.dumps(coco))
    for folder in ("1", "2"):
        (tmp_path / folder).mkdir()
        Image.fromarray(photo()).save(tmp_path / folder / "x.jpg")
    dataset = open_dataset(tmp_path / "labels.json")
    assert [len(ground_truth_of(dataset, str(tmp_path / one / "x.jpg"), CATEGORIES)) for one in ("1", "2")] == [0, 1]


def test_anchors_inside_a_crowd_are_nobodys_as_in_training():
    predictor = predictor_of("retinanet")
    matching = explain_dense(predictor, photo(), name="x.jpg", ground_truth=LABELS).document()["matching"]
    sample = predictor.preprocess.sample(to_tensors(Sample(photo(), "x.jpg", instances=LABELS)))
    record = predictor.system.stages([sample])
    (crowd,) = predictor.system.target(sample).crowds
    inside = pairwise_ioa(torch.cat(record.anchors), crowd[None]) >= 0.5
    assert matching["neutral"] >= int(inside.sum()) - matching["positive"] > 100
    assert matching["negative"] <= int((~inside).sum())


@pytest.mark.parametrize("kind", ["retinanet", "ssd", "oriented"])
def test_an_explanation_decides_by_the_models_own_thresholds_as_predict_does(kind):
    predictor = predictor_of(kind)
    everything = predictor.predict(photo(), score_threshold=0.3)[0].instances
    own = {"cat": 0.3, "dog": float(np.median(everything.scores))}
    predictor.score_thresholds = own
    found = predictor.predict(photo())[0].instances
    assert found.scores.min() > 0.3
    assert found.scores[found.labels == 1].min() > own["dog"]
    assert 0 < (found.labels == 1).sum() < (everything.labels == 1).sum()
    document = explain_dense(predictor, photo(), name="x.jpg").document()
    assert [one["score"] for one in document["detections"]] == found.scores.tolist()
    assert document["score_thresholds"] == own
    with pytest.raises(UsageError, match="score_threshold: expected 0 to 1, got -1"):
        explain_dense(predictor, photo(), name="x.jpg", score_threshold=-1.0)
