"""The validation images of a run in ``evaluate``, data that move, and invalid images, which fail before the first epoch."""

import json
import shutil
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import otus
from otus.cli import app
from otus.data.dataset import Dataset
from otus.data.formats import coco
from otus.data.image_writing import write_image
from otus.data.open import open_dataset
from otus.errors import DataError, UsageError
from otus.parts.tasks import DETECTION
from otus.training.run import resume_run, train
from otus.training.run_folder import new_run_folder
from otus.training.settings import TrainSettings
from otus.zoo.checkpoint import load_checkpoint
from otus.zoo.models import MODELS, ModelEntry
from tiny_run import PREPROCESS, TinyDetector, interrupt_at, run, tiny_detector, write_scenes

QUICK = TrainSettings(epochs=2, batch_size=4, device="cpu", workers=1)


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODELS, "tiny", ModelEntry(TinyDetector, DETECTION, "none", PREPROCESS))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    coco.write(write_scenes(tmp_path / "made", 12), tmp_path / "data", images="copy")
    return tmp_path / "data"


def otus_evaluate(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["evaluate", "--device", "cpu", *map(str, arguments)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout, result.stderr


def test_evaluate_uses_the_validation_images_of_a_run(data: Path, tmp_path: Path) -> None:
    trained = train("tiny", data, val=0.25, settings=QUICK, out=tmp_path / "runs", quiet=True)
    listed = json.loads((trained.folder / "images.json").read_text())
    assert (len(listed["training"]), len(listed["validation"])) == (9, 3)
    recorded_ap = load_checkpoint(trained.best)[1].training["figures"]["bbox/AP"]
    code, out, err = otus_evaluate("--run", trained.folder, "--json")
    assert code == 0, err
    document = json.loads(out)
    assert document["images"] == 3
    assert document["bbox"]["AP"] == pytest.approx(recorded_ap, nan_ok=True)
    assert "training_images" not in document

    code, out, err = otus_evaluate("--run", trained.folder, "--choose-thresholds", "--json")  # go into its weights
    assert json.loads(out)["score_thresholds"]["written"] == str(trained.best)

    assert otus.evaluate(run=trained.best).images == 3  # of the run that these weights are of
    share = json.loads(otus_evaluate("--data", data, "--val", 0.25, "--model", trained.best, "--json")[1])
    assert share["bbox"] == document["bbox"]
    code, out, err = otus_evaluate("--data", data, "--model", trained.best, "--json")
    assert json.loads(out)["training_images"] == 9
    assert "trained on 9 of the 12 images" in err

    # Reordered, grown and moved, the same images are meant; without one of them it is said which.
    whole = open_dataset(data)
    more = write_scenes(tmp_path / "more", 14).select(np.arange(14)[::-1])
    moved = tmp_path / "moved"
    coco.write(more, moved, images="copy")
    for file in whole.images.files:
        shutil.copy(whole.images.root / file, open_dataset(moved).images.root / file)
    shutil.rmtree(data)
    code, _, err = otus_evaluate("--run", trained.folder)
    assert code == 2
    assert "give their new path by --data" in err
    again = otus.evaluate(moved, run=trained.folder)
    assert again.images == 3
    assert again.results["bbox"].figures["AP"] == pytest.approx(recorded_ap, nan_ok=True)
    lost = next(iter(listed["validation"]))
    files = open_dataset(moved).images.files
    coco.write(
        open_dataset(moved).select([i for i, file in enumerate(files) if file != lost]),
        tmp_path / "less",
        images="copy",
    )
    with pytest.raises(DataError, match=f"1 of the 3 validation images .* do not exist, e.g. {lost}"):
        otus.evaluate(tmp_path / "less", run=trained.folder)


def test_runs_that_cannot_be_evaluated(data: Path, tmp_path: Path) -> None:
    trained = train("tiny", data, settings=replace(QUICK, epochs=1), out=tmp_path / "runs", quiet=True)
    with pytest.raises(UsageError, match="has no validation images"):
        otus.evaluate(run=trained.folder)
    with pytest.raises(UsageError, match="expected the folder of a training run"):
        otus.evaluate(run=tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(UsageError, match=r"config\.json is not of a training run of Otus: it has no data"):
        otus.evaluate(run=tmp_path)
    with pytest.raises(UsageError, match="leave out val"):
        otus.evaluate(run=trained.folder, val=0.5)
    assert otus_evaluate("--model", trained.last)[0] == 2


def test_a_run_goes_on_where_its_data_have_moved_and_were_repaired(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        interrupt_at(patch, 3)
        stopped = train("tiny", data, val=0.25, settings=QUICK, out=tmp_path / "runs", quiet=True)
    assert stopped.result.ended == "interrupted"
    moved = tmp_path / "elsewhere" / "photos"
    moved.parent.mkdir()
    data.rename(moved)
    with pytest.raises(UsageError, match="give their new path by --data"):
        resume_run(stopped.folder)
    aside = next(iter(json.loads((stopped.folder / "images.json").read_text())["validation"]))
    file = open_dataset(moved).images.root / aside
    file.write_bytes(file.read_bytes() + b"another ending")
    capsys.readouterr()
    done = resume_run(stopped.folder, arguments={"data": [moved]})
    stderr = capsys.readouterr().err
    assert done.result.ended == "done"
    assert "data moved" in stderr
    assert f"1 image file has changed since the run was started, e.g. {aside}" in stderr
    assert json.loads((done.folder / "config.json").read_text())["data"] == [str(moved)]
    assert otus.evaluate(run=done.folder).images == 3

    other = tmp_path / "other"
    coco.write(write_scenes(tmp_path / "made2", 12, seed=5), other, images="copy")
    with pytest.raises(UsageError, match="data_digest: was"):
        resume_run(stopped.folder, arguments={"data": [other]})


def test_all_invalid_images_are_reported_before_training(data: Path, tmp_path: Path) -> None:
    root, files = open_dataset(data).images.root, open_dataset(data).images.files
    (root / files[0]).write_bytes((root / files[0]).read_bytes()[:300])
    (root / files[5]).unlink()
    shutil.copy(root / files[3], root / files[1])  # of another size
    with pytest.raises(DataError, match=r"3 of 12 images cannot be used") as raised:
        train("tiny", data, val=0.25, settings=QUICK, out=tmp_path / "runs", quiet=True)
    for index in (0, 1, 5):
        assert files[index] in str(raised.value)
    assert not (tmp_path / "runs").exists()


def test_the_number_of_workers_changes_nothing(tmp_path: Path) -> None:
    size = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        large = write_large_scenes(tmp_path / "large")
        states = [run(tiny_detector(), large, workers=count, epochs=1).system.state_dict() for count in (0, 1, 2, 4)]
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(size)
    for other in states[1:]:
        assert all(torch.equal(other[name], tensor) for name, tensor in states[0].items())


def write_large_scenes(folder: Path) -> Dataset:
    """Write scenes so large that torch distributes their sums over threads."""
    made = write_scenes(folder / "small", 4)
    objects = made.objects
    assert objects is not None
    for index, file in enumerate(made.images.files):
        noise = np.random.default_rng(index).integers(0, 256, (400, 400, 3), dtype=np.uint8)
        write_image(folder / file, noise)
    images = replace(made.images, root=folder, sizes_hw=np.full((4, 2), 400))
    return replace(made, images=images, objects=replace(objects, segmentations=None))


def test_runs_that_begin_at_once_get_folders_of_their_own(tmp_path: Path) -> None:
    with ProcessPoolExecutor(4, mp_context=get_context("spawn")) as processes:
        folders = list(processes.map(partial(new_run_folder, "detection", out=tmp_path), ["one"] * 16))
    assert len(set(folders)) == 16
