"""Training a promptable model: prompts are simulated round after round, each where the answer before was wrong.

Shape shorthand: N objects of an image, S x S the padded image, m x m the decoder's logits, M + 1 masks.

Paper: "Segment Anything" (Kirillov et al., ICCV 2023, arXiv:2304.02643), section 3 and appendix A: the first prompt is a
point on the object or its box, with noise; then come points where the answer was wrong, with that answer's logits as a mask
prompt. Of an ambiguous prompt only the best of the M masks learns, so that they come to mean different things; of all
others the one mask for them. Masks learn by focal and dice loss, 20 to 1, predicted IoUs by squared error.
Departures: fewer rounds; the mask prompt is left out half of the time, because a person's next click may come alone; half of
the points lie in the middle of what is wrong, where people click, the others anywhere in it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from otus.parts.losses import dice_loss
from otus.promptable.prompt_encoder import PromptBatch

if TYPE_CHECKING:
    from otus.promptable.sam import Sam

FOCAL_WEIGHT = 20.0
_BOX_NOISE, _MAX_BOX_NOISE = 0.1, 20.0  # of a side, and pixels


@dataclass(frozen=True)
class SimulatedPrompts:
    """How prompts are made up.

    Parameters
    ----------
    rounds
        Prompts of each object, the first included.
    max_objects
        Of an image; of more, so many are drawn.
    box_share
        How often the first prompt is a box.
    mask_share
        How often the answer before is given as a mask prompt.
    middle_share
        How often a point is in the middle of what is wrong.
    """

    rounds: int = 4
    max_objects: int = 8
    box_share: float = 0.4
    mask_share: float = 0.5
    middle_share: float = 0.5

    def losses(
        self,
        sam: "Sam",
        features: Float[Tensor, "b c h w"],
        targets: Sequence[Bool[Tensor, "_ _ _"]],
        *,
        generator: torch.Generator | None = None,
    ) -> dict[str, Float[Tensor, ""]]:
        """Return ``focal``, ``dice`` and ``iou``, means over objects and rounds.

        Parameters
        ----------
        sam
            Whose prompt encoder and decoder learn.
        features
            Maps of its image encoder.
        targets
            Masks of the objects of each image (N, H, W), in the frame of the padded image, of which they may be the upper
            left part.
        generator
            Of all randomness.
        """
        total = features.new_zeros(3)
        count = 0
        for image_features, masks in zip(features, targets, strict=True):
            masks = F.pad(masks, (0, sam.image_size - masks.shape[2], 0, sam.image_size - masks.shape[1]))
            truth = _small(masks, sam.mask_size)
            visible = torch.where(truth.flatten(start_dim=1).any(dim=1))[0]
            drawn = visible[torch.randperm(len(visible), generator=generator)[: self.max_objects]]
            if len(drawn):
                total = total + self._image_losses(sam, image_features, masks[drawn], truth[drawn], generator)
                count += len(drawn)
        focal, dice, iou = total / max(count, 1) / self.rounds
        return {"focal": FOCAL_WEIGHT * focal, "dice": dice, "iou": iou}

    def _image_losses(
        self,
        sam: "Sam",
        features: Float[Tensor, "c h w"],
        masks: Bool[Tensor, "n s s"],
        truth: Bool[Tensor, "n m m"],
        generator: torch.Generator | None,
    ) -> Float[Tensor, "3"]:
        """Sums over the objects of one image and all rounds."""
        points, labels = (
            masks.new_zeros((len(masks), 0, 2), dtype=torch.float32),
            masks.new_zeros((len(masks), 0)).long(),
        )
        boxes = jittered_boxes(masks, generator) if _chance(self.box_share, generator) else None
        answer = torch.zeros_like(truth)
        logits = None
        total = features.new_zeros(3)
        for round_ in range(self.rounds):
            if round_ or boxes is None:
                middle = _chance(self.middle_share, generator)
                point, label = next_points(answer, truth, middle=middle, generator=generator)
                points = torch.cat([points, (point * sam.image_size / sam.mask_size)[:, None]], dim=1)
                labels = torch.cat([labels, label[:, None]], dim=1)
            prompts = PromptBatch(
                points=points if labels.shape[1] else None,
                labels=labels if labels.shape[1] else None,
                boxes=boxes,
                masks=logits if logits is not None and _chance(self.mask_share, generator) else None,
            )
            ambiguous = boxes is None and labels.shape[1] == 1
            found, ious = sam.decode(features, prompts)
            chosen = slice(1, None) if ambiguous else slice(0, 1)
            losses = mask_losses(found[:, chosen].float(), ious[:, chosen].float(), truth)  # (3, N, masks)
            best = (FOCAL_WEIGHT * losses[0] + losses[1]).argmin(dim=1)
            focal, dice = losses[:2].gather(2, best.expand(2, -1)[..., None])[..., 0].sum(dim=1)
            total = total + torch.stack([focal, dice, losses[2].mean(dim=1).sum()])
            shown = ious[:, chosen].argmax(dim=1)
            logits = found[:, chosen].detach().float()[torch.arange(len(shown)), shown][:, None]
            answer = logits[:, 0] > 0
        return total


def mask_losses(
    logits: Float[Tensor, "n k m m"], ious: Float[Tensor, "n k"], truth: Bool[Tensor, "n m m"]
) -> Float[Tensor, "3 n k"]:
    """Return focal loss (a mean over pixels), dice loss and squared error of the predicted IoU of each mask."""
    target = truth[:, None].expand(logits.shape).float()
    entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    sure = torch.exp(-entropy)  # of what is true
    weight = 0.25 * target + 0.75 * (1 - target)
    focal = (weight * (1 - sure) ** 2 * entropy).mean(dim=(2, 3))
    dice = dice_loss(logits.flatten(0, 1), target.flatten(0, 1)).view(logits.shape[:2])
    answer = logits.detach() > 0
    overlap = (answer & truth[:, None]).sum(dim=(2, 3))
    union = (answer | truth[:, None]).sum(dim=(2, 3)).clamp(min=1)
    return torch.stack([focal, dice, (ious - overlap / union) ** 2])


def next_points(
    answer: Bool[Tensor, "n m m"],
    truth: Bool[Tensor, "n m m"],
    *,
    middle: bool,
    generator: torch.Generator | None = None,
) -> tuple[Float[Tensor, "n 2"], Int[Tensor, "n"]]:
    """Return a point (x, y) where each answer is wrong, and its label: 1 on the object, 0 on background.

    Where nothing is wrong it lies on the object.

    Parameters
    ----------
    answer, truth
        Masks before and as they should be.
    middle
        Take a pixel that is farthest from what is right, else any of what is wrong.
    generator
        Of the choice.
    """
    wrong = answer ^ truth
    wrong = torch.where(wrong.flatten(start_dim=1).any(dim=1)[:, None, None], wrong, truth)
    if middle:
        depth = torch.zeros_like(wrong, dtype=torch.float32)
        left = torch.stack([wrong & truth, wrong & ~truth]).float()  # apart: a missing part may touch one too many
        while left.any():
            depth += left.sum(dim=0)
            left = -F.max_pool2d(-F.pad(left, (1, 1, 1, 1)), 3, stride=1)
        wrong = wrong & (depth == depth.amax(dim=(1, 2), keepdim=True))
    place = torch.multinomial(wrong.flatten(start_dim=1).float(), 1, generator=generator)[:, 0]
    points = torch.stack([place % truth.shape[2], place // truth.shape[2]], dim=1) + 0.5
    return points, truth.flatten(start_dim=1)[torch.arange(len(place)), place].long()


def jittered_boxes(masks: Bool[Tensor, "n s s"], generator: torch.Generator | None = None) -> Float[Tensor, "n 4"]:
    """Return the box of each mask with noise: normal, a tenth of the side, at most 20 pixels."""
    columns, rows = masks.any(dim=1), masks.any(dim=2)
    size = masks.shape[2]
    ends = [
        side.float().argmax(dim=1) if first else size - side.flip(1).float().argmax(dim=1)
        for first in (True, False)
        for side in (columns, rows)
    ]
    boxes = torch.stack(ends, dim=1).float()
    sides = (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)
    noise = torch.randn(boxes.shape, generator=generator) * _BOX_NOISE * sides
    boxes = (boxes + noise.clamp(-_MAX_BOX_NOISE, _MAX_BOX_NOISE)).clamp(0, size)
    return torch.cat([torch.minimum(boxes[:, :2], boxes[:, 2:] - 1), boxes[:, 2:]], dim=1)


def _small(masks: Bool[Tensor, "n s s"], side: int) -> Bool[Tensor, "n m m"]:
    """Masks at the decoder's size: where more than half of a square is of the object."""
    return F.adaptive_avg_pool2d(masks.float(), side) > 0.5


def _chance(share: float, generator: torch.Generator | None) -> bool:
    return float(torch.rand((), generator=generator)) < share
