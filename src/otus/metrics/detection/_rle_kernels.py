"""Compiled kernel that sums COCO's compressed run lengths, for all masks of a file at once."""

import numpy as np

from otus._numba import kernel


@kernel
def total_pixels(counts_bytes: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Return the sum (N,) of the run lengths of N masks; -1 if they are malformed.

    Decodes like pycocotools' ``rleFrString``: a character minus ``0`` has five bits of data, the sixth says that more
    follow; from the fourth run on, the difference to the second last run is stored.
    """
    count = len(offsets) - 1
    pixels = np.zeros(count, dtype=np.int64)
    for i in range(count):
        position, end = offsets[i], offsets[i + 1]
        run_index = 0
        last, before_last = np.int64(0), np.int64(0)
        while position < end:
            value, shift, continues = np.int64(0), np.int64(0), True
            while continues and position < end and shift < 60:
                character = np.int64(counts_bytes[position]) - 48
                if character < 0 or character > 63:
                    break
                value |= (character & 31) << shift
                shift += 5
                continues = (character & 32) != 0
                position += 1
                if not continues and (character & 16) != 0:
                    value |= np.int64(-1) << shift
            if continues:
                pixels[i] = -1
                break
            if run_index > 2:
                value += before_last
            if value < 0:
                pixels[i] = -1
                break
            pixels[i] += value
            before_last, last = last, value
            run_index += 1
    return pixels
