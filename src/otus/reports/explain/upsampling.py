"""Explain the upsampling methods on a real feature map: pooled to half its size, and upsampled by each method.

The map is one channel of the finest feature map of a model. The result of each method is compared with the map before
pooling. The kernel of the transposed convolution, the only method with weights, is fitted to this map by least squares.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from otus.inference.predictor import Predictor
from otus.parts.upsampling import UPSAMPLINGS, MaxPooling, Pooled, TransposedConvolution, make_upsampling
from otus.reports.explain.explanation import ImageArray, PassExplanation, pass_fields
from otus.reports.explain.figures import colormapped
from otus.reports.page import Figure, Page, Section, numbered

_FACTOR = 2
_WINDOW = 8  # side of the window whose values are shown, in pixels of the fine map
_SIDE_BY_SIDE = 300  # CSS pixels
_RULES = {
    "bed-of-nails": "The coarse value at the corner of its block, zeros elsewhere.",
    "nearest": "The coarse value of the block: constant blocks.",
    "bilinear": "The mean of 4 coarse values, weighted by distance: smooth, with reduced peaks.",
    "bicubic": "The weighted sum of 16 coarse values; weights may be negative, so edges overshoot.",
    "max-unpooling": "The coarse value at the position of the maximum, which pooling has recorded; zeros elsewhere.",
    "transposed-convolution": "The sum of copies of the kernel, one at each coarse pixel, times its value. The kernel is "
    "learned; this one is fitted to this map by least squares.",
}


@dataclass(frozen=True, eq=False)
class UpsamplingExplanation(PassExplanation):
    """A feature map, pooled and upsampled by each method; see :func:`explain_upsampling`.

    Parameters
    ----------
    channel
        Index of the channel.
    pooled
        The pooled channel, (1, 1, h, w); ``pooled.fine`` is the channel before pooling, without the batch's padding.
    fine
        (H, W) upsampled map by name of the method.
    learned
        The fitted transposed convolution.
    """

    channel: int
    pooled: Pooled
    fine: dict[str, Float[np.ndarray, "H W"]]
    learned: TransposedConvolution

    @property
    def map(self) -> Float[np.ndarray, "H W"]:
        """The map before pooling."""
        return self.pooled.fine[0, 0].numpy()

    def document(self) -> dict[str, Any]:
        """Return the members of the JSON document: what ``otus explain upsampling --json`` prints."""
        top, left = self._window()
        rows, columns = slice(top, top + _WINDOW), slice(left, left + _WINDOW)
        coarse = self.pooled.map[0, 0].numpy()
        half = (slice(top // _FACTOR, -(-rows.stop // _FACTOR)), slice(left // _FACTOR, -(-columns.stop // _FACTOR)))
        assert self.pooled.indices is not None
        maxima = self.pooled.indices[0, 0].numpy()[half]
        width = self.map.shape[1]
        return super().facts() | {
            "map": {
                "channel": self.channel,
                "width": width,
                "height": self.map.shape[0],
                "coarse_width": coarse.shape[1],
                "coarse_height": coarse.shape[0],
            },
            "window": {"top": top, "left": left},
            "fine": self.map[rows, columns].tolist(),
            "coarse": coarse[half].tolist(),
            "maxima": [[[int(i) // width - top, int(i) % width - left] for i in row] for row in maxima],
            "kinds": {
                name: {
                    "values": fine[rows, columns].tolist(),
                    "mean_absolute_difference": float(np.abs(fine - self.map).mean()),
                    "zeros": float((fine == 0).mean()),
                }
                for name, fine in self.fine.items()
            },
            "kernel": self.learned.convolution.weight[0, 0].tolist(),
            "bias": self.learned.convolution.bias.item(),  # type: ignore[union-attr]
        }

    def page(self) -> Page:
        """Return the HTML page."""
        facts = self.document()
        grid = facts["map"]
        return Page(
            f"Six upsampling methods on {self.name.rsplit('/', 1)[-1]}",
            f"Channel {grid['channel']} of the finest feature map of {self.model}, {grid['width']} x {grid['height']}, "
            f"pooled to {grid['coarse_width']} x {grid['coarse_height']} and upsampled",
            tuple(numbered(self._sections(facts))),
        )

    def _sections(self, facts: dict[str, Any]) -> Iterator[Section]:
        top, left = facts["window"]["top"], facts["window"]["left"]
        yield Section(
            "The map",
            "The channel of largest variance, from its lowest value (dark) to its highest (bright), as in all images below. "
            f"The numbers are those of the window at row {top}, column {left}.",
            [
                Figure.of(self.image, self.name.rsplit("/", 1)[-1], width=_SIDE_BY_SIDE),
                self._figure(self.map, "the channel"),
                self._figure(np.array(facts["fine"]), "the window"),
            ],
            _numbers(facts["fine"]),
        )
        yield Section(
            "Max pooling",
            f"The maximum of each block of {_FACTOR} x {_FACTOR}, and its row and column in the window, which max unpooling "
            "needs.",
            [
                self._figure(self.pooled.map[0, 0].numpy(), "the coarse map"),
                self._figure(np.array(facts["coarse"]), "the window"),
            ],
            [
                {
                    str(column): f"{value:.4g} ({place[0]}, {place[1]})"
                    for column, (value, place) in enumerate(zip(values, places, strict=True))
                }
                for values, places in zip(facts["coarse"], facts["maxima"], strict=True)
            ],
        )
        for name, kind in facts["kinds"].items():
            yield Section(
                name.replace("-", " ").capitalize(),
                f"{_RULES[name]} Mean absolute difference from the map before pooling: "
                f"{kind['mean_absolute_difference']:.4g}.",
                [
                    self._figure(self.fine[name], "the whole map"),
                    self._figure(np.array(kind["values"]), "the window"),
                ],
                _numbers(kind["values"]),
            )
            if name == "transposed-convolution":
                yield Section(
                    "The kernel of the transposed convolution",
                    f"Fitted to this map; the bias is {facts['bias']:.4g}.",
                    rows=_numbers(facts["kernel"]),
                )
        yield Section(
            "Differences from the map before pooling",
            "A small difference does not mean that a method trains best: the layers that follow in a decoder can compensate "
            "for much. otus compare --vary upsampling trains with each.",
            rows=[
                {
                    "upsampling": name.replace("-", " "),
                    "mean absolute difference": kind["mean_absolute_difference"],
                    "zeros": kind["zeros"],
                }
                for name, kind in facts["kinds"].items()
            ],
        )

    def _figure(self, values: Float[np.ndarray, "h w"], caption: str) -> Figure:
        return Figure.of(colormapped(values, self.map.min(), self.map.max()), caption, width=_SIDE_BY_SIDE)

    def _window(self) -> tuple[int, int]:
        """Return the first row and column, in fine pixels, of the window of largest variance of the pooled map."""
        coarse, side = self.pooled.map[0, 0].numpy(), _WINDOW // _FACTOR
        side_hw = (min(side, coarse.shape[0]), min(side, coarse.shape[1]))
        deviation = np.lib.stride_tricks.sliding_window_view(coarse, side_hw).std(axis=(2, 3))
        row, column = np.unravel_index(int(deviation.argmax()), deviation.shape)
        return int(row) * _FACTOR, int(column) * _FACTOR


def explain_upsampling(predictor: Predictor, image: ImageArray, *, name: str) -> UpsamplingExplanation:
    """Pool a feature map of a model, and upsample it by each method of :data:`~otus.parts.upsampling.UPSAMPLINGS`.

    Parameters
    ----------
    predictor
        Any model with feature maps.
    image, name
        uint8 (H, W, 3) RGB image, and its name, for the page.
    """
    fields = pass_fields(predictor, image, name=name, postprocess=predictor.postprocess())
    features = fields["record"].features[0]
    rows, columns = PassExplanation(**fields).unpadded_hw(features)
    maps = features[:1, :, :rows, :columns].float().cpu()
    channel = int(maps[0].flatten(1).std(dim=1, correction=0).argmax())
    pooled = MaxPooling(_FACTOR)(maps[:, channel : channel + 1].contiguous())
    learned = fitted_transposed_convolution(pooled)
    with torch.no_grad():
        fine: dict[str, Float[np.ndarray, "H W"]] = {
            up: (learned if up == "transposed-convolution" else make_upsampling(up, 1, _FACTOR, paired=True))(
                pooled.map, pooled
            )[0, 0].numpy()
            for up in UPSAMPLINGS
        }
    return UpsamplingExplanation(**fields, channel=channel, pooled=pooled, fine=fine, learned=learned)


def fitted_transposed_convolution(pooled: Pooled) -> TransposedConvolution:
    """Return the transposed convolution of one channel that is fitted to the fine map by least squares."""
    up = TransposedConvolution(1, factor=_FACTOR)
    convolution, (height, width) = up.convolution, pooled.size_hw
    size = convolution.weight.shape[-1]
    unit_kernels = torch.eye(size * size).reshape(1, size * size, size, size)
    columns = F.conv_transpose2d(pooled.map, unit_kernels, stride=_FACTOR, padding=(size - _FACTOR) // 2)
    columns = columns[0, :, :height, :width].flatten(1)
    design = torch.cat([columns, torch.ones_like(columns[:1])]).T.double()
    target = pooled.fine[0, 0].reshape(-1, 1).double()
    solution: Tensor = torch.linalg.lstsq(design, target, driver="gelsd").solution[:, 0].float()
    with torch.no_grad():
        convolution.weight.copy_(solution[:-1].reshape_as(convolution.weight))
        convolution.bias.copy_(solution[-1:])  # type: ignore[union-attr]
    return up


def _numbers(values: list[list[float]]) -> list[dict[str, float]]:
    return [{str(column): value for column, value in enumerate(row)} for row in values]
