"""Explain a panoptic prediction on one image: instances, semantic map, and how they are merged."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import UInt8

from otus.errors import UsageError
from otus.inference.panoptic_pair import PanopticPipeline
from otus.inference.predictor import Predictor
from otus.instance.panoptic import OVERLAP_THRESHOLD, STUFF_AREA_LIMIT, PanopticMerge, record_merge
from otus.instance.panoptic_fpn import PanopticFPN
from otus.reports.page import Figure, Page, Section, numbered
from otus.structures import Instances, SemanticMap
from otus.visualization.drawing import draw_panoptic, draw_semantic, overlay
from otus.visualization.palette import category_colours

ImageArray = UInt8[np.ndarray, "h w 3"]


@dataclass(frozen=True, eq=False)
class PanopticExplanation:
    """Instances and semantic map of a model, or of a pair of models, for one image, and the record of their merge."""

    model: str
    name: str
    image: ImageArray
    instances: Instances
    semantic: SemanticMap
    merge: PanopticMerge
    score_threshold: float

    def document(self) -> dict[str, Any]:
        """Return the members of the JSON document: what ``otus explain panoptic --json`` prints."""
        height, width = self.semantic.size_hw
        ids = self.merge.panoptic.ids
        return {
            "model": self.model,
            "file": self.name,
            "width": width,
            "height": height,
            "score_threshold": self.score_threshold,
            "overlap_threshold": OVERLAP_THRESHOLD,
            "stuff_area_limit": STUFF_AREA_LIMIT,
            "instances": list(self._instances()),
            "semantic": list(self._categories()),
            "segments": [
                {
                    "id": segment.id,
                    "category": self.merge.panoptic.categories[segment.label],
                    "pixels": int(np.count_nonzero(ids == segment.id)),
                }
                for segment in self.merge.panoptic.segments
            ],
            "void_pixels": int(np.count_nonzero(ids == 0)),
        }

    def _instances(self) -> Iterator[dict[str, Any]]:
        """Yield what the merge makes of each instance, by descending score."""
        merge, categories, scores = self.merge, self.instances.categories, self.instances.scores
        assert categories is not None
        assert scores is not None
        for i in np.argsort(-scores, kind="stable").tolist():
            hidden = merge.hidden_pixels[i] / max(int(merge.mask_pixels[i]), 1)
            if merge.instance_ids[i]:
                fate = f"segment {merge.instance_ids[i]}"
            else:
                fate = "removed: hidden by others" if merge.mask_pixels[i] else "removed: its mask is empty"
            yield {
                "category": categories[int(self.instances.labels[i])],
                "score": float(scores[i]),
                "mask_pixels": int(merge.mask_pixels[i]),
                "hidden_share": float(hidden),
                "fate": fate,
            }

    def _categories(self) -> Iterator[dict[str, Any]]:
        """Yield what the merge makes of each category of the semantic map, by descending area."""
        pixels = np.bincount(self.semantic.labels.ravel(), minlength=256)
        stuff = self.merge.panoptic.categories
        for label in np.argsort(-pixels[: len(self.semantic.categories)], kind="stable").tolist():
            if not pixels[label]:
                return
            name = self.semantic.categories[label]
            if self.merge.stuff_ids[label]:
                fate = f"segment {self.merge.stuff_ids[label]}"
            elif name in stuff and not stuff.is_thing[stuff.index(name)]:
                fate = "void: under the area limit" if self.merge.free_pixels[label] else "hidden by instances"
            else:
                fate = "void: a thing, given by instances" if name in stuff else "void: not stuff"
            yield {
                "category": name,
                "pixels": int(pixels[label]),
                "free_pixels": int(self.merge.free_pixels[label]),
                "fate": fate,
            }

    def page(self) -> Page:
        """Return the HTML page."""
        facts = self.document()
        title = f"How {self.model} segments things and stuff in {self.name.rsplit('/', 1)[-1]}"
        segments, void = len(facts["segments"]), facts["void_pixels"] / max(self.semantic.labels.size, 1)
        subtitle = f"{facts['width']} x {facts['height']} pixels; {segments} segments, {void:.0%} void"
        return Page(title, subtitle, tuple(numbered(self._sections(facts))))

    def _sections(self, facts: dict[str, Any]) -> Iterator[Section]:
        num_removed = sum(instance["fate"].startswith("removed") for instance in facts["instances"])
        num_instances, panoptic = len(facts["instances"]), self.merge.panoptic
        names = [*panoptic.categories, *(name for name in self.semantic.categories if name not in panoptic.categories)]
        colours = dict(zip(names, category_colours(len(names)), strict=True))
        yield Section(
            "The image",
            "Instances of things and a semantic map are merged to a map in which each pixel has at most one segment.",
            [Figure.of(self.image, "the image")],
        )
        yield Section(
            "Things: the instances",
            f"{num_instances} instances score above {facts['score_threshold']:g}. Each has a mask, masks may overlap, and "
            "some pixels are in no mask.",
            [Figure.of(overlay(self.image, self.instances, colours=colours), "the instances and their masks")],
        )
        yield Section(
            "Stuff: the semantic map",
            "Each pixel has a category; objects of the same category are not separated.",
            [Figure.of(draw_semantic(self.image, self.semantic, colours=colours), "the category of every pixel")],
        )
        yield Section(
            "Instances are placed first",
            "In order of descending score, each gets the free pixels of its mask. Instances of which more than "
            f"{facts['overlap_threshold']:.0%} is hidden by others are removed: {num_removed} of {num_instances}.",
            rows=[_row(instance) for instance in facts["instances"]],
        )
        yield Section(
            "Stuff fills the remaining pixels",
            "Pixels of things and of background in the semantic map, and stuff categories that cover less than "
            f"{facts['stuff_area_limit']:.1%} of the image, are void.",
            rows=[_row(category) for category in facts["semantic"]],
        )
        yield Section(
            "The panoptic map",
            f"{len(facts['segments'])} segments; each pixel belongs to one of them at most. {facts['void_pixels']:,} pixels "
            "are void, and not coloured.",
            [Figure.of(draw_panoptic(self.image, panoptic, colours=colours), "things by object, stuff by category")],
            rows=facts["segments"],
        )


def explain_panoptic(
    predictor: Predictor, image: ImageArray, *, name: str, score_threshold: float | None = None
) -> PanopticExplanation:
    """Predict on one image, and return instances, semantic map and the record of their merge.

    Parameters
    ----------
    predictor
        A pair of models (``otus.load(…, semantic_model=…)``), or Panoptic FPN.
    image, name
        uint8 (H, W, 3) RGB image, and its name.
    score_threshold
        Minimum score of an instance (default: the model's own).

    Raises
    ------
    UsageError
        If the model does not merge instances and a semantic map.
    """
    pipeline, system, size_hw = predictor.pipeline, predictor.system, (image.shape[0], image.shape[1])
    if not isinstance(pipeline, PanopticPipeline) and not isinstance(system, PanopticFPN):
        raise UsageError(
            f"{predictor.name}: does not merge instances and a semantic map; give --semantic-model beside a model with "
            "masks, or name panoptic_fpn_efficientnet_lite0 with weights"
        )
    prepared, postprocess = predictor.prepare(image, name), predictor.postprocess(score_threshold)
    assert postprocess is not None
    if isinstance(pipeline, PanopticPipeline):
        ((instances, semantic),) = pipeline.predict_separately([prepared], [size_hw], postprocess=postprocess)
    else:
        record: Any = pipeline.stages(prepared, postprocess=postprocess)
        ((instances, semantic),) = (parts.at(size_hw) for parts in system.results(record))
    merge, threshold = record_merge(instances, semantic, categories=predictor.categories), postprocess.score_threshold
    return PanopticExplanation(predictor.name, name, image, instances, semantic, merge, threshold)


def _row(record: dict[str, Any]) -> dict[str, Any]:
    return {
        name.replace("_", " "): f"{value:.0%}" if name.endswith("share") else value for name, value in record.items()
    }
