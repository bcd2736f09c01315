"""Compiled parser of purely numeric JSON records to columns, used by :mod:`otus.data.formats.json_reader.stream`.

It reads ``{"image_id": 7, "bbox": [1, 2.5, 3, 4], "score": 0.9}, …`` ten times as fast as a decoder that makes objects,
and stops at anything else (null, strings, another field, a number that is too long), which the decoder then reads.

Numbers are rounded exactly as by ``float``: D. Lemire, Number parsing at a gigabyte per second, Software: Practice and
Experience 51, 2021.
"""

import math

import numpy as np
from jaxtyping import Float, Int, UInt8

from otus._numba import kernel

_MAX_EXPONENT = 40
_POWERS_OF_TEN = np.array([10.0**k for k in range(23)])  # exact


def _powers_of_five() -> np.ndarray:
    """Return the first 128 bits of 5^k for k in -40..40, (81, 2); those of negative powers rounded up."""
    powers = []
    for k in range(-_MAX_EXPONENT, _MAX_EXPONENT + 1):
        power = 5 ** abs(k)
        if k < 0:
            power = (1 << (127 + power.bit_length())) // power + 1
        length = power.bit_length()
        power = power << (128 - length) if length < 128 else power >> (length - 128)
        powers.append((power >> 64, power & (1 << 64) - 1))
    return np.array(powers, dtype=np.uint64)


_POWERS_OF_FIVE = _powers_of_five()


@kernel
def number_columns(
    text: UInt8[np.ndarray, "b"],
    names: UInt8[np.ndarray, "s"],
    name_ends: Int[np.ndarray, "f"],
    widths: Int[np.ndarray, "f"],
    is_integer: Int[np.ndarray, "f"],
    integers: Int[np.ndarray, "n w"],
    floats: Float[np.ndarray, "n v"],
    largest: float,
) -> tuple[int, int]:
    """Fill ``integers`` and ``floats`` from records; return the number of records and the position after their last comma.

    Parameters
    ----------
    text
        Records, each followed by a comma, each with every field once.
    names, name_ends
        The names of the fields, concatenated, and the end of each.
    widths, is_integer
        Numbers in each field (1: a scalar), and whether they are integers. Integers go to the columns of ``integers`` in
        the order of the fields, the others to those of ``floats``.
    largest
        Largest absolute value allowed.
    """
    fields, size, row = len(widths), len(text), 0
    last_rows = np.zeros(fields, np.int64)
    integer_offsets, float_offsets = np.zeros(fields, np.int64), np.zeros(fields, np.int64)
    for f in range(1, fields):
        integer_offsets[f] = integer_offsets[f - 1] + (widths[f - 1] if is_integer[f - 1] else 0)
        float_offsets[f] = float_offsets[f - 1] + (0 if is_integer[f - 1] else widths[f - 1])
    f, start = 0, 0
    while True:
        position = _skip_space(text, start)
        if position >= size or text[position] != 123 or row == len(integers):  # {
            return row, start
        position += 1
        for count in range(fields):
            position = _skip_space(text, position)
            if position >= size or text[position] != 34:  # "
                return row, start
            f = _field(text, position + 1, names, name_ends, f if count else 0)
            if f < 0 or last_rows[f] != row:
                return row, start
            last_rows[f] = row + 1
            position += 2 + name_ends[f] - (name_ends[f - 1] if f else 0)
            position = _skip_space(text, position)
            if position >= size or text[position] != 58:  # colon
                return row, start
            position = _skip_space(text, position + 1)
            if widths[f] > 1:
                if position >= size or text[position] != 91:  # [
                    return row, start
                position += 1
            for k in range(widths[f]):
                if k:
                    position = _skip_space(text, position)
                    if position >= size or text[position] != 44:  # comma
                        return row, start
                    position += 1
                position = _skip_space(text, position)
                mantissa, exponent, negative, end = _number(text, position)
                if end < 0:
                    return row, start
                if is_integer[f]:
                    if _is_fraction(text, position, end) or mantissa > np.uint64(1) << np.uint64(62):
                        return row, start
                    integer = np.int64(mantissa)
                    integers[row, integer_offsets[f] + k] = -integer if negative else integer
                else:
                    value = _float(mantissa, exponent)
                    if not value <= largest:
                        return row, start
                    floats[row, float_offsets[f] + k] = -value if negative else value
                position = end
            if widths[f] > 1:
                position = _skip_space(text, position)
                if position >= size or text[position] != 93:  # ]
                    return row, start
                position += 1
            position = _skip_space(text, position)
            if position >= size or text[position] != (44 if count < fields - 1 else 125):  # comma or }
                return row, start
            position += 1
            f = (f + 1) % fields
        position = _skip_space(text, position)
        if position >= size or text[position] != 44:
            return row, start
        row += 1
        start = position + 1


@kernel
def _skip_space(text: UInt8[np.ndarray, "b"], position: int) -> int:
    while position < len(text) and (
        text[position] == 32 or text[position] == 10 or text[position] == 13 or text[position] == 9
    ):
        position += 1
    return position


@kernel
def _field(
    text: UInt8[np.ndarray, "b"], start: int, names: UInt8[np.ndarray, "s"], ends: Int[np.ndarray, "f"], likely: int
) -> int:
    """Return the field whose name is at a position, trying ``likely`` first; -1 for an unknown name."""
    for attempt in range(len(ends)):
        f = (likely + attempt) % len(ends)
        first = ends[f - 1] if f else 0
        length = ends[f] - first
        if start + length >= len(text) or text[start + length] != 34:
            continue
        same = True
        for i in range(length):
            if text[start + i] != names[first + i]:
                same = False
                break
        if same:
            return f
    return -1


@kernel
def _number(text: UInt8[np.ndarray, "b"], position: int) -> tuple[np.uint64, int, bool, int]:
    """Parse a JSON number: mantissa, exponent, sign, and the position after it (-1 if invalid or too long)."""
    size = len(text)
    negative = position < size and bool(text[position] == 45)
    if negative:
        position += 1
    mantissa, digits, start = np.uint64(0), 0, position
    while position < size and 48 <= text[position] <= 57:
        mantissa = mantissa * np.uint64(10) + np.uint64(text[position] - 48)
        digits += int(digits > 0 or mantissa > 0)
        position += 1
    if position == start or (text[start] == 48 and position > start + 1):
        return mantissa, 0, negative, -1
    exponent = 0
    if position < size and text[position] == 46:
        position += 1
        start = position
        while position < size and 48 <= text[position] <= 57:
            mantissa = mantissa * np.uint64(10) + np.uint64(text[position] - 48)
            digits += int(digits > 0 or mantissa > 0)
            position += 1
        exponent = start - position
        if exponent == 0:
            return mantissa, 0, negative, -1
    if position < size and (text[position] == 101 or text[position] == 69):  # e, E
        position += 1
        is_negative_exponent = position < size and text[position] == 45
        if position < size and (text[position] == 45 or text[position] == 43):
            position += 1
        start, power = position, 0
        while position < size and 48 <= text[position] <= 57 and power < 1000:
            power = 10 * power + int(text[position]) - 48
            position += 1
        if position == start:
            return mantissa, 0, negative, -1
        exponent += -power if is_negative_exponent else power
    return mantissa, exponent, negative, -1 if digits > 19 else position


@kernel
def _is_fraction(text: UInt8[np.ndarray, "b"], start: int, end: int) -> bool:
    """Return whether a number has a point or an exponent."""
    is_fraction = False
    for i in range(start, end):
        is_fraction |= text[i] == 46 or text[i] == 101 or text[i] == 69
    return is_fraction


@kernel
def _float(mantissa: np.uint64, exponent: int) -> float:
    """Return the double nearest to mantissa x 10^exponent, NaN if it cannot be determined here."""
    if mantissa == np.uint64(0):
        return 0.0
    if mantissa <= np.uint64(9007199254740992) and -22 <= exponent <= 22:  # both exact, so the result is rounded once
        if exponent < 0:
            return np.float64(mantissa) / _POWERS_OF_TEN[-exponent]
        return np.float64(mantissa) * _POWERS_OF_TEN[exponent]
    if not -_MAX_EXPONENT <= exponent <= _MAX_EXPONENT:
        return np.nan
    zeros = _leading_zeros(mantissa)
    digits = mantissa << np.uint64(zeros)
    high, low = _multiply(digits, _POWERS_OF_FIVE[exponent + _MAX_EXPONENT, 0])
    if high & np.uint64(0x1FF) == np.uint64(0x1FF):  # the power's further bits may carry over
        carry, _ = _multiply(digits, _POWERS_OF_FIVE[exponent + _MAX_EXPONENT, 1])
        low = low + carry
        if low < carry:
            high += np.uint64(1)
    if low == np.uint64(0xFFFFFFFFFFFFFFFF):
        return np.nan
    top = np.int64(high >> np.uint64(63))
    shift = np.uint64(top + 9)
    significand = high >> shift  # 54 bits, the last of which decides the rounding
    # Halfway between two doubles, round to even; that needs a 5^exponent of at most 64 bits.
    is_between = low <= np.uint64(1) and -4 <= exponent <= 23 and significand << shift == high
    if is_between and significand & np.uint64(3) == np.uint64(1):
        significand -= np.uint64(1)
    significand = (significand + (significand & np.uint64(1))) >> np.uint64(1)
    power = ((217706 * exponent) >> 16) + 63 - zeros + top - 52  # 217706 / 2^16 = log2(10)
    return math.ldexp(float(significand), int(power))


@kernel
def _leading_zeros(value: np.uint64) -> int:
    zeros = 0
    for step in (32, 16, 8, 4, 2, 1):
        if value >> np.uint64(64 - step) == np.uint64(0):
            value <<= np.uint64(step)
            zeros += step
    return zeros


@kernel
def _multiply(a: np.uint64, b: np.uint64) -> tuple[np.uint64, np.uint64]:
    """Return the upper and lower 64 bits of a product."""
    half, mask = np.uint64(32), np.uint64(0xFFFFFFFF)
    a_high, a_low, b_high, b_low = a >> half, a & mask, b >> half, b & mask
    middle = a_high * b_low + ((a_low * b_low) >> half)
    middle_low = (middle & mask) + a_low * b_high
    return a_high * b_high + (middle >> half) + (middle_low >> half), a * b
