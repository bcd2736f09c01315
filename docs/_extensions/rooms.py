"""A chapter for each room of the library, from its own docstring, and the reference of every public name by room."""

import importlib
import inspect
import pkgutil
import types
from pathlib import Path
from types import ModuleType

from pages import heading, write_page
from sphinx.application import Sphinx

import otus

# In the order of the lecture; a room that is not named here follows under its own name.
CHAPTERS = {
    "structures": "Boxes, masks, maps and prompts",
    "data": "Data sets",
    "data.formats": "File formats",
    "data.transforms": "Transforms",
    "data.scenes": "Made-up scenes",
    "data.checks": "Checks of labels",
    "metrics": "Metrics",
    "metrics.detection": "Metrics of detection",
    "metrics.diagnosis": "Diagnosis of errors",
    "metrics.pycocotools": "The interface of pycocotools",
    "parts": "Building blocks",
    "parts.backbones": "Backbones",
    "parts.boxes": "Anchors, box coding, matching, NMS",
    "parts.heads": "Heads",
    "parts.regions": "Region features",
    "parts.transformer": "Transformers",
    "parts.fast": "Fast forms for the CPU",
    "classification": "Image classification",
    "semantic": "Semantic segmentation",
    "proposals": "Region proposals",
    "detection": "Object detection",
    "detection.region_based": "Region-based detection",
    "detection.single_stage": "Single-stage detection",
    "detection.set_prediction": "Set prediction",
    "instance": "Instance segmentation and keypoints",
    "interactive": "Interactive segmentation",
    "promptable": "Promptable segmentation",
    "zoo": "Models by name",
    "inference": "Prediction",
    "evaluation": "Evaluation",
    "training": "Training",
    "experiments": "Comparing systems",
    "experiments.recipes": "Recipes",
    "reports": "Reports",
    "reports.explain": "Explanations",
    "visualization": "Drawing",
}
NOT_FOR_READERS = ("cli",)  # the reference of the command line has it


def _find_rooms() -> dict[str, list[str]]:
    """The public modules of each room, both without the leading ``otus.``."""
    rooms: dict[str, list[str]] = {}
    for found in pkgutil.walk_packages(otus.__path__, "otus."):
        name = found.name.removeprefix("otus.")
        if any(part.startswith("_") for part in name.split(".")) or name.split(".")[0] in NOT_FOR_READERS:
            continue
        if found.ispkg:
            rooms.setdefault(name, [])
        else:
            rooms.setdefault(name.rpartition(".")[0], []).append(name)
    known = [name for name in CHAPTERS if name in rooms]
    return {name: rooms[name] for name in [*known, *(name for name in rooms if name not in CHAPTERS)]}


def _public(module: ModuleType) -> list[str]:
    """The names of the public classes and functions that a module defines, in its order."""
    return [
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and (inspect.isclass(value) or inspect.isroutine(value))
        and getattr(value, "__module__", None) == module.__name__
    ]


def _first_line(module: ModuleType) -> str:
    return " ".join((inspect.getdoc(module) or "").partition("\n\n")[0].split()).removesuffix("::")


def _title(room: str) -> str:
    return CHAPTERS.get(room, f"otus.{room}" if room else "otus")


def _chapter(room: str, modules: list[str]) -> list[str]:
    """The room's docstring, then its modules with what each is about."""
    lines = [*heading(_title(room)), f".. py:currentmodule:: otus.{room}", ""]
    lines += [inspect.getdoc(importlib.import_module(f"otus.{room}")) or "", ""]
    if modules:
        lines += [".. list-table::", "   :widths: 30 70", ""]
        for name in modules:
            lines += [f"   * - :mod:`~otus.{name}`", f"     - {_first_line(importlib.import_module(f'otus.{name}'))}"]
    return [*lines, "", f"Every name of this room: :doc:`/generated/reference/{room}`.", ""]


def _reference(room: str, modules: list[str]) -> list[str]:
    """Every public name of a room, module by module."""
    package = f"otus.{room}".rstrip(".")
    lines = heading(package if room else "otus.errors")
    if room:
        lines += [f".. py:module:: {package}", "", f"The chapter: :doc:`/generated/chapters/{room}`.", ""]
    for name in _public(importlib.import_module(package)) if room else []:
        kind = "autoclass" if inspect.isclass(getattr(importlib.import_module(package), name)) else "autofunction"
        lines += [f".. {kind}:: {package}.{name}", "   :members:" if kind == "autoclass" else "", ""]
    for module in modules:
        short = module.removeprefix(f"{room}.")
        lines += [*heading(short, "-"), f".. automodule:: otus.{module}", "   :members:", "   :show-inheritance:", ""]
    return lines


def _exports() -> list[str]:
    """The names that ``otus`` itself exports, and where each is described."""
    lines = [*heading("API reference"), "What ``import otus`` gives; all else has its room below.", ""]
    lines += [".. list-table::", "   :widths: 25 75", ""]
    for name in otus.__all__:
        value = getattr(otus, name)
        if not name.startswith("_"):
            role = "class" if inspect.isclass(value) else "func"
            lines += [f"   * - :{role}:`otus.{name}`", f"     - {(inspect.getdoc(value) or '').partition(chr(10))[0]}"]
    return lines


def _write(app: Sphinx) -> None:
    rooms = _find_rooms()
    for page in Path(app.srcdir, "generated").glob("*/*.rst"):
        if page.stem not in {"index", "otus", *rooms}:
            page.unlink()  # of a room that is no more
    toctree = [".. toctree::", "   :maxdepth: 1", ""]
    chapters = [room for room in rooms if room]
    for room in chapters:
        write_page(app, f"chapters/{room}", _chapter(room, rooms[room]))
    about = [
        "The library is laid out as a course on the field. Each chapter below is the introduction that stands at "
        "the top of a",
        "room's code: the idea, the order to read its files in, and how the systems differ.",
    ]
    write_page(app, "chapters/index", [*heading("Chapters"), *about, "", *toctree, *(f"   {one}" for one in chapters)])
    for room, modules in rooms.items():
        write_page(app, f"reference/{room or 'otus'}", _reference(room, modules))
    listed = [f"   {room or 'errors'} <{room or 'otus'}>" for room in rooms]
    write_page(app, "reference/index", [*_exports(), "", *toctree, *listed])


def _is_alias(app: Sphinx, kind: str, name: str, value: object, skip: bool, options: object) -> bool | None:
    """Leave out aliases such as ``tuple[slice, slice]``, which autodoc takes for classes."""
    return True if isinstance(value, types.GenericAlias) else None


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("builder-inited", _write)
    app.connect("autodoc-skip-member", _is_alias)
    return {"parallel_read_safe": True}
