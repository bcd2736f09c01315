"""Recall of proposals against a slow loop, and what must hold whatever the boxes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from otus.errors import DataError, UsageError
from otus.metrics.proposals import ProposalProtocol, ProposalRecall
from otus.structures import Categories, Objects

NAMES = Categories(("owl", "mouse", "moth"))
PROTOCOL = ProposalProtocol(counts=(1, 2, 3, 5, 8), iou_thresholds=(0.3, 0.5, 0.7, 0.9))


def some_objects(rng, images, mean, **columns):
    count = rng.poisson(mean * images)
    low = rng.integers(0, 12, (count, 2))
    boxes = np.concatenate([low, low + rng.integers(0, 9, (count, 2))], axis=1)
    made = {name: make(count) for name, make in columns.items()}
    return Objects.build(
        image_index=np.sort(rng.integers(0, images, count)), labels=rng.integers(0, 2, count), boxes_xyxy=boxes, **made
    )


def some_case(seed):
    rng = np.random.default_rng(seed)
    images = int(rng.integers(1, 6))
    ground_truth = some_objects(
        rng, images, rng.uniform(0, 4), is_crowd=lambda n: rng.random(n) < 0.1,
        columns=lambda n: {"difficult": rng.random(n) < 0.2},
    )  # fmt: skip
    predictions = some_objects(rng, images, rng.uniform(0, 12), scores=lambda n: rng.integers(0, 6, n) / 5)
    return ground_truth, predictions, images


def reference_figures(ground_truth, predictions, images):
    """Compute recall by (threshold, count) and ABO by (label, count) in plain loops."""
    best = []
    for g in range(len(ground_truth)):
        if ground_truth.is_crowd[g] or ground_truth.columns["difficult"][g]:
            continue
        here = [p for p in range(len(predictions)) if predictions.image_index[p] == ground_truth.image_index[g]]
        here.sort(key=lambda p: -predictions.scores[p])
        overlaps = []
        for p in here:
            (a1, b1, a2, b2), (c1, d1, c2, d2) = ground_truth.boxes_xyxy[g].tolist(), predictions.boxes_xyxy[p].tolist()
            shared = max(0, min(a2, c2) - max(a1, c1)) * max(0, min(b2, d2) - max(b1, d1))
            union = (a2 - a1) * (b2 - b1) + (c2 - c1) * (d2 - d1) - shared
            overlaps.append(shared / union if shared else 0.0)
        best.append((int(ground_truth.labels[g]), [max(overlaps[:count], default=0.0) for count in PROTOCOL.counts]))

    def mean(values):
        return sum(values) / len(values) if values else np.nan

    recall = [[mean([one[c] >= t for _, one in best]) for c in range(5)] for t in PROTOCOL.iou_thresholds]
    abo = [[mean([one[c] for label, one in best if label == k]) for c in range(5)] for k in range(3)]
    average = [mean([mean([one[c] >= t / 100 for _, one in best]) for t in range(50, 100, 5)]) for c in range(5)]
    mabo = [mean([abo[k][c] for k in range(3) if not np.isnan(abo[k][c])]) for c in range(5)]
    return recall, average, abo, mabo, len(best)


@given(seed=st.integers(0, 10**6))
def test_equal_to_the_slow_loop(seed):
    ground_truth, predictions, images = some_case(seed)
    result = ProposalRecall(NAMES, PROTOCOL).update(ground_truth, predictions, image_ids=range(images)).compute()
    recall, average, abo, mabo, count = reference_figures(ground_truth, predictions, images)
    np.testing.assert_allclose(result.recall, recall)
    np.testing.assert_allclose(result.average_recall, average)
    np.testing.assert_allclose(result.abo, abo)
    np.testing.assert_allclose(result.mabo, mabo)
    assert result.objects == count
    assert result.proposals_per_image == pytest.approx(len(predictions) / images)


@given(seed=st.integers(0, 10**6))
def test_more_proposals_cover_more_and_stricter_overlap_less(seed):
    ground_truth, predictions, images = some_case(seed)
    result = ProposalRecall(NAMES, PROTOCOL).update(ground_truth, predictions, image_ids=range(images)).compute()
    if result.objects:
        assert (np.diff(result.recall, axis=1) >= 0).all()
        assert (np.diff(result.recall, axis=0) <= 0).all()
        assert (np.diff(result.mabo) >= 0).all()
        assert (result.recall <= 1).all()
        assert (result.mabo <= 1).all()
        order = np.argsort(PROTOCOL.iou_thresholds)
        bound = (result.recall[order] * np.diff([0, *PROTOCOL.iou_thresholds])[:, None]).sum(axis=0)
        overall = (
            np.nansum(result.abo * np.bincount(_evaluated_labels(ground_truth), minlength=3)[:, None], axis=0)
            / result.objects
        )
        assert (bound <= overall + 1e-9).all()  # the mean overlap is the area under recall over IoU


def _evaluated_labels(ground_truth):
    return ground_truth.labels[~ground_truth.is_crowd & ~ground_truth.columns["difficult"]]


@given(seed=st.integers(0, 10**6), cut=st.integers(0, 6))
def test_shards_merge_to_the_same_figures(seed, cut):
    ground_truth, predictions, images = some_case(seed)
    whole = ProposalRecall(NAMES, PROTOCOL).update(ground_truth, predictions, image_ids=range(images)).compute()
    parts = []
    for low, high in ((0, min(cut, images)), (min(cut, images), images)):
        cut_out = [one.take((one.image_index >= low) & (one.image_index < high)) for one in (ground_truth, predictions)]
        moved = [Objects(**{**vars(one), "image_index": one.image_index - low}) for one in cut_out]
        parts.append(ProposalRecall(NAMES, PROTOCOL).update(*moved, image_ids=range(low, high)))
    merged = parts[1].merge(parts[0]).compute()
    np.testing.assert_allclose(merged.recall, whole.recall)
    np.testing.assert_allclose(merged.abo, whole.abo)
    assert merged.proposals_per_image == pytest.approx(whole.proposals_per_image)


def test_the_objects_themselves_cover_everything():
    ground_truth = Objects.build(
        image_index=[0, 1, 1], labels=[0, 1, 1], boxes_xyxy=[[0, 0, 4, 4], [1, 1, 3, 3], [2, 2, 9, 9]]
    )
    result = ProposalRecall(NAMES).update(ground_truth, ground_truth, image_ids=["a", "b"]).compute()
    assert result.figures["recall50@10"] == result.figures["recall70@10"] == result.figures["AR@10"] == 1
    assert result.figures["MABO@10"] == result.per_category["owl"]["ABO@1"] == 1
    assert result.figures["recall50@1"] == pytest.approx(2 / 3)
    assert np.isnan(result.per_category["moth"]["ABO@1"])
    assert result.document()["objects"] == 3


def test_no_proposals_and_no_objects():
    none = Objects.build(image_index=[], labels=[], boxes_xyxy=[])
    one = Objects.build(image_index=[0], labels=[0], boxes_xyxy=[[0, 0, 4, 4]])
    result = ProposalRecall(NAMES).update(one, none, image_ids=[1]).compute()
    assert not result.recall.any()
    assert result.figures["MABO@2000"] == 0
    result = ProposalRecall(NAMES).update(none, one, image_ids=[1]).compute()
    assert np.isnan(result.recall).all()
    assert np.isnan(result.figures["MABO@2000"])
    assert result.objects == 0
    assert np.isnan(ProposalRecall(NAMES).update(none, none, image_ids=[]).compute().proposals_per_image)


def test_misuse_is_named():
    one = Objects.build(image_index=[0], labels=[0], boxes_xyxy=[[0, 0, 4, 4]])
    metric = ProposalRecall(NAMES)
    with pytest.raises(UsageError, match="update first"):
        metric.compute()
    metric.update(one, one, image_ids=[4])
    with pytest.raises(UsageError, match="image 4 was added before"):
        metric.update(one, one, image_ids=[4])
    with pytest.raises(UsageError, match="protocol"):
        metric.merge(ProposalRecall(NAMES, PROTOCOL))
    bad = Objects.build(image_index=[0], labels=[0], boxes_xyxy=[[0, 0, np.nan, 4]])
    with pytest.raises(DataError, match=r"proposals\[0\]"):
        metric.update(one, bad, image_ids=[5])
    for counts in ((), (0, 1), (2, 1), (2, 2)):
        with pytest.raises(UsageError, match="counts"):
            ProposalProtocol(counts=counts)
    with pytest.raises(UsageError, match="iou_thresholds"):
        ProposalProtocol(iou_thresholds=(0.0,))
