"""``otus evaluate`` by every protocol, on real data if available, and with missing, invalid or empty predictions."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

import otus
from otus.cli import app
from otus.data.dataset import Dataset, Images, PanopticFiles, SemanticFiles
from otus.data.formats import coco
from otus.data.formats.coco_results import write_results
from otus.errors import DataError, UsageError
from otus.evaluation.evaluate import evaluate_predictions
from otus.evaluation.protocols import OBJECT_PROTOCOLS, PROTOCOLS
from otus.structures import Categories, Objects, Segmentations


def run(data: Path, predictions: Path, protocol: str, *options: str) -> Result:
    command = ["evaluate", "--data", str(data), "--predictions", str(predictions), "--protocol", protocol, *options]
    return CliRunner().invoke(app, command)


def document(data: Path, predictions: Path, protocol: str, *options: str) -> dict:
    done = run(data, predictions, protocol, "--json", *options)
    assert done.exit_code == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["protocol"] == protocol
    return report


def test_every_protocol_is_named_in_the_help():
    words = CliRunner().invoke(app, ["evaluate", "--help"], env={"COLUMNS": "300"}).stdout
    assert all(name in words for name in PROTOCOLS)


def test_semantic_on_camvid(shared_data, tmp_path):
    data = shared_data / "camvid"
    perfect = document(data, data / "valannot", "semantic", "--split", "val")
    assert perfect["images"] == 101
    assert {perfect["semantic"][name] for name in ("mIoU", "fwIoU", "mAcc", "aAcc", "BF")} == {1}
    assert perfect["semantic"]["per_category"]["Car"] == {"IoU": 1, "Acc": 1, "BF": 1}
    # The same images moved by a few pixels: hotcoco's figures.
    semantic = pytest.importorskip("hotcoco.semantic", reason="hotcoco is a reference")
    files = sorted((data / "valannot").glob("*.png"))
    theirs = semantic.SemanticEval(11, ignore_index=11)
    for file in files:
        ground_truth = np.array(Image.open(file))
        found = np.roll(ground_truth, (2, -3), axis=(0, 1))
        found[found == 11] = 0
        Image.fromarray(found).save(tmp_path / file.name)
        theirs.update(ground_truth, found)
    figures = document(data, tmp_path, "semantic", "--split", "val")["semantic"]
    common = {name: value for name, value in theirs.results().items() if name in figures}
    assert {name: figures[name] for name in common} == pytest.approx(common, abs=1e-9)
    assert set(common) == {"mIoU", "fwIoU", "mAcc", "aAcc"}
    assert 0.3 < figures["BF"] < 1


def test_a_image_without_a_map_is_missed(shared_data, tmp_path):
    data = shared_data / "camvid"
    files = sorted((data / "valannot").glob("*.png"))
    for file in files[1:]:
        (tmp_path / file.name).symlink_to(file)
    table = run(data, tmp_path, "semantic", "--split", "val")
    assert table.exit_code == 0, table.stderr
    assert "1 image without a prediction, counted as wrong" in table.stderr
    assert all(word in table.stdout for word in ("protocol semantic", "Bicyclist", "IoU", "fwIoU 0.99"))


@pytest.mark.slow
def test_semantic_on_voc(shared_data):
    data = shared_data / "voc2012"
    figures = document(data, data / "SegmentationClass", "semantic", "--format", "voc", "--split", "val", "--skip-bad")
    assert figures["semantic"]["mIoU"] == 1
    assert figures["images"] == 230
    assert sum(figures["skipped"].values()) > 0  # the maps of the training images, which are not of this split


def test_panoptic_on_coco(shared_data):
    data = shared_data / "coco_panoptic"
    figures = document(data, data / "panoptic_val2017.json", "panoptic", "--split", "val")
    assert {figures["panoptic"][name] for name in ("PQ", "SQ", "RQ", "PQ_th", "PQ_st")} == {1}
    folder = shared_data / "metric_fixtures" / "panoptic_pq"
    figures = document(folder / "gt.json", folder / "pred.json", "panoptic")
    expected = json.loads((folder / "expected.json").read_text())["expected"]
    assert figures["panoptic"]["PQ"] == pytest.approx(expected["All"]["pq"], abs=1e-12)
    assert figures["panoptic"]["RQ_st"] == pytest.approx(expected["Stuff"]["rq"], abs=1e-12)


def test_oriented_on_dota_by_all_kinds_of_files(shared_data, tmp_path):
    """The labels as predictions with scores, in YOLO's, DOTA's and COCO's formats."""
    data = shared_data / "dota8"
    dataset = otus.open_dataset(data, format="yolo", split="val")
    objects = dataset.objects
    assert objects is not None
    found = replace(objects, scores=np.linspace(0.9, 0.1, len(objects)))
    for folder in ("yolo", "dota"):
        (tmp_path / folder).mkdir()
    for row in range(len(found)):
        index, scores = int(found.image_index[row]), found.scores
        stem, (height, width) = Path(dataset.images.files[index]).stem, dataset.images.size_hw(index)
        corners, name = found.corners_xy[row], dataset.categories[found.labels[row]]
        fractions = " ".join(map(str, (corners / [width, height]).ravel().tolist()))
        with (tmp_path / "yolo" / f"{stem}.txt").open("a") as file:
            file.write(f"{found.labels[row]} {fractions} {scores[row]}\n")
        with (tmp_path / "dota" / f"Task1_{name}.txt").open("a") as file:
            file.write(f"{stem} {scores[row]} {' '.join(map(str, corners.ravel().tolist()))}\n")
    write_results(dataset, found, tmp_path / "coco.json")
    for name in ("yolo", "dota", "coco.json"):
        report = document(data, tmp_path / name, "oriented", "--format", "yolo", "--split", "val")
        assert list(report)[3:] == ["oriented", "oriented_voc07", "oriented_voc12"]
        for kind in ("oriented", "oriented_voc07", "oriented_voc12"):
            assert report[kind]["AP50"] == pytest.approx(1), (name, kind)
        assert report["oriented"]["AP"] == pytest.approx(1)


def test_boundary_and_proposals_on_coco(shared_data):
    folder = shared_data / "metric_fixtures" / "coco_fake100"
    labels, results = folder / "instances_val2014_100.json", folder / "instances_val2014_fakesegm100_results.json"
    boundary, masks = document(labels, results, "boundary")["boundary"], document(labels, results, "coco")["segm"]
    assert 0 < boundary["AP"] < masks["AP"]
    assert boundary["APl"] < 0.5 * masks["APl"]
    boxes = folder / "instances_val2014_fakebbox100_results.json"
    figures = document(labels, boxes, "proposals", "--max-dets", "10,100")["proposals"]
    assert 0.5 < figures["recall50@10"] < figures["recall50@100"] <= 1
    assert set(figures["per_category"]["person"]) == {"ABO@10", "ABO@100"}


KITTI_CARS = """\
Car 0 0 -1.5 10 20 90 60 1.5 1.6 4.0 2.0 1.7 20.0 0.1{first}
Car 0 0 -1.5 50 20 90 60 1.5 1.6 4.0 {x} 1.7 20.0 0.1{second}
"""


def test_cuboids_on_kitti(tmp_path):
    for part in ("image_2", "label_2", "found"):
        (tmp_path / part).mkdir()
    Image.new("RGB", (120, 70)).save(tmp_path / "image_2/000000.png")
    ignored = "DontCare -1 -1 -10 5 6 7 8 -1 -1 -1 -1000 -1000 -1000 -10\n"
    (tmp_path / "label_2/000000.txt").write_text(KITTI_CARS.format(first="", second="", x=9.0) + ignored)
    (tmp_path / "found/000000.txt").write_text(KITTI_CARS.format(first=" 0.9", second=" 0.8", x=9.5))
    report = document(tmp_path, tmp_path / "found", "cuboid")
    # Of the second car, moved by half a metre along its length of 4: IoU about 3.5 / 4.5.
    assert report["cuboid_r40"]["per_category"]["Car"]["AP70"] == pytest.approx(1)
    assert report["birds_eye"]["AP50"] == report["cuboid"]["AP50"] == pytest.approx(1)
    (tmp_path / "found/000000.txt").write_text(KITTI_CARS.format(first=" 0.9", second=" 0.8", x=11.0))
    report = document(tmp_path, tmp_path / "found", "cuboid")
    assert report["cuboid_r40"]["AP70"] == report["birds_eye_r40"]["AP70"] == pytest.approx(0.5)
    assert report["cuboid"]["AP25"] == pytest.approx(1)


CATEGORIES = Categories(("owl", "mouse"))


def a_dataset(folder: Path | None = None, **others) -> Dataset:
    square = [np.array([[2.0, 2], [12, 2], [12, 12], [2, 12]])]
    objects = Objects.build(
        image_index=[0, 1],
        labels=[0, 1],
        boxes_xyxy=[[2, 2, 12, 12], [2, 2, 12, 12]],
        segmentations=Segmentations.build([square, square]),
        corners_xy=np.array([[[2, 2], [12, 2], [12, 12], [2, 12]]] * 2, dtype=float),
        cuboids=np.array([[0, 0, 0, 4, 2, 1, 0.5]] * 2, dtype=float),
        amodal_boxes_xyxy=np.array([[2, 2, 12, 12], [2, 2, 14, 12]], dtype=float),
        amodal_segmentations=Segmentations.build([square, square]),
    )
    images = Images(folder or Path("images"), ("a.png", "b.png"), np.array([[20, 20]] * 2), (9, 3))
    return replace(Dataset(Path("labels.json"), "coco", images, CATEGORIES, objects), **others)


@pytest.mark.parametrize("protocol", OBJECT_PROTOCOLS)
def test_perfect_objects_give_1_no_predictions_0_and_no_labels_nothing(protocol):
    dataset = a_dataset()
    nothing = replace(Objects.empty(), scores=np.zeros(0))
    main = {"proposals": "AR@100"}.get(protocol, "AP50")
    perfect = evaluate_predictions(dataset, replace(dataset.objects, scores=np.array([0.9, 0.8])), protocol=protocol)
    assert len(perfect.results) >= 1
    for kind, result in perfect.results.items():
        named = "AP70" if kind.endswith("r40") else main
        assert result.figures[named] == pytest.approx(1), kind
        json.dumps(perfect.document())
    for kind, result in evaluate_predictions(dataset, nothing, protocol=protocol).results.items():
        assert result.figures["AP70" if kind.endswith("r40") else main] == 0
    # Without any columns, and with every column that objects may have, none of them with a row.
    for no_objects in (Objects.empty(), dataset.objects.take([])):
        no_predictions = replace(no_objects, scores=np.zeros(0))
        unlabelled = evaluate_predictions(replace(dataset, objects=no_objects), no_predictions, protocol=protocol)
        assert all(np.isnan(list(one.figures.values())).all() for one in unlabelled.results.values())
        for kind, result in evaluate_predictions(dataset, no_predictions, protocol=protocol).results.items():
            assert result.figures["AP70" if kind.endswith("r40") else main] == 0


def test_amodal_reports_kinds_that_cannot_be_compared():
    dataset = a_dataset()
    boxes_alone = replace(dataset.objects, scores=np.ones(2), segmentations=None, amodal_segmentations=None)
    report = evaluate_predictions(dataset, boxes_alone, protocol="amodal")
    assert list(report.results) == ["amodal_bbox"]
    assert report.skipped_kinds == {"amodal_segm": "the predictions have no masks"}
    unmasked = replace(dataset, objects=replace(dataset.objects, amodal_segmentations=None))
    report = evaluate_predictions(unmasked, boxes_alone, protocol="amodal")
    assert report.skipped_kinds == {"amodal_segm": "the labels have no amodal masks"}


def test_amodal_from_files(tmp_path):
    dataset = a_dataset()
    coco.write_json(dataset, tmp_path / "labels.json")
    whole = replace(dataset.objects, boxes_xyxy=dataset.objects.amodal_boxes_xyxy, scores=np.ones(2))
    write_results(dataset, whole, tmp_path / "found.json")
    report = document(tmp_path / "labels.json", tmp_path / "found.json", "amodal")
    assert report["amodal_bbox"]["AP"] == report["amodal_segm"]["AP"] == pytest.approx(1)
    assert (report["amodal_bbox"]["AR_none"], report["amodal_bbox"]["AR_heavy"]) == (pytest.approx(1), None)


@pytest.mark.parametrize(
    ("protocol", "field", "value"),
    [
        ("oriented", "corners_xy", np.nan),
        ("cuboid", "cuboids", np.inf),
        ("boundary", "segmentations", None),
        ("amodal", "amodal_boxes_xyxy", [9.0, 9, 2, 12]),
        ("amodal", "amodal_boxes_xyxy", [np.inf, 9, 12, 12]),
    ],
)
def test_records_without_the_compared_field_are_errors_or_skipped(protocol, field, value):
    dataset = a_dataset()
    found = replace(dataset.objects, scores=np.array([0.9, 0.8]))
    column = getattr(found, field)
    if value is None:
        broken = Segmentations.build([column.segmentation(0), None])
    else:
        broken = column.copy()
        broken[1] = value
    found = replace(found, **{field: broken})
    with pytest.raises(DataError, match=rf"predictions\[1\] \(id 2\)\.{field}"):
        evaluate_predictions(dataset, found, protocol=protocol)
    problems: list[DataError] = []
    report = evaluate_predictions(dataset, found, protocol=protocol, report=problems.append)
    assert [one.kind for one in problems] == [f"bad_{field}"]
    assert next(iter(report.results.values())).figures["AP50"] == pytest.approx(0.5)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_errors_name_missing_and_available_labels(protocol, tmp_path):
    bare = Dataset(Path("here"), "made", Images(Path("p"), ("a.png",), np.array([[4, 4]]), (1,)), CATEGORIES)
    with pytest.raises(
        UsageError, match=f"here: .* has no .*, which the protocol {protocol} needs; .* labels for: none"
    ):
        otus.evaluate(bare, predictions=tmp_path, protocol=protocol)
    other = replace(bare, image_labels=np.array([0]))
    if protocol != "classification":
        with pytest.raises(UsageError, match="it has labels for: classification"):
            otus.evaluate(other, predictions=tmp_path, protocol=protocol)


def test_wrong_commands(tmp_path):
    with pytest.raises(UsageError, match="max_dets: the protocol semantic has no limit"):
        otus.evaluate(a_dataset(), predictions=tmp_path, protocol="semantic", max_dets=[3])
    with pytest.raises(UsageError, match="kinds: the protocol boundary has only one"):
        otus.evaluate(a_dataset(), predictions=tmp_path, protocol="boundary", kinds=["segm"])
    with pytest.raises(UsageError, match="does not evaluate objects"):
        evaluate_predictions(
            replace(a_dataset(), image_labels=np.zeros(2, int)), Objects.empty(), protocol="classification"
        )
    with pytest.raises(UsageError, match="evaluates predictions from files"):
        otus.evaluate(a_dataset(), predictions=Objects.empty(), protocol="interactive")
    with pytest.raises(UsageError, match=r"predicts objects, but .* evaluates masks by prompts"):
        otus.evaluate(a_dataset(), model="fcos_efficientnet_lite0_fpn", protocol="interactive")
    with pytest.raises(DataError, match="there is no such file or folder"):
        otus.evaluate(a_dataset(), predictions=tmp_path / "none", protocol="interactive")


def test_classification_with_missing_predictions(tmp_path):
    for name, count in (("owl", 2), ("mouse", 1)):
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", (8, 8)).save(tmp_path / "data" / name / f"{i}.png")
    answers = [{"category": "owl", "score": 0.9}, {"category": "mouse", "score": 0.1}]
    found = {
        "model": "m",
        "images": [{"file": f"data/{name}", "classification": answers} for name in ("owl/0.png", "mouse/0.png")],
    }
    (tmp_path / "found.json").write_text(json.dumps(found))
    report = document(tmp_path / "data", tmp_path / "found.json", "classification")
    assert report["missing_predictions"] == 1
    assert report["classification"]["top1"] == pytest.approx(1 / 3)
    assert report["classification"]["top5"] == pytest.approx(2 / 3)
    assert report["classification"]["per_category"]["mouse"] == {"top1": 0, "top5": 1}
    (tmp_path / "found.json").write_text("[]")
    assert document(tmp_path / "data", tmp_path / "found.json", "classification")["classification"]["top1"] == 0


def test_a_classifier_is_evaluated(tmp_path):
    from otus.inference.predictor import Predictor
    from otus.parts.preprocess import Preprocess
    from otus.parts.system import BaseSystem
    from otus.parts.tasks import CLASSIFICATION
    from otus.structures import Classification

    class Guesses(BaseSystem):
        """Classify bright images as owl; it lacks the category mouse."""

        categories, task = Categories(("cat", "owl")), CLASSIFICATION

        def predict(self, samples, *, postprocess=None):
            bright = [sample["image"].mean() * 255 > 100 for sample in samples]
            return [Classification(np.array([0.4, 0.6] if one else [0.7, 0.3]), self.categories) for one in bright]

    plain = Preprocess(mean=(0.0,) * 3, std=(1.0,) * 3)
    guesses = Predictor(Guesses(), preprocess=plain, name="guesses", device="cpu")

    for name, brightness in (("owl", 200), ("cat", 20), ("mouse", 20)):
        (tmp_path / name).mkdir()
        Image.new("RGB", (8, 8), (brightness,) * 3).save(tmp_path / name / "1.png")
    report = otus.evaluate(tmp_path, model=guesses)  # the only protocol that such a data set has labels for
    assert report.protocol == "classification"
    assert report.unknown_categories == ("mouse",)
    figures = report.results["classification"].per_category
    assert {name: one["top1"] for name, one in figures.items()} == {"cat": 1, "mouse": 0, "owl": 1}


def test_a_classifier_says_nothing_of_objects():
    from otus.inference.predictor import Predictor
    from otus.parts.preprocess import Preprocess
    from otus.parts.system import BaseSystem
    from otus.parts.tasks import CLASSIFICATION

    class Guesses(BaseSystem):
        categories, task = Categories(("owl", "mouse")), CLASSIFICATION

    guesses = Predictor(Guesses(), preprocess=Preprocess(), name="guesses", device="cpu")
    with pytest.raises(UsageError, match=r"predicts the category of an image, but .* evaluates objects"):
        otus.evaluate(a_dataset(), model=guesses)


def test_the_documentation_lists_every_protocol_as_its_record_says():
    text = (Path(__file__).parents[2] / "docs" / "protocols.md").read_text()
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("| `")
    ]
    listed = {row[0].strip("`"): row[1:4] for row in rows}
    for name, protocol in PROTOCOLS.items():
        assert listed[name] == [protocol.labels.what, protocol.predictions, protocol.figures]


def test_without_a_protocol_the_first_that_the_data_has_labels_for(shared_data):
    data = shared_data / "coco_panoptic"
    report = otus.evaluate(data, split="val", predictions=data / "panoptic_val2017.json")
    assert report.protocol == "panoptic"


def test_clicks_on_real_objects(shared_data, tmp_path):
    data = shared_data / "interactive"
    names = [file.name for file in sorted((data / "images").iterdir())]
    curves = [{"file": name, "ious": [0.5, 0.86, 0.95]} for name in names[1:]]
    (tmp_path / "clicks.json").write_text(json.dumps(curves))
    report = document(data, tmp_path / "clicks.json", "interactive")
    assert (report["images"], report["missing_predictions"]) == (len(names), 1)
    assert report["interactive"]["NoC@85"] == pytest.approx((2 * (len(names) - 1) + 20) / len(names))
    table = run(data, tmp_path / "clicks.json", "interactive").stdout
    assert "NoC@90" in table
    assert "IoU@20" in table


def test_maps_that_cannot_be_are_named_and_left_out_on_request(tmp_path):
    labels = np.zeros((20, 20), dtype=np.uint8)
    for folder in ("ground_truth", "found"):
        (tmp_path / folder).mkdir()
        for name in ("a", "b"):
            Image.fromarray(labels).save(tmp_path / folder / f"{name}.png")
    ground_truth = SemanticFiles(
        tuple(tmp_path / "ground_truth" / f"{n}.png" for n in "ab"),
        CATEGORIES,
        np.where(np.arange(256) < 2, np.arange(256), 255),
    )
    dataset = a_dataset(tmp_path, semantic=ground_truth)
    for broken, words in (
        (np.zeros((20, 21), np.uint8), "b.png: expected labels of 20 x 20 pixels"),
        (labels + 9, r"b.png: has the values \[9\]"),
    ):
        Image.fromarray(broken).save(tmp_path / "found" / "b.png")
        with pytest.raises(DataError, match=words):
            otus.evaluate(dataset, predictions=tmp_path / "found", protocol="semantic")
        problems: list[DataError] = []
        report = otus.evaluate(dataset, predictions=tmp_path / "found", protocol="semantic", report=problems.append)
        assert (report.images, len(problems), report.results["semantic"].figures["mIoU"]) == (1, 1, 1)


def test_panoptic_maps_that_cannot_be_are_named(tmp_path):
    ids = np.zeros((20, 20, 3), dtype=np.uint8)
    ids[..., 0] = 1
    Image.fromarray(ids).save(tmp_path / "truth.png")
    Image.fromarray(ids * 2).save(tmp_path / "found.png")
    from otus.structures import Segment

    panoptic = PanopticFiles((tmp_path / "truth.png", None), ((Segment(1, 0),), ()), CATEGORIES)
    dataset = a_dataset(tmp_path, panoptic=panoptic)
    for segments, words in (
        ([{"id": 1, "category_id": 0}], r"found\.png: pixels have the ids \[2\]"),
        ([{"id": 2, "category_id": 0}, {"id": 3, "category_id": 0}], "predicted segment 3 has no pixels"),
    ):
        record = {"image_id": 9, "file_name": "found.png", "segments_info": segments}
        (tmp_path / "found.json").write_text(json.dumps({"annotations": [record]}))
        with pytest.raises(DataError, match=words):
            otus.evaluate(dataset, predictions=tmp_path / "found.json", protocol="panoptic")
    (tmp_path / "found.json").write_text('{"annotations": []}')
    report = otus.evaluate(dataset, predictions=tmp_path / "found.json", protocol="panoptic")
    assert (report.images, report.missing_predictions, report.results["panoptic"].figures["PQ"]) == (1, 1, 0)
