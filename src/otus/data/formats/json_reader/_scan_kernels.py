"""Compiled scanner of :mod:`~otus.data.formats.json_reader.stream`: finds where the elements of the outer arrays end.

It tracks strings and brackets only; the decoder validates the rest.
"""

import numpy as np

from otus._numba import kernel

# Events at which `scan` stops.
END, KEY, OPENED, CLOSED, FIELD = 0, 1, 2, 3, 4

# Indices into the scanner's state, which is kept from window to window.
DEPTH, IN_STRING, ESCAPED, AFTER_COLON, LAST_COMMA, COMMAS, STRING_START, HASH, FIELDS, STATE_SIZE = range(10)

MAX_FIELDS = 256  # distinct field names; a file with more is not a list of records


@kernel
def scan(text: np.ndarray, start: int, level: int, state: np.ndarray, fields: np.ndarray) -> tuple[int, int]:
    """Scan from ``start`` to the next event; return the event and the position after it.

    Parameters
    ----------
    text
        uint8, a window of the file.
    level
        Depth of the arrays to scan: 1 if the file is an array, 2 if it is an object of arrays.
    state
        (STATE_SIZE,) int64. After an event, ``LAST_COMMA`` is the position of the last comma between elements (-1: none
        in this window), ``COMMAS`` their number, ``STRING_START`` the start of the string of KEY or FIELD.
    fields
        (MAX_FIELDS,) hashes of the field names so far; the event FIELD is a new one.
    """
    depth, in_string, escaped = state[DEPTH], state[IN_STRING] != 0, state[ESCAPED] != 0
    digest = np.uint64(state[HASH])
    event, position, size = END, start, len(text)
    while position < size:
        byte = text[position]
        position += 1
        if in_string:
            if escaped:
                escaped = False
            elif byte == 92:  # backslash
                escaped = True
            elif byte == 34:  # the closing quote
                in_string = False
                if state[AFTER_COLON] != 0:
                    continue
                if depth == level - 1:
                    event = KEY
                    break
                if depth == level + 1:
                    count, known = state[FIELDS], False
                    for i in range(count):
                        if fields[i] == digest:
                            known = True
                            break
                    if not known and count < MAX_FIELDS:
                        fields[count] = digest
                        state[FIELDS] = count + 1
                        event = FIELD
                        break
            elif depth == level + 1:
                digest = (digest ^ np.uint64(byte)) * np.uint64(1099511628211)  # FNV-1a
            continue
        if byte == 34:
            in_string = True
            state[STRING_START] = position
            digest = np.uint64(14695981039346656037)
        elif byte == 58:  # colon
            state[AFTER_COLON] = 1
        elif byte == 44:  # comma
            state[AFTER_COLON] = 0
            if depth == level:
                state[LAST_COMMA] = position - 1
                state[COMMAS] += 1
        elif byte == 123 or byte == 91:  # { [
            state[AFTER_COLON] = 0
            depth += 1
            if depth == level:
                event = OPENED
                break
        elif byte == 125 or byte == 93:  # } ]
            state[AFTER_COLON] = 0
            depth -= 1
            if depth == level - 1:
                event = CLOSED
                break
    state[DEPTH], state[IN_STRING], state[ESCAPED], state[HASH] = depth, in_string, escaped, np.int64(digest)
    return event, position


@kernel
def commas(text: np.ndarray) -> np.ndarray:
    """Return the positions of commas outside brackets and strings."""
    positions = np.empty(1024, dtype=np.int64)
    count, depth, in_string, escaped = 0, 0, False, False
    for position in range(len(text)):
        byte = text[position]
        if in_string:
            if escaped:
                escaped = False
            elif byte == 92:
                escaped = True
            elif byte == 34:
                in_string = False
        elif byte == 34:
            in_string = True
        elif byte == 123 or byte == 91:
            depth += 1
        elif byte == 125 or byte == 93:
            depth -= 1
        elif byte == 44 and depth == 0:
            if count == len(positions):
                positions = np.concatenate((positions, np.empty_like(positions)))
            positions[count] = position
            count += 1
    return positions[:count]
