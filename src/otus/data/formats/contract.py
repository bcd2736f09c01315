"""What every format offers, and the few things that all of them share.

A format is one module with some of:

- ``find(path) -> list[Layout]``: the data sets of this format at a path, cheaply (names of files, the first bytes);
- ``read(layout, *, report) -> Dataset``: ``report`` gets each problem as a :class:`~otus.errors.DataError`; the default
  raises the first one, ``otus doctor`` collects them; after reporting, the reader leaves the faulty record out and goes on;
- ``write(dataset, folder, *, pictures) -> list[Loss]``: what the target could not hold comes back, object by object.
"""

import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NoReturn

from otus.data.dataset import Dataset
from otus.errors import DataError

Report = Callable[[DataError], None]
PictureMode = Literal["copy", "link", "none"]
"""What a writer does with the pictures: copy them, link to them (hard, else symbolic), or leave them where they are."""


def stop_at_first(problem: DataError) -> NoReturn:
    """The strict way to take a problem: raise it."""
    raise problem


@dataclass(frozen=True)
class Layout:
    """A data set that was recognised at a path, not read yet.

    ``source`` is the file or folder that a reader starts from, ``split`` its part where the format has parts.
    """

    format: str
    source: Path
    split: str | None = None


@dataclass(frozen=True)
class Loss:
    """Something that a target format cannot hold.

    ``kind`` is a word to count by (``holes``, ``parts``, ``crowd``, ``keypoints``, ``score`` …), ``object_id`` the id of
    the annotation, None for what concerns the whole picture.
    """

    kind: str
    picture: str
    object_id: int | None
    message: str


@contextmanager
def staged_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder beside ``folder`` that takes its name when the block ends without an error.

    So nothing half-written is ever found under the final name. DataError if the name is taken by something not empty.
    """
    folder = folder.absolute()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError("exists already and is not empty", file=folder, remedy="choose another target or remove it")
    folder.parent.mkdir(parents=True, exist_ok=True)
    stage = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    stage.chmod(0o755)
    try:
        yield stage
        if folder.exists():
            folder.rmdir()
        stage.rename(folder)
    except BaseException:
        shutil.rmtree(stage, ignore_errors=True)
        raise


@contextmanager
def staged_file(path: str | Path) -> Iterator[Path]:
    """A path beside ``path`` that takes its name (and replaces what has it) when the block ends without an error."""
    path = Path(path).absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    stage = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}{path.suffix}")
    try:
        yield stage
        stage.replace(path)
    finally:
        stage.unlink(missing_ok=True)


def place_pictures(dataset: Dataset, folder: Path, mode: PictureMode, *, names: Sequence[str] | None = None) -> None:
    """Copy or link a data set's pictures into ``folder``, under their own relative names or those given."""
    if mode == "none":
        return
    for index, name in enumerate(names or dataset.pictures.files):
        source, target = dataset.pictures.path(index), folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if mode == "copy":
            shutil.copyfile(source, target)
            continue
        try:
            os.link(source.resolve(), target)
        except OSError:  # another file system
            target.symlink_to(source.resolve())
