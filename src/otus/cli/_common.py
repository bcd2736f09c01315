"""What the verbs share: how errors end a command, and how the answer leaves it."""

import functools
import json
import math
import sys
from collections.abc import Callable
from typing import Any, NoReturn, ParamSpec, TypeVar

import typer

P = ParamSpec("P")
R = TypeVar("R")


def fail(message: str, *, code: int = 1) -> NoReturn:
    """Say why on stderr and end the command."""
    print(f"otus: {message}", file=sys.stderr)
    raise typer.Exit(code)


def verb(function: Callable[P, R]) -> Callable[P, R]:
    """End a verb by the rules of the house: 1 where the work failed, 2 where the command was wrong, no traceback."""

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        from otus.errors import OtusError, UsageError

        try:
            return function(*args, **kwargs)
        except UsageError as error:
            fail(str(error), code=2)
        except OtusError as error:
            fail(str(error))
        except KeyboardInterrupt:
            fail("stopped", code=130)

    return run


def emit_json(document: Any) -> None:
    """Write the one JSON document of a command to stdout; a figure that is not defined (NaN) becomes null."""
    json.dump(_plain(document), sys.stdout, ensure_ascii=False, allow_nan=False)
    sys.stdout.write("\n")


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if hasattr(value, "tolist"):  # numpy, which this module must not import
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
