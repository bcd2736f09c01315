"""Time and memory of reading a large COCO file in a fresh process: peak RSS, and the bytes of the resulting arrays.

    python benchmarks/coco_memory.py --megabytes 1000

The file is synthetic: polygons of 10 to 60 points, one RLE in ten, annotations before images and in random order.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import msgspec
import numpy as np

from otus.structures import Masks

IMAGES = 20_000


def make(path: Path, megabytes: int) -> None:
    """Write a synthetic COCO file of about that size."""
    rng = np.random.default_rng(0)
    stripes = Masks.from_rle([[1000] * 306 + [1200]], (480, 640)).rle()[0]["counts"].decode()  # type: ignore[attr-defined]
    number = 0
    with path.open("wb") as file:
        file.write(b'{"annotations": [')
        while file.tell() < megabytes * 1_000_000:
            points = int(rng.integers(10, 60))
            ring = np.round(rng.random(2 * points) * 480, 2).tolist()
            outline = {"size": [480, 640], "counts": stripes} if number % 10 == 0 else [ring]
            record = {
                "id": number + 1,
                "image_id": int(rng.integers(1, IMAGES + 1)),
                "category_id": int(rng.integers(1, 81)),
                "bbox": np.round(rng.random(4) * 200, 2).tolist(),
                "area": round(float(rng.random() * 4e4), 2),
                "iscrowd": 0,
                "segmentation": outline,
            }
            file.write((b"," if number else b"") + msgspec.json.encode(record))
            number += 1
        images = [{"id": i, "file_name": f"{i:012d}.jpg", "width": 640, "height": 480} for i in range(1, IMAGES + 1)]
        categories = [{"id": i, "name": f"category {i}"} for i in range(1, 81)]
        file.write(b'], "images": ' + msgspec.json.encode(images))
        file.write(b', "categories": ' + msgspec.json.encode(categories) + b"}")


def read(path: Path) -> dict[str, float]:
    """Read the file in this process and measure it."""
    from otus.data.formats import coco
    from otus.data.formats.interface import Layout

    def peak() -> float:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6

    before, start = peak(), time.perf_counter()
    objects = coco.read(Layout("coco", path)).objects
    assert objects is not None
    seconds = time.perf_counter() - start
    values = [*vars(objects).values(), *vars(objects.segmentations).values()]
    arrays = sum(value.nbytes for value in values if isinstance(value, np.ndarray)) / 1e6
    return {
        "objects": len(objects),
        "seconds": round(seconds, 2),
        "file_megabytes": round(path.stat().st_size / 1e6, 1),
        "arrays_megabytes": round(arrays, 1),
        "before_megabytes": round(before, 1),
        "peak_megabytes": round(peak(), 1),
        "peak_over_arrays": round((peak() - before) / arrays, 2),
    }


def measure(path: Path) -> dict[str, float]:
    """Return the result of :func:`read` in a process of its own."""
    run = subprocess.run([sys.executable, __file__, "--read", str(path)], capture_output=True, check=True)
    return msgspec.json.decode(run.stdout)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=300)
    parser.add_argument("--read", type=Path)
    options = parser.parse_args()
    if options.read:
        sys.stdout.write(msgspec.json.encode(read(options.read)).decode())
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "instances.json"
        make(path, options.megabytes)
        for name, value in measure(path).items():
            sys.stdout.write(f"{name:18} {value}\n")


if __name__ == "__main__":
    main()
