"""Files that are either the old one or the new one, never half of one, whatever is killed and when."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from otus.data.formats.contract import staged_file

ABANDONED_AFTER_S = 3600


@contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """As ``staged_file``, and the content is on the disk before it takes the name: not even a power cut leaves half a file.

    What killed writers left beside ``path``, not written to for an hour, is removed.
    """
    for leftover in path.parent.glob(f".{path.name}.*{path.suffix}"):
        if time.time() - leftover.stat().st_mtime > ABANDONED_AFTER_S:
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
