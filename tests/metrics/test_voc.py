"""Pascal VOC's average precision: hand-computed, by an independent slow loop, and the published or re-run figures."""

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from otus.errors import UsageError
from otus.metrics.detection.average_precision import AveragePrecision
from otus.metrics.detection.voc import VocProtocol, VocResult
from otus.structures import BoxFormat, Categories, Objects
from otus.structures.boxes import convert, pairwise_iou


def score(ground_truth: Objects, predictions: Objects, names, images: int, protocol: VocProtocol) -> VocResult:
    metric = AveragePrecision(protocol, Categories(tuple(names)))
    return metric.update(ground_truth, predictions, image_ids=range(images)).compute()


def test_by_hand():
    """Two objects and a difficult one; from the top: true, duplicate, difficult (does not count), nothing, true."""
    ground_truth = Objects.build(
        image_index=[0, 0, 1],
        labels=[0, 0, 0],
        boxes_xyxy=[[0, 0, 10, 10], [20, 0, 30, 10], [0, 0, 10, 10]],
        columns={"difficult": np.array([False, True, False])},
    )
    predictions = Objects.build(
        image_index=[0, 0, 0, 1, 1],
        labels=[0] * 5,
        boxes_xyxy=[[0, 0, 10, 10], [0, 0, 10, 9], [20, 0, 30, 10], [50, 50, 60, 60], [0, 0, 10, 5]],
        scores=np.array([0.9, 0.8, 0.7, 0.6, 0.5]),
    )
    # precision 1, 1/2, 1/2, 1/3, 2/4 at recall 1/2, 1/2, 1/2, 1/2, 1
    area = score(ground_truth, predictions, ["a"], 2, VocProtocol(2012)).figures
    assert area == {"AP": pytest.approx(0.5 * 1 + 0.5 * 0.5), "AP50": pytest.approx(0.75)}
    eleven = score(ground_truth, predictions, ["a"], 2, VocProtocol(2007)).figures
    assert eleven["AP"] == pytest.approx((6 * 1 + 5 * 0.5) / 11)


def voc_eval(ground_truth, predictions, label: int, threshold: float, *, eleven_points: bool) -> float:
    """AP of one category as a slow loop over detections, written from VOCevaldet.m."""
    here = np.flatnonzero(predictions.labels == label)
    here = here[np.argsort(-predictions.scores[here], kind="stable")]
    difficult, taken = ground_truth.columns["difficult"], set()
    positives = int(((ground_truth.labels == label) & ~difficult).sum())
    if positives == 0:
        return float("nan")
    points, true, false = [], 0, 0
    for d in here:
        best, match = -1.0, -1
        for g in range(len(ground_truth)):
            if ground_truth.labels[g] == label and ground_truth.image_index[g] == predictions.image_index[d]:
                iou = pairwise_iou(predictions.boxes_xyxy[d : d + 1], ground_truth.boxes_xyxy[g : g + 1])[0, 0]
                if iou > best:
                    best, match = iou, g
        if best < threshold or match in taken:
            false += 1
        elif not difficult[match]:
            true += 1
            taken.add(match)
        if true + false:
            points.append((true / positives, true / (true + false)))
    if eleven_points:
        return sum(max((p for r, p in points if r >= t * 0.1), default=0) / 11 for t in range(11))
    area, before = 0.0, 0.0
    for i, (recall, _) in enumerate(points):
        area += (recall - before) * max(p for _, p in points[i:])
        before = recall
    return area


@given(st.integers(0, 2**32 - 1), st.sampled_from([0.3, 0.5, 0.75]))
@settings(max_examples=80, deadline=None)
def test_equals_the_slow_loop(seed, threshold):
    rng = np.random.default_rng(seed)
    objects, detections = rng.integers(0, 12), rng.integers(0, 40)
    corner = rng.integers(0, 12, (objects, 2))
    ground_truth = Objects.build(
        image_index=np.sort(rng.integers(0, 3, objects)), labels=rng.integers(0, 2, objects),
        boxes_xyxy=np.concatenate([corner, corner + rng.integers(3, 12, (objects, 2))], axis=1),
        columns={"difficult": rng.random(objects) < 0.3},
    )  # fmt: skip
    corner = rng.integers(0, 12, (detections, 2))
    predictions = Objects.build(
        image_index=np.sort(rng.integers(0, 3, detections)), labels=rng.integers(0, 2, detections),
        boxes_xyxy=np.concatenate([corner, corner + rng.integers(3, 12, (detections, 2))], axis=1),
        scores=rng.permutation(detections) / 50,
    )  # fmt: skip
    for year in (2007, 2012):
        result = score(ground_truth, predictions, "ab", 3, VocProtocol(year, threshold))
        expected = [
            voc_eval(ground_truth, predictions, label, threshold, eleven_points=year == 2007) for label in (0, 1)
        ]
        np.testing.assert_allclose(list(result.average_precision.values()), expected, rtol=0, atol=1e-12)


def read_lines(folder: Path) -> dict[str, list[list[str]]]:
    return {
        file.stem: [line.split() for line in file.read_text().splitlines() if line] for file in sorted(folder.iterdir())
    }


def test_difficult_objects_of_voc2007(shared_data):
    """Official annotations and made-up detections, judged by detectron2's voc_eval."""
    folder = shared_data / "metric_fixtures" / "voc_ap_difficult"
    expected = json.loads((folder / "expected.json").read_text())["expected"]
    names = sorted(expected["voc07_11point"]["0.5"]["AP"])
    images = (folder / "images.txt").read_text().split()
    image, labels, boxes, difficult = [], [], [], []
    for index, stem in enumerate(images):
        for one in ElementTree.parse(folder / "annotations" / f"{stem}.xml").iter("object"):
            image.append(index)
            labels.append(names.index(one.findtext("name")))
            boxes.append([float(one.findtext(f"bndbox/{side}")) for side in ("xmin", "ymin", "xmax", "ymax")])
            difficult.append(one.findtext("difficult") == "1")
    ground_truth = Objects.build(
        image_index=image, labels=labels, boxes_xyxy=convert(boxes, BoxFormat.VOC, BoxFormat.XYXY),
        columns={"difficult": np.array(difficult)},
    )  # fmt: skip
    rows = [(names.index(name), *row) for name, lines in read_lines(folder / "detections").items() for row in lines]
    predictions = Objects.build(
        image_index=[images.index(row[1]) for row in rows],
        labels=[row[0] for row in rows],
        boxes_xyxy=convert([[float(v) for v in row[3:]] for row in rows], BoxFormat.VOC, BoxFormat.XYXY),
        scores=np.array([float(row[2]) for row in rows]),
    )
    for key, year in (("voc07_11point", 2007), ("voc10_area", 2012)):
        for threshold, figures in expected[key].items():
            result = score(ground_truth, predictions, names, len(images), VocProtocol(year, float(threshold)))
            assert result.average_precision == pytest.approx(figures["AP"], abs=1e-9)
            assert result.figures["AP"] == pytest.approx(figures["mAP"], abs=1e-9)


def test_cartucho_map(shared_data):
    folder = shared_data / "metric_fixtures" / "cartucho_map"
    expected = json.loads((folder / "expected.json").read_text())
    names = sorted(expected["AP_percent"])
    lines = read_lines(folder / "ground-truth")
    images = list(lines)
    rows = [(images.index(stem), *row) for stem, some in lines.items() for row in some]
    ground_truth = Objects.build(
        image_index=[row[0] for row in rows], labels=[names.index(row[1]) for row in rows],
        boxes_xyxy=convert([[float(v) for v in row[2:6]] for row in rows], BoxFormat.VOC, BoxFormat.XYXY),
        columns={"difficult": np.array(["difficult" in row for row in rows])},
    )  # fmt: skip
    results = read_lines(folder / "detection-results")
    rows = [(images.index(stem), *row) for stem, some in results.items() for row in some if row[0] in names]
    predictions = Objects.build(
        image_index=[row[0] for row in rows], labels=[names.index(row[1]) for row in rows],
        boxes_xyxy=convert([[float(v) for v in row[3:7]] for row in rows], BoxFormat.VOC, BoxFormat.XYXY),
        scores=np.array([float(row[2]) for row in rows]),
    )  # fmt: skip
    result = score(ground_truth, predictions, names, len(images), VocProtocol(2012))
    percent = {name: round(100 * value, 2) for name, value in result.average_precision.items()}
    assert percent == expected["AP_percent"]
    assert round(100 * result.figures["AP"], 2) == expected["mAP_percent"]


@pytest.mark.parametrize("threshold", ["0.1", "0.3", "0.5", "0.75"])
def test_padilla_sample(threshold, shared_data):
    """Its boxes are x, y, width, height of which the last pixel counts: + 1 on both sides."""
    folder = shared_data / "metric_fixtures" / "voc_ap_padilla"
    expected = json.loads((folder / "expected.json").read_text())["sample_2"]
    ground_truths, results = (read_lines(folder / "sample_2" / side) for side in ("groundtruths", "detections"))
    images = list(ground_truths)

    def columns(lines, first):
        rows = [(images.index(stem), [float(v) for v in row[1:]]) for stem, some in lines.items() for row in some]
        boxes = convert([row[1][first : first + 4] for row in rows], BoxFormat.XYWH, BoxFormat.XYXY)
        boxes[:, 2:] += 1
        return {"image_index": [row[0] for row in rows], "labels": [0] * len(rows), "boxes_xyxy": boxes}, rows

    ground_truth, _ = columns(ground_truths, 0)
    predictions, rows = columns(results, 1)
    scores = np.array([row[1][0] for row in rows])
    for key, year in (("11_point", 2007), ("all_point", 2012)):
        result = score(
            Objects.build(**ground_truth), Objects.build(**predictions, scores=scores), ["object"], len(images),
            VocProtocol(year, float(threshold)),
        )  # fmt: skip
        assert result.figures["AP"] == pytest.approx(expected[key][threshold], abs=1e-9)


def test_wrong_parameters_are_refused():
    for wrong in ({"year": 2008}, {"iou_threshold": 0.0}, {"iou_threshold": 50}):
        with pytest.raises(UsageError):
            VocProtocol(**wrong)
