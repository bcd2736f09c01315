"""The default method for a prompt."""

import numpy as np
import pytest

from otus.interactive.methods import PROMPTABLE_MODEL, default_method
from otus.structures import Prompt, Stroke

BOX = [1, 1, 5, 5]
MARKS = np.full((8, 8), -1)


@pytest.mark.parametrize(
    ("prompt", "name"),
    [
        (Prompt([[2, 2]], [1]), PROMPTABLE_MODEL),
        (Prompt([[2, 2], [6, 6]], [1, 2]), PROMPTABLE_MODEL),
        (Prompt(box_xyxy=BOX), PROMPTABLE_MODEL),
        (Prompt([[2, 2]], [1], box_xyxy=BOX), PROMPTABLE_MODEL),
        (Prompt(box_xyxy=BOX, mask=np.ones((8, 8), bool)), PROMPTABLE_MODEL),
        (Prompt(text="dog"), PROMPTABLE_MODEL),
        (Prompt([[2, 2], [6, 6]], [1, 0]), "graph-cut"),
        (Prompt(strokes=[Stroke([[2, 2], [4, 4]], 1, 2)]), "graph-cut"),
        (Prompt(scribbles=MARKS), "graph-cut"),
        (Prompt(mask=np.ones((8, 8), bool)), "graph-cut"),
        (Prompt([[6, 6]], [0], box_xyxy=BOX), "grabcut"),
        (Prompt(scribbles=MARKS, box_xyxy=BOX), "grabcut"),
    ],
)
def test_the_default_method(prompt: Prompt, name: str) -> None:
    assert default_method(prompt) == name
