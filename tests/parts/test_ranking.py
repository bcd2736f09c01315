"""Stable top-k: the first indices of a stable sort, however many scores are equal."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from otus.parts.heads.dense_head import DenseOutputs
from otus.parts.heads.dense_scores import SigmoidScores, SoftmaxScores
from otus.parts.ranking import stable_topk


@given(st.integers(0, 2**31 - 1), st.integers(0, 4), st.integers(0, 60), st.integers(0, 70), st.integers(1, 100))
def test_it_is_the_beginning_of_a_stable_sort(seed: int, rows: int, columns: int, count: int, kinds: int) -> None:
    scores = torch.randint(0, kinds, (rows, columns), generator=torch.Generator().manual_seed(seed)) / kinds
    expected = scores.argsort(dim=1, descending=True, stable=True)[:, :count]
    assert torch.equal(stable_topk(scores, count), expected)


def test_of_many_equal_ones_the_first_are_taken() -> None:
    scores = torch.rand(2, 50_000).bfloat16().float()  # as maps computed in bfloat16 have them
    assert torch.equal(stable_topk(scores, 1000), scores.argsort(dim=1, descending=True, stable=True)[:, :1000])
    equal = torch.full((3, 50_000), 0.5)
    assert torch.equal(stable_topk(equal, 100), torch.arange(100).expand(3, -1))


@pytest.mark.parametrize(
    "scores", [SigmoidScores(top_k_per_level=40), SoftmaxScores(top_k_per_class=40)], ids=["sigmoid", "softmax"]
)
def test_candidates_of_equal_score_are_the_first(scores: SigmoidScores | SoftmaxScores) -> None:
    outputs = DenseOutputs(
        [torch.ones(1, 5000, 3), torch.ones(1, 60, 3)], [torch.zeros(1, 5000, 4), torch.zeros(1, 60, 4)]
    )
    thresholds = torch.tensor([torch.inf, 0.1, 0.1])
    _, class_indices, anchors = scores.choose(outputs, 0, thresholds)
    if isinstance(scores, SigmoidScores):  # by anchor and class of each map
        expected = torch.arange(40).div(2, rounding_mode="floor")
        assert torch.equal(anchors, torch.cat([expected, expected + 5000]))
        assert class_indices.tolist() == [1, 2] * 40
    else:
        assert torch.equal(anchors, torch.arange(40).repeat(2))
    assert all(a <= b for a, b in pairwise(anchors[:40].tolist()))
