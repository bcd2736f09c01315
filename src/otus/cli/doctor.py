"""``otus doctor``: find what is wrong with a data set."""

from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from otus.cli._common import emit_json, progress_bar, stdout_console, verb

if TYPE_CHECKING:
    from otus.data.checks.doctor import DataReport

_EXAMPLES = 3
_CATEGORIES = 25


@verb
def doctor(
    path: Annotated[
        Path, typer.Argument(help="Data set to check: a folder or an annotation file.", show_default=False)
    ],
    format: Annotated[str | None, typer.Option(help="Check this format only.", show_default="all")] = None,
    split: Annotated[str | None, typer.Option(help="Check this split only.", show_default="all")] = None,
    ignore: Annotated[
        list[str] | None,
        typer.Option(metavar="KIND", help="Kind of finding to ignore; may be repeated.", show_default="none"),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """Look for everything that is wrong with a data set; exit 1 if anything is.

    Missing, unreadable or mis-sized images, boxes outside the image or without area, masks that disagree with
    boxes, unknown or unused categories, ids or objects given twice, the same photograph twice or in two splits.
    """
    from otus.data.checks.doctor import check_path

    with progress_bar("looking at images") as count:
        examination = check_path(path, format=format, split=split, progress=count)
    examination = examination.without(ignore or ())
    if json:
        emit_json(_document(path, examination))
    else:
        _tell(path, examination)
    if examination.findings:
        raise typer.Exit(1)


def _document(path: Path, examination: "DataReport") -> dict[str, object]:
    layouts = examination.layouts
    return {
        "data": str(path),
        "format": ", ".join(dict.fromkeys(layout.format for layout in layouts)),
        "splits": list(dict.fromkeys(layout.split for layout in layouts if layout.split is not None)),
        "layouts": [{"format": one.format, "split": one.split, "source": str(one.source)} for one in layouts],
        "images": examination.image_count,
        "objects": examination.object_count,
        "per_category": {name: list(numbers) for name, numbers in examination.per_category.items()},
        "findings": [
            {"kind": one.kind, "file": one.file, "where": one.where, "message": one.message}
            for one in examination.findings
        ],
        "counts": examination.counts,
        "unlisted": [str(path) for path in examination.unlisted],
    }


def _tell_counts(examination: "DataReport") -> None:
    """Print a table: one row per category, the most frequent first, one column per split."""
    from rich.table import Table

    if not examination.per_category:
        return
    table = Table("category")
    for layout in examination.layouts:
        table.add_column(
            layout.split or (layout.source.name if len(examination.layouts) > 1 else "objects"), justify="right"
        )
    rows = sorted(examination.per_category.items(), key=lambda row: -sum(row[1]))
    for name, numbers in rows[:_CATEGORIES]:
        table.add_row(name, *map(str, numbers))
    if len(rows) > _CATEGORIES:
        rest = [sum(numbers) for numbers in zip(*(numbers for _, numbers in rows[_CATEGORIES:]), strict=True)]
        table.add_row(f"{len(rows) - _CATEGORIES} more (--json has all)", *map(str, rest))
    stdout_console().print(table)


def _tell(path: Path, examination: "DataReport") -> None:
    parts = [f"{layout.format} {layout.split or layout.source.name}" for layout in dict.fromkeys(examination.layouts)]
    typer.echo(f"{path}: {', '.join(parts)}")
    typer.echo(f"{examination.image_count} images, {examination.object_count} objects")
    _tell_counts(examination)
    if examination.unlisted:
        names = ", ".join(path.name for path in examination.unlisted[:_EXAMPLES])
        more = len(examination.unlisted) - _EXAMPLES
        typer.echo(
            f"note: {len(examination.unlisted)} more images lie beside them and are listed nowhere, so nothing learns from "
            f"them: {names}{f' and {more} more (--json has all)' if more > 0 else ''}"
        )
    if not examination.findings:
        typer.echo("nothing is wrong")
    for kind, count in examination.counts.items():
        typer.echo(f"\n{kind:<28}{count:>8}")
        for one in islice((one for one in examination.findings if one.kind == kind), _EXAMPLES):
            typer.echo(f"    {': '.join(part for part in (one.file, one.where, one.message) if part)}")
        if count > _EXAMPLES:
            typer.echo(f"    and {count - _EXAMPLES} more (--json has all)")
