"""The proposals of a trained detector's region proposal network."""

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
    """Compute proposals by the region proposal network of a detector.

    Parameters
    ----------
    predictor
        Predictor of a detector with a region proposal network, e.g. Faster R-CNN.

    Raises
    ------
    UsageError
        If the detector has no region proposal network.
    """

    def __init__(self, predictor: Predictor) -> None:
        if not predictor.system.has_rpn:
            raise UsageError(f"{predictor.name} has no region proposal network; use Faster, Mask or Keypoint R-CNN")
        self.predictor = predictor

    def __call__(self, image: UInt8[np.ndarray, "h w 3"]) -> Proposals:
        """Return the proposals of an image in its pixels, highest score first."""
        pipeline = self.predictor.pipeline
        record: Any = pipeline.stages(pipeline.prepare(Sample(image, "image")))
        scores = record.proposals.scores[0].float().cpu().numpy()
        boxes = record.proposals.boxes[0].float().cpu().numpy()
        order = np.argsort(-scores, kind="stable")
        instances = Instances(boxes[order], np.zeros(len(boxes), np.int64), record.batch.sizes_hw[0])
        size_hw = (image.shape[0], image.shape[1])
        return Proposals(clip(self.predictor.preprocess.undo(instances, size_hw).boxes_xyxy, size_hw), scores[order])
