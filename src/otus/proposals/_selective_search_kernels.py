"""Compiled inner loops of Selective Search.

Shape shorthand: C channels, H x W the image, R regions, B bins of a region's histograms, P pairs of neighbours.
"""

import numpy as np
from jaxtyping import Float, Int, UInt8

from otus._numba import kernel

COLOUR_BINS = 25
TEXTURE_BINS = 10
DIRECTIONS = 8

ONE = 1 << 24
"""Similarities are whole numbers, this one for 1: sums come out the same in whatever order they are made."""

_NUMBER_BITS = 36  # of an entry in the heap; a similarity of at most 4 has 27


@kernel
def texture_bins(
    along_x: Float[np.ndarray, "c h w"], along_y: Float[np.ndarray, "c h w"], per_unit: float
) -> Int[np.ndarray, "c4 h w"]:
    """Return the bin of each pixel's derivative along 0, 45, 90 and 135 degrees; negative bins for falling values.

    Of the 8 directions of a pixel, one of two opposite ones is always 0 (bin 0): a sign tells which.
    """
    channels, height, width = along_x.shape
    bins = np.empty((channels * 4, height, width), np.int8)
    root = np.float32(np.sqrt(0.5))
    scale = np.float32(per_unit)
    most = np.float32(TEXTURE_BINS - 1)
    for c in range(channels):
        for y in range(height):
            dx, dy = along_x[c, y], along_y[c, y]
            for x in range(width):
                bins[4 * c, y, x] = np.int8(max(-most, min(most, dx[x] * scale)))
                bins[4 * c + 1, y, x] = np.int8(max(-most, min(most, (dx[x] + dy[x]) * root * scale)))
                bins[4 * c + 2, y, x] = np.int8(max(-most, min(most, dy[x] * scale)))
                bins[4 * c + 3, y, x] = np.int8(max(-most, min(most, (dy[x] - dx[x]) * root * scale)))
    return bins


@kernel
def describe_regions(
    labels: Int[np.ndarray, "h w"],
    regions: int,
    colours: UInt8[np.ndarray, "c h w"],
    textures: Int[np.ndarray, "c4 h w"],
) -> tuple[Int[np.ndarray, "r"], Int[np.ndarray, "r 4"], Int[np.ndarray, "r bins"]]:
    """Return sizes in pixels, boxes xyxy, and histograms: colour bins, then texture bins."""
    height, width = labels.shape
    channels = len(colours)
    texture_from = channels * COLOUR_BINS
    counts = np.zeros((regions, texture_from + channels * DIRECTIONS * TEXTURE_BINS), np.int32)
    sizes = np.zeros(regions, np.int64)
    boxes = np.empty((regions, 4), np.int64)
    boxes[:, :2] = max(height, width)
    boxes[:, 2:] = 0
    for y in range(height):
        for x in range(width):
            r = labels[y, x]
            sizes[r] += 1
            box = boxes[r]
            box[0] = min(box[0], x)
            box[1] = min(box[1], y)
            box[2] = max(box[2], x + 1)
            box[3] = max(box[3], y + 1)
    for c in range(channels):
        first = c * COLOUR_BINS
        for y in range(height):
            for x in range(width):
                counts[labels[y, x], first + colours[c, y, x]] += 1
    for plane in range(4 * channels):
        rising = texture_from + (plane // 4 * DIRECTIONS + plane % 4) * TEXTURE_BINS
        falling = rising + 4 * TEXTURE_BINS
        for y in range(height):
            for x in range(width):
                value = textures[plane, y, x]
                if value > 0:
                    counts[labels[y, x], rising + value] += 1
                elif value < 0:
                    counts[labels[y, x], falling - value] += 1
    for r in range(regions):
        for first in range(texture_from, counts.shape[1], TEXTURE_BINS):
            counts[r, first] = sizes[r] - counts[r, first + 1 : first + TEXTURE_BINS].sum()
    return sizes, boxes, counts


@kernel
def _grown(array: Int[np.ndarray, "n"]) -> Int[np.ndarray, "n2"]:
    larger = np.empty(2 * len(array), array.dtype)
    larger[: len(array)] = array
    return larger


@kernel
def _place_of(key: int, keys: Int[np.ndarray, "slots"]) -> int:
    place = ((key * 0x9E3779B97F4A7C1) >> 20) & (len(keys) - 1)
    while keys[place] >= 0 and keys[place] != key:
        place = (place + 1) & (len(keys) - 1)
    return place


@kernel
def neighbours(labels: Int[np.ndarray, "h w"], regions: int) -> Int[np.ndarray, "p 2"]:
    """Return the pairs of 4-adjacent regions, the smaller index first, in order of first contact."""
    height, width = labels.shape
    seen = np.full(64, -1, np.int64)  # a hash set; its length is a power of 2
    pairs = np.empty(32, np.int64)
    count = 0
    for y in range(height):
        for x in range(width):
            here = labels[y, x]
            for side in range(2):
                if (side == 0 and x + 1 == width) or (side == 1 and y + 1 == height):
                    continue
                there = labels[y, x + 1] if side == 0 else labels[y + 1, x]
                if here == there:
                    continue
                key = np.int64(min(here, there)) * regions + max(here, there)
                place = _place_of(key, seen)
                if seen[place] >= 0:
                    continue
                seen[place] = key
                pairs[count] = key
                count += 1
                if count == len(pairs):
                    pairs = _grown(pairs)
                    seen = np.full(2 * len(pairs), -1, np.int64)
                    for i in range(count):
                        seen[_place_of(pairs[i], seen)] = pairs[i]
    found = np.empty((count, 2), np.int32)
    for i in range(count):
        found[i, 0], found[i, 1] = divmod(pairs[i], regions)
    return found


@kernel
def _shared(a: Int[np.ndarray, "bins"], b: Int[np.ndarray, "bins"], first: int, last: int) -> int:
    total = np.int32(0)
    for i in range(first, last):
        total += min(a[i], b[i])
    return int(total)


@kernel
def _normalise(
    counts: Int[np.ndarray, "bins"], out: Int[np.ndarray, "bins"], size: int, channels: int, texture_from: int
) -> None:
    of_colour = ONE / np.float64(size * channels)
    of_texture = ONE / np.float64(size * channels * DIRECTIONS)
    for i in range(texture_from):
        out[i] = np.int32(counts[i] * of_colour)
    for i in range(texture_from, len(counts)):
        out[i] = np.int32(counts[i] * of_texture)


@kernel
def _push(heap: Int[np.ndarray, "heap"], count: int, key: int) -> None:
    place = count
    while place > 0:
        above = (place - 1) >> 1
        if heap[above] >= key:
            break
        heap[place] = heap[above]
        place = above
    heap[place] = key


@kernel
def _pop(heap: Int[np.ndarray, "heap"], count: int) -> int:
    top = heap[0]
    key = heap[count - 1]
    place = 0
    while True:
        below = 2 * place + 1
        if below >= count - 1:
            break
        if below + 1 < count - 1 and heap[below + 1] > heap[below]:
            below += 1
        if heap[below] <= key:
            break
        heap[place] = heap[below]
        place = below
    heap[place] = key
    return top


@kernel
def group(
    sizes: Int[np.ndarray, "r"],
    boxes: Int[np.ndarray, "r 4"],
    counts: Int[np.ndarray, "r bins"],
    pairs: Int[np.ndarray, "p 2"],
    image_size: int,
    colour: bool,
    texture: bool,
    size: bool,
    fill: bool,
) -> Int[np.ndarray, "nodes 4"]:
    """Merge the most similar neighbours until one region is left; return the boxes of all regions in order of creation.

    Neighbours are linked lists whose dead members are dropped when their owner is joined; similarities wait in a heap,
    those of dead regions are dropped when they come up. A new region keeps its histograms where its first part had them.
    """
    regions = len(sizes)
    nodes = 2 * regions - 1
    channels = counts.shape[1] // (COLOUR_BINS + DIRECTIONS * TEXTURE_BINS)
    texture_from = channels * COLOUR_BINS
    first_bin = 0 if colour else texture_from
    last_bin = counts.shape[1] if texture else texture_from
    histograms = colour or texture
    counts = counts.copy() if histograms else counts
    normal = np.empty((regions if histograms else 0, counts.shape[1]), np.int32)
    all_boxes = np.empty((nodes, 4), np.int64)
    all_boxes[:regions] = boxes
    all_sizes = np.empty(nodes, np.int64)
    all_sizes[:regions] = sizes
    row = np.arange(nodes)
    if histograms:
        for r in range(regions):
            _normalise(counts[r], normal[r], sizes[r], channels, texture_from)

    alive = np.zeros(nodes, np.bool_)
    alive[:regions] = True
    met = np.full(nodes, -1, np.int64)
    head = np.full(nodes, -1, np.int32)
    tail = np.full(nodes, -1, np.int32)
    capacity = 8 * len(pairs) + 16
    target, following, links = np.empty(capacity, np.int32), np.empty(capacity, np.int32), 0
    one, other = np.empty(capacity, np.int32), np.empty(capacity, np.int32)
    heap, waiting, entries = np.empty(capacity, np.int64), 0, 0

    made = regions
    fresh_a, fresh_b = pairs[:, 0].copy(), pairs[:, 1].copy()
    fresh = len(pairs)
    while True:
        # The new pairs of neighbours: their lists, their similarity, the heap.
        while entries + fresh > len(one):
            one, other = _grown(one), _grown(other)
        while waiting + fresh > len(heap):
            heap = _grown(heap)
        while links + 2 * fresh > len(target):
            target, following = _grown(target), _grown(following)
        for i in range(fresh):
            a, b = fresh_a[i], fresh_b[i]
            for owner, member in ((a, b), (b, a)):
                target[links] = member
                following[links] = -1
                if head[owner] < 0:
                    head[owner] = links
                else:
                    following[tail[owner]] = links
                tail[owner] = links
                links += 1
            similarity = 0
            if histograms:
                similarity += _shared(normal[row[a]], normal[row[b]], first_bin, last_bin)
            both = all_sizes[a] + all_sizes[b]
            if size:
                similarity += ((image_size - both) * ONE) // image_size
            if fill:
                width = max(all_boxes[a, 2], all_boxes[b, 2]) - min(all_boxes[a, 0], all_boxes[b, 0])
                height = max(all_boxes[a, 3], all_boxes[b, 3]) - min(all_boxes[a, 1], all_boxes[b, 1])
                similarity += ((image_size - width * height + both) * ONE) // image_size
            one[entries] = a
            other[entries] = b
            _push(heap, waiting, (similarity << _NUMBER_BITS) | ((1 << _NUMBER_BITS) - 1 - entries))
            entries += 1
            waiting += 1
        # The two most similar regions that are both still there; of equal ones those that met first.
        a = b = -1
        while waiting:
            entry = (1 << _NUMBER_BITS) - 1 - (_pop(heap, waiting) & ((1 << _NUMBER_BITS) - 1))
            waiting -= 1
            a, b = one[entry], other[entry]
            if alive[a] and alive[b]:
                break
            a = b = -1
        if a < 0:
            break
        alive[a] = alive[b] = False
        alive[made] = True
        all_sizes[made] = all_sizes[a] + all_sizes[b]
        all_boxes[made, :2] = np.minimum(all_boxes[a, :2], all_boxes[b, :2])
        all_boxes[made, 2:] = np.maximum(all_boxes[a, 2:], all_boxes[b, 2:])
        row[made] = row[a]
        if histograms:
            counts_a, counts_b = counts[row[a]], counts[row[b]]
            for i in range(first_bin, last_bin):
                counts_a[i] += counts_b[i]
            _normalise(counts_a, normal[row[a]], all_sizes[made], channels, texture_from)
        fresh = 0
        for parent in (a, b):
            link = head[parent]
            while link >= 0:
                member = target[link]
                if alive[member] and met[member] != made:
                    met[member] = made
                    if fresh == len(fresh_a):
                        fresh_a, fresh_b = _grown(fresh_a), _grown(fresh_b)
                    fresh_a[fresh] = member
                    fresh_b[fresh] = made
                    fresh += 1
                link = following[link]
        made += 1
    return all_boxes[:made]


@kernel
def _level(length: int, bits: int) -> int:
    level = 0
    while length >> bits:
        length >>= bits
        level += 1
    return level


@kernel
def _list_of(level_x: int, level_y: int, column: int, row: int, lists: int) -> int:
    key = (((level_x * 64 + level_y) * 0x2545F4914F6CDD + column) * 0x2545F4914F6CDD + row) * 0x2545F4914F6CDD
    return (key >> 20) & (lists - 1)


@kernel
def distinct(boxes: Int[np.ndarray, "n 4"], same_iou: float) -> Int[np.ndarray, "kept"]:
    """Return indices of boxes (xyxy) whose IoU with every earlier kept box is below ``same_iou``.

    Boxes that overlap so much have sides of a ratio of ``same_iou`` at least, and share as much of either's sides. Kept
    ones are listed by the levels of their sides (octaves, wider ones for a low ``same_iou``) and by where their first
    corner is in a grid of cells as long as the level's longest side. Only the lists where such a box can be are looked
    through: a few, whatever the number of boxes.
    """
    lists = 64
    while lists < 2 * len(boxes):
        lists *= 2
    newest = np.full(lists, -1, np.int32)
    following = np.empty(len(boxes), np.int32)
    kept = np.empty(len(boxes), np.int64)
    count = 0
    longest = boxes.max() if len(boxes) else 0
    ratio = same_iou * 0.999999
    bits = 1
    while ratio * (1 << bits) < 1 and bits < 8:
        bits += 1
    for i in range(len(boxes)):
        x1, y1, x2, y2 = boxes[i]
        width, height = x2 - x1, y2 - y1
        area = width * height
        least_x, least_y = int(width * ratio), int(height * ratio)
        most_x, most_y = int(min(width / ratio, longest)) + 1, int(min(height / ratio, longest)) + 1
        is_new = True
        for level_x in range(_level(least_x, bits), _level(most_x, bits) + 1):
            cell_x = bits * (level_x + 1)  # as a shift
            for level_y in range(_level(least_y, bits), _level(most_y, bits) + 1):
                cell_y = bits * (level_y + 1)
                for column in range(max(x2 - most_x, 0) >> cell_x, ((x2 - least_x) >> cell_x) + 1):
                    for row in range(max(y2 - most_y, 0) >> cell_y, ((y2 - least_y) >> cell_y) + 1):
                        j = newest[_list_of(level_x, level_y, column, row, lists)]
                        while j >= 0 and is_new:
                            shared_x = min(x2, boxes[j, 2]) - max(x1, boxes[j, 0])
                            shared_y = min(y2, boxes[j, 3]) - max(y1, boxes[j, 1])
                            if shared_x > 0 and shared_y > 0:
                                shared = shared_x * shared_y
                                other_area = (boxes[j, 2] - boxes[j, 0]) * (boxes[j, 3] - boxes[j, 1])
                                is_new = shared < same_iou * (area + other_area - shared)
                            j = following[j]
        if is_new:
            level_x, level_y = _level(width, bits), _level(height, bits)
            column, row = x1 >> bits * (level_x + 1), y1 >> bits * (level_y + 1)
            own = _list_of(level_x, level_y, column, row, lists)
            following[i] = newest[own]
            newest[own] = i
            kept[count] = i
            count += 1
    return kept[:count]
