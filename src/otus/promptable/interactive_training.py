"""Interactive training of a promptable model: each round simulates a prompt where the previous prediction was wrong.

Shape shorthand: N objects of an image, S x S the padded image, m x m the decoder's logits, K masks of a prompt.

Paper: "Segment Anything" (Kirillov et al., ICCV 2023, arXiv:2304.02643), section 3 and appendix A: the first prompt is a
point on the object or its box, with noise; the following ones are points in the error region of the previous prediction,
whose logits are given as a mask prompt. For an ambiguous prompt (a single point) only the mask with the lowest loss is
trained, so that the three masks specialise; for all other prompts the one mask for unambiguous prompts is trained. The loss
is 20 * focal + dice on masks, plus the squared error of predicted IoUs.
Departures: by default cross-entropy in the place of 20 * focal, as in Mask2Former (Cheng et al., CVPR 2022,
arXiv:2112.01527), because focal's alpha of 0.25 makes a model that is uncertain predict empty masks, and a short training
does not get beyond that; fewer rounds; the mask prompt is left out half of the time, because a person's next click may come
without it; half of the points lie in the middle of the error region, where people click, the others anywhere in it. All
three masks are trained a little (``_ALL_MASKS_WEIGHT``), else some never become the best and learn nothing: the relaxed
loss of "Learning in an Uncertain World" (Rupprecht et al., ICCV 2017, arXiv:1612.00197).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from otus.parts.losses import dice_loss
from otus.promptable.prompt_encoder import PromptBatch

if TYPE_CHECKING:
    from otus.promptable.sam import Sam
    from otus.promptable.text import ClipEncoder

_FOCAL_WEIGHT, _FOCAL_ALPHA = 20.0, 0.25
_ALL_MASKS_WEIGHT = 0.05  # of the mean loss of the three masks; the rest is the weight of the lowest one
_BOX_NOISE, _MAX_BOX_NOISE = 0.1, 20.0  # standard deviation, as a share of the box's side; maximum, in pixels


@dataclass(frozen=True)
class SimulatedPrompts:
    """Simulation of prompts for training, and the losses of the predictions for them.

    Parameters
    ----------
    max_rounds
        Maximum number of rounds, the first prompt included; the number of each image is drawn uniformly.
    max_objects
        Maximum number of objects per image; a random subset is used if there are more.
    min_area
        Minimum area of an object as a fraction of the image; smaller ones would dominate the dice loss, which a mask of a
        few pixels cannot lower.
    pixel_loss
        Loss of the pixels, which is added to the dice loss: ``cross-entropy``, or ``focal`` with the weight of the paper.
    box_share
        Probability that the first prompt is a box rather than a point.
    mask_share
        Probability that the logits of the previous round are given as a mask prompt.
    middle_share
        Probability that a point lies in the middle of the error region rather than anywhere in it.
    clip
        CLIP whose embeddings of the objects' crops serve as text prompts, see :mod:`otus.promptable.text` (default: no
        text). The model's prompt encoder needs its ``text_dim``.
    text_share
        With ``clip``, probability that the first prompt is text.
    """

    max_rounds: int = 6
    max_objects: int = 4
    min_area: float = 0.002
    pixel_loss: Literal["cross-entropy", "focal"] = "cross-entropy"
    box_share: float = 0.4
    mask_share: float = 0.5
    middle_share: float = 0.5
    clip: "ClipEncoder | None" = None
    text_share: float = 0.5

    def losses(
        self,
        sam: "Sam",
        images: Float[Tensor, "b 3 s s"],
        features: Float[Tensor, "b c h w"],
        targets: Sequence[Bool[Tensor, "_ _ _"]],
        *,
        generator: torch.Generator | None = None,
    ) -> dict[str, Float[Tensor, ""]]:
        """Return the losses ``pixel``, ``dice`` and ``iou``, each a mean over objects and rounds.

        Parameters
        ----------
        sam
            The model whose prompt encoder and mask decoder are trained.
        images, features
            Padded images, normalised, and their feature maps from its image encoder.
        targets
            Masks of the objects of each image (N, H, W), at the scale of the padded image; smaller ones are padded below
            and to the right.
        generator
            Source of all randomness (default: torch's global one).
        """
        total = features.new_zeros(3)
        count = 0
        for image, image_features, masks in zip(images, features, targets, strict=True):
            masks = F.pad(masks, (0, sam.image_size - masks.shape[2], 0, sam.image_size - masks.shape[1]))
            target = _downsampled(masks, sam.mask_size)
            areas = target.flatten(start_dim=1).sum(dim=1)
            visible = torch.where(areas > self.min_area * target[0].numel())[0] if len(target) else areas
            chosen = visible[torch.randperm(len(visible), generator=generator)[: self.max_objects]]
            if len(chosen):
                total = total + self._image_losses(sam, image, image_features, masks[chosen], target[chosen], generator)
                count += len(chosen)
        if not count:  # of the trained weights, so that gradients can be computed, which are zero
            total = total + 0 * sum(weight.sum() for weight in sam.parameters() if weight.requires_grad)
        return dict(zip(("pixel", "dice", "iou"), total / max(count, 1), strict=True))

    def _image_losses(
        self,
        sam: "Sam",
        image: Float[Tensor, "3 s s"],
        features: Float[Tensor, "c h w"],
        masks: Bool[Tensor, "n s s"],
        target: Bool[Tensor, "n m m"],
        generator: torch.Generator | None,
    ) -> Float[Tensor, "3"]:
        """Return the pixel, dice and IoU loss of one image: means over rounds, summed over objects."""
        points, labels = (
            masks.new_zeros((len(masks), 0, 2), dtype=torch.float32),
            masks.new_zeros((len(masks), 0)).long(),
        )
        text = boxes = None
        if self.clip is not None and _bernoulli(self.text_share, generator):
            text = self.clip.embed_crops(image, masks, generator=generator)[:, None]
        elif _bernoulli(self.box_share, generator):
            boxes = jittered_boxes(masks, generator)
        prediction = torch.zeros_like(target)
        logits = None
        total = features.new_zeros(3)
        rounds = int(torch.randint(1, self.max_rounds + 1, (), generator=generator))
        for round_ in range(rounds):
            if round_ or (boxes is None and text is None):
                middle = _bernoulli(self.middle_share, generator)
                point, label = next_points(prediction, target, middle=middle, generator=generator)
                points = torch.cat([points, (point * sam.image_size / sam.mask_size)[:, None]], dim=1)
                labels = torch.cat([labels, label[:, None]], dim=1)
            prompts = PromptBatch(
                points=points if labels.shape[1] else None,
                labels=labels if labels.shape[1] else None,
                boxes=boxes,
                masks=logits if logits is not None and _bernoulli(self.mask_share, generator) else None,
                text=text,
            )
            ambiguous = boxes is None and text is None and labels.shape[1] == 1
            mask_logits, ious = sam.decode(features, prompts)
            candidates = slice(1, None) if ambiguous else slice(0, 1)
            losses = mask_losses(
                mask_logits[:, candidates].float(), ious[:, candidates].float(), target, pixel_loss=self.pixel_loss
            )  # (3, N, K)
            best = losses[:2].sum(dim=0).argmin(dim=1)
            lowest = losses[:2].gather(2, best.expand(2, -1)[..., None])[..., 0]
            pixel, dice = torch.lerp(lowest, losses[:2].mean(dim=2), _ALL_MASKS_WEIGHT).sum(dim=1)
            total = total + torch.stack([pixel, dice, losses[2].mean(dim=1).sum()])
            top = ious[:, candidates].argmax(dim=1)
            logits = mask_logits[:, candidates].detach().float()[torch.arange(len(top)), top][:, None]
            prediction = logits[:, 0] > 0
        return total / rounds


def mask_losses(
    logits: Float[Tensor, "n k m m"],
    ious: Float[Tensor, "n k"],
    target: Bool[Tensor, "n m m"],
    *,
    pixel_loss: Literal["cross-entropy", "focal"] = "cross-entropy",
) -> Float[Tensor, "3 n k"]:
    """Return the loss of the pixels (mean), the dice loss and the squared error of the predicted IoU of each mask.

    Parameters
    ----------
    logits, ious
        Of K masks of each object: logits of the pixels, and predicted IoUs.
    target
        Ground truth of each object.
    pixel_loss
        See :class:`SimulatedPrompts`; the focal loss has its weight of 20.
    """
    labels = target[:, None].expand(logits.shape).float()
    pixel = F.binary_cross_entropy_with_logits(logits, labels, reduction="none")
    if pixel_loss == "focal":
        probability = torch.exp(-pixel)  # of the pixel's label
        alpha = _FOCAL_ALPHA * labels + (1 - _FOCAL_ALPHA) * (1 - labels)
        pixel = _FOCAL_WEIGHT * alpha * (1 - probability) ** 2 * pixel
    dice = dice_loss(logits.flatten(0, 1), labels.flatten(0, 1)).view(logits.shape[:2])
    predicted = logits.detach() > 0
    intersection = (predicted & target[:, None]).sum(dim=(2, 3))
    union = (predicted | target[:, None]).sum(dim=(2, 3)).clamp(min=1)
    return torch.stack([pixel.mean(dim=(2, 3)), dice, (ious - intersection / union) ** 2])


def next_points(
    prediction: Bool[Tensor, "n m m"],
    target: Bool[Tensor, "n m m"],
    *,
    middle: bool,
    generator: torch.Generator | None = None,
) -> tuple[Float[Tensor, "n 2"], Int[Tensor, "n"]]:
    """Return a point (x, y) in the error region of each predicted mask, and its label: 1 on the object, 0 on background.

    If the mask has no error, the point lies on the object.

    Parameters
    ----------
    prediction, target
        Predicted masks and the ground truth.
    middle
        Take a pixel with the greatest distance to the border of the error region, else any pixel of it.
    generator
        Source of randomness of the choice.
    """
    error = prediction ^ target
    error = torch.where(error.flatten(start_dim=1).any(dim=1)[:, None, None], error, target)
    if middle:
        distance = torch.zeros_like(error, dtype=torch.float32)  # chessboard distance, by repeated erosion
        # False negatives and false positives are eroded apart, because they may touch.
        eroded = torch.stack([error & target, error & ~target]).float()
        while eroded.any():
            distance += eroded.sum(dim=0)
            eroded = -F.max_pool2d(-F.pad(eroded, (1, 1, 1, 1)), 3, stride=1)
        error = error & (distance == distance.amax(dim=(1, 2), keepdim=True))
    pixel = torch.multinomial(error.flatten(start_dim=1).float().cpu(), 1, generator=generator)[:, 0]
    pixel = pixel.to(target.device)  # the generator is on the CPU
    points = torch.stack([pixel % target.shape[2], pixel // target.shape[2]], dim=1) + 0.5
    return points, target.flatten(start_dim=1).gather(1, pixel[:, None])[:, 0].long()


def jittered_boxes(masks: Bool[Tensor, "n s s"], generator: torch.Generator | None = None) -> Float[Tensor, "n 4"]:
    """Return the xyxy box of each mask with Gaussian noise: sigma a tenth of the side, at most 20 pixels."""
    columns, rows = masks.any(dim=1), masks.any(dim=2)
    size = masks.shape[2]
    corners = [
        occupied.float().argmax(dim=1) if first else size - occupied.flip(1).float().argmax(dim=1)
        for first in (True, False)
        for occupied in (columns, rows)
    ]
    boxes = torch.stack(corners, dim=1).float()
    sides = (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)
    noise = torch.randn(boxes.shape, generator=generator).to(boxes.device) * _BOX_NOISE * sides
    boxes = (boxes + noise.clamp(-_MAX_BOX_NOISE, _MAX_BOX_NOISE)).clamp(0, size)
    return torch.cat([torch.minimum(boxes[:, :2], boxes[:, 2:] - 1), boxes[:, 2:]], dim=1)


def _downsampled(masks: Bool[Tensor, "n s s"], size: int) -> Bool[Tensor, "n m m"]:
    """Return masks at the decoder's resolution: pixels of which the object covers more than half."""
    return F.adaptive_avg_pool2d(masks.float(), size) > 0.5


def _bernoulli(probability: float, generator: torch.Generator | None) -> bool:
    return float(torch.rand((), generator=generator)) < probability
