"""``otus predict``: see what is on images."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer

from otus.cli._common import emit_json_stream, fail, option_values, output_folder, progress, verb

_FATES = {"damaged_video": "damaged", "unwritable": "no overlay"}  # of what went wrong; else the file is left out


@verb
def predict(
    source: Annotated[list[str], typer.Argument(help="Images, folders, glob patterns or videos.")],
    model: Annotated[
        str | None,
        typer.Option(
            help="Model: a name (see otus models), a file of weights, or the folder of a training run.",
            show_default="mask_rcnn_efficientnet_lite0_fpn",
        ),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            help="Weights to load for a named model: a file, or the name of published weights.",
            show_default="the best available",
        ),
    ] = None,
    score_threshold: Annotated[
        float | None, typer.Option(help="Minimum score.", show_default="0.5, or those chosen for the weights")
    ] = None,
    thresholds: Annotated[
        Path | None,
        typer.Option(
            "--thresholds", help="Score thresholds by category: the file of otus evaluate --choose-thresholds."
        ),
    ] = None,
    nms_iou: Annotated[
        float | None,
        typer.Option(
            help="NMS: boxes of one category whose IoU with a higher-scoring one exceeds this are removed.",
            show_default="the model's own",
        ),
    ] = None,
    categories: Annotated[
        str | None, typer.Option(help="Categories to predict, e.g. person,dog.", show_default="all")
    ] = None,
    tiles: Annotated[
        int | None,
        typer.Option(help="Side of the tiles that large images are cut into, in pixels.", show_default="no tiles"),
    ] = None,
    tile_overlap: Annotated[
        float | None, typer.Option(help="Overlap of neighbouring tiles, as a share of their side.", show_default="0.2")
    ] = None,
    tile_whole: Annotated[
        bool | None,
        typer.Option(
            "--tile-whole/--no-tile-whole",
            help="With --tiles, predict on the whole image too.",
            show_default="--tile-whole",
        ),
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Images, or tiles of one, in a batch.", show_default="1")
    ] = None,
    max_pixels: Annotated[
        int | None, typer.Option(help="Largest image that is decoded, pixels.", show_default="180000000")
    ] = None,
    stride: Annotated[int | None, typer.Option(help="Of a video, predict every n-th frame.", show_default="1")] = None,
    device: Annotated[str | None, typer.Option(help="Device: cpu, cuda, mps or auto.", show_default="auto")] = None,
    precision: Annotated[
        str | None, typer.Option(help="Precision: exact, float32, bfloat16 or auto, the fastest.", show_default="auto")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for overlays and predictions.json.", show_default="otus-predictions, or none with --json"
        ),
    ] = None,
    page: Annotated[bool, typer.Option("--page", help="Write index.html there too: overlays and a table.")] = False,
    json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """Find objects on images or videos; write them as overlays and JSON."""
    from contextlib import nullcontext

    from otus.errors import DataError, UsageError
    from otus.evaluation.thresholds import read_thresholds
    from otus.inference.loading import load
    from otus.inference.prediction import postprocess_facts, prediction_document
    from otus.inference.tiling import Tiles
    from otus.reports.predictions import PredictionFolder
    from otus.training.interrupts import Interrupts

    if tiles is None and (tile_overlap is not None or tile_whole is not None):
        raise UsageError("--tile-overlap and --tile-whole need --tiles")
    if thresholds is not None and score_threshold is not None:
        raise UsageError("--thresholds and --score-threshold: give one of them")
    if page and json and out is None:
        raise UsageError("--page needs --out, the folder to be written into")
    if out is None and not json:
        out = Path("otus-predictions")
    if out is not None:
        output_folder(out, "overlays and predictions.json")
    predictor = load(model, **option_values(weights=weights, device=device), precision=precision or "auto")
    minimum = score_threshold if thresholds is None else read_thresholds(thresholds)
    names = None if categories is None else [name.strip() for name in categories.split(",")]
    cut = None if tiles is None else Tiles(tiles, **option_values(overlap=tile_overlap, whole_image=tile_whole))
    bad: list[DataError] = []
    predictions = predictor.stream(
        source,
        tiles=cut,
        categories=names,
        report=bad.append,
        **option_values(
            score_threshold=minimum,
            nms_iou=nms_iou,
            batch_size=batch_size,
            stride=stride,
            max_pixels=max_pixels,
        ),
    )
    folder = None
    if out is not None:
        folder = PredictionFolder(
            out,
            categories=predictor.categories,
            page=page,
            cuts=predictor.cuts(minimum),
            report=bad.append,
            **option_values(stride=stride),
        )
        folder.refuse_sources(_files(source))

    def documents() -> Iterator[dict[str, Any]]:
        for prediction in progress(predictions, "predicting"):
            if folder is not None:
                folder.add(prediction)
            for note in prediction.notes:
                typer.echo(f"otus: note: {prediction.name} {note}", err=True)
            yield prediction_document(prediction, predictor.categories)
            if interrupts.asked:
                return

    try:
        with folder or nullcontext(), Interrupts() as interrupts:
            if json:
                postprocess = predictor.postprocess(minimum, nms_iou, names)
                said = postprocess_facts(postprocess, predictor.categories, cut)
                emit_json_stream({"model": predictor.name, **said}, "images", documents())
            else:
                for document in documents():
                    typer.echo(_line(document))
        if not json and folder is not None and folder.written:
            count = len(folder.written)
            files = "predictions.json and index.html" if page else "predictions.json"
            typer.echo(f"{count} {'overlay' if count == 1 else 'overlays'} and {files} in {out}")
            if folder.smaller:
                typer.echo(f"smaller than their image: {'; '.join(folder.smaller)}")
    finally:
        for error in bad:
            typer.echo(f"otus: {_FATES.get(error.kind, 'left out')}: {error}", err=True)
    if interrupts.asked:
        fail("stopped; what was found before is written", code=130)
    if bad:
        raise typer.Exit(1)


def _files(sources: list[str]) -> Iterator[Path]:
    """Those that there are; what is said of others is said when their turn comes."""
    from otus.data.sources import files_of
    from otus.errors import DataError

    for one in sources:
        with suppress(DataError):
            yield from files_of(one)


def _line(document: dict[str, Any]) -> str:
    """``street.jpg 640x480: 3 person, 1 dog (prepare 2, network 61, undo 0 ms)``."""
    from otus.inference.prediction import document_in_words

    found = document_in_words(document)
    frame = f" frame {document['frame']}" if "frame" in document else ""
    parts = ", ".join(f"{name} {value:.0f}" for name, value in document["milliseconds"].items())
    return f"{document['file']}{frame} {document['width']}x{document['height']}: {found} ({parts} ms)"
