"""What every detector and segmenter starts with: a backbone, images in, feature maps out, fine to coarse.

Shape shorthand: B images, H x W the image, C channels. *Level* l is the map of stride 2**l, so level 2 is a quarter of
the image's size, as C2 … C5 are counted in "Feature Pyramid Networks for Object Detection" (Lin et al., CVPR 2017,
arXiv:1612.03144, section 3).
"""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from otus.errors import CheckpointError, UsageError


class Backbone(nn.Module):
    """Base of the backbones: pads what is too small, then calls ``maps``.

    An image with a side shorter than ``min_size`` is padded by zeros on the right and at the bottom, so that a backbone
    answers for any image from 1x1 on. Who must know of which size of image the maps are pads to it beforehand.

    Attributes
    ----------
    channels
        Channels of each map.
    strides
        Pixels of the image that one step on each map spans.
    minimum_side
        Pixels that each side of an image needs.
    """

    channels: tuple[int, ...]
    strides: tuple[int, ...]
    minimum_side: int

    @property
    def min_size(self) -> int:
        """``minimum_side``, twice that while training: batch normalisation refuses a map of one value."""
        return self.minimum_side * (2 if self.training else 1)

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> list[Tensor]:
        """One map (B, channels[i], about H / strides[i], about W / strides[i]) a level, fine to coarse."""
        height, width = images.shape[-2:]
        side = self.min_size
        if height < side or width < side:
            images = F.pad(images, (0, max(0, side - width), 0, max(0, side - height)))
        return self.maps(images)

    def maps(self, images: Float[Tensor, "b 3 h w"]) -> list[Tensor]:
        """As ``forward``, for images of at least ``minimum_side``."""
        raise NotImplementedError


class LayeredBackbone(Backbone):
    """A backbone of layers that run one after the other; the outputs of some are its maps.

    The layers keep the names they are given, without a prefix, so that other people's checkpoints load by name. Layers
    after the last map are dropped.

    Parameters
    ----------
    layers
        Modules by name, in the order in which they run.
    levels
        What to return, fine to coarse. A number l means the last layer whose stride is 2**l, a str that layer.
    minimum_side
        See `Backbone`; the coarsest stride without it.

    Raises
    ------
    UsageError
        If a level is none of the layers, or the levels are not in the order of the layers.
    """

    def __init__(
        self, layers: Mapping[str, nn.Module], *, levels: Sequence[int | str], minimum_side: int | None = None
    ) -> None:
        super().__init__()
        measured = _measure(layers)
        last_of_stride = {stride: name for name, (_, stride) in measured.items()}
        taps = [last_of_stride.get(2**level, "") if isinstance(level, int) else level for level in levels]
        names = list(layers)
        if not taps or any(tap not in names for tap in taps) or taps != sorted(set(taps), key=names.index):
            known = ", ".join(str(stride.bit_length() - 1) for stride in sorted(last_of_stride))
            raise UsageError(
                f"levels {tuple(levels)}: expected some of the levels {known} or of the layers {', '.join(names)}, "
                "fine to coarse"
            )
        self.taps = tuple(taps)
        for name in names[: names.index(taps[-1]) + 1]:
            self.add_module(name, layers[name])
        for before, layer in pairwise(self._modules):
            following = layers[layer]
            if before in taps and isinstance(following, nn.ReLU):
                following.inplace = False  # it would write into the map that is returned
        self.channels = tuple(measured[tap][0] for tap in taps)
        self.strides = tuple(measured[tap][1] for tap in taps)
        self.layer_strides = {name: measured[name][1] for name in self._modules}
        self.minimum_side = minimum_side or max(self.strides)

    def maps(self, images: Float[Tensor, "b 3 h w"]) -> list[Tensor]:
        found, x = [], images
        for name, layer in self._modules.items():
            assert layer is not None
            x = layer(x)
            if name in self.taps:
                found.append(x)
        return found


def load_classifier_weights(backbone: nn.Module, state: Mapping[str, Tensor], *, source: str) -> None:
    """Take from a classifier's state what the backbone has; the layers that a backbone does not have are left out.

    Raises
    ------
    CheckpointError
        If a tensor of the backbone is missing in the state or has another shape. Nothing is loaded then.
    """
    own = backbone.state_dict()
    wrong = [
        f"{name}: expected {tuple(tensor.shape)}, got {tuple(state[name].shape) if name in state else 'nothing'}"
        for name, tensor in own.items()
        if not name.endswith("num_batches_tracked") and (name not in state or state[name].shape != tensor.shape)
    ]
    if wrong:
        raise CheckpointError(f"{source}: {len(wrong)} tensors do not fit this backbone, e.g. {'; '.join(wrong[:3])}")
    backbone.load_state_dict({name: state.get(name, tensor) for name, tensor in own.items()})


def _measure(layers: Mapping[str, nn.Module]) -> dict[str, tuple[int, int]]:
    """Channels and stride of each layer's output, found by an image without values that costs no arithmetic."""
    side = 1024
    x = torch.empty(2, 3, side, side, device="meta")
    found = {}
    with torch.no_grad():
        for name, layer in layers.items():
            tensors = {**dict(layer.named_parameters()), **dict(layer.named_buffers())}
            without_values = {key: torch.empty_like(tensor, device="meta") for key, tensor in tensors.items()}
            x = torch.func.functional_call(layer, without_values, (x,))
            # A map without padding is a little smaller than side / stride; strides are powers of two.
            found[name] = (x.shape[1], 2 ** round(math.log2(side / x.shape[2])))
    return found
