"""SAM and MobileSAM against segment-anything, transformers and mobile_sam: the same weights, the same outputs to 1e-4."""

import warnings
from itertools import product

import numpy as np
import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("segment_anything", reason="SAM is compared with segment-anything")

from segment_anything import SamPredictor as OfficialPredictor
from segment_anything import build_sam_vit_b

from otus.errors import ShapeError
from otus.promptable.method import SamMethod
from otus.promptable.predictor import SamPredictor
from otus.promptable.prompt_encoder import PromptBatch
from otus.promptable.sam import Sam, mobile_sam, sam_vit_b
from otus.promptable.tiny_vit import TinyViT
from otus.zoo.checkpoint import load_into
from otus.zoo.sam_checkpoints import read_sam
from tiny_sam import IMAGE_SIZE, narrow_sam, picture, reference, spread_out

Models = tuple[nn.Module, Sam]


@pytest.fixture(scope="module")
def models() -> Models:
    official = reference()
    return official, narrow_sam(official)


def prompts(points: bool, boxes: bool, masks: bool, side: int = IMAGE_SIZE) -> PromptBatch:
    """Five prompts of three points, boxes, masks."""
    generator = torch.Generator().manual_seed(1)
    corners = side * torch.rand(5, 2, 2, generator=generator)
    return PromptBatch(
        points=side * torch.rand(5, 3, 2, generator=generator) if points else None,
        labels=torch.tensor([[1, 0, 1], [1, 1, 1], [0, 0, 1], [1, 0, 0], [1, -1, -1]]) if points else None,
        boxes=corners.sort(dim=1).values.flatten(1) if boxes else None,
        masks=5 * torch.randn(5, 1, side // 4, side // 4, generator=generator) if masks else None,
    )


def official_answer(model: nn.Module, features: Tensor, batch: PromptBatch) -> tuple[Tensor, Tensor]:
    points = None if batch.points is None else (batch.points, batch.labels)
    tokens, dense = model.prompt_encoder(points, batch.boxes, batch.masks)
    return model.mask_decoder.predict_masks(features, model.prompt_encoder.get_dense_pe(), tokens, dense)


def check_whole_models(official: nn.Module, ours: Sam, side: int) -> None:
    images = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        features = official.image_encoder(images)
        torch.testing.assert_close(ours(images)["image_embeddings"], features, atol=1e-4, rtol=0)
        for parts in ((True, False, False), (True, True, True)):
            batch = prompts(*parts, side)
            logits, ious = official_answer(official, features, batch)
            assert logits.std() > 0.1
            torch.testing.assert_close(ours.decode(features[0], batch), (logits, ious), atol=1e-4, rtol=1e-5)


def test_the_image_encoder_gives_the_official_map(models: Models) -> None:
    official, ours = models
    images = torch.randn(2, 3, IMAGE_SIZE, IMAGE_SIZE)
    with torch.inference_mode():
        expected = official.image_encoder(images)
        assert expected.std() > 0.5
        torch.testing.assert_close(ours(images)["image_embeddings"], expected, atol=1e-4, rtol=0)


def test_attention_in_parts_is_attention(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    images = torch.randn(1, 3, IMAGE_SIZE, IMAGE_SIZE)
    with torch.inference_mode():
        whole = models[1](images)["image_embeddings"]
        monkeypatch.setattr("otus.promptable.image_encoder._CHUNK_WEIGHTS", 5000)
        torch.testing.assert_close(models[1](images)["image_embeddings"], whole, atol=1e-5, rtol=0)


@pytest.mark.parametrize("parts", [parts for parts in product((True, False), repeat=3) if any(parts)])
def test_points_boxes_masks_and_their_combinations(models: Models, parts: tuple[bool, bool, bool]) -> None:
    official, ours = models
    batch = prompts(*parts)
    features = torch.randn(1, 32, 12, 12)
    with torch.inference_mode():
        logits, ious = official_answer(official, features, batch)
        assert logits.std() > 0.5
        assert ious.std() > 0.1
        torch.testing.assert_close(ours.decode(features[0], batch), (logits, ious), atol=1e-4, rtol=0)


def test_prompts_in_chunks_are_prompts_one_by_one(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("otus.promptable.sam._CHUNK_VALUES", 2 * 12 * 12 * 32)
    features, batch = torch.randn(32, 12, 12), prompts(True, True, True)
    with torch.inference_mode():
        assert models[1].chunk_size == 2
        logits, ious = models[1].decode(features, batch)
        for index, part in enumerate(batch.split(1)):
            alone = models[1].decode(features, part)
            torch.testing.assert_close((logits[index : index + 1], ious[index : index + 1]), alone, atol=1e-4, rtol=0)


SIZES = [(120, 160), (190, 60), (33, 192), (400, 250), (1, 1), (1, 90), (3, 700)]


@pytest.mark.parametrize("size_hw", SIZES)
def test_the_predictor_answers_as_the_official_one(models: Models, size_hw: tuple[int, int]) -> None:
    """Raw images of any aspect ratio, all parts of a prompt, and its logits as the next mask."""
    official, ours = OfficialPredictor(models[0]), SamPredictor(SamMethod(models[1]))
    height, width = size_hw
    image = picture(height, width)
    official.set_image(image)
    ours.set_image(image)
    torch.testing.assert_close(ours.get_image_embedding(), official.get_image_embedding(), atol=1e-4, rtol=0)
    assert (ours.original_size, ours.input_size) == (official.original_size, official.input_size)
    points, labels = np.array([[0.3 * width, 0.6 * height], [0.8 * width, 0.1 * height]]), np.array([1, 0])
    box = np.array([0.1 * width, 0.2 * height, 0.7 * width, 0.9 * height])
    mask_input = None
    for given in ({"point_coords": points[:1], "point_labels": labels[:1]},
                  {"point_coords": points, "point_labels": labels, "box": box},
                  {"box": box, "multimask_output": False}, {}):  # fmt: skip
        masks, scores, logits = ours.predict(**given, mask_input=mask_input)
        expected = official.predict(**given, mask_input=mask_input)
        np.testing.assert_allclose(scores, expected[1], atol=1e-4)
        np.testing.assert_allclose(logits, expected[2], atol=1e-4)
        np.testing.assert_allclose(
            ours.predict(**given, mask_input=mask_input, return_logits=True)[0],
            official.predict(**given, mask_input=mask_input, return_logits=True)[0],
            atol=1e-4,
        )
        assert masks.shape == expected[0].shape
        assert masks.dtype == expected[0].dtype
        assert (masks != expected[0]).mean() < 1e-4
        mask_input = logits[:1]


def test_many_prompts_as_tensors_with_the_official_transform(models: Models) -> None:
    official, ours = OfficialPredictor(models[0]), SamPredictor(SamMethod(models[1]))
    image = picture(90, 150)
    official.set_image(image[..., ::-1], "BGR")
    ours.set_image(image[..., ::-1], "BGR")
    boxes = torch.tensor([[10, 20, 80, 60], [0, 0, 150, 90], [100, 5, 149, 50]])
    scaled = ours.transform.apply_boxes_torch(boxes, (90, 150))
    torch.testing.assert_close(scaled, official.transform.apply_boxes_torch(boxes, (90, 150)))
    expected = official.predict_torch(None, None, scaled, return_logits=True)
    torch.testing.assert_close(ours.predict_torch(None, None, scaled, return_logits=True), expected, atol=1e-4, rtol=0)


def test_images_that_the_transform_has_resized(models: Models) -> None:
    official, ours = OfficialPredictor(models[0]), SamPredictor(SamMethod(models[1]))
    image = picture(90, 150)
    resized = ours.transform.apply_image(image)
    np.testing.assert_array_equal(resized, official.transform.apply_image(image))
    tensor = torch.from_numpy(image).permute(2, 0, 1)[None].float()
    batch = torch.from_numpy(resized).permute(2, 0, 1)[None]
    # segment-anything 1.0 takes the batch and the channels for height and width here
    torch.testing.assert_close(ours.transform.apply_image_torch(tensor), batch.float(), atol=1.5, rtol=0)
    for predictor in (official, ours):
        predictor.set_torch_image(batch, (90, 150))
    torch.testing.assert_close(ours.get_image_embedding(), official.get_image_embedding(), atol=1e-4, rtol=0)
    assert ours.original_size == (90, 150)
    with pytest.raises(ShapeError, match="transformed_image: expected shape"):
        ours.set_torch_image(tensor, (90, 150))


def test_transformers_weights_and_outputs() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.SamConfig(
        vision_config=transformers.SamVisionConfig(
            hidden_size=48, output_channels=32, num_hidden_layers=4, num_attention_heads=4, image_size=IMAGE_SIZE,
            window_size=5, global_attn_indexes=[1, 3], num_pos_feats=16, mlp_dim=192,
        ).to_dict(),
        prompt_encoder_config=transformers.SamPromptEncoderConfig(hidden_size=32, image_size=IMAGE_SIZE).to_dict(),
        mask_decoder_config=transformers.SamMaskDecoderConfig(
            hidden_size=32, mlp_dim=64, num_attention_heads=4, iou_head_hidden_dim=32
        ).to_dict(),
    )  # fmt: skip
    torch.manual_seed(3)
    official = transformers.SamModel(config).eval()
    for _ in range(2):  # its own beginnings are small
        spread_out(official)
    ours = narrow_sam(reference())
    load_into(ours, read_sam(official.state_dict()).state, source="transformers")
    batch = prompts(True, False, False)
    images = torch.randn(1, 3, IMAGE_SIZE, IMAGE_SIZE)
    with torch.inference_mode():
        expected = official(
            pixel_values=images, input_points=batch.points[None], input_labels=batch.labels[None].int()
        )  # fmt: skip
        logits, ious = ours.decode(ours(images)["image_embeddings"][0], batch)
    assert logits.std() > 0.1
    torch.testing.assert_close(logits[:, 1:], expected.pred_masks[0], atol=1e-4, rtol=0)
    torch.testing.assert_close(ious[:, 1:], expected.iou_scores[0], atol=1e-4, rtol=0)


def mobile_modules() -> tuple[type[nn.Module], object]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it imports timm by old names, and overwrites timm's models
        modeling = pytest.importorskip("mobile_sam.modeling", reason="MobileSAM is compared with mobilesam-mirror's")
        build = pytest.importorskip("mobile_sam.build_sam")
    return modeling.TinyViT, build.build_sam_vit_t


def with_statistics(model: nn.Module) -> nn.Module:
    """Let batch norms and attention biases of random weights matter."""
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.normal_(layer.running_mean, std=0.1)
            nn.init.uniform_(layer.running_var, 0.5, 1.5)
    spread_out(model)
    return model.train().eval()  # which computes the table of biases


def test_tiny_vit_gives_the_official_map() -> None:
    official_class, _ = mobile_modules()
    torch.manual_seed(4)
    widths, depths, heads = [8, 16, 40, 320], [1, 2, 2, 1], [2, 4, 5, 10]  # its last stage is known by the number 320
    official = official_class(1024, embed_dims=widths, depths=depths, num_heads=heads, window_sizes=[7, 7, 14, 7])
    official = with_statistics(official)
    ours = TinyViT(widths, depths, heads).eval()
    state = {key: value for key, value in official.state_dict().items() if not key.startswith(("head", "norm_head"))}
    load_into(ours, state, source="mobile_sam")
    images = torch.randn(1, 3, 1024, 1024)
    with torch.inference_mode():
        expected = official(images)
        torch.testing.assert_close(ours(images), expected, atol=1e-4, rtol=0)


@pytest.mark.slow
def test_mobile_sam_as_it_is_published() -> None:
    _, build = mobile_modules()
    torch.manual_seed(5)
    official = with_statistics(build())
    ours = mobile_sam().eval()
    found = read_sam(official.state_dict())
    assert found.builder == "mobile_sam"
    load_into(ours, found.state, source="mobile_sam")
    check_whole_models(official, ours, 1024)


@pytest.mark.slow
def test_vit_b_as_it_is_published() -> None:
    torch.manual_seed(6)
    official = build_sam_vit_b()
    spread_out(official)
    ours = sam_vit_b().eval()
    found = read_sam(official.state_dict())
    assert found.builder == "sam_vit_b"
    load_into(ours, found.state, source="sam_vit_b")
    check_whole_models(official, ours, 1024)
