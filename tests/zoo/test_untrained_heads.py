"""Checkpoints of runs whose mask or keypoint head had no training labels."""

from pathlib import Path

import pytest
import torch

import otus
from otus.structures import Categories, KeypointNames
from otus.zoo.checkpoint import CheckpointHeader, save_checkpoint
from otus.zoo.models import build_model
from otus.zoo.weights import read_weights_file

NOSE = Categories(("dog",), keypoints=(("dog", KeypointNames(("nose",))),))


@pytest.mark.parametrize(
    ("model", "bias", "without"),
    [
        ("mask_rcnn_efficientnet_lite0_fpn", "mask_head.mask_fcn_logits.bias", "faster_rcnn_efficientnet_lite0_fpn"),
        ("keypoint_rcnn_resnet50_fpn", "keypoint_head.kps_score_lowres.bias", "faster_rcnn_resnet50_fpn"),
    ],
)
def test_a_head_that_never_saw_a_label_is_left_out(tmp_path: Path, model: str, bias: str, without: str) -> None:
    state = build_model(model, NOSE).state_dict()
    file = tmp_path / "best.safetensors"
    trained = CheckpointHeader(builder=model, categories=NOSE, training={"steps": 40})
    save_checkpoint(file, state, trained)
    predictor = otus.load(file, device="cpu")
    assert predictor.name == without
    found = predictor.system.predict([{"image": torch.rand(3, 64, 64)}])[0]
    assert found.masks is None
    assert found.keypoints is None

    save_checkpoint(file, state | {bias: state[bias] + 1e-4}, trained)  # one label moved it
    assert read_weights_file(file).builder == model
    save_checkpoint(file, state, CheckpointHeader(builder=model, categories=NOSE))  # nobody says that it was trained
    assert read_weights_file(file).builder == model
