"""Explain GraphCut on one image: marks, geodesic distances, colour models, edges and cut, as images."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt8

from otus.interactive.graph_cut import COST_UNIT, CutRound, GraphCut, GridEmbedding, edge_costs, reduced_marks
from otus.interactive.mask_files import as_instances, candidate_records
from otus.reports.page import Figure, Page, Section, numbered
from otus.structures import MaskCandidates, Prompt
from otus.structures.prompt import UNMARKED
from otus.visualization.drawing import draw
from otus.visualization.palette import category_colours

ImageArray = UInt8[np.ndarray, "h w 3"]
_RED, _BLUE = np.array([205, 60, 40]), np.array([40, 90, 200])
_STRIP_HW = (60, 480)


@dataclass(frozen=True, eq=False)
class GraphCutExplanation:
    """The intermediate results of GraphCut for one prompt; see :func:`explain_graph_cut`."""

    name: str
    image: ImageArray
    method: GraphCut
    embedding: GridEmbedding
    objects: Int[np.ndarray, "n"]
    marks: Int[np.ndarray, "h0 w0"]
    rounds: tuple[CutRound, ...]
    candidates: MaskCandidates

    def document(self) -> dict[str, Any]:
        """Return the members of the JSON document: what ``otus explain graph-cut --json`` prints."""
        height, width = self.embedding.size_hw
        costs = edge_costs(self.embedding.squared_differences, self.method.smoothness) / COST_UNIT
        return {
            "file": self.name,
            "width": width,
            "height": height,
            "grid": [self.embedding.grid_hw[1], self.embedding.grid_hw[0]],
            "marks": {
                self._label_name(label): int((self.marks == label).sum()) for label in range(len(self.objects) + 1)
            },
            "edges": {"smoothness": self.method.smoothness, "mean_cost": float(costs[:2].mean())},
            "rounds": [
                {self._label_name(label): int((cut.labels == label).sum()) for label in range(len(self.objects) + 1)}
                for cut in self.rounds
            ],
            "candidates": candidate_records(self.candidates),
        }

    def page(self) -> Page:
        """Return the HTML page."""
        facts = self.document()
        areas = ", ".join(
            f"object {candidate['object']} {candidate['area']:,} pixels" for candidate in facts["candidates"]
        )
        return Page(
            f"GraphCut: {self.name}",
            f"{facts['width']} x {facts['height']} pixels; {areas}",
            tuple(numbered(self._sections(facts))),
        )

    def _sections(self, facts: dict[str, Any]) -> Iterator[Section]:
        method, last = self.method, self.rounds[-1]
        marks = "; ".join(f"{name}: {count:,} pixels" for name, count in facts["marks"].items())
        grid = f"{facts['grid'][0]} x {facts['grid'][1]}"
        yield Section(
            "The image and the marks", marks, [Figure.of(self._marked(), "marks are hard constraints of the cut")]
        )
        yield Section(
            "Location",
            f"Geodesic distances on a grid of {grid}, in which colour differences have weight {method.color_distance:g}. "
            "The term compares the distances to the marks of this object and to all others: red is nearer to this object, "
            "blue to another. The image's border counts as background, at an additional distance of "
            f"{method.border_handicap:.0%} of the longer side.",
            [Figure.of(_diverging(last.location_terms[k], 1), self._label_name(k)) for k in self._displayed_labels()],
        )
        first = self.rounds[0]
        yield Section(
            "Colour models",
            "A histogram of 16 x 16 x 16 bins in CIE L*a*b* for each label, fitted to the pixels nearest to its marks. The "
            "strips show the colours of these pixels, from dark to bright; width is proportional to weight.",
            [Figure.of(self._strip(first.weights[k]), self._label_name(k)) for k in range(len(self.objects) + 1)],
        )
        yield Section(
            "Colour",
            "Log-likelihood ratio of each pixel's colour on this object and beside it, limited to "
            f"±{method.max_color:g}.",
            [
                Figure.of(_diverging(cut.color_terms[k], method.max_color), f"round {number}, {self._label_name(k)}")
                for number, cut in enumerate(self.rounds, start=1)
                for k in self._displayed_labels()
            ],
        )
        costs = edge_costs(self.embedding.squared_differences, method.smoothness)[:2].min(axis=0) / COST_UNIT
        yield Section(
            "Edges",
            f"Boundary term: the cost of cutting an edge is {method.smoothness:g} between equal colours, and lower where "
            f"colours differ (dark). The mean is {facts['edges']['mean_cost']:.2f}.",
            [Figure.of(_grey(costs / method.smoothness), "the lower cost of the edges to the right and down")],
        )
        yield Section(
            "Region term",
            f"The sum of both terms, {method.color:g} times colour plus {method.location:g} times location: how much a "
            "pixel favours the object.",
            [
                Figure.of(
                    _diverging(last.region_terms[k], method.max_color * method.color + method.location),
                    self._label_name(k),
                )
                for k in self._displayed_labels()
            ],
        )
        yield Section(
            "The cut",
            "The minimum cut, computed by maximum flow; colour models are then fitted to the mask, and the cut is repeated: "
            f"{len(self.rounds)} rounds. Components of the mask without a mark are removed.",
            [Figure.of(self._labels(cut.labels), f"round {number}") for number, cut in enumerate(self.rounds, start=1)]
            + [Figure.of(draw(self.image, as_instances(self.candidates)), "the masks")],
            [
                {"object": candidate["object"], "pixels": candidate["area"], "score": round(candidate["score"], 3)}
                for candidate in facts["candidates"]
            ],
        )

    def _displayed_labels(self) -> range:
        return range(1, len(self.objects) + 1)

    def _label_name(self, label: int) -> str:
        return "background" if label == 0 else f"object {self.objects[label - 1]}"

    def _colors(self) -> UInt8[np.ndarray, "c 3"]:
        return np.concatenate([np.array([[20, 20, 20]], np.uint8), category_colours(len(self.objects))])

    def _marked(self) -> ImageArray:
        image = (self.image.astype(np.float32) * 0.6 + 100).clip(0, 255).astype(np.uint8)
        is_marked = self.marks != UNMARKED
        image[is_marked] = self._colors()[self.marks[is_marked]]
        return image

    def _labels(self, labels: Int[np.ndarray, "h w"]) -> ImageArray:
        return self._colors()[labels]

    def _strip(self, weights: Float[np.ndarray, "h w"]) -> ImageArray:
        """Draw the colours of the grid's pixels, sorted by lightness, with widths proportional to their weights."""
        factor = self.embedding.factor
        colors = self.image[factor // 2 :: factor, factor // 2 :: factor]
        weights = weights[: colors.shape[0], : colors.shape[1]].ravel()
        colors = colors[: self.embedding.grid_hw[0], : self.embedding.grid_hw[1]].reshape(-1, 3)
        order = np.argsort(colors @ np.array([0.299, 0.587, 0.114]), kind="stable")
        cumulative = np.cumsum(weights[order])
        steps = (np.arange(_STRIP_HW[0] * _STRIP_HW[1]) + 0.5) / (_STRIP_HW[0] * _STRIP_HW[1]) * cumulative[-1]
        pixels = order[np.minimum(np.searchsorted(cumulative, steps), len(order) - 1)]
        return np.ascontiguousarray(colors[pixels].reshape((*_STRIP_HW[::-1], 3)).transpose(1, 0, 2))


def explain_graph_cut(
    image: ImageArray, prompt: Prompt, *, name: str, method: GraphCut | None = None
) -> GraphCutExplanation:
    """Segment an image by GraphCut, and return the intermediate results.

    Raises
    ------
    UsageError, ShapeError
        As :meth:`~otus.interactive.graph_cut.GraphCut.segment`.
    """
    method = method or GraphCut()
    embedding = method.embed(image)
    objects, marks = method.marks(embedding, prompt)
    rounds = tuple(method.cut_rounds(embedding, reduced_marks(marks, embedding.factor), len(objects) + 1))
    candidates = method.segment(embedding, prompt)
    return GraphCutExplanation(name, image, method, embedding, objects, marks, rounds, candidates)


def _diverging(values: Float[np.ndarray, "h w"], limit: float) -> ImageArray:
    """Draw values with a diverging colormap: blue for -limit, white for 0, red for limit."""
    normalised = np.clip(values / limit, -1, 1)[..., None]
    colours = np.where(normalised > 0, _RED, _BLUE)
    return (255 + np.abs(normalised) * (colours - 255)).astype(np.uint8)


def _grey(values: Float[np.ndarray, "h w"]) -> ImageArray:
    return np.repeat((np.clip(values, 0, 1) * 255).astype(np.uint8)[..., None], 3, axis=2)
