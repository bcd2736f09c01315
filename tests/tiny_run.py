"""A tiny detector and synthetic scenes, the minimum that the training loop needs.

As a script it trains the detector, so that tests can kill the process: ``tiny_run.py FOLDER SCENES OPTIONS``.
"""

import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from otus.data.dataset import Dataset, Images
from otus.data.image_writing import write_image
from otus.data.scenes.generator import THING_CATEGORIES, Scenes
from otus.data.tensors import TensorSample
from otus.data.transforms.augmentation import ColorJitter, Compose, HorizontalFlip
from otus.parts.batching import make_batch
from otus.parts.inference_mode import Stopwatch
from otus.parts.preprocess import Preprocess
from otus.parts.system import BaseSystem, Stages
from otus.structures import Categories, Instances, Objects, Segmentations
from otus.training.devices import start_fabric
from otus.training.loop import TrainResult, fit
from otus.training.run_folder import RunFolder
from otus.training.settings import TrainSettings
from otus.training.state import RunState
from otus.training.train_loader import TrainLoader
from otus.training.validation import Validator
from otus.zoo.checkpoint import CheckpointHeader

PREPROCESS = Preprocess(shorter_side=32, longer_side=64)
AUGMENT = Compose([HorizontalFlip(), ColorJitter()])


class TinyDetector(BaseSystem):
    """Predict one box and one category per image from pooled features; with batch norm, dropout and random sampling."""

    postprocess = None

    def __init__(self, categories: Categories = THING_CATEGORIES) -> None:
        super().__init__()
        self.categories = categories
        self.backbone = nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.1)
        )
        self.mask_head = nn.Linear(8, 1)
        self.head = nn.Linear(8, 4 + len(categories))
        self.dtypes: list[torch.dtype] = []

    def features(self, samples: Sequence[TensorSample]) -> tuple[Tensor, list[tuple[int, int]]]:
        batch = make_batch(samples, size_divisor=8, device=self.head.weight.device)
        maps = self.backbone(batch.images)
        if torch.is_grad_enabled():
            self.dtypes.append(maps.dtype)
        return maps.float().mean(dim=(2, 3)), list(batch.sizes_hw)

    def losses(self, samples: Sequence[TensorSample], *, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        features, sizes = self.features(samples)
        outputs = self.head(features)
        box_losses, class_losses = [outputs.sum() * 0], [outputs.sum() * 0]
        for output, sample, (height, width) in zip(outputs, samples, sizes, strict=True):
            if len(sample["labels"]):
                index = int(torch.randint(len(sample["labels"]), (), generator=generator))
                target = sample["boxes"][index].as_subclass(Tensor) / torch.tensor([width, height, width, height])
                box_losses.append(F.l1_loss(output[:4], target))
                class_losses.append(F.cross_entropy(output[4:], sample["labels"][index]))
        losses = {"box": torch.stack(box_losses).mean(), "class": torch.stack(class_losses).mean()}
        if all("masks" in sample for sample in samples):
            losses["mask"] = F.mse_loss(self.mask_head(features), torch.full((len(samples), 1), 0.3))
        return losses

    @torch.no_grad()
    def predict(self, samples: Sequence[TensorSample], *, postprocess: None = None) -> list[Instances]:
        was_training = self.training
        self.eval()
        features, sizes = self.features(samples)
        outputs = self.head(features)
        self.train(was_training)
        return [self._instances(output, size_hw) for output, size_hw in zip(outputs, sizes, strict=True)]

    def stages(self, samples: Sequence[TensorSample], *, postprocess: None = None) -> Stages:
        watch = Stopwatch(self.device)
        with watch.time("network"):
            self.predict(samples)
        batch = make_batch(samples, size_divisor=8, device=self.device)
        return Stages(batch=batch, features=[], milliseconds=watch.milliseconds)

    def _instances(self, output: Tensor, size_hw: tuple[int, int]) -> Instances:
        """Return a grid of boxes, some of which match by chance; only the scores depend on the weights."""
        height, width = size_hw
        side = torch.tensor([0.25, 0.4]).repeat(64)
        x, y = ((torch.arange(128) // step % 8) * 0.1 for step in (2, 16))
        boxes = torch.stack([x, y, x + side, y + side], dim=1) * torch.tensor([width, height, width, height])
        labels = torch.arange(128) % len(self.categories)
        scores = (output[4:].softmax(0)[labels] + 0.1 * output[:4].sigmoid()[torch.arange(128) % 4]).clamp(0, 1)
        return Instances(boxes.numpy(), labels.numpy(), size_hw, self.categories, scores=scores.numpy())


def write_scenes(folder: Path, count: int, *, seed: int = 0) -> Dataset:
    """Write synthetic scenes to files, and return them as a data set with masks."""
    files, outlines = [], []
    objects: dict[str, list[Any]] = {"image_index": [], "labels": [], "boxes_xyxy": []}
    sizes = [(48, 64) if i % 3 else (64, 48) for i in range(count)]
    for i, size_hw in enumerate(sizes):
        sample = Scenes(count, size_hw=size_hw, seed=seed, max_objects=3)[i]
        files.append(f"{i:03d}.png")
        write_image(folder / files[-1], sample.image)
        outlines += [outline["counts"] for outline in sample.instances.masks.rle()]
        objects["image_index"] += [i] * len(sample.instances)
        objects["labels"] += sample.instances.labels.tolist()
        objects["boxes_xyxy"] += sample.instances.boxes_xyxy.tolist()
    return Dataset(
        source=folder,
        format="scenes",
        images=Images(folder, tuple(files), sizes, tuple(range(count))),
        categories=THING_CATEGORIES,
        objects=Objects.build(**objects, segmentations=Segmentations.build(outlines)),
    )


def tiny_detector() -> TinyDetector:
    """Return a detector with the same weights each time."""
    torch.manual_seed(0)
    return TinyDetector()


def run(
    system: nn.Module,
    dataset: Dataset,
    folder: Path | None = None,
    *,
    validation: Dataset | None = None,
    resume: bool = False,
    **options: Any,
) -> TrainResult:
    """Train with augmentation, and with validation and checkpoints if given."""
    settings = TrainSettings(
        **{"epochs": 3, "batch_size": 4, "learning_rate": 0.01, "warm_up_steps": 3, "device": "cpu"} | options
    )
    fabric = start_fabric(settings)
    return fit(
        system,
        loader=TrainLoader(
            dataset, PREPROCESS, settings, augment=AUGMENT, rank=fabric.global_rank, world_size=fabric.world_size
        ),
        fabric=fabric,
        validate=None if validation is None else Validator(validation, PREPROCESS, fabric),
        folder=None if folder is None else RunFolder(folder, CheckpointHeader()),
        resume=resume,
    )


def interrupt_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Send SIGINT (Ctrl-C) to this process after that step."""
    record_step = RunState.record_step

    def record_and_interrupt(state: RunState, *arguments: Any, **options: Any) -> None:
        record_step(state, *arguments, **options)
        if state.step == step:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(RunState, "record_step", record_and_interrupt)


def main(folder: str, scenes: str, options: str) -> None:
    """Train on 12 scenes in this process, which may be one of several; options as JSON."""
    torch.set_num_threads(1)
    dataset = write_scenes(Path(scenes), 12)
    system = tiny_detector()
    result = run(system, dataset, Path(folder), validation=dataset.select(range(11)), **json.loads(options))
    (Path(folder) / f"dtypes{os.environ.get('LOCAL_RANK', 0)}.json").write_text(
        json.dumps(sorted({*map(str, system.dtypes)}))
    )
    sys.exit(130 if result.ended == "interrupted" else 0)


if __name__ == "__main__":
    main(*sys.argv[1:])
