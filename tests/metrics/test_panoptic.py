"""Panoptic quality: panopticapi's figures on fixtures, hotcoco's and a slow loop's on made-up maps, and what must hold."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from otus.data.formats import coco_panoptic
from otus.data.formats.interface import Layout
from otus.errors import ShapeError, UsageError
from otus.metrics.panoptic import PanopticQuality, PanopticResult, shared_pixels
from otus.structures import Categories, PanopticMap, Segment

CATEGORIES = Categories(("a", "b", "c", "d", "e"), ids=(3, 1, 7, 8, 9), is_thing=(True, True, False, False, True))


def a_map(rng: np.random.Generator, *, crowds: bool = False, size_hw: tuple[int, int] = (30, 40)) -> PanopticMap:
    """Return overlapping rectangles, some without pixels left, on void."""
    ids = np.zeros(size_hw, dtype=np.int64)
    for _ in range(int(rng.integers(0, 9))):
        y, x = rng.integers(0, size_hw[0] - 4), rng.integers(0, size_hw[1] - 4)
        ids[y : y + rng.integers(2, 20), x : x + rng.integers(2, 25)] = rng.integers(1, 256**3)
    present = [int(one) for one in np.unique(ids) if one]
    labels = rng.integers(0, 4, len(present))
    return PanopticMap(
        ids,
        tuple(
            Segment(one, int(label), is_crowd=bool(crowds and rng.random() < 0.2))
            for one, label in zip(present, labels, strict=True)
        ),
        CATEGORIES,
    )


def perturbed(ground_truth: PanopticMap, rng: np.random.Generator) -> PanopticMap:
    """Return the map moved by a pixel or two, some segments with another id or category."""
    ids = np.roll(ground_truth.ids, rng.integers(-2, 3, 2), axis=(0, 1)) * 1
    ids[rng.random(ids.shape) < 0.03] = 0
    ids[:5, :7] = 1 << 20
    known = {one.id: one for one in ground_truth.segments}
    segments = []
    for one in (int(i) for i in np.unique(ids) if i):
        label = known[one].label if one in known and rng.random() < 0.8 else int(rng.integers(0, 4))
        segments.append(Segment(one, label))
    return PanopticMap(ids, tuple(segments), ground_truth.categories)


def reference_counts(pairs: list[tuple[PanopticMap, PanopticMap]]) -> dict[str, list[float]]:
    """Compute the counts mask by mask, as defined in the paper."""
    quality: dict[str, list[float]] = {}
    for label, name in enumerate(CATEGORIES):
        ious, false, missed = [], 0, 0
        for ground_truth, predictions in pairs:
            void = ground_truth.ids == 0
            mine = [one for one in ground_truth.segments if one.label == label and not one.is_crowd]
            crowds = [one for one in ground_truth.segments if one.label == label and one.is_crowd]
            excused = void | (ground_truth.mask_of(crowds[-1].id) if crowds else False)
            theirs = [one for one in predictions.segments if one.label == label]
            taken, good = set(), set()
            for t in mine:
                for f in theirs:
                    a, b = ground_truth.mask_of(t.id), predictions.mask_of(f.id)
                    iou = (a & b).sum() / (a | (b & ~void)).sum()
                    if iou > 0.5:
                        ious.append(iou)
                        taken.add(t.id)
                        good.add(f.id)
            missed += len(mine) - len(taken)
            for f in theirs:
                mask = predictions.mask_of(f.id)
                false += f.id not in good and (mask & excused).sum() <= 0.5 * mask.sum()
        total = len(ious) + false / 2 + missed / 2
        if total:
            quality[name] = [sum(ious) / total, np.mean(ious) if ious else 0, len(ious) / total]
    return quality


def compute(pairs: list[tuple[PanopticMap, PanopticMap]]) -> PanopticResult:
    metric = PanopticQuality(CATEGORIES)
    for ground_truth, predictions in pairs:
        metric.update(ground_truth, predictions)
    return metric.compute()


def some_pairs(seed: int, count: int = 6) -> list[tuple[PanopticMap, PanopticMap]]:
    rng = np.random.default_rng(seed)
    ground_truths = [a_map(rng, crowds=True) for _ in range(count)]
    return [(ground_truth, perturbed(ground_truth, rng)) for ground_truth in ground_truths]


@pytest.mark.parametrize("seed", range(8))
def test_a_slow_loop_over_masks_says_the_same(seed):
    pairs = some_pairs(seed)
    result, expected = compute(pairs), reference_counts(pairs)
    for name, figures in result.per_category.items():
        assert list(figures.values()) == pytest.approx(expected.get(name, [np.nan] * 3), nan_ok=True)
    everything = np.array(list(expected.values()))
    assert [result.figures[name] for name in ("PQ", "SQ", "RQ")] == pytest.approx(everything.mean(axis=0))
    stuff = np.array([figures for name, figures in expected.items() if name in "cd"])
    assert result.figures["PQ_st"] == pytest.approx(stuff[:, 0].mean())


def test_no_test_of_these_is_without_matches_crowds_and_mistakes():
    results = [compute(some_pairs(seed)) for seed in range(8)]
    assert sum(one.true_positives.sum() for one in results) > 50
    assert sum(one.false_positives.sum() for one in results) > 20
    assert sum(one.false_negatives.sum() for one in results) > 20
    assert any(
        segment.is_crowd
        for seed in range(8)
        for ground_truth, _ in some_pairs(seed)
        for segment in ground_truth.segments
    )


def read(file: Path):
    return coco_panoptic.read(Layout("coco_panoptic", file))


def test_panopticapis_figures_on_real_maps(shared_data):
    folder = shared_data / "metric_fixtures" / "panoptic_pq"
    ground_truth, predictions = read(folder / "gt.json"), read(folder / "pred.json")
    metric = PanopticQuality(ground_truth.categories)
    for index in range(len(ground_truth)):
        metric.update(ground_truth.panoptic_map(index), predictions.panoptic_map(index))
    result = metric.compute()
    expected = json.loads((folder / "expected.json").read_text())["expected"]
    for suffix, group in (("", "All"), ("_th", "Things"), ("_st", "Stuff")):
        for name in ("pq", "sq", "rq"):
            assert result.figures[name.upper() + suffix] == pytest.approx(expected[group][name], abs=1e-12)
    assert sum(not np.isnan(one["PQ"]) for one in result.per_category.values()) == expected["All"]["n"]
    names = dict(zip(ground_truth.categories.ids, ground_truth.categories, strict=True))
    for source_id, figures in expected["per_class"].items():
        ours = result.per_category[names[int(source_id)]]
        assert [ours["PQ"], ours["SQ"], ours["RQ"]] == pytest.approx(list(figures.values()), abs=1e-12)


def test_torchmetrics_small_cases(shared_data):
    cases = json.loads((shared_data / "metric_fixtures" / "panoptic_pq_small" / "cases.json").read_text())
    judged = 0
    for case in cases:
        if "PQ" not in case:  # a variant of theirs
            continue
        labels = [*case["things"], *case["stuffs"]]
        categories = Categories(
            tuple(f"c{one}" for one in labels),
            ids=tuple(labels),
            is_thing=tuple(one in case["things"] for one in labels),
        )
        batches = [np.array(case[side]) for side in ("target", "pred")]
        batches = [one.reshape((1,) * (4 - one.ndim) + one.shape) for one in batches]
        metric = PanopticQuality(categories)
        for pair in zip(*batches, strict=True):
            metric.update(*(from_channels(one, categories, case["stuffs"]) for one in pair))
        assert metric.compute().figures["PQ"] == pytest.approx(case["PQ"], abs=1e-4)
        judged += 1
    assert judged == 3


def from_channels(channels: np.ndarray, categories: Categories, stuff: list[int]) -> PanopticMap:
    """Make a map from (H, W, 2) category and instance; unknown categories are void, each stuff category is one segment."""
    category, instance = channels[..., 0], channels[..., 1]
    ids = np.where(
        np.isin(category, categories.ids), 1 + category * 1000 + np.where(np.isin(category, stuff), 0, instance), 0
    )
    segments = tuple(Segment(int(i), categories.label_of_id((int(i) - 1) // 1000)) for i in np.unique(ids) if i)
    return PanopticMap(ids, segments, categories)


def write(folder: Path, name: str, maps: list[PanopticMap]) -> Path:
    """Write a COCO panoptic file of maps."""
    (folder / name).mkdir()
    annotations = []
    for index, one in enumerate(maps):
        Image.fromarray(coco_panoptic.ids_to_rgb(one.ids)).save(folder / name / f"{index}.png")
        areas = dict(zip(*np.unique(one.ids, return_counts=True), strict=True))
        info = [
            {"id": s.id, "category_id": CATEGORIES.ids[s.label], "iscrowd": int(s.is_crowd), "area": int(areas[s.id])}
            for s in one.segments
        ]
        annotations.append({"image_id": index, "file_name": f"{index}.png", "segments_info": info})
    document = {
        "images": [{"id": i, "file_name": f"{i}.jpg", "height": 30, "width": 40} for i in range(len(maps))],
        "annotations": annotations,
        "categories": [
            {"id": i, "name": name, "isthing": int(thing)}
            for i, name, thing in zip(CATEGORIES.ids, CATEGORIES, CATEGORIES.is_thing, strict=True)
        ],
    }
    (folder / f"{name}.json").write_text(json.dumps(document))
    return folder / f"{name}.json"


@pytest.mark.parametrize("seed", range(4))
def test_hotcoco_says_the_same(seed, tmp_path):
    panoptic = pytest.importorskip("hotcoco.panoptic", reason="hotcoco is a reference")
    pairs = some_pairs(seed, 8)
    files = [write(tmp_path, side, [pair[i] for pair in pairs]) for i, side in enumerate(("truth", "found"))]
    theirs = panoptic.pq_compute(*map(str, files))
    result = compute(pairs)
    for suffix, group in (("", "All"), ("_th", "Things"), ("_st", "Stuff")):
        for name in ("pq", "sq", "rq"):
            assert result.figures[name.upper() + suffix] == pytest.approx(theirs[group][name], abs=1e-12)


seeds = st.integers(0, 2**32 - 1)


@given(seeds)
@settings(max_examples=25, deadline=None)
def test_perfect_maps_give_1_and_figures_lie_between_0_and_1(seed):
    rng = np.random.default_rng(seed)
    ground_truth = a_map(rng)
    perfect = compute([(ground_truth, ground_truth)])
    values = np.array(list(perfect.figures.values()))
    assert (np.isnan(values) | (values == 1)).all()
    assert np.isnan(perfect.figures["PQ"]) == (not ground_truth.segments)
    values = np.array(list(compute([(ground_truth, perturbed(ground_truth, rng))]).figures.values()))
    assert (np.isnan(values) | ((values >= 0) & (values <= 1))).all()


@given(seeds, st.randoms(use_true_random=False))
@settings(max_examples=15, deadline=None)
def test_orders_and_shards_do_not_matter(seed, random):
    pairs = some_pairs(seed, 5)
    whole = compute(pairs)
    random.shuffle(pairs)
    cut = random.randint(0, 5)
    parts = [PanopticQuality(CATEGORIES), PanopticQuality(CATEGORIES)]
    for index, (ground_truth, predictions) in enumerate(pairs):
        renamed = dict(zip([s.id for s in predictions.segments], range(1, 100), strict=False))
        ids = np.vectorize(lambda one, renamed=renamed: renamed.get(one, 0), otypes=[np.int64])(predictions.ids)
        segments = tuple(replace(s, id=renamed[s.id]) for s in reversed(predictions.segments))
        parts[index >= cut].update(ground_truth, PanopticMap(ids, segments, CATEGORIES))
    merged = parts[0].merge(parts[1]).compute()
    assert merged.figures == pytest.approx(whole.figures, nan_ok=True, abs=1e-12)
    for name, figures in whole.per_category.items():
        assert merged.per_category[name] == pytest.approx(figures, nan_ok=True, abs=1e-12)


@given(seeds)
@settings(max_examples=25, deadline=None)
def test_one_more_invented_segment_never_helps(seed):
    ((ground_truth, predictions),) = some_pairs(seed, 1)
    free = np.argwhere((predictions.ids == 0) & (ground_truth.ids != 0))
    if not len(free):
        return
    ids = predictions.ids.copy()
    ids[tuple(free[0])] = 99
    more = PanopticMap(ids, (*predictions.segments, Segment(99, 4)), CATEGORIES)  # a category that no truth has
    without, with_it = compute([(ground_truth, predictions)]), compute([(ground_truth, more)])
    assert with_it.figures["PQ"] <= without.figures["PQ"] or np.isnan(without.figures["PQ"])
    assert with_it.per_category["e"]["PQ"] == 0
    assert np.isnan(without.per_category["e"]["PQ"])


def test_nothing_at_all_is_not_defined():
    assert np.isnan(list(PanopticQuality(CATEGORIES).compute().figures.values())).all()
    nothing = PanopticMap(np.zeros((4, 4), dtype=np.int64), (), CATEGORIES)
    assert np.isnan(list(compute([(nothing, nothing)]).figures.values())).all()
    something = PanopticMap(np.ones((4, 4), dtype=np.int64), (Segment(1, 2),), CATEGORIES)
    assert compute([(something, nothing)]).figures["PQ"] == 0
    assert [len(values) for values in shared_pixels(np.zeros((0, 3), int), np.zeros((0, 3), int))] == [0, 0, 0]


def test_what_does_not_fit_is_refused():
    one = PanopticMap(np.ones((4, 4), dtype=np.int64), (Segment(1, 2),), CATEGORIES)
    metric = PanopticQuality(CATEGORIES)
    with pytest.raises(ShapeError, match=r"\(4, 4\), got \(4, 5\)"):
        metric.update(one, PanopticMap(np.ones((4, 5), dtype=np.int64), one.segments, CATEGORIES))
    with pytest.raises(ShapeError, match="segment 2 has no pixels"):
        metric.update(one, replace(one, segments=(*one.segments, Segment(2, 0))))
    with pytest.raises(UsageError, match="the prediction has other categories"):
        metric.update(one, replace(one, categories=Categories(("x", "y", "z"))))
    with pytest.raises(UsageError, match="same categories"):
        metric.merge(PanopticQuality(Categories(("x",))))
