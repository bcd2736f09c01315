"""What a region looks like, the first way: cut it out of the image, warp it to one size, run the whole network on it.

Shape shorthand: R regions of all images, C channels, S the side of a crop, s of its map.

Paper: R-CNN (Girshick et al., CVPR 2014, arXiv:1311.2524), section 2.1 and appendix A: "warp" with 16 pixels of context
at 227. What lies outside the image is its mean colour, which is 0 after normalising.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from otus.errors import UsageError
from otus.parts.backbones.backbone import Backbone
from otus.parts.batching import Batch
from otus.parts.inference_mode import inference_mode


class WarpedCrops(nn.Module):
    """Region features of the sliding window and of R-CNN: a crop and a pass of the backbone for each region.

    Parameters
    ----------
    backbone
        Crops in, maps out, of which the last counts.
    crop_size
        Height and width of a crop, at least twice what the backbone needs.
    context
        Pixels of a crop, on each of its sides, that show what is around the region.
    chunk_size
        Crops in the backbone at one time: what memory is needed depends on it, not on the number of regions. (While learning
        it does depend on the number that is learned from.)
    """

    min_size = 1  # of the image; crops have a size of their own

    def __init__(self, backbone: Backbone, *, crop_size: int, context: int = 0, chunk_size: int = 32) -> None:
        super().__init__()
        if crop_size < 1 or not 0 <= 2 * context < crop_size or chunk_size < 1:
            raise UsageError(
                f"crops: expected 0 <= 2 * context < crop_size and chunk_size >= 1, got {crop_size=}, {context=}, "
                f"{chunk_size=}"
            )
        if crop_size < 2 * backbone.minimum_side:  # it would be padded while learning alone (Backbone.min_size)
            raise UsageError(
                f"crops: expected a crop_size of {2 * backbone.minimum_side} pixels or more, got {crop_size}"
            )
        self.backbone = backbone
        self.crop_size = crop_size
        self.context = context
        self.chunk_size = chunk_size
        with inference_mode(backbone) as evaluated:
            self.out_shape: tuple[int, ...] = tuple(evaluated(torch.zeros(1, 3, crop_size, crop_size))[-1].shape[1:])

    @property
    def out_features(self) -> int:
        """Numbers that a region's features have."""
        return math.prod(self.out_shape)

    def prepare(self, images: Float[Tensor, "b 3 h w"]) -> list[Tensor]:
        """Nothing: the regions share no maps."""
        return []

    def extract(
        self, maps: Sequence[Tensor], batch: Batch, boxes: Sequence[Float[Tensor, "_ 4"]]
    ) -> Float[Tensor, "r c s s"]:
        """The backbone's last map of each crop."""
        roi_features = [
            self.backbone(warp(image[:, :height, :width], part, crop_size=self.crop_size, context=self.context))[
                -1
            ].float()
            for image, (height, width), of_image in zip(batch.images, batch.sizes_hw, boxes, strict=True)
            for part in torch.split(of_image, self.chunk_size)
            if len(part)
        ]
        if not roi_features:  # one crop that nobody looks at, so that the backbone gets its gradient of zeros
            return self.backbone(batch.images.new_zeros(1, 3, self.crop_size, self.crop_size))[-1][:0].float()
        return torch.cat(roi_features)


def warp(
    image: Float[Tensor, "3 h w"], boxes: Float[Tensor, "r 4"], *, crop_size: int, context: int = 0
) -> Float[Tensor, "r 3 side side"]:
    """Each box of an image stretched to ``crop_size - 2 * context`` pixels, with what is around it.

    Bilinear; 0 outside the image, which is not mixed into its border.

    Examples
    --------
    >>> image = torch.arange(12.0).reshape(1, 2, 6).expand(3, 2, 6)
    >>> warp(image, torch.tensor([[0.0, 0, 2, 2], [2.0, 0, 6, 2]]), crop_size=2)[:, 0].round(decimals=3).tolist()
    [[[0.0, 1.0], [6.0, 7.0]], [[2.5, 4.5], [8.5, 10.5]]]
    """
    height, width = image.shape[-2:]
    steps = (torch.arange(crop_size, device=image.device, dtype=torch.float32) + 0.5 - context) / (
        crop_size - 2 * context
    )
    x1, y1, x2, y2 = boxes.float()[..., None].unbind(1)
    x, y = x1 + steps * (x2 - x1), y1 + steps * (y2 - y1)
    inside = ((y >= 0) & (y <= height))[:, None, :, None] & ((x >= 0) & (x <= width))[:, None, None, :]
    shape = (len(boxes), crop_size, crop_size)
    # grid_sample counts from -1 at one border of the image to 1 at the other.
    places = [(x * (2 / width) - 1)[:, None, :].expand(shape), (y * (2 / height) - 1)[:, :, None].expand(shape)]
    images = image.float().expand(len(boxes), -1, -1, -1)
    crops = F.grid_sample(images, torch.stack(places, dim=-1), padding_mode="border", align_corners=False)
    return crops * inside
