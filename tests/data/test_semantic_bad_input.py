"""Label maps that are wrong, or strange: each has a named error or a defined answer."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import otus
from otus.data.checks.doctor import check_datasets
from otus.data.dataset import Dataset
from otus.data.formats.index_png import _class_names
from otus.errors import DataError, ImageError
from otus.evaluation.protocols import Options, protocol_of
from otus.inference.predictor import Predictor
from otus.inference.tiling import Tiles
from otus.metrics.semantic import SemanticQuality
from otus.parts.preprocess import Preprocess
from otus.semantic.full_resolution import full_resolution
from otus.structures import IGNORE, Categories, SemanticMap
from otus.training.run import train
from otus.training.settings import TrainSettings

COLOURS = {(128, 64, 128): 0, (0, 0, 0): IGNORE, (64, 0, 0): 1}
QUICK = TrainSettings(epochs=1, batch_size=2, device="cpu", workers=0)


def folder(root: Path, maps: list[Image.Image | np.ndarray], names: str, *, size_hw: tuple[int, int] = (8, 12)) -> Path:
    (root / "images").mkdir(parents=True)
    (root / "masks").mkdir()
    (root / "classes.txt").write_text(names)
    for number, labels in enumerate(maps):
        pixels = np.random.default_rng(number).integers(0, 255, (*size_hw, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / "images" / f"{number}.png")
        saved = labels if isinstance(labels, Image.Image) else Image.fromarray(labels.astype(np.uint8))
        saved.save(root / "masks" / f"{number}.png")
    return root


def tiny(dataset: Dataset) -> object:
    return full_resolution(dataset.semantic.categories, widths=(4,))


def halves(first: int, second: int) -> np.ndarray:
    return np.repeat(np.array([first, second]), 6)[None].repeat(8, axis=0)


def test_a_label_map_of_another_size_is_named(tmp_path):
    root = folder(tmp_path / "data", [halves(0, 1), np.zeros((8, 11))], "sky\ntree\n")
    dataset = otus.open_dataset(root)
    with pytest.raises(
        ImageError, match=r"expected labels of 12 x 8 pixels, the size of the image, got 11 x 8"
    ) as error:
        dataset.semantic_map(1)
    assert str(error.value.file).endswith("masks/1.png")
    with pytest.raises(DataError, match="expected labels of 12 x 8"):
        train(tiny(dataset), root, settings=QUICK, preprocess=Preprocess(), out=tmp_path / "runs", quiet=True)


def test_values_without_a_category_are_ignored_and_the_doctor_says_so(tmp_path):
    dataset = otus.open_dataset(folder(tmp_path / "data", [halves(0, 7), halves(255, 1)], "sky\ntree\n"))
    assert dataset.semantic_map(0).labels[0, ::6].tolist() == [0, IGNORE]
    assert dataset.semantic_map(1).labels[0, ::6].tolist() == [IGNORE, 1]
    (finding,) = [one for one in check_datasets([dataset]).findings if one.kind == "unknown_value"]
    assert finding.file.endswith("masks/0.png")
    assert "48 pixels have values without a category and are ignored: [7]" in finding.message


def test_maps_that_are_all_ignored_teach_nothing_and_have_no_figures(tmp_path):
    root = folder(tmp_path / "data", [halves(255, 255), halves(255, 255)], "sky\ntree\n")
    dataset = otus.open_dataset(root)
    run = train(tiny(dataset), root, settings=QUICK, preprocess=Preprocess(), out=tmp_path / "runs", quiet=True)
    assert run.result.history[-1]["loss"] == 0
    protocol = protocol_of("semantic")
    results = {index: SemanticMap(np.zeros((8, 12), int), dataset.categories) for index in range(2)}
    judged = protocol.evaluate(dataset, protocol.from_results(results, dataset), Options())
    assert judged.images == 2
    assert all(np.isnan(value) for value in judged.results["semantic"].figures.values())


def test_coloured_maps_are_read_by_their_colours(tmp_path):
    pixels = np.array(list(COLOURS), np.uint8)[np.random.default_rng(0).integers(0, 3, (8, 12))]
    palette = Image.fromarray(pixels).quantize(3)  # values in another order, the same colours
    names = "128 64 128\troad\n64 0 0 old tree\n0 0 0 void\n"
    dataset = otus.open_dataset(folder(tmp_path / "data", [Image.fromarray(pixels), palette], names))
    assert dataset.categories.names == ("road", "old tree")
    expected = [[COLOURS[tuple(pixel)] for pixel in row] for row in pixels.tolist()]
    for index in range(2):
        assert dataset.semantic_map(index).labels.tolist() == expected
    assert not [one for one in check_datasets([dataset]).findings if one.kind == "palettes_differ"]


def test_a_colour_that_is_no_category_is_named(tmp_path):
    pixels = np.zeros((8, 12, 3), np.uint8)
    pixels[3, 5] = (1, 2, 3)
    root = folder(tmp_path / "data", [pixels], "0 0 0 sky\n9 9 9 tree\n")
    with pytest.raises(
        ImageError, match=r"has 1 pixels of colours that are no category, e.g. \(1, 2, 3\) at x = 5, y = 3"
    ):
        otus.open_dataset(root).semantic_map(0)
    (finding,) = [one for one in check_datasets([otus.open_dataset(root)]).findings if one.kind == "unknown_colour"]
    assert finding.file.endswith("masks/0.png")
    values = folder(tmp_path / "values", [pixels], "sky\ntree\n")
    with pytest.raises(ImageError, match=r"expected one label of 8 bits per pixel .* got mode RGB"):
        otus.open_dataset(values).semantic_map(0)


@pytest.mark.parametrize("line", ["0 0 0 owl", "9 9 9 sky", "256 0 0 owl"])
def test_a_list_of_colours_that_cannot_be_is_refused_by_its_line(tmp_path, line):
    root = folder(tmp_path / "data", [halves(0, 1)], f"0 0 0 sky\n{line}\n")
    with pytest.raises(DataError, match=r"classes.txt.*line 2.*expected a new colour"):
        otus.open_dataset(root)


def test_palettes_that_differ_change_no_value_and_the_doctor_says_so(tmp_path):
    first, second = (Image.fromarray(halves(0, 1).astype(np.uint8), "L").convert("P") for _ in range(2))
    first.putpalette([0, 0, 0, 255, 0, 0])
    second.putpalette([255, 0, 0, 0, 0, 0])
    dataset = otus.open_dataset(folder(tmp_path / "data", [first, second], "sky\ntree\n"))
    np.testing.assert_array_equal(dataset.semantic_map(0).labels, dataset.semantic_map(1).labels)
    (finding,) = [one for one in check_datasets([dataset]).findings if one.kind == "palettes_differ"]
    assert finding.file.endswith("masks/1.png")
    assert "value 0 (sky) is (255, 0, 0) in its palette and (0, 0, 0) in 0.png" in finding.message


def test_an_image_of_one_pixel_is_learned_from_and_predicted(tmp_path):
    root = folder(tmp_path / "data", [np.array([[1]])] * 2, "sky\ntree\n", size_hw=(1, 1))
    dataset = otus.open_dataset(root)
    preprocess = Preprocess(shorter_side=8, longer_side=16)
    system = tiny(dataset)
    train(system, root, settings=QUICK, preprocess=preprocess, out=tmp_path / "runs", quiet=True)
    (prediction,) = Predictor(system, preprocess=preprocess, name="tiny", device="cpu").predict(
        root / "images" / "0.png"
    )
    assert prediction.semantic.size_hw == (1, 1)


@pytest.mark.parametrize("tiles", [None, Tiles(64, 0.25)])
def test_an_image_of_12000_pixels_is_predicted_at_its_size(tiles):
    categories = Categories(("sky", "tree"))
    preprocess = Preprocess(shorter_side=8, longer_side=64)
    predictor = Predictor(full_resolution(categories, widths=(4,)), preprocess=preprocess, name="tiny", device="cpu")
    (prediction,) = predictor.predict(np.zeros((12_000, 40, 3), np.uint8), tiles=tiles, batch_size=16)
    assert prediction.semantic.size_hw == (12_000, 40)
    assert prediction.to_dict()["semantic"]


def test_judging_a_large_map_counts_every_row():
    rng, categories = np.random.default_rng(0), Categories(("a", "b", "c"))
    ground_truth, predicted = (rng.integers(0, 3, (1300, 3)) for _ in range(2))
    ground_truth[::7] = IGNORE
    result = (
        SemanticQuality(categories)
        .update(SemanticMap(ground_truth, categories), SemanticMap(predicted, categories))
        .compute()
    )
    expected = [[int(((ground_truth == i) & (predicted == j)).sum()) for j in range(3)] for i in range(3)]
    assert result.confusion[:, :3].tolist() == expected


@pytest.mark.parametrize("names", ["0 sky\n\n300 tree\n", "1 2 3 sky\n\n" + "9" * 5000 + " 2 3 tree\n"])
def test_the_line_of_a_wrong_category_is_counted_with_blank_lines(names, tmp_path):
    (tmp_path / "classes.txt").write_text(names)
    with pytest.raises(DataError, match=r"classes.txt.*line 3.*correct the line"):
        _class_names(tmp_path / "classes.txt")
