"""``otus train``: train a model on labelled images."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from otus.cli._common import fail, given_options, output_folder, path_or_fraction, verb
from otus.cli._options import Device, Format


@verb
def train(
    model: Annotated[
        str | None, typer.Option(help="Model by name (see otus models).", show_default="that of --weights")
    ] = None,
    data: Annotated[
        list[Path] | None,
        typer.Option(
            help="Labelled images: a folder or an annotation file; may be repeated, categories are merged by name."
        ),
    ] = None,
    val: Annotated[
        str | None,
        typer.Option(
            help="Validation data: a data set, or the fraction of the training images to hold out, e.g. 0.2.",
            show_default="the split val beside a split train, else none",
        ),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            help="Initial weights: packaged, a file, a run folder, or the name of published weights.",
            show_default="random",
        ),
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Epochs.", show_default="12")] = None,
    minutes: Annotated[
        float | None, typer.Option(help="Time budget in minutes, instead of --epochs.", show_default="none")
    ] = None,
    learning_rate: Annotated[
        str | None,
        typer.Option(
            "--learning-rate",
            "--lr",
            help="Learning rate, or find: search for one first.",
            show_default="the model's own",
        ),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(help="Images in a batch, over all devices.", show_default="8, or fewer with few --minutes"),
    ] = None,
    accumulate: Annotated[
        int | None,
        typer.Option(help="Batches whose gradients are accumulated for one optimizer step.", show_default="1"),
    ] = None,
    optimizer: Annotated[str | None, typer.Option(help="Optimizer: adamw or sgd.", show_default="adamw")] = None,
    image_size: Annotated[
        int | None,
        typer.Option(help="Longer side of the network's input images, in pixels.", show_default="the model's own"),
    ] = None,
    boxes: Annotated[
        str | None,
        typer.Option(
            help="Boxes to train on: modal, or amodal (whole objects, occluded parts too).", show_default="modal"
        ),
    ] = None,
    loss: Annotated[
        list[str] | None,
        typer.Option(
            help="Loss of a semantic segmenter: cross-entropy, focal, dice, lovasz or ohem; repeated, their sum.",
            show_default="the model's own",
        ),
    ] = None,
    class_weights: Annotated[
        str | None,
        typer.Option(
            help="Weights of categories in the cross-entropy of a semantic segmenter: median-frequency.",
            show_default="all 1",
        ),
    ] = None,
    frozen_encoder: Annotated[
        bool,
        typer.Option(
            "--frozen-encoder", help="Freeze the image encoder of a promptable model, which is then trained faster."
        ),
    ] = False,
    patience: Annotated[
        int | None,
        typer.Option(help="Early stopping: validations without improvement; 0 for never.", show_default="0"),
    ] = None,
    validate_every: Annotated[
        int | None, typer.Option(help="Epochs between validations.", show_default="1, or a tenth of the time budget")
    ] = None,
    precision: Annotated[
        str | None, typer.Option(help="Precision: 32-true or bf16-mixed.", show_default="the fastest on this machine")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Random seed.", show_default="0")] = None,
    workers: Annotated[int | None, typer.Option(help="Threads that load images.", show_default="2")] = None,
    device: Device = None,
    devices: Annotated[int | None, typer.Option(help="Devices on this machine.", show_default="1")] = None,
    num_nodes: Annotated[int | None, typer.Option(help="Machines, set up as by torchrun.", show_default="1")] = None,
    format_: Format = None,
    split: Annotated[
        str | None,
        typer.Option(help="Split to train on, e.g. train.", show_default="the only one, or train beside val"),
    ] = None,
    val_split: Annotated[
        str | None, typer.Option(help="Split to validate on, e.g. val.", show_default="see --val")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for runs; this one goes to TASK/NAME in it.", show_default="$OTUS_RUNS or runs"),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the run.", show_default="the model's name")] = None,
    config: Annotated[
        Path | None,
        typer.Option(help="Repeat a run from its config.json or folder; options given here replace its own."),
    ] = None,
    resume: Annotated[Path | None, typer.Option(help="Resume an interrupted run: its folder.")] = None,
) -> None:
    """Train a model; weights, figures and curves are written to runs/TASK/NAME."""
    if out is not None:
        output_folder(out, "the folders of runs")
    if resume is not None and config is not None:
        fail("--resume continues a run, --config starts a new one like it: give one of them", code=2)
    if resume is None and config is None:
        if not data:
            fail("train needs --data (labelled images), or a run by --resume or --config", code=2)
        from otus.data.open import choose_layouts

        for path in data:
            choose_layouts(path, format=format_, split=split)
        if model is None and weights is None:
            fail(
                "train needs --weights packaged (the best start for most data), or --model NAME (see otus models)",
                code=2,
            )
    if resume is not None and (out is not None or name is not None):
        fail("--out and --name are for a new run; a resumed run stays in its folder", code=2)
    if resume is not None and learning_rate == "find":
        fail("--learning-rate find is for a new run; a resumed run keeps its rate", code=2)

    from otus.errors import DataError
    from otus.training.devices import fastest_precision
    from otus.training.run import repeat_run, resume_run
    from otus.training.run import train as run
    from otus.training.settings import make_settings
    from otus.training.state import score_name

    arguments = given_options(
        model=model,
        data=data,
        val=path_or_fraction(val),
        weights=weights,
        image_size=image_size,
        format=format_,
        split=split,
        val_split=val_split,
    )
    settings = given_options(
        epochs=epochs,
        minutes=minutes,
        learning_rate=None if learning_rate == "find" else learning_rate,
        batch_size=batch_size,
        accumulate=accumulate,
        optimizer=optimizer,
        boxes=boxes,
        loss=loss or None,
        class_weights=class_weights,
        frozen_encoder=frozen_encoder or None,
        patience=patience,
        validate_every=validate_every,
        precision=precision,
        seed=seed,
        workers=workers,
        device=device,
        devices=devices,
        num_nodes=num_nodes,
    )
    new = given_options(out=out, name=name, find_rate=(learning_rate == "find") or None)
    try:
        if config is not None:
            trained = repeat_run(config, arguments=arguments, settings=settings, **new)
        elif resume is None:
            settings.setdefault("precision", fastest_precision(**given_options(device=device)))
            trained = run(
                arguments.pop("model", None),
                arguments.pop("data"),
                **arguments,
                settings=make_settings(settings),
                **new,
            )
        else:
            trained = resume_run(resume, arguments=arguments, settings=settings)
    except DataError as error:
        where = shlex.join(map(str, data)) if data else "DATA"
        fail(f"{error}\notus doctor {where} lists all problems of the data")
    if trained.rank:  # the first process of several speaks for all
        raise typer.Exit
    if trained.result.ended == "interrupted":
        fail(f"stopped and saved; continue with: otus train --resume {trained.folder}", code=130)
    score = trained.result.best_score
    validation: dict[str, object] = next((row for row in reversed(trained.result.history) if "score" in row), {})
    typer.echo(f"{trained.best}" + ("" if score is None else f"  {score_name(validation)} {score:.3f}"))
