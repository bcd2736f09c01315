"""The proposals of a detector, in the frame of the image that came."""

import numpy as np
import pytest
import torch

from otus.data.sample import Sample
from otus.data.tensors import to_tensors
from otus.detection.region_based.region_detector import RegionDetector
from otus.errors import UsageError
from otus.inference.predictor import Predictor
from otus.inference.region_proposals import RPNProposals
from otus.parts.preprocess import Preprocess
from otus.parts.system import BaseSystem
from otus.structures import Categories
from otus.zoo.models import build_model

PREPROCESS = Preprocess(shorter_side=64, longer_side=96)


def test_they_are_those_of_the_pass_brought_back_the_likeliest_first():
    torch.manual_seed(0)
    system = build_model("faster_rcnn_mobilenet_v3_large_320_fpn", Categories(("owl",)))
    assert isinstance(system, RegionDetector)
    predictor = Predictor(system, preprocess=PREPROCESS, name="mine", device="cpu")
    image = np.random.default_rng(0).integers(0, 256, (32, 40, 3)).astype(np.uint8)
    found = RPNProposals(predictor)(image)
    assert len(found) > 0
    assert (np.diff(found.scores) <= 0).all()
    assert (found.boxes_xyxy >= 0).all()
    assert (found.boxes_xyxy <= (40, 32, 40, 32)).all()
    record = system.stages([PREPROCESS.sample(to_tensors(Sample(image, "image")))])
    expected = record.proposals.boxes[0][record.proposals.scores[0].argsort(descending=True, stable=True)].numpy() / 2
    np.testing.assert_allclose(found.boxes_xyxy, expected, atol=1e-4)


def test_a_model_that_proposes_nothing_says_so():
    class Other(BaseSystem):
        categories = Categories(("owl",))

    with pytest.raises(UsageError, match="mine has no region proposal network"):
        RPNProposals(Predictor(Other(), preprocess=PREPROCESS, name="mine", device="cpu"))
