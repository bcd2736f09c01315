"""Explain YOLO on one image: the grid, its boxes, confidences and class scores, the responsible cells, NMS.

Cells are made responsible for objects in training; here for the ground truth if it is given, else for the detections.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw

from otus.detection.single_stage.yolo import GridAssignment, YOLOStages
from otus.inference.predictor import Predictor
from otus.reports.explain.explanation import Explanation, ImageArray, explain_fields, prepared_target
from otus.reports.explain.figures import (
    activation_map,
    colormapped,
    counts_by_category,
    faded,
    table_row,
)
from otus.reports.page import Figure, Page, Section
from otus.structures import Instances
from otus.visualization.drawing import draw
from otus.visualization.palette import category_colours
from otus.visualization.text import line_width

_WIDTH = 460  # CSS pixels of a figure
_LISTED = 20
_MAX_ASPECT = 4  # height / width; a higher figure is drawn narrower


@dataclass(frozen=True, eq=False)
class YoloExplanation(Explanation):
    """Stages of YOLO on one image; see :func:`explain_yolo`.

    Parameters
    ----------
    objects
        What ``assignment`` makes cells responsible for: the ground truth, or the detections if there is none.
    assignment
        The responsible cells.
    """

    record: YOLOStages
    objects: Instances
    assignment: GridAssignment

    def document(self) -> dict[str, Any]:
        """Return the members of the JSON document: what ``otus explain detection --json`` prints."""
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
            "truth": "detections" if self.ground_truth is None else "labels",
            "responsible": self._responsible(cells),
            "objects_lost": self.assignment.unassigned[0],
            "before_nms": list(self._with_cells(self.candidates, record.candidates[0].origins)),
            "detections": list(self._with_cells(self.detections, record.detections[0].origins)),
        }

    def page(self) -> Page:
        """Return the HTML page."""
        facts = self.document()
        return self.page_of(facts, self._sections(facts))

    def _sections(self, facts: dict[str, Any]) -> Iterator[Section]:
        grid, cells = facts["grid"], facts["cells"]
        side, count = grid["side"], grid["boxes"]
        yield Section("The image", "", [Figure.of(self.image, self.name)])
        x = self.record.features[-1]
        covered = self.unpadded_hw(x)
        yield Section(
            "1. The grid",
            f"One pass over the whole image gives {side} x {side} cells of {grid['numbers']} numbers: "
            f"{count} boxes of five (dx, dy, dh, dw, confidence) and {len(self.system.categories)} class scores.",
            [
                Figure.of(self._with_grid(self.image), f"{side} x {side} cells", width=_WIDTH),
                Figure.of(
                    self._stretched(activation_map(x[0], covered)),
                    f"backbone's last feature map, {x.shape[-1]} x {x.shape[-2]}",
                    width=_WIDTH,
                ),
            ],
        )
        confidences = np.array([cell["confidences"] for cell in cells]).max(axis=1).reshape(side, side)
        best = max(cells, key=lambda cell: max(cell["confidences"]))
        yield Section(
            "2. Boxes and confidences",
            f"Each cell predicts {count} boxes, which may be larger than the cell, and a confidence for each: "
            f"{len(cells) * count} boxes, drawn thicker the higher their confidence, at most "
            f"{max(best['confidences']):.2f}.",
            [
                Figure.of(self._all_boxes(cells), "boxes by confidence", width=_WIDTH),
                Figure.of(
                    self._stretched(colormapped(confidences, 0, 1)),
                    "maximum confidence of each cell, 0 to 1",
                    width=_WIDTH,
                ),
            ],
        )
        yield Section(
            "3. Class scores",
            "Class probabilities of each cell, given that it contains an object: the colour of the "
            "highest-scoring category, "
            "stronger for a higher score. A box's score is this times its confidence, both clipped to 0 to 1.",
            [Figure.of(self._class_map(cells), "highest-scoring category of each cell", width=_WIDTH)],
            self._cells_by_category(cells),
        )
        source = "the ground truth" if facts["truth"] == "labels" else "the detections, in place of ground truth"
        lost = facts["objects_lost"]
        yield Section(
            "4. Responsible cells",
            f"For {source}: the cell that contains an object's centre is responsible for it, with its box of the "
            "highest IoU. "
            f"{lost} {'object shares its' if lost == 1 else 'objects share their'} cell with a larger one, and would not "
            "be trained on.",
            [Figure.of(self._responsible_image(facts), "objects, their centres and responsible cells", width=_WIDTH)],
            [table_row(record) for record in facts["responsible"]],
        )
        yield Section(
            "5. Candidates before NMS",
            f"{len(facts['before_nms'])} pairs of box and category score above {facts['score_threshold']:g}.",
            [Figure.of(draw(faded(self.image), self.candidates, labels=False), "candidates before NMS", width=_WIDTH)],
            counts_by_category(facts["before_nms"]),
        )
        yield Section(
            "6. Detections",
            f"After NMS at IoU {facts['nms_iou']} within each category, at most {facts['max_detections']} per image: "
            f"{len(facts['detections'])} boxes.",
            [Figure.of(draw(self.image, self.detections), "detections after NMS")],
            [table_row(record) for record in facts["detections"][:_LISTED]],
        )

    def _responsible(self, cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
        assignment = self.assignment
        index, iou = self.system.responsible(self.record.output, assignment)
        rows = []
        for i in range(len(assignment.labels)):
            row, column, box = int(assignment.row[i]), int(assignment.column[i]), int(index[i])
            cell = cells[row * self.system.grid_size + column]
            rows.append(
                {
                    "category": self.system.categories[int(assignment.labels[i])],
                    "row": row,
                    "column": column,
                    "box_of_cell": box,
                    "iou": float(iou[i]),
                    "confidence": cell["confidences"][box],
                    "box_xyxy": cell["boxes_xyxy"][box],
                }
            )
        return rows

    def _with_cells(self, instances: Instances, indices: torch.Tensor) -> Iterator[dict[str, Any]]:
        """Yield the objects by descending score, each with its cell and the index of its box in the cell."""
        assert instances.scores is not None
        for i in np.argsort(-instances.scores, kind="stable"):
            cell, box = divmod(int(indices[i]), self.system.boxes_per_cell)
            yield {
                "category": self.system.categories[int(instances.labels[i])],
                "score": float(instances.scores[i]),
                "box_xyxy": instances.boxes_xyxy[i].tolist(),
                "row": cell // self.system.grid_size,
                "column": cell % self.system.grid_size,
                "box_of_cell": box,
            }

    def _cells_by_category(self, cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
        ordered = sorted(cells, key=lambda cell: -cell["class_score"])
        return [
            {"category": row["category"], "cells": row["boxes"], "best score": row["best score"]}
            for row in counts_by_category([cell | {"score": cell["class_score"]} for cell in ordered])
        ]

    def _stretched(self, cells: ImageArray) -> ImageArray:
        """Stretch a square grid of cells to the aspect ratio of the image."""
        height, width = self.size_hw
        scale = cells.shape[1] / width if height <= _MAX_ASPECT * width else _MAX_ASPECT * cells.shape[1] / height
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
        for confidence, (x1, y1, x2, y2) in sorted(boxes, key=lambda pair: pair[0]):
            opacity = min(max(confidence, 0.0), 1.0)
            corners = [max(x1, 0), max(y1, 0), min(x2, width - 1), min(y2, height - 1)]
            if corners[2] > corners[0] and corners[3] > corners[1]:
                ink = tuple(int(190 * (1 - opacity) ** 2) for _ in range(3))
                pen.rectangle(corners, outline=ink, width=max(1, round(thickest * opacity)))
        return np.asarray(canvas)

    def _class_map(self, cells: list[dict[str, Any]]) -> ImageArray:
        colours = category_colours(len(self.system.categories))
        image = faded(self.image).astype(np.float64)
        for cell in cells:
            left, top, right, bottom = (round(edge) for edge in self._edges(cell))
            opacity = 0.75 * min(max(cell["class_score"], 0.0), 1.0)
            colour = colours[self.system.categories.index(cell["category"])]
            image[top:bottom, left:right] *= 1 - opacity
            image[top:bottom, left:right] += opacity * colour
        return self._with_grid(image.astype(np.uint8))

    def _responsible_image(self, facts: dict[str, Any]) -> ImageArray:
        colours = category_colours(len(self.system.categories))
        image = self._with_grid(self.image).astype(np.float64)
        for cell in facts["responsible"]:
            left, top, right, bottom = (round(edge) for edge in self._edges(cell))
            image[top:bottom, left:right] *= 0.45
            image[top:bottom, left:right] += 0.55 * colours[self.system.categories.index(cell["category"])]
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
    ground_truth: Instances | None = None,
) -> YoloExplanation:
    """Run YOLO on one image and return its stages.

    Parameters
    ----------
    predictor
        Predictor of a :class:`~otus.detection.single_stage.yolo.YOLO`.
    name
        Name of the image, for the page.
    score_threshold
        Minimum score (default: as ``predict``).
    ground_truth
        Labels of the image, with the model's categories, to make cells responsible for (default: the detections).
    """
    fields = explain_fields(predictor, image, name=name, score_threshold=score_threshold, ground_truth=ground_truth)
    objects = fields["detections"] if fields["ground_truth"] is None else fields["ground_truth"]
    system = predictor.system
    target = system.target(prepared_target(predictor, image, name, objects))
    assignment = system.assign([target], fields["record"].batch.padded_hw)
    return YoloExplanation(**fields, objects=objects, assignment=assignment)
