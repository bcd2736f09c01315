"""``otus evaluate``: compute the metrics of predictions, or of a model, on labelled images."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from otus.cli._common import (
    averaging_of,
    emit_json,
    fail,
    given_options,
    output_file,
    output_folder,
    print_notes,
    progress_bar,
    stdout_console,
    verb,
)
from otus.cli._options import (
    AsJson,
    Device,
    Flip,
    Format,
    OptionalData,
    Runtime,
    Scales,
    SemanticModel,
    Split,
    Weights,
    ZoomIn,
)
from otus.evaluation.protocols import PROTOCOLS

if TYPE_CHECKING:
    from otus.errors import DataError
    from otus.evaluation.evaluate import EvaluationReport


_PROTOCOL_HELP = f"Evaluation protocol: {', '.join(PROTOCOLS)}."


@verb
def evaluate(
    data: OptionalData = None,
    run: Annotated[
        Path | None,
        typer.Option("--run", help="Training run to evaluate: its best weights, on the images that it held out."),
    ] = None,
    val: Annotated[
        float | None,
        typer.Option("--val", help="Evaluate on this fraction of the images, the one that train --val holds out."),
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
            "--model", help="Model to evaluate: a name (see otus models), a file of weights, or a run folder."
        ),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(
            "--method",
            help="Interactive method to evaluate by simulated clicks: graph-cut, or a promptable model: a name or a file.",
            show_default="no clicks",
        ),
    ] = None,
    zoom_in: ZoomIn = False,
    semantic_model: SemanticModel = None,
    weights: Weights = None,
    device: Device = None,
    precision: Annotated[
        str | None,
        typer.Option(
            "--precision", help="Precision: exact, float32, bfloat16 or auto, the fastest.", show_default="exact"
        ),
    ] = None,
    flip: Flip = False,
    scales: Scales = None,
    runtime: Runtime = None,
    format_: Format = None,
    split: Split = None,
    protocol: Annotated[
        str | None, typer.Option("--protocol", help=_PROTOCOL_HELP, show_default="the first that fits the labels")
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
            "--choose-thresholds", help="Choose the score threshold of the best F1 per category, for otus predict."
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
    as_json: AsJson = False,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Skip invalid records and count them.")] = False,
) -> None:
    """Evaluate predictions, or a model, against the labels of a data set, by a named protocol."""
    from otus.errors import stop_at_first
    from otus.evaluation.evaluate import evaluate as run_evaluation

    if data is None and run is None:
        fail("give --data PATH, or --run FOLDER of a training run", code=2)
    if run is not None and predictions is None and model is None and method is None:
        model = str(run)
    if sum(source is not None for source in (predictions, model, method)) != 1:
        fail("give one of --predictions FILE, --model NAME and --method NAME", code=2)
    if out is not None and not choose_thresholds:
        fail("--out is the file for the thresholds: give it with --choose-thresholds", code=2)
    out = None if out is None else output_file(out, "thresholds.json")
    if plots is not None:
        output_folder(plots, "the plots", option="--plots")
    skipped: list[DataError] = []
    with nullcontext() if predictions is not None else progress_bar("predicting") as progress:
        report = run_evaluation(
            data,
            predictions=predictions,
            model=model,
            method=method,
            run=run,
            val=val,
            report=skipped.append if skip_bad else stop_at_first,
            progress=progress,
            **given_options(
                weights=weights,
                semantic_model=semantic_model,
                device=device,
                precision=precision,
                averaging=averaging_of(scales, flip=flip),
                runtime=runtime,
                zoom_in=zoom_in or None,
                format=format_,
                split=split,
                protocol=protocol,
                max_dets=None if max_dets is None else _numbers(max_dets),
            ),
        )
    if report.unknown_categories:
        typer.echo(f"otus: {model} does not predict {', '.join(report.unknown_categories)}", err=True)
    if report.missing_predictions:
        missing = _count(report.missing_predictions, "image")
        typer.echo(f"otus: {missing} without a prediction, counted as wrong", err=True)
    print_notes(report.notes)
    skipped_kinds = Counter(error.kind for error in skipped)
    if skipped:
        kinds = ", ".join(f"{number} {kind}" for kind, number in skipped_kinds.most_common())
        typer.echo(
            f"otus: skipped {_count(len(skipped), 'invalid record')} ({kinds}), the first: {skipped[0]}", err=True
        )
    extra: dict[str, Any] = {}
    try:
        if report.evaluated is None and (plots is not None or choose_thresholds):
            fail(
                f"protocol {report.protocol}: --plots and --choose-thresholds need one for boxes or masks of objects",
                code=2,
            )
        if plots is not None or choose_thresholds:
            _write_extra_outputs(
                report, extra, plots=plots, choose=choose_thresholds, out=out, model=model, weights=weights
            )
    finally:  # print the metrics even if there are no plots or thresholds: they may have taken hours
        if as_json:
            emit_json({**report.document(), **({"skipped": dict(skipped_kinds)} if skip_bad else {}), **extra})
        else:
            _print_table(report)
            _print_extra_outputs(extra)


def _write_extra_outputs(
    report: "EvaluationReport",
    extra: dict[str, Any],
    *,
    plots: Path | None,
    choose: bool,
    out: Path | None,
    model: str | None,
    weights: str | None,
) -> None:
    """Choose score thresholds and draw plots, write them to files, and record them in ``extra``.

    Parameters
    ----------
    report
        Evaluation whose ``evaluated`` (data set and predicted objects) is not None.
    extra
        Dictionary to add to, later merged into the JSON output: ``score_thresholds`` if ``choose``, ``plots`` (paths of
        the files) if ``plots`` is given.
    plots
        Folder for the plots; None for no plots.
    choose
        Whether to choose score thresholds.
    out
        JSON file for the thresholds. If None, they are written into the ``.safetensors`` file of the model's weights,
        or without such a file into ``NAME-thresholds.json`` in the working directory.
    model, weights
        ``--model`` and ``--weights`` as given.
    """
    from otus.evaluation.comparing import compare_with_labels
    from otus.evaluation.thresholds import choose_thresholds

    assert report.evaluated is not None
    dataset, predictions = report.evaluated
    matcher = compare_with_labels(dataset, predictions, report=lambda error: None)  # already reported by evaluate
    if choose:
        chosen = choose_thresholds(matcher, data=report.data)
        weights_path = None
        if model is not None:
            from otus.zoo.weights import weights_file

            weights_path = next(
                (file for path in (weights, model) if path is not None and (file := weights_file(path))), None
            )
        if out is None and weights_path is not None and Path(weights_path).suffix == ".safetensors":
            written = chosen.write_into(weights_path)
        else:
            written = chosen.write(out or f"{Path(model or 'predictions').stem}-thresholds.json")
        extra["score_thresholds"] = {**chosen.document(), "written": str(written)}
    if plots is not None:
        from otus.reports.analysis import Analysis

        extra["plots"] = [str(path) for path in Analysis(matcher).write_plots(plots)]


def _print_extra_outputs(extra: Mapping[str, Any]) -> None:
    """Print what ``_write_extra_outputs`` recorded: a table of thresholds, and the number and folder of the plots."""
    if "score_thresholds" in extra:
        from rich.table import Table

        chosen = extra["score_thresholds"]
        table = Table(title=f"score thresholds with {chosen['chosen_by']}", title_justify="left")
        for name in ("category", "threshold", "precision", "recall", "F1", "objects"):
            table.add_column(name, justify="left" if name == "category" else "right")
        for category, point in chosen["per_category"].items():
            figures = [f"{point[name]:.3f}" for name in ("threshold", "precision", "recall", "f1")]
            table.add_row(category, *figures, str(point["objects"]))
        console = stdout_console()
        console.print(table)
        if chosen["without"]:
            console.print(f"no threshold, because no detection is correct: {', '.join(chosen['without'])}")
        console.print(f"thresholds written to {chosen['written']}")
    if "plots" in extra:
        typer.echo(f"{_count(len(extra['plots']), 'plot')} in {Path(extra['plots'][0]).parent}")


def _numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        fail(f"--max-dets: expected integers separated by commas, e.g. 1,10,100, got {text!r}", code=2)


def _print_table(report: "EvaluationReport") -> None:
    from rich.table import Table

    def row(name: str, figures: Mapping[str, float], columns: Iterable[str]) -> list[str]:
        values = [figures.get(column, math.nan) for column in columns]
        return [name, *("" if math.isnan(value) else f"{value:.3f}" for value in values)]

    console = stdout_console()
    console.print(f"{report.data}: {_count(report.images, 'image')}, protocol {report.protocol}")
    for kind, result in report.results.items():
        title = kind if kind.startswith(report.protocol) else f"{report.protocol} {kind}"
        if not result.per_category:
            console.print(title)
            console.print(_format_figures(result.figures))
            continue
        table = Table(title=title, title_justify="left")
        table.add_column("category")
        columns = list(next(iter(result.per_category.values())))
        for name in columns:
            table.add_column(name, justify="right")
        for category, figures in result.per_category.items():
            table.add_row(*row(category, figures, columns))
        table.add_section()
        # The mean of column X is the figure named X, mX or MX, e.g. IoU -> mIoU, ABO -> MABO.
        means = {name if name in columns else name[1:]: value for name, value in result.figures.items()}
        table.add_row(*row("all", means, columns))
        console.print(table)
        in_table = {prefix + column for column in columns for prefix in ("", "m", "M")}
        console.print(_format_figures({name: value for name, value in result.figures.items() if name not in in_table}))
    for kind, reason in report.skipped_kinds.items():
        console.print(f"{kind} not compared: {reason}")


def _format_figures(figures: Mapping[str, float]) -> str:
    return "  ".join(f"{name} {value:.3f}" for name, value in figures.items() if not math.isnan(value))


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
