"""Promptable models by name or file: precision and the identity of the weights."""

from pathlib import Path

import numpy as np
import pytest
import torch

from otus.errors import UsageError
from otus.inference.promptable import load_method, load_sam
from otus.parts.tasks import OBJECT
from otus.promptable.sam import sam_efficientnet_lite0
from otus.structures import Prompt
from otus.zoo.checkpoint import CheckpointHeader, save_checkpoint
from otus.zoo.weights import packaged_file

IMAGE = np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    arguments = {"image_size": 96}
    header = CheckpointHeader(builder="sam_efficientnet_lite0", arguments=arguments, categories=OBJECT)
    save_checkpoint(path, sam_efficientnet_lite0(**arguments).state_dict(), header)
    return path


def test_a_fused_encoder_predicts_the_same_and_is_the_same_model(weights: Path) -> None:
    exact, fused = load_sam(weights), load_sam(weights, precision="float32")
    assert fused.model_hash == exact.model_hash
    expected, found = exact.embed(IMAGE), fused.embed(IMAGE)
    assert not np.array_equal(found.features, expected.features)  # it was fused
    np.testing.assert_allclose(found.features, expected.features, atol=1e-4 * np.abs(expected.features).max())
    prompt = Prompt([[20, 30]], [1])
    np.testing.assert_allclose(
        fused.segment(expected, prompt).scores, exact.segment(expected, prompt).scores, atol=1e-5
    )


def test_options_that_do_not_fit(weights: Path) -> None:
    with pytest.raises(UsageError, match="runtime: graph-cut has no network"):
        load_method("graph-cut", runtime="onnxruntime")
    with pytest.raises(UsageError, match="expected a promptable model"):
        load_sam(packaged_file("fcos_efficientnet_lite0_fpn"))
