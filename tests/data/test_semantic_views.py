"""Semantic maps of panoptic maps, outlines and several data sets in one: every kind of label trains a segmenter."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import otus
from otus.data.conversion import WRITERS
from otus.data.dataset import Dataset
from otus.data.merging import merge, remap_semantic_categories
from otus.data.scenes import files as scene_files
from otus.data.scenes.generator import Scenes
from otus.data.semantic_views import has_semantic_maps, render_semantic_map, semantic_categories, with_semantic_maps
from otus.errors import DataError
from otus.evaluation.protocols import protocol_of
from otus.parts.preprocess import Preprocess
from otus.parts.tasks import SEMANTIC
from otus.semantic.full_resolution import full_resolution
from otus.structures import IGNORE, Categories, Instances, Masks, PanopticMap
from otus.training.run import train
from otus.training.settings import TrainSettings
from otus.zoo.models import MODELS, ModelEntry

QUICK = TrainSettings(epochs=1, batch_size=4, device="cpu", workers=1)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tiny segmenter with a name."""
    entry = ModelEntry(lambda categories: full_resolution(categories, widths=(4,)), SEMANTIC, "none", Preprocess())
    monkeypatch.setitem(MODELS, "tiny_segmenter", entry)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Six scenes with objects and panoptic maps."""
    return scene_files._dataset(Scenes(6, size_hw=(48, 64), seed=3), tmp_path_factory.mktemp("scenes"), None)


def index_pngs(folder: Path, values: list[int], names: str, *, count: int = 2) -> Path:
    """Columns of the given values."""
    (folder / "images").mkdir(parents=True)
    (folder / "masks").mkdir()
    (folder / "classes.txt").write_text(names)
    for number in range(count):
        labels = np.repeat(np.array(values, np.uint8), 8)[None].repeat(16, axis=0)
        Image.fromarray(np.repeat(labels[..., None], 3, axis=2) * 20).save(folder / "images" / f"{number}.png")
        Image.fromarray(labels).save(folder / "masks" / f"{number}.png")
    return folder


def test_small_objects_lie_over_large_ones_and_boxes_without_outline_are_ignored():
    categories = Categories(("cat", "dog"))
    masks = np.zeros((3, 8, 8), bool)
    masks[0, 2:4, 2:4] = True
    masks[1, :6, :6] = True
    boxes = [[2, 2, 4, 4], [0, 0, 6, 6], [3.5, 5, 8, 8]]
    instances = Instances(boxes, [1, 0, 1], (8, 8), categories, masks=Masks.from_dense(masks))
    rendered = render_semantic_map(instances, Categories(("background", "cat", "dog"))).labels
    expected = np.zeros((8, 8), int)
    expected[:6, :6] = 1
    expected[2:4, 2:4] = 2
    expected[5:8, 3:8] = np.where(masks[1][5:8, 3:8], 1, IGNORE)  # the box is smaller than the cat: it lies over it
    expected[5, 3:6] = IGNORE
    np.testing.assert_array_equal(rendered, expected)
    nothing = render_semantic_map(instances[:0], Categories(("background", "cat", "dog")))
    assert not nothing.labels.any()


@pytest.mark.parametrize("format_name", ["coco", "labelme", "voc", "coco_panoptic"])
def test_every_format_with_outlines_or_panoptic_maps_trains_a_segmenter(format_name, scenes, tiny, tmp_path):
    WRITERS[format_name].write(scenes, tmp_path / "data", images="copy")
    dataset = otus.open_dataset(tmp_path / "data")
    views = with_semantic_maps(dataset)
    panoptic = format_name == "coco_panoptic"
    assert ("background" in views.semantic.categories) is not panoptic
    for index in range(len(scenes)):
        truth = scenes.panoptic_map(scenes.images.files.index(Path(dataset.images.files[index]).name)).semantic()
        labels = views.semantic_map(index).relabelled(truth.categories).labels
        objects = np.isin(truth.labels, [truth.categories.index(name) for name in scenes.categories])
        seen = objects | panoptic
        agreement = labels[seen] == truth.labels[seen]
        assert agreement.mean() > (0.999 if panoptic else 0.9)  # rings of polygons; the small over the large
    run = train("tiny_segmenter", tmp_path / "data", val=0.34, settings=QUICK, out=tmp_path / "runs", quiet=True)
    assert run.result.history[-1]["semantic/mIoU"] > 0
    report = otus.evaluate(tmp_path / "data", model=run.best, device="cpu")
    assert report.protocol == "semantic"
    assert not report.unknown_categories


def test_polygons_of_yolo_are_rendered(tmp_path):
    for part in ("images/train", "labels/train"):
        (tmp_path / part).mkdir(parents=True)
    Image.fromarray(np.zeros((8, 16, 3), np.uint8)).save(tmp_path / "images/train/a.png")
    (tmp_path / "labels/train/a.txt").write_text("1 0.25 0.25 0.5 0.25 0.75 0.25 0.75 0.75 0.25 0.75\n")
    (tmp_path / "data.yaml").write_text("train: images/train\nnames: [cat, dog]\n")
    views = with_semantic_maps(otus.open_dataset(tmp_path))
    expected = np.zeros((8, 16), int)
    expected[2:6, 4:12] = 2
    assert views.semantic.categories.names == ("background", "cat", "dog")
    np.testing.assert_array_equal(views.semantic_map(0).labels, expected)


def test_maps_are_made_only_of_what_there_is_and_categories_are_few_enough(scenes):
    assert semantic_categories(replace(scenes, panoptic=None)).names == ("background", *scenes.categories)
    boxes_only = replace(scenes, panoptic=None, objects=replace(scenes.objects, segmentations=None))
    assert not has_semantic_maps(boxes_only)
    assert with_semantic_maps(boxes_only) is boxes_only
    many = Categories(tuple(map(str, range(255))))
    with pytest.raises(DataError, match="has 256 categories with the background, semantic maps can have 255"):
        semantic_categories(replace(scenes, panoptic=None, categories=many))
    taken = Categories(scenes.categories.names, ids=tuple(range(len(scenes.categories))))
    assert semantic_categories(replace(scenes, panoptic=None, categories=taken)).ids[0] == -1


def test_folders_of_index_pngs_with_other_values_are_merged_by_name(tiny, tmp_path):
    first = index_pngs(tmp_path / "a", [0, 1, 255], "sky\ntree\n")
    second = index_pngs(tmp_path / "b", [7, 3, 9], "3 sky\n7 owl\n9 void\n", count=3)
    both = merge([otus.open_dataset(first), otus.open_dataset(second)])
    assert both.semantic.categories.names == ("sky", "tree", "owl")
    assert both.semantic_map(1).labels[0, ::8].tolist() == [0, 1, IGNORE]
    assert both.semantic_map(4).labels[0, ::8].tolist() == [2, 0, IGNORE]
    chosen = both.select([4, 0])
    assert chosen.semantic_map(0).labels[0, ::8].tolist() == [2, 0, IGNORE]
    assert both.select(np.array([False, True, False, False, True])).semantic_map(1).labels[0, 0] == 2
    assert len(both.select([])) == 0
    remapped = remap_semantic_categories(both, Categories(("owl", "sky")))
    assert remapped.semantic_map(1).labels[0, ::8].tolist() == [1, IGNORE, IGNORE]
    run = train("tiny_segmenter", [first, second], val=0.4, settings=QUICK, out=tmp_path / "runs", quiet=True)
    assert run.result.history[-1]["semantic/mIoU"] >= 0


def test_merging_keeps_semantic_maps_beside_objects(scenes, tmp_path):
    folder = index_pngs(tmp_path / "a", [0, 1], "sky\ntree\n")
    maps = otus.open_dataset(folder)
    with_maps = replace(scenes.select([0, 1]), panoptic=None, semantic=replace(maps.semantic))
    both = merge([scenes.select([2]), with_maps])
    assert len(both.objects) == len(scenes.select([2, 0, 1]).objects)
    assert isinstance(scenes.panoptic_map(2), PanopticMap)
    semantic = scenes.panoptic_map(2).semantic()
    np.testing.assert_array_equal(both.semantic_map(0).relabelled(semantic.categories).labels, semantic.labels)
    assert {"sky", "tree"} <= set(both.semantic.categories)
    joined = merge([maps, replace(scenes, panoptic=None)])
    assert joined.objects is None
    assert {"background", "tree", *scenes.categories} <= set(joined.categories)
    boxes_only = replace(scenes, panoptic=None, objects=replace(scenes.objects, segmentations=None))
    with pytest.raises(DataError, match="has no objects, the other data sets have"):
        merge([maps, boxes_only])


def test_predicted_maps_of_outlines_are_judged_by_the_background_and_the_categories(scenes):
    dataset = replace(scenes, panoptic=None)
    views, protocol = with_semantic_maps(dataset), protocol_of("semantic")
    results = {index: views.semantic_map(index) for index in range(len(views))}
    judged = protocol.evaluate(dataset, protocol.from_results(results, dataset), otus.evaluation.protocols.Options())
    assert judged.results["semantic"].figures["mIoU"] == 1
