"""Interactive methods by name."""

from collections.abc import Mapping

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

    Points on objects, a box or words alone do not tell the background's colours, so the packaged promptable model answers
    them; prompts with background points, strokes, scribbles or a mask are answered by graph cut.
    """
    marks_regions = bool(prompt.strokes) or prompt.scribbles is not None or prompt.mask is not None
    return "graph-cut" if marks_regions or BACKGROUND in prompt.point_labels else PROMPTABLE_MODEL


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
