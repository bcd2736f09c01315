"""Prompts: what is marked where, what cannot be, and JSON there and back."""

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from otus.errors import DataError, ShapeError
from otus.structures import MaskCandidates, Masks, Prompt, Stroke
from otus.structures.prompt import UNMARKED

SIZE_HW = (12, 20)


@st.composite
def prompts(draw: st.DrawFn) -> Prompt:
    inside = st.tuples(st.floats(0, 19.9), st.floats(0, 11.9))
    labels = st.integers(0, 4)
    points = draw(st.lists(st.tuples(inside, labels), max_size=4))
    strokes = draw(
        st.lists(st.builds(Stroke, st.lists(inside, min_size=1, max_size=4), labels, st.floats(0.1, 9)), max_size=2)
    )
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    return Prompt(
        points_xy=[one for one, _ in points],
        point_labels=[label for _, label in points],
        strokes=strokes,
        scribbles=rng.integers(-1, 3, SIZE_HW) if draw(st.booleans()) else None,
        box_xyxy=[1.5, 2, 8, 9] if draw(st.booleans()) else None,
        mask=rng.random(SIZE_HW) < 0.5 if draw(st.booleans()) else None,
        text=draw(st.sampled_from([None, "an owl", ""])),
    )


@given(prompts())
def test_json_there_and_back(prompt: Prompt) -> None:
    document = json.loads(json.dumps(prompt.to_json()))
    back = Prompt.from_json(document)
    assert back.to_json() == document
    assert back.num_objects == prompt.num_objects
    for name in ("points_xy", "point_labels", "scribbles", "box_xyxy", "mask"):
        np.testing.assert_array_equal(getattr(back, name), getattr(prompt, name))
    assert back.text == prompt.text


def test_points_and_their_discs() -> None:
    prompt = Prompt(points_xy=[[3.9, 5.0], [6.2, 5.5]], point_labels=[1, 0])
    seeds = prompt.seeds(SIZE_HW)
    assert (seeds[5, 3], seeds[5, 6], (seeds != UNMARKED).sum()) == (1, 0, 2)
    wide = prompt.seeds(SIZE_HW, point_radius=3)
    rows, columns = np.mgrid[: SIZE_HW[0], : SIZE_HW[1]]
    to_object, to_background = np.hypot(rows - 5, columns - 3), np.hypot(rows - 5, columns - 6)
    np.testing.assert_array_equal(wide == 1, (to_object <= 3) & (to_object <= to_background))
    np.testing.assert_array_equal(wide == 0, (to_background <= 3) & (to_background < to_object))


def test_a_disc_does_not_cover_what_is_marked() -> None:
    stroke = Stroke([[4.5, 0.5], [4.5, 11.5]], label=0, width=1)
    seeds = Prompt(points_xy=[[3, 5]], point_labels=[1], strokes=[stroke]).seeds(SIZE_HW, point_radius=4)
    assert (seeds[:, 4] == 0).all()
    assert seeds[5, 5] == 1


def test_a_stroke_is_as_wide_as_its_brush_and_never_broken() -> None:
    thick = Prompt(strokes=[Stroke([[2, 6], [18, 6]], label=2, width=4)]).seeds(SIZE_HW) == 2
    assert thick[:, 10].nonzero()[0].tolist() == [4, 5, 6, 7]
    thin = Prompt(strokes=[Stroke([[0, 0], [19, 11], [3, 11]], label=1, width=0.1)]).seeds(SIZE_HW) == 1
    from scipy.ndimage import label

    assert label(thin, np.ones((3, 3)))[1] == 1
    assert thin[0, 0]
    assert thin[11, 19]
    assert thin[11, 3]
    dot = Prompt(strokes=[Stroke([[5.5, 5.5]], label=1, width=3)]).seeds(SIZE_HW) == 1
    assert dot.sum() == 9


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"points_xy": [[20, 3]], "point_labels": [1]}, r"points: \(20, 3\) lies outside the image of 20x12"),
        ({"points_xy": [[-0.5, 3]], "point_labels": [1]}, "lies outside"),
        ({"strokes": [Stroke([[1, 1], [1, 12]], 1)]}, r"strokes: \(1, 12\) lies outside"),
        ({"scribbles": np.zeros((20, 12), int)}, "scribbles: expected the size of the image, 20x12, got 12x20"),
        ({"mask": np.zeros((3, 3), bool)}, "mask: expected the size of the image, 20x12, got 3x3"),
        ({"box_xyxy": [20, 0, 30, 5]}, "box_xyxy: .* lies outside"),
        (
            {"points_xy": [[4.2, 4], [4.7, 4.9]], "point_labels": [1, 0]},
            r"pixel \(4, 4\) is marked as object 1 and as background",
        ),
        (
            {"points_xy": [[4, 4]], "point_labels": [2], "strokes": [Stroke([[4, 4]], 1)]},
            "is marked as object 1 and as object 2",
        ),
    ],
)
def test_marks_that_do_not_fit_the_image(parts: dict[str, Any], message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        Prompt(**parts).seeds(SIZE_HW)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"points_xy": [[1, 2]]}, "point_labels: expected 1 labels"),
        ({"points_xy": [[1, 2, 3]], "point_labels": [1]}, r"points: expected finite x, y of shape \(N, 2\)"),
        ({"points_xy": [[1, np.nan]], "point_labels": [1]}, "points: expected finite"),
        ({"points_xy": [[1, 2]], "point_labels": [-1]}, "point_labels: expected 0 .* got -1"),
        ({"points_xy": [[1, 2]], "point_labels": [255]}, "got 255"),
        ({"points_xy": [[1, 2]], "point_labels": [0.5]}, "got float64"),
        ({"scribbles": np.full((3, 3), -2)}, "scribbles: .* got -2"),
        ({"scribbles": np.zeros((3, 3))}, "scribbles: expected integers"),
        ({"box_xyxy": [5, 5, 5, 9]}, "box_xyxy: expected x1, y1, x2, y2"),
        ({"box_xyxy": [5, 5, 6, np.inf]}, "box_xyxy"),
        ({"mask": np.zeros(3)}, "mask: expected bool or integers"),
    ],
)
def test_prompts_that_cannot_be(parts: dict[str, Any], message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        Prompt(**parts)


@pytest.mark.parametrize(("line", "options"), [([], {}), ([[1, 1]], {"width": 0}), ([[1, 1]], {"width": np.nan})])
def test_strokes_that_cannot_be(line: list[list[float]], options: dict[str, float]) -> None:
    with pytest.raises(ShapeError, match="stroke: expected"):
        Stroke(line, 1, **options)


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ([], "expected an object"),
        ({"point": [[1, 2, 1]]}, "unknown field 'point'"),
        ({"points": [[1, 2]]}, r"prompts\[3\].points: expected a list of \[x, y, label\]"),
        ({"points": [[1, 2, 0.5]]}, "labels must be integers"),
        ({"points": 7}, "points: expected a list"),
        ({"points": [["a", 2, 1]]}, "points: expected a list"),
        ({"strokes": [{"points": [[1, 2]]}]}, "strokes: expected a list"),
        ({"strokes": [{"points": [[1, 2]], "label": 1, "radius": 3}]}, "unknown field 'radius'"),
        ({"scribbles": {"size": [3], "counts": {}}}, "scribbles: expected"),
        ({"scribbles": {"size": [3, 4], "counts": {"x": "`0"}}}, "scribbles: expected"),
        ({"mask": {"size": [3, 4], "counts": [5]}}, "mask: expected .* run lengths"),
        ({"mask": {"size": [3, 4], "counts": "=1"}}, "add up to 14, expected 12"),
        ({"mask": {"size": [3, 4], "counts": "ol"}}, "mask: expected"),
        ({"mask": {"size": [3, 4], "counts": ""}}, "mask: expected"),
        ({"mask": {"counts": [12]}}, "mask: expected"),
        ({"box_xyxy": [1, 2, 3]}, "box_xyxy"),
        ({"text": 5}, "text: expected a string"),
    ],
)
def test_json_that_cannot_be(document: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Prompt.from_json(document, where="prompts[3]")


def test_how_many_objects() -> None:
    assert Prompt().num_objects == 0
    assert Prompt(box_xyxy=[0, 0, 3, 3]).num_objects == 1
    assert Prompt(points_xy=[[1, 1]], point_labels=[0]).num_objects == 0
    assert Prompt(points_xy=[[1, 1]], point_labels=[2], strokes=[Stroke([[4, 4]], 3)]).num_objects == 3


def test_candidates_of_several_objects() -> None:
    dense = np.zeros((3, 4, 5), bool)
    dense[0, 1], dense[1, 2], dense[2, 3] = True, True, True
    candidates = MaskCandidates(Masks.from_dense(dense), np.array([0.9, 0.8, 0.7]), np.array([2, 2, 1]))
    assert candidates.best(2)[1].all()
    assert candidates.best(1)[3].all()
    assert not candidates.best(3).any()
    with pytest.raises(ShapeError, match="scores: expected one per mask, 3, got 2"):
        MaskCandidates(Masks.from_dense(dense), np.array([0.9, 0.8]), np.array([1, 1, 1]))


def test_a_stroke_that_ends_just_inside_the_border() -> None:
    """Its samples may round up to the border."""
    for start in np.random.default_rng(0).uniform(0, 19, 300):
        stroke = Stroke([[start, 3.3], [np.nextafter(20, 0), 3.3]], 1)
        assert Prompt(strokes=[stroke]).seeds((12, 20))[3, 19] == 1


def test_a_mask_of_logits_is_refused() -> None:
    with pytest.raises(ShapeError, match=r"mask: expected bool or integers \(H, W\), got float64"):
        Prompt(mask=np.full((3, 3), -5.0))


def test_a_label_of_scribbles_that_no_integer_of_theirs_holds() -> None:
    with pytest.raises(DataError, match="scribbles"):
        Prompt.from_json({"scribbles": {"size": [2, 2], "counts": {"70000": "04"}}})
