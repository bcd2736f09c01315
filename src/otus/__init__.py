"""Otus: object detection and segmentation, from the sliding window to Segment Anything.

``import otus`` is fast: the modules of each name below are imported when it is first used.

==============================  ====================================================================================
Read data                       `open_dataset`, which returns a `Dataset` of `Sample` values
Predict                         `load` returns a `Predictor`, which returns `Prediction` values; `list_models`, `Tiles`
Train                           `train` returns a `TrainedModel`; `TrainSettings`
Evaluate                        `evaluate` returns an `EvaluationReport`; `compare` returns a `Comparison`
Labels and predictions          `Instances`, `Masks`, `SemanticMap`, `PanopticMap`, `Classification`, `Categories`
Prompts                         `Prompt`, `MaskCandidates`
Pre- and postprocessing         `Preprocess`, `Postprocess`
Errors                          `OtusError` and its subclasses
==============================  ====================================================================================
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # for editors and type checkers; at run time, __getattr__ imports each on first use
    from otus.data.dataset import Dataset
    from otus.data.open import open_dataset
    from otus.data.sample import Sample
    from otus.errors import (
        CheckpointError,
        DataError,
        ExportError,
        FetchError,
        ImageError,
        MissingExtraError,
        OtusError,
        ShapeError,
        TrainingError,
        UsageError,
    )
    from otus.evaluation.evaluate import EvaluationReport, evaluate
    from otus.experiments.compare import compare
    from otus.inference.loading import load
    from otus.inference.prediction import Prediction
    from otus.inference.predictor import Predictor
    from otus.inference.tiling import Tiles
    from otus.parts.postprocess import Postprocess
    from otus.parts.preprocess import Preprocess
    from otus.reports.comparison import Comparison
    from otus.structures import (
        BoxFormat,
        Categories,
        Classification,
        Instances,
        KeypointNames,
        MaskCandidates,
        Masks,
        Objects,
        PanopticMap,
        Prompt,
        SemanticMap,
    )
    from otus.training.run import TrainedModel, train
    from otus.training.settings import TrainSettings
    from otus.zoo.catalogue import list_models

__version__ = "0.1.0"

__all__ = [
    "BoxFormat",
    "Categories",
    "CheckpointError",
    "Classification",
    "Comparison",
    "DataError",
    "Dataset",
    "EvaluationReport",
    "ExportError",
    "FetchError",
    "ImageError",
    "Instances",
    "KeypointNames",
    "MaskCandidates",
    "Masks",
    "MissingExtraError",
    "Objects",
    "OtusError",
    "PanopticMap",
    "Postprocess",
    "Prediction",
    "Predictor",
    "Preprocess",
    "Prompt",
    "Sample",
    "SemanticMap",
    "ShapeError",
    "Tiles",
    "TrainSettings",
    "TrainedModel",
    "TrainingError",
    "UsageError",
    "__version__",
    "compare",
    "evaluate",
    "list_models",
    "load",
    "open_dataset",
    "train",
]

_NAMES_BY_MODULE = {
    "data.dataset": "Dataset",
    "data.open": "open_dataset",
    "data.sample": "Sample",
    "errors": "CheckpointError DataError ExportError FetchError ImageError MissingExtraError OtusError ShapeError "
    "TrainingError UsageError",
    "evaluation.evaluate": "EvaluationReport evaluate",
    "experiments.compare": "compare",
    "inference.loading": "load",
    "inference.prediction": "Prediction",
    "inference.predictor": "Predictor",
    "inference.tiling": "Tiles",
    "parts.postprocess": "Postprocess",
    "parts.preprocess": "Preprocess",
    "reports.comparison": "Comparison",
    "structures": "BoxFormat Categories Classification Instances KeypointNames MaskCandidates Masks Objects PanopticMap "
    "Prompt SemanticMap",
    "training.run": "TrainedModel train",
    "training.settings": "TrainSettings",
    "zoo.catalogue": "list_models",
}
_MODULE_OF = {name: f"otus.{module}" for module, names in _NAMES_BY_MODULE.items() for name in names.split()}


def __getattr__(name: str) -> Any:
    if name in _MODULE_OF:
        return getattr(importlib.import_module(_MODULE_OF[name]), name)
    raise AttributeError(f"module 'otus' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
