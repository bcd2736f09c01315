"""The values that flow between rooms: plain numpy, no torch."""

from otus.structures.boxes import BoxFormat
from otus.structures.categories import Categories, KeypointNames
from otus.structures.classification import Classification
from otus.structures.instances import Instances
from otus.structures.maps import IGNORE, PanopticMap, Segment, SemanticMap
from otus.structures.masks import Masks
from otus.structures.objects import Objects
from otus.structures.prompt import MaskCandidates, Prompt, PromptableMethod, Stroke
from otus.structures.segmentations import Outline, Segmentations

__all__ = [
    "IGNORE",
    "BoxFormat",
    "Categories",
    "Classification",
    "Instances",
    "KeypointNames",
    "MaskCandidates",
    "Masks",
    "Objects",
    "Outline",
    "PanopticMap",
    "Prompt",
    "PromptableMethod",
    "Segment",
    "Segmentations",
    "SemanticMap",
    "Stroke",
]
