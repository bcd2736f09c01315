"""What the tests share: where the real pictures lie."""

import os
from pathlib import Path

import pytest

SHARED_DATA = Path(os.environ.get("OTUS_SHARED_DATA", Path(__file__).parents[2] / "shared" / "data"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real pictures with real labels; tests that need it skip where it is not."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"the real pictures are not at {SHARED_DATA} (set OTUS_SHARED_DATA)")
    return SHARED_DATA
