"""``otus masks``: SA-1B's files and COCO's, each image once, also after the run was killed."""

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

pytest.importorskip("segment_anything", reason="the narrow SAM has its weights")

import otus
from otus.cli import app
from otus.data.image_writing import write_image
from otus.parts.preprocess import Preprocess
from otus.parts.tasks import OBJECT, PROMPTABLE
from otus.promptable.automatic import SamAutomaticMaskGenerator
from otus.promptable.sam import Sam
from otus.structures import Categories
from otus.zoo.checkpoint import CheckpointHeader, save_checkpoint
from otus.zoo.models import MODELS, ModelEntry
from tiny_sam import narrow_sam, picture, reference

OPTIONS = ("--points-per-side", "4", "--pred-iou-thresh", "0", "--stability-score-thresh", "0")


def build(categories: Categories) -> Sam:
    return narrow_sam(reference())


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setitem(MODELS, "narrow_sam", ModelEntry(build, PROMPTABLE, "none", Preprocess(fixed_hw=(192, 192))))
    header = CheckpointHeader(builder="narrow_sam", categories=OBJECT)
    save_checkpoint(tmp_path / "narrow.safetensors", build(OBJECT).state_dict(), header)
    folder = tmp_path / "photos"
    for index in range(4):
        write_image(folder / f"{index}.png", picture(60 + index, 80, seed=index))
    return folder


def run(photos: Path, *arguments: object, code: int = 0) -> str:
    model = (photos if photos.is_dir() else photos.parent).parent / "narrow.safetensors"
    result = CliRunner().invoke(app, ["masks", str(photos), "--model", str(model), *OPTIONS, *map(str, arguments)])
    assert result.exit_code == code, result.output
    return result.stdout if code == 0 else result.stderr


def test_files_of_sa1b_are_read_again(photos: Path) -> None:
    document = json.loads(run(photos, "--json"))
    dataset = otus.open_dataset(photos / "otus-automatic-masks")
    assert dataset.format == "sa1b"
    assert list(dataset.images.files) == ["0.png", "1.png", "2.png", "3.png"]
    assert [len(dataset.instances(index)) for index in range(4)] == [one["masks"] for one in document["images"]]
    assert np.array_equal(dataset.image(1), picture(61, 80, seed=1))
    assert dataset.objects is not None
    assert len(dataset.objects) > 8
    assert len(set(dataset.objects.ids.tolist())) == len(dataset.objects)
    masks = dataset.instances(0).masks
    assert masks is not None
    record = json.loads((photos / "otus-automatic-masks" / "0.png.json").read_text())["annotations"][0]
    assert masks.area()[0] == record["area"]
    assert record.keys() == {
        "id", "segmentation", "area", "bbox", "predicted_iou", "point_coords", "stability_score", "crop_box",
    }  # fmt: skip


def test_one_file_of_coco(photos: Path, tmp_path: Path) -> None:
    run(photos, "--format", "coco")
    dataset = otus.open_dataset(photos / "otus-automatic-masks" / "annotations.json")
    assert len(dataset) == 4
    assert dataset.objects is not None
    for index in range(4):
        found = dataset.instances(index)
        assert found.masks is not None
        assert np.array_equal(found.boxes_xyxy, found.masks.boxes_xyxy())


@pytest.mark.parametrize("form", ["sa1b", "coco"])
def test_a_run_that_was_killed_goes_on_without_a_duplicate_or_a_gap(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    arguments = ("--format", form, "--out", tmp_path / "masks")
    find = SamAutomaticMaskGenerator.masks
    calls = []

    def until_killed(generator: SamAutomaticMaskGenerator, image: np.ndarray) -> object:
        calls.append(image.shape[0])
        if len(calls) == 3:
            raise KeyboardInterrupt
        return find(generator, image)

    monkeypatch.setattr(SamAutomaticMaskGenerator, "masks", until_killed)
    run(photos, *arguments, code=130)
    monkeypatch.setattr(SamAutomaticMaskGenerator, "masks", lambda self, image: calls.append(image.shape[0]) or find(self, image))  # fmt: skip  # noqa: E501
    write_image(photos / "00.png", picture(90, 80, seed=9))  # which comes first now
    assert "2 of them already there" in run(photos, *arguments)
    assert calls == [60, 61, 62, 90, 62, 63]
    assert "5 of them already there" in run(photos, *arguments)
    assert len(calls) == 6
    kept = tmp_path / "masks" / ("annotations.json" if form == "coco" else "")
    dataset = otus.open_dataset(kept)
    assert sorted(dataset.images.files) == ["0.png", "00.png", "1.png", "2.png", "3.png"]
    assert sorted(dataset.images.ids) == [1, 2, 3, 4, 5]


def test_what_is_wrong_is_named(photos: Path, tmp_path: Path) -> None:
    (photos / "broken.png").write_bytes(b"no image")
    (photos / "caf\udce9.png").write_bytes((photos / "0.png").read_bytes())
    output = run(photos, code=1)
    assert output.count("skipped: ") == 2
    assert "its name is not UTF-8 (rename it)" in output
    assert len(list((photos / "otus-automatic-masks").glob("*.png.json"))) == 4
    refused = run(photos, "--box-nms-thresh", "0.5", code=2)
    assert "contains masks generated with box_nms_thresh 0.7, got 0.5; choose another folder" in refused
    assert "expected sa1b or coco, got 'png'" in run(photos, "--format", "png", code=2)
    assert "expected a folder" in run(photos, "--out", photos / "0.png", code=2)
    result = CliRunner().invoke(app, ["masks", str(photos), "--model", "fcos_efficientnet_lite0_fpn"])
    assert result.exit_code == 2
    assert "expected sam_efficientnet_lite0" in result.stderr
    assert "graph-cut" not in result.stderr  # it makes no masks of everything


@pytest.mark.parametrize("form", ["sa1b", "coco"])
def test_images_one_by_one_and_an_image_that_has_changed(photos: Path, tmp_path: Path, form: str) -> None:
    arguments = ("--format", form, "--out", tmp_path / "masks")
    run(photos / "2.png", *arguments)
    run(photos / "0.png", *arguments)
    dataset = otus.open_dataset(tmp_path / "masks" / ("annotations.json" if form == "coco" else ""))
    assert dict(zip(dataset.images.files, dataset.images.ids, strict=True)) == {"2.png": 1, "0.png": 2}
    assert len(set(dataset.objects.ids.tolist())) == len(dataset.objects)
    write_image(photos / "2.png", picture(50, 70, seed=7))
    assert "2 images" not in run(photos / "2.png", *arguments)
    assert "already there" in run(photos / "2.png", *arguments)
    dataset = otus.open_dataset(tmp_path / "masks" / ("annotations.json" if form == "coco" else ""))
    assert dict(zip(dataset.images.files, dataset.images.ids, strict=True)) == {"2.png": 1, "0.png": 2}
    assert dataset.instances(dataset.images.files.index("2.png")).size_hw == (50, 70)


def test_settings_that_are_the_defaults_are_the_same(photos: Path) -> None:
    run(photos)
    assert "4 of them already there" in run(photos, "--box-nms-thresh", "0.7")
