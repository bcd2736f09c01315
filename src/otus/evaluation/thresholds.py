"""Score thresholds per category, chosen on a data set and stored for ``predict``.

They are stored in the model's checkpoint, or in a small JSON file. Torch is imported only to write a checkpoint.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from otus._files import staged_file
from otus.errors import CheckpointError, DataError, UsageError
from otus.metrics.detection.rules import Rules
from otus.metrics.diagnosis.assignment import DetectionMatcher
from otus.metrics.diagnosis.thresholds import OperatingPoint, best_threshold

IOU = 0.5


@dataclass(frozen=True)
class ChosenThresholds:
    """The chosen score thresholds, and their precision and recall on the data that they were chosen on.

    Parameters
    ----------
    operating_points
        Operating point by category name; NaN for categories without detections.
    data, images
        Name of the data and number of images that the thresholds were chosen on.
    """

    operating_points: Mapping[str, OperatingPoint]
    data: str
    images: int

    @property
    def thresholds(self) -> dict[str, float]:
        """Return the thresholds by category name, without categories that have none, or whose scores are all 0."""
        return {name: point.threshold for name, point in self.operating_points.items() if point.threshold >= 0}

    def document(self) -> dict[str, Any]:
        """Return the JSON document that is written, and that ``otus evaluate --json`` includes."""
        thresholds = self.thresholds
        return {
            "thresholds": thresholds,
            "chosen_by": f"the highest F1 at IoU {IOU:g}",
            "data": self.data,
            "images": self.images,
            "per_category": {
                name: point._asdict() for name, point in self.operating_points.items() if name in thresholds
            },
            "without": [name for name in self.operating_points if name not in thresholds],
        }

    def write(self, path: str | Path) -> Path:
        """Write the thresholds as JSON, for ``otus predict --thresholds``."""
        with staged_file(Path(path)) as stage:
            stage.write_text(json.dumps(self.document(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        return Path(path)

    def write_into(self, checkpoint: str | Path) -> Path:
        """Write the thresholds into the header of a checkpoint of Otus; on failure the old file is kept.

        Raises
        ------
        CheckpointError
            If the file is not a checkpoint, or cannot be written.
        """
        from otus.zoo.checkpoint import load_checkpoint, save_checkpoint

        if not os.access(checkpoint, os.W_OK):
            raise CheckpointError(f"{checkpoint}: cannot be written; choose a file for the thresholds with --out")
        state, header = load_checkpoint(checkpoint)
        save_checkpoint(checkpoint, state, replace(header, extra={**header.extra, "score_thresholds": self.document()}))
        return Path(checkpoint)


def choose_thresholds(matcher: DetectionMatcher, *, data: str) -> ChosenThresholds:
    """Choose for each category the score threshold with the highest F1 at IoU 0.5.

    Raises
    ------
    UsageError
        If a score is not in [0, 1].
    """
    scores = matcher.predictions.scores
    if scores is not None and len(scores) and not 0 <= scores.min() <= scores.max() <= 1:
        outside = scores[(scores < 0) | (scores > 1)][0]
        raise UsageError(f"score: expected 0 to 1 to choose thresholds from, got {outside:g}; map the scores to 0 to 1")
    matches = matcher.match(Rules(iou_thresholds=(IOU,)))
    operating_points = {name: best_threshold(matches, label) for label, name in enumerate(matcher.categories)}
    return ChosenThresholds(operating_points, data, len(matcher.image_ids))


def read_thresholds(path: str | Path) -> dict[str, float]:
    """Read thresholds by category name from a file that :meth:`ChosenThresholds.write` wrote.

    Raises
    ------
    DataError
        If the file is missing or invalid; the message names the field.
    """
    try:
        document = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError:
        raise DataError("there is no such file", file=path, remedy="see otus evaluate --choose-thresholds") from None
    except ValueError as error:
        raise DataError(f"is not JSON: {error}", file=path) from None
    thresholds = document.get("thresholds") if isinstance(document, dict) else None
    if not isinstance(thresholds, dict):
        raise DataError("expected an object with thresholds by category", file=path, where="thresholds")
    for name, value in thresholds.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
            raise DataError(f"expected 0 to 1, got {value!r}", file=path, where=f"thresholds.{name}")
    return {str(name): float(value) for name, value in thresholds.items()}
