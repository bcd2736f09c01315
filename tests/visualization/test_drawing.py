"""Drawings are at the right pixels, are readable, and do not change the rest of the image."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from otus.data.open import open_dataset
from otus.data.scenes.generator import Scenes
from otus.errors import ShapeError
from otus.structures import Categories, Instances, KeypointNames, Masks, PanopticMap, Segment, SemanticMap, oriented
from otus.visualization.drawing import draw, draw_panoptic, draw_semantic, object_legend, overlay
from otus.visualization.palette import category_colours, colours_apart, contrasting
from otus.visualization.text import (
    MAX_COVERED,
    MAX_HIDDEN,
    Tag,
    elided,
    font,
    legend,
    line_width,
    place_tags,
    printable,
)

CATEGORIES = Categories(("cat", "dog"), keypoints=(("dog", KeypointNames(("nose", "tail"), skeleton=((0, 1),))),))
GREY = np.full((120, 160, 3), 100, dtype=np.uint8)
CAT, DOG = category_colours(2)


def one_object(box: list[float], label: int = 0, **fields: object) -> Instances:
    return Instances([box], [label], (120, 160), CATEGORIES, **fields)


def test_an_image_without_objects_is_not_changed() -> None:
    image = Scenes(1).scene(0).image
    result = draw(image, Instances.empty(image.shape[:2], CATEGORIES))
    np.testing.assert_array_equal(result, image)
    assert not np.shares_memory(result, image)


def test_only_what_is_at_the_object_changes() -> None:
    image = np.random.default_rng(0).integers(0, 256, (120, 160, 3), dtype=np.uint8)
    before = image.copy()
    result = draw(image, one_object([40, 50, 90, 100]), labels=False)
    np.testing.assert_array_equal(image, before)
    changed = (result != image).any(axis=2)
    assert changed[50, 60]
    assert changed[80, 40]
    assert changed[99, 60]
    assert changed[80, 89]
    changed[48:102, 38:92] = False
    assert not changed.any()
    assert not (result != image)[54:96, 44:86].any(), "a box is hollow"


def test_masks_are_tinted_outlined_and_keep_their_holes() -> None:
    mask = np.zeros((1, 120, 160), dtype=bool)
    mask[0, 20:100, 20:100] = True
    mask[0, 50:70, 50:70] = False
    result = draw(GREY, one_object([0, 0, 160, 120], masks=Masks.from_dense(mask)), labels=False, opacity=0.5)
    np.testing.assert_allclose(result[35, 35], (100 + CAT.astype(int)) / 2, atol=1)
    np.testing.assert_array_equal(result[20, 60], CAT)
    np.testing.assert_array_equal(result[49, 60], CAT)
    np.testing.assert_array_equal(result[60, 60], GREY[0, 0])
    np.testing.assert_array_equal(result[10, 60], GREY[0, 0])


def test_masks_are_drawn_without_their_boxes() -> None:
    mask = np.eye(120, 160, dtype=bool)
    drawn = draw(GREY, one_object([0, 0, 120, 120], masks=Masks.from_dense(mask[None])), boxes=False, labels=False)
    assert np.array_equal((drawn != GREY).any(axis=2), mask)


def test_an_oriented_box_is_drawn_instead_of_the_upright_one() -> None:
    boxes = [[80, 60, 60, 40, np.pi / 4]]
    result = draw(GREY, one_object([30, 10, 130, 110], oriented_boxes_xywhr=boxes), labels=False)
    side = np.array([80 + 20 * np.sin(np.pi / 4), 60 - 20 * np.cos(np.pi / 4)]).astype(int)
    np.testing.assert_allclose(result[side[1], side[0]], CAT, atol=40)
    assert (result[10, 30:130] == 100).all()
    without_oriented = draw(GREY, one_object([30, 10, 130, 110], oriented_boxes_xywhr=[[np.nan] * 5]), labels=False)
    assert (without_oriented[10, 32:128] != 100).any(axis=1).all()


def test_amodal_boxes_and_crowds_are_dashed() -> None:
    plain = draw(GREY, one_object([20, 30, 80, 90]), labels=False)
    same = draw(GREY, one_object([20, 30, 80, 90], amodal_boxes_xyxy=[[20, 30, 80, 90]]), labels=False)
    without_amodal = draw(GREY, one_object([20, 30, 80, 90], amodal_boxes_xyxy=[[np.nan] * 4]), labels=False)
    np.testing.assert_array_equal(same, plain)
    np.testing.assert_array_equal(without_amodal, plain)
    amodal = draw(GREY, one_object([20, 30, 80, 90], amodal_boxes_xyxy=[[20, 30, 140, 90]]), labels=False)
    line = (amodal[30, 86:138] != 100).any(axis=1)
    assert 0.4 < line.mean() < 0.9
    crowd = draw(GREY, one_object([20, 30, 140, 90], columns={"is_crowd": np.array([True])}), labels=False)
    assert 0.4 < (crowd[30, 22:138] != 100).any(axis=1).mean() < 0.9


def test_keypoints_are_dots_joined_by_the_skeleton() -> None:
    keypoints = np.array([[[40.0, 60, 2], [120, 60, 1]]])
    result = draw(GREY, one_object([0, 0, 160, 120], label=1, keypoints=keypoints), labels=False)
    assert (result[59:61, 39:41] > 200).all(), "visible: white"
    assert (result[59:61, 119:121] < 50).all(), "hidden: black"
    np.testing.assert_allclose(result[60, 80], DOG, atol=2)
    alone = draw(GREY, one_object([0, 0, 160, 120], label=1, keypoints=keypoints * [[[1, 1, 0]]]), labels=False)
    assert (alone[20:100, 20:140] == 100).all(), "not labelled: not drawn"


def test_labels_have_category_and_score_or_what_there_is() -> None:
    def written(instances: Instances) -> np.ndarray:
        return (draw(GREY, instances) != draw(GREY, instances, labels=False)).any(axis=2)

    bare = replace(one_object([60, 60, 120, 100]), categories=None)
    widths = [
        written(i).any(axis=0).sum()
        for i in (bare, one_object([60, 60, 120, 100]), one_object([60, 60, 120, 100], scores=[0.5]))
    ]
    assert widths == sorted(set(widths)), "0, cat, cat 0.50"


@given(
    st.lists(st.tuples(*(st.floats(-50, 400) for _ in range(4))), min_size=1, max_size=12),
    st.sampled_from([(30, 40), (200, 300), (300, 60)]),
    st.text(min_size=1, max_size=30),
)
@settings(max_examples=40, deadline=None)
def test_tags_lie_within_the_image(boxes: list[tuple[float, ...]], size_hw: tuple[int, int], text: str) -> None:
    for tag in place_tags([text] * len(boxes), np.array(boxes), size_hw[::-1], 14):
        if tag is not None:
            left, top, right, bottom = tag.rectangle
            assert left >= 0
            assert top >= 0
            assert bottom <= size_hw[0]
            assert right <= size_hw[1]


def test_tags_of_boxes_at_one_place_keep_apart() -> None:
    boxes = np.array([[100, 100, 300, 300.0]] * 6)
    rectangles = [tag.rectangle for tag in place_tags(["zebra 0.99"] * 6, boxes, (400, 400), 14) if tag is not None]
    assert len(rectangles) == 6
    for i, a in enumerate(rectangles):
        for b in rectangles[:i]:
            assert min(a[2], b[2]) <= max(a[0], b[0]) or min(a[3], b[3]) <= max(a[1], b[1])


@pytest.mark.parametrize("angle", [0.3, 0.8, 2.0])
@pytest.mark.parametrize("centre", [(200, 150), (390, 150), (5, 290)])
def test_a_tag_touches_its_oriented_box_where_it_is_seen(angle: float, centre: tuple[int, int]) -> None:
    ring = oriented.corners(np.array([[*centre, 160, 60, angle]]))[0]
    around = np.concatenate([ring.min(axis=0), ring.max(axis=0)])[None]
    (tag,) = place_tags(["zebra 0.99"], around, (400, 300), 14, rings=[ring])
    assert tag is not None
    points = np.concatenate(
        [a + (b - a) * np.linspace(0, 1, 400)[:, None] for a, b in zip(ring, np.roll(ring, -1, 0), strict=True)]
    )
    points = points[((points >= 0) & (points <= (400, 300))).all(axis=1)]
    left, top, right, bottom = tag.rectangle
    gaps = np.maximum(np.maximum([left, top] - points, points - [right, bottom]), 0)
    assert np.hypot(*gaps.T).min() <= 2


def crowd(count: int, longer_side: int, *, names: tuple[str, ...] = ("platelet", "red blood cell")) -> Instances:
    """Return many small objects at random positions."""
    rng = np.random.default_rng(count)
    size_hw = (longer_side * 3 // 4, longer_side)
    centres = rng.uniform(0, 1, (count, 2)) * size_hw[::-1]
    halves = rng.uniform(0.01, 0.03, (count, 2)) * longer_side
    boxes = np.clip(np.concatenate([centres - halves, centres + halves], axis=1), 0, size_hw[::-1] * 2)
    labels = rng.integers(0, len(names), count)
    return Instances(boxes, labels, size_hw, Categories(names), scores=rng.uniform(0.3, 1, count))


def hidden_by_labels(image: np.ndarray, objects: Instances) -> tuple[np.ndarray, float]:
    """Return the fraction of each box, and of the image, that labels cover."""
    covered = (draw(image, objects) != draw(image, objects, labels=False)).any(axis=2)
    corners = objects.boxes_xyxy.round().astype(int)
    return np.array([covered[y1:y2, x1:x2].mean() for x1, y1, x2, y2 in corners.tolist()]), float(covered.mean())


@pytest.mark.parametrize("longer_side", [100, 600, 2000])
@pytest.mark.parametrize("count", [1, 10, 100, 500])
def test_labels_hide_neither_objects_nor_the_image(count: int, longer_side: int) -> None:
    objects = crowd(count, longer_side)
    image = np.full((*objects.size_hw, 3), 100, dtype=np.uint8)
    object_fractions, image_fraction = hidden_by_labels(image, objects)
    # A box of a few pixels has no quarter to the pixel: its edge belongs to it in part.
    assert (object_fractions <= MAX_HIDDEN + (0.03 if longer_side > 100 else 0.25)).all()
    assert image_fraction <= MAX_COVERED or count == 1
    shown = overlay(image, objects)
    assert max(shown.shape) >= 480, "small images are enlarged"
    assert shown.shape[1] % longer_side == 0
    legend_strip = shown[shown.shape[1] * 3 // 4 :]
    assert (len(legend_strip) > 0) == (count >= 100), "a legend where not every object is named"
    for colour in category_colours(2) if len(legend_strip) else ():
        assert (legend_strip == colour).all(axis=2).any()


def test_labels_say_less_the_more_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    texts_per_image: list[list[str]] = []
    monkeypatch.setattr(Tag, "draw", lambda tag, pen, colour: texts_per_image[-1].append(tag.text))
    for count in (10, 150, 400):
        texts_per_image.append([])
        draw(np.full((450, 600, 3), 100, dtype=np.uint8), crowd(count, 600))
    names = [[text for text in texts if text[0] in "pr"] for texts in texts_per_image]
    assert len(texts_per_image[0]) == len(names[0]) == 10
    assert len(texts_per_image[1]) >= 0.8 * 150
    assert len(names[1]) == 2, "the highest-scoring object of each category is named, the others have a score"
    assert texts_per_image[2] == names[2], "then only the highest-scoring"
    assert len(names[2]) <= 2


def test_legends_name_each_category_once_with_its_number_of_objects() -> None:
    objects = crowd(100, 600)
    counts = np.bincount(objects.labels)
    entries = dict(object_legend([objects]))
    assert set(entries) == {f"{name} × {count}" for name, count in zip(objects.categories, counts, strict=True)}
    np.testing.assert_array_equal(entries[f"platelet × {counts[0]}"], CAT)
    assert {name for name, _ in object_legend([objects, objects], counts=False)} == set(objects.categories)


@given(st.text(min_size=1, max_size=80), st.integers(20, 200))
@settings(max_examples=30, deadline=None)
def test_long_names_lose_their_middle(text: str, width: int) -> None:
    short = elided(text, 12, width)
    assert font(12).getlength(short) <= width or len(short) <= 2
    assert short == printable(text) or "…" in short
    assert short[0] in (printable(text)[0], "…")


def test_lines_are_finer_around_small_objects() -> None:
    small, large = np.array([[0, 0, 12, 12.0]]), np.array([[0, 0, 900, 900.0]])
    assert 1 <= line_width((1500, 2000), small) < line_width((1500, 2000), large) == line_width((1500, 2000))


def test_every_colour_has_letters_that_can_be_read_on_it() -> None:
    def luminance(colour: np.ndarray) -> float:
        share = np.asarray(colour) / 255
        linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    for colour in category_colours(133):
        a, b = sorted((luminance(colour), luminance(contrasting(colour))))
        assert (b + 0.05) / (a + 0.05) >= 4.5  # WCAG 2.1, level AA


def test_colours_are_stable_and_differ() -> None:
    many = category_colours(133)
    np.testing.assert_array_equal(many[:20], category_colours(20))
    assert len({tuple(colour) for colour in many.tolist()}) == 133
    first = many[:12].astype(int)
    distances = np.abs(first[:, None] - first[None]).sum(axis=2)[np.triu_indices(12, 1)]
    assert distances.min() > 60
    apart = colours_apart(list(range(0, 133, 9)), 133)
    assert len({tuple(colour) for colour in apart.values()}) == len(apart)
    assert colours_apart([0, 1], 133)[1].tolist() == many[1].tolist()


def test_semantic_maps_leave_ignored_pixels_and_name_what_is_there() -> None:
    labels = np.full((120, 160), 255)
    labels[:, 80:] = 1
    semantic = SemanticMap(labels, CATEGORIES)
    bare = draw_semantic(GREY, semantic, opacity=0.5, names=False)
    assert bare.shape == GREY.shape
    assert (bare[:, :79] == 100).all()
    assert (bare[:, 79] == 255).all(), "a white line on the border"
    np.testing.assert_allclose(bare[60, 120], (100 + DOG.astype(int)) / 2, atol=1)
    named = draw_semantic(GREY, semantic, opacity=0.5)
    np.testing.assert_array_equal(named[:120], bare)
    strip = named[120:]
    assert (strip == DOG).all(axis=2).any()
    assert not (strip == CAT).all(axis=2).any()


def test_panoptic_objects_of_one_category_differ_in_shade() -> None:
    ids = np.zeros((120, 160), dtype=np.int64)
    ids[:, 40:80], ids[:, 80:120], ids[:60, 120:] = 7, 300, 9
    segments = (Segment(7, 0), Segment(300, 0), Segment(9, 1), Segment(11, 1))
    result = draw_panoptic(GREY, PanopticMap(ids, segments, CATEGORIES), names=False)
    assert (result[:, :39] == 100).all()
    assert (result[60, 60] != result[60, 100]).any()
    assert draw_panoptic(GREY, PanopticMap(ids * 0, (), CATEGORIES)).shape == (120, 160, 3)


@given(st.integers(40, 600), st.integers(1, 30))
@settings(max_examples=15, deadline=None)
def test_legends_are_as_wide_as_asked(width: int, count: int) -> None:
    strip = legend([(f"category {i}", colour) for i, colour in enumerate(category_colours(count))], width, 12)
    assert strip.shape[1] == width
    for colour in category_colours(count):
        assert (strip == colour).all(axis=2).any()


def test_lines_grow_with_the_image() -> None:
    assert line_width((240, 320)) < line_width((1080, 1920)) < line_width((3000, 4000))


def test_a_scene_with_everything_is_drawn_and_another_size_is_refused() -> None:
    sample = Scenes(1, seed=3).scene(0)
    assert sample.instances is not None
    assert (draw(sample.image, sample.instances) != sample.image).any()
    with pytest.raises(ShapeError, match=r"expected an image uint8 \(240, 320, 3\), got uint8 \(120, 160, 3\)"):
        draw(GREY, sample.instances)


def test_real_labels_are_drawn(shared_data: Path) -> None:
    dataset = open_dataset(shared_data / "coco")
    for index in range(0, len(dataset), 80):
        sample = dataset[index]
        assert sample.instances is not None
        drawn = draw(sample.image, sample.instances)
        assert drawn.shape == sample.image.shape
        assert (drawn != sample.image).any() == bool(len(sample.instances))
