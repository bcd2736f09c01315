"""Sum up COCO's compressed run lengths, for all masks of a file at once."""

import numpy as np

from otus._numba import kernel


@kernel
def total_pixels(counts_bytes: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Return the sum (N,) of the run lengths of N masks; -1 if they are malformed.

    The code is that of pycocotools' ``rleFrString``: five bits a character from ``0`` on, the sixth says that more follow;
    from the fourth run on the difference to the one before last is stored.
    """
    count = len(offsets) - 1
    pixels = np.zeros(count, dtype=np.int64)
    for i in range(count):
        position, end = offsets[i], offsets[i + 1]
        run_index = 0
        last, before_last = np.int64(0), np.int64(0)
        while position < end:
            value, shift, more = np.int64(0), np.int64(0), True
            while more and position < end and shift < 60:
                five = np.int64(counts_bytes[position]) - 48
                if five < 0 or five > 63:
                    break
                value |= (five & 31) << shift
                shift += 5
                more = (five & 32) != 0
                position += 1
                if not more and (five & 16) != 0:
                    value |= np.int64(-1) << shift
            if more:
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
