"""``otus benchmark …``: the speed of systems on this machine."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from otus.cli._common import emit_json, examples, given_options, output_folder, progress_bar, stdout_console, verb
from otus.cli._options import AsJson, Precision

app = typer.Typer(help="Measure the speed of systems on this machine.", no_args_is_help=True)


@app.callback()
def benchmark() -> None:
    """Measure the speed of systems on this machine."""


@app.command(
    epilog=examples("otus benchmark lineage --small", "otus benchmark lineage a.jpg b.jpg c.jpg --out timings")
)
@verb
def lineage(
    images: Annotated[
        list[str] | None,
        typer.Argument(metavar="[IMAGES]...", help="Three or more images.", show_default="those of scikit-image"),
    ] = None,
    small: Annotated[bool, typer.Option("--small", help="A small backbone instead of VGG-16.")] = False,
    proposals: Annotated[int | None, typer.Option(help="Maximum proposals per image.", show_default="2000")] = None,
    precision: Precision = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for the timings; a second run continues them.", show_default="otus-lineage"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Time R-CNN, SPP-net, Fast R-CNN and Faster R-CNN on the same images, with and without computing proposals."""
    from otus.data.sources import read_source
    from otus.experiments.lineage import measure_lineage

    if out is not None:
        output_folder(out, "the timings")
    named_images = [(image.name, image.image) for image in read_source(images or _default_images())]
    with progress_bar("timing") as update:
        last_step = ""

        def report(step: str, done: int, total: int) -> None:
            nonlocal last_step
            update(done, total)
            if step != last_step:
                last_step = step
                typer.echo(f"otus: {step}", err=True)

        table = measure_lineage(
            named_images,
            small=small,
            report=report,
            **given_options(proposals=proposals, precision=precision, folder=out),
        )
    document = table.document()
    if as_json:
        emit_json(document)
    else:
        _print(document)


@app.command(epilog=examples("otus benchmark semantic", "otus benchmark semantic street.jpg --image-size 160 --json"))
@verb
def semantic(
    image: Annotated[
        Path | None, typer.Argument(metavar="[IMAGE]", help="An image.", show_default="a synthetic scene")
    ] = None,
    image_size: Annotated[
        int | None, typer.Option("--image-size", help="Longer side of the image, in pixels.", show_default="320")
    ] = None,
    repeats: Annotated[
        int | None, typer.Option(help="Timed forward passes per architecture.", show_default="3")
    ] = None,
    precision: Precision = None,
    as_json: AsJson = False,
) -> None:
    """Measure the costs of semantic segmentation: by sliding window, at full resolution, by encoder and decoder."""
    from otus.data.images import read_image
    from otus.data.scenes.generator import Scenes
    from otus.errors import UsageError
    from otus.experiments.segmentation_costs import measure_segmentation_costs

    options = given_options(image_size=image_size, repeats=repeats, precision=precision)
    for name, number in options.items():
        if name != "precision" and number < 1:
            raise UsageError(f"{name}: expected 1 or more, got {number}")
    pixels = Scenes(1)[0].image if image is None else read_image(image)
    with progress_bar("measuring") as update:
        costs = measure_segmentation_costs(
            pixels,
            name="a synthetic scene" if image is None else str(image),
            report=lambda way, done, total: update(done, total),
            **options,
        )
    document = costs.document()
    if as_json:
        emit_json(document)
    else:
        _print_costs(document)


def _default_images() -> list[str]:
    """Return the paths of three photographs of scikit-image."""
    from importlib.util import find_spec

    from otus.errors import UsageError

    spec = find_spec("skimage")
    if spec is None or spec.origin is None:
        raise UsageError("benchmark lineage: give three or more images, or pip install scikit-image to use its images")
    folder = Path(spec.origin).parent / "data"
    return [str(folder / name) for name in ("astronaut.png", "chelsea.png", "coffee.png")]


def _print(document: dict[str, Any]) -> None:
    from rich.table import Table

    console = stdout_console()
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


def _print_costs(document: dict[str, Any]) -> None:
    from rich.table import Table

    console = stdout_console()
    console.print(
        f"{document['image']}, {document['width']} x {document['height']}; random weights, {document['precision']}, "
        f"{document['threads']} threads"
    )
    table = Table()
    for number, title in enumerate(("way", "s", "multiply-adds", "parameters", "memory", "sees")):
        table.add_column(title, justify="right" if number else "left")
    for row in document["rows"]:
        memory = "" if row["memory_mb"] is None else f"{row['memory_mb']:.0f} MB"
        table.add_row(
            row["way"],
            f"{row['seconds']:.3g}",
            f"{row['multiply_adds'] / 1e9:.3g} G",
            f"{row['parameters']:,}",
            memory,
            f"{row['sees']} x {row['sees']}",
        )
    console.print(table)
