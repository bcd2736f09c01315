"""``otus evaluate``: how good predictions are."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from otus.cli._common import (
    answer_console,
    counting,
    emit_json,
    fail,
    option_values,
    output_file,
    output_folder,
    tell_notes,
    verb,
)

if TYPE_CHECKING:
    from otus.errors import DataError
    from otus.evaluation.evaluate import EvaluationReport


_PROTOCOL_HELP = """Evaluation protocol: coco, voc07, voc12, boundary, oriented, cuboid, amodal, proposals, \
panoptic, semantic, classification or interactive."""


@verb
def evaluate(
    data: Annotated[
        Path | None, typer.Option("--data", help="Images with ground truth: a folder or an annotation file.")
    ] = None,
    run: Annotated[
        Path | None, typer.Option("--run", help="Folder of a training: its best weights on the images it kept aside.")
    ] = None,
    val: Annotated[
        float | None, typer.Option("--val", help="Judge on this share of the images, which train --val keeps aside.")
    ] = None,
    predictions: Annotated[
        Path | None,
        typer.Option(
            "--predictions",
            help="Predictions to evaluate: COCO results, or the file or folder that the protocol reads.",
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model", help="Model to evaluate instead: a name (see otus models), a file of weights, or a run folder."
        ),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            "--weights",
            help="Weights to load for a named model: a file, or the name of published weights.",
            show_default="the best available",
        ),
    ] = None,
    device: Annotated[
        str | None, typer.Option("--device", help="Device of the model: cpu, cuda, mps or auto.", show_default="auto")
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(
            "--precision", help="Precision of the model: exact, float32, bfloat16 or auto.", show_default="exact"
        ),
    ] = None,
    format_: Annotated[
        str | None,
        typer.Option("--format", help="Format of the labels, where several are found.", show_default="recognised"),
    ] = None,
    split: Annotated[
        str | None, typer.Option("--split", help="Part of the data, e.g. val.", show_default="the only one")
    ] = None,
    protocol: Annotated[
        str | None, typer.Option("--protocol", help=_PROTOCOL_HELP, show_default="the first that the labels suit")
    ] = None,
    max_dets: Annotated[
        str | None,
        typer.Option(
            "--max-dets",
            help="Maximum detections per image and category, e.g. 1,10,100.",
            show_default="the protocol's own",
        ),
    ] = None,
    choose_thresholds: Annotated[
        bool,
        typer.Option(
            "--choose-thresholds", help="Choose the score threshold of best F1 for each category, for otus predict."
        ),
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", help="JSON file for the chosen thresholds; .json is added.", show_default="the model's own file"
        ),
    ] = None,
    plots: Annotated[
        Path | None,
        typer.Option(
            "--plots",
            help="Folder for plots: precision-recall, confusion matrix, error costs.",
            show_default="no plots",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Skip invalid records and count them.")] = False,
) -> None:
    """Judge predictions by the labels of a data set, and say by which protocol."""
    from otus.errors import stop_at_first
    from otus.evaluation.evaluate import evaluate as judge

    if data is None and run is None:
        fail("give --data PATH, or --run FOLDER of a training", code=2)
    if run is not None and predictions is None and model is None:
        model = str(run)
    if (predictions is None) == (model is None):
        fail("give --predictions FILE or --model NAME, one of them", code=2)
    if out is not None and not choose_thresholds:
        fail("--out is the file for the thresholds of --choose-thresholds", code=2)
    out = None if out is None else output_file(out, "thresholds.json")
    if plots is not None:
        output_folder(plots, "the plots", option="--plots")
    skipped: list[DataError] = []
    with nullcontext() if model is None else counting("predicting") as count:
        answer = judge(
            data,
            predictions=predictions,
            model=model,
            run=run,
            val=val,
            report=skipped.append if skip_bad else stop_at_first,
            progress=count,
            **option_values(
                weights=weights,
                device=device,
                precision=precision,
                format=format_,
                split=split,
                protocol=protocol,
                max_dets=None if max_dets is None else _numbers(max_dets),
            ),
        )
    if answer.unknown_categories:
        typer.echo(f"otus: {model} does not know {', '.join(answer.unknown_categories)}", err=True)
    if answer.without_prediction:
        missed = _count(answer.without_prediction, "image")
        typer.echo(f"otus: {missed} without a prediction: counted as missed", err=True)
    tell_notes(answer.notes)
    skipped_kinds = Counter(one.kind for one in skipped)
    if skipped:
        kinds = ", ".join(f"{number} {kind}" for kind, number in skipped_kinds.most_common())
        typer.echo(
            f"otus: left out {_count(len(skipped), 'faulty record')} ({kinds}), the first: {skipped[0]}", err=True
        )
    if answer.judged is None and (plots is not None or choose_thresholds):
        fail(f"protocol {answer.protocol}: --plots and --choose-thresholds are for objects in boxes", code=2)
    further: dict[str, Any] = {}
    try:
        if plots is not None or choose_thresholds:
            _look_closer(answer, further, plots=plots, choose=choose_thresholds, out=out, model=model, weights=weights)
    finally:  # what cannot be written must not cost the figures, which may have taken hours
        if as_json:
            emit_json({**answer.document(), **({"skipped": dict(skipped_kinds)} if skip_bad else {}), **further})
        else:
            _print_table(answer)
            _print_further(further)


def _look_closer(
    answer: "EvaluationReport",
    further: dict[str, Any],
    *,
    plots: Path | None,
    choose: bool,
    out: Path | None,
    model: str | None,
    weights: str | None,
) -> None:
    """What ``--plots`` and ``--choose-thresholds`` ask for, done; the members that they add to the document, as they are."""
    from otus.evaluation.comparing import compare_with_labels
    from otus.evaluation.thresholds import choose_thresholds

    assert answer.judged is not None
    dataset, found = answer.judged
    comparison = compare_with_labels(dataset, found, report=lambda fault: None)  # told already
    if choose:
        chosen = choose_thresholds(comparison, data=answer.data)
        own = None
        if model is not None:
            from otus.zoo.weights import weights_file

            own = next((file for path in (weights, model) if path is not None and (file := weights_file(path))), None)
        if out is None and own is not None and Path(own).suffix == ".safetensors":
            written = chosen.write_into(own)
        else:
            written = chosen.write(out or f"{Path(model or 'predictions').stem}-thresholds.json")
        further["score_thresholds"] = {**chosen.document(), "written": str(written)}
    if plots is not None:
        from otus.reports.analysis import Analysis

        further["plots"] = [str(path) for path in Analysis(comparison).write_plots(plots)]


def _print_further(further: Mapping[str, Any]) -> None:
    if "score_thresholds" in further:
        from rich.table import Table

        chosen = further["score_thresholds"]
        table = Table(title=f"score thresholds with {chosen['chosen_by']}", title_justify="left")
        for name in ("category", "threshold", "precision", "recall", "F1", "objects"):
            table.add_column(name, justify="left" if name == "category" else "right")
        for category, cut in chosen["per_category"].items():
            shares = [f"{cut[name]:.3f}" for name in ("threshold", "precision", "recall", "f1")]
            table.add_row(category, *shares, str(cut["objects"]))
        console = answer_console()
        console.print(table)
        if chosen["without"]:
            console.print(f"without a threshold, nothing right was found of them: {', '.join(chosen['without'])}")
        console.print(f"thresholds written to {chosen['written']}")
    if "plots" in further:
        typer.echo(f"{_count(len(further['plots']), 'plot')} in {Path(further['plots'][0]).parent}")


def _numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        fail(f"--max-dets: expected whole numbers with commas between, e.g. 1,10,100, got {text!r}", code=2)


def _print_table(report: "EvaluationReport") -> None:
    from rich.table import Table

    def row(name: str, figures: Mapping[str, float], columns: Iterable[str]) -> list[str]:
        values = [figures.get(column, math.nan) for column in columns]
        return [name, *("" if math.isnan(value) else f"{value:.3f}" for value in values)]

    console = answer_console()
    console.print(f"{report.data}: {_count(report.images, 'image')}, protocol {report.protocol}")
    for kind, result in report.results.items():
        title = kind if kind.startswith(report.protocol) else f"{report.protocol} {kind}"
        if not result.per_category:
            console.print(title)
            console.print(_in_words(result.figures))
            continue
        table = Table(title=title, title_justify="left")
        table.add_column("category")
        columns = list(next(iter(result.per_category.values())))
        for name in columns:
            table.add_column(name, justify="right")
        for category, figures in result.per_category.items():
            table.add_row(*row(category, figures, columns))
        table.add_section()
        # The mean of a column is a figure of its name, or of its name with an m: mIoU, MABO.
        means = {name if name in columns else name[1:]: value for name, value in result.figures.items()}
        table.add_row(*row("all", means, columns))
        console.print(table)
        shown = {prefix + column for column in columns for prefix in ("", "m", "M")}
        console.print(_in_words({name: value for name, value in result.figures.items() if name not in shown}))
    for kind, reason in report.left_out.items():
        console.print(f"{kind} left out: {reason}")


def _in_words(figures: Mapping[str, float]) -> str:
    return "  ".join(f"{name} {value:.3f}" for name, value in figures.items() if not math.isnan(value))


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"
