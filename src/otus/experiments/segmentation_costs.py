"""Measure the costs of semantic segmentation by sliding window, at full resolution, and by encoder and decoder.

Weights are random, because the costs do not depend on them. Accuracy is not measured; one reason why it differs is the
size of the receptive field (``sees``).
"""

import copy
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch.utils.flop_counter import FlopCounterMode

from otus.data.sample import Sample
from otus.experiments.compare import peak_memory
from otus.inference.devices import choose_precision
from otus.inference.predictor import Predictor
from otus.parts.preprocess import Preprocess
from otus.parts.system import BaseSystem
from otus.parts.upsampling import interpolate
from otus.zoo.models import build_model
from otus.zoo.voc import VOC_WITH_BACKGROUND

IMAGE_SIZE = 320
"""Default longer side of the image, in pixels."""
REPEATS = 3
"""Default number of timed passes."""
WAYS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "sliding window": ("sliding_window_segmenter", {"shared": False}),
    "sliding window, shared features": ("sliding_window_segmenter", {"shared": True}),
    "full resolution": ("full_resolution", {}),
    "encoder and decoder": ("segnet_small", {}),
}
"""The compared ways of segmentation: name, model in the zoo, and arguments of its builder."""
Report = Callable[[str, int, int], object]


@dataclass(frozen=True)
class Cost:
    """Cost of one way of segmentation on one image.

    Parameters
    ----------
    way, model
        Key of :data:`WAYS`, and name of the model in the zoo.
    seconds
        Median seconds of a forward pass, from the preprocessed image to the scores of its pixels.
    multiply_adds
        Number of multiply-adds of the convolutions and transposed convolutions.
    parameters
        Number of parameters.
    memory_mb
        Peak memory of a forward pass beyond the memory in use before it, in MB; None if it cannot be measured.
    sees
        Receptive field: side in pixels of the square that the scores of the central pixel depend on, at most the shorter
        side of the image.
    """

    way: str
    model: str
    seconds: float
    multiply_adds: int
    parameters: int
    memory_mb: float | None
    sees: int


@dataclass(frozen=True)
class SegmentationCosts:
    """The costs of all ways, and the conditions of the measurement; ``size_hw`` is that of the preprocessed image."""

    image: str
    size_hw: tuple[int, int]
    precision: str
    threads: int
    rows: Sequence[Cost]

    def document(self) -> dict[str, Any]:
        """Return the document of ``otus benchmark semantic --json``."""
        return {
            "image": self.image,
            "width": self.size_hw[1],
            "height": self.size_hw[0],
            "weights": "random",
            "categories": len(VOC_WITH_BACKGROUND),
            "precision": self.precision,
            "threads": self.threads,
            "rows": [asdict(row) for row in self.rows],
        }


def measure_segmentation_costs(
    image: UInt8[np.ndarray, "h w 3"],
    *,
    name: str,
    image_size: int = IMAGE_SIZE,
    repeats: int = REPEATS,
    precision: str = "auto",
    report: Report = lambda what, done, total: None,
) -> SegmentationCosts:
    """Measure the costs of :data:`WAYS` on one image.

    Parameters
    ----------
    image, name
        uint8 (H, W, 3) RGB image, and its name.
    image_size
        Longer side in pixels to which the image is resized.
    repeats
        Number of timed forward passes per way, after one warm-up pass.
    precision
        See :class:`~otus.inference.predictor.Predictor`.
    report
        Called with the way, and the numbers of finished and of all ways.
    """
    preprocess = Preprocess(shorter_side=image_size, longer_side=image_size)
    prepared = preprocess.prepare(Sample(image, name))
    size_hw = (prepared["image"].shape[1], prepared["image"].shape[2])
    precision, rows = choose_precision(precision, torch.device("cpu")), []
    for number, (way, (model, arguments)) in enumerate(WAYS.items()):
        report(way, number, len(WAYS))
        torch.manual_seed(0)
        system = build_model(model, VOC_WITH_BACKGROUND, arguments)
        counts: dict[str, int] = {
            "multiply_adds": multiply_adds(system, size_hw),
            "parameters": sum(parameter.numel() for parameter in system.parameters()),
            "sees": receptive_field_px(build_model(model, VOC_WITH_BACKGROUND), min(size_hw)),
        }
        predictor = Predictor(system, preprocess=preprocess, name=model, device="cpu", precision=precision)
        seconds: list[float] = []
        with peak_memory() as used_mb:
            for _ in range(1 + repeats):
                start = time.perf_counter()
                predictor.pipeline.stages(prepared)
                seconds.append(time.perf_counter() - start)
        rows.append(Cost(way, model, statistics.median(seconds[1:]), memory_mb=used_mb(), **counts))
    return SegmentationCosts(name, size_hw, precision, torch.get_num_threads(), rows)


def multiply_adds(system: BaseSystem[Any, Any], size_hw: tuple[int, int]) -> int:
    """Return the number of multiply-adds of a forward pass over one image, counted on the meta device."""
    meta_system = copy.deepcopy(system).eval().to("meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        meta_system(torch.empty(1, 3, *size_hw, device="meta"), torch.tensor([size_hw]))
    return counter.get_total_flops() // 2


def receptive_field_px(system: BaseSystem[Any, Any], limit: int) -> int:
    """Return the side in pixels of the receptive field of a segmenter's central output pixel, at most ``limit``.

    It is the extent of the input pixels with a non-zero gradient, for an image of random noise and the absolute values of
    the weights, so that no ReLU blocks the gradient. Max pooling passes the gradient to one pixel only, so the result may
    be slightly too small.
    """
    image = torch.rand(1, 3, limit, limit, generator=torch.Generator().manual_seed(0), requires_grad=True)
    network: Any = copy.deepcopy(system).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.abs_()
    scores = interpolate(network.head(network.decoder(network.encoder(image))), (limit, limit), mode="bilinear")
    center = scores[0, :, limit // 2, limit // 2]
    (gradient,) = torch.autograd.grad(center.sum(), image)
    rows = torch.nonzero(gradient[0].abs().sum(dim=(0, 2)))
    columns = torch.nonzero(gradient[0].abs().sum(dim=(0, 1)))
    return max(int(indices.max() - indices.min()) + 1 for indices in (rows, columns))
