"""The errors that Otus raises.

A message names the file, line or field, what was expected, what was found, and what to do.
"""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NoReturn


class OtusError(Exception):
    """Base of all errors that a user can fix. The command line prints the message and exits with 1."""


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """Return the end of an error message that suggests the most similar known name; empty if none is similar."""
    from difflib import get_close_matches  # slow to import

    names_by_casefold = {name.casefold(): name for name in names}
    matches = get_close_matches(name.casefold(), names_by_casefold, n=1)
    if not matches and len(name) > 2:
        matches = [casefolded for casefolded in names_by_casefold if casefolded.startswith(name.casefold())]
    return f"; did you mean {names_by_casefold[matches[0]]!r}?" if matches else ""


class UsageError(OtusError):
    """A command or call has wrong arguments. The command line exits with 2."""


class ShapeError(OtusError, ValueError):
    """An array has another shape, type or range than documented."""


class DataError(OtusError, ValueError):
    """A file of a data set is invalid.

    Parameters
    ----------
    problem
        What was expected and what was found.
    file
        The invalid file.
    where
        Record, line or field in the file, e.g. ``annotations[3].bbox`` or ``line 7``.
    remedy
        What to do about it.
    kind
        Kind of problem, for grouping, e.g. ``missing_image``.
    """

    def __init__(
        self,
        problem: str,
        *,
        file: str | Path | None = None,
        where: str | None = None,
        remedy: str | None = None,
        kind: str = "unreadable_annotation",
    ) -> None:
        location = ": ".join(str(part) for part in (file, where) if part)
        text = f"{location}: {problem}" if location else problem
        super().__init__(f"{text} ({remedy})" if remedy else text)
        self.problem = problem
        self.file = None if file is None else Path(file)
        self.where = where
        self.remedy = remedy
        self.kind = kind


class ImageError(DataError):
    """An image or video is missing, unreadable, truncated, too large, or not an image."""


class CheckpointError(OtusError):
    """A file of weights does not match the model, or is not a file of weights."""


class FetchError(OtusError):
    """A file could not be downloaded or has unexpected content; the message says where to put it manually."""


class ExportError(OtusError):
    """A model cannot be exported, or the exported model predicts something else."""


class TrainingError(OtusError):
    """A training run cannot continue, e.g. because a loss is not finite."""


class MissingExtraError(OtusError, ImportError):
    """An optional package is not installed; the message has the pip command that installs it."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(f"{purpose} needs the package {package!r}: pip install 'otus[{extra}]'")


Report = Callable[[DataError], None]
"""A function that is called with each problem of a data set, e.g. :func:`stop_at_first`."""


def stop_at_first(problem: DataError) -> NoReturn:
    """Raise the problem: the default ``report``."""
    raise problem
