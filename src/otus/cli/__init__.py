"""The command ``otus``: one thin module a verb.

Nothing here imports torch, numpy or pydantic at the top, so that ``otus --help`` answers at once; a verb imports what it
needs when it runs. stdout carries the answer, stderr progress and logs; exit 0 done, 1 the work failed, 2 wrong command.
"""

import io
import sys

import typer

from otus.cli import benchmark, compare, convert, doctor, evaluate, explain, models, predict, propose, train

app = typer.Typer(
    name="otus",
    help="Find things in pictures: label a few, train any system, know how good it is, predict, correct.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)

app.command("predict")(predict.predict)
app.command("train")(train.train)
app.command("evaluate")(evaluate.evaluate)
app.command("compare")(compare.compare)
app.command("propose")(propose.propose)
app.command("convert")(convert.convert)
app.command("doctor")(doctor.doctor)
app.command("models")(models.models)
app.add_typer(explain.app, name="explain")
app.add_typer(benchmark.app, name="benchmark")


def main() -> None:
    """Entry point of the command ``otus``."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # names of files may hold bytes that are no text
        sys.stdout.reconfigure(errors="backslashreplace")
    app()
