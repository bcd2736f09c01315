"""Time of the first prediction of a process and of later ones: import and load, first call, later calls.

    python benchmarks/first_prediction.py [--repeats 3]

Each row is the median over several processes, with the packaged model on one image of 480x640; in `fresh install` the
process finds no compiled kernels and compiles them.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile

from _side_by_side import print_header

CODE = """
import json, time
start = time.perf_counter()
import numpy as np, otus
predictor = otus.load(precision="auto")
loaded = time.perf_counter()
image = np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8)
times = []
for _ in range(8):
    before = time.perf_counter()
    predictor.predict(image)
    times.append(time.perf_counter() - before)
print(json.dumps([loaded - start, times[0], sorted(times[1:])[3]]))
"""


def seconds(environment: dict[str, str]) -> list[float]:
    """Return the seconds of import and load, of the first call, and of later calls (median), in a process of its own."""
    run = subprocess.run([sys.executable, "-c", CODE], check=True, capture_output=True, text=True, env=environment)
    return json.loads(run.stdout)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    repeats = parser.parse_args().repeats
    print_header("The first prediction", ("torch", "torchvision", "numba"))
    rows = {"fresh install": [], "usual": []}
    seconds(dict(os.environ))  # warm-up: compiles kernels, fills the file cache
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as cache:
            rows["fresh install"].append(seconds({**os.environ, "NUMBA_CACHE_DIR": cache}))
        rows["usual"].append(seconds(dict(os.environ)))
    for name, runs in rows.items():
        load, first, warm = (statistics.median(column) for column in zip(*runs, strict=True))
        print(f"{name:16s} import and load {load:.1f} s, first call {first:.1f} s, later calls {warm * 1e3:.0f} ms")


if __name__ == "__main__":
    main()
