"""Images of a run for people: what the network is shown, and what it finds on images that it is not."""

from collections.abc import Mapping, Sequence
from pathlib import PurePath

import numpy as np
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from otus.data.dataset import Dataset
from otus.data.tensors import TensorSample
from otus.inference.predictor import SCORE_THRESHOLD
from otus.parts.preprocess import Preprocess
from otus.structures import Categories, Instances, Masks
from otus.visualization.drawing import draw, object_legend
from otus.visualization.panels import mosaic

_BEST = 3  # of an image on which nothing is certain
_LONGER_SIDE = 480  # of an image in a mosaic
Drawn = tuple[UInt8[np.ndarray, "h w 3"], Instances]


def draw_batch(
    samples: Sequence[TensorSample], *, preprocess: Preprocess, categories: Categories
) -> UInt8[np.ndarray, "h w 3"]:
    """The images of a batch as the network gets them, with their targets."""
    shown = [_small(_pixels(sample["image"], preprocess), _target(sample, categories)) for sample in samples]
    return mosaic(
        [("", [draw(*one, labels=False)]) for one in shown],
        object_legend([target for _, target in shown], counts=False),
    )


def draw_predictions(dataset: Dataset, found: Mapping[int, Instances], *, count: int = 9) -> UInt8[np.ndarray, "h w 3"]:
    """Some images of a data set, their labels on the left and on the right what was found."""
    indices = np.unique(np.linspace(0, len(dataset) - 1, min(count, len(dataset))).round().astype(int)).tolist()
    tiles, shown = [], []
    for index in indices:
        sample = dataset[index]
        labels = sample.instances or Instances.empty(sample.size_hw, dataset.categories)
        predictions, which = _shown(found[index])
        pair = [_small(sample.image, one) for one in (labels, predictions)]
        shown += [one for _, one in pair]
        caption = f"{PurePath(sample.key).name}: labels | {which}"
        tiles.append((caption, [draw(*one, labels=False) for one in pair]))
    return mosaic(tiles, object_legend(shown, counts=False))


def _small(image: UInt8[np.ndarray, "h w 3"], objects: Instances) -> Drawn:
    """An image and its objects at the size of a tile, so that lines are as wide on large images as on small ones."""
    scale = _LONGER_SIDE / max(objects.size_hw)
    height, width = (max(1, round(side * scale)) for side in objects.size_hw)
    pixels = Image.fromarray(image).resize((width, height), Image.Resampling.LANCZOS)
    return np.asarray(pixels), objects.resized((height, width))


def _shown(found: Instances) -> tuple[Instances, str]:
    """What ``otus predict`` would draw, else the best few: all that a weak model finds hides the image; and which it is."""
    if found.scores is None:
        return found, "predictions"
    certain = found[found.scores >= SCORE_THRESHOLD]
    if len(certain) or not len(found):
        return certain, f"predictions, score ≥ {SCORE_THRESHOLD}"
    best = found[np.argsort(-found.scores, kind="stable")[:_BEST]]
    assert best.scores is not None
    return best, f"best {len(best)}, score ≤ {best.scores[0]:.2f}"


def _pixels(image: Tensor, preprocess: Preprocess) -> UInt8[np.ndarray, "h w 3"]:
    plain = image.as_subclass(Tensor)
    mean, std = plain.new_tensor(preprocess.mean), plain.new_tensor(preprocess.std)
    seen = (plain * std[:, None, None] + mean[:, None, None]).clamp(0, 1) * 255
    return seen.round().byte().permute(1, 2, 0).contiguous().numpy()


def _target(sample: TensorSample, categories: Categories) -> Instances:
    masks = sample.get("masks")
    size_hw = (sample["image"].shape[1], sample["image"].shape[2])
    if "label" in sample:  # of the image as a whole
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
