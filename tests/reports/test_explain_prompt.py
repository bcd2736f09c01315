"""``otus explain prompt``: its figures are those of the prediction, and its attention is the decoder's."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from otus.cli import app
from otus.data.image_writing import write_image
from otus.errors import UsageError
from otus.inference import promptable
from otus.interactive.mask_files import candidate_records
from otus.parts.inference_mode import inference_mode
from otus.promptable.mask_decoder import attention_weights
from otus.promptable.method import SamMethod
from otus.promptable.sam import sam_efficientnet_lite0
from otus.reports.explain.prompt import explain_prompt
from otus.structures import Prompt


@pytest.fixture(scope="module")
def method() -> SamMethod:
    torch.manual_seed(0)
    return SamMethod(sam_efficientnet_lite0(image_size=128), name="tiny")


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (48, 80, 3), dtype=np.uint8)


def test_its_figures_are_those_of_the_prediction(method: SamMethod, image: np.ndarray) -> None:
    prompt = Prompt([[20, 22], [58, 40], [5, 5]], [1, 1, 0])
    document = explain_prompt(image, prompt, name="owl.png", method=method).document()
    assert (document["file"], document["width"], document["height"]) == ("owl.png", 80, 48)
    embedding = method.embed(image)
    before = np.zeros((48, 80), bool)
    for count, step in enumerate(document["steps"], start=1):
        candidates = method.segment(embedding, Prompt(prompt.points_xy[:count], prompt.point_labels[:count]))
        assert step["candidates"] == candidate_records(candidates)
        after = candidates.best()
        assert step["added"] - step["removed"] == after.sum() - before.sum()
        assert step["added"] == (after & ~before).sum()
        before = after
    assert [len(step["candidates"]) for step in document["steps"]] == [3, 1, 1]


def test_a_box_comes_before_the_points(method: SamMethod, image: np.ndarray) -> None:
    prompt = Prompt([[20, 22]], [1], box_xyxy=[5, 5, 60, 40])
    explanation = explain_prompt(image, prompt, name="owl.png", method=method)
    assert [len(part.points_xy) for part in explanation.prompts] == [0, 1]
    html = explanation.page().html()
    assert html.count("<img") == 1 + 1 + 4 + 1 + 1  # prompt, candidate, attention, change, mask


def test_attention_is_that_of_the_decoder(method: SamMethod, image: np.ndarray) -> None:
    prompt = Prompt([[20, 22]], [1])
    embedding = method.embed(image)
    attention = method.mask_attention(embedding, prompt)
    assert attention.shape == (4, 8, 8)
    np.testing.assert_allclose(attention.sum(axis=(1, 2)), 1, rtol=1e-5)
    transformer = method.sam.mask_decoder.transformer
    seen = {}
    hook = transformer.norm_final_attn.register_forward_pre_hook(lambda _, args: seen.update(attended=args[0]))
    method.segment(embedding, prompt)
    hook.remove()
    with inference_mode(method.sam) as sam:  # by the library's attention: softmax of q k, the projections not folded
        batch = method._batch([next(method._object_prompts(0, prompt, embedding.size_hw, None, None))])
        side, tokens = sam.decoder_inputs(method.features(embedding), batch)
        tokens = sam.mask_decoder._with_output_tokens(tokens)
        updated, locations = transformer.blocks(side, tokens)
        last = transformer.final_attn_token_to_image
        queries = last.split_heads(last.q_proj(updated + tokens))
        keys = last.split_heads(last.k_proj(locations + side.encodings))
        expected = (queries @ keys.transpose(2, 3) * last.head_dim**-0.5).softmax(dim=-1)
        values = last.split_heads(last.v_proj(locations))
        attended = updated + last.out_proj((expected @ values).transpose(1, 2).flatten(start_dim=2))
    torch.testing.assert_close(seen["attended"], attended, rtol=1e-4, atol=1e-5)
    masks = expected.mean(dim=1)[0, 1:5].unflatten(1, (8, 8))
    np.testing.assert_allclose(attention, masks.numpy(), rtol=1e-3, atol=1e-6)
    weights = attention_weights(last, updated + tokens, locations + side.encodings)
    torch.testing.assert_close(weights.unflatten(1, (8, -1)), expected, rtol=1e-3, atol=1e-6)


def test_the_command(method: SamMethod, image: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(promptable, "load_sam", lambda name, **options: method)
    write_image(tmp_path / "owl.png", image)
    arguments = ["explain", "prompt", str(tmp_path / "owl.png"), "--method", "tiny", "--out", str(tmp_path / "page")]
    done = CliRunner().invoke(app, [*arguments, "--point", "24,22,1", "--point", "70,40,0", "--json"])
    assert done.exit_code == 0, done.stderr
    document = json.loads(done.stdout)
    assert Path(document["page"]).read_text().startswith("<!doctype html>")
    assert len(document["steps"]) == 2
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 2
    assert "there is no prompt" in done.stderr


def test_several_objects_are_refused(method: SamMethod, image: np.ndarray) -> None:
    with pytest.raises(UsageError, match="one object"):
        explain_prompt(image, Prompt([[20, 22], [58, 40]], [1, 2]), name="owl.png", method=method)


def test_points_on_background_before_the_first_on_the_object(method: SamMethod, image: np.ndarray) -> None:
    explanation = explain_prompt(image, Prompt([[5, 5], [20, 22], [30, 30]], [0, 1, 1]), name="owl.png", method=method)
    assert [len(part.points_xy) for part in explanation.prompts] == [2, 3]
    with pytest.raises(UsageError, match="nothing is marked as object"):
        explain_prompt(image, Prompt([[5, 5]], [0]), name="owl.png", method=method)


@pytest.mark.parametrize("name", ["graph-cut", "mask_rcnn_efficientnet_lite0_fpn"])
def test_a_method_without_a_promptable_model_is_refused(name: str) -> None:
    with pytest.raises(
        UsageError, match=f"expected sam_efficientnet_lite0, .* or a file of weights, got '{name}'"
    ) as raised:
        promptable.load_sam(name)
    assert "did you mean 'graph-cut'" not in str(raised.value)
