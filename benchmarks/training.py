"""Pictures a second of training Mask R-CNN: our loop beside torchvision's reference loop, same data, one run.

``python benchmarks/training.py [--model mask_rcnn_resnet50_fpn] [--pictures 8] [--steps 4]``. Made-up scenes of 480x640. The
reference is ``references/detection/engine.py`` of torchvision written out: a DataLoader with two workers, float32, SGD;
its picture size is set to ours. The share of time spent waiting for pictures is shown beside ours.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import torch
import torchvision
from _side_by_side import print_header
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from otus.data.open import open_dataset
from otus.data.scene_files import write_scenes
from otus.data.transforms import HorizontalFlip
from otus.parts.preprocess import Preprocess
from otus.training.devices import start_fabric
from otus.training.feeding import Feed
from otus.training.loop import fit
from otus.training.progress import TrainProgress
from otus.training.settings import make_settings
from otus.training.state import RunState
from otus.zoo.models import build_model

REFERENCES = {
    "mask_rcnn_resnet50_fpn": "maskrcnn_resnet50_fpn",
    "faster_rcnn_resnet50_fpn": "fasterrcnn_resnet50_fpn",
    "faster_rcnn_mobilenet_v3_large_320_fpn": "fasterrcnn_mobilenet_v3_large_320_fpn",
}
SIZE_HW = (480, 640)
BATCH_SIZE = 2


class ReferencePictures(Dataset):
    """The scenes as torchvision's reference scripts feed them."""

    def __init__(self, folder: Path) -> None:
        self.dataset = open_dataset(folder, format="coco")

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


def reference_rate(model: nn.Module, folder: Path, *, steps: int) -> float:
    """Pictures a second of torchvision's ``train_one_epoch``, the first step left out."""
    pictures = ReferencePictures(folder)
    loader = DataLoader(
        pictures,
        batch_size=BATCH_SIZE,
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
    return BATCH_SIZE / statistics.median(times[1 : steps + 1])


class StepTimes(TrainProgress):
    """The time of each step, and what of it was waiting."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.ends: list[float] = []
        self.waited_s = 0.0

    def step(self, state: RunState, losses: Mapping[str, float], *, steps_per_epoch: int, pictures: int) -> None:
        self.ends.append(state.seconds_of_steps)
        self.waited_s = state.waited_s


def our_rate(name: str, folder: Path, preprocess: Preprocess, *, steps: int, precision: str) -> tuple[float, float]:
    """Pictures a second of our loop, the first step left out; and the share of waiting."""
    dataset = open_dataset(folder, format="coco")
    dataset = dataset.select([i % len(dataset) for i in range((steps + 1) * BATCH_SIZE)])
    options = {"batch_size": BATCH_SIZE, "optimizer": "sgd", "learning_rate": 1e-4, "precision": precision}
    settings = make_settings({**options, "epochs": 1, "device": "cpu"})
    times = StepTimes()
    feed = Feed(dataset, preprocess, settings, augment=HorizontalFlip())
    fit(build_model(name, dataset.categories), feed=feed, fabric=start_fabric(settings), progress=times)
    steps_s = [after - before for before, after in zip(times.ends, times.ends[1:], strict=False)]
    return BATCH_SIZE / statistics.median(steps_s), times.waited_s / times.ends[-1]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mask_rcnn_resnet50_fpn", choices=REFERENCES)
    parser.add_argument("--pictures", type=int, default=8)
    parser.add_argument("--steps", type=int, default=4)
    arguments = parser.parse_args()
    print_header(f"Training {arguments.model}, pictures of {SIZE_HW[0]}x{SIZE_HW[1]}", ("torch", "torchvision"))
    preprocess = Preprocess(shorter_side=min(SIZE_HW), longer_side=max(SIZE_HW))
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work) / "scenes"
        write_scenes(folder, arguments.pictures, size_hw=SIZE_HW)
        categories = open_dataset(folder, format="coco").categories
        builder = getattr(torchvision.models.detection, REFERENCES[arguments.model])
        reference = builder(
            weights=None,
            weights_backbone=None,
            num_classes=len(categories) + 1,
            min_size=min(SIZE_HW),
            max_size=max(SIZE_HW),
        )
        theirs = reference_rate(reference, folder, steps=arguments.steps)
        print(f"{'torchvision, float32':24s} {theirs:7.2f} pictures/s")
        for precision in ("32-true", "bf16-mixed"):
            ours, waiting = our_rate(arguments.model, folder, preprocess, steps=arguments.steps, precision=precision)
            ratio = f"{ours / theirs:5.2f} x torchvision, {waiting:.1%} waiting for pictures"
            print(f"{'otus, ' + precision:24s} {ours:7.2f} pictures/s  {ratio}")


if __name__ == "__main__":
    main()
