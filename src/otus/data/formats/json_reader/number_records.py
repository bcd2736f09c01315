"""Read records with numeric fields only as columns, by :mod:`~otus.data.formats.json_reader._number_kernels`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from otus.data.formats.json_reader import _number_kernels as kernels


class NumberField(NamedTuple):
    """A field of ``width`` numbers (1: a scalar); ``required`` in every record."""

    width: int = 1
    is_integer: bool = False
    required: bool = False


@dataclass(frozen=True, eq=False)
class NumberRecords:
    """Columns of N records by name, (N,) or (N, width), and the position after the comma that follows them."""

    count: int
    columns: Mapping[str, np.ndarray]
    end: int


def read_number_records(
    text: bytes, start: int, names: Sequence[str], known: Mapping[str, NumberField], *, largest: float
) -> NumberRecords:
    """Read records from a position, up to the first that is not purely numeric or not followed by a comma.

    Parameters
    ----------
    names
        The fields that every record has.
    known
        Numeric fields; if one of the names is not among them, no record is read.
    largest
        Largest absolute value; records with a larger one are not read.
    """
    required = {name for name, field in known.items() if field.required}
    if not required or not required.issubset(names) or not known.keys() >= set(names):
        return NumberRecords(0, {}, start)
    fields = [known[name] for name in names]
    encoded = [name.encode() for name in names]
    min_record_bytes = sum(len(name) + 4 for name in encoded)
    capacity = (len(text) - start) // min_record_bytes + 1
    widths = np.array([field.width for field in fields])
    is_integer = np.array([field.is_integer for field in fields])
    integers = np.empty((capacity, int(widths[is_integer].sum())), dtype=np.int64)
    floats = np.empty((capacity, int(widths[~is_integer].sum())))
    count, end = kernels.number_columns(
        np.frombuffer(text, dtype=np.uint8)[start:], np.frombuffer(b"".join(encoded), dtype=np.uint8),
        np.cumsum([len(name) for name in encoded]), widths, is_integer, integers, floats, largest,
    )  # fmt: skip
    columns, next_columns = {}, {True: 0, False: 0}
    for name, field in zip(names, fields, strict=True):
        values, first = (integers if field.is_integer else floats)[:count], next_columns[field.is_integer]
        columns[name] = values[:, first] if field.width == 1 else values[:, first : first + field.width]
        next_columns[field.is_integer] += field.width
    return NumberRecords(count, columns, start + end)
