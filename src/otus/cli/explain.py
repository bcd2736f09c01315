"""``otus explain …``: see how a system, or a number, came about."""

import typer

app = typer.Typer(help="See how a system, or a number, came about.", no_args_is_help=True)
