"""Pictures of a run for people: what the network is shown, and what it finds on pictures that it is not."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from otus.data.dataset import Dataset
from otus.data.tensors import TensorSample
from otus.parts.preprocess import Preprocess
from otus.reports.drawing import draw
from otus.structures import Categories, Instances, Masks

_TILE = 320
_SHOWN_SCORE = 0.3


def draw_batch(
    samples: Sequence[TensorSample], *, preprocess: Preprocess, categories: Categories
) -> UInt8[np.ndarray, "h w 3"]:
    """The pictures of a batch as the network gets them, with their targets."""
    return _mosaic([draw(_pixels(sample["image"], preprocess), _target(sample, categories)) for sample in samples])


def draw_found(dataset: Dataset, found: Mapping[int, Instances], *, count: int = 9) -> UInt8[np.ndarray, "h w 3"]:
    """Some pictures of a data set with what was found on them."""
    indices = np.unique(np.linspace(0, len(dataset) - 1, min(count, len(dataset))).round().astype(int)).tolist()
    return _mosaic([draw(dataset.image(i), _certain(found[i])) for i in indices])


def _certain(found: Instances) -> Instances:
    return found if found.scores is None else found[found.scores >= _SHOWN_SCORE]


def _pixels(image: Tensor, preprocess: Preprocess) -> UInt8[np.ndarray, "h w 3"]:
    plain = image.as_subclass(Tensor)
    mean, std = plain.new_tensor(preprocess.mean), plain.new_tensor(preprocess.std)
    seen = (plain * std[:, None, None] + mean[:, None, None]).clamp(0, 1) * 255
    return seen.round().byte().permute(1, 2, 0).contiguous().numpy()


def _target(sample: TensorSample, categories: Categories) -> Instances:
    masks = sample.get("masks")
    size_hw = (sample["image"].shape[1], sample["image"].shape[2])
    if "label" in sample:  # of the picture as a whole
        whole, label = np.array([[0, 0, size_hw[1], size_hw[0]]]), np.array([int(sample["label"])])
        return Instances(whole, label, size_hw, categories)
    if "boxes" not in sample:
        return Instances.empty(size_hw, categories)
    return Instances(
        sample["boxes"].as_subclass(Tensor).numpy(),
        sample["labels"].numpy(),
        size_hw,
        categories,
        masks=None if masks is None else Masks.from_dense(masks.as_subclass(Tensor).numpy()),
        columns={"is_crowd": sample["is_crowd"].numpy()},
    )


def _mosaic(pictures: Sequence[np.ndarray]) -> UInt8[np.ndarray, "h w 3"]:
    """Pictures side by side on white, each within a square."""
    columns = math.ceil(math.sqrt(len(pictures)))
    rows = math.ceil(len(pictures) / columns)
    sheet = Image.new("RGB", (columns * _TILE, rows * _TILE), "white")
    for number, picture in enumerate(pictures):
        tile = Image.fromarray(picture)
        tile.thumbnail((_TILE, _TILE))
        sheet.paste(tile, (number % columns * _TILE, number // columns * _TILE))
    return np.asarray(sheet)
