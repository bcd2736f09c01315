"""One answer follows from another as the tasks are defined, and says so."""

from dataclasses import replace

import numpy as np
import pytest

from otus.data.sample import Sample
from otus.data.scenes.generator import ALL_CATEGORIES, THING_CATEGORIES, Scenes
from otus.reports.explain import taxonomy_page
from otus.reports.explain.taxonomy import derive_truths
from otus.reports.explain.taxonomy_page import draw_truths
from otus.structures import IGNORE, Categories, Instances
from otus.visualization.drawing import draw, draw_semantic

TASKS = ["classification", "semantic", "detection", "instance", "panoptic"]


@pytest.fixture(scope="module")
def sample() -> Sample:
    return Scenes(1, size_hw=(90, 120), seed=2).scene(4)


def test_what_is_labelled_is_taken_as_it_is(sample: Sample) -> None:
    truths = derive_truths(replace(sample, label=2), THING_CATEGORIES)
    assert list(truths.origins) == TASKS
    assert set(truths.origins.values()) == {"labelled"}
    assert truths.classification == (THING_CATEGORIES[2],)
    assert truths.semantic is sample.semantic
    assert truths.panoptic is sample.panoptic
    assert truths.detection.masks is None
    assert truths.instance.masks is sample.instances.masks


def test_a_panoptic_map_answers_everything(sample: Sample) -> None:
    truths = derive_truths(replace(sample, instances=None, semantic=None), ALL_CATEGORIES)
    np.testing.assert_array_equal(truths.semantic.labels, sample.semantic.labels)
    np.testing.assert_array_equal(truths.detection.boxes_xyxy, sample.instances.boxes_xyxy)
    np.testing.assert_array_equal(truths.instance.masks.dense(), sample.instances.masks.dense())
    assert set(truths.classification) == {THING_CATEGORIES[label] for label in sample.instances.labels}
    assert [truths.origins[task][:7] for task in TASKS] == ["derived"] * 4 + ["labelle"]


def test_masks_answer_but_for_stuff(sample: Sample) -> None:
    truths = derive_truths(replace(sample, panoptic=None, semantic=None), THING_CATEGORIES)
    visible = sample.instances.masks.dense().any(axis=0)
    expected = np.where(visible, sample.semantic.labels, IGNORE)
    np.testing.assert_array_equal(truths.semantic.labels, expected)
    np.testing.assert_array_equal(truths.panoptic.ids, np.where(visible, sample.panoptic.ids, 0))


def test_masks_and_a_semantic_map_make_a_panoptic_one(sample: Sample) -> None:
    truths = derive_truths(replace(sample, panoptic=None), THING_CATEGORIES)
    np.testing.assert_array_equal(truths.panoptic.semantic().labels, sample.semantic.labels)
    visible = sample.instances.masks.dense().any(axis=0)
    np.testing.assert_array_equal(truths.panoptic.ids[visible], sample.panoptic.ids[visible])
    assert "over the semantic map" in truths.origins["panoptic"]


def test_of_overlapping_masks_the_smaller_is_on_top() -> None:
    sample = Scenes(1, size_hw=(90, 120), seed=2).scene(4)
    whole = replace(sample.instances, masks=sample.instances.amodal_masks)
    truths = derive_truths(Sample(sample.image, "x", instances=whole), THING_CATEGORIES)
    smallest = int(np.argmin(whole.masks.area()))
    assert (truths.panoptic.ids[whole.masks.dense()[smallest]] == smallest + 1).all()


def test_what_cannot_be_known_says_why(sample: Sample) -> None:
    boxes = replace(sample.instances, masks=None, amodal_masks=None)
    truths = derive_truths(Sample(sample.image, "x", instances=boxes), THING_CATEGORIES)
    assert truths.detection is not None
    assert truths.instance is truths.semantic is truths.panoptic is None
    assert truths.origins["instance"] == "not known: the objects have boxes only"
    nothing = derive_truths(Sample(sample.image, "x"), THING_CATEGORIES)
    assert all(origin.startswith("not known") for origin in nothing.origins.values())
    alone = derive_truths(replace(sample, instances=None, panoptic=None), ALL_CATEGORIES)
    assert set(alone.classification) == {ALL_CATEGORIES[label] for label in np.unique(sample.semantic.labels)}
    assert alone.panoptic is None
    many = Categories(tuple(str(i) for i in range(300)))
    lvis = derive_truths(Sample(sample.image, "x", instances=replace(sample.instances, categories=many)), many)
    assert "300 categories are too many" in lvis.origins["semantic"]
    assert lvis.panoptic is not None


def test_figures_add_up(sample: Sample) -> None:
    facts = derive_truths(sample, THING_CATEGORIES).document()
    assert list(facts) == TASKS
    pixels = 90 * 120
    assert sum(facts["semantic"]["pixels"].values()) + facts["semantic"]["ignored_pixels"] == pixels
    assert sum(one["pixels"] for one in facts["panoptic"]["segments"]) == pixels
    assert facts["detection"]["objects"] == len(sample.instances) == sum(facts["detection"]["per_category"].values())
    areas = [one["pixels"] for one in facts["instance"]["pixels"]]
    assert areas == sample.instances.columns["areas"].tolist()


def test_the_page_shows_six_panels_whatever_is_known(sample: Sample) -> None:
    empty = Sample(sample.image, "x", instances=Instances.empty((90, 120), THING_CATEGORIES))
    for one in (sample, replace(sample, panoptic=None), empty, Sample(sample.image, "x")):
        page = draw_truths(derive_truths(one, THING_CATEGORIES))
        assert page.dtype == np.uint8
        assert page.shape[1] == 3 * 480 + 4 * 20
        assert page.shape[0] > 2 * 360


def test_one_colour_a_category_on_all_panels(monkeypatch: pytest.MonkeyPatch, sample: Sample) -> None:
    """Also where so many categories are known that some colours of the palette hardly differ."""
    used: dict[str, dict[str, tuple[int, ...]]] = {}
    for name in ("overlay", "draw_semantic", "draw_panoptic"):
        original = getattr(taxonomy_page, name)

        def spy(image, value, *, colours, name=name, original=original, **options):
            used[name] = {category: tuple(rgb.tolist()) for category, rgb in colours.items()}
            return original(image, value, colours=colours, **options)

        monkeypatch.setattr(taxonomy_page, name, spy)
    draw_truths(derive_truths(sample, THING_CATEGORIES))
    assert used["overlay"] == used["draw_semantic"] == used["draw_panoptic"]
    assert len(set(used["overlay"].values())) == len(used["overlay"]) > 3


def test_given_colours_are_drawn(sample: Sample) -> None:
    assert sample.instances is not None
    assert sample.semantic is not None
    names = {*sample.instances.categories, *sample.semantic.categories}
    pink = dict.fromkeys(names, np.array([255, 0, 200], dtype=np.uint8))
    boxes = replace(sample.instances, masks=None, amodal_masks=None)
    for drawn in (
        draw(sample.image, boxes, labels=False, colours=pink),
        draw_semantic(sample.image, sample.semantic, opacity=1, names=False, colours=pink),
    ):
        assert (drawn == [255, 0, 200]).all(axis=2).sum() > 20
