"""Image classification: what does the image show? The ground on which the first detectors stand.

Shape shorthand: B images, R crops of all images, C categories.

Papers: "ImageNet Classification with Deep Convolutional Neural Networks" (AlexNet: Krizhevsky, Sutskever, Hinton, NeurIPS
2012): convolutions, then two fully connected layers of 4096 and a softmax. "Very Deep Convolutional Networks for Large-Scale
Image Recognition" (VGG: Simonyan and Zisserman, ICLR 2015, arXiv:1409.1556). EfficientNet's own head is one layer over the
mean of the map (:mod:`otus.parts.backbones.efficientnet_lite`).

An image of a folder of categories is learned whole. An image with objects is learned object by object: each box is a crop
with a label, which is what the sliding window and R-CNN ask of the network later, so their backbones can start from
this one.

Departures: the whole image is stretched to a square, and not cut to one; no dropout.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from otus.data.tensors import TensorSample
from otus.errors import ShapeError
from otus.parts.backbones import efficientnet_lite0_backbone, torchvision_backbone
from otus.parts.backbones.freezing import Freezing
from otus.parts.batching import Batch, make_target
from otus.parts.heads.box_head import TwoLayerMLP
from otus.parts.inference_mode import Stopwatch
from otus.parts.losses import zero_loss
from otus.parts.postprocess import Postprocess
from otus.parts.regions.crops import WarpedCrops
from otus.parts.system import BaseSystem, Stages
from otus.parts.tasks import CLASSIFICATION, Task
from otus.structures import Categories, Classification


@dataclass(kw_only=True)
class ClassifierStages(Stages):
    """The record of one pass: the crops of each image that were classified, and the logits of all, image by image.

    A pass that predicts classifies each whole image; one that learns everything that has a label, with its ``labels``.
    """

    crops: list[Float[Tensor, "_ 4"]]
    logits: Float[Tensor, "r c"]
    labels: list[Int[Tensor, "_"]] | None = None

    def scores(self) -> list[Float[Tensor, "_ c"]]:
        """The probability of each category for the crops of each image."""
        return list(self.logits.softmax(dim=1).split_with_sizes([len(crops) for crops in self.crops]))


class ImageClassifier(BaseSystem[ClassifierStages, Classification]):
    """A backbone, a network over its last map, and a softmax over the categories.

    Parameters
    ----------
    region_features
        The backbone, and the size that images and crops are stretched to.
    network
        The backbone's map in, (R, ``in_features``) out.
    in_features
        Length of the vector that the categories are read from.
    categories
        What the labels mean.

    Notes
    -----
    ``losses`` are ``class``: cross-entropy over whole images (where a sample has ``label``) and crops of objects
    (``boxes``).
    """

    def __init__(
        self, region_features: WarpedCrops, network: nn.Module, *, in_features: int, categories: Categories
    ) -> None:
        super().__init__()
        self.region_features = region_features
        self.network = network
        self.cls_score = nn.Linear(in_features, len(categories))
        self.categories = categories

    @property
    def task(self) -> Task:
        """Classification."""
        return CLASSIFICATION

    def target(self, sample: TensorSample) -> tuple[Float[Tensor, "n 4"], Int[Tensor, "n"]]:
        """Return the crops of an image that have a label, and their labels: the whole image, else each object."""
        count = len(self.categories)
        if "label" not in sample:
            target = make_target(sample, category_count=count, device=self.device)
            return target.boxes, target.labels
        label = sample["label"].to(self.device).reshape(1)
        if not 0 <= int(label) < count:
            raise ShapeError(f"sample {sample.get('key', '')}: expected a label 0..{count - 1}, got {int(label)}")
        return _whole(sample, self.device), label

    def results(self, record: ClassifierStages) -> list[Classification]:
        """Return the scores of each whole image, or of the region that its sample names."""
        return [Classification(scores[0].cpu().numpy(), self.categories) for scores in record.scores()]

    def tensors(self, record: ClassifierStages) -> dict[str, Tensor]:
        """Return ``scores`` (B, C)."""
        return {"scores": record.logits.softmax(dim=1)}

    def compute_stages(
        self,
        batch: Batch,
        targets: list[tuple[Tensor, Tensor]] | None,
        *,
        postprocess: Postprocess | None,
        generator: torch.Generator | None,
        watch: Stopwatch,
    ) -> ClassifierStages:
        """Compute the class scores of crops."""
        if targets is None:
            crops = [_whole_or_region(sample, self.device) for sample in batch.samples]
        else:
            crops = [boxes for boxes, _ in targets]
        with watch.time("regions"):
            features = self.region_features.extract([], batch, crops)
            logits = self.cls_score(self.network(features)).float()
        record = ClassifierStages(batch=batch, features=[], milliseconds=watch.milliseconds, crops=crops, logits=logits)
        if targets is not None:
            record.labels = [labels for _, labels in targets]
            nothing = zero_loss(self) + logits.sum()
            record.losses = {"class": F.cross_entropy(logits, torch.cat(record.labels)) if len(logits) else nothing}
        return record


def _whole_or_region(sample: TensorSample, device: torch.device) -> Float[Tensor, "1 4"]:
    """What is looked at of an image to predict on: the ``region`` that its sample names, else all."""
    if "region" not in sample:
        return _whole(sample, device)
    return sample["region"].as_subclass(Tensor).to(device, torch.float32)


def _whole(sample: TensorSample, device: torch.device) -> Float[Tensor, "1 4"]:
    height, width = sample["image"].shape[-2:]
    return torch.tensor([[0.0, 0.0, width, height]], device=device)


def classifier_vgg16(
    categories: Categories,
    *,
    crop_size: int = 224,
    representation_size: int = 4096,
    freezing: Freezing = Freezing(level=0),
) -> ImageClassifier:
    """VGG-16 as in the paper.

    Parameters
    ----------
    crop_size
        Pixels that images and crops are stretched to.
    representation_size
        Numbers in each of the two fully connected layers.
    freezing
        Which weights of the backbone are not trained.
    """
    backbone = torchvision_backbone("vgg16", levels=(5,), freezing=freezing)
    crops = WarpedCrops(backbone, crop_size=crop_size)
    network = TwoLayerMLP(crops.out_features, representation_size)
    return ImageClassifier(crops, network, in_features=representation_size, categories=categories)


def classifier_efficientnet_lite0(
    categories: Categories, *, crop_size: int = 128, freezing: Freezing = Freezing()
) -> ImageClassifier:
    """EfficientNet-Lite0 with its own head: a convolution to 1280 channels, their means, one layer.

    Arguments as of :func:`classifier_vgg16`.
    """
    backbone = efficientnet_lite0_backbone(levels=("head",), freezing=freezing)
    crops = WarpedCrops(backbone, crop_size=crop_size, chunk_size=128)
    network = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return ImageClassifier(crops, network, in_features=backbone.channels[-1], categories=categories)
