"""``otus train``: teach a model on pictures with labels."""

from pathlib import Path
from typing import Annotated

import typer

from otus.cli._common import fail, option_values, output_folder, path_or_share, verb


@verb
def train(
    model: Annotated[str | None, typer.Option(help="A name; see otus models.")] = None,
    data: Annotated[
        list[Path] | None, typer.Option(help="Pictures with labels; several are joined by the names of categories.")
    ] = None,
    val: Annotated[str | None, typer.Option(help="What to validate on: a data set, or a share such as 0.1.")] = None,
    weights: Annotated[str | None, typer.Option(help="Start from: packaged, a name of weights, or a file.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the pictures.")] = None,
    minutes: Annotated[float | None, typer.Option(help="A budget of time instead of epochs.")] = None,
    rate: Annotated[str | None, typer.Option("--lr", help="Learning rate; find tries some first.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Pictures in one pass, over all devices.")] = None,
    accumulate: Annotated[int | None, typer.Option(help="Passes for one step of the optimizer.")] = None,
    optimizer: Annotated[str | None, typer.Option(help="adamw or sgd.")] = None,
    image_size: Annotated[int | None, typer.Option(help="Pixels of the pictures' longer side.")] = None,
    boxes: Annotated[str | None, typer.Option(help="modal, or amodal: whole objects as if nothing hid them.")] = None,
    patience: Annotated[int | None, typer.Option(help="Stop after so many validations without a better one.")] = None,
    validate_every: Annotated[int | None, typer.Option(help="Epochs from one validation to the next.")] = None,
    precision: Annotated[str | None, typer.Option(help="32-true or bf16-mixed; the fastest here without it.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of everything random.")] = None,
    workers: Annotated[int | None, typer.Option(help="Threads that load pictures.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, mps or auto.")] = None,
    devices: Annotated[int | None, typer.Option(help="Processes on this machine.")] = None,
    num_nodes: Annotated[int | None, typer.Option(help="Machines, set up as by torchrun.")] = None,
    format_: Annotated[str | None, typer.Option("--format", help="Of the data, where several are found.")] = None,
    split: Annotated[str | None, typer.Option(help="Part of the data to learn from, e.g. train.")] = None,
    val_split: Annotated[str | None, typer.Option(help="Part of the data to validate on, e.g. val.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of runs; OTUS_RUNS or ./runs without it.")] = None,
    name: Annotated[str | None, typer.Option(help="Of the run; the model's without it.")] = None,
    config: Annotated[
        Path | None, typer.Option(help="Start as another run was started: its config.json or folder; options replace.")
    ] = None,
    resume: Annotated[Path | None, typer.Option(help="Folder of a run to go on with; the rest as it was.")] = None,
) -> None:
    """Train a model; the weights, figures and curves go to runs/TASK/NAME."""
    if resume is not None and config is not None:
        fail("--resume goes on with a run, --config starts one like it: give one of them", code=2)
    if resume is None and config is None:
        if not data:
            fail("train needs --data, images with labels; or --resume or --config, a run", code=2)
        from otus.data.open import choose_layouts

        for one in data:
            choose_layouts(one, format=format_, split=split)
        if model is None and weights is None:
            fail(
                "train needs --weights packaged (the best start for most data), or --model NAME (see otus models)",
                code=2,
            )
    if resume is not None and (out is not None or name is not None):
        fail("--out and --name are of a new run; one that is resumed stays in its folder", code=2)

    if out is not None:
        output_folder(out, "the folders of runs")

    from otus.training.devices import fastest_precision
    from otus.training.run import repeat_run, resume_run
    from otus.training.run import train as run
    from otus.training.settings import make_settings

    typed = option_values(
        model=model,
        data=data,
        val=path_or_share(val),
        weights=weights,
        image_size=image_size,
        format=format_,
        split=split,
        val_split=val_split,
    )
    settings = option_values(
        epochs=epochs,
        minutes=minutes,
        learning_rate=None if rate == "find" else rate,
        batch_size=batch_size,
        accumulate=accumulate,
        optimizer=optimizer,
        boxes=boxes,
        patience=patience,
        validate_every=validate_every,
        precision=precision,
        seed=seed,
        workers=workers,
        device=device,
        devices=devices,
        num_nodes=num_nodes,
    )
    new = option_values(out=out, name=name, find_rate=(rate == "find") or None)
    if config is not None:
        trained = repeat_run(config, arguments=typed, settings=settings, **new)
    elif resume is None:
        settings.setdefault("precision", fastest_precision(**option_values(device=device)))
        trained = run(
            typed.pop("model", None),
            typed.pop("data"),
            **typed,
            settings=make_settings(settings),
            **new,
        )
    else:
        trained = resume_run(resume, arguments=typed, settings=settings)
    if trained.result.ended == "interrupted":
        fail(f"stopped and saved; go on with: otus train --resume {trained.folder}", code=130)
    score = trained.result.best_score
    figure = "top-1 accuracy" if "classification/top1" in trained.result.history[-1] else "AP"
    typer.echo(f"{trained.best}" + ("" if score is None else f"  {figure} {score:.3f}"))
