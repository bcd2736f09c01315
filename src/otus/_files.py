"""Write files and folders atomically; locate the cache of downloaded and computed files.

This module imports nothing of Otus but its errors.
"""

import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from otus.errors import DataError

STALE_AFTER_S = 3600


def cache_folder() -> Path:
    """Return the cache folder: ``OTUS_CACHE``, else ``$XDG_CACHE_HOME/otus``, else ``~/.cache/otus``."""
    chosen = os.environ.get("OTUS_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "otus"


@contextmanager
def staged_folder(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder that is renamed to ``folder`` when the block ends without an error.

    So a new folder is never incomplete. An existing empty folder is kept and gets the content, one file or folder after
    another: it may be the working folder, or a mount.

    Raises
    ------
    DataError
        If ``folder`` exists and is not empty, or cannot be written.
    """
    folder = folder.resolve()  # a symbolic link is kept
    with _writing(folder):
        _check_is_empty(folder)
        folder.parent.mkdir(parents=True, exist_ok=True)
        stage = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        try:
            stage.chmod(0o755)
            yield stage
            _check_is_empty(folder)
            if folder.exists():
                for path in stage.iterdir():
                    shutil.move(path, folder)
                stage.rmdir()
            else:
                stage.rename(folder)
        except BaseException:
            shutil.rmtree(stage, ignore_errors=True)
            raise


def _check_is_empty(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError("exists already and is not empty", file=folder, remedy="choose another target or remove it")


@contextmanager
def staged_file(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path that is renamed to ``path``, replacing it, when the block ends without an error."""
    path = Path(path).absolute()
    stage = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}{path.suffix}")
    with _writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield stage
            stage.replace(path)
        finally:
            stage.unlink(missing_ok=True)


@contextmanager
def _writing(target: Path) -> Iterator[None]:
    """Convert errors of the file system (disk full, no permission …) to a DataError that names the target."""
    try:
        yield
    except OSError as error:
        if isinstance(error, DataError | ConnectionError | TimeoutError) or error.errno is None:
            raise  # not an error of the file system
        reason = error.strerror or str(error)
        reason_with_file = f"{reason}: {error.filename}" if error.filename else reason
        remedy = "choose another target or make room"
        raise DataError(
            f"cannot be written, {reason_with_file}", file=target, remedy=remedy, kind="unwritable"
        ) from None


@contextmanager
def fsynced_file(path: Path) -> Iterator[Path]:
    """Like :func:`staged_file`, but flush the content to disk before the rename, which is safe against power failure.

    Temporary files of killed writers beside ``path`` are removed once they are an hour old.
    """
    for leftover in path.parent.glob(f".{path.name}.*{path.suffix}"):
        if time.time() - leftover.stat().st_mtime > STALE_AFTER_S:
            leftover.unlink(missing_ok=True)
    with staged_file(path) as stage:
        yield stage
        with open(stage, "rb+") as file:
            os.fsync(file.fileno())
    if os.name == "posix":  # elsewhere a folder cannot be flushed
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
