"""What the verbs share: how errors end a command, and how the answer leaves it."""

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

_FILE_SUFFIXES = frozenset({".csv", ".gif", ".html", ".jpeg", ".jpg", ".json", ".mp4", ".pdf", ".png", ".svg", ".webp"})
P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


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
        except OSError as error:
            if error.errno in (None, errno.EPIPE):  # not of the file system; a reader such as head that has seen enough
                raise
            if error.filename is not None:
                fail(f"{error.filename}: {error.strerror}")
            with open(os.devnull, "w") as nowhere:  # else Python tries once more at exit, and complains
                os.dup2(nowhere.fileno(), sys.stdout.fileno())
            fail(f"the answer cannot be written, {error.strerror}")

    return run


def emit_json(document: Any) -> None:
    """Write the one JSON document of a command to stdout; a figure that is not defined (NaN) becomes null."""
    json.dump(_plain(document), sys.stdout, ensure_ascii=False, allow_nan=False)
    sys.stdout.write("\n")
    sys.stdout.flush()


def emit_json_stream(head: dict[str, Any], key: str, items: Iterable[Any]) -> None:
    """The same for a document whose last member is a long list: each item is written as it comes."""
    start = json.dumps(_plain(head), ensure_ascii=False, allow_nan=False)[:-1]
    sys.stdout.write(f'{start}, "{key}": [')
    try:
        for number, item in enumerate(items):
            text = json.dumps(_plain(item), ensure_ascii=False, allow_nan=False)
            sys.stdout.write(("," if number else "") + "\n" + text)
    finally:  # what goes wrong on the way is told by the exit code; what was found before can be read
        sys.stdout.write("\n]}\n")
        sys.stdout.flush()


def tell_notes(notes: Sequence[str]) -> dict[str, list[str]]:
    """Say on stderr what to know of an answer; the member that it adds to the document, if there is anything."""
    for note in notes:
        print(f"otus: {note}", file=sys.stderr)
    return {"notes": list(notes)} if notes else {}


def answer_console() -> "Console":
    """What prints the tables of an answer: names stand there as they are, also with [brackets] and :colons:."""
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True, markup=False, emoji=False)
    if not console.is_terminal:  # a file is as wide as the table
        console.width = 200
    return console


def examples(*commands: str) -> str:
    """What ends the help of a verb; typer makes a line of each paragraph."""
    return "\n\n".join(["Examples:", *commands])


def option_values(**options: Any) -> dict[str, Any]:
    """The options that were typed; the others keep the default of the function that they are passed to."""
    return {name: value for name, value in options.items() if value is not None}


def path_or_share(text: str | None) -> str | float | None:
    """What ``--val`` says: a share where it is a number, else a data set."""
    try:
        return None if text is None else float(text)
    except ValueError:
        return text


def output_file(out: Path | None, default: str) -> Path:
    """The one file that a verb writes: ``out``, with the suffix of ``default`` where it has none; in a folder under the
    default name.

    Raises
    ------
    UsageError
        If ``out`` has the suffix of a file of another kind.
    """
    from otus.errors import UsageError

    suffix = Path(default).suffix
    if out is None or out.is_dir():
        return (out or Path()) / default
    if out.suffix.lower() == suffix:
        return out
    if out.suffix.lower() in _FILE_SUFFIXES:
        raise UsageError(f"--out: expected a file that ends in {suffix}, got {out}")
    return out.with_name(out.name + suffix)  # what stands behind another dot belongs to the name: ap-0.5


def output_folder(out: Path, holds: str, *, option: str = "--out") -> Path:
    """The folder that a verb writes several files into; ``holds`` says which, for the message.

    Raises
    ------
    UsageError
        If ``out`` is a file, or named like one.
    """
    from otus.errors import UsageError

    if out.is_file() or (out.suffix.lower() in _FILE_SUFFIXES and not out.is_dir()):
        raise UsageError(f"{option}: expected a folder, for {holds}, got {out}")
    return out


@contextmanager
def counting(what: str) -> Iterator[Callable[..., None]]:
    """A bar on stderr while somebody watches; call what it gives with how many are done, and of how many if known."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total=None: bar.update(task, completed=done, total=total)


def progress(items: Iterable[T], what: str) -> Iterator[T]:
    """The items, counted on stderr while somebody watches."""
    with counting(what) as count:
        for number, item in enumerate(items, start=1):
            yield item
            count(number)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {_plain(str(key)): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if hasattr(value, "tolist"):  # numpy, which this module must not import
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, str):  # bytes of a file's name that are no UTF-8 are spelt out
        return value.encode("utf-8", "backslashreplace").decode("utf-8")
    return value
