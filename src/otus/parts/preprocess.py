"""What happens to an image between the door and the network, and back: the only place where geometry changes.

A :class:`Preprocess` travels with weights, because they only mean something for images prepared as in their training.

Order and rounding are those of torchvision's detectors: normalise, then interpolate without antialiasing to whole pixels,
rounded down. (Both are linear, so the order matters by rounding errors only; antialiasing matters much.) Padding is not
here: a batch pads itself (:func:`otus.parts.batching.make_batch`), and nothing moves by it.
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
    """What a system says of an image in the frame that it was given."""

    def resized(self, size_hw: tuple[int, int]) -> AnyResult_co: ...


@dataclass(frozen=True)
class Preprocess:
    """How images are prepared.

    Parameters
    ----------
    shorter_side, longer_side
        The image is scaled so that its shorter side has the first many pixels, or less where its longer side would
        have more than the second. Both or none.
    fixed_hw
        Height and width that every image gets instead, whatever its shape.
    mean, std
        Subtracted from and divided into red, green and blue in [0, 1].
    antialias
        Smooth before making smaller.

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
            raise UsageError("preprocess: give shorter_side and longer_side, or fixed_hw, or none of them")

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Preprocess":
        """What :meth:`to_dict` gave, lists of JSON in the place of tuples."""
        fields: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in values.items()
        }
        return cls(**fields)

    def to_dict(self) -> dict[str, Any]:
        """The values by name, fit for JSON."""
        return asdict(self)

    def size_of(self, size_hw: tuple[int, int]) -> tuple[int, int]:
        """Height and width that an image of ``size_hw`` gets; at least one pixel each."""
        if self.fixed_hw is not None:
            return self.fixed_hw
        if self.shorter_side is None or self.longer_side is None:
            return size_hw
        scale = min(self.shorter_side / min(size_hw), self.longer_side / max(size_hw))
        return max(1, int(size_hw[0] * scale)), max(1, int(size_hw[1] * scale))

    def apply(self, image: Float[Tensor, "3 h w"]) -> Float[Tensor, "3 h2 w2"]:
        """The prepared image of one in [0, 1]."""
        return self._apply(image.as_subclass(Tensor).clone())

    def _apply(self, image: Float[Tensor, "3 h w"]) -> Float[Tensor, "3 h2 w2"]:
        """The same in place, so that one copy of a large image as floats is in memory, not three."""
        image -= image.new_tensor(self.mean)[:, None, None]
        image /= image.new_tensor(self.std)[:, None, None]
        size_hw = self.size_of((image.shape[1], image.shape[2]))
        if size_hw == tuple(image.shape[1:]):
            return image
        # All channels at once: for one alone torch's other kernel rounds otherwise, and torchvision's answers are lost.
        return F.interpolate(image[None], size_hw, mode="bilinear", align_corners=False, antialias=self.antialias)[0]

    def sample(self, sample: TensorSample) -> TensorSample:
        """A tensor sample with its image prepared and all boxes, masks and points scaled along."""
        return self._moved(sample, (sample["image"].shape[1], sample["image"].shape[2]), self.apply(sample["image"]))

    def prepare(self, sample: Sample, *, boxes: Literal["modal", "amodal"] = "modal") -> TensorSample:
        """``self.sample(to_tensors(sample, boxes=boxes))``, in much less memory where the image is large.

        Its pixels are there as floats once, its masks never at its size.
        """
        targets = target_tensors(sample, boxes=boxes, masks_hw=self.size_of(sample.size_hw))
        image = torch.from_numpy(np.ascontiguousarray(sample.image)).permute(2, 0, 1)
        pixels = torch.empty(image.shape, dtype=torch.float32).copy_(image)  # float() would keep the channels last
        return self._moved(targets, sample.size_hw, self._apply(pixels.div_(255)))

    def _moved(self, sample: TensorSample, before: tuple[int, int], image: Float[Tensor, "3 h2 w2"]) -> TensorSample:
        """The prepared image, and what belonged to it before."""
        size_hw = self.size_of(before)
        ratio_y, ratio_x = _ratios(before, size_hw)
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
        """Return the result of a prepared image in the frame of the image of ``size_hw`` that it was made of."""
        return result.resized(size_hw)


def _ratios(before: tuple[int, int], after: tuple[int, int]) -> tuple[np.float32, np.float32]:
    """In float32, as the reference divides."""
    return np.float32(after[0]) / np.float32(before[0]), np.float32(after[1]) / np.float32(before[1])


def _resize_mask(mask: Tensor, size_hw: tuple[int, int]) -> Tensor:
    """Nearest neighbour of (..., H, W), of whatever type."""
    height, width = mask.shape[-2:]
    rows = torch.arange(size_hw[0], device=mask.device) * height // size_hw[0]
    columns = torch.arange(size_hw[1], device=mask.device) * width // size_hw[1]
    return mask.index_select(-2, rows).index_select(-1, columns)
