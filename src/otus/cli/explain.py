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


@app.command()
@verb
def detection(
    picture: Annotated[Path, typer.Argument(metavar="PICTURE", help="A picture.")],
    model: Annotated[str | None, typer.Option("--model", help="A name (see otus models) or a file of weights.")] = None,
    weights: Annotated[str | None, typer.Option("--weights", help="Of a name: which weights, or a file.")] = None,
    score_threshold: Annotated[float | None, typer.Option(help="Show what is at least so certain.")] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="The HTML page; detection-<picture>.html without it.")
    ] = None,
    device: Annotated[str | None, typer.Option("--device", help="cpu, cuda, mps or auto.")] = None,
    precision: Annotated[
        str | None, typer.Option("--precision", help="exact, float32, bfloat16 or auto, the fastest, as predict.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """The stages of one picture: maps, anchors, proposals, scores before and after suppression, boxes and masks."""
    from otus.cli._common import option_values
    from otus.data.pictures import read_picture
    from otus.inference.loading import load
    from otus.reports.detection_stages import explain_detection

    predictor = load(model, **option_values(weights=weights, device=device), precision=precision or "auto")
    image = read_picture(picture)
    stages = explain_detection(predictor, image, name=str(picture), **option_values(score_threshold=score_threshold))
    path = out or Path(f"detection-{picture.stem}.html")
    page = stages.page()
    page.write(path)
    if as_json:
        emit_json({**stages.document(), "page": str(path)})
        return
    for section in page.sections:
        typer.echo(f"{section.title}: {section.text}" if section.text else section.title)
    typer.echo(f"written to {path}")
