"""``otus evaluate``: how good predictions are."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from otus.cli._common import emit_json, fail, verb

if TYPE_CHECKING:
    from otus.errors import DataError
    from otus.inference.evaluation import EvaluationReport


@verb
def evaluate(
    data: Annotated[Path, typer.Option("--data", help="Pictures with labels: a folder or an annotation file.")],
    predictions: Annotated[Path, typer.Option("--predictions", help="COCO results: a JSON list of detections.")],
    format_: Annotated[
        str | None, typer.Option("--format", help="Format of the data, where several are found.")
    ] = None,
    split: Annotated[str | None, typer.Option("--split", help="Part of the data, e.g. val.")] = None,
    protocol: Annotated[str | None, typer.Option("--protocol", help="Rules to judge by: coco.")] = None,
    max_dets: Annotated[
        str | None, typer.Option("--max-dets", help="Detections a picture and category that count, e.g. 1,10,100.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave out faulty records and count them.")] = False,
) -> None:
    """Judge predictions by the labels of a data set, and say by which protocol."""
    from otus.data.formats.coco_results import read_results
    from otus.data.formats.contract import stop_at_first
    from otus.data.open import open_dataset
    from otus.inference.evaluation import evaluate_predictions

    skipped: list[DataError] = []
    report = skipped.append if skip_bad else stop_at_first
    dataset = open_dataset(data, format=format_, split=split, report=report)
    found = read_results(predictions, dataset, report=report)
    typed: dict[str, Any] = {} if protocol is None else {"protocol": protocol}
    if max_dets is not None:
        typed["max_dets"] = _numbers(max_dets)
    answer = evaluate_predictions(dataset, found, report=report, **typed)
    if skipped:
        typer.echo(f"otus: left out {len(skipped)} faulty records, the first: {skipped[0]}", err=True)
    if as_json:
        emit_json({**answer.document(), **({"skipped": len(skipped)} if skip_bad else {})})
    else:
        _print_table(answer)


def _numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        fail(f"--max-dets: expected whole numbers with commas between, e.g. 1,10,100, got {text!r}", code=2)


def _print_table(report: "EvaluationReport") -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    console.print(f"{report.data}: {report.images} pictures, protocol {report.protocol}", highlight=False)
    for kind, result in report.results.items():
        table = Table(title=f"{report.protocol} {kind}", title_justify="left")
        table.add_column("category")
        names = ("AP", "AP50")
        for name in names:
            table.add_column(name, justify="right")
        for category, figures in result.per_category.items():
            if figures["AP"] == figures["AP"]:  # NaN: nothing to find
                table.add_row(category, *(f"{figures[name]:.3f}" for name in names))
        table.add_section()
        table.add_row("all", *(f"{result.figures[name]:.3f}" for name in names))
        console.print(table)
        console.print(" ".join(f"{name} {value:.3f}" for name, value in result.figures.items()), highlight=False)
    for kind, reason in report.left_out.items():
        console.print(f"{kind} left out: {reason}", highlight=False)
