"""Anchors: boxes of several sizes and aspect ratios at every location of a feature map.

Paper: "Faster R-CNN" (Ren et al., NeurIPS 2015, arXiv:1506.01497), section 3.1.1.
Reference: torchvision ``AnchorGenerator`` (BSD-3-Clause), whose rounding is kept so that its weights fit: the corners of
the K boxes of a location are rounded to whole pixels, and the distance between locations is the side of the padded image
divided by that of the feature map, rounded down (61, not 64, for 800 pixels and 13 locations).
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor

from otus.errors import ShapeError


class GridAnchorGenerator:
    """Generate the anchors of one or several feature maps.

    Parameters
    ----------
    sizes
        Per feature map, the square roots of the anchors' areas, in pixels of the image.
    aspect_ratios
        Height / width, for every feature map and size.

    Examples
    --------
    >>> anchors = GridAnchorGenerator([[8, 16]], aspect_ratios=[1.0])
    >>> anchors.anchors_per_location, anchors([(1, 2)], (4, 8))[0][:2].tolist()
    (2, [[-4.0, -4.0, 4.0, 4.0], [-8.0, -8.0, 8.0, 8.0]])
    """

    def __init__(self, sizes: Sequence[Sequence[float]], *, aspect_ratios: Sequence[float] = (0.5, 1.0, 2.0)) -> None:
        self.sizes = tuple(tuple(level_sizes) for level_sizes in sizes)
        self.aspect_ratios = tuple(aspect_ratios)
        counts = {len(level_sizes) for level_sizes in self.sizes}
        if len(counts) != 1:
            raise ValueError(f"anchors: expected the same number of sizes for every feature map, got {self.sizes}")
        self.anchors_per_location = counts.pop() * len(self.aspect_ratios)

    def __call__(
        self,
        grids_hw: Sequence[tuple[int, int]],
        padded_hw: tuple[int, int],
        device: torch.device | str = "cpu",
    ) -> list[Float[Tensor, "a 4"]]:
        """Return the anchors xyxy of each feature map, row by row, the K anchors of a location next to one another.

        Parameters
        ----------
        grids_hw
            Height and width of each feature map.
        padded_hw
            Height and width of the batch of images, with padding.
        device
            Device of the anchors.
        """
        if len(grids_hw) != len(self.sizes):
            raise ShapeError(f"anchors: expected {len(self.sizes)} feature maps, as many as sizes, got {len(grids_hw)}")
        device = torch.device(device)
        # An exported program must compute anchors for images of any size, so nothing is cached.
        grid_anchors = _grid if torch.compiler.is_compiling() else _cached_grid
        return [
            grid_anchors(sizes, self.aspect_ratios, (grid[0], grid[1]), padded_hw, device)
            for sizes, grid in zip(self.sizes, grids_hw, strict=True)
        ]


def _grid(
    sizes: tuple[float, ...],
    aspect_ratios: tuple[float, ...],
    grid_hw: tuple[int, int],
    padded_hw: tuple[int, int],
    device: torch.device,
) -> Float[Tensor, "a 4"]:
    size = torch.tensor(sizes, dtype=torch.float32, device=device)
    root = torch.tensor(aspect_ratios, dtype=torch.float32, device=device).sqrt()
    width, height = (1 / root[:, None] * size).flatten(), (root[:, None] * size).flatten()
    at_origin = (torch.stack([-width, -height, width, height], dim=1) / 2).round()
    step_y, step_x = (
        cast(int, torch.sym_max(1, padded // count)) for padded, count in zip(padded_hw, grid_hw, strict=True)
    )
    y, x = torch.meshgrid(
        torch.arange(grid_hw[0], device=device) * step_y,
        torch.arange(grid_hw[1], device=device) * step_x,
        indexing="ij",
    )
    centres = torch.stack([x, y, x, y], dim=-1).reshape(-1, 1, 4)
    return (centres + at_origin).reshape(-1, 4)


@lru_cache(maxsize=64)
def _cached_grid(
    sizes: tuple[float, ...],
    aspect_ratios: tuple[float, ...],
    grid_hw: tuple[int, int],
    padded_hw: tuple[int, int],
    device: torch.device,
) -> Float[Tensor, "a 4"]:
    with torch.inference_mode(False):  # cached tensors are used in training too
        return _grid(sizes, aspect_ratios, grid_hw, padded_hw, device)
