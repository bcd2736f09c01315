"""``otus models``: list the models by name, with their weights, metrics and licences."""

from textwrap import fill, wrap
from typing import Any

import typer

from otus.cli._common import emit_json, verb
from otus.cli._options import AsJson

_WIDTH = 74  # of the lines below a name, so that they fit into a terminal of 80 columns


@verb
def models(as_json: AsJson = False) -> None:
    """List the models: task, paper, weights (packaged, to be downloaded or none), metrics and licence."""
    from otus.zoo.catalogue import catalogue
    from otus.zoo.weights import packaged_names

    rows = catalogue()
    if as_json:
        emit_json({"models": rows})
        return
    width = max(len(row["name"]) for row in rows)
    for row in rows:
        typer.echo(f"{row['name']:<{width}}  {row['task']:<14}  {_weights(row)}")
        typer.echo(f"    {row['paper']}")
        for line in [*_cost(row), *_licence(row), *_figures(row)]:
            typer.echo(f"    {line}")
    first, *others = packaged_names()
    typer.echo(f"\nStart with {first}, the default model.")
    if others:
        typer.echo(fill(f"Packaged too: {', '.join(others)}.", 79, subsequent_indent="    "))
    typer.echo("Other models have to be trained, or their weights are downloaded once.")


def _weights(row: dict[str, Any]) -> str:
    if not row["trained"]:
        return "none: train it"
    return "packaged" if row["packaged"] else "to be downloaded"


def _cost(row: dict[str, Any]) -> list[str]:
    """Return ``weights 13 MB, 60 ms per image …`` for the best weights, as far as known."""
    from otus.zoo.models import TIMED_ON

    parts = [] if row["megabytes"] is None else [f"weights {row['megabytes']} MB"]
    parts += [] if row["milliseconds"] is None else [f"{row['milliseconds']} ms per image on {TIMED_ON}"]
    return [", ".join(parts)] if parts else []


def _licence(row: dict[str, Any]) -> list[str]:
    return wrap(f"licence: {row['licence']}", _WIDTH) if row["licence"] else []


def _figures(row: dict[str, Any]) -> list[str]:
    """Return lines such as ``COCO val2017: bbox AP 0.379, segm AP 0.346``, one or more for each data set."""
    lines: list[str] = []
    for name, value in row["figures"].items():
        *data, kind, figure = name.split()
        start, text = " ".join([*data[:-1], *(f"{word}:" for word in data[-1:])]), f"{kind} {figure} {value:.3f}"
        if lines and lines[-1].startswith(start) and len(lines[-1]) + 2 + len(text) <= _WIDTH:
            lines[-1] += f", {text}"
        else:
            lines.append(f"{start} {text}".strip())
    return lines
