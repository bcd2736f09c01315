"""Which predictions the images of a run show, also for a weak model."""

import numpy as np
import pytest

from otus.structures import Categories, Instances
from otus.training.snapshots import _filter_by_score


@pytest.mark.parametrize(
    ("scores", "expected", "description"),
    [
        ([0.9, 0.5, 0.49, 0.2], [0.9, 0.5], "predictions, score ≥ 0.5"),
        ([0.1, 0.31, 0.2, 0.05, 0.3], [0.31, 0.3, 0.2], "best 3, score ≤ 0.31"),
        ([0.04], [0.04], "best 1, score ≤ 0.04"),
        ([], [], "predictions, score ≥ 0.5"),
    ],
)
def test_predictions_above_the_threshold_or_the_best_are_drawn(
    scores: list[float], expected: list[float], description: str
) -> None:
    boxes = np.tile([0.0, 0, 9, 9], (len(scores), 1)).reshape(-1, 4)
    predictions = Instances(boxes, np.zeros(len(scores), int), (20, 20), Categories(("cat",)), scores=np.array(scores))
    filtered, caption = _filter_by_score(predictions)
    assert filtered.scores is not None
    assert (filtered.scores.tolist(), caption) == (pytest.approx(expected), description)
