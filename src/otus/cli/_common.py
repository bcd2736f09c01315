"""Helpers of the verbs: exit codes, JSON and tables on stdout, notes and progress on stderr, names of output files."""

import errno
import functools
import json
import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, ParamSpec, TypeVar

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from otus.inference.averaging import Averaging

_FILE_SUFFIXES = frozenset({".csv", ".gif", ".html", ".jpeg", ".jpg", ".json", ".mp4", ".pdf", ".png", ".svg", ".webp"})
P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


def fail(message: str, *, code: int = 1) -> NoReturn:
    """Print the message on stderr and exit, with code 2 for a wrong command and 1 for work that failed."""
    print(f"otus: {message}", file=sys.stderr)
    raise typer.Exit(code)


def verb(function: Callable[P, R]) -> Callable[P, R]:
    """Decorate a verb so that errors become a message and an exit code (1 work failed, 2 wrong command), not a traceback."""

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
        except OSError as error:
            # Not an error of the file system, or the reader (such as head) has closed the pipe.
            if error.errno in (None, errno.EPIPE):
                raise
            if error.filename is not None:
                fail(f"{error.filename}: {error.strerror}")
            with open(os.devnull, "w") as devnull:  # else Python flushes stdout again at exit, and prints an error
                os.dup2(devnull.fileno(), sys.stdout.fileno())
            fail(f"the output cannot be written, {error.strerror}")

    return run


def emit_json(document: Any) -> None:
    """Write the JSON document of a command to stdout; NaN and infinity become null."""
    json.dump(_to_json(document), sys.stdout, ensure_ascii=False, allow_nan=False)
    sys.stdout.write("\n")
    sys.stdout.flush()


def emit_json_stream(head: dict[str, Any], key: str, items: Iterable[Any]) -> None:
    """Write a JSON document whose last member, ``key``, is a long list: each item is written as soon as it is there."""
    start = json.dumps(_to_json(head), ensure_ascii=False, allow_nan=False)[:-1]
    sys.stdout.write(f'{start}, "{key}": [')
    try:
        for number, item in enumerate(items):
            text = json.dumps(_to_json(item), ensure_ascii=False, allow_nan=False)
            sys.stdout.write(("," if number else "") + "\n" + text)
    finally:  # after an error, which the exit code reports, the document is still valid and holds all items before it
        sys.stdout.write("\n]}\n")
        sys.stdout.flush()


def print_notes(notes: Sequence[str]) -> dict[str, list[str]]:
    """Print notes on stderr, and return them as a member of the JSON document (empty without notes)."""
    for note in notes:
        print(f"otus: {note}", file=sys.stderr)
    return {"notes": list(notes)} if notes else {}


def stdout_console() -> "Console":
    """Return the console for tables on stdout; markup is off, so names with [brackets] and :colons: print literally."""
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True, markup=False, emoji=False)
    if not console.is_terminal:  # a file is as wide as the table
        console.width = 200
    return console


def examples(*commands: str) -> str:
    """Return the epilog of a verb's help; typer makes a line of each paragraph."""
    return "\n\n".join(["Examples:", *commands])


def given_options(**options: Any) -> dict[str, Any]:
    """Return the options that were given (not None); the others keep the default of the function that they go to."""
    return {name: value for name, value in options.items() if value is not None}


def averaging_of(scales: str | None, *, flip: bool) -> "Averaging | None":
    """Return the views that ``--flip`` and ``--scales`` ask for; None if neither was given."""
    if scales is None and not flip:
        return None
    from otus.inference.averaging import Averaging

    try:
        return Averaging(flip, **given_options(scales=None if scales is None else tuple(map(float, scales.split(",")))))
    except ValueError:
        fail(f"--scales: expected numbers separated by commas, e.g. 0.75,1,1.25, got {scales!r}", code=2)


def path_or_fraction(text: str | None) -> str | float | None:
    """Parse ``--val``: a fraction of the images if it is a number, else the path of a data set."""
    try:
        return None if text is None else float(text)
    except ValueError:
        return text


def output_file(out: Path | None, default: str) -> Path:
    """Return the path of the one file that a verb writes.

    Parameters
    ----------
    out
        Value of ``--out``: a file, to which the suffix of ``default`` is added if it has none, or an existing folder, in
        which the file is named ``default`` (default: the working folder).
    default
        File name, with suffix.

    Raises
    ------
    UsageError
        If ``out`` has the suffix of another file type.
    """
    from otus.errors import UsageError

    suffix = Path(default).suffix
    if out is None or out.is_dir():
        return (out or Path()) / default
    if out.suffix.lower() == suffix:
        return out
    if out.suffix.lower() in _FILE_SUFFIXES:
        raise UsageError(f"--out: expected a file that ends in {suffix}, got {out}")
    return out.with_name(out.name + suffix)  # other dots belong to the name: ap-0.5


def output_folder(out: Path, content: str, *, option: str = "--out") -> Path:
    """Check that ``out`` can be a folder, and return it; ``content`` is for the error message, e.g. ``the masks``.

    Raises
    ------
    UsageError
        If ``out`` is a file, or named like one.
    """
    from otus.errors import UsageError

    if out.is_file() or (out.suffix.lower() in _FILE_SUFFIXES and not out.is_dir()):
        raise UsageError(f"{option}: expected a folder, for {content}, got {out}")
    return out


@contextmanager
def progress_bar(description: str) -> Iterator[Callable[..., None]]:
    """Show a progress bar on stderr if it is a terminal; yields ``update(done, total=None)``."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = (TextColumn(description), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task(description, total=None)
        yield lambda done, total=None: bar.update(task, completed=done, total=total)


def track(items: Iterable[T], description: str, *, total: int | None = None) -> Iterator[T]:
    """Yield the items and count them in a progress bar."""
    with progress_bar(description) as update:
        for number, item in enumerate(items, start=1):
            yield item
            update(number, total)


def _to_json(value: Any) -> Any:
    """Return a value that JSON can encode: lists for arrays and tuples, null for NaN and infinity, valid Unicode."""
    if isinstance(value, dict):
        return {_to_json(str(key)): _to_json(member) for key, member in value.items()}
    if isinstance(value, list | tuple):
        return [_to_json(item) for item in value]
    if hasattr(value, "tolist"):  # an array; numpy must not be imported here
        return _to_json(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, str):  # bytes of a file name that are not UTF-8 are written as escapes
        return value.encode("utf-8", "backslashreplace").decode("utf-8")
    return value
