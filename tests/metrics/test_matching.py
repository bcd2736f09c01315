"""The compiled matching and curves against their readable twins."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from otus.metrics.detection.matching import MatchResults, Outcome, match_greedily, match_image
from otus.metrics.detection.pairs import Pairs, RankedDetections
from otus.metrics.detection.precision_recall import curve, interpolate, interpolated_curves
from otus.structures import Objects

THRESHOLDS = np.array([0.3, 0.5, 0.7, 1.0])
seeds = st.integers(0, 2**32 - 1)


@given(seeds, st.integers(0, 7), st.integers(0, 5))
@settings(max_examples=150, deadline=None)
def test_compiled_matching_follows_the_rule(seed, detections, objects):
    rng = np.random.default_rng(seed)
    similarities = rng.integers(0, 11, (detections, objects)) / 10  # coarse, so that many are equal
    crowd = rng.random(objects) < 0.3
    ignored = (rng.random((objects, 2)) < 0.3) | crowd[:, None]
    unmatched = rng.random((detections, 2)) < 0.3
    all_pairs = Pairs(
        np.arange(detections + 1) * objects, np.tile(np.arange(objects), detections), similarities.reshape(-1)
    )
    rows, outcomes = match_greedily(
        all_pairs.filter(THRESHOLDS[0]),
        thresholds=THRESHOLDS,
        ignored=ignored,
        crowd=crowd,
        ignored_unmatched=unmatched,
    )
    assert ((rows >= 0) == (similarities >= 0.3).any(axis=1)).all()
    for a in range(2):
        for t, threshold in enumerate(THRESHOLDS):
            matched = match_image(similarities, threshold, ignored=ignored[:, a], crowd=crowd)
            for d, g in enumerate(matched):
                does_not_count = unmatched[d, a] if g < 0 else ignored[g, a]
                expected = Outcome.IGNORED if does_not_count else Outcome(int(g >= 0))
                if rows[d] < 0:
                    assert g < 0
                else:
                    assert outcomes[rows[d], a, t] == expected


@given(seeds, st.integers(0, 40), st.integers(0, 20), st.integers(1, 9))
@settings(max_examples=100, deadline=None)
def test_parts_of_an_order_hold_everything_once(seed, detections, objects, count):
    rng = np.random.default_rng(seed)

    def some(number: int, **others) -> Objects:
        return Objects.build(
            image_index=rng.integers(0, 4, number),
            labels=rng.integers(0, 3, number),
            boxes_xyxy=np.zeros((number, 4)),
            **others,
        )

    ground_truth, predictions = some(objects), some(detections, scores=rng.integers(0, 9, detections) / 9)
    whole = RankedDetections.build(ground_truth, predictions, label_count=3, limit=5)
    parts = whole.split(count)
    for name in ("detections", "scores", "ranks", "ground_truths"):
        np.testing.assert_array_equal(np.concatenate([getattr(part, name) for part in parts]), getattr(whole, name))
    spans = [[part.ground_truths[first:last].tolist() for first, last in part.spans] for part in parts]
    expected = [whole.ground_truths[first:last].tolist() for first, last in whole.spans]
    assert [one for part in spans for one in part] == expected
    for d, true in zip(whole.detections, expected, strict=True):
        same = (ground_truth.labels == predictions.labels[d]) & (ground_truth.image_index == predictions.image_index[d])
        assert true == np.flatnonzero(same).tolist()


@given(seeds, st.integers(0, 30))
@settings(max_examples=100, deadline=None)
def test_compiled_curves_are_the_interpolated_ones(seed, detections):
    rng = np.random.default_rng(seed)
    labels = np.sort(rng.integers(0, 3, detections))
    scores = rng.integers(0, 6, detections) / 5
    candidate = rng.random(detections) < 0.6
    rows = np.where(candidate, np.cumsum(candidate) - 1, -1)
    matches = MatchResults(
        labels=labels,
        image_index=np.zeros(detections, np.int64),
        ranks=rng.integers(0, 4, detections),
        scores=scores,
        ignored_unmatched=rng.random((detections, 2)) < 0.2,
        rows=rows,
        outcomes=rng.integers(0, 3, (int(candidate.sum()), 2, 4), dtype=np.uint8),
        positives=np.array([[detections, detections + 3], [0, detections], [detections + 1, 40]]),
    )
    recalls, max_dets = np.linspace(0, 1, 11), (1, 3)
    result = interpolated_curves(matches, recall_thresholds=recalls, max_dets=max_dets)
    for k in range(3):
        for a in range(2):
            for m, limit in enumerate(max_dets):
                here = np.flatnonzero((labels == k) & (matches.ranks < limit))
                here = here[np.argsort(-scores[here], kind="stable")]
                for t in range(4):
                    if matches.positives[k, a] == 0:
                        assert (result.precision[t, :, k, a, m] == -1).all()
                        continue
                    verdict = np.array([
                        matches.outcomes[rows[d], a, t] if rows[d] >= 0 else 2 * matches.ignored_unmatched[d, a]
                        for d in here
                    ])  # fmt: skip
                    precision, recall = curve(verdict == 1, verdict == 0, matches.positives[k, a])
                    expected = interpolate(precision, recall, recalls)
                    np.testing.assert_array_equal(result.precision[t, :, k, a, m], expected)
                    assert result.recall[t, k, a, m] == (recall[-1] if len(here) else 0)
                    reached = np.searchsorted(recall, recalls, side="left")
                    at = [scores[here[i]] if i < len(here) else 0 for i in reached]
                    np.testing.assert_array_equal(result.scores[t, :, k, a, m], at)
