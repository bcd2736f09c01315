"""``otus compare --models``: train or load models, evaluate and time them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from otus.cli._common import emit_json, given_options, progress_bar, stdout_console

if TYPE_CHECKING:
    from rich.console import Console


def compare_models(
    models: Sequence[str],
    data: Path,
    *,
    vary: Mapping[str, Sequence[str]] | None,
    seeds: int | None,
    minutes: float | None,
    training: dict[str, Any],
    as_json: bool,
    **options: Any,
) -> None:
    """Run the comparison, write its folder and print its table.

    Parameters
    ----------
    models, data, options
        See :func:`otus.experiments.compare.compare`.
    vary, seeds
        See :func:`otus.experiments.ablation.ablate`; with ``vary=None`` there is no ablation.
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
    training = training if vary is None else training | given_options(minutes=minutes)
    settings = make_settings(dataclasses.asdict(TRAINING) | {"precision": fastest} | training)
    names = [name.strip() for name in models]
    with progress_bar("predicting") as count:
        options |= {"log": lambda text: typer.echo(f"otus: {text}", err=True), "progress": count}
        if vary is None:
            comparison = compare(names, data, minutes=minutes, settings=settings, **options)
        else:
            from otus.experiments.ablation import ablate

            ablation = ablate(names, data, vary=vary, settings=settings, **given_options(seeds=seeds), **options)
            comparison = ablation.comparison
    if as_json:
        emit_json((comparison if vary is None else ablation).document())
        return
    console = stdout_console()
    console.print(
        f"{comparison.data}: {len(comparison.images)} images, protocol {comparison.evaluated_by}; median seconds per image"
    )
    if vary is None:
        _print(console, comparison.table())
        console.print(f"written to {comparison.folder}: compare.md, compare.csv, compare.png, index.html, run.json")
    else:
        _print(console, ablation.table())
        console.print(ablation.verdict())
        console.print(
            f"written to {comparison.folder}: ablation.html, .md, .csv, .json, .png, and index.html of all trainings"
        )


def _print(console: "Console", rows: Sequence[Mapping[str, str]]) -> None:
    from rich.table import Table

    table = Table()
    for index, name in enumerate(rows[0]):
        table.add_column(name, justify="left" if index == 0 or name == "start" else "right")
    for row in rows:
        table.add_row(*row.values())
    console.print(table)
