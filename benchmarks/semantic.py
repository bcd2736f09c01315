"""Semantic segmenters, Otus, torchvision and segmentation-models-pytorch, with the same weights or backbone, in one run.

``python benchmarks/semantic.py [--repeats N] [--side PIXELS] [--data CAMVID --minutes M]``. FCN over ResNet-50 on an image
of 520x520, with the same random weights as torchvision's, whose logits must agree; time and memory of U-Nets over ResNet-18;
and with ``--data``, a data set with the splits train and val, the mIoU of both U-Nets after the same minutes in the same
training loop.

Runs of the tools alternate. CPU seconds are printed in addition to seconds, because they depend less on other programs.
"""

import argparse
import gc
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from _side_by_side import print_header, print_table
from torch import Tensor, nn
from torchvision.models import segmentation

import otus
from otus.experiments.compare import peak_memory
from otus.inference.predictor import Predictor
from otus.parts.backbones import torchvision_backbone
from otus.parts.preprocess import Preprocess
from otus.parts.upsampling import Pooled
from otus.semantic.encoders import BackboneEncoder
from otus.semantic.segmenter import Segmenter
from otus.semantic.unet import UNetDecoder
from otus.structures import Categories
from otus.training.run import train
from otus.training.settings import TrainSettings
from otus.zoo.models import build_model
from otus.zoo.torchvision_segmentation_checkpoints import read_torchvision_segmenter
from otus.zoo.voc import VOC_WITH_BACKGROUND

try:
    import segmentation_models_pytorch as smp
except ImportError:
    smp = None

_SETTINGS = {"learning_rate": 1e-3, "batch_size": 4, "device": "cpu"}


def alternating(
    functions: dict[str, Callable[[], object]], *, repeats: int
) -> tuple[dict[str, float], dict[str, float]]:
    """Return the median seconds and CPU seconds of each function, called in turn, after a warm-up call of each."""
    wall: dict[str, list[float]] = {name: [] for name in functions}
    cpu: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(repeats + 1):
        for name, function in functions.items():
            before = time.perf_counter(), time.process_time()
            function()
            wall[name].append(time.perf_counter() - before[0])
            cpu[name].append(time.process_time() - before[1])
    seconds, cpu_seconds = (
        {name: statistics.median(times[1:]) for name, times in by_name.items()} for by_name in (wall, cpu)
    )
    return seconds, cpu_seconds


def measure(functions: dict[str, Callable[[], object]], title: str, *, ours: str, repeats: int) -> None:
    """Print the time, CPU time and memory of each function."""
    seconds, cpu_seconds = alternating(functions, repeats=repeats)
    print_table(f"{title}, seconds", {**seconds}, ours=ours)
    print_table(f"{title}, CPU seconds", {**cpu_seconds}, ours=ours)
    memory: dict[str, float | None] = {}
    for name, function in functions.items():
        gc.collect()
        with peak_memory() as used:
            function()
        memory[name] = used()
    print_table(f"{title}, memory of a forward pass", memory, ours=ours, unit="MB")


@torch.inference_mode()
def beside_torchvision(side: int, *, repeats: int) -> None:
    """Compare FCN over ResNet-50 with torchvision's, with the same random weights."""
    torch.manual_seed(0)
    theirs = segmentation.fcn_resnet50(weights=None, weights_backbone=None, num_classes=21, aux_loss=True).eval()
    system = build_model("fcn_resnet50", VOC_WITH_BACKGROUND)
    system.load_state_dict(read_torchvision_segmenter(theirs.state_dict()).state)
    predictors = {
        f"otus {precision}": Predictor(
            build_like(system), preprocess=Preprocess(), name="fcn_resnet50", device="cpu", precision=precision
        )
        for precision in ("exact", "float32")
    }
    image = torch.rand(3, side, side)
    functions: dict[str, Callable[[], object]] = {"torchvision": lambda: theirs(image[None])["out"].argmax(dim=1)}
    for name, predictor in predictors.items():
        functions[name] = lambda predictor=predictor: predictor.pipeline.predict([{"image": image}], [(side, side)])
    expected = theirs(image[None])["out"]
    for name, predictor in predictors.items():
        logits = predictor.pipeline.stages({"image": image}).logits  # type: ignore[attr-defined]
        difference = (logits - expected).abs().max()
        print(f"{name}: logits differ from torchvision's by up to {difference:.1e} of {expected.abs().max():.2g}")
    measure(functions, f"fcn_resnet50, {side} x {side}", ours="otus float32", repeats=repeats)


def build_like(system: Any) -> Any:
    """Return a copy with the same weights, because a predictor changes its system."""
    copy = build_model("fcn_resnet50", system.categories)
    copy.load_state_dict(system.state_dict())
    return copy


def our_unet(categories: Categories) -> Segmenter:
    """Build a U-Net with the widths of segmentation-models-pytorch's, except for the last step, which is interpolated."""
    encoder = BackboneEncoder(torchvision_backbone("resnet18", levels=(1, 2, 3, 4, 5)))
    decoder = UNetDecoder(encoder, (256, 128, 64, 32), upsampling="nearest")
    return Segmenter(categories=categories, encoder=encoder, decoder=decoder)


class TheirEncoder(nn.Module):
    """The encoder of segmentation-models-pytorch, for use in :class:`Segmenter`."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.channels = self.fine_channels = tuple(model.encoder.out_channels)

    @property
    def min_size(self) -> int:
        """32: one location of the coarsest feature map."""
        return 32

    def forward(self, images: Tensor) -> list[Pooled]:
        """Return its feature maps as levels."""
        return [Pooled(x, images) for x in self.model.encoder(images)]


class TheirDecoder(nn.Module):
    """The decoder of segmentation-models-pytorch, for use in :class:`Segmenter`."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.decoder = model.decoder
        self.out_channels = 16

    def forward(self, levels: list[Pooled]) -> Tensor:
        """Return its last feature map."""
        return self.decoder([level.map for level in levels])


def their_unet(categories: Categories) -> Segmenter:
    """Build segmentation-models-pytorch's U-Net as a :class:`Segmenter`, so that both are trained and evaluated alike."""
    model = smp.Unet("resnet18", encoder_weights=None, classes=len(categories))
    system = Segmenter(
        categories=categories, encoder=TheirEncoder(model), decoder=TheirDecoder(model), head=model.segmentation_head
    )
    system.size_divisor = 32
    return system


@torch.inference_mode()
def beside_smp(side: int, *, repeats: int) -> None:
    """Compare time and memory of U-Nets over ResNet-18."""
    torch.manual_seed(0)
    side = side // 32 * 32
    image = torch.rand(1, 3, side, side)
    theirs = smp.Unet("resnet18", encoder_weights=None, classes=21).eval()
    functions: dict[str, Callable[[], object]] = {
        "segmentation-models-pytorch": lambda: theirs(image).argmax(dim=1),
    }
    for precision in ("exact", "float32"):
        predictor = Predictor(
            our_unet(VOC_WITH_BACKGROUND), preprocess=Preprocess(), name="unet", device="cpu", precision=precision
        )
        functions[f"otus {precision}"] = lambda predictor=predictor: predictor.pipeline.predict(
            [{"image": image[0]}], [(side, side)]
        )
    measure(functions, f"U-Net over ResNet-18, {side} x {side}", ours="otus float32", repeats=repeats)


def accuracy(data: str, *, minutes: float, image_size: int = 160) -> None:
    """Compare the mIoU of both U-Nets after the same minutes of training."""
    figures: dict[str, float | None] = {}
    categories = otus.open_dataset(data, split="val").semantic.categories
    preprocess = Preprocess(shorter_side=image_size, longer_side=image_size)
    for name, build in (("otus", our_unet), ("segmentation-models-pytorch", their_unet)):
        torch.manual_seed(0)
        settings = TrainSettings(minutes=minutes, **_SETTINGS)
        system = build(categories)
        with tempfile.TemporaryDirectory() as folder:
            train(system, data, split="train", preprocess=preprocess, settings=settings, out=Path(folder), quiet=True)
        predictor = Predictor(system, preprocess=preprocess, name=name, device="cpu")
        report = otus.evaluate(otus.open_dataset(data, split="val"), model=predictor)
        figures[name] = report.results["semantic"].figures["mIoU"]
    print_table(f"mIoU on {data} val after {minutes:g} minutes", figures, unit="")


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--side", type=int, default=520)
    parser.add_argument("--data")
    parser.add_argument("--minutes", type=float, default=5.0)
    arguments = parser.parse_args()
    packages = ("torch", "torchvision", "segmentation_models_pytorch")
    print_header(f"Segmenters side by side, {torch.get_num_threads()} threads", packages)
    beside_torchvision(arguments.side, repeats=arguments.repeats)
    if smp is None:
        return
    beside_smp(arguments.side, repeats=arguments.repeats)
    if arguments.data:
        accuracy(arguments.data, minutes=arguments.minutes)


if __name__ == "__main__":
    main()
