"""What the tests share: where the real images lie, and what this machine cannot run."""

import os
import sys
from pathlib import Path

# On small tensors torch's threads cost more than they bring, most of all beside other work. Set before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from hypothesis import settings

from otus.data.dataset import Dataset

sys.path.insert(0, str(Path(__file__).parent))  # for tiny_run, which tests also start as a process

SHARED_DATA = Path(os.environ.get("OTUS_SHARED_DATA", Path(__file__).parents[2] / "shared" / "data"))


settings.register_profile("otus", deadline=None, max_examples=60)  # two busy cores keep no deadline
settings.load_profile("otus")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip the tests of bfloat16 where the processor does not compute in it."""
    if item.get_closest_marker("bfloat16") is not None:
        from otus.parts.precision import runs_bfloat16

        if not runs_bfloat16():
            pytest.skip("convolutions in bfloat16 need AVX-512 (or its use was switched off)")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real images with real labels; tests that need it skip where it is not."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"the real images are not at {SHARED_DATA} (set OTUS_SHARED_DATA)")
    return SHARED_DATA


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Twelve small scenes on disk."""
    from tiny_run import write_scenes

    return write_scenes(tmp_path_factory.mktemp("scenes"), 12)
