"""Training a promptable model: the simulated prompts, the losses, and a small model that learns one image by heart."""

import pytest
import torch
from torchvision.ops import sigmoid_focal_loss

from otus.errors import ShapeError, UsageError
from otus.parts.backbones import efficientnet_lite0_backbone
from otus.promptable.backbone_encoder import BackboneEncoder
from otus.promptable.interactive_training import SimulatedPrompts, jittered_boxes, mask_losses, next_points
from otus.promptable.mask_decoder import Mixing, as_locations, as_maps
from otus.promptable.prompt_encoder import PromptBatch
from otus.promptable.sam import Sam, with_encoder

SIDE = 64


def square(top: int, left: int, side: int, size: int = 32) -> torch.Tensor:
    mask = torch.zeros(size, size, dtype=torch.bool)
    mask[top : top + side, left : left + side] = True
    return mask


def small_sam() -> Sam:
    torch.manual_seed(0)
    backbone = efficientnet_lite0_backbone(levels=(2, 3, 4, 5))
    encoder = BackboneEncoder(backbone, image_size=SIDE, pyramid_channels=16, out_channels=32)
    return with_encoder(encoder, ffn_dim=32)


def sample(*masks: torch.Tensor) -> dict[str, torch.Tensor]:
    stacked = torch.stack(masks)
    image = stacked.float().sum(dim=0).expand(3, -1, -1)
    return {"image": image, "masks": stacked, "is_crowd": torch.zeros(len(masks), dtype=torch.bool)}


@pytest.mark.parametrize("stride", [8, 4])
def test_details_change_the_pixels_at_their_place(stride: int) -> None:
    sam = small_sam().eval()
    channels, side = sam.mask_decoder.embed_dim, SIDE // stride
    fine = torch.zeros(1, channels * stride // 32, side, side)
    fine[:, :, side // 2, 1] = 5.0
    unshuffled = torch.nn.functional.pixel_unshuffle(fine, 16 // stride)
    features = torch.randn(4 * channels, SIDE // 16, SIDE // 16)
    features[channels:] = 0
    detailed = features.clone()
    first = channels if stride == 8 else 2 * channels
    detailed[first : first + len(unshuffled[0])] = unshuffled[0]
    prompts = PromptBatch(points=torch.tensor([[[20.0, 30.0]]]), labels=torch.tensor([[1]]))
    with torch.no_grad():
        changed = sam.decode(features, prompts)[0][0, 0] != sam.decode(detailed, prompts)[0][0, 0]
    factor = stride // 4
    expected = torch.zeros_like(changed)
    expected[side // 2 * factor : (side // 2 + 1) * factor, factor : 2 * factor] = True
    assert torch.equal(changed, expected)


def test_the_next_point_is_in_the_error_region():
    ground_truth = torch.stack([square(4, 4, 9), square(4, 4, 9), square(4, 4, 9)])
    prediction = torch.stack([torch.zeros_like(ground_truth[0]), square(4, 4, 9) | square(20, 10, 11), ground_truth[2]])
    points, labels = next_points(prediction, ground_truth, middle=True)
    assert points.tolist() == [[8.5, 8.5], [15.5, 25.5], [8.5, 8.5]]  # missing, too much, nothing wrong
    assert labels.tolist() == [1, 0, 1]
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        points, labels = next_points(prediction, ground_truth, middle=False, generator=generator)
        wrong = prediction ^ ground_truth
        for point, label, error, is_object in zip(
            points.long().tolist(), labels.tolist(), wrong, ground_truth, strict=True
        ):
            assert error[point[1], point[0]] or not error.any()
            assert bool(is_object[point[1], point[0]]) == bool(label)


def test_missing_parts_and_parts_too_many_are_not_one_error():
    ground_truth, prediction = (
        square(0, 0, 8)[None],
        square(0, 8, 8)[None],
    )  # side by side: the middle is not on their border
    points, _ = next_points(prediction, ground_truth, middle=True)
    x, y = points[0].tolist()
    assert min(abs(x - 4), abs(x - 12)) <= 1
    assert abs(y - 4) <= 1


def test_boxes_with_noise_stay_near_and_valid():
    masks = torch.stack([square(2, 3, 20), square(31, 31, 1), square(0, 0, 32)])
    exact = torch.tensor([[3.0, 2, 23, 22], [31, 31, 32, 32], [0, 0, 32, 32]])
    generator = torch.Generator().manual_seed(0)
    boxes = torch.stack([jittered_boxes(masks, generator) for _ in range(200)])
    assert (boxes[..., 2:] > boxes[..., :2]).all()
    assert (boxes >= 0).all()
    assert (boxes <= 32).all()
    assert boxes[:, 0].mean(dim=0).sub(exact[0]).abs().max() < 0.5
    assert 1.5 < boxes[:, 0, 0].std() < 2.5  # a tenth of 20 pixels


def test_losses_of_masks():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 8, 8, generator=generator)
    ground_truth = torch.rand(2, 8, 8, generator=generator) > 0.5
    ious = torch.rand(2, 3, generator=generator)
    pixel, dice, squared = mask_losses(logits, ious, ground_truth)
    target = ground_truth[:, None].expand(2, 3, 8, 8).float()
    p = logits.sigmoid()
    assert torch.allclose(pixel, -torch.where(target > 0, p, 1 - p).log().mean(dim=(2, 3)))
    focal = mask_losses(logits, ious, ground_truth, pixel_loss="focal")[0]
    assert torch.allclose(focal, 20 * sigmoid_focal_loss(logits, target, alpha=0.25, gamma=2).mean(dim=(2, 3)))
    expected_dice = 1 - (2 * (p * target).sum((2, 3)) + 1) / (p.sum((2, 3)) + target.sum((2, 3)) + 1)
    assert torch.allclose(dice, expected_dice)
    prediction = logits > 0
    iou = (prediction & ground_truth[:, None]).sum((2, 3)) / (prediction | ground_truth[:, None]).sum((2, 3))
    assert torch.allclose(squared, (ious - iou) ** 2)


def test_losses_reach_prompt_encoder_and_decoder_and_are_reproducible():
    sam = small_sam()
    samples = [sample(square(4, 8, 24, SIDE), square(40, 40, 16, SIDE)), sample(square(10, 10, 30, SIDE))]
    first = sam.losses(samples, generator=torch.Generator().manual_seed(3))
    again = sam.losses(samples, generator=torch.Generator().manual_seed(3))
    assert set(first) == {"pixel", "dice", "iou"}
    assert all(torch.isfinite(loss) and torch.equal(loss, again[name]) for name, loss in first.items())
    for seed in range(4):  # points and boxes, masks and none
        sum(sam.losses(samples, generator=torch.Generator().manual_seed(seed)).values()).backward()
    assert not [
        name for name, parameter in sam.named_parameters() if parameter.requires_grad and parameter.grad is None
    ]


def test_an_image_without_objects_teaches_nothing():
    empty = {"image": torch.rand(3, SIDE, SIDE), "masks": torch.zeros(0, SIDE, SIDE, dtype=torch.bool)}
    losses = small_sam().losses([sample(square(4, 8, 24, SIDE)), empty])
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert small_sam().losses([empty])["dice"] == 0


def test_a_little_of_the_loss_trains_all_three_masks():
    sam = small_sam().train()
    sam.simulated_prompts = SimulatedPrompts(max_rounds=1, box_share=0.0)
    sum(sam.losses([sample(square(4, 8, 24, SIDE))]).values()).backward()
    gradients = [mlp[0].weight.grad for mlp in sam.mask_decoder.output_hypernetworks_mlps]
    assert [gradient is not None and bool(gradient.any()) for gradient in gradients] == [False, True, True, True]


def test_small_objects_are_not_trained_on():
    sam = small_sam()
    sam.simulated_prompts = SimulatedPrompts(min_area=0.1)
    assert sam.losses([sample(square(4, 8, 16, SIDE))])["dice"] == 0
    assert sam.losses([sample(square(4, 8, 32, SIDE))])["dice"] > 0


def test_the_feature_maps_of_a_frozen_encoder_are_computed_once():
    sam = small_sam().train()
    sam.image_encoder.requires_grad_(False)
    calls = []
    sam.image_encoder.register_forward_hook(lambda *_: calls.append(1))
    one, other = sample(square(4, 8, 24, SIDE)), sample(square(30, 8, 24, SIDE))
    for batch in ([one, other], [other], [one]):
        sum(sam.losses(batch).values()).backward()
    assert len(calls) == 2
    assert all(parameter.grad is None for parameter in sam.image_encoder.parameters())
    assert sam.mask_decoder.mask_tokens.weight.grad.any()


def test_the_details_are_those_of_strides_8_and_4():
    encoder = small_sam().eval().image_encoder
    images = torch.randn(1, 3, SIDE, SIDE)
    channels = encoder.out_channels
    with torch.no_grad():
        finest, *levels = encoder.backbone(images)
        expected = [encoder.details[0](encoder.pyramid(levels)[0]), encoder.details[1](finest)]
        features = encoder(images)
    unshuffle = torch.nn.functional.pixel_unshuffle
    torch.testing.assert_close(features[:, channels : 2 * channels], unshuffle(expected[0], 2))
    torch.testing.assert_close(features[:, 2 * channels :], unshuffle(expected[1], 4))


def test_a_backbone_without_the_fine_level():
    with pytest.raises(UsageError, match="expected feature maps of strides 4, 8, 16 and 32"):
        BackboneEncoder(efficientnet_lite0_backbone(levels=(3, 4, 5)), image_size=SIDE)


def test_a_sample_without_masks():
    with pytest.raises(ShapeError, match="expected masks to train on"):
        small_sam().losses([{"image": torch.rand(3, 64, 64)}])


def test_it_learns_an_image_by_heart():
    sam = small_sam().train()
    sam.simulated_prompts = SimulatedPrompts(max_rounds=2)
    masks = square(6, 6, 20, SIDE), square(34, 34, 24, SIDE)
    optimizer = torch.optim.AdamW(sam.parameters(), lr=2e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(60):
        loss = sum(sam.losses([sample(*masks)] * 2, generator=generator).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    sam.eval()
    with torch.inference_mode():
        features = sam.image_encoder(sample(*masks)["image"][None])[0]
        points = torch.tensor([[[16.0, 16.0]], [[46.0, 46.0]]])
        logits, ious = sam.decode(features, PromptBatch(points=points, labels=torch.ones(2, 1).long()))
    best = logits[torch.arange(2), 1 + ious[:, 1:].argmax(dim=1)] > 0
    ground_truth = torch.nn.functional.adaptive_avg_pool2d(torch.stack(masks).float(), 16) > 0.5
    iou = (best & ground_truth).sum((1, 2)) / (best | ground_truth).sum((1, 2))
    assert iou.min() > 0.7


def test_mixing_has_no_effect_until_it_is_trained_and_then_on_neighbours() -> None:
    x = torch.randn(2, 9, 2, 2, 2, 2, 5)
    assert torch.equal(as_locations(as_maps(x), x.shape), x)
    x = torch.randn(2, 9, 2, 2, 5)
    mixing = Mixing(5)
    assert torch.equal(mixing(x), x)
    torch.nn.init.normal_(mixing.second.weight)
    changed = x.clone()
    changed[0, 4] += 1  # the location in the middle
    differs = (as_maps(mixing(changed)) != as_maps(mixing(x))).any(dim=1)
    assert differs[0].all()
    assert not differs[1].any()


def test_weights_that_are_loaded_empty_the_cache_of_a_frozen_encoder() -> None:
    sam, other = small_sam().train(), small_sam()
    sam.image_encoder.requires_grad_(False)
    image = sample(square(4, 8, 24, SIDE))["image"][None]
    before = sam._training_features(image)
    torch.nn.init.ones_(other.image_encoder.neck[0].weight)
    sam.load_state_dict(other.state_dict())
    assert not torch.equal(sam._training_features(image), before)


def test_training_on_a_gpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("there is no NVIDIA GPU")
    sam = small_sam().train().cuda()
    sum(sam.losses([sample(square(4, 8, 24, SIDE))], generator=torch.Generator().manual_seed(0)).values()).backward()
    assert sam.mask_decoder.mask_tokens.weight.grad.any()


def test_a_batch_without_an_object_to_train_on_has_gradients_of_zero() -> None:
    sam = small_sam().train()
    sam.image_encoder.requires_grad_(False)
    sum(sam.losses([sample(square(4, 8, 2, SIDE))]).values()).backward()
    assert not sam.mask_decoder.mask_tokens.weight.grad.any()
