"""Links to names of the library: by where they are exported (``otus.load``) or as their module calls them.

A name that exists but has no description of its own (a constant, a type variable, a private module) stays plain text;
one that does not exist is a dead link, and fails the build.
"""

import importlib
import inspect
from functools import cache
from typing import Any

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment


@cache
def _find(name: str) -> tuple[bool, str | None]:
    """Whether there is something of that dotted name, and by which full name it is described, if it has one."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        try:
            value: Any = importlib.import_module(".".join(parts[:length]))
        except ImportError:
            continue
        try:
            for part in parts[length:]:
                value = inspect.getattr_static(value, part) if inspect.isclass(value) else getattr(value, part)
        except AttributeError:
            return False, None
        if hasattr(value, "__qualname__"):
            return True, f"{value.__module__}.{value.__qualname__}"
        return True, None
    return False, None


def _resolve(app: Sphinx, env: BuildEnvironment, node: pending_xref, content: nodes.Node) -> nodes.Node | None:
    if node.get("refdomain") != "py":
        return None
    target, domain = node["reftarget"], env.get_domain("py")
    places = [""] if target.startswith("otus.") else [f"{one}." for one in (node.get("py:module"), "otus") if one]
    for place in places:
        exists, name = _find(place + target)
        if exists and name is not None and domain.find_obj(env, None, None, name, None, 0):
            return domain.resolve_xref(env, node["refdoc"], app.builder, "obj", name, node, content)
        if exists:
            return content
    return None


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("missing-reference", _resolve)
    return {"parallel_read_safe": True}
