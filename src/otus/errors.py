"""Every error that Otus raises on purpose.

A message names the file, line or field, what was expected, what came, and what to do about it.
"""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NoReturn


class OtusError(Exception):
    """Base of all errors that a user can fix. The command line prints the message and exits with 1."""


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """Return the end of an error message that suggests the nearest of the known names; empty if none is near."""
    from difflib import get_close_matches  # takes its time to import, and is needed once at most

    by_folded = {name.casefold(): name for name in names}
    near = get_close_matches(name.casefold(), by_folded, n=1)
    if not near and len(name) > 2:
        near = [folded for folded in by_folded if folded.startswith(name.casefold())]
    return f"; did you mean {by_folded[near[0]]!r}?" if near else ""


class UsageError(OtusError):
    """The command or the call was wrong (exit 2)."""


class ShapeError(OtusError, ValueError):
    """An array has another shape, type or range than the one documented."""


class DataError(OtusError, ValueError):
    """A file of a data set is invalid.

    Parameters
    ----------
    problem
        What was expected and what came.
    file
        The file at fault.
    where
        The record, line or field in it, e.g. ``annotations[3].bbox`` or ``line 7``.
    remedy
        What to do.
    kind
        A word for counting problems alike, e.g. ``missing_image``.
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
        place = ": ".join(str(part) for part in (file, where) if part)
        text = f"{place}: {problem}" if place else problem
        super().__init__(f"{text} ({remedy})" if remedy else text)
        self.problem = problem
        self.file = None if file is None else Path(file)
        self.where = where
        self.remedy = remedy
        self.kind = kind


class ImageError(DataError):
    """An image or video is missing, unreadable, truncated, too large, or not an image."""


class CheckpointError(OtusError):
    """A file of weights does not fit the model, or is not a file of weights."""


class FetchError(OtusError):
    """A file could not be downloaded, or has another content than expected; the message says where to put it by hand."""


class ExportError(OtusError):
    """A model cannot be exported, or what was exported predicts something else."""


class TrainingError(OtusError):
    """A training run cannot go on, e.g. because a loss is not finite."""


class MissingExtraError(OtusError, ImportError):
    """An optional package is not installed; the message has the pip command that brings it."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(f"{purpose} needs the package {package!r}: pip install 'otus[{extra}]'")


Report = Callable[[DataError], None]
"""What gets each problem of a data set; see :func:`stop_at_first`."""


def stop_at_first(problem: DataError) -> NoReturn:
    """Raise the problem: the default, strict ``report``."""
    raise problem
