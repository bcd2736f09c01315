"""Text prompts with a tiny CLIP of random weights: what it embeds, and a small model that learns two objects by heart."""

import copy
import json
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner, Result

pytest.importorskip("transformers")

import transformers

from otus.cli import app
from otus.data.image_writing import write_image
from otus.errors import CheckpointError, MissingExtraError, UsageError
from otus.parts.preprocess import Preprocess
from otus.parts.tasks import OBJECT, PROMPTABLE
from otus.promptable.interactive_training import SimulatedPrompts
from otus.promptable.method import SamMethod
from otus.promptable.sam import Sam, prepare_image, with_encoder
from otus.promptable.text import ClipEncoder, load_clip
from otus.structures import Categories, Masks, Prompt
from otus.zoo.checkpoint import CheckpointHeader, save_checkpoint
from otus.zoo.models import MODELS, ModelEntry, build_model

SIDE, CHANNELS = 64, 16
PREPROCESS = Preprocess(fixed_hw=(SIDE, SIDE), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


def scene() -> tuple[np.ndarray, np.ndarray]:
    """Return a red square with stripes and a blue disc on grey, and their masks."""
    rows, columns = np.mgrid[:SIDE, :SIDE]
    masks = np.stack([(abs(rows - 16) < 11) & (abs(columns - 16) < 11), np.hypot(rows - 45, columns - 44) < 14])
    image = np.full((SIDE, SIDE, 3), 128, np.uint8)
    image[masks[0]] = np.where(rows[masks[0], None] % 4 < 2, [250, 30, 30], [250, 250, 30])
    image[masks[1]] = [10, 20, 200]
    return image, masks


def pixels() -> torch.Tensor:
    return prepare_image(scene()[0], SIDE, preprocess=PREPROCESS)[0]


def masks() -> torch.Tensor:
    return torch.from_numpy(scene()[1])


def write_clip(folder: Path) -> Path:
    """Write a CLIP of random weights that knows two words, as transformers saves it."""
    letters = sorted(set("redblue"))
    tokens, merges = [*letters, *(f"{letter}</w>" for letter in letters)], ["#version: 0.2"]
    for word in (["r", "e", "d</w>"], ["b", "l", "u", "e</w>"]):
        joined = ["".join(word[:length]) for length in range(1, len(word) + 1)]
        merges += [f"{before} {after.removeprefix(before)}" for before, after in pairwise(joined)]
        tokens += joined[1:]
    vocabulary = {token: index for index, token in enumerate([*tokens, "<|startoftext|>", "<|endoftext|>"])}
    end = vocabulary["<|endoftext|>"]
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.CLIPConfig(
        text_config=sizes | {"vocab_size": len(vocabulary), "max_position_embeddings": 8, "bos_token_id": end - 1,
                             "eos_token_id": end, "pad_token_id": end},
        vision_config=sizes | {"image_size": 32, "patch_size": 8},
        projection_dim=CHANNELS,
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.CLIPModel(config).save_pretrained(folder)
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("\n".join(merges))
    transformers.CLIPTokenizer.from_pretrained(folder).save_pretrained(folder)
    return folder


def align(clip: ClipEncoder) -> None:
    """Let the embeddings of the words be those of the objects' crops, as in a CLIP that was trained."""
    with torch.no_grad():
        tokens = clip.tokenizer(text=["red", "blue"], padding=True, return_tensors="pt")
        pooled = clip.model.text_model(**tokens).pooler_output
        crops = clip.embed_crops(pixels(), masks(), generator=torch.Generator().manual_seed(1))
        clip.model.text_projection.weight.copy_((torch.linalg.pinv(pooled) @ crops).T)


class TwoConvolutions(nn.Sequential):
    """A small image encoder of stride 8."""

    image_size, out_channels = SIDE, 32

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 32, 4, stride=4), nn.GELU(), nn.Conv2d(32, 32, 2, stride=2))


def build(categories: Categories = OBJECT, *, text_dim: int | None = CHANNELS) -> Sam:
    torch.manual_seed(0)
    return with_encoder(TwoConvolutions(), categories, map_stride=8, ffn_dim=32, text_dim=text_dim)


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_clip(tmp_path_factory.mktemp("clip"))
    clip = load_clip(folder, preprocess=PREPROCESS)
    align(clip)
    clip.model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def clip(clip_folder: Path) -> ClipEncoder:
    return load_clip(clip_folder, preprocess=PREPROCESS)


def sample() -> dict[str, torch.Tensor]:
    return {"image": pixels(), "masks": masks(), "is_crowd": torch.zeros(2, dtype=torch.bool)}


@pytest.fixture(scope="module")
def trained(clip: ClipEncoder) -> Sam:
    sam = build().train()
    sam.simulated_prompts = SimulatedPrompts(max_rounds=1, clip=clip, text_share=1)
    optimizer = torch.optim.AdamW(sam.parameters(), lr=2e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(180):
        loss = sum(sam.losses([sample()] * 2, generator=generator).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return sam.eval()


def iou(one: np.ndarray, other: np.ndarray) -> float:
    return (one & other).sum() / (one | other).sum()


def test_words_select_the_object_that_only_crops_were_shown_of(trained: Sam, clip: ClipEncoder) -> None:
    image, (red, blue) = scene()
    method = SamMethod(trained, preprocess=PREPROCESS, text_encoder=clip)
    embedding = method.embed(image)
    for word, mask, other in (("red", red, blue), ("blue", blue, red)):
        candidates = method.segment(embedding, Prompt(text=word))
        assert len(candidates) == 1
        assert iou(candidates.best(), mask) > 0.75
        assert iou(candidates.best(), other) < 0.05
        assert len(method.segment(embedding, Prompt(text=word), multimask=True)) == 3
    prompts = [Prompt(text="blue"), Prompt([[16, 16]], [1]), Prompt([[16, 16]], [1], text="red"), Prompt(text="red")]
    together = method.segment_many(embedding, prompts)
    assert [len(candidates) for candidates in together] == [1, 3, 1, 1]
    for prompt, candidates in zip(prompts, together, strict=True):
        np.testing.assert_array_equal(candidates.best(), method.segment(embedding, prompt).best())


def test_embeddings_are_those_of_transformers(clip: ClipEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = clip.tokenizer(["red", "blue red"], padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = clip.model(**tokens, pixel_values=torch.zeros(1, 3, 32, 32)).text_embeds
    assert torch.allclose(clip.embed_texts(["red", "blue red"]), expected, atol=1e-6)

    image = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3)).astype(np.uint8)
    mask = np.zeros((SIDE, SIDE), bool)
    mask[40:52, 10:26] = True  # a box 16 wide, twice of which is the side of CLIP's images
    normalised = prepare_image(image, SIDE, preprocess=PREPROCESS)[0]
    processor = transformers.CLIPImageProcessor(do_resize=False, do_center_crop=False)
    for zeroed, visible in ((0.9, image), (0.1, image * mask[..., None])):
        monkeypatch.setattr(torch, "rand", lambda *_, zeroed=zeroed, **__: torch.tensor([1.0, zeroed]))
        crop = processor(visible[30:62, 2:34], return_tensors="pt")["pixel_values"]
        with torch.no_grad():
            expected = clip.model(**tokens, pixel_values=crop).image_embeds
        assert torch.allclose(clip.embed_crops(normalised, torch.from_numpy(mask)[None]), expected, atol=1e-5)


def test_crops_of_objects_at_the_border_and_of_one_pixel(clip: ClipEncoder) -> None:
    corners = torch.zeros(3, SIDE, SIDE, dtype=torch.bool)
    corners[0, 0, 0] = corners[1, -5:, -9:] = corners[2] = True
    embeddings = clip.embed_crops(pixels(), corners)
    assert torch.allclose(embeddings.norm(dim=1), torch.ones(3))
    first, again = (clip.embed_crops(pixels(), masks(), generator=torch.Generator().manual_seed(2)) for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, clip.embed_crops(pixels(), masks(), generator=torch.Generator().manual_seed(3)))


def test_every_parameter_learns_and_other_prompts_stay(clip: ClipEncoder) -> None:
    sam = build()
    sam.simulated_prompts = SimulatedPrompts(clip=clip)
    for seed in range(8):  # points, boxes and text
        losses = sam.losses([sample()], generator=torch.Generator().manual_seed(seed))
        sum(losses.values()).backward()
    assert not [name for name, part in sam.named_parameters() if part.requires_grad and part.grad is None]
    assert not any(name.startswith("simulated") or "clip" in name for name, _ in sam.named_parameters())
    assert copy.deepcopy(sam).simulated_prompts.clip is clip  # an average of the weights needs no second one


def test_text_changes_nothing_for_those_who_do_not_train_with_it() -> None:
    with_text, without = build(), build(text_dim=None)
    without.load_state_dict({name: value for name, value in with_text.state_dict().items() if "text_" not in name})
    first, second = (sam.losses([sample()], generator=torch.Generator().manual_seed(0)) for sam in (with_text, without))
    assert all(torch.equal(loss, second[name]) for name, loss in first.items())


def test_weights_that_do_not_know_text_refuse_it(trained: Sam, clip: ClipEncoder) -> None:
    image = scene()[0]
    for sam in (build(), build(text_dim=None), build_model("sam_efficientnet_lite0", OBJECT, {"text_dim": 8})):
        assert not sam.prompt_encoder.trained_with_text
        method = SamMethod(sam, name="mine")
        with pytest.raises(UsageError, match="mine: its weights were not trained with text; give points"):
            method.segment(method.embed(image), Prompt(text="red"))
        with pytest.raises(UsageError, match="mine: its weights were not trained with text; give points"):
            SamMethod(sam, name="mine", text_encoder=clip)
    assert trained.prompt_encoder.trained_with_text
    method = SamMethod(trained, name="mine")
    with pytest.raises(UsageError, match="mine: for text, pass the CLIP that it was trained with as text_encoder"):
        method.segment(method.embed(image), Prompt(text="red"))
    with pytest.raises(UsageError, match="the points mark 2"):
        method.segment(method.embed(image), Prompt([[9, 9], [40, 40]], [1, 2], text="red"))


def test_what_no_text_encoder_takes(trained: Sam, clip: ClipEncoder, tmp_path: Path) -> None:
    for text, message in (("red " * 9, "expected at most 8 tokens, got 11"), (" ", "expected words, got ' '")):
        with pytest.raises(UsageError, match=message):
            clip.embed_texts(["blue", text])
    untrained = build(text_dim=None)
    untrained.simulated_prompts = SimulatedPrompts(clip=clip, text_share=1)
    with pytest.raises(UsageError, match="built without text_dim"):
        untrained.losses([sample()])
    with pytest.raises(UsageError, match="expected embeddings of 16 channels, as in training, got 9"):
        trained.prompt_encoder(text=torch.zeros(1, 1, 9))


def test_what_is_no_clip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text('{"model_type": "bert"}')
    (tmp_path / "half").mkdir()
    write_clip(tmp_path / "half")
    (tmp_path / "half" / "model.safetensors").write_bytes(b"half")
    for name in ("empty", "other", "half", "nowhere"):
        with pytest.raises(CheckpointError, match=rf"{name}: expected a folder with a CLIP .*hf download"):
            load_clip(tmp_path / name)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'otus\[transformers\]'"):
        load_clip(tmp_path / "empty")


def run(*arguments: object, code: int = 0) -> Result:
    result = CliRunner().invoke(app, ["segment", "scene.png", *map(str, arguments)])
    assert result.exit_code == code, result.output
    return result


def test_the_command_says_that_the_text_encoder_answered(
    trained: Sam, clip_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(MODELS, "tiny", ModelEntry(build, PROMPTABLE, "none", PREPROCESS))
    image, (_, blue) = scene()
    write_image("scene.png", image)
    for name, sam in (("trained", trained), ("untrained", build())):
        header = CheckpointHeader(builder="tiny", categories=OBJECT)
        save_checkpoint(tmp_path / f"{name}.safetensors", sam.state_dict(), header)
    by_words = ("--text", "blue", "--text-encoder", clip_folder)
    document = json.loads(run(*by_words, "--method", "trained.safetensors", "--json").stdout)
    assert document["text"] == {"words": "blue", "answered_by": "text encoder"}
    (candidate,) = document["candidates"]
    assert iou(Masks.from_rle([candidate["segmentation"]["counts"]], (SIDE, SIDE)).dense()[0], blue) > 0.75
    assert "(tiny, text encoder, " in run(*by_words, "--method", "trained.safetensors").stdout
    untrained = run(*by_words, "--method", "untrained.safetensors", code=2)
    assert "its weights were not trained with text" in untrained.stderr
    assert "grabcut takes no text" in run(*by_words, "--method", "grabcut", code=2).stderr
    assert "sam_efficientnet_lite0: its weights were not trained with text" in run(*by_words, code=2).stderr
    assert "give one of them" in run(*by_words, "--detector", "trained.safetensors", code=2).stderr
    nowhere = run("--text", "blue", "--text-encoder", "nowhere", "--method", "trained.safetensors", code=1)
    assert "nowhere: expected a folder with a CLIP" in nowhere.stderr
