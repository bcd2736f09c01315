"""Interactive methods by name."""

from collections.abc import Mapping

import numpy as np

from otus.errors import UsageError, did_you_mean
from otus.interactive.grab_cut import GrabCut
from otus.interactive.graph_cut import GraphCut
from otus.structures import Prompt
from otus.structures.prompt import BACKGROUND

METHODS: Mapping[str, type[GraphCut] | type[GrabCut]] = {"graph-cut": GraphCut, "grabcut": GrabCut}
"""Method classes by name."""
PROMPTABLE_MODEL = "sam_efficientnet_lite0"
"""Name of the packaged promptable model."""


def default_method(prompt: Prompt) -> str:
    """Return the name of the default method for a prompt.

    Where strokes, scribbles or background points give the colours of both sides, a cut by colour needs no model: GrabCut
    with a box, else GraphCut, which also takes a mask. All other prompts are answered by the packaged promptable model.
    """
    if prompt.text is not None:
        return PROMPTABLE_MODEL
    if prompt.strokes or prompt.scribbles is not None or BACKGROUND in np.asarray(prompt.point_labels):
        return "graph-cut" if prompt.box_xyxy is None else "grabcut"
    return "graph-cut" if prompt.mask is not None and prompt.box_xyxy is None else PROMPTABLE_MODEL


def make_method(name: str) -> GraphCut | GrabCut:
    """Return the method with a name in :data:`METHODS`, with default parameters.

    Raises
    ------
    UsageError
        If the name is unknown.
    """
    if name not in METHODS:
        raise UsageError(f"method: expected one of {', '.join(METHODS)}, got {name!r}{did_you_mean(name, METHODS)}")
    return METHODS[name]()
