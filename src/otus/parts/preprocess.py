"""Preprocessing: normalise and resize images for the network, and map results back to the original image.

A :class:`Preprocess` is saved with weights, because weights only fit images prepared as in their training. Between the
original image and the network, geometry changes nowhere else.

Order and rounding are those of torchvision's detectors: normalise, then interpolate without antialiasing to whole pixels,
rounded down. (Both are linear, so their order matters by rounding errors only; antialiasing matters much.) Padding is not
part of it: :func:`otus.parts.batching.make_batch` pads on the right and at the bottom, which moves no coordinate.
"""

from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol, TypeVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F
from torchvision import tv_tensors

from otus.data.sample import Sample
from otus.data.tensors import TensorSample, target_tensors
from otus.errors import UsageError

AnyResult = TypeVar("AnyResult")
AnyResult_co = TypeVar("AnyResult_co", covariant=True)
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Resizable(Protocol[AnyResult_co]):
    """A result for one image that can be mapped to another size of the image."""

    def resized(self, size_hw: tuple[int, int]) -> AnyResult_co: ...


@dataclass(frozen=True)
class Preprocess:
    """How images are prepared.

    Parameters
    ----------
    shorter_side, longer_side
        The image is scaled so that its shorter side has ``shorter_side`` pixels, or fewer if its longer side would
        otherwise exceed ``longer_side`` (torchvision's ``min_size`` and ``max_size``). Give both or neither.
    fixed_hw
        Height and width that every image is resized to instead, whatever its aspect ratio.
    mean, std
        Per channel, of red, green and blue in [0, 1]: x becomes (x - mean) / std.
    antialias
        Whether downsampling smooths first.

    Examples
    --------
    >>> Preprocess(shorter_side=800, longer_side=1333).size_of((480, 640))
    (800, 1066)
    """

    shorter_side: int | None = None
    longer_side: int | None = None
    fixed_hw: tuple[int, int] | None = None
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    antialias: bool = False

    def __post_init__(self) -> None:
        sides = (self.shorter_side, self.longer_side)
        if (sides[0] is None) != (sides[1] is None) or (self.fixed_hw is not None and sides[0] is not None):
            raise UsageError("preprocess: give both shorter_side and longer_side, or fixed_hw, or none of them")

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Preprocess":
        """Build from the values of :meth:`to_dict`; tuples may have become lists in JSON."""
        fields: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in values.items()
        }
        return cls(**fields)

    def to_dict(self) -> dict[str, Any]:
        """Return the values by name, serialisable as JSON."""
        return asdict(self)

    def size_of(self, size_hw: tuple[int, int]) -> tuple[int, int]:
        """Return the height and width that an image of ``size_hw`` is resized to; at least one pixel each."""
        if self.fixed_hw is not None:
            return self.fixed_hw
        if self.shorter_side is None or self.longer_side is None:
            return size_hw
        scale = min(self.shorter_side / min(size_hw), self.longer_side / max(size_hw))
        return max(1, int(size_hw[0] * scale)), max(1, int(size_hw[1] * scale))

    def apply(self, image: Float[Tensor, "3 h w"]) -> Float[Tensor, "3 h2 w2"]:
        """Prepare an image with values in [0, 1]."""
        return self._apply_in_place(image.as_subclass(Tensor).clone())

    def _apply_in_place(self, image: Float[Tensor, "3 h w"]) -> Float[Tensor, "3 h2 w2"]:
        """Prepare an image, overwriting it, so that memory holds one copy of a large image as floats, not three."""
        image -= image.new_tensor(self.mean)[:, None, None]
        image /= image.new_tensor(self.std)[:, None, None]
        size_hw = self.size_of((image.shape[1], image.shape[2]))
        if size_hw == tuple(image.shape[1:]):
            return image
        # All channels at once: for a single channel PyTorch uses another kernel, whose rounding differs from torchvision's.
        return F.interpolate(image[None], size_hw, mode="bilinear", align_corners=False, antialias=self.antialias)[0]

    def sample(self, sample: TensorSample) -> TensorSample:
        """Return a tensor sample with its image prepared, and boxes, masks and keypoints scaled accordingly."""
        size_hw = (sample["image"].shape[1], sample["image"].shape[2])
        return self._scale_targets(sample, size_hw, self.apply(sample["image"]))

    def prepare(self, sample: Sample, *, boxes: Literal["modal", "amodal"] = "modal") -> TensorSample:
        """Compute ``self.sample(to_tensors(sample, boxes=boxes))`` in much less memory where the image is large.

        Pixels are copied to float once, and masks are never made at the size of the original image.
        """
        targets = target_tensors(sample, boxes=boxes, masks_hw=self.size_of(sample.size_hw))
        image = torch.from_numpy(np.ascontiguousarray(sample.image)).permute(2, 0, 1)
        pixels = torch.empty(image.shape, dtype=torch.float32).copy_(image)  # float() would keep the channels last
        return self._scale_targets(targets, sample.size_hw, self._apply_in_place(pixels.div_(255)))

    def _scale_targets(
        self, sample: TensorSample, original_hw: tuple[int, int], image: Float[Tensor, "3 h2 w2"]
    ) -> TensorSample:
        """Return the prepared image with the targets of the original one, scaled to it."""
        size_hw = self.size_of(original_hw)
        ratio_y, ratio_x = _ratios(original_hw, size_hw)
        prepared = {**sample, "image": tv_tensors.Image(image)}
        for name, value in sample.items():
            if isinstance(value, tv_tensors.BoundingBoxes):
                scaled = value.as_subclass(Tensor) * value.new_tensor([ratio_x, ratio_y, ratio_x, ratio_y])
                prepared[name] = tv_tensors.BoundingBoxes(scaled, format="XYXY", canvas_size=size_hw)
            elif isinstance(value, tv_tensors.KeyPoints):
                scaled = value.as_subclass(Tensor) * value.new_tensor([ratio_x, ratio_y])
                prepared[name] = tv_tensors.KeyPoints(scaled, canvas_size=size_hw)
            elif isinstance(value, tv_tensors.Mask) and tuple(value.shape[-2:]) != size_hw:
                prepared[name] = tv_tensors.Mask(_resize_mask(value.as_subclass(Tensor), size_hw))
            elif name == "areas":
                prepared[name] = value * (float(ratio_x) * float(ratio_y))
        return prepared

    def undo(self, result: Resizable[AnyResult], size_hw: tuple[int, int]) -> AnyResult:
        """Map the result of a prepared image back to the original image, whose size is ``size_hw``."""
        return result.resized(size_hw)


def _ratios(before: tuple[int, int], after: tuple[int, int]) -> tuple[np.float32, np.float32]:
    """Return the scale factors of height and width, divided in float32 as torchvision does."""
    return np.float32(after[0]) / np.float32(before[0]), np.float32(after[1]) / np.float32(before[1])


def _resize_mask(mask: Tensor, size_hw: tuple[int, int]) -> Tensor:
    """Resize masks (..., H, W) of any dtype by nearest neighbour."""
    height, width = mask.shape[-2:]
    rows = torch.arange(size_hw[0], device=mask.device) * height // size_hw[0]
    columns = torch.arange(size_hw[1], device=mask.device) * width // size_hw[1]
    return mask.index_select(-2, rows).index_select(-1, columns)
