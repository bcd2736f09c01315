"""Compiled kernels: the inner loops of Selective Search.

Shape shorthand: C channels, H x W the image, R regions, B bins of a region's histograms, P pairs of neighbours.
"""

import numpy as np
from jaxtyping import Float, Int, UInt8

from otus._numba import kernel

COLOUR_BINS = 25
TEXTURE_BINS = 10
DIRECTIONS = 8

ONE = 1 << 24
"""The integer that stands for a similarity of 1; sums of integers do not depend on the order of summation."""

_INDEX_BITS = 36  # of a heap key, for the index of the pair; a similarity of at most 4 takes the other 27


@kernel
def texture_bins(
    along_x: Float[np.ndarray, "c h w"], along_y: Float[np.ndarray, "c h w"], per_unit: float
) -> Int[np.ndarray, "c4 h w"]:
    """Return the bin of each pixel's derivative along 0, 45, 90 and 135 degrees, negative for negative derivatives.

    The sign encodes the direction: of two opposite directions, the one with a negative derivative is in bin 0.
    """
    channels, height, width = along_x.shape
    bins = np.empty((channels * 4, height, width), np.int8)
    root = np.float32(np.sqrt(0.5))
    scale = np.float32(per_unit)
    max_bin = np.float32(TEXTURE_BINS - 1)
    for c in range(channels):
        for y in range(height):
            dx, dy = along_x[c, y], along_y[c, y]
            for x in range(width):
                bins[4 * c, y, x] = np.int8(max(-max_bin, min(max_bin, dx[x] * scale)))
                bins[4 * c + 1, y, x] = np.int8(max(-max_bin, min(max_bin, (dx[x] + dy[x]) * root * scale)))
                bins[4 * c + 2, y, x] = np.int8(max(-max_bin, min(max_bin, dy[x] * scale)))
                bins[4 * c + 3, y, x] = np.int8(max(-max_bin, min(max_bin, (dy[x] - dx[x]) * root * scale)))
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
    first_texture_bin = channels * COLOUR_BINS
    counts = np.zeros((regions, first_texture_bin + channels * DIRECTIONS * TEXTURE_BINS), np.int32)
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
        rising = first_texture_bin + (plane // 4 * DIRECTIONS + plane % 4) * TEXTURE_BINS
        falling = rising + 4 * TEXTURE_BINS
        for y in range(height):
            for x in range(width):
                value = textures[plane, y, x]
                if value > 0:
                    counts[labels[y, x], rising + value] += 1
                elif value < 0:
                    counts[labels[y, x], falling - value] += 1
    for r in range(regions):
        for first in range(first_texture_bin, counts.shape[1], TEXTURE_BINS):
            counts[r, first] = sizes[r] - counts[r, first + 1 : first + TEXTURE_BINS].sum()
    return sizes, boxes, counts


@kernel
def _doubled(array: Int[np.ndarray, "n"]) -> Int[np.ndarray, "n2"]:
    """Return a copy with twice the capacity; the second half is uninitialised."""
    larger = np.empty(2 * len(array), array.dtype)
    larger[: len(array)] = array
    return larger


@kernel
def _find_slot(key: int, keys: Int[np.ndarray, "slots"]) -> int:
    """Return the slot of a key in a hash set with open addressing, or the empty slot to insert it at."""
    slot = ((key * 0x9E3779B97F4A7C1) >> 20) & (len(keys) - 1)
    while keys[slot] >= 0 and keys[slot] != key:
        slot = (slot + 1) & (len(keys) - 1)
    return slot


@kernel
def neighbours(labels: Int[np.ndarray, "h w"], regions: int) -> Int[np.ndarray, "p 2"]:
    """Return the pairs of 4-adjacent regions, the smaller index first, in order of first contact."""
    height, width = labels.shape
    hash_set = np.full(64, -1, np.int64)  # a hash set; its length is a power of 2
    pairs = np.empty(32, np.int64)
    count = 0
    for y in range(height):
        for x in range(width):
            label = labels[y, x]
            for side in range(2):
                if (side == 0 and x + 1 == width) or (side == 1 and y + 1 == height):
                    continue
                other = labels[y, x + 1] if side == 0 else labels[y + 1, x]
                if label == other:
                    continue
                key = np.int64(min(label, other)) * regions + max(label, other)
                slot = _find_slot(key, hash_set)
                if hash_set[slot] >= 0:
                    continue
                hash_set[slot] = key
                pairs[count] = key
                count += 1
                if count == len(pairs):
                    pairs = _doubled(pairs)
                    hash_set = np.full(2 * len(pairs), -1, np.int64)
                    for i in range(count):
                        hash_set[_find_slot(pairs[i], hash_set)] = pairs[i]
    unique_pairs = np.empty((count, 2), np.int32)
    for i in range(count):
        unique_pairs[i, 0], unique_pairs[i, 1] = divmod(pairs[i], regions)
    return unique_pairs


@kernel
def _intersection(a: Int[np.ndarray, "bins"], b: Int[np.ndarray, "bins"], first: int, last: int) -> int:
    """Return the histogram intersection over bins ``first`` … ``last - 1``."""
    total = np.int32(0)
    for i in range(first, last):
        total += min(a[i], b[i])
    return int(total)


@kernel
def _normalise(
    counts: Int[np.ndarray, "bins"], out: Int[np.ndarray, "bins"], size: int, channels: int, first_texture_bin: int
) -> None:
    """Normalise colour and texture histograms of a region of ``size`` pixels, each to a sum of about ``ONE``."""
    colour_scale = ONE / np.float64(size * channels)
    texture_scale = ONE / np.float64(size * channels * DIRECTIONS)
    for i in range(first_texture_bin):
        out[i] = np.int32(counts[i] * colour_scale)
    for i in range(first_texture_bin, len(counts)):
        out[i] = np.int32(counts[i] * texture_scale)


@kernel
def _push(heap: Int[np.ndarray, "heap"], count: int, key: int) -> None:
    position = count
    while position > 0:
        parent = (position - 1) >> 1
        if heap[parent] >= key:
            break
        heap[position] = heap[parent]
        position = parent
    heap[position] = key


@kernel
def _pop(heap: Int[np.ndarray, "heap"], count: int) -> int:
    top = heap[0]
    key = heap[count - 1]
    position = 0
    while True:
        child = 2 * position + 1
        if child >= count - 1:
            break
        if child + 1 < count - 1 and heap[child + 1] > heap[child]:
            child += 1
        if heap[child] <= key:
            break
        heap[position] = heap[child]
        position = child
    heap[position] = key
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

    The neighbours of each region are a linked list; merged ones are skipped when the region itself is merged. Pairs are in
    a heap by similarity; those with a merged region are discarded when popped. A new region stores its histograms in the
    row of its first part.
    """
    regions = len(sizes)
    nodes = 2 * regions - 1
    channels = counts.shape[1] // (COLOUR_BINS + DIRECTIONS * TEXTURE_BINS)
    first_texture_bin = channels * COLOUR_BINS
    first_bin = 0 if colour else first_texture_bin
    last_bin = counts.shape[1] if texture else first_texture_bin
    histograms = colour or texture
    counts = counts.copy() if histograms else counts
    normalised = np.empty((regions if histograms else 0, counts.shape[1]), np.int32)
    all_boxes = np.empty((nodes, 4), np.int64)
    all_boxes[:regions] = boxes
    all_sizes = np.empty(nodes, np.int64)
    all_sizes[:regions] = sizes
    row = np.arange(nodes)
    if histograms:
        for r in range(regions):
            _normalise(counts[r], normalised[r], sizes[r], channels, first_texture_bin)

    alive = np.zeros(nodes, np.bool_)
    alive[:regions] = True
    added_to = np.full(nodes, -1, np.int64)
    head = np.full(nodes, -1, np.int32)
    tail = np.full(nodes, -1, np.int32)
    capacity = 8 * len(pairs) + 16
    members, next_link, links = np.empty(capacity, np.int32), np.empty(capacity, np.int32), 0
    pair_a, pair_b = np.empty(capacity, np.int32), np.empty(capacity, np.int32)
    heap, heap_size, num_pairs = np.empty(capacity, np.int64), 0, 0

    new = regions
    new_a, new_b = pairs[:, 0].copy(), pairs[:, 1].copy()
    num_new = len(pairs)
    while True:
        # Add the new pairs to the lists of neighbours and, with their similarity, to the heap.
        while num_pairs + num_new > len(pair_a):
            pair_a, pair_b = _doubled(pair_a), _doubled(pair_b)
        while heap_size + num_new > len(heap):
            heap = _doubled(heap)
        while links + 2 * num_new > len(members):
            members, next_link = _doubled(members), _doubled(next_link)
        for i in range(num_new):
            a, b = new_a[i], new_b[i]
            for owner, member in ((a, b), (b, a)):
                members[links] = member
                next_link[links] = -1
                if head[owner] < 0:
                    head[owner] = links
                else:
                    next_link[tail[owner]] = links
                tail[owner] = links
                links += 1
            similarity = 0
            if histograms:
                similarity += _intersection(normalised[row[a]], normalised[row[b]], first_bin, last_bin)
            pair_size = all_sizes[a] + all_sizes[b]
            if size:
                similarity += ((image_size - pair_size) * ONE) // image_size
            if fill:
                width = max(all_boxes[a, 2], all_boxes[b, 2]) - min(all_boxes[a, 0], all_boxes[b, 0])
                height = max(all_boxes[a, 3], all_boxes[b, 3]) - min(all_boxes[a, 1], all_boxes[b, 1])
                similarity += ((image_size - width * height + pair_size) * ONE) // image_size
            pair_a[num_pairs] = a
            pair_b[num_pairs] = b
            _push(heap, heap_size, (similarity << _INDEX_BITS) | ((1 << _INDEX_BITS) - 1 - num_pairs))
            num_pairs += 1
            heap_size += 1
        # Pop the most similar pair of regions that are not merged yet; of equal ones the first added.
        a = b = -1
        while heap_size:
            entry = (1 << _INDEX_BITS) - 1 - (_pop(heap, heap_size) & ((1 << _INDEX_BITS) - 1))
            heap_size -= 1
            a, b = pair_a[entry], pair_b[entry]
            if alive[a] and alive[b]:
                break
            a = b = -1
        if a < 0:
            break
        alive[a] = alive[b] = False
        alive[new] = True
        all_sizes[new] = all_sizes[a] + all_sizes[b]
        all_boxes[new, :2] = np.minimum(all_boxes[a, :2], all_boxes[b, :2])
        all_boxes[new, 2:] = np.maximum(all_boxes[a, 2:], all_boxes[b, 2:])
        row[new] = row[a]
        if histograms:
            counts_a, counts_b = counts[row[a]], counts[row[b]]
            for i in range(first_bin, last_bin):
                counts_a[i] += counts_b[i]
            _normalise(counts_a, normalised[row[a]], all_sizes[new], channels, first_texture_bin)
        num_new = 0
        for parent in (a, b):
            link = head[parent]
            while link >= 0:
                member = members[link]
                if alive[member] and added_to[member] != new:
                    added_to[member] = new
                    if num_new == len(new_a):
                        new_a, new_b = _doubled(new_a), _doubled(new_b)
                    new_a[num_new] = member
                    new_b[num_new] = new
                    num_new += 1
                link = next_link[link]
        new += 1
    return all_boxes[:new]


@kernel
def _level(length: int, bits: int) -> int:
    """Return the floor of the logarithm of a length to base ``2**bits``; 0 for lengths below the base."""
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

    The sides of two boxes with at least this IoU have a ratio of at least ``same_iou``, and they overlap by at least this
    fraction of either side. So kept boxes are stored in lists (a spatial hash) by the levels of their sides (octaves, or
    larger steps for a low ``same_iou``) and by the cell of their first corner, in a grid of the level's longest side. Only
    the few lists that can contain such a box are searched.
    """
    lists = 64
    while lists < 2 * len(boxes):
        lists *= 2
    first_in_list = np.full(lists, -1, np.int32)
    next_in_list = np.empty(len(boxes), np.int32)
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
        min_width, min_height = int(width * ratio), int(height * ratio)
        max_width, max_height = int(min(width / ratio, longest)) + 1, int(min(height / ratio, longest)) + 1
        is_new = True
        for level_x in range(_level(min_width, bits), _level(max_width, bits) + 1):
            cell_x = bits * (level_x + 1)  # log2 of the cell's width
            for level_y in range(_level(min_height, bits), _level(max_height, bits) + 1):
                cell_y = bits * (level_y + 1)
                for column in range(max(x2 - max_width, 0) >> cell_x, ((x2 - min_width) >> cell_x) + 1):
                    for row in range(max(y2 - max_height, 0) >> cell_y, ((y2 - min_height) >> cell_y) + 1):
                        j = first_in_list[_list_of(level_x, level_y, column, row, lists)]
                        while j >= 0 and is_new:
                            overlap_x = min(x2, boxes[j, 2]) - max(x1, boxes[j, 0])
                            overlap_y = min(y2, boxes[j, 3]) - max(y1, boxes[j, 1])
                            if overlap_x > 0 and overlap_y > 0:
                                intersection = overlap_x * overlap_y
                                other_area = (boxes[j, 2] - boxes[j, 0]) * (boxes[j, 3] - boxes[j, 1])
                                is_new = intersection < same_iou * (area + other_area - intersection)
                            j = next_in_list[j]
        if is_new:
            level_x, level_y = _level(width, bits), _level(height, bits)
            column, row = x1 >> bits * (level_x + 1), y1 >> bits * (level_y + 1)
            list_index = _list_of(level_x, level_y, column, row, lists)
            next_in_list[i] = first_in_list[list_index]
            first_in_list[list_index] = i
            kept[count] = i
            count += 1
    return kept[:count]
