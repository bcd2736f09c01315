"""``otus compare``: which of several is better, and how sure that is."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from otus.cli._common import (
    answer_console,
    emit_json,
    fail,
    option_values,
    output_folder,
    path_or_share,
    tell_notes,
    verb,
)

if TYPE_CHECKING:
    from otus.metrics.diagnosis.bootstrap import Difference


@verb
def compare(
    data: Annotated[Path, typer.Option("--data", help="Images with ground truth: a folder or an annotation file.")],
    predictions: Annotated[
        str | None, typer.Option("--predictions", help="Two files of COCO results to compare: A.json,B.json.")
    ] = None,
    models: Annotated[
        str | None,
        typer.Option(
            "--models",
            help="Models to compare, with commas between: names (see otus models), files, run folders, or LABEL=FILE.",
        ),
    ] = None,
    budget: Annotated[
        float | None,
        typer.Option(help="Minutes to train each model that is given by name alone.", show_default="no training"),
    ] = None,
    val: Annotated[
        str | None,
        typer.Option(
            help="Images to evaluate models on: a data set, or the share to keep aside.",
            show_default="0.2 with --budget, else all",
        ),
    ] = None,
    val_split: Annotated[str | None, typer.Option(help="Split to evaluate models on.", show_default="--split")] = None,
    limit: Annotated[
        int | None, typer.Option(help="Evaluate models on this many images only, evenly spaced.", show_default="all")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images in a training batch.", show_default="4")] = None,
    device: Annotated[
        str | None, typer.Option(help="Device of the models: cpu, cuda, mps or auto.", show_default="auto")
    ] = None,
    precision: Annotated[
        str | None, typer.Option(help="Precision of prediction: exact, float32, bfloat16 or auto.", show_default="auto")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the comparison of models; what is finished there is kept.", show_default="otus-compare"
        ),
    ] = None,
    protocol: Annotated[
        str | None,
        typer.Option(
            "--protocol",
            help="Protocol: coco, voc07 or voc12, with settings, e.g. coco:max_dets=10.",
            show_default="coco",
        ),
    ] = None,
    masks: Annotated[bool, typer.Option("--masks", help="Compare masks, not boxes.")] = False,
    resamples: Annotated[int | None, typer.Option(help="Bootstrap resamples.", show_default="1000")] = None,
    confidence: Annotated[
        float | None, typer.Option(help="Confidence level of the intervals.", show_default="0.95")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Random seed, of the bootstrap and of training.", show_default="0")
    ] = None,
    format_: Annotated[
        str | None,
        typer.Option("--format", help="Format of the labels, where several are found.", show_default="recognised"),
    ] = None,
    split: Annotated[
        str | None, typer.Option("--split", help="Part of the data, e.g. val.", show_default="the only one")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """Train or load models, judge and time them on the same images; or judge the predictions of two by the same labels:
    the difference of each figure, and whether it is more than luck.
    """
    of_models = option_values(val=path_or_share(val), val_split=val_split, limit=limit, precision=precision, out=out)
    training = option_values(batch_size=batch_size, device=device)
    of_predictions = option_values(protocol=protocol, masks=masks or None, resamples=resamples, confidence=confidence)
    if (predictions is None) == (models is None):
        fail("give --models A,B,C or --predictions A.json,B.json, one of them", code=2)
    foreign = of_predictions if predictions is None else of_models | training | option_values(budget=budget)
    if foreign:
        names = ", ".join("--" + name.replace("_", "-") for name in foreign)
        fail(f"{names}: not with {'--models' if predictions is None else '--predictions'}", code=2)
    if models is not None:
        if out is not None:
            output_folder(out, "the tables, weights and images of the comparison")
        from otus.cli._compare_models import compare_models

        compare_models(
            models.split(","),
            data,
            budget=budget,
            training=training | option_values(seed=seed),
            as_json=as_json,
            **of_models,
            **option_values(format=format_, split=split),
        )
        return
    assert predictions is not None
    from otus.data.open import open_dataset
    from otus.errors import UsageError
    from otus.evaluation.comparing import compare_with_labels, notes_on
    from otus.metrics.detection.rules import parse_rules
    from otus.metrics.diagnosis.bootstrap import CONFIDENCE, RESAMPLES, SEED, paired_bootstrap

    files = predictions.split(",")
    if len(files) != 2:
        raise UsageError(f"--predictions: expected two files with a comma between, A.json,B.json, got {predictions!r}")
    rules = parse_rules(protocol or "coco")
    dataset = open_dataset(data, format=format_, split=split)
    a, b = (compare_with_labels(dataset, Path(one)) for one in files)
    draws = {"resamples": RESAMPLES, "confidence": CONFIDENCE, "seed": SEED}
    draws |= option_values(resamples=resamples, confidence=confidence, seed=seed)
    rows = paired_bootstrap(a, b, rules, masks=masks, **draws)  # type: ignore[arg-type]
    document = {
        "protocol": protocol or "coco",
        "data": str(dataset.source),
        "kind": "segm" if masks else "bbox",
        "images": len(dataset),
        "a": files[0],
        "b": files[1],
        **draws,
        "figures": {row.name: _record(row) for row in rows if row.name not in dataset.categories},
        "per_category": {row.name: _record(row) for row in rows if row.name in dataset.categories},
        **tell_notes(notes_on(a, b)),
    }
    if as_json:
        emit_json(document)
    else:
        _print_table(document)


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

    console = answer_console()
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
    verdict = "nobody can say" if math.isnan(first["low"]) else _verdict(first["low"], first["high"])
    console.print(f"By AP {verdict} (paired bootstrap over images, {document['resamples']} draws).")


def _verdict(low: float, high: float) -> str:
    if low > 0:
        return "B is better"
    return "A is better" if high < 0 else "the difference may be luck"
