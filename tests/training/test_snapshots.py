"""Images of a run: of a weak model too they show something."""

import numpy as np
import pytest

from otus.structures import Categories, Instances
from otus.training.snapshots import _filter_by_score


@pytest.mark.parametrize(
    ("scores", "kept", "said"),
    [
        ([0.9, 0.5, 0.49, 0.2], [0.9, 0.5], "predictions, score ≥ 0.5"),
        ([0.1, 0.31, 0.2, 0.05, 0.3], [0.31, 0.3, 0.2], "best 3, score ≤ 0.31"),
        ([0.04], [0.04], "best 1, score ≤ 0.04"),
        ([], [], "predictions, score ≥ 0.5"),
    ],
)
def test_what_predict_would_draw_is_shown_or_the_best_few(scores: list[float], kept: list[float], said: str) -> None:
    boxes = np.tile([0.0, 0, 9, 9], (len(scores), 1)).reshape(-1, 4)
    found = Instances(boxes, np.zeros(len(scores), int), (20, 20), Categories(("cat",)), scores=np.array(scores))
    shown, caption = _filter_by_score(found)
    assert shown.scores is not None
    assert (shown.scores.tolist(), caption) == (pytest.approx(kept), said)
