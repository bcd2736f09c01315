"""Scores of categories become labels at the size of the image: torch's interpolation, ties, bounded memory."""

import tracemalloc

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from otus.errors import ShapeError
from otus.structures import Categories, SemanticScores

CATEGORIES = Categories(tuple("abcde"))


def random_scores(h: int, w: int) -> np.ndarray:
    return np.random.default_rng(h * 100 + w).normal(size=(len(CATEGORIES), h, w)).astype(np.float32)


@pytest.mark.parametrize("source_hw", [(1, 1), (1, 6), (5, 7), (32, 24)])
@pytest.mark.parametrize("size_hw", [(1, 1), (1, 9), (5, 7), (13, 8), (64, 48), (97, 200)])
def test_labels_are_those_of_the_interpolated_scores(source_hw, size_hw):
    scores = random_scores(*source_hw)
    semantic = SemanticScores(scores, CATEGORIES).resized(size_hw)
    expected = F.interpolate(torch.from_numpy(scores)[None].double(), size_hw, mode="bilinear")[0]
    assert semantic.size_hw == size_hw
    chosen = expected.gather(0, torch.from_numpy(semantic.labels.astype(np.int64))[None])[0]
    torch.testing.assert_close(chosen, expected.amax(dim=0), rtol=0, atol=1e-5)  # equal but for ties within rounding
    assert (semantic.labels == expected.argmax(dim=0).numpy()).mean() > 0.99


def test_an_enlarged_outline_is_no_staircase():
    """The middle between two scores is where they are equal, at the large size: nearest labels are off by a block."""
    ramp = np.linspace(-1, 1, 4, dtype=np.float32)[None, None]
    scores = np.concatenate([np.zeros((1, 4, 4), np.float32), ramp + np.linspace(-0.6, 0.6, 4)[None, :, None]])
    labels = SemanticScores(scores.astype(np.float32), Categories(("left", "right"))).resized((64, 64)).labels
    starts = 64 - labels.sum(axis=1, dtype=np.int64)
    assert len(set(starts.tolist())) > 16
    assert (np.abs(np.diff(starts)) <= 2).all()


def test_the_first_of_equal_scores_counts_and_any_floats_do():
    for dtype in (np.float16, np.float32, np.float64):
        same = np.zeros((len(CATEGORIES), 6, 6), dtype)[:, ::2, 1:5]
        assert not SemanticScores(same, CATEGORIES).resized((5, 5)).labels.any()


def test_memory_is_that_of_the_labels():
    scores = SemanticScores(
        np.random.default_rng(0).random((21, 20, 30), np.float32), Categories(tuple("abcdefghijklmnopqrstu"))
    )
    scores.resized((2, 2))
    tracemalloc.start()
    semantic = scores.resized((2000, 3000))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert semantic.labels.nbytes == 2000 * 3000
    assert peak < 6 * semantic.labels.nbytes  # one map of floats alone is 84 times as much


@pytest.mark.parametrize(
    "wrong", [np.zeros((4, 2, 2), np.float32), np.zeros((5, 2), np.float32), np.zeros((5, 2, 2), np.int64)]
)
def test_scores_of_another_shape_or_type_are_refused(wrong):
    with pytest.raises(ShapeError, match="expected floats"):
        SemanticScores(wrong, CATEGORIES)
