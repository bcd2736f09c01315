"""Who learns what: the assignment of least cost, several steps an object, objects with noise, and their losses."""

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
    """Centre and size inside [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    size = torch.rand(count, 2, generator=generator) * 0.3 + 0.1
    return torch.cat([size / 2 + torch.rand(count, 2, generator=generator) * (1 - size), size], dim=1)


def target(wanted: torch.Tensor, labels: list[int], size_hw: tuple[int, int]) -> Target:
    return Target(denormalize_boxes(wanted, size_hw), torch.tensor(labels, dtype=torch.int64), torch.zeros(0, 4))


def test_no_assignment_costs_less():
    said, wanted = boxes(5, 0), boxes(3, 1)
    class_cost = -torch.rand(5, 3, generator=torch.Generator().manual_seed(2))
    overlap = generalized_box_iou(box_convert(said, "cxcywh", "xyxy"), box_convert(wanted, "cxcywh", "xyxy"))
    cost = class_cost + 5 * (said[:, None] - wanted).abs().sum(2) - 2 * overlap
    match = HungarianMatcher()(class_cost, said, wanted)
    least = min(sum(float(cost[q, n]) for n, q in enumerate(one)) for one in permutations(range(5), 3))
    assert float(cost[match.queries, match.objects].sum()) == pytest.approx(least, rel=1e-5)


def test_more_objects_than_queries_and_answers_that_are_not_finite():
    match = HungarianMatcher()(torch.zeros(2, 5), boxes(2, 0), boxes(5, 1))
    assert len(match.queries) == len(match.objects) == 2
    broken = boxes(3, 0)
    broken[0] = float("nan")
    assert 0 not in HungarianMatcher()(torch.zeros(3, 2), broken, boxes(2, 1)).queries


def test_shares_and_pixels_are_inverse_and_losses_know_no_empty_sum():
    wanted = boxes(4, 3)
    torch.testing.assert_close(normalize_boxes(denormalize_boxes(wanted, (30, 50)), (30, 50)), wanted)
    said = boxes(6, 4)[None].requires_grad_()
    nothing = target(wanted[:0], [], (30, 50))
    match = HungarianMatcher()(torch.zeros(6, 0), said[0], wanted[:0])
    l1, giou = box_losses(said, [match], [nothing], [(30, 50)])
    (l1 + giou).backward()
    assert l1 == giou == 0
    assert said.grad.abs().sum() == 0


def test_iou_of_pairs_is_the_diagonal():
    a, b = (box_convert(boxes(6, seed), "cxcywh", "xyxy") for seed in (5, 6))
    torch.testing.assert_close(paired_iou(a, b), box_iou(a, b).diagonal())
    assert paired_iou(a[:1] * 0, b[:1] * 0) == 0


def test_task_alignment_is_what_the_paper_says():
    generator = torch.Generator().manual_seed(0)
    rows = (torch.arange(8) + 0.5) / 8
    centres = torch.cartesian_prod(rows, rows).flip(1)
    said = torch.cat([centres, torch.rand(64, 2, generator=generator) * 0.4 + 0.1], dim=1)
    scores = torch.rand(64, 3, generator=generator)
    wanted, labels = torch.cat([boxes(3, 7), torch.tensor([[0.51, 0.51, 0.01, 0.01]])]), torch.tensor([0, 2, 1, 1])
    step, objects, quality = TaskAlignedAssigner(top_k=4)(scores, said, centres, wanted, labels)
    claims: dict[int, tuple[float, int]] = {}
    alignments = {}
    for n, (x, y, w, h) in enumerate(wanted.tolist()):
        iou = box_iou(box_convert(wanted[n : n + 1], "cxcywh", "xyxy"), box_convert(said, "cxcywh", "xyxy"))[0]
        held = [t for t in range(64) if abs(centres[t, 0] - x) < w / 2 and abs(centres[t, 1] - y) < h / 2]
        if not held:
            held = [int((centres - torch.tensor([x, y])).square().sum(1).argmin())]
        alignment = {t: float(scores[t, labels[n]] * iou[t] ** 6) for t in held}
        for t in sorted(alignment, key=alignment.get, reverse=True)[:4]:
            alignments[t, n] = alignment[t], float(iou[t])
            claims[t] = max(claims.get(t, (-1.0, -1)), (float(iou[t]), n))
    expected = {t: n for t, (_, n) in claims.items()}
    assert dict(zip(step.tolist(), objects.tolist(), strict=True)) == expected
    assert set(objects.tolist()) == {0, 1, 2, 3}
    for t, n, q in zip(step.tolist(), objects.tolist(), quality.tolist(), strict=True):
        own = [alignments[other, n] for other, owner in expected.items() if owner == n]
        best, overlap = max(a for a, _ in own), max(o for _, o in own)
        assert q == pytest.approx(alignments[t, n][0] / best * overlap, rel=1e-4)
    assert all(len(one) == 0 for one in TaskAlignedAssigner()(scores, said, centres, wanted[:0], labels[:0]))


def test_noisy_queries_are_near_or_further_and_see_only_their_group():
    sizes, several = [(60, 80), (50, 50)], [boxes(3, 1), boxes(1, 2)]
    targets = [target(several[0], [0, 1, 4], sizes[0]), target(several[1], [2], sizes[1])]
    noisy = Denoising(num_queries=30, label_noise_ratio=0.0)(
        targets, sizes, category_count=5, generator=torch.Generator().manual_seed(0)
    )
    assert noisy.labels.shape == (2, 30)
    assert noisy.valid.sum(1).tolist() == [30, 10]
    assert noisy.group.tolist() == [i // 6 for i in range(30)]
    for i, match in enumerate(noisy.matches):
        assert len(match.queries) == 5 * len(several[i])
        assert noisy.labels[i, match.queries].tolist() == targets[i].labels[match.objects].tolist()
        near, clean = noisy.boxes[i, match.queries], several[i][match.objects]
        moved = (box_convert(near, "cxcywh", "xyxy") - box_convert(clean, "cxcywh", "xyxy")).abs()
        assert (moved <= clean[:, 2:].repeat(1, 2) / 2 + 1e-5).all()
        assert (moved.sum(1) > 0).all()
        refused = noisy.valid[i].clone()
        refused[match.queries] = False
        assert refused.sum() == len(match.queries)
    assert ((noisy.boxes >= 0) & (noisy.boxes <= 1)).all()
    allowed = noisy.attention_mask(4)
    assert not allowed[30:, :30].any()
    assert allowed[:, 30:].all()
    torch.testing.assert_close(allowed[:30, :30], noisy.group[:, None] == noisy.group)
    assert Denoising()([target(several[0][:0], [], sizes[0])], sizes[:1], category_count=5) is None
    many = Denoising(num_queries=10)([target(boxes(40, 3), [0] * 40, sizes[0])], sizes[:1], category_count=5)
    assert many.labels.shape == (1, 10)


def test_varifocal_loss_is_its_formula():
    logits = torch.randn(20, 3, generator=torch.Generator().manual_seed(0), requires_grad=True)
    wanted = torch.where(torch.rand(20, 3, generator=torch.Generator().manual_seed(1)) < 0.2, 0.7, 0.0)
    p = logits.sigmoid().detach()
    surprise = -(wanted * F.logsigmoid(logits) + (1 - wanted) * F.logsigmoid(-logits))
    expected = torch.where(wanted > 0, wanted * surprise, 0.75 * p**2 * surprise)
    torch.testing.assert_close(varifocal_loss(logits, wanted), expected)
