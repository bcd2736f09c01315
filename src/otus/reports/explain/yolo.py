"""How YOLO came to its answer on one image: the grid, its boxes and classes, and who is responsible for what.

Which cells are responsible is a question of training: it is answered for labels where there are some, else for what was
found, as if it were so.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw

from otus.detection.single_stage.yolo import GridAssignment, YOLOStages
from otus.inference.predictor import Predictor
from otus.reports.explain.one_pass import Explained, ImageArray, prepared_target, run
from otus.reports.explain.pieces import coloured, counts_by_category, covered_part, faded, heat, table_row
from otus.reports.page import Figure, Page, Section
from otus.structures import Instances
from otus.visualization.drawing import draw
from otus.visualization.lettering import line_width
from otus.visualization.palette import category_colours

_BROAD = 460  # CSS pixels
_LISTED = 20
_HIGHEST = 4  # times as high as broad: what is higher is shown narrower


@dataclass(frozen=True, eq=False)
class YoloExplanation(Explained):
    """The record of one pass, with the image that it is about. Made by :func:`explain_yolo`.

    ``objects`` are those that ``assignment`` is about: the labels, or what was found.
    """

    record: YOLOStages
    objects: Instances
    assignment: GridAssignment

    def document(self) -> dict[str, Any]:
        """All figures of the page, and more of them: what ``otus explain detection --json`` prints."""
        system, record = self.system, self.record
        of_boxes, classes = system.split(record.output[0])
        boxes = self.boxes(record.boxes[0].flatten(0, 2)).reshape(
            system.grid_size, system.grid_size, system.boxes_per_cell, 4
        )
        best, label = classes.max(dim=2)
        cells = [
            {
                "row": row,
                "column": column,
                "category": system.categories[int(label[row, column])],
                "class_score": float(best[row, column]),
                "confidences": of_boxes[row, column, :, 4].tolist(),
                "boxes_xyxy": boxes[row, column].tolist(),
            }
            for row in range(system.grid_size)
            for column in range(system.grid_size)
        ]
        return self.facts() | {
            "grid": {"side": system.grid_size, "boxes": system.boxes_per_cell, "numbers": record.output.shape[-1]},
            "cells": cells,
            "truth": "detections" if self.truth is None else "labels",
            "responsible": self._responsible(cells),
            "objects_lost": self.assignment.unassigned[0],
            "before_nms": list(self._with_cells(self.before, record.candidates[0].origins)),
            "detections": list(self._with_cells(self.found, record.detections[0].origins)),
        }

    def page(self) -> Page:
        """The stages as one HTML page."""
        facts = self.document()
        return self.page_of(facts, self._sections(facts))

    def _sections(self, facts: dict[str, Any]) -> Iterator[Section]:
        grid, cells = facts["grid"], facts["cells"]
        side, count = grid["side"], grid["boxes"]
        yield Section("The image", "", [Figure.of(self.image, self.name)])
        x = self.record.features[-1]
        covered = covered_part((x.shape[-2], x.shape[-1]), self.record.batch.sizes_hw[0], self.record.batch.padded_hw)
        yield Section(
            "1. The grid",
            f"The whole image goes through the backbone once and becomes {side} x {side} cells of {grid['numbers']} numbers: "
            f"{count} boxes of five (dx, dy, dh, dw, confidence) and {len(self.system.categories)} class scores.",
            [
                Figure.of(self._with_grid(self.image), f"{side} x {side} cells", width=_BROAD),
                Figure.of(
                    self._shaped(heat(x[0], covered)), f"the map before: {x.shape[-1]} x {x.shape[-2]}", width=_BROAD
                ),
            ],
        )
        confidences = np.array([one["confidences"] for one in cells]).max(axis=1).reshape(side, side)
        best = max(cells, key=lambda one: max(one["confidences"]))
        yield Section(
            "2. Boxes and confidences",
            f"Each cell says {count} boxes, which may reach far beyond it, drawn the thicker the surer it is that there is "
            f"an object: {len(cells) * count} in all. The best is sure by {max(best['confidences']):.2f}.",
            [
                Figure.of(self._all_boxes(cells), "boxes by confidence", width=_BROAD),
                Figure.of(
                    self._shaped(coloured(confidences, 0, 1)), "the best confidence of each cell, 0 to 1", width=_BROAD
                ),
            ],
        )
        yield Section(
            "3. The class map",
            "Each cell names the category that its object would have, if it had one; the stronger the colour, the surer. "
            "What is reported is this times the confidence, both cut to 0 to 1.",
            [Figure.of(self._class_map(cells), "the likeliest category of each cell", width=_BROAD)],
            self._named(cells),
        )
        told = "the labels" if facts["truth"] == "labels" else "what was found, as if it were the truth"
        lost = facts["objects_lost"]
        yield Section(
            "4. Which cells are responsible",
            f"By {told}: the cell that holds an object's centre learns it, and of its boxes the one that overlaps the "
            f"object most. {lost} {'object shares' if lost == 1 else 'objects share'} a cell with a larger one and would "
            "not be learned.",
            [Figure.of(self._responsible_image(facts), "objects, their centres and their cells", width=_BROAD)],
            [table_row(one) for one in facts["responsible"]],
        )
        yield Section(
            "5. Scores before suppression",
            f"{len(facts['before_nms'])} pairs of box and category score above {facts['score_threshold']:g}.",
            [Figure.of(draw(faded(self.image), self.before, labels=False), "before suppression", width=_BROAD)],
            counts_by_category(facts["before_nms"]),
        )
        yield Section(
            "6. Detections",
            f"Of boxes of one category that overlap by more than {facts['nms_iou']} (IoU) the best stays, "
            f"of an image at most {facts['max_detections']}: {len(facts['detections'])}.",
            [Figure.of(draw(self.image, self.found), "the boxes that stay")],
            [table_row(one) for one in facts["detections"][:_LISTED]],
        )

    def _responsible(self, cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
        one = self.assignment
        index, iou = self.system.responsible(self.record.output, one)
        rows = []
        for i in range(len(one.labels)):
            row, column, box = int(one.row[i]), int(one.column[i]), int(index[i])
            cell = cells[row * self.system.grid_size + column]
            rows.append(
                {
                    "category": self.system.categories[int(one.labels[i])],
                    "row": row,
                    "column": column,
                    "box_of_cell": box,
                    "iou": float(iou[i]),
                    "confidence": cell["confidences"][box],
                    "box_xyxy": cell["boxes_xyxy"][box],
                }
            )
        return rows

    def _with_cells(self, instances: Instances, regions: torch.Tensor) -> Iterator[dict[str, Any]]:
        """Objects, best first, each with its cell and which of the cell's boxes it is."""
        assert instances.scores is not None
        for i in np.argsort(-instances.scores, kind="stable"):
            cell, box = divmod(int(regions[i]), self.system.boxes_per_cell)
            yield {
                "category": self.system.categories[int(instances.labels[i])],
                "score": float(instances.scores[i]),
                "box_xyxy": instances.boxes_xyxy[i].tolist(),
                "row": cell // self.system.grid_size,
                "column": cell % self.system.grid_size,
                "box_of_cell": box,
            }

    def _named(self, cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
        ordered = sorted(cells, key=lambda one: -one["class_score"])
        return [
            {"category": one["category"], "cells": one["boxes"], "best score": one["best score"]}
            for one in counts_by_category([one | {"score": one["class_score"]} for one in ordered])
        ]

    def _shaped(self, cells: ImageArray) -> ImageArray:
        """Cells as broad and high as they are on the image, which is prepared as a square."""
        height, width = self.size_hw
        scale = cells.shape[1] / width if height <= _HIGHEST * width else _HIGHEST * cells.shape[1] / height
        size_wh = (max(1, round(width * scale)), max(1, round(height * scale)))
        return np.asarray(Image.fromarray(cells).resize(size_wh, Image.Resampling.NEAREST))

    def _edges(self, cell: dict[str, Any]) -> tuple[float, float, float, float]:
        height, width = self.size_hw
        step_x, step_y = width / self.system.grid_size, height / self.system.grid_size
        left, top = cell["column"] * step_x, cell["row"] * step_y
        return left, top, left + step_x, top + step_y

    def _with_grid(self, image: ImageArray) -> ImageArray:
        canvas = Image.fromarray(image)
        pen, width = ImageDraw.Draw(canvas), max(1, int(line_width(self.size_hw)) // 2)
        height_px, width_px = self.size_hw
        for i in range(1, self.system.grid_size):
            x, y = width_px * i / self.system.grid_size, height_px * i / self.system.grid_size
            pen.line([x, 0, x, height_px], fill=(255, 255, 255), width=width)
            pen.line([0, y, width_px, y], fill=(255, 255, 255), width=width)
        return np.asarray(canvas)

    def _all_boxes(self, cells: list[dict[str, Any]]) -> ImageArray:
        canvas = Image.fromarray(faded(self.image))
        pen, thickest = ImageDraw.Draw(canvas), 3 * line_width(self.size_hw)
        boxes = [(c, b) for cell in cells for c, b in zip(cell["confidences"], cell["boxes_xyxy"], strict=True)]
        height, width = self.size_hw
        for confidence, (x1, y1, x2, y2) in sorted(boxes, key=lambda one: one[0]):
            sure = min(max(confidence, 0.0), 1.0)
            corners = [max(x1, 0), max(y1, 0), min(x2, width - 1), min(y2, height - 1)]
            if corners[2] > corners[0] and corners[3] > corners[1]:
                ink = tuple(int(190 * (1 - sure) ** 2) for _ in range(3))
                pen.rectangle(corners, outline=ink, width=max(1, round(thickest * sure)))
        return np.asarray(canvas)

    def _class_map(self, cells: list[dict[str, Any]]) -> ImageArray:
        colours = category_colours(len(self.system.categories))
        image = faded(self.image).astype(np.float64)
        for one in cells:
            left, top, right, bottom = (round(edge) for edge in self._edges(one))
            opacity = 0.75 * min(max(one["class_score"], 0.0), 1.0)
            colour = colours[self.system.categories.index(one["category"])]
            image[top:bottom, left:right] *= 1 - opacity
            image[top:bottom, left:right] += opacity * colour
        return self._with_grid(image.astype(np.uint8))

    def _responsible_image(self, facts: dict[str, Any]) -> ImageArray:
        colours = category_colours(len(self.system.categories))
        image = self._with_grid(self.image).astype(np.float64)
        for one in facts["responsible"]:
            left, top, right, bottom = (round(edge) for edge in self._edges(one))
            image[top:bottom, left:right] *= 0.45
            image[top:bottom, left:right] += 0.55 * colours[self.system.categories.index(one["category"])]
        drawn = Image.fromarray(draw(image.astype(np.uint8), self.objects, labels=False))
        pen, radius = ImageDraw.Draw(drawn), 2 * line_width(self.size_hw)
        for x1, y1, x2, y2 in self.objects.boxes_xyxy:
            x, y = (x1 + x2) / 2, (y1 + y2) / 2
            pen.ellipse([x - radius, y - radius, x + radius, y + radius], fill=(255, 255, 255), outline=(0, 0, 0))
        return np.asarray(drawn)


def explain_yolo(
    predictor: Predictor,
    image: ImageArray,
    *,
    name: str,
    score_threshold: float | None = None,
    truth: Instances | None = None,
) -> YoloExplanation:
    """Run YOLO on one image and keep all of its stages.

    Parameters
    ----------
    predictor
        Of a :class:`~otus.detection.single_stage.yolo.YOLO`.
    score_threshold
        What is shown scores above it; the model's own without it, as ``predict`` does.
    truth
        The image's labels, with the model's categories; what is found is taken for them without.
    """
    fields = run(predictor, image, name=name, score_threshold=score_threshold, truth=truth)
    objects = fields["found"] if fields["truth"] is None else fields["truth"]
    system = predictor.system
    target = system.target(prepared_target(predictor, image, name, objects))
    assignment = system.assign([target], fields["record"].batch.padded_hw)
    return YoloExplanation(**fields, objects=objects, assignment=assignment)
