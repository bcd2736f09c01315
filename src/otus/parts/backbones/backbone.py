"""Base classes of backbones: images in, feature maps out, fine to coarse.

Shape shorthand: B images, H x W the image, C channels. *Level* l is the feature map of stride 2**l, so level 2 has a
quarter of the image's side, as C2 … C5 are counted in "Feature Pyramid Networks for Object Detection" (Lin et al., CVPR
2017, arXiv:1612.03144, section 3).
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
    """Base class of backbones: pads images that are too small, then calls ``maps``.

    An image with a side shorter than ``min_size`` is padded with zeros on the right and at the bottom, so that a backbone
    takes any image from 1x1 on. A caller that relates feature maps to the size of the image pads to ``min_size`` itself.

    Attributes
    ----------
    channels
        Channels of each feature map.
    strides
        Stride of each feature map: pixels of the image between neighbouring locations.
    minimum_side
        Minimum height and width of an image in inference, in pixels.
    """

    channels: tuple[int, ...]
    strides: tuple[int, ...]
    minimum_side: int

    @property
    def min_size(self) -> int:
        """Minimum height and width: ``minimum_side``, twice that in training, as batch norm needs more than one value."""
        return self.minimum_side * (2 if self.training else 1)

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> list[Tensor]:
        """Return feature maps (B, channels[i], about H / strides[i], about W / strides[i]), fine to coarse."""
        height, width = images.shape[-2:]
        side = self.min_size
        if height < side or width < side:
            images = F.pad(images, (0, max(0, side - width), 0, max(0, side - height)))
        return self.maps(images)

    def maps(self, images: Float[Tensor, "b 3 h w"]) -> list[Tensor]:
        """Compute the feature maps of images of at least ``minimum_side``."""
        raise NotImplementedError


class LayeredBackbone(Backbone):
    """A backbone of layers that run one after the other; the outputs of some of them are its feature maps.

    The layers keep the names they are given, without a prefix, so that checkpoints of other libraries load by name. Layers
    after the last feature map are dropped.

    Parameters
    ----------
    layers
        Modules by name, in the order in which they run.
    levels
        The feature maps to return, fine to coarse: a number l for the last layer of stride 2**l, or a layer's name.
    minimum_side
        See :class:`Backbone` (default: the coarsest stride).

    Raises
    ------
    UsageError
        If a level or layer does not exist, or they are not in the order of the layers.
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
        for name, next_name in pairwise(self._modules):
            next_layer = layers[next_name]
            if name in taps and isinstance(next_layer, nn.ReLU):
                next_layer.inplace = False  # it would overwrite the feature map that is returned
        self.channels = tuple(measured[tap][0] for tap in taps)
        self.strides = tuple(measured[tap][1] for tap in taps)
        self.layer_strides = {name: measured[name][1] for name in self._modules}
        self.minimum_side = minimum_side or max(self.strides)

    def maps(self, images: Float[Tensor, "b 3 h w"]) -> list[Tensor]:
        maps, x = [], images
        for name, layer in self._modules.items():
            assert layer is not None
            x = layer(x)
            if name in self.taps:
                maps.append(x)
        return maps


def load_classifier_weights(backbone: nn.Module, state: Mapping[str, Tensor], *, source: str) -> None:
    """Load the backbone's weights from the state dict of a classifier; the classifier's other layers are ignored.

    Parameters
    ----------
    backbone
        Changed in place.
    state
        State dict of the classifier.
    source
        Name of the weights, for error messages.

    Raises
    ------
    CheckpointError
        If a tensor of the backbone is missing in the state dict or has another shape. Nothing is loaded then.
    """
    own = backbone.state_dict()
    mismatches = [
        f"{name}: expected {tuple(tensor.shape)}, got {tuple(state[name].shape) if name in state else 'nothing'}"
        for name, tensor in own.items()
        if not name.endswith("num_batches_tracked") and (name not in state or state[name].shape != tensor.shape)
    ]
    if mismatches:
        raise CheckpointError(
            f"{source}: {len(mismatches)} tensors do not fit this backbone, e.g. {'; '.join(mismatches[:3])}"
        )
    backbone.load_state_dict({name: state.get(name, tensor) for name, tensor in own.items()})


def _measure(layers: Mapping[str, nn.Module]) -> dict[str, tuple[int, int]]:
    """Return channels and stride of each layer's output, computed on the meta device, without arithmetic."""
    side = 1024
    x = torch.empty(2, 3, side, side, device="meta")
    channels_and_strides = {}
    with torch.no_grad():
        for name, layer in layers.items():
            tensors = {**dict(layer.named_parameters()), **dict(layer.named_buffers())}
            meta_tensors = {key: torch.empty_like(tensor, device="meta") for key, tensor in tensors.items()}
            x = torch.func.functional_call(layer, meta_tensors, (x,))
            # Without padding, a feature map is a little smaller than side / stride; strides are powers of two.
            channels_and_strides[name] = (x.shape[1], 2 ** round(math.log2(side / x.shape[2])))
    return channels_and_strides
