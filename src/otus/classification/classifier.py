"""Image classification: a backbone and a softmax over the categories, on which the first detectors are built.

Shape shorthand: B images, R crops of all images, C categories.

Papers: "ImageNet Classification with Deep Convolutional Neural Networks" (AlexNet: Krizhevsky, Sutskever, Hinton,
NeurIPS 2012): convolutions, then two fully connected layers of 4096 and a softmax. "Very Deep Convolutional Networks
for Large-Scale Image Recognition" (VGG: Simonyan and Zisserman, ICLR 2015, arXiv:1409.1556). EfficientNet's own head is
one linear layer after global average pooling (:mod:`otus.parts.backbones.efficientnet_lite`).

A sample with a ``label`` is trained on as a whole image. A sample with objects is trained on as one labelled crop per
box; the sliding window and R-CNN classify such crops too, so their backbones can be initialised from this classifier.

Departures: the whole image is resized to a square, without cropping; no dropout.
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
    """The record of one pass: the crops of each image, and the logits of all crops, in the order of the images.

    In inference, the only crop of an image is the whole image, or its ``region``. In training, the crops are those with
    a label, and ``labels`` are their labels.
    """

    crops: list[Float[Tensor, "_ 4"]]
    logits: Float[Tensor, "r c"]
    labels: list[Int[Tensor, "_"]] | None = None

    def scores(self) -> list[Float[Tensor, "_ c"]]:
        """Return the class probabilities of the crops of each image."""
        return list(self.logits.softmax(dim=1).split_with_sizes([len(crops) for crops in self.crops]))


class ImageClassifier(BaseSystem[ClassifierStages, Classification]):
    """A backbone, a network over its last feature map, and a softmax over the categories.

    Parameters
    ----------
    region_features
        The backbone, and the size that images and crops are resized to.
    network
        Maps the backbone's last feature map to (R, ``in_features``).
    in_features
        Input features of the final linear layer.
    categories
        Names of the labels.

    Notes
    -----
    ``losses`` has ``class``: cross-entropy over whole images (of samples with ``label``) and object crops (of samples
    with ``boxes``).
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
        """Return the crops of an image and their labels: the whole image if it has a label, else each object."""
        count = len(self.categories)
        if "label" not in sample:
            target = make_target(sample, category_count=count, device=self.device)
            return target.boxes, target.labels
        label = sample["label"].to(self.device).reshape(1)
        if not 0 <= int(label) < count:
            raise ShapeError(f"sample {sample.get('key', '')}: expected a label 0..{count - 1}, got {int(label)}")
        return _image_box(sample, self.device), label

    def results(self, record: ClassifierStages) -> list[Classification]:
        """Return the scores of each whole image, or of the ``region`` of its sample."""
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
            crops = [_inference_crop(sample, self.device) for sample in batch.samples]
        else:
            crops = [boxes for boxes, _ in targets]
        with watch.time("regions"):
            features = self.region_features.extract([], batch, crops)
            logits = self.cls_score(self.network(features)).float()
        record = ClassifierStages(batch=batch, features=[], milliseconds=watch.milliseconds, crops=crops, logits=logits)
        if targets is not None:
            record.labels = [labels for _, labels in targets]
            zero = zero_loss(self) + logits.sum()
            record.losses = {"class": F.cross_entropy(logits, torch.cat(record.labels)) if len(logits) else zero}
        return record


def _inference_crop(sample: TensorSample, device: torch.device) -> Float[Tensor, "1 4"]:
    """Return the crop to classify in inference: the ``region`` of the sample, else the whole image."""
    if "region" not in sample:
        return _image_box(sample, device)
    return sample["region"].as_subclass(Tensor).to(device, torch.float32)


def _image_box(sample: TensorSample, device: torch.device) -> Float[Tensor, "1 4"]:
    height, width = sample["image"].shape[-2:]
    return torch.tensor([[0.0, 0.0, width, height]], device=device)


def classifier_vgg16(
    categories: Categories,
    *,
    crop_size: int = 224,
    representation_size: int = 4096,
    freezing: Freezing = Freezing(level=0),
) -> ImageClassifier:
    """Build the classifier over VGG-16, as in the paper.

    Parameters
    ----------
    crop_size
        Side in pixels that images and crops are resized to.
    representation_size
        Output features of each of the two fully connected layers.
    freezing
        Which weights of the backbone are frozen.
    """
    backbone = torchvision_backbone("vgg16", levels=(5,), freezing=freezing)
    crops = WarpedCrops(backbone, crop_size=crop_size)
    network = TwoLayerMLP(crops.out_features, representation_size)
    return ImageClassifier(crops, network, in_features=representation_size, categories=categories)


def classifier_efficientnet_lite0(
    categories: Categories, *, crop_size: int = 128, freezing: Freezing = Freezing()
) -> ImageClassifier:
    """Build the classifier over EfficientNet-Lite0: a convolution to 1280 channels, average pooling, a linear layer.

    See :func:`classifier_vgg16` for the parameters.
    """
    backbone = efficientnet_lite0_backbone(levels=("head",), freezing=freezing)
    crops = WarpedCrops(backbone, crop_size=crop_size, chunk_size=128)
    network = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return ImageClassifier(crops, network, in_features=backbone.channels[-1], categories=categories)
