"""Region features from crops: cut each region out of the image, warp it to a fixed size, run the backbone on it.

Shape shorthand: R regions of all images, C channels, S the side of a crop, s the side of its feature map.

Paper: R-CNN (Girshick et al., CVPR 2014, arXiv:1311.2524), section 2.1 and appendix A: "warp" to 227 pixels with 16 pixels
of context. Pixels outside the image have the mean colour, which is 0 after normalisation.
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
    """Region features of the sliding window and of R-CNN: a crop and a forward pass of the backbone for each region.

    Parameters
    ----------
    backbone
        Maps crops to feature maps, of which the last is used.
    crop_size
        Height and width of a crop, at least twice the backbone's ``minimum_side``.
    context
        Pixels at each side of the crop that show the surroundings of the region.
    chunk_size
        Maximum number of crops per forward pass, which bounds memory in inference. (In training, memory also grows with
        the number of sampled regions.)
    """

    min_size = 1  # of the image; crops have a size of their own

    def __init__(self, backbone: Backbone, *, crop_size: int, context: int = 0, chunk_size: int = 32) -> None:
        super().__init__()
        if crop_size < 1 or not 0 <= 2 * context < crop_size or chunk_size < 1:
            raise UsageError(
                f"crops: expected 0 <= 2 * context < crop_size and chunk_size >= 1, got {crop_size=}, {context=}, "
                f"{chunk_size=}"
            )
        if crop_size < 2 * backbone.minimum_side:  # it would be padded in training only (Backbone.min_size)
            raise UsageError(
                f"crops: expected a crop_size of at least {2 * backbone.minimum_side} pixels, twice what the backbone "
                f"needs, got {crop_size}"
            )
        self.backbone = backbone
        self.crop_size = crop_size
        self.context = context
        self.chunk_size = chunk_size
        with inference_mode(backbone) as evaluated:
            self.out_shape: tuple[int, ...] = tuple(evaluated(torch.zeros(1, 3, crop_size, crop_size))[-1].shape[1:])

    @property
    def out_features(self) -> int:
        """Length of a region's flattened features."""
        return math.prod(self.out_shape)

    def prepare(self, images: Float[Tensor, "b 3 h w"]) -> list[Tensor]:
        """Return no feature maps: crops share nothing."""
        return []

    def extract(
        self, maps: Sequence[Tensor], batch: Batch, boxes: Sequence[Float[Tensor, "_ 4"]]
    ) -> Float[Tensor, "r c s s"]:
        """Return the backbone's last feature map of each crop."""
        roi_features = []
        for image, (height, width), boxes_of_image in zip(batch.images, batch.sizes_hw, boxes, strict=True):
            for chunk in torch.split(boxes_of_image, self.chunk_size):
                if len(chunk):
                    crops = warp(image[:, :height, :width], chunk, crop_size=self.crop_size, context=self.context)
                    roi_features.append(self.backbone(crops)[-1].float())
        if not roi_features:  # one crop that is dropped again, so that the backbone gets a gradient of zeros
            return self.backbone(batch.images.new_zeros(1, 3, self.crop_size, self.crop_size))[-1][:0].float()
        return torch.cat(roi_features)


def warp(
    image: Float[Tensor, "3 h w"], boxes: Float[Tensor, "r 4"], *, crop_size: int, context: int = 0
) -> Float[Tensor, "r 3 side side"]:
    """Crop boxes xyxy of an image and warp each to ``crop_size - 2 * context`` pixels, plus ``context`` on each side.

    Sampling is bilinear. Pixels outside the image are 0, and do not blend into the pixels at its border.

    Examples
    --------
    >>> image = torch.arange(12.0).reshape(1, 2, 6).expand(3, 2, 6)
    >>> warp(image, torch.tensor([[0.0, 0, 2, 2], [2.0, 0, 6, 2]]), crop_size=2)[:, 0].round(decimals=3).tolist()
    [[[0.0, 1.0], [6.0, 7.0]], [[2.5, 4.5], [8.5, 10.5]]]
    """
    height, width = image.shape[-2:]
    pixel_centres = torch.arange(crop_size, device=image.device, dtype=torch.float32) + 0.5
    fractions = (pixel_centres - context) / (crop_size - 2 * context)  # of the box's side, from its edge
    x1, y1, x2, y2 = boxes.float()[..., None].unbind(1)
    x, y = x1 + fractions * (x2 - x1), y1 + fractions * (y2 - y1)
    inside = ((y >= 0) & (y <= height))[:, None, :, None] & ((x >= 0) & (x <= width))[:, None, None, :]
    shape = (len(boxes), crop_size, crop_size)
    # grid_sample takes coordinates from -1 at one border of the image to 1 at the other.
    grid = [(x * (2 / width) - 1)[:, None, :].expand(shape), (y * (2 / height) - 1)[:, :, None].expand(shape)]
    images = image.float().expand(len(boxes), -1, -1, -1)
    crops = F.grid_sample(images, torch.stack(grid, dim=-1), padding_mode="border", align_corners=False)
    return crops * inside
