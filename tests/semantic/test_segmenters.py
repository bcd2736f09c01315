"""Every segmenter: torchvision's answers with torchvision's weights, odd sizes, what is not labelled, sharing of patches."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.models import segmentation as reference

import otus
from otus.errors import ShapeError, UsageError
from otus.parts.backbones import Freezing, torchvision_backbone
from otus.parts.upsampling import UPSAMPLINGS
from otus.semantic.deconvnet import deconvolution_network
from otus.semantic.fcn import fcn, fcn_efficientnet_lite0
from otus.semantic.full_resolution import full_resolution
from otus.semantic.segmenter import Segmenter
from otus.semantic.segnet import segnet
from otus.semantic.semantic_fpn import semantic_fpn_efficientnet_lite0
from otus.semantic.sliding_window import sliding_window_segmenter
from otus.semantic.unet import unet, unet_efficientnet_lite0
from otus.structures import IGNORE, Categories
from otus.zoo.models import build_model
from otus.zoo.torchvision_segmentation_checkpoints import read_torchvision_segmenter
from otus.zoo.weights import read_weights_file

CATEGORIES = Categories(("sky", "owl", "tree"))
SMALL = {"widths": (4, 6, 8), "depths": (1, 1, 2)}
SYSTEMS = {
    "sliding window": lambda: sliding_window_segmenter(CATEGORIES, widths=(4, 4)),
    "full resolution": lambda: full_resolution(CATEGORIES, widths=(4, 4)),
    "FCN": lambda: fcn_efficientnet_lite0(CATEGORIES),
    "SegNet": lambda: segnet(CATEGORIES, **SMALL),
    "SegNet, strided": lambda: segnet(CATEGORIES, **SMALL, downsampling="strided-convolution", upsampling="nearest"),
    "deconvolution network": lambda: deconvolution_network(CATEGORIES, **SMALL, vector=16),
    "U-Net": lambda: unet(CATEGORIES, widths=(4, 6, 8)),
    "U-Net, strided": lambda: unet(CATEGORIES, widths=(4, 6, 8), downsampling="strided-convolution"),
    "U-Net of a backbone": lambda: unet_efficientnet_lite0(CATEGORIES),
    "Semantic FPN": lambda: semantic_fpn_efficientnet_lite0(CATEGORIES, freezing=Freezing(norms=False, level=0)),
}


def samples(*sizes_hw: tuple[int, int], seed: int = 0) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [
        {
            "image": torch.rand(3, *size_hw, generator=generator),
            "semantic": torch.randint(0, len(CATEGORIES), size_hw, generator=generator),
        }
        for size_hw in sizes_hw
    ]


@pytest.fixture(params=SYSTEMS, scope="module")
def system(request: pytest.FixtureRequest) -> Segmenter:
    torch.manual_seed(0)
    return SYSTEMS[request.param]()


def test_losses_reach_every_parameter(system):
    learning = system.train()
    losses = learning.losses(samples((33, 40), (37, 32)))
    assert set(losses) == {"class"}
    assert all(torch.isfinite(loss) for loss in losses.values())
    sum(losses.values()).backward()
    missing = [name for name, one in learning.named_parameters() if one.requires_grad and one.grad is None]
    assert not missing
    learning.zero_grad()


@pytest.mark.parametrize("size_hw", [(1, 1), (1, 9), (17, 33)])
def test_every_pixel_of_any_image_is_labelled(system, size_hw):
    (found,) = system.predict([{"image": torch.rand(3, *size_hw)}])
    assert found.size_hw == size_hw
    assert found.scores.shape == (len(CATEGORIES), *size_hw)


def test_pixels_that_are_not_labelled_teach_nothing(system):
    nothing = [
        {**sample, "semantic": torch.full_like(sample["semantic"], IGNORE)} for sample in samples((33, 40), (37, 32))
    ]
    system.train()
    losses = system.losses(nothing)
    assert all(float(loss.detach()) == 0 for loss in losses.values())


def test_a_label_of_no_category_is_named(system):
    (wrong,) = samples((20, 20))
    wrong["semantic"][0, 0] = 3
    with pytest.raises(ShapeError, match="labels from 0 to 2 or 255, got 0 to 3"):
        system.train().losses([wrong])


def test_a_sliding_window_and_shared_features_give_the_same_scores():
    torch.manual_seed(0)
    shared = sliding_window_segmenter(CATEGORIES, widths=(4, 5, 6)).eval()
    alone = sliding_window_segmenter(CATEGORIES, widths=(4, 5, 6), shared=False).eval()
    alone.load_state_dict(shared.state_dict())
    images, sizes_hw = torch.rand(2, 3, 11, 8), torch.tensor([[11, 8]] * 2)
    torch.testing.assert_close(alone(images, sizes_hw)["logits"], shared(images, sizes_hw)["logits"])


@pytest.mark.parametrize("kind", UPSAMPLINGS)
def test_segnet_takes_every_way_up(kind):
    torch.manual_seed(0)
    system = segnet(CATEGORIES, **SMALL, upsampling=kind)
    loss = sum(system.losses(samples((19, 24), (24, 24))).values())
    assert torch.isfinite(loss)


def test_max_unpooling_without_max_pooling_is_refused_when_it_is_built():
    with pytest.raises(UsageError, match="needs an encoder with max pooling"):
        segnet(CATEGORIES, **SMALL, downsampling="strided-convolution")
    for build in (unet, unet_efficientnet_lite0, fcn_efficientnet_lite0):
        with pytest.raises(UsageError, match=r"needs an encoder with max pooling.*expected one of bed-of-nails, .*"):
            build(CATEGORIES, upsampling="max-unpooling")


@pytest.mark.parametrize("kind", [kind for kind in UPSAMPLINGS if kind != "max-unpooling"])
def test_unet_and_fcn_take_every_other_way_up(kind):
    torch.manual_seed(0)
    for system in (
        unet(CATEGORIES, widths=(4, 6, 8), upsampling=kind),
        fcn_efficientnet_lite0(CATEGORIES, upsampling=kind),
    ):
        assert torch.isfinite(sum(system.losses(samples((33, 40), (37, 32))).values()))


@pytest.mark.parametrize("levels", [(5,), (4, 5), (3, 4, 5)])
def test_fcns_of_one_to_three_maps(levels):
    backbone = torchvision_backbone("resnet18", levels=levels)
    system = fcn(backbone, CATEGORIES)
    record = system.eval().stages([{"image": torch.rand(3, 70, 50)}])
    assert record.decoded.shape[-2:] == record.features[0].shape[-2:]
    assert record.logits.shape == (1, 3, 70, 50)


REFERENCES = ("fcn_resnet50", "deeplabv3_resnet50", "deeplabv3_mobilenet_v3_large", "lraspp_mobilenet_v3_large")


@pytest.mark.parametrize("name", REFERENCES)
def test_torchvisions_weights_give_torchvisions_scores(name):
    torch.manual_seed(0)
    extra = {} if name.startswith("lraspp") else {"aux_loss": True}
    theirs = getattr(reference, name)(weights=None, weights_backbone=None, num_classes=11, **extra).eval()
    ours = build_model(name, Categories(tuple("abcdefghijk"))).eval()
    ours.load_state_dict(read_torchvision_segmenter(theirs.state_dict()).state)
    images = torch.rand(2, 3, 97, 130)
    with torch.no_grad():
        expected = theirs(images)["out"]
        found = ours(images, torch.tensor([[97, 130]] * 2))["logits"]
    assert expected.std() > 0
    np.testing.assert_allclose(found.numpy(), expected.numpy(), atol=1e-4)


def test_a_file_of_torchvisions_is_read_with_its_categories(tmp_path):
    theirs = reference.lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=21)
    torch.save(theirs.state_dict(), tmp_path / "theirs.pth")
    found = read_weights_file(tmp_path / "theirs.pth", model="lraspp_mobilenet_v3_large")
    assert found.categories is not None
    assert found.categories.names[:2] == ("background", "aeroplane")
    predictor = otus.load("lraspp_mobilenet_v3_large", weights=tmp_path / "theirs.pth", device="cpu")
    (prediction,) = predictor.predict(np.zeros((40, 60, 3), np.uint8))
    assert prediction.semantic.size_hw == (40, 60)
