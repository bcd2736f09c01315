"""Shared by the benchmarks: timing, a header with the machine and versions, and tables of several tools side by side."""

import datetime
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def print_header(title: str, packages: tuple[str, ...] = ()) -> None:
    """Print date, hardware, commit, and the versions of the other packages."""
    print(f"# {title}")
    print(f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC, {_processor()}, {os.cpu_count()} cores, "
          f"Python {platform.python_version()}, commit {_commit()}")  # fmt: skip
    for package in packages:
        try:
            print(f"{package} {version(package)}", end="  ")
        except PackageNotFoundError:
            print(f"{package} (not installed)", end="  ")
    print("\n" if packages else "")


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _commit() -> str:
    run = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return run.stdout.strip() or "unknown"


def median_seconds(
    function: Callable[[], object],
    *,
    repeats: int = 5,
    warm_up: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Return the median time of a call after ``warm_up`` calls; with ``time.process_time``, in CPU seconds of all cores."""
    for _ in range(warm_up):
        function()
    times = []
    for _ in range(repeats):
        start = clock()
        function()
        times.append(clock() - start)
    return statistics.median(times)


def print_table(title: str, values: dict[str, float | None], *, ours: str = "otus", unit: str = "s") -> None:
    """Print the value of each tool and its ratio to ours; None for a tool that is not installed."""
    print(f"## {title}")
    for name, value in values.items():
        if value is None:
            print(f"{name:24s} not installed")
        else:
            base = values[ours]
            print(f"{name:24s} {value:9.3f} {unit}" + (f"  {value / base:7.2f} x {ours}" if base else ""))
    print()
