"""``otus models``: what there is by name, and whose weights."""

from typing import Annotated, Any

import typer

from otus.cli._common import emit_json, verb


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
        for figures in _figures(row):
            typer.echo(f"    {figures}")


def _weights(row: dict[str, Any]) -> str:
    if not row["trained"]:
        return "none: train it"
    licence = f", {row['licence']}" if row["licence"] else ""
    return ("packaged" if row["packaged"] else "to be fetched") + licence


def _figures(row: dict[str, Any]) -> list[str]:
    """``COCO val2017: bbox AP 0.379, segm AP 0.346``: figures on one data set in one line."""
    by_data: dict[str, list[str]] = {}
    for name, value in row["figures"].items():
        words = name.split()
        by_data.setdefault(" ".join(words[:-2]), []).append(f"{' '.join(words[-2:])} {value:.3f}")
    return [f"{data}: {', '.join(figures)}" if data else ", ".join(figures) for data, figures in by_data.items()]
