"""``otus compare``: compare models in a table, or two files of predictions with confidence intervals."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from otus.cli._common import (
    emit_json,
    fail,
    given_options,
    output_folder,
    path_or_fraction,
    print_notes,
    stdout_console,
    verb,
)
from otus.cli._options import AsJson, Data, Device, Format, Masks, Precision, Protocol, Split

if TYPE_CHECKING:
    from otus.metrics.diagnosis.bootstrap import Difference


@verb
def compare(
    data: Data,
    predictions: Annotated[
        str | None, typer.Option("--predictions", help="Two files of COCO results to compare: A.json,B.json.")
    ] = None,
    models: Annotated[
        str | None,
        typer.Option(
            "--models",
            help="Models to compare, separated by commas: names (see otus models), files, run folders, or LABEL=FILE.",
        ),
    ] = None,
    vary: Annotated[
        list[str] | None,
        typer.Option(
            "--vary",
            help="Argument of the models to vary, all else equal: a name, e.g. upsampling, or NAME=VALUE,VALUE; may be "
            "repeated for combinations.",
            show_default="none",
        ),
    ] = None,
    seeds: Annotated[
        int | None,
        typer.Option(
            "--seeds", help="Trainings per model, with the seeds --seed, --seed + 1 …", show_default="3 with --vary"
        ),
    ] = None,
    minutes: Annotated[
        float | None,
        typer.Option(help="Minutes to train each model that is given by name alone.", show_default="no training"),
    ] = None,
    epochs: Annotated[
        int | None,
        typer.Option(help="With --vary or --seeds: epochs of each training, instead of --minutes.", show_default="12"),
    ] = None,
    image_size: Annotated[
        int | None,
        typer.Option(
            "--image-size",
            help="Longer side of the images that models are trained on, in pixels.",
            show_default="160 with --vary or --seeds, else the model's own",
        ),
    ] = None,
    val: Annotated[
        str | None,
        typer.Option(
            help="Images to evaluate models on: a data set, or the fraction of the images to hold out.",
            show_default="0.2 with --minutes, else all",
        ),
    ] = None,
    val_split: Annotated[str | None, typer.Option(help="Split to evaluate models on.", show_default="--split")] = None,
    limit: Annotated[
        int | None, typer.Option(help="Evaluate models on this many images only, evenly spaced.", show_default="all")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images in a training batch.", show_default="4")] = None,
    device: Device = None,
    precision: Precision = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for a comparison of models; a second run continues it.", show_default="otus-compare"),
    ] = None,
    protocol: Protocol = None,
    masks: Masks = False,
    resamples: Annotated[int | None, typer.Option(help="Bootstrap resamples.", show_default="1000")] = None,
    confidence: Annotated[
        float | None, typer.Option(help="Confidence level of the intervals.", show_default="0.95")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Random seed of the bootstrap and of training.", show_default="0")
    ] = None,
    format_: Format = None,
    split: Split = None,
    as_json: AsJson = False,
) -> None:
    """Compare models, or two files of predictions.

    --models: train or load each, evaluate and time all on the same images. --vary: train each model with each value of an
    argument and several seeds, and show mean and spread. --predictions: the difference of each figure, with its confidence
    interval.
    """
    model_options = given_options(
        val=path_or_fraction(val), val_split=val_split, limit=limit, precision=precision, out=out, image_size=image_size
    )
    ablation_options = given_options(vary=vary, seeds=seeds, epochs=epochs)
    training = given_options(batch_size=batch_size, device=device)
    prediction_options = given_options(
        protocol=protocol, masks=masks or None, resamples=resamples, confidence=confidence
    )
    if (predictions is None) == (models is None):
        fail("give either --models A,B,C or --predictions A.json,B.json", code=2)
    conflicting = (
        prediction_options
        if predictions is None
        else model_options | training | ablation_options | given_options(minutes=minutes)
    )
    if conflicting:
        names = ", ".join("--" + name.replace("_", "-") for name in conflicting)
        fail(f"{names}: not with {'--models' if predictions is None else '--predictions'}", code=2)
    if models is not None:
        if out is not None:
            output_folder(out, "the tables, weights and images of a comparison")
        from otus.cli._compare_models import compare_models

        if ablation_options.keys() == {"epochs"}:
            fail("--epochs: only with --vary or --seeds; to train each model once, give --minutes", code=2)
        compare_models(
            models.split(","),
            data,
            vary=_parse_vary(vary or []) if ablation_options else None,
            seeds=seeds,
            minutes=minutes,
            training=training | given_options(seed=seed, epochs=epochs),
            as_json=as_json,
            **model_options,
            **given_options(format=format_, split=split),
        )
        return
    assert predictions is not None
    from otus.data.open import open_dataset
    from otus.errors import UsageError
    from otus.evaluation.comparing import compare_with_labels, prediction_notes
    from otus.metrics.detection.rules import parse_rules
    from otus.metrics.diagnosis.bootstrap import CONFIDENCE, RESAMPLES, SEED, paired_bootstrap

    files = predictions.split(",")
    if len(files) != 2:
        raise UsageError(f"--predictions: expected two files separated by a comma, A.json,B.json, got {predictions!r}")
    rules = parse_rules(protocol or "coco")
    dataset = open_dataset(data, format=format_, split=split)
    a, b = (compare_with_labels(dataset, Path(file)) for file in files)
    bootstrap = {"resamples": RESAMPLES, "confidence": CONFIDENCE, "seed": SEED}
    bootstrap |= given_options(resamples=resamples, confidence=confidence, seed=seed)
    rows = paired_bootstrap(a, b, rules, masks=masks, **bootstrap)  # type: ignore[arg-type]
    document = {
        "protocol": protocol or "coco",
        "data": str(dataset.source),
        "kind": "segm" if masks else "bbox",
        "images": len(dataset),
        "a": files[0],
        "b": files[1],
        **bootstrap,
        "figures": {row.name: _record(row) for row in rows if row.name not in dataset.categories},
        "per_category": {row.name: _record(row) for row in rows if row.name in dataset.categories},
        **print_notes(prediction_notes(a, b)),
    }
    if as_json:
        emit_json(document)
    else:
        _print_table(document)


def _parse_vary(texts: list[str]) -> dict[str, list[str]]:
    """Parse ``NAME`` (an empty list, for all values of the argument) and ``NAME=VALUE,VALUE``."""
    pairs = [text.partition("=") for text in texts]
    return {name.strip(): [value.strip() for value in values.split(",") if value.strip()] for name, _, values in pairs}


def _record(row: "Difference") -> dict[str, float]:
    return {
        "a": row.a,
        "b": row.b,
        "difference": row.difference,
        "low": row.low,
        "high": row.high,
        "a_better": row.a_better,
        "b_better": row.b_better,
    }


def _print_table(document: dict[str, Any]) -> None:
    from rich.table import Table

    console = stdout_console()
    console.print(
        f"{document['data']}: {document['images']} images, protocol {document['protocol']} {document['kind']}"
    )
    console.print(f"A {document['a']}\nB {document['b']}")
    table = Table()
    names = ("", "A", "B", "B - A", f"{document['confidence']:.0%} interval", "A better", "B better")
    for number, name in enumerate(names):
        table.add_column(name, justify="right" if number else "left")
    for part in ("per_category", "figures"):
        for name, row in document[part].items():
            if not math.isnan(row["a"]):
                table.add_row(
                    name, f"{row['a']:.3f}", f"{row['b']:.3f}", f"{row['difference']:+.3f}",
                    f"{row['low']:+.3f} … {row['high']:+.3f}", f"{row['a_better']:.0%}", f"{row['b_better']:.0%}",
                )  # fmt: skip
        table.add_section()
    console.print(table)
    first = next(iter(document["figures"].values()))
    verdict = "the difference is undefined" if math.isnan(first["low"]) else _verdict(first["low"], first["high"])
    console.print(f"By AP, {verdict} (paired bootstrap over images, {document['resamples']} resamples).")


def _verdict(low: float, high: float) -> str:
    if low > 0:
        return "B is better"
    return "A is better" if high < 0 else "the difference may be chance"
