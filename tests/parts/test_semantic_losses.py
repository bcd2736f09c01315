"""Semantic losses: against formulas written as loops, unlabelled pixels, perfect and inverted logits, gradients."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.autograd import gradcheck
from torch.nn import functional as F

from otus.parts import semantic_losses as losses
from otus.structures import IGNORE

EVERY = {
    "cross_entropy": losses.cross_entropy,
    "focal": losses.focal_cross_entropy,
    "hardest": losses.hardest_cross_entropy,
    "dice": losses.dice,
    "lovasz": losses.lovasz_softmax,
}


def a_case(seed: int, ignored: float = 0.2) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, 4, 3, 5, generator=generator, dtype=torch.float64) * 2
    labels = torch.randint(0, 4, (2, 3, 5), generator=generator)
    labels[torch.rand(2, 3, 5, generator=generator) < ignored] = IGNORE
    return logits, labels


@pytest.mark.parametrize("loss", EVERY.values(), ids=EVERY)
def test_gradients_and_no_labels(loss):
    logits, labels = a_case(1)
    assert gradcheck(lambda x: loss(x, labels), logits.requires_grad_())
    nothing = loss(logits, torch.full_like(labels, IGNORE))
    assert float(nothing.detach()) == 0
    nothing.backward()


@pytest.mark.parametrize("loss", EVERY.values(), ids=EVERY)
def test_what_is_ignored_changes_nothing_and_perfect_scores_cost_nothing(loss):
    logits, labels = a_case(2)
    other = torch.where((labels == IGNORE)[:, None], torch.randn_like(logits), logits)
    torch.testing.assert_close(loss(other, labels), loss(logits, labels))
    perfect = F.one_hot(labels.clamp(max=3), 4).movedim(-1, 1).double() * 200
    assert float(loss(perfect, labels)) < 1e-6
    assert float(loss(-perfect, labels)) > 0.5


@given(st.integers(0, 10**6))
def test_weighted_cross_entropy_is_torchs(seed):
    logits, labels = a_case(seed)
    weights = torch.tensor([0.5, 2.0, 1.0, 3.0], dtype=torch.float64)
    expected = F.cross_entropy(logits, labels, weight=weights, ignore_index=IGNORE)
    torch.testing.assert_close(losses.cross_entropy(logits, labels, weights=weights), expected)


@given(st.integers(0, 10**6))
def test_lovasz_is_the_iou_at_hard_predictions_and_dice_the_definition(seed):
    logits, labels = a_case(seed)
    hard = F.one_hot(logits.argmax(1), 4).movedim(-1, 1).double() * 400
    probabilities, labelled = logits.softmax(1), labels != IGNORE
    ious, dices = [], []
    for label in range(4):
        target = (labels == label) & labelled
        if not target.any():
            continue
        predicted = (logits.argmax(1) == label) & labelled
        ious.append(1 - (target & predicted).sum() / (target | predicted).sum())
        overlap = total = 0.0
        for n, i, j in itertools.product(range(2), range(3), range(5)):
            if labelled[n, i, j]:
                p, t = float(probabilities[n, label, i, j]), float(target[n, i, j])
                overlap, total = overlap + p * t, total + p + t
        dices.append(1 - 2 * overlap / total)
    torch.testing.assert_close(losses.lovasz_softmax(hard, labels), torch.stack(ious).double().mean())
    torch.testing.assert_close(losses.dice(logits, labels), torch.tensor(dices, dtype=torch.float64).mean())


@given(st.integers(0, 10**6))
def test_the_hardest_pixels_alone_count(seed):
    logits, labels = a_case(seed, ignored=0.1)
    each = F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="none")[labels != IGNORE]
    hard = each[each > -torch.log(torch.tensor(0.7, dtype=torch.float64))]
    if len(hard) >= 0.0625 * len(each):
        torch.testing.assert_close(losses.hardest_cross_entropy(logits, labels), hard.mean())
    everything = losses.hardest_cross_entropy(logits, labels, probability=1e-9, share=0.5)
    torch.testing.assert_close(everything, each.sort(descending=True).values[: len(each) // 2].mean())


def test_median_frequency_weights():
    counts, images = torch.tensor([100, 10, 0, 50]), torch.tensor([100, 100, 0, 100])
    assert losses.median_frequency_weights(counts, images).tolist() == [0.5, 5.0, 0.0, 1.0]
