"""List the images in a folder, without system files and the output of Otus itself."""

import os
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from otus.errors import DataError, ImageError, stop_at_first

IMAGE_SUFFIXES = frozenset(
    (
        ".jpg",
        ".jpeg",
        ".jfif",
        ".png",
        ".bmp",
        ".tif",
        ".tiff",
        ".webp",
        ".gif",
        ".ppm",
        ".pgm",
        ".pbm",
        ".avif",
        ".jp2",
    )
)

# Output folders that commands create in the working directory, which may be the data folder; the images in them are not
# data. A user's own folder may have the same name, so it must also contain a file that the command writes; "runs" is a
# common name, so there the file must be the configuration of an Otus run.
_OWN_OUTPUT = {
    "otus-predictions": "predictions.json",
    "otus-compare": "rows/*.json",
    "otus-lineage": "*.json",
    "runs": "*/*/config.json",
}
_RUN_CONFIG_MARKER = b'"data_digest"'
_SYSTEM_NAMES = frozenset(("__macosx", "thumbs.db", "desktop.ini", "@eadir", "$recycle.bin"))


def list_images(
    folder: str | Path,
    *,
    recursive: bool = False,
    suffixes: Collection[str] = IMAGE_SUFFIXES,
    report: Callable[[DataError], None] = stop_at_first,
) -> list[Path]:
    """Return the image files in a folder, sorted.

    System files (:func:`is_system_file`) and subfolders with the output of Otus (:func:`is_own_output`) are skipped.

    Parameters
    ----------
    folder
        The folder to list.
    recursive
        Whether to search subfolders, also those that are symbolic links (default: False).
    suffixes
        File suffixes to include, in lower case (default: the known image suffixes).
    report
        Called with an error for each unreadable folder, which is then skipped (default: raise the first).

    Raises
    ------
    DataError
        If ``folder`` is not a folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError("expected a folder of images", file=folder, remedy="check the path")
    images: list[Path] = []

    def report_unreadable(error: OSError) -> None:
        problem = f"cannot be read: {error.strerror}"
        report(ImageError(problem, file=error.filename, remedy="change its permissions", kind="unreadable_image"))

    for parent, folders, names in walk_folders(folder, onerror=report_unreadable):
        folders[:] = [name for name in folders if recursive and not is_own_output(Path(parent, name))]
        images += [
            Path(parent, name)
            for name in names
            if not is_system_file(name) and os.path.splitext(name)[1].lower() in suffixes
        ]
    return sorted(images)


def walk_folders(
    folder: Path, *, onerror: Callable[[OSError], None] | None = None
) -> Iterator[tuple[str, list[str], list[str]]]:
    """Walk a folder as :func:`os.walk` does, follow symbolic links, and visit each folder once.

    Links are followed last, so that a folder is visited under its own name, if it has one in ``folder``. Folders of the
    operating system (:func:`is_system_file`) and links to a folder that contains ``folder`` are skipped.
    """
    visited = set(folder.resolve().parents)
    starts = [folder]
    for start in starts:
        for parent, folders, names in os.walk(start, onerror=onerror):
            actual = Path(parent).resolve()
            if actual in visited:
                folders.clear()
                continue
            visited.add(actual)
            folders[:] = sorted(name for name in folders if not is_system_file(name))
            yield parent, folders, names
            starts += [Path(parent, name) for name in folders if os.path.islink(os.path.join(parent, name))]


def check_name_is_utf8(name: str, file: Path) -> None:
    """Raise if the name of an image cannot be written to JSON or XML; Python keeps other bytes as lone surrogates.

    Raises
    ------
    ImageError
        It names ``file``; of the kind ``not_utf8``.
    """
    try:
        name.encode()
    except UnicodeEncodeError:
        raise ImageError("its name is not UTF-8", file=file, remedy="rename it", kind="not_utf8") from None


def is_system_file(name: str) -> bool:
    """Return whether a file or folder name is hidden or belongs to an operating system.

    Hidden names start with a dot (``._a.xml``, ``.DS_Store``, ``.ipynb_checkpoints``); further names are those of
    macOS, Windows and Synology, such as ``Thumbs.db``.
    """
    return (name.startswith(".") and name not in (".", "..")) or name.lower() in _SYSTEM_NAMES


def is_own_output(folder: Path) -> bool:
    """Return whether a folder is the default output folder of an Otus command."""
    pattern = _OWN_OUTPUT.get(folder.name)
    files = () if pattern is None else (file for file in folder.glob(pattern) if file.is_file())
    return any(folder.name != "runs" or _RUN_CONFIG_MARKER in file.read_bytes() for file in files)
