"""Convert checkpoints of SAM: all builders of segment-anything, MobileSAM, transformers, and other models."""

import warnings
from pathlib import Path

import pytest
import torch

import otus
from otus.errors import CheckpointError, UsageError
from otus.inference.promptable import load_method, load_sam, promptable_names
from otus.promptable import sam
from otus.zoo.sam_checkpoints import read_sam

segment_anything = pytest.importorskip("segment_anything", reason="SAM's keys are those of segment-anything")

BUILDERS = {"sam_vit_b": sam.sam_vit_b, "sam_vit_l": sam.sam_vit_l, "sam_vit_h": sam.sam_vit_h}


@pytest.mark.parametrize("name", BUILDERS)
def test_every_tensor_of_every_size_has_its_place(name: str) -> None:
    with torch.device("meta"):
        official = getattr(segment_anything, f"build_{name}")().state_dict()
        ours = BUILDERS[name]().state_dict()
    found = read_sam(official)
    assert found.builder == name
    assert {key: tensor.shape for key, tensor in found.state.items()} == {key: one.shape for key, one in ours.items()}


def test_every_tensor_of_transformers_and_of_mobile_sam_has_its_place() -> None:
    transformers = pytest.importorskip("transformers")
    with torch.device("meta"):
        state = transformers.SamModel(transformers.SamConfig()).state_dict()
        ours = sam.sam_vit_b().state_dict()
    found = read_sam(state)
    assert found.builder == "sam_vit_b"
    assert {key: tensor.shape for key, tensor in found.state.items()} == {key: one.shape for key, one in ours.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        build = pytest.importorskip("mobile_sam.build_sam").build_sam_vit_t
    found = read_sam(build().state_dict())
    ours = sam.mobile_sam().state_dict()
    assert found.builder == "mobile_sam"
    assert {key: tensor.shape for key, tensor in found.state.items()} == {key: one.shape for key, one in ours.items()}


def test_other_models_are_no_sam(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"not a SAM: expected a tensor 'mask_decoder.iou_token.weight', got 1"):
        read_sam({"conv.weight": torch.zeros(1)})
    assert promptable_names() == [
        "graph-cut",
        "grabcut",
        "sam_efficientnet_lite0",
        "sam_vit_b",
        "sam_vit_l",
        "sam_vit_h",
        "mobile_sam",
    ]
    with pytest.raises(UsageError, match=r"method: expected graph-cut, grabcut, .*; did you mean 'mobile_sam'\?"):
        load_method("mobilesam")
    with pytest.raises(UsageError, match="method: expected sam_efficientnet_lite0, sam_vit_b"):
        load_sam("fcos_efficientnet_lite0_fpn")
    with pytest.raises(UsageError, match="weights: graph-cut has no weights"):
        load_method("graph-cut", weights="x")
    with pytest.raises(CheckpointError, match="there is no such file of weights"):
        load_sam("missing.pth")


@pytest.mark.slow
def test_the_official_file_names_its_model_and_takes_prompts_only(tmp_path: Path) -> None:
    torch.manual_seed(0)
    torch.save(segment_anything.build_sam_vit_b().state_dict(), tmp_path / "sam_vit_b_01ec64.pth")
    predictor = otus.load(tmp_path / "sam_vit_b_01ec64.pth", device="cpu")
    assert predictor.name == "sam_vit_b"
    assert list(predictor.categories) == ["object"]
    with pytest.raises(UsageError, match="a promptable model needs points, boxes or masks: otus segment"):
        predictor.predict(torch.zeros(30, 40, 3, dtype=torch.uint8).numpy())
    assert load_sam("sam_vit_b", weights=tmp_path / "sam_vit_b_01ec64.pth", device="cpu").name == "sam_vit_b"
