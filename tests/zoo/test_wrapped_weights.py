"""Weights with prefixes of wrappers: Lightning, torch.compile, DataParallel, EMA."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import otus
from otus.errors import CheckpointError
from otus.parts.preprocess import Preprocess
from otus.structures import Categories
from otus.training.fine_tuning import load_pretrained
from otus.zoo.weights import read_weights_file

OF_DETR = {"class_embed.weight": torch.ones(92, 4), "query_embed.weight": torch.ones(5, 4)}
OF_THE_HUB = {
    "class_labels_classifier.weight": torch.ones(92, 4),
    "model.query_position_embeddings.weight": torch.ones(5, 4),
}
OF_TORCHVISION = {"roi_heads.box_predictor.cls_score.weight": torch.ones(3, 4), "rpn.head.bias": torch.ones(1)}
OF_TORCHVISION_DENSE = {
    "head.classification_head.cls_logits.bias": torch.ones(6),
    "head.regression_head.bbox_reg.bias": torch.ones(8),
}


def prefixed(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in state.items()}


@pytest.mark.parametrize("state", [OF_DETR, OF_THE_HUB, OF_TORCHVISION, OF_TORCHVISION_DENSE])
@pytest.mark.parametrize("prefix", ["", "model.", "_orig_mod.", "module.", "ema.", "model._orig_mod.", "detector.net."])
def test_those_of_others_are_recognised(tmp_path: Path, state: dict[str, Tensor], prefix: str) -> None:
    torch.save(state, tmp_path / "bare.pth")
    expected = read_weights_file(tmp_path / "bare.pth")
    assert "class_indices" in expected.arguments
    beside = {"criterion.weight": torch.zeros(2), "model_old.step": torch.tensor(3)}
    for number, content in enumerate(
        (
            prefixed(state, prefix),
            {"state_dict": prefixed(state, prefix) | (beside if prefix else {}), "epoch": 3},
            {
                "state_dict": {name: 0 * tensor for name, tensor in state.items()},
                "state_dict_ema": prefixed(state, prefix),
            },
            prefixed(state, "ema_model.module.") | prefixed({name: 0 * one for name, one in state.items()}, "net.x."),
        )
    ):
        file = tmp_path / f"{number}.ckpt"
        torch.save(content, file)
        found = read_weights_file(file)
        assert found.arguments == expected.arguments
        assert found.state.keys() == expected.state.keys()
        assert all(torch.equal(found.state[name], tensor) for name, tensor in expected.state.items())


class Small(nn.Module):
    categories = Categories(("a",))

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Linear(2, 2)
        self.head = nn.Linear(2, 3)

    def predict(self, samples: object) -> list[object]:
        return []


@pytest.mark.parametrize("prefix", ["model.", "system.", "module._orig_mod.", "ema."])
def test_those_of_a_system_of_ones_own_load_and_start_a_training(tmp_path: Path, prefix: str) -> None:
    source = Small()
    file = tmp_path / "lightning.pth"
    beside = {"criterion.weight": torch.zeros(2), **prefixed({"backbone.weight": torch.zeros(2, 2)}, "teacher.")}
    torch.save({"state_dict": prefixed(source.state_dict(), prefix) | beside}, file)
    predictor = otus.load(file, system=Small(), preprocess=Preprocess(fixed_hw=(8, 8)), device="cpu")
    assert torch.equal(predictor.system.head.weight, source.head.weight)
    system = Small()
    load_pretrained(system, read_weights_file(file))
    assert torch.equal(system.head.weight, source.head.weight)
    assert torch.equal(system.backbone.weight, source.backbone.weight)


def test_those_of_something_else_are_named_with_their_prefix(tmp_path: Path) -> None:
    torch.save({"model.conv.weight": torch.zeros(2), "loss.weight": torch.zeros(2)}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match=r"does not fit.*extra, e\.g\. model\.conv\.weight"):
        otus.load(tmp_path / "other.pth", system=Small(), preprocess=Preprocess(fixed_hw=(8, 8)), device="cpu")
