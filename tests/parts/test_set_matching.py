"""Set matching: minimum-cost assignment, task-aligned assignment, denoising queries, and their losses."""

from itertools import permutations

import pytest
import torch
from torch.nn import functional as F
from torchvision.ops import box_convert, box_iou, generalized_box_iou

from otus.parts.batching import Target
from otus.parts.boxes.matching import paired_iou
from otus.parts.boxes.task_aligned import TaskAlignedAssigner
from otus.parts.losses import varifocal_loss
from otus.parts.transformer.denoising import Denoising
from otus.parts.transformer.set_matching import HungarianMatcher, box_losses, denormalize_boxes, normalize_boxes


def boxes(count: int, seed: int) -> torch.Tensor:
    """Return boxes cxcywh inside [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    size = torch.rand(count, 2, generator=generator) * 0.3 + 0.1
    return torch.cat([size / 2 + torch.rand(count, 2, generator=generator) * (1 - size), size], dim=1)


def target(target_boxes: torch.Tensor, labels: list[int], size_hw: tuple[int, int]) -> Target:
    return Target(denormalize_boxes(target_boxes, size_hw), torch.tensor(labels, dtype=torch.int64), torch.zeros(0, 4))


def test_no_assignment_costs_less():
    predicted, target_boxes = boxes(5, 0), boxes(3, 1)
    class_cost = -torch.rand(5, 3, generator=torch.Generator().manual_seed(2))
    giou = generalized_box_iou(box_convert(predicted, "cxcywh", "xyxy"), box_convert(target_boxes, "cxcywh", "xyxy"))
    cost = class_cost + 5 * (predicted[:, None] - target_boxes).abs().sum(2) - 2 * giou
    match = HungarianMatcher()(class_cost, predicted, target_boxes)
    least = min(sum(float(cost[q, n]) for n, q in enumerate(queries)) for queries in permutations(range(5), 3))
    assert float(cost[match.queries, match.objects].sum()) == pytest.approx(least, rel=1e-5)


def test_more_objects_than_queries_and_answers_that_are_not_finite():
    match = HungarianMatcher()(torch.zeros(2, 5), boxes(2, 0), boxes(5, 1))
    assert len(match.queries) == len(match.objects) == 2
    broken = boxes(3, 0)
    broken[0] = float("nan")
    assert 0 not in HungarianMatcher()(torch.zeros(3, 2), broken, boxes(2, 1)).queries


def test_shares_and_pixels_are_inverse_and_losses_know_no_empty_sum():
    target_boxes = boxes(4, 3)
    torch.testing.assert_close(normalize_boxes(denormalize_boxes(target_boxes, (30, 50)), (30, 50)), target_boxes)
    predicted = boxes(6, 4)[None].requires_grad_()
    empty = target(target_boxes[:0], [], (30, 50))
    match = HungarianMatcher()(torch.zeros(6, 0), predicted[0], target_boxes[:0])
    l1, giou = box_losses(predicted, [match], [empty], [(30, 50)])
    (l1 + giou).backward()
    assert l1 == giou == 0
    assert predicted.grad.abs().sum() == 0


def test_iou_of_pairs_is_the_diagonal():
    a, b = (box_convert(boxes(6, seed), "cxcywh", "xyxy") for seed in (5, 6))
    torch.testing.assert_close(paired_iou(a, b), box_iou(a, b).diagonal())
    assert paired_iou(a[:1] * 0, b[:1] * 0) == 0


def test_task_alignment_is_what_the_paper_says():
    generator = torch.Generator().manual_seed(0)
    rows = (torch.arange(8) + 0.5) / 8
    centres = torch.cartesian_prod(rows, rows).flip(1)
    predicted = torch.cat([centres, torch.rand(64, 2, generator=generator) * 0.4 + 0.1], dim=1)
    scores = torch.rand(64, 3, generator=generator)
    target_boxes, labels = (
        torch.cat([boxes(3, 7), torch.tensor([[0.51, 0.51, 0.01, 0.01]])]),
        torch.tensor([0, 2, 1, 1]),
    )
    location, objects, target_scores = TaskAlignedAssigner(top_k=4)(scores, predicted, centres, target_boxes, labels)
    claims: dict[int, tuple[float, int]] = {}
    alignments = {}
    for n, (x, y, w, h) in enumerate(target_boxes.tolist()):
        iou = box_iou(box_convert(target_boxes[n : n + 1], "cxcywh", "xyxy"), box_convert(predicted, "cxcywh", "xyxy"))[
            0
        ]
        inside = [t for t in range(64) if abs(centres[t, 0] - x) < w / 2 and abs(centres[t, 1] - y) < h / 2]
        if not inside:
            inside = [int((centres - torch.tensor([x, y])).square().sum(1).argmin())]
        alignment = {t: float(scores[t, labels[n]] * iou[t] ** 6) for t in inside}
        for t in sorted(alignment, key=alignment.get, reverse=True)[:4]:
            alignments[t, n] = alignment[t], float(iou[t])
            claims[t] = max(claims.get(t, (-1.0, -1)), (float(iou[t]), n))
    expected = {t: n for t, (_, n) in claims.items()}
    assert dict(zip(location.tolist(), objects.tolist(), strict=True)) == expected
    assert set(objects.tolist()) == {0, 1, 2, 3}
    for t, n, q in zip(location.tolist(), objects.tolist(), target_scores.tolist(), strict=True):
        own = [alignments[other, n] for other, owner in expected.items() if owner == n]
        best, overlap = max(a for a, _ in own), max(o for _, o in own)
        assert q == pytest.approx(alignments[t, n][0] / best * overlap, rel=1e-4)
    assert all(
        len(assigned) == 0
        for assigned in TaskAlignedAssigner()(scores, predicted, centres, target_boxes[:0], labels[:0])
    )


def test_noisy_queries_are_near_or_further_and_see_only_their_group():
    sizes, box_sets = [(60, 80), (50, 50)], [boxes(3, 1), boxes(1, 2)]
    targets = [target(box_sets[0], [0, 1, 4], sizes[0]), target(box_sets[1], [2], sizes[1])]
    queries = Denoising(num_queries=30, label_noise_ratio=0.0)(
        targets, sizes, category_count=5, generator=torch.Generator().manual_seed(0)
    )
    assert queries.labels.shape == (2, 30)
    assert queries.valid.sum(1).tolist() == [30, 10]
    assert queries.group.tolist() == [i // 6 for i in range(30)]
    for i, match in enumerate(queries.matches):
        assert len(match.queries) == 5 * len(box_sets[i])
        assert queries.labels[i, match.queries].tolist() == targets[i].labels[match.objects].tolist()
        positives, clean = queries.boxes[i, match.queries], box_sets[i][match.objects]
        moved = (box_convert(positives, "cxcywh", "xyxy") - box_convert(clean, "cxcywh", "xyxy")).abs()
        assert (moved <= clean[:, 2:].repeat(1, 2) / 2 + 1e-5).all()
        assert (moved.sum(1) > 0).all()
        negatives = queries.valid[i].clone()
        negatives[match.queries] = False
        assert negatives.sum() == len(match.queries)
    assert ((queries.boxes >= 0) & (queries.boxes <= 1)).all()
    attention_mask = queries.attention_mask(4)
    assert not attention_mask[30:, :30].any()
    assert attention_mask[:, 30:].all()
    torch.testing.assert_close(attention_mask[:30, :30], queries.group[:, None] == queries.group)
    assert Denoising()([target(box_sets[0][:0], [], sizes[0])], sizes[:1], category_count=5) is None
    many = Denoising(num_queries=10)([target(boxes(40, 3), [0] * 40, sizes[0])], sizes[:1], category_count=5)
    assert many.labels.shape == (1, 10)


def test_varifocal_loss_is_its_formula():
    logits = torch.randn(20, 3, generator=torch.Generator().manual_seed(0), requires_grad=True)
    target_scores = torch.where(torch.rand(20, 3, generator=torch.Generator().manual_seed(1)) < 0.2, 0.7, 0.0)
    p = logits.sigmoid().detach()
    cross_entropy = -(target_scores * F.logsigmoid(logits) + (1 - target_scores) * F.logsigmoid(-logits))
    expected = torch.where(target_scores > 0, target_scores * cross_entropy, 0.75 * p**2 * cross_entropy)
    torch.testing.assert_close(varifocal_loss(logits, target_scores), expected)
