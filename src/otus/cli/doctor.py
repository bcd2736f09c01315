"""``otus doctor``: check a data set for errors."""

from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from otus.cli._common import emit_json, print_notes, progress_bar, stdout_console, verb

if TYPE_CHECKING:
    from otus.data.checks.doctor import DataReport

_SHOWN_EXAMPLES = 3
_SHOWN_CATEGORIES = 25


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
    """Check a data set for errors; exit 1 if there are any.

    Finds missing or unreadable images and those of another size than stated, boxes outside the image or without area, masks
    that disagree with boxes, unknown or unused categories, duplicate ids or objects, and the same photograph twice or in two
    splits.
    """
    from otus.data.checks.doctor import check_path
    from otus.errors import did_you_mean

    with progress_bar("checking images") as count:
        report = check_path(path, format=format, split=split, progress=count)
    for kind in ignore or ():
        if kind not in report.counts and (hint := did_you_mean(kind, report.counts)):
            print_notes([f"--ignore {kind}: no finding is of this kind{hint}"])
    report = report.without(ignore or ())
    if json:
        emit_json(_document(path, report))
    else:
        _print_report(path, report)
    if report.findings:
        raise typer.Exit(1)


def _document(path: Path, report: "DataReport") -> dict[str, object]:
    layouts = report.layouts
    return {
        "data": str(path),
        "format": ", ".join(dict.fromkeys(layout.format for layout in layouts)),
        "splits": list(dict.fromkeys(layout.split for layout in layouts if layout.split is not None)),
        "layouts": [
            {"format": layout.format, "split": layout.split, "source": str(layout.source)} for layout in layouts
        ],
        "images": report.image_count,
        "objects": report.object_count,
        "per_category": {name: list(numbers) for name, numbers in report.per_category.items()},
        "findings": [
            {"kind": finding.kind, "file": finding.file, "where": finding.where, "message": finding.message}
            for finding in report.findings
        ],
        "counts": report.counts,
        "unlisted": [str(path) for path in report.unlisted],
    }


def _print_counts(report: "DataReport") -> None:
    """Print a table: one row per category, the most frequent first, one column per split."""
    from rich.table import Table

    if not report.per_category:
        return
    table = Table("category")
    for layout in report.layouts:
        table.add_column(
            layout.split or (layout.source.name if len(report.layouts) > 1 else "objects"), justify="right"
        )
    rows = sorted(report.per_category.items(), key=lambda row: -sum(row[1]))
    for name, counts in rows[:_SHOWN_CATEGORIES]:
        table.add_row(name, *map(str, counts))
    if len(rows) > _SHOWN_CATEGORIES:
        hidden_rows = (counts for _, counts in rows[_SHOWN_CATEGORIES:])
        sums = [sum(counts) for counts in zip(*hidden_rows, strict=True)]
        table.add_row(f"{len(rows) - _SHOWN_CATEGORIES} more (--json has all)", *map(str, sums))
    stdout_console().print(table)


def _print_report(path: Path, report: "DataReport") -> None:
    parts = [f"{layout.format} {layout.split or layout.source.name}" for layout in dict.fromkeys(report.layouts)]
    typer.echo(f"{path}: {', '.join(parts)}")
    typer.echo(f"{report.image_count} images, {report.object_count} objects")
    _print_counts(report)
    if report.unlisted:
        names = ", ".join(path.name for path in report.unlisted[:_SHOWN_EXAMPLES])
        more = len(report.unlisted) - _SHOWN_EXAMPLES
        typer.echo(
            f"note: {len(report.unlisted)} more images are in the folder but not in the labels, so they are not used: "
            f"{names}{f' and {more} more (--json has all)' if more > 0 else ''}"
        )
    if not report.findings:
        typer.echo("no problems found")
    for kind, count in report.counts.items():
        typer.echo(f"\n{kind:<28}{count:>8}")
        for finding in islice((finding for finding in report.findings if finding.kind == kind), _SHOWN_EXAMPLES):
            typer.echo(f"    {': '.join(part for part in (finding.file, finding.where, finding.message) if part)}")
        if count > _SHOWN_EXAMPLES:
            typer.echo(f"    and {count - _SHOWN_EXAMPLES} more (--json has all)")
