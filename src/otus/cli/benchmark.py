"""``otus benchmark …``: what things cost on this machine."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from otus.cli._common import answer_console, counting, emit_json, examples, option_values, output_folder, verb

app = typer.Typer(help="What things cost on this machine.", no_args_is_help=True)


@app.callback()
def benchmark() -> None:
    """What things cost on this machine."""


@app.command(
    epilog=examples("otus benchmark lineage --small", "otus benchmark lineage a.jpg b.jpg c.jpg --out timings")
)
@verb
def lineage(
    images: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[IMAGES]...", help="Three or more images.", show_default="those of scikit-image's wheel"
        ),
    ] = None,
    small: Annotated[bool, typer.Option("--small", help="A small backbone in the place of VGG-16.")] = False,
    proposals: Annotated[int | None, typer.Option(help="Maximum proposals per image.", show_default="2000")] = None,
    precision: Annotated[
        str | None, typer.Option(help="Precision: exact, float32, bfloat16 or auto, the fastest.", show_default="auto")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder that keeps each timing; a second run continues.", show_default="otus-lineage"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """R-CNN, SPP-net, Fast R-CNN and Faster R-CNN on the same images: seconds with and without finding proposals."""
    from otus.data.sources import images_of
    from otus.experiments.lineage import measure_lineage

    if out is not None:
        output_folder(out, "the timings")
    named = [(one.name, one.image) for one in images_of(images or _photographs())]
    with counting("timing") as count:
        said = ""

        def report(what: str, done: int, total: int) -> None:
            nonlocal said
            count(done, total)
            if what != said:
                said = what
                typer.echo(f"otus: {what}", err=True)

        table = measure_lineage(
            named, small=small, report=report, **option_values(proposals=proposals, precision=precision, folder=out)
        )
    document = table.document()
    if as_json:
        emit_json(document)
    else:
        _print(document)


def _photographs() -> list[str]:
    from importlib.util import find_spec

    from otus.errors import UsageError

    spec = find_spec("skimage")
    if spec is None or spec.origin is None:
        raise UsageError("benchmark lineage: name three or more images, or pip install scikit-image for its own")
    folder = Path(spec.origin).parent / "data"
    return [str(folder / name) for name in ("astronaut.png", "chelsea.png", "coffee.png")]


def _print(document: dict[str, Any]) -> None:
    from rich.table import Table

    console = answer_console()
    images = len(document["images"])
    console.print(
        f"{document['backbone']}, random weights, {document['precision']}, {document['threads']} threads; "
        f"means over {images} images; published: VGG-16 on a GPU of 2015"
    )
    table = Table()
    columns = {
        "system": "system",
        "proposals": "proposals",
        "with_proposals_s": "s, with proposals",
        "with_proposals_published_s": "published",
        "with_proposals_speedup": "x faster",
        "with_proposals_published_speedup": "published",
        "without_s": "s, without",
        "without_published_s": "published",
        "without_speedup": "x faster",
        "without_published_speedup": "published",
    }
    for number, title in enumerate(columns.values()):
        table.add_column(title, justify="right" if number else "left")
    for row in document["rows"]:
        table.add_row(*_cells(row, list(columns)))
    console.print(table)


def _cells(row: dict[str, Any], names: Sequence[str]) -> list[str]:
    values = [row[name] for name in names]
    return ["" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value) for value in values]
