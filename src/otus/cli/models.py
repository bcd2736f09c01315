"""``otus models``: what there is by name, and whose weights."""

from textwrap import wrap
from typing import Annotated, Any

import typer

from otus.cli._common import emit_json, verb

_ALSO = "Also there, boxes alone, smaller and faster:\n{}. The others are trained, or fetched once."
_WIDTH = 74  # of a line under a name, so that it stays whole in a terminal of 80


@verb
def models(as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False) -> None:
    """List the models: what each answers, whether trained weights are packaged or can be fetched, and their figures."""
    from otus.zoo.catalogue import catalogue

    rows = catalogue()
    if as_json:
        emit_json({"models": rows})
        return
    width = max(len(row["name"]) for row in rows)
    for row in rows:
        typer.echo(f"{row['name']:<{width}}  {row['task']:<10}  {_weights(row)}")
        typer.echo(f"    {row['paper']}")
        for line in [*_cost(row), *_licence(row), *_figures(row)]:
            typer.echo(f"    {line}")
    first, *others = [row["name"] for row in rows if row["packaged"]]
    typer.echo(
        f"\nStart with {first}: it is in the package and answers\nwhere no model is named. {_ALSO.format(', '.join(others))}"
    )


def _weights(row: dict[str, Any]) -> str:
    if not row["trained"]:
        return "none: train it"
    return "packaged" if row["packaged"] else "to be fetched"


def _cost(row: dict[str, Any]) -> list[str]:
    """``13 MB, 60 ms an image``: of the best weights, as far as it is stated."""
    from otus.zoo.models import TIMED_ON

    parts = [] if row["megabytes"] is None else [f"weights {row['megabytes']} MB"]
    parts += [] if row["milliseconds"] is None else [f"{row['milliseconds']} ms an image on {TIMED_ON}"]
    return [", ".join(parts)] if parts else []


def _licence(row: dict[str, Any]) -> list[str]:
    return wrap(f"licence: {row['licence']}", _WIDTH) if row["licence"] else []


def _figures(row: dict[str, Any]) -> list[str]:
    """``COCO val2017: bbox AP 0.379, segm AP 0.346``: figures on one data set in one line, or as many as it takes."""
    lines: list[str] = []
    for name, value in row["figures"].items():
        *data, kind, figure = name.split()
        start, said = " ".join([*data[:-1], *(f"{one}:" for one in data[-1:])]), f"{kind} {figure} {value:.3f}"
        if lines and lines[-1].startswith(start) and len(lines[-1]) + 2 + len(said) <= _WIDTH:
            lines[-1] += f", {said}"
        else:
            lines.append(f"{start} {said}".strip())
    return lines
