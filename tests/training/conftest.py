"""Scenes to train on."""

import sys
from pathlib import Path

import pytest

from otus.data.dataset import Dataset

sys.path.insert(0, str(Path(__file__).parent))  # for tiny_run, which tests also start as a process

from tiny_run import write_scenes


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Twelve small scenes on disk."""
    return write_scenes(tmp_path_factory.mktemp("scenes"), 12)
