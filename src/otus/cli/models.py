"""``otus models``: what there is by name, and whose weights."""

from typing import Annotated

import typer

from otus.cli._common import emit_json, verb


@verb
def models(as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False) -> None:
    """List the models: what each answers, whether trained weights are packaged or can be fetched, and their figures."""
    from rich.console import Console
    from rich.table import Table

    from otus.zoo.catalogue import catalogue

    rows = catalogue()
    if as_json:
        emit_json({"models": rows})
        return
    table = Table("name", "task", "weights", "figures", "licence", box=None)
    for row in rows:
        where = "packaged" if row["packaged"] else "fetched when asked" if row["weights"] else "none: train it"
        figures = ", ".join(f"{name} {value:.3f}" for name, value in row["figures"].items())
        table.add_row(row["name"], row["task"], where, figures, row["licence"])
    Console().print(table)
