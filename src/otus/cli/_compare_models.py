"""The part of ``otus compare`` that trains, judges and times models."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer

from otus.cli._common import answer_console, counting, emit_json


def compare_models(
    models: Sequence[str], data: Path, *, budget: float | None, training: dict[str, Any], as_json: bool, **options: Any
) -> None:
    """Run the comparison, write its folder, and print its table.

    Parameters
    ----------
    models, data, options
        See :func:`otus.experiments.compare.compare`.
    budget
        Minutes of training.
    training
        Settings of it that were typed.
    """
    import dataclasses

    from otus.experiments.compare import TRAINING, compare
    from otus.training.devices import fastest_precision
    from otus.training.settings import make_settings

    fastest = fastest_precision(training.get("device", TRAINING.device))
    settings = make_settings(dataclasses.asdict(TRAINING) | {"precision": fastest} | training)
    with counting("predicting") as count:
        comparison = compare(
            [one.strip() for one in models],
            data,
            budget_minutes=budget,
            settings=settings,
            say=lambda text: typer.echo(f"otus: {text}", err=True),
            progress=count,
            **options,
        )
    if as_json:
        emit_json(comparison.document())
        return
    from rich.table import Table

    console = answer_console()
    rows = comparison.table()
    table = Table()
    for name in rows[0]:
        table.add_column(name, justify="left" if name in ("model", "start") else "right")
    for row in rows:
        table.add_row(*row.values())
    console.print(f"{comparison.data}: {len(comparison.images)} images, protocol coco bbox; seconds are medians")
    console.print(table)
    console.print(f"written to {comparison.folder}: compare.md, compare.csv, compare.png, index.html, run.json")
