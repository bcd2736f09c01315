"""Explain a semantic segmenter on one image: maps down and up, class scores, confidence, the labels, and where it errs.

JSON and page are made from one record of the pass (:class:`~otus.semantic.segmenter.SegmenterStages`); the maps on the way
up, which the record does not keep, are watched while it is made.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Bool, Float, UInt8
from scipy.ndimage import distance_transform_edt
from torch import Tensor, nn

from otus.data.dataset import Dataset
from otus.data.image_lookup import find_image_index
from otus.errors import UsageError
from otus.inference.predictor import Predictor
from otus.metrics.semantic import SemanticQuality
from otus.parts.upsampling import FixedUpsampling, MaxUnpooling, TransposedConvolution
from otus.reports.explain.explanation import ImageArray, PassExplanation, pass_fields
from otus.reports.explain.figures import activation_map, colormapped, faded
from otus.reports.page import Figure, Page, Section, numbered
from otus.semantic.segmenter import Segmenter, SegmenterStages
from otus.structures import IGNORE, SemanticMap
from otus.visualization.drawing import draw_semantic
from otus.visualization.palette import colours_apart

_SIDE_BY_SIDE = 300  # CSS pixels
_MAP_WIDTH = 220
_SHOWN_SCORES = 6  # categories whose probability is drawn, those of the most pixels
_SHOWN_CONFUSIONS = 5
_BORDER = 3  # pixels from a border between two categories
_UNSURE = 0.5
_RED, _GREY = (215, 40, 40), (150, 150, 150)
_WAYS_UP = (FixedUpsampling, MaxUnpooling, TransposedConvolution)


@dataclass(frozen=True, eq=False)
class SemanticExplanation(PassExplanation):
    """Stages of a semantic segmenter on one image; see :func:`explain_semantic`.

    Parameters
    ----------
    upsampled
        The name of each way up of the decoder, in its order, and the map that it gave.
    predicted
        The label of each pixel of ``image``.
    ground_truth
        The image's labels, with the model's categories; None if they were not given.
    """

    does: ClassVar[str] = "labels the pixels of"

    record: SegmenterStages
    upsampled: list[tuple[str, Tensor]]
    predicted: SemanticMap
    ground_truth: SemanticMap | None

    def document(self) -> dict[str, Any]:
        """Return the members of the JSON document: what ``otus explain semantic --json`` prints."""
        record, probabilities = self.record, self.probabilities
        best = probabilities.max(axis=0)
        return self.facts() | {
            "down": [_map_facts(x) for x in record.features],
            "up": [{"map": name, **_map_facts(x)} for name, x in self.way_up],
            "categories": list(self._category_facts()),
            "confidence": {
                "mean": float(best.mean()),
                "least": float(best.min()),
                "unsure_below": _UNSURE,
                "unsure": float((best < _UNSURE).mean()),
            },
            "errors": None if self.ground_truth is None else self._error_facts(self.ground_truth),
        }

    @property
    def way_up(self) -> list[tuple[str, Tensor]]:
        """The maps of ``upsampled``, and the decoder's last, called ``decoded``."""
        return [*self.upsampled, ("decoded", self.record.decoded)]

    @property
    def probabilities(self) -> Float[np.ndarray, "k h w"]:
        """Softmax of the scores at each pixel of the prepared image."""
        height, width = self.record.batch.sizes_hw[0]
        return self.record.logits[0, :, :height, :width].softmax(dim=0).cpu().numpy()

    @property
    def wrong(self) -> Bool[np.ndarray, "h w"]:
        """The labelled pixels whose label is another; none without ground truth."""
        if self.ground_truth is None:
            return np.zeros(self.size_hw, dtype=bool)
        truth = self.ground_truth.labels
        return (truth != IGNORE) & (truth != self.predicted.labels)

    def page(self) -> Page:
        """Return the HTML page."""
        facts = self.document()
        return self.page_of(facts, numbered(self._sections(facts)))

    def _sections(self, facts: dict[str, Any]) -> Iterator[Section]:
        yield Section("The image", "", [Figure.of(self.image, self.name.rsplit("/", 1)[-1])])
        yield Section(
            "Down: the encoder's maps",
            "Each coarser map sees further and costs less. Shown: mean absolute activation over channels.",
            [self._map(x, _size(one)) for x, one in zip(self.record.features, facts["down"], strict=True)],
            facts["down"],
        )
        yield Section(
            "Up: the decoder's maps",
            "After each way up, before the convolutions that follow it; and the decoder's last map, whose scores are "
            "interpolated to the image where it is coarser.",
            [
                self._map(x, f"{name.replace('-', ' ')}, {_size(one)}")
                for (name, x), one in zip(self.way_up, facts["up"], strict=True)
            ],
            facts["up"],
        )
        probabilities = self.probabilities
        yield Section(
            "Class scores",
            "Softmax of the scores of each pixel, from 0 (dark) to 1 (bright), of the categories that most pixels get.",
            [
                Figure.of(
                    colormapped(probabilities[self.system.categories.index(one["category"])], 0.0, 1.0),
                    one["category"],
                    width=_SIDE_BY_SIDE,
                )
                for one in facts["categories"][:_SHOWN_SCORES]
            ],
            [_spaced(one) for one in facts["categories"]],
        )
        confidence = facts["confidence"]
        yield Section(
            "Confidence",
            f"The highest score of each pixel, dark where it is low: {confidence['mean']:.2f} in the mean, "
            f"{confidence['least']:.2f} at least. {confidence['unsure']:.1%} of the pixels are below "
            f"{confidence['unsure_below']:g}.",
            [Figure.of(colormapped(probabilities.max(axis=0), 0.0, 1.0), "the highest score")],
        )
        yield Section(
            "The labels",
            "Each pixel gets the category of its highest score.",
            [Figure.of(draw_semantic(self.image, self.predicted, colours=self._colours()), "the prediction")],
        )
        if self.ground_truth is not None:
            yield self._errors(facts["errors"], self.ground_truth)

    def _errors(self, errors: dict[str, Any], ground_truth: SemanticMap) -> Section:
        image = faded(self.image)
        image[ground_truth.labels == IGNORE] = _GREY
        image[self.wrong] = _RED
        confusions = "; ".join(
            f"{one['truth']} taken for {one['predicted']}, {one['pixels']:,} pixels" for one in errors["confusions"]
        )
        if not errors["labelled"]:
            return Section("Where it errs", "Nothing can be said: no pixel is labelled with a category of the model.")
        return Section(
            "Where it errs",
            f"mIoU {errors['mIoU']:.3f}; {errors['wrong']:,} of {errors['labelled']:,} labelled pixels are wrong, "
            f"{errors['wrong_near_borders']:,} of them at most {errors['border_pixels']} pixels from a border between two "
            f"categories, where {errors['near_borders']:,} pixels lie."
            + (f" Most often: {confusions}." if confusions else ""),
            [
                Figure.of(draw_semantic(self.image, ground_truth, colours=self._colours()), "the ground truth"),
                Figure.of(image, "wrong in red, not labelled in grey"),
            ],
            [_spaced(one) for one in errors["categories"]],
        )

    def _colours(self) -> dict[str, UInt8[np.ndarray, "3"]]:
        """Return the colour of each category of prediction and ground truth, the same in both."""
        labels = [one.labels for one in (self.predicted, self.ground_truth) if one is not None]
        present = np.unique(np.concatenate([one.ravel() for one in labels]))
        categories = self.system.categories
        shades = colours_apart([int(label) for label in present if label != IGNORE], len(categories))
        return {categories[label]: shade for label, shade in shades.items()}

    def _map(self, x: Tensor, caption: str) -> Figure:
        return Figure.of(activation_map(x[0], self.unpadded_hw(x)), caption, width=_MAP_WIDTH)

    def _category_facts(self) -> Iterator[dict[str, Any]]:
        """Yield the categories that occur in the prediction, those of the most pixels first."""
        probabilities = self.probabilities
        labels = probabilities.argmax(axis=0)
        counts = np.bincount(self.predicted.labels.ravel(), minlength=len(probabilities))
        for label in np.argsort(-counts, kind="stable")[: np.count_nonzero(counts)].tolist():
            own = probabilities[label][labels == label]
            yield {
                "category": self.system.categories[label],
                "pixels": int(counts[label]),
                "share": float(counts[label] / counts.sum()),
                # A category of a pixel or two can be lost or found between the prepared image and the original.
                "mean_score": float(own.mean()) if len(own) else None,
            }

    def _error_facts(self, ground_truth: SemanticMap) -> dict[str, Any]:
        categories = self.system.categories
        result = SemanticQuality(categories).update(ground_truth, self.predicted).compute()
        wrong, truth = self.wrong, ground_truth.labels
        near = _near_borders(truth) & (truth != IGNORE)
        pairs, counts = np.unique(np.stack([truth[wrong], self.predicted.labels[wrong]]), axis=1, return_counts=True)
        order = np.argsort(-counts, kind="stable")[:_SHOWN_CONFUSIONS]
        return {
            "mIoU": result.figures["mIoU"],
            "labelled": int((truth != IGNORE).sum()),
            "wrong": int(wrong.sum()),
            "border_pixels": _BORDER,
            "near_borders": int(near.sum()),
            "wrong_near_borders": int((wrong & near).sum()),
            "confusions": [
                {
                    "truth": categories[int(pairs[0, i])],
                    "predicted": categories[int(pairs[1, i])],
                    "pixels": int(counts[i]),
                }
                for i in order
            ],
            "categories": [
                {
                    "category": name,
                    "pixels": int((truth == label).sum()),
                    "right": int(((truth == label) & (self.predicted.labels == label)).sum()),
                    "IoU": result.per_category[name]["IoU"],
                }
                for label, name in enumerate(categories)
                if (truth == label).any()
            ],
        }


def explain_semantic(
    predictor: Predictor, image: ImageArray, *, name: str, ground_truth: SemanticMap | None = None
) -> SemanticExplanation:
    """Run a semantic segmenter on one image and return its stages.

    Parameters
    ----------
    predictor
        Predictor of a :class:`~otus.semantic.segmenter.Segmenter`.
    image, name
        uint8 (H, W, 3) RGB, and its name, for the page.
    ground_truth
        Labels of the image, with the model's categories, to show where it errs (default: none are shown).

    Raises
    ------
    UsageError
        If the model is another one.
    """
    system = predictor.system
    if not isinstance(system, Segmenter):
        raise UsageError(
            f"{predictor.name} predicts {predictor.task.predicts}; expected a model of the task semantic (otus models "
            "lists them)"
        )
    with _watching_ways_up(system.decoder) as upsampled:
        fields = pass_fields(predictor, image, name=name)
    (result,) = system.results(fields["record"])
    predicted = predictor.preprocess.undo(result, (image.shape[0], image.shape[1]))
    return SemanticExplanation(**fields, upsampled=upsampled, predicted=predicted, ground_truth=ground_truth)


def semantic_ground_truth_of(dataset: Dataset, image: str, predictor: Predictor) -> SemanticMap:
    """Return the semantic labels of an image of a data set, with a model's categories, matched by name.

    Raises
    ------
    UsageError
        If the data set has no such image, no semantic labels of it, or none of the categories.
    """
    task, categories = predictor.task, predictor.categories
    index = find_image_index(dataset, image)
    own = task.categories(dataset)
    if not set(own) & set(categories):
        raise UsageError(
            f"{dataset.source}: has none of the model's categories ({', '.join(categories)}), but {', '.join(own)}: "
            "rename them, or use another model"
        )
    truth: SemanticMap | None = task.ground_truth(task.remap(dataset, categories)[index])
    if truth is None:
        raise UsageError(f"{dataset.source}: has no semantic labels of {image}; give other data, or leave --data out")
    return truth


@contextmanager
def _watching_ways_up(decoder: Any) -> Iterator[list[tuple[str, Tensor]]]:
    """Keep the name and the map of each way up of a decoder, while it runs."""
    seen: list[tuple[str, Tensor]] = []

    def keep(module: nn.Module, given: object, fine: Tensor) -> None:
        seen.append((_name_of(module), fine.detach()))

    ways_up = [module for module in decoder.modules() if isinstance(module, _WAYS_UP)]
    hooks = [module.register_forward_hook(keep) for module in ways_up]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def _name_of(way_up: nn.Module) -> str:
    if isinstance(way_up, FixedUpsampling):
        return way_up.kind
    return "max-unpooling" if isinstance(way_up, MaxUnpooling) else "transposed-convolution"


def _near_borders(labels: np.ndarray) -> Bool[np.ndarray, "h w"]:
    """Return the pixels at most ``_BORDER`` pixels from one whose neighbour to the right or below is of another category."""
    edge = np.zeros(labels.shape, dtype=bool)
    for first, second in ((np.s_[:, :-1], np.s_[:, 1:]), (np.s_[:-1], np.s_[1:])):
        differ = (labels[first] != labels[second]) & (labels[first] != IGNORE) & (labels[second] != IGNORE)
        edge[first] |= differ
        edge[second] |= differ
    if not edge.any():
        return edge
    near: Bool[np.ndarray, "h w"] = distance_transform_edt(~edge) <= _BORDER
    return near


def _map_facts(x: Tensor) -> dict[str, int]:
    return {"width": x.shape[-1], "height": x.shape[-2], "channels": x.shape[1]}


def _spaced(record: dict[str, Any]) -> dict[str, Any]:
    return {name.replace("_", " "): "" if value is None else value for name, value in record.items()}


def _size(one: dict[str, Any]) -> str:
    return f"{one['width']} x {one['height']}, {one['channels']} channels"
