"""Interactive methods by name."""

from collections.abc import Mapping

from otus.errors import UsageError, did_you_mean
from otus.interactive.grab_cut import GrabCut
from otus.interactive.graph_cut import GraphCut

METHODS: Mapping[str, type[GraphCut] | type[GrabCut]] = {"graph-cut": GraphCut, "grabcut": GrabCut}
"""Method classes by name."""


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
