"""Read text files of labels: decode any Unicode encoding, read lists of names and lines of numbers."""

import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, NamedTuple

import msgspec
import numpy as np
from jaxtyping import Float

from otus.data.git_lfs import raise_if_lfs_pointer
from otus.data.image_files import is_system_file
from otus.errors import DataError, Report

MAX_NUMBER = 1e12
"""Largest absolute value accepted from files: products of such numbers are still finite."""
Number = Annotated[float, msgspec.Meta(ge=-MAX_NUMBER, le=MAX_NUMBER)]
"""A number in a JSON file."""
Int64 = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
"""An int64 in a JSON file."""


# Encodings that XML files declare besides UTF-8; each is decoded as the largest superset.
_ENCODINGS = {
    **dict.fromkeys(("gb2312", "gbk", "gb18030", "cp936", "euc-cn"), "gb18030"),
    **dict.fromkeys(("big5", "big5-hkscs", "cp950"), "big5hkscs"),
    **dict.fromkeys(("shift-jis", "sjis", "windows-31j", "cp932"), "cp932"),
    **dict.fromkeys(("euc-kr", "ks-c-5601-1987", "cp949"), "cp949"),
    **dict.fromkeys(("iso-8859-1", "latin-1", "windows-1252", "cp1252", "us-ascii"), "cp1252"),
    **{name: name for name in ("euc-jp", "windows-1250", "windows-1251", "koi8-r", "iso-8859-2", "iso-8859-15")},
}


class LabelLine(NamedTuple):
    """One line of a label file: the index of its image, the file, the line number, and the words."""

    image: int
    file: Path
    number: int
    words: list[str]

    def fault(self, problem: str, remedy: str | None = None) -> DataError:
        """Return an error that names this line."""
        return DataError(problem, file=self.file, where=f"line {self.number}", remedy=remedy)


def read_text(file: Path) -> str:
    """Read a text file in UTF-8, UTF-16 or UTF-32, without its byte order mark.

    Raises
    ------
    DataError
        If the file is missing, or in another encoding.
    """
    return decode_text(read_bytes(file), file)


def read_json_bytes(file: Path) -> bytes:
    """Read a text file and return it in UTF-8 for a JSON decoder; msgspec does not validate the encoding."""
    return read_text(file).encode()


def read_bytes(file: Path) -> bytes:
    """Read a file; raise a DataError if it is missing, unreadable or a Git LFS pointer."""
    raise_if_lfs_pointer(file)
    try:
        return file.read_bytes()
    except FileNotFoundError:
        raise DataError("there is no such file", file=file, remedy="check the path") from None
    except (OSError, ValueError) as error:
        raise DataError(f"cannot be read: {error}", file=file, remedy="check its permissions") from None


def decode_text(content: bytes, file: Path, *, declared: str = "") -> str:
    """Decode bytes in UTF-8, UTF-16 or UTF-32, or in the legacy encoding that a file declares.

    Raises
    ------
    DataError
        If the bytes are in none of these; it names the line of ``file``.
    """
    encoding = json.detect_encoding(content)
    legacy = _ENCODINGS.get(declared.lower().replace("_", "-"))
    if encoding == "utf-8" and legacy is not None:
        with suppress(UnicodeDecodeError):
            return content.decode(legacy)
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        problem = f"expected text in UTF-8, but {error}"
        raise DataError(problem, file=file, where=f"line {line}", remedy="save it as UTF-8", kind="not_utf8") from None


def read_head(file: Path, count: int) -> bytes:
    """Return the first bytes of a file to recognise its format, without zero bytes (UTF-16); empty if unreadable."""
    try:
        with file.open("rb") as content:
            return content.read(count).replace(b"\0", b"")
    except OSError:
        return b""


def read_name_list(file: Path) -> Iterator[tuple[int, str]]:
    """Yield line number and text of each entry in a list of images, skipping blank lines and system files."""
    for number, line in enumerate(read_text(file).splitlines(), start=1):
        name = line.strip()
        if name and not is_system_file(name.replace("\\", "/").rsplit("/", 1)[-1]):
            yield number, name


def read_label_lines(files: Sequence[Path], report: Report) -> list[LabelLine]:
    """Read the non-blank lines of label files, of which file i belongs to image i; missing files have no lines."""
    lines: list[LabelLine] = []
    for image, file in enumerate(files):
        try:
            if not file.is_file():
                continue
            text = read_text(file)
        except DataError as problem:
            report(problem)
            continue
        for number, line in enumerate(text.splitlines(), start=1):
            if words := line.split():
                lines.append(LabelLine(image, file, number, words))
    return lines


def parse_numbers(
    lines: list[LabelLine], words: slice, report: Report
) -> tuple[list[LabelLine], Float[np.ndarray, "v"]]:
    """Convert some words of each line to numbers, concatenated over the lines; report lines with other words there."""
    try:
        values = np.fromiter((float(word) for line in lines for word in line.words[words]), dtype=np.float64)
        if (np.abs(values) <= MAX_NUMBER).all():
            return lines, values
    except ValueError:
        pass
    kept = []
    for line in lines:
        invalid = next((i for i in range(len(line.words))[words] if not _is_number(line.words[i])), None)
        if invalid is None:
            kept.append(line)
        else:
            report(
                line.fault(f"word {invalid + 1}: expected a number, got {line.words[invalid]!r}", "correct the line")
            )
    return kept, np.fromiter((float(word) for line in kept for word in line.words[words]), dtype=np.float64)


def _is_number(word: str) -> bool:
    try:
        return abs(float(word)) <= MAX_NUMBER
    except ValueError:
        return False
