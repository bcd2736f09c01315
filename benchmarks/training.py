"""Training speed in images per second, Otus and torchvision's reference loop, on the same data, in one run.

``python benchmarks/training.py [--models NAME …] [--images 16] [--steps 4] [--data FOLDER]``. Data are synthetic scenes, or
a COCO data set with masks. The reference follows ``references/detection/engine.py`` of torchvision: a DataLoader with two
workers, float32, SGD, and torchvision's detector of the same architecture and image size. Otus runs in float32 and in
bfloat16, with the packaged model as in its recipe (AdamW, augmentation, five scales, EMA). The share of time that it waits
for images is printed too.

Finally the packaged model as trained by ``otus train``, on crowded scenes: sixty images of forty small objects with masks.
"""

import argparse
import statistics
import tempfile
import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
import torchvision
from _side_by_side import print_header
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNN, MaskRCNNHeads, MaskRCNNPredictor
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from otus.data.dataset import Dataset as LabelledImages
from otus.data.open import open_dataset
from otus.data.scenes.files import write_scenes
from otus.data.transforms.augmentation import HorizontalFlip, Transform
from otus.experiments.recipes import packaged_detector
from otus.parts.backbones import efficientnet_lite0_backbone, freeze_norms, freeze_stages
from otus.parts.precision import runs_bfloat16
from otus.parts.preprocess import Preprocess
from otus.training.devices import start_fabric
from otus.training.loop import fit
from otus.training.progress import TrainProgress
from otus.training.run import STANDARD_AUGMENTATION
from otus.training.settings import TrainSettings
from otus.training.state import RunState
from otus.training.train_loader import TrainLoader
from otus.zoo.models import build_model, model_entry

PACKAGED = "mask_rcnn_efficientnet_lite0_fpn"
REFERENCES = {
    "mask_rcnn_resnet50_fpn": "maskrcnn_resnet50_fpn",
    "faster_rcnn_resnet50_fpn": "fasterrcnn_resnet50_fpn",
    "faster_rcnn_mobilenet_v3_large_320_fpn": "fasterrcnn_mobilenet_v3_large_320_fpn",
}
SIZE_HW = (480, 640)
PRECISIONS = ("32-true", "bf16-mixed") if runs_bfloat16() else ("32-true",)


class ReferenceImages(Dataset):
    """A data set in the format of torchvision's reference scripts."""

    def __init__(self, dataset: LabelledImages) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Tensor]]:
        sample = self.dataset[index]
        assert sample.instances is not None
        assert sample.instances.masks is not None
        return torch.from_numpy(sample.image.copy()).permute(2, 0, 1).float() / 255, {
            "boxes": torch.from_numpy(sample.instances.boxes_xyxy).float(),
            "labels": torch.from_numpy(sample.instances.labels) + 1,
            "masks": torch.from_numpy(sample.instances.masks.dense()).byte(),
        }


class ReferencePyramid(nn.Module):
    """The packaged model's backbone with torchvision's feature pyramid."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.backbone = efficientnet_lite0_backbone(levels=(3, 4, 5))
        freeze_norms(self.backbone)
        freeze_stages(self.backbone, 2)
        self.pyramid = FeaturePyramidNetwork(self.backbone.channels, channels, extra_blocks=LastLevelMaxPool())
        self.out_channels = channels

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return self.pyramid(OrderedDict((str(i), feature) for i, feature in enumerate(self.backbone(x))))


def reference_model(name: str, num_classes: int, *, size_hw: tuple[int, int]) -> nn.Module:
    """Return torchvision's detector of the same architecture, with random weights; ``num_classes`` include background."""
    sizes = {"min_size": min(size_hw), "max_size": max(size_hw)}
    if name != PACKAGED:
        builder = getattr(torchvision.models.detection, REFERENCES[name])
        return builder(weights=None, weights_backbone=None, num_classes=num_classes, **sizes)
    channels, levels = 96, ["0", "1", "2"]
    return MaskRCNN(
        ReferencePyramid(channels),
        rpn_anchor_generator=AnchorGenerator(((20, 30), (45, 65), (95, 135), (190, 270)), ((0.5, 1.0, 2.0),) * 4),
        rpn_pre_nms_top_n_train=600,
        rpn_post_nms_top_n_train=300,
        box_roi_pool=MultiScaleRoIAlign(levels, 7, 2, canonical_scale=96),
        box_head=TwoMLPHead(channels * 7**2, 512),
        box_predictor=FastRCNNPredictor(512, num_classes),
        box_batch_size_per_image=128,
        mask_roi_pool=MultiScaleRoIAlign(levels, 14, 2, canonical_scale=96),
        mask_head=MaskRCNNHeads(channels, (channels,) * 4, 1),
        mask_predictor=MaskRCNNPredictor(channels, channels, num_classes),
        **sizes,
    )


def reference_rate(model: nn.Module, dataset: LabelledImages, *, batch_size: int, steps: int) -> float:
    """Return the images per second of torchvision's ``train_one_epoch``, without the first step."""
    loader = DataLoader(
        ReferenceImages(dataset),
        batch_size=batch_size,
        num_workers=2,
        shuffle=True,
        collate_fn=lambda batch: tuple(zip(*batch)),  # noqa: B905
    )
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-4, momentum=0.9)
    model.train()
    times = []
    clock = time.perf_counter()
    while len(times) <= steps:
        for images, targets in loader:
            losses = model(list(images), list(targets))
            optimizer.zero_grad()
            sum(losses.values()).backward()
            optimizer.step()
            times.append(time.perf_counter() - clock)
            clock = time.perf_counter()
    return batch_size / statistics.median(times[1 : steps + 1])


class StepTimes(TrainProgress):
    """Record the time at the end of each step, and the time spent waiting for images."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.ends: list[float] = []
        self.waited_s = 0.0

    def step(self, state: RunState, losses: Mapping[str, float], *, steps_per_epoch: int, images: int) -> None:
        self.ends.append(state.seconds_of_steps)
        self.waited_s = state.waited_s


def our_rate(
    name: str,
    dataset: LabelledImages,
    preprocess: Preprocess,
    settings: TrainSettings,
    augment: Transform,
    *,
    steps: int,
) -> tuple[float, float]:
    """Return the images per second of Otus' loop, without the first step, and the share of time spent waiting."""
    dataset = dataset.select([i % len(dataset) for i in range((steps + 1) * settings.batch_size)])
    times = StepTimes()
    loader = TrainLoader(dataset, preprocess, settings, augment=augment)
    fit(build_model(name, dataset.categories), loader=loader, fabric=start_fabric(settings), progress=times)
    steps_s = [after - before for before, after in zip(times.ends, times.ends[1:], strict=False)]
    return settings.batch_size / statistics.median(steps_s), times.waited_s / times.ends[-1]


def compare(name: str, dataset: LabelledImages, *, steps: int) -> None:
    """Measure one model and print the results."""
    one_epoch = {"epochs": 1, "device": "cpu", "minutes": None}
    if name == PACKAGED:
        settings = replace(packaged_detector.SETTINGS, **one_epoch)
        augment: Transform = packaged_detector.MODELS[name].augment
        size_hw = (model_entry(name).preprocess.shorter_side, model_entry(name).preprocess.longer_side)
    else:
        settings = TrainSettings(batch_size=2, optimizer="sgd", learning_rate=1e-4, **one_epoch)
        augment, size_hw = HorizontalFlip(), SIZE_HW
    print(f"## {name}, {min(size_hw)} to {max(size_hw)} pixels, batches of {settings.batch_size}")
    reference = reference_model(name, len(dataset.categories) + 1, size_hw=size_hw)
    theirs = reference_rate(reference, dataset, batch_size=settings.batch_size, steps=steps)
    print(f"{'torchvision, float32':24s} {theirs:7.2f} images/s", flush=True)
    preprocess = Preprocess(shorter_side=min(size_hw), longer_side=max(size_hw))
    for precision in PRECISIONS:
        ours, waiting = our_rate(
            name, dataset, preprocess, replace(settings, precision=precision), augment, steps=steps
        )
        ratio = f"{ours / theirs:5.2f} x torchvision, {waiting:.1%} waiting for images"
        print(f"{'otus, ' + precision:24s} {ours:7.2f} images/s  {ratio}", flush=True)


def crowded(folder: Path, *, steps: int) -> None:
    """Measure the packaged model on images with many small objects, and print the results."""
    write_scenes(folder, 60, size_hw=SIZE_HW, min_objects=40, max_objects=40, object_sizes=(0.035, 0.09))
    dataset = open_dataset(folder, format="coco")
    preprocess = Preprocess(shorter_side=448, longer_side=448)
    settings = TrainSettings(epochs=1, batch_size=8, device="cpu")
    ours, waiting = our_rate(PACKAGED, dataset, preprocess, settings, STANDARD_AUGMENTATION, steps=steps)
    print(f"## {PACKAGED}, forty small objects per image, 448 pixels, batches of 8")
    print(f"{'otus, 32-true':24s} {ours:7.2f} images/s  {waiting:.1%} waiting for images", flush=True)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=[PACKAGED, "mask_rcnn_resnet50_fpn"])
    parser.add_argument("--data", type=Path, help="a COCO data set with masks (default: synthetic scenes)")
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--steps", type=int, default=4)
    arguments = parser.parse_args()
    print_header("Training", ("torch", "torchvision"))
    with tempfile.TemporaryDirectory() as work:
        if arguments.data is None:
            write_scenes(Path(work) / "scenes", arguments.images, size_hw=SIZE_HW)
        dataset = open_dataset(arguments.data or Path(work) / "scenes", format="coco")
        for name in arguments.models:
            compare(name, dataset.select(range(min(arguments.images, len(dataset)))), steps=arguments.steps)
        crowded(Path(work) / "crowded", steps=arguments.steps)


if __name__ == "__main__":
    main()
