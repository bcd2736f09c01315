"""The proposals of a trained detector, before they are classified."""

from typing import Any

import numpy as np
from jaxtyping import UInt8

from otus.data.sample import Sample
from otus.errors import UsageError
from otus.inference.predictor import Predictor
from otus.proposals.interface import Proposals
from otus.structures import Instances
from otus.structures.boxes import clip


class RPNProposals:
    """Finds what the region proposal network of a detector proposes.

    Parameters
    ----------
    predictor
        Of a detector that has one, e.g. Faster R-CNN.

    Raises
    ------
    UsageError
        If the detector has none.
    """

    def __init__(self, predictor: Predictor) -> None:
        if not predictor.system.learns_proposals:
            raise UsageError(f"{predictor.name} learns no proposals; Faster, Mask and Keypoint R-CNN do")
        self.predictor = predictor

    def __call__(self, image: UInt8[np.ndarray, "h w 3"]) -> Proposals:
        """The proposals of an image, in its frame."""
        pipeline = self.predictor.pipeline
        record: Any = pipeline.stages(pipeline.prepare(Sample(image, "image")))
        scores = record.proposals.scores[0].float().cpu().numpy()
        boxes = record.proposals.boxes[0].float().cpu().numpy()
        order = np.argsort(-scores, kind="stable")
        found = Instances(boxes[order], np.zeros(len(boxes), np.int64), record.batch.sizes_hw[0])
        size_hw = (image.shape[0], image.shape[1])
        return Proposals(clip(self.predictor.preprocess.undo(found, size_hw).boxes_xyxy, size_hw), scores[order])
