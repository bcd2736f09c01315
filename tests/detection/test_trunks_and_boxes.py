"""Faster R-CNN over backbones of timm and torchvision, trained on modal and amodal boxes."""

import numpy as np
import pytest
import torch

from otus.data.scenes.generator import THING_CATEGORIES, Scenes
from otus.data.tensors import to_tensors
from otus.detection.region_based.faster_rcnn import RegionProposalNetwork, faster_rcnn
from otus.detection.region_based.region_detector import RegionDetector
from otus.errors import ShapeError
from otus.inference.predictor import Predictor
from otus.parts.backbones import timm_backbone, torchvision_backbone
from otus.parts.backbones.feature_pyramid import FeaturePyramid
from otus.parts.boxes.anchors import GridAnchorGenerator
from otus.parts.preprocess import Preprocess
from otus.parts.regions.roi_features import RoIFeatures, RoIPooler


def over_timm() -> RegionDetector:
    pytest.importorskip("timm", reason="a backbone of timm")
    backbone = timm_backbone("mobilenetv3_small_100", levels=(3, 4, 5))
    maps = RoIFeatures(backbone, RoIPooler(7, strides=backbone.strides), pyramid=FeaturePyramid(backbone.channels, 16))
    proposer = RegionProposalNetwork(
        16, GridAnchorGenerator([[16], [32], [64], [128]]), post_nms_top_n=50, train_post_nms_top_n=50
    )
    return faster_rcnn(maps, proposer, THING_CATEGORIES, representation_size=32)


def over_alexnet() -> RegionDetector:
    backbone = torchvision_backbone("alexnet", levels=(4,))
    maps = RoIFeatures(backbone, RoIPooler(6, strides=backbone.strides, method="pool"))
    proposer = RegionProposalNetwork(
        maps.out_channels, GridAnchorGenerator([[32, 64, 128]]), post_nms_top_n=50, train_post_nms_top_n=50
    )
    return faster_rcnn(maps, proposer, THING_CATEGORIES, representation_size=32)


@pytest.mark.parametrize("build", [over_timm, over_alexnet])
def test_learns_and_predicts(build):
    torch.manual_seed(0)
    system = build()
    scenes = Scenes(4, size_hw=(128, 160), seed=1)
    losses = {}
    for boxes in ("modal", "amodal"):
        samples = [to_tensors(scenes.scene(i), boxes=boxes) for i in range(4)]
        losses[boxes] = system.train().losses(samples, generator=torch.Generator().manual_seed(0))
        assert all(torch.isfinite(loss) for loss in losses[boxes].values())
    assert losses["modal"].keys() == losses["amodal"].keys()
    assert losses["modal"]["proposal_box"] != losses["amodal"]["proposal_box"]
    sum(losses["amodal"].values()).backward()
    assert all(parameter.grad is not None for parameter in system.parameters() if parameter.requires_grad)
    predictor = Predictor(system, preprocess=Preprocess(shorter_side=96, longer_side=128), name="x", device="cpu")
    for size_hw in ((128, 160), (1, 1), (1, 2000)):
        (prediction,) = predictor.predict(np.zeros((*size_hw, 3), np.uint8), score_threshold=0)
        assert len(prediction.instances) > 0
        assert prediction.instances.size_hw == size_hw


def test_anchors_of_another_number_of_maps_are_an_error():
    backbone = torchvision_backbone("alexnet", levels=(4,))
    maps = RoIFeatures(backbone, RoIPooler(6, strides=backbone.strides, method="pool"))
    proposer = RegionProposalNetwork(maps.out_channels, GridAnchorGenerator([[32], [64]]))
    system = faster_rcnn(maps, proposer, THING_CATEGORIES, representation_size=32)
    with pytest.raises(ShapeError, match="expected 2 feature maps, as many as sizes, got 1"):
        system.predict([{"image": torch.zeros(3, 64, 64)}])
