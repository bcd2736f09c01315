"""``otus explain …``: see how a system, or a number, came about."""

from pathlib import Path
from typing import Annotated

import typer

from otus.cli._common import emit_json, verb

app = typer.Typer(help="See how a system, or a number, came about.", no_args_is_help=True)


@app.callback()
def explain() -> None:
    """See how a system, or a number, came about."""


@app.command()
@verb
def taxonomy(
    picture: Annotated[str, typer.Argument(metavar="PICTURE", help="A picture of the data set: its name or path.")],
    data: Annotated[Path, typer.Option("--data", help="Pictures with labels: a folder or an annotation file.")],
    out: Annotated[
        Path | None, typer.Option("--out", help="The PNG to write; taxonomy-<picture>.png without it.")
    ] = None,
    format_: Annotated[
        str | None, typer.Option("--format", help="Format of the data, where several are found.")
    ] = None,
    split: Annotated[str | None, typer.Option("--split", help="Part of the data, e.g. val.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """One picture's labels as each task would answer: classification, semantic, detection, instance, panoptic."""
    from PIL import Image

    from otus.data.lookup import find_picture
    from otus.data.open import open_dataset
    from otus.errors import UsageError
    from otus.reports.taxonomy import answers_for
    from otus.reports.taxonomy_page import draw_answers

    dataset = open_dataset(data, format=format_, split=split)
    sample = dataset[find_picture(dataset, picture)]
    path = out or Path(f"taxonomy-{Path(sample.key).stem}.png")
    if path.suffix.lower() != ".png":
        raise UsageError(f"--out: expected a file that ends in .png, got {path}")
    answers = answers_for(sample, dataset.categories)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(draw_answers(answers)).save(path)
    if as_json:
        height, width = sample.size_hw
        document = {"file": sample.key, "width": width, "height": height, "picture": str(path)}
        emit_json(document | answers.document())
        return
    for task, origin in answers.origins.items():
        typer.echo(f"{task}: {origin}")
    typer.echo(f"written to {path}")
