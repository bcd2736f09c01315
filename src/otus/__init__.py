"""Otus: object detection and segmentation, from the sliding window to Segment Anything.

``import otus`` is light: each name below brings what it needs when it is first used.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "load": "otus.inference.loading",
    "Predictor": "otus.inference.predictor",
    "evaluate": "otus.evaluation.evaluate",
    "train": "otus.training.run",
    "TrainSettings": "otus.training.settings",
    "open_dataset": "otus.data.open",
    "Dataset": "otus.data.dataset",
    "Sample": "otus.data.sample",
    "Instances": "otus.structures",
    "Masks": "otus.structures",
    "Categories": "otus.structures",
    "OtusError": "otus.errors",
}

__all__ = [*_HOMES, "__version__"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'otus' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
