"""``otus predict``: run a model on images and videos."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from otus.cli._common import averaging_of, emit_json_stream, fail, given_options, output_folder, track, verb
from otus.cli._options import (
    AsJson,
    Device,
    Flip,
    Model,
    Precision,
    Runtime,
    Scales,
    ScoreThreshold,
    SemanticModel,
    Weights,
)

if TYPE_CHECKING:
    from otus.inference.prediction import Prediction

_CONSEQUENCES = {"damaged_video": "damaged", "unwritable": "no overlay"}
"""What an error means for its file, by kind of error (default: the file is skipped)."""


@verb
def predict(
    source: Annotated[list[str], typer.Argument(help="Images, folders, glob patterns or videos.")],
    model: Model = None,
    semantic_model: SemanticModel = None,
    weights: Weights = None,
    score_threshold: ScoreThreshold = None,
    thresholds: Annotated[
        Path | None,
        typer.Option(
            "--thresholds", help="Score thresholds per category: the file of otus evaluate --choose-thresholds."
        ),
    ] = None,
    nms_iou: Annotated[
        float | None,
        typer.Option(
            help="NMS: boxes of the same class whose IoU with a higher-scoring one exceeds this are removed.",
            show_default="the model's own",
        ),
    ] = None,
    categories: Annotated[
        str | None, typer.Option(help="Categories to predict, e.g. person,dog.", show_default="all")
    ] = None,
    tiles: Annotated[
        int | None,
        typer.Option(help="Side in pixels of the tiles that large images are cut into.", show_default="no tiles"),
    ] = None,
    tile_overlap: Annotated[
        float | None,
        typer.Option(help="Overlap of neighbouring tiles, as a fraction of their side.", show_default="0.2"),
    ] = None,
    tile_whole: Annotated[
        bool | None,
        typer.Option(
            "--tile-whole/--no-tile-whole",
            help="With --tiles, predict on the whole image too.",
            show_default="--tile-whole",
        ),
    ] = None,
    refine_masks: Annotated[
        str | None,
        typer.Option(
            help="Promptable method that predicts masks for the boxes: grabcut, or a promptable model: a name or file.",
            show_default="the model's own masks, if any",
        ),
    ] = None,
    flip: Flip = False,
    scales: Scales = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Images, or tiles of one, in a batch.", show_default="1")
    ] = None,
    max_pixels: Annotated[
        int | None, typer.Option(help="Largest image to decode, in pixels.", show_default="180000000")
    ] = None,
    stride: Annotated[int | None, typer.Option(help="Predict every n-th frame of a video.", show_default="1")] = None,
    device: Device = None,
    precision: Precision = None,
    runtime: Runtime = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for overlays and predictions.json.", show_default="otus-predictions, or none with --json"
        ),
    ] = None,
    page: Annotated[bool, typer.Option("--page", help="Write index.html too: overlays and a table.")] = False,
    as_json: AsJson = False,
) -> None:
    """Predict objects in images or videos; write them as overlays and JSON."""
    from contextlib import nullcontext

    from otus.errors import DataError, UsageError
    from otus.evaluation.thresholds import read_thresholds
    from otus.inference.loading import load
    from otus.inference.prediction import postprocess_settings
    from otus.inference.tiling import Tiles
    from otus.reports.predictions import PredictionFolder
    from otus.training.interrupts import Interrupts

    if tiles is None and (tile_overlap is not None or tile_whole is not None):
        raise UsageError("--tile-overlap and --tile-whole need --tiles")
    if thresholds is not None and score_threshold is not None:
        raise UsageError("--thresholds and --score-threshold: give one of them")
    if page and as_json and out is None:
        raise UsageError("--page needs --out with --json: the folder to write to")
    if out is None and not as_json:
        out = Path("otus-predictions")
    if out is not None:
        output_folder(out, "overlays and predictions.json")
    options = given_options(weights=weights, semantic_model=semantic_model, device=device, runtime=runtime)
    predictor = load(model, **options, precision=precision or "auto")
    minimum_score = score_threshold if thresholds is None else read_thresholds(thresholds)
    names = None if categories is None else [name.strip() for name in categories.split(",")]
    tiling = None if tiles is None else Tiles(tiles, **given_options(overlap=tile_overlap, whole_image=tile_whole))
    averaging = averaging_of(scales, flip=flip)
    errors: list[DataError] = []
    predictions = predictor.stream(
        source,
        tiles=tiling,
        categories=names,
        report=errors.append,
        **given_options(
            score_threshold=minimum_score,
            nms_iou=nms_iou,
            batch_size=batch_size,
            stride=stride,
            max_pixels=max_pixels,
            averaging=averaging,
            refine_masks=refine_masks,
        ),
    )
    folder = None
    if out is not None:
        folder = PredictionFolder(
            out,
            categories=predictor.categories,
            page=page,
            score_thresholds=predictor.category_thresholds(minimum_score),
            report=errors.append,
            **given_options(stride=stride),
        )
        folder.refuse_sources(_files(source))

    def write_and_yield() -> "Iterator[Prediction]":
        for prediction in track(predictions, "predicting"):
            if folder is not None:
                prediction = folder.add(prediction)
            for note in prediction.notes:
                typer.echo(f"otus: note: {prediction.name} {note}", err=True)
            yield prediction
            if interrupts.requested:
                return

    try:
        with folder or nullcontext(), Interrupts() as interrupts:
            if as_json:
                postprocess = predictor.postprocess(minimum_score, nms_iou, names)
                settings = postprocess_settings(postprocess, predictor.categories, tiling, averaging)
                settings |= given_options(refine_masks=refine_masks)
                emit_json_stream(
                    {"model": predictor.name, **settings},
                    "images",
                    (prediction.to_dict() for prediction in write_and_yield()),
                )
            else:
                for prediction in write_and_yield():
                    typer.echo(_line(prediction))
        if not as_json and folder is not None and folder.written:
            count = len(folder.written)
            files = "predictions.json and index.html" if page else "predictions.json"
            typer.echo(f"{count} {'overlay' if count == 1 else 'overlays'} and {files} in {out}")
            if folder.smaller:
                typer.echo(f"smaller than their image: {'; '.join(folder.smaller)}")
    finally:
        for error in errors:
            typer.echo(f"otus: {_CONSEQUENCES.get(error.kind, 'skipped')}: {error}", err=True)
    if interrupts.requested:
        fail("stopped; all predictions before that are written", code=130)
    if errors:
        raise typer.Exit(1)


def _files(sources: list[str]) -> Iterator[Path]:
    """Yield the files of all sources; a source that cannot be read is reported when it is predicted on."""
    from otus.data.sources import source_files
    from otus.errors import DataError

    for source in sources:
        with suppress(DataError):
            yield from source_files(source)


def _line(prediction: "Prediction") -> str:
    """Return ``street.jpg 640x480: 3 person, 1 dog (prepare 2, network 61, undo 0 ms)``."""
    frame = "" if prediction.frame is None else f" frame {prediction.frame}"
    height, width = prediction.size_hw
    parts = ", ".join(f"{name} {value:.0f}" for name, value in prediction.milliseconds.items())
    return f"{prediction.name}{frame} {width}x{height}: {prediction.summary()} ({parts} ms)"
