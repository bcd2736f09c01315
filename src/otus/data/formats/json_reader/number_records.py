"""Records with numeric fields only, read as columns (:mod:`~otus.data.formats.json_reader._number_kernels`)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from otus.data.formats.json_reader import _number_kernels as kernels


class NumberField(NamedTuple):
    """A field of ``width`` numbers (1: a scalar); ``needed`` if no record can lack it."""

    width: int = 1
    is_whole: bool = False
    needed: bool = False


@dataclass(frozen=True, eq=False)
class NumberRecords:
    """Columns of N records by name, (N,) or (N, width), and the position after the comma that follows them."""

    count: int
    columns: Mapping[str, np.ndarray]
    end: int


def read_number_records(
    text: bytes, start: int, names: Sequence[str], known: Mapping[str, NumberField], *, largest: float
) -> NumberRecords:
    """Read records from a position on, up to the first that is not purely numeric or lacks its comma.

    Parameters
    ----------
    names
        The fields that every record has.
    known
        Fields of numbers; where one of the names is not among them, no record is read.
    largest
        A record with a number further from 0 is not read.
    """
    needed = {name for name, one in known.items() if one.needed}
    if not needed or not needed.issubset(names) or not known.keys() >= set(names):
        return NumberRecords(0, {}, start)
    fields = [known[name] for name in names]
    encoded = [name.encode() for name in names]
    most = (len(text) - start) // sum(len(name) + 4 for name in encoded) + 1  # a record has so many bytes at least
    widths = np.array([one.width for one in fields])
    is_whole = np.array([one.is_whole for one in fields])
    whole = np.empty((most, int(widths[is_whole].sum())), dtype=np.int64)
    figures = np.empty((most, int(widths[~is_whole].sum())))
    count, end = kernels.number_columns(
        np.frombuffer(text, dtype=np.uint8)[start:], np.frombuffer(b"".join(encoded), dtype=np.uint8),
        np.cumsum([len(name) for name in encoded]), widths, is_whole, whole, figures, largest,
    )  # fmt: skip
    columns, used = {}, {True: 0, False: 0}
    for name, one in zip(names, fields, strict=True):
        values, first = (whole if one.is_whole else figures)[:count], used[one.is_whole]
        columns[name] = values[:, first] if one.width == 1 else values[:, first : first + one.width]
        used[one.is_whole] += one.width
    return NumberRecords(count, columns, start + end)
