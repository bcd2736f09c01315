"""A large COCO file is read within twice the memory of its arrays, in a process of its own."""

import importlib.util
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parents[2] / "benchmarks/coco_memory.py"


@pytest.mark.slow
def test_peak_memory_is_below_twice_the_arrays(tmp_path: Path) -> None:
    specification = importlib.util.spec_from_file_location("coco_memory", BENCHMARK)
    assert specification is not None
    assert specification.loader is not None
    benchmark = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(benchmark)
    benchmark.make(tmp_path / "large.json", 300)
    figures = benchmark.measure(tmp_path / "large.json")
    assert figures["arrays_megabytes"] > 300
    assert figures["peak_over_arrays"] < 2
