"""The command ``otus``: one thin module a verb.

Nothing here imports torch, numpy or pydantic at the top, so that ``otus --help`` answers at once; a verb imports what it
needs when it runs. stdout carries the answer, stderr progress and logs; exit 0 done, 1 the work failed, 2 wrong command.
"""

import io
import sys
from typing import Annotated

import typer

from otus.cli import benchmark, compare, convert, doctor, evaluate, explain, models, predict, propose, train
from otus.cli._common import examples

app = typer.Typer(
    name="otus",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

_VERBS = (
    (
        predict.predict,
        "otus predict photos/ --page",
        "otus predict film.mp4 --categories person,dog --score-threshold 0.7",
    ),
    (
        train.train,
        "otus train --weights packaged --data photos/annotations.json --val 0.2 --minutes 10",
        "otus train --resume runs/instance/mask_rcnn_efficientnet_lite0_fpn",
    ),
    (
        evaluate.evaluate,
        "otus evaluate --data annotations.json --predictions results.json",
        "otus evaluate --data voc2007 --split val --model fcos_efficientnet_lite0_fpn --plots plots",
    ),
    (
        compare.compare,
        "otus compare --data photos --models fcos_efficientnet_lite0_fpn,mine=runs/detection/fcos --val-split val",
        "otus compare --data annotations.json --predictions a.json,b.json",
    ),
    (
        propose.propose,
        "otus propose street.jpg --out proposals.png",
        "otus propose street.jpg --method rpn --count 100 --json",
    ),
    (
        convert.convert,
        "otus convert annotations.json yolo-data --to yolo",
        "otus convert voc2007 coco-data --to coco --split val --images link",
    ),
    (doctor.doctor, "otus doctor photos", "otus doctor photos --split train --ignore same_photograph"),
    (models.models, "otus models", "otus models --json"),
)
for function, *commands in _VERBS:
    app.command(function.__name__, epilog=examples(*commands))(function)
app.add_typer(explain.app, name="explain")
app.add_typer(benchmark.app, name="benchmark")


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version
        from platform import python_version

        from otus import __version__

        typer.echo(f"otus {__version__}, torch {version('torch')}, Python {python_version()}")
        raise typer.Exit


@app.callback()
def otus(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the versions of otus and torch.")
    ] = False,
) -> None:
    """Find things in images: label a few, train any system, know how good it is, predict, correct."""


def main() -> None:
    """Entry point of the command ``otus``."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # names of files may hold bytes that are no text
        sys.stdout.reconfigure(errors="backslashreplace")
    app()
