"""``otus compare --models``: train or load models, evaluate and time them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer

from otus.cli._common import emit_json, progress_bar, stdout_console


def compare_models(
    models: Sequence[str], data: Path, *, minutes: float | None, training: dict[str, Any], as_json: bool, **options: Any
) -> None:
    """Run the comparison, write its folder and print its table.

    Parameters
    ----------
    models, data, options
        See :func:`otus.experiments.compare.compare`.
    minutes
        Minutes of training per model (default: no training).
    training
        Training settings that were given.
    """
    import dataclasses

    from otus.experiments.compare import TRAINING, compare
    from otus.training.devices import fastest_precision
    from otus.training.settings import make_settings

    fastest = fastest_precision(training.get("device", TRAINING.device))
    settings = make_settings(dataclasses.asdict(TRAINING) | {"precision": fastest} | training)
    with progress_bar("predicting") as count:
        comparison = compare(
            [name.strip() for name in models],
            data,
            minutes=minutes,
            settings=settings,
            say=lambda text: typer.echo(f"otus: {text}", err=True),
            progress=count,
            **options,
        )
    if as_json:
        emit_json(comparison.document())
        return
    from rich.table import Table

    console = stdout_console()
    rows = comparison.table()
    table = Table()
    for name in rows[0]:
        table.add_column(name, justify="left" if name in ("model", "start") else "right")
    for row in rows:
        table.add_row(*row.values())
    console.print(
        f"{comparison.data}: {len(comparison.images)} images, protocol {comparison.evaluated_by}; median seconds per image"
    )
    console.print(table)
    console.print(f"written to {comparison.folder}: compare.md, compare.csv, compare.png, index.html, run.json")
