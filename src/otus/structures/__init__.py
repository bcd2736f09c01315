"""The values that readers, models, metrics and drawing exchange: frozen dataclasses of numpy arrays, without torch.

Conventions: boxes are xyxy in absolute pixels, where pixel i covers [i, i + 1); labels are int64 indices into
:class:`Categories`, without background; sizes are (height, width). Constructors validate shapes and types.

Read in this order:

- ``boxes``: formats, areas, IoU and GIoU; ``oriented``: rotated boxes and cuboids; ``keypoints``: OKS;
- ``categories``: names, source ids, things and stuff, keypoint schemes;
- ``masks``: :class:`Masks` of one image, dense, as RLE, or as low-resolution probabilities that are pasted on demand;
- ``instances``: :class:`Instances`, the objects of one image, labelled or predicted; ``classification`` and ``maps``: a
  whole image's scores, :class:`SemanticMap` (of :class:`SemanticScores`) and :class:`PanopticMap`;
- ``objects`` and ``segmentations``: :class:`Objects` and :class:`Segmentations`, the same for a whole data set, as columns;
- ``prompt``: :class:`Prompt` and :class:`MaskCandidates`, the input and output of every :class:`PromptableMethod`.
"""

from otus.structures.boxes import BoxFormat
from otus.structures.categories import Categories, KeypointNames
from otus.structures.classification import Classification
from otus.structures.instances import Instances
from otus.structures.maps import IGNORE, PanopticMap, Segment, SemanticMap, SemanticScores
from otus.structures.masks import Masks
from otus.structures.objects import Objects
from otus.structures.prompt import MaskCandidates, Prompt, PromptableMethod, Stroke
from otus.structures.segmentations import SegmentationKind, Segmentations

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
    "PanopticMap",
    "Prompt",
    "PromptableMethod",
    "Segment",
    "SegmentationKind",
    "Segmentations",
    "SemanticMap",
    "SemanticScores",
    "Stroke",
]
