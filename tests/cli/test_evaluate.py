"""``otus evaluate``: exit codes, output streams, and imports of a fresh process."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from otus.cli import app
from otus.data.scenes.files import write_scenes

LABELS = {
    "images": [{"id": 7, "file_name": "a.png", "width": 40, "height": 30}],
    "annotations": [
        {"id": 1, "image_id": 7, "category_id": 3, "bbox": [1, 2, 10, 10], "area": 100, "iscrowd": 0},
        {"id": 2, "image_id": 7, "category_id": 3, "bbox": [20, 2, 10, 10], "area": 100, "iscrowd": 0},
    ],
    "categories": [{"id": 3, "name": "owl"}],
}
FOUND = [
    {"image_id": 7, "category_id": 3, "bbox": [1, 2, 10, 10], "score": 0.9},
    {"image_id": 7, "category_id": 3, "bbox": [20, 20, 5, 5], "score": 0.8},
]


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    labels, found = tmp_path / "labels.json", tmp_path / "results.json"
    labels.write_text(json.dumps(LABELS))
    found.write_text(json.dumps(FOUND))
    return labels, found


def run(labels: Path, found: Path, *options: str) -> Result:
    return CliRunner().invoke(app, ["evaluate", "--data", str(labels), "--predictions", str(found), *options])


def test_json_alone_on_stdout(files):
    done = run(*files, "--json")
    assert done.exit_code == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["protocol"] == "coco"
    assert document["images"] == 1
    assert document["bbox"]["AP"] == pytest.approx(51 / 101)
    assert document["bbox"]["APl"] is None
    assert document["bbox"]["per_category"]["owl"]["AP50"] == pytest.approx(51 / 101)


def test_a_number_of_proposals_below_1_is_named_as_the_option_is(files):
    done = run(*files, "--protocol", "proposals", "--max-dets", "0")
    assert (done.exit_code, "max_dets: expected 1 or more, got 0" in done.stderr) == (2, True)


def test_table_names_the_protocol(files):
    done = run(*files)
    assert done.exit_code == 0, done.stderr
    for word in ("coco", "bbox", "owl", "AP50", "0.505", "1 image"):
        assert word in done.stdout


@pytest.mark.parametrize("kind", ["bbox", "segm", "keypoints"])
def test_published_lines_from_the_files(kind, shared_data):
    folder = shared_data / "metric_fixtures" / "coco_fake100"
    name = "person_keypoints" if kind == "keypoints" else "instances"
    labels = folder / f"{name}_val2014_100.json"
    done = run(labels, folder / f"{name}_val2014_fake{kind}100_results.json", "--json")
    assert done.exit_code == 0, done.stderr
    expected = json.loads((folder / "expected.json").read_text())
    names = expected["keypoints_order" if kind == "keypoints" else "order"]
    figures = json.loads(done.stdout)[kind]
    assert [round(figures[name], 3) for name in names] == expected[kind]


def test_max_dets_are_honoured(files):
    figures = json.loads(run(*files, "--max-dets", "1", "--json").stdout)["bbox"]
    assert figures["AR1"] == pytest.approx(0.5)
    assert "AR100" not in figures
    done = run(*files, "--max-dets", "many")
    assert (done.exit_code, done.stdout) == (2, "")
    assert "--max-dets" in done.stderr


def test_unknown_protocol_is_a_wrong_command(files):
    done = run(*files, "--protocol", "pascal", "--json")
    assert (done.exit_code, done.stdout) == (2, "")
    assert "pascal" in done.stderr


OUTLINE = {"size": [30, 40], "counts": "i:k05a06"}
FAULTS = {
    "unknown image": ({"image_id": 8}, "unknown_image", "image_id"),
    "unknown category": ({"category_id": 4}, "unknown_category", "category_id"),
    "a text of no image": ({"image_id": "8"}, "unknown_image", "image_id"),
    "score not a number": ({"score": float("nan")}, "not_finite", "score"),
    "score without end": ({"score": float("inf")}, "not_finite", "score"),
    "no score": ({"score": None}, "no_score", "score"),
    "box not a number": ({"bbox": [1, 2, float("nan"), 4]}, "not_finite", "bbox[2]"),
    "box without end": ({"bbox": [float("-inf"), 2, 3, 4]}, "not_finite", "bbox[0]"),
    "box of three": ({"bbox": [1, 2, 3]}, "unreadable_annotation", "bbox"),
    "negative width": ({"bbox": [1, 2, -3, 4]}, "bad_boxes_xyxy", "boxes_xyxy"),
    "nothing to compare": ({"bbox": None}, "no_box", "bbox"),
    "mask of another size": ({"segmentation": {**OUTLINE, "size": [40, 30]}}, "bad_outline", "segmentation.size"),
    "mask that ends early": ({"segmentation": {**OUTLINE, "counts": "i:k0"}}, "bad_outline", "segmentation.counts"),
    "polygon of two points": ({"segmentation": [[1, 2, 3, 4]]}, "bad_outline", "segmentation[0]"),
    "half a keypoint": ({"keypoints": [1, 2, 2, 5]}, "bad_keypoints", "keypoints"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_faulty_prediction_is_named_or_left_out(name, files):
    labels, found = files
    record, kind, field = FAULTS[name]
    found.write_text(json.dumps([FOUND[0], {**FOUND[1], **record}]))
    done = run(labels, found, "--json")
    assert (done.exit_code, done.stdout) == (1, "")
    assert "Traceback" not in done.stderr
    assert "[1]" in done.stderr
    assert field in done.stderr
    done = run(labels, found, "--json", "--skip-bad")
    assert done.exit_code == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["skipped"] == {kind: 1}
    assert document["bbox"]["AP"] == pytest.approx(51 / 101)
    assert f"skipped 1 invalid record (1 {kind})" in done.stderr


@pytest.mark.parametrize("document", [{"predictions": FOUND}, {"results": FOUND}, {}, {"annotations": 3}])
def test_a_file_without_a_list_of_predictions_is_an_error(document, files):
    labels, found = files
    found.write_text(json.dumps(document))
    done = run(labels, found)
    assert (done.exit_code, done.stdout) == (1, "")
    assert f"{found}: " in done.stderr
    for empty in ("[]", '{"annotations": []}'):
        found.write_text(empty)
        assert json.loads(run(labels, found, "--json").stdout)["bbox"]["AP"] == 0


@pytest.mark.parametrize(
    ("record", "kind", "field"),
    [
        ({"id": 1}, "duplicate_id", "annotations[1].id"),
        ({"image_id": 8}, "unknown_image", "annotations[1].image_id"),
        ({"bbox": [20, 2, -10, 10]}, "inverted_box", "annotations[1].bbox"),
        ({"area": -5}, "bad_areas", "(id 2).areas"),
    ],
)
def test_a_faulty_label_is_named_or_left_out(record, kind, field, files):
    labels, found = files
    annotations = LABELS["annotations"]
    labels.write_text(json.dumps({**LABELS, "annotations": [annotations[0], {**annotations[1], **record}]}))
    done = run(labels, found, "--json")
    assert (done.exit_code, done.stdout) == (1, "")
    assert field in done.stderr
    done = run(labels, found, "--json", "--skip-bad")
    assert json.loads(done.stdout)["skipped"] == {kind: 1}
    assert json.loads(done.stdout)["bbox"]["AP"] == pytest.approx(1)


def test_faults_of_several_kinds_are_counted(files):
    labels, found = files
    names = ("unknown image", "unknown category", "box of three", "score not a number")
    bad = [{**FOUND[1], **FAULTS[name][0]} for name in names]
    found.write_text(json.dumps([*bad, FOUND[0]]))
    done = run(labels, found, "--skip-bad")
    assert "4 invalid records (1 " in done.stderr
    document = json.loads(run(labels, found, "--skip-bad", "--json").stdout)
    assert document["skipped"] == {
        "unknown_image": 1, "unknown_category": 1, "unreadable_annotation": 1, "not_finite": 1
    }  # fmt: skip
    found.write_text(json.dumps(FOUND))
    assert json.loads(run(labels, found, "--skip-bad", "--json").stdout)["skipped"] == {}
    assert "skipped" not in json.loads(run(labels, found, "--json").stdout)


def test_missing_files_are_reported(files, tmp_path):
    for pair in ((tmp_path / "no.json", files[1]), (files[0], tmp_path / "no.json")):
        done = run(*pair)
        assert done.exit_code == 1
        assert "no.json" in done.stderr
        assert "Traceback" not in done.stderr


def test_a_fresh_process_does_not_import_torch(files):
    code = (
        "import sys; from otus.cli import app; app(sys.argv[1:], standalone_mode=False); "
        "print([name for name in ('torch', 'matplotlib') if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "evaluate", "--data", files[0], "--predictions", files[1], "--json"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.strip() == "[]"
    assert json.loads(done.stdout)["protocol"] == "coco"


def test_empty_predictions_are_valid(files):
    files[1].write_text("[]")
    done = run(*files, "--json")
    assert done.exit_code == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["bbox"]["AP"] == document["bbox"]["AR100"] == 0


def test_linear_algebra_compiles_beside_our_kernels():
    """numba does not import SciPy's BLAS to check for it; code that uses it gets the real one."""
    code = """
import otus._numba, numba, numpy as np, sys
assert "scipy.linalg" not in sys.modules
answer = numba.njit(lambda a: np.dot(a, a))(np.full((2, 2), 2.0))
assert (answer == 8).all() and hasattr(sys.modules["scipy.linalg.cython_blas"], "__pyx_capi__")
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_scipy_is_not_imported_for_boxes(files):
    code = f"""
import sys
from typer.testing import CliRunner
from otus.cli import app
done = CliRunner().invoke(app, ["evaluate", "--data", {str(files[0])!r}, "--predictions", {str(files[1])!r}])
assert done.exit_code == 0, done.output
assert not {{"scipy.optimize", "scipy.linalg", "torch"}} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_names_of_images_go_before_numbers(files):
    labels, found = files
    labels.write_text(
        json.dumps({**LABELS, "images": [*LABELS["images"], {**LABELS["images"][0], "id": 1, "file_name": "b.png"}]})
    )
    found.write_text(json.dumps([{**one, "image_id": 1, "file_name": "photos/a.png"} for one in FOUND]))
    done = run(labels, found, "--json")
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["bbox"]["AP"] == pytest.approx(51 / 101)
    found.write_text(json.dumps([{**FOUND[0], "file_name": "photos/c.png"}]))
    done = run(labels, found)
    assert (done.exit_code, done.stdout) == (1, "")
    assert "'photos/c.png' does not match exactly one image of the data" in done.stderr


@pytest.mark.parametrize("name", ["[/bold] owl", "[red]", ":owl:"])
def test_names_with_brackets_and_colons_stand_as_they_are(name, tmp_path):
    folder = tmp_path / name.replace("/", "")
    folder.mkdir()
    labels, found = folder / "labels.json", folder / "results.json"
    labels.write_text(json.dumps({**LABELS, "categories": [{"id": 3, "name": name}]}))
    found.write_text(json.dumps(FOUND))
    done = run(labels, found, "--choose-thresholds", "--out", str(folder / "thresholds.json"))
    assert done.exit_code == 0, done.stderr or done.exception
    assert done.stdout.count(name) >= 2
    assert f"thresholds written to {folder}" in done.stdout
    compared = ["compare", "--data", str(labels), "--predictions", f"{found},{found}", "--resamples", "20"]
    done = CliRunner().invoke(app, compared)
    assert done.exit_code == 0, done.stderr or done.exception
    assert done.stdout.startswith(f"{labels}: ")
    assert f"\n│ {name} " in done.stdout


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_metrics_are_printed_if_plots_cannot_be_written(files, tmp_path, options):
    (tmp_path / "taken").write_text("a file, so no folder can be there")
    done = run(*files, "--plots", str(tmp_path / "taken" / "plots"), *options)
    assert done.exit_code == 1
    assert "cannot be written" in done.stderr
    if options:
        assert json.loads(done.stdout)["bbox"]["AP"] == pytest.approx(51 / 101)
    else:
        assert "0.505" in done.stdout


def test_metrics_are_printed_if_the_protocol_has_no_plots(tmp_path):
    write_scenes(tmp_path / "scenes", 1, size_hw=(48, 64))
    data = str(tmp_path / "scenes" / "annotations.json")
    done = CliRunner().invoke(
        app, ["evaluate", "--data", data, "--method", "graph-cut", "--plots", str(tmp_path / "p")]
    )
    assert done.exit_code == 2
    assert "protocol interactive: --plots and --choose-thresholds need one for boxes or masks of objects" in done.stderr
    assert "NoC@85" in done.stdout


def test_weights_with_a_file_as_model_are_an_error_and_unchanged(files, tmp_path):
    model, weights = tmp_path / "m.safetensors", tmp_path / "w.safetensors"
    model.write_bytes(b"model")
    weights.write_bytes(b"weights")
    command = ["evaluate", "--data", str(files[0]), "--model", str(model), "--weights", str(weights)]
    done = CliRunner().invoke(app, [*command, "--choose-thresholds"])
    assert (done.exit_code, done.stdout) == (2, "")
    assert f"{model} is a file of weights itself; leave out {weights}" in done.stderr
    assert weights.read_bytes() == b"weights"


def test_the_error_of_a_missing_split_lists_the_others(files, tmp_path):
    files[0].rename(tmp_path / "val.json")
    done = run(tmp_path / "val.json", files[1], "--split", "train")
    assert done.exit_code == 2
    assert "holds none of split 'train'; choose by --format and --split:\n  --format coco --split val" in done.stderr
