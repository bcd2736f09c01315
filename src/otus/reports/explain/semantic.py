"""Explain a semantic segmenter on one image: encoder, decoder, class probabilities, confidence, labels, and errors.

JSON and page are made from one record of the forward pass (:class:`~otus.semantic.segmenter.SegmenterStages`); the outputs
of the decoder's upsamplings, which the record does not contain, are recorded by hooks.
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
_SHOWN_SCORES = 6  # categories whose probability is drawn: those with the most pixels
_SHOWN_CONFUSIONS = 5
_BORDER = 3  # distance in pixels to a border between two categories
_LOW_CONFIDENCE = 0.5
_RED, _GREY = (215, 40, 40), (150, 150, 150)
_UPSAMPLINGS = (FixedUpsampling, MaxUnpooling, TransposedConvolution)


@dataclass(frozen=True, eq=False)
class SemanticExplanation(PassExplanation):
    """Stages of a semantic segmenter on one image; see :func:`explain_semantic`.

    Parameters
    ----------
    upsampled
        Name and output of each upsampling of the decoder, in order.
    predicted
        Predicted semantic map of ``image``.
    ground_truth
        Ground truth of the image, with the model's categories; None if it was not given.
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
            "up": [{"map": name, **_map_facts(x)} for name, x in self.decoder_maps],
            "categories": list(self._category_facts()),
            "confidence": {
                "mean": float(best.mean()),
                "least": float(best.min()),
                "unsure_below": _LOW_CONFIDENCE,
                "unsure": float((best < _LOW_CONFIDENCE).mean()),
            },
            "errors": None if self.ground_truth is None else self._error_facts(self.ground_truth),
        }

    @property
    def decoder_maps(self) -> list[tuple[str, Tensor]]:
        """Names and feature maps of ``upsampled``, and the decoder's output, named ``decoded``."""
        return [*self.upsampled, ("decoded", self.record.decoded)]

    @property
    def probabilities(self) -> Float[np.ndarray, "k h w"]:
        """Softmax of the logits at each pixel of the preprocessed image."""
        height, width = self.record.batch.sizes_hw[0]
        return self.record.logits[0, :, :height, :width].softmax(dim=0).cpu().numpy()

    @property
    def wrong(self) -> Bool[np.ndarray, "h w"]:
        """Labelled pixels that are predicted wrongly; none without ground truth."""
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
            "Encoder: feature maps",
            "Coarser maps have larger receptive fields and lower cost. Shown: mean absolute activation over channels.",
            [self._map(x, _size(level)) for x, level in zip(self.record.features, facts["down"], strict=True)],
            facts["down"],
        )
        yield Section(
            "Decoder: feature maps",
            "The output of each upsampling, before the convolutions that follow it, and the decoder's output. If that is "
            "coarser than the image, its logits are interpolated.",
            [
                self._map(x, f"{name.replace('-', ' ')}, {_size(level)}")
                for (name, x), level in zip(self.decoder_maps, facts["up"], strict=True)
            ],
            facts["up"],
        )
        probabilities = self.probabilities
        yield Section(
            "Class probabilities",
            "Softmax of the logits of each pixel, from 0 (dark) to 1 (bright), for the categories predicted most often.",
            [
                Figure.of(
                    colormapped(probabilities[self.system.categories.index(record["category"])], 0.0, 1.0),
                    record["category"],
                    width=_SIDE_BY_SIDE,
                )
                for record in facts["categories"][:_SHOWN_SCORES]
            ],
            [_spaced(record) for record in facts["categories"]],
        )
        confidence = facts["confidence"]
        yield Section(
            "Confidence",
            f"The highest probability of each pixel, dark where it is low: mean {confidence['mean']:.2f}, minimum "
            f"{confidence['least']:.2f}. {confidence['unsure']:.1%} of the pixels are below "
            f"{confidence['unsure_below']:g}.",
            [Figure.of(colormapped(probabilities.max(axis=0), 0.0, 1.0), "the highest probability")],
        )
        yield Section(
            "Prediction",
            "Each pixel is labelled with its most probable category.",
            [Figure.of(draw_semantic(self.image, self.predicted, colours=self._colours()), "the prediction")],
        )
        if self.ground_truth is not None:
            yield self._errors(facts["errors"], self.ground_truth)

    def _errors(self, errors: dict[str, Any], ground_truth: SemanticMap) -> Section:
        image = faded(self.image)
        image[ground_truth.labels == IGNORE] = _GREY
        image[self.wrong] = _RED
        confusions = "; ".join(
            f"{pair['truth']} predicted as {pair['predicted']}, {pair['pixels']:,} pixels"
            for pair in errors["confusions"]
        )
        if not errors["labelled"]:
            return Section("Errors", "No pixel is labelled with a category of the model.")
        return Section(
            "Errors",
            f"mIoU {errors['mIoU']:.3f}; {errors['wrong']:,} of {errors['labelled']:,} labelled pixels are wrong, "
            f"{errors['wrong_near_borders']:,} of them among the {errors['near_borders']:,} pixels that are at most "
            f"{errors['border_pixels']} pixels from a border between two categories."
            + (f" Most frequent: {confusions}." if confusions else ""),
            [
                Figure.of(draw_semantic(self.image, ground_truth, colours=self._colours()), "the ground truth"),
                Figure.of(image, "errors in red, unlabelled pixels in grey"),
            ],
            [_spaced(record) for record in errors["categories"]],
        )

    def _colours(self) -> dict[str, UInt8[np.ndarray, "3"]]:
        """Return the colour of each category of prediction and ground truth, the same in both."""
        maps = [semantic.labels for semantic in (self.predicted, self.ground_truth) if semantic is not None]
        present = np.unique(np.concatenate([labels.ravel() for labels in maps]))
        categories = self.system.categories
        colours = colours_apart([int(label) for label in present if label != IGNORE], len(categories))
        return {categories[label]: colour for label, colour in colours.items()}

    def _map(self, x: Tensor, caption: str) -> Figure:
        return Figure.of(activation_map(x[0], self.unpadded_hw(x)), caption, width=_MAP_WIDTH)

    def _category_facts(self) -> Iterator[dict[str, Any]]:
        """Yield the predicted categories, by descending number of pixels."""
        probabilities = self.probabilities
        labels = probabilities.argmax(axis=0)
        counts = np.bincount(self.predicted.labels.ravel(), minlength=len(probabilities))
        for label in np.argsort(-counts, kind="stable")[: np.count_nonzero(counts)].tolist():
            scores = probabilities[label][labels == label]
            yield {
                "category": self.system.categories[label],
                "pixels": int(counts[label]),
                "share": float(counts[label] / counts.sum()),
                # A category of very few pixels may be predicted on the original image but not on the preprocessed one.
                "mean_score": float(scores.mean()) if len(scores) else None,
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
        uint8 (H, W, 3) RGB image, and its name, for the page.
    ground_truth
        Ground truth of the image, with the model's categories (default: no errors are shown).

    Raises
    ------
    UsageError
        If the model is not a semantic segmenter.
    """
    system = predictor.system
    if not isinstance(system, Segmenter):
        raise UsageError(
            f"{predictor.name} predicts {predictor.task.predicts}; expected a model of the task semantic (otus models "
            "lists them)"
        )
    with _recorded_upsamplings(system.decoder) as upsampled:
        fields = pass_fields(predictor, image, name=name)
    (result,) = system.results(fields["record"])
    predicted = predictor.preprocess.undo(result, (image.shape[0], image.shape[1]))
    return SemanticExplanation(**fields, upsampled=upsampled, predicted=predicted, ground_truth=ground_truth)


def semantic_ground_truth_of(dataset: Dataset, image: str, predictor: Predictor) -> SemanticMap:
    """Return the semantic labels of an image of a data set, with a model's categories, matched by name.

    Raises
    ------
    UsageError
        If the data set has no such image, no semantic labels for it, or none of the categories.
    """
    task, categories = predictor.task, predictor.categories
    index = find_image_index(dataset, image)
    names = task.categories(dataset)
    if not set(names) & set(categories):
        raise UsageError(
            f"{dataset.source}: has none of the model's categories ({', '.join(categories)}), but {', '.join(names)}: "
            "rename them, or use another model"
        )
    truth: SemanticMap | None = task.ground_truth(task.remap(dataset, categories)[index])
    if truth is None:
        raise UsageError(f"{dataset.source}: has no semantic labels of {image}; give other data, or omit --data")
    return truth


@contextmanager
def _recorded_upsamplings(decoder: Any) -> Iterator[list[tuple[str, Tensor]]]:
    """Return a context that records the name and output of each upsampling of a decoder."""
    recorded: list[tuple[str, Tensor]] = []

    def record(module: nn.Module, inputs: object, output: Tensor) -> None:
        recorded.append((_upsampling_name(module), output.detach()))

    upsamplings = [module for module in decoder.modules() if isinstance(module, _UPSAMPLINGS)]
    hooks = [module.register_forward_hook(record) for module in upsamplings]
    try:
        yield recorded
    finally:
        for hook in hooks:
            hook.remove()


def _upsampling_name(upsampling: nn.Module) -> str:
    if isinstance(upsampling, FixedUpsampling):
        return upsampling.kind
    return "max-unpooling" if isinstance(upsampling, MaxUnpooling) else "transposed-convolution"


def _near_borders(labels: np.ndarray) -> Bool[np.ndarray, "h w"]:
    """Return the pixels within ``_BORDER`` pixels of a border between two categories."""
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


def _size(level: dict[str, Any]) -> str:
    return f"{level['width']} x {level['height']}, {level['channels']} channels"
