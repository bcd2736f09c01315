"""Interactive methods by name."""

from collections.abc import Mapping

from otus.errors import UsageError, did_you_mean
from otus.interactive.grab_cut import GrabCut
from otus.interactive.graph_cut import GraphCut

METHODS: Mapping[str, type[GraphCut] | type[GrabCut]] = {"graph-cut": GraphCut, "grabcut": GrabCut}
"""What needs no weights."""


def make_method(name: str) -> GraphCut | GrabCut:
    """Return the method of a name in :data:`METHODS`, with its defaults.

    Raises
    ------
    UsageError
        An unknown name.
    """
    if name not in METHODS:
        raise UsageError(f"method: expected one of {', '.join(METHODS)}, got {name!r}{did_you_mean(name, METHODS)}")
    return METHODS[name]()
