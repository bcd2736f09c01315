"""Recognise Git LFS pointers: three lines of text in place of a file that Git did not fetch."""

from pathlib import Path

from otus.errors import DataError

LFS_PROBLEM = "is a Git LFS pointer, not the file itself"
LFS_REMEDY = "fetch it: git lfs pull"

_START = b"version https://git-lfs.github.com/spec/"


def is_lfs_pointer(path: str | Path) -> bool:
    """Return whether a file is a Git LFS pointer."""
    try:
        with open(path, "rb") as file:
            return file.read(len(_START)) == _START
    except OSError:
        return False


def raise_if_lfs_pointer(path: str | Path) -> None:
    """Raise DataError if a file is a Git LFS pointer."""
    if is_lfs_pointer(path):
        raise DataError(LFS_PROBLEM, file=path, remedy=LFS_REMEDY)
