"""Attention against PyTorch's, deformable attention against a readable loop, and positional encodings."""

import math

import pytest
import torch
from torch import nn

from otus.parts.transformer.attention import Attention
from otus.parts.transformer.deformable_attention import DeformableAttention
from otus.parts.transformer.positional_encodings import sine_embedding, sine_positional_encoding


def test_attention_is_pytorchs():
    torch.manual_seed(0)
    ours, theirs = Attention(16, 4), nn.MultiheadAttention(16, 4, batch_first=True)
    for name, weight, bias in zip(
        ("q_proj", "k_proj", "v_proj"), theirs.in_proj_weight.chunk(3), torch.randn(48).chunk(3), strict=True
    ):
        ours.get_submodule(name).load_state_dict({"weight": weight, "bias": bias})
    theirs.in_proj_bias.data = torch.cat([ours.q_proj.bias, ours.k_proj.bias, ours.v_proj.bias]).detach()
    theirs.out_proj.load_state_dict(ours.out_proj.state_dict())
    queries, keys, values = torch.randn(2, 5, 16), torch.randn(2, 7, 16), torch.randn(2, 7, 16)
    attention_mask = torch.ones(2, 1, 7, dtype=torch.bool)
    attention_mask[1, :, 4:] = False
    expected, weights = theirs(
        queries, keys, values, key_padding_mask=~attention_mask[:, 0], average_attn_weights=False
    )
    attended = ours(queries, keys, values, attention_mask=attention_mask)
    torch.testing.assert_close(attended, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        ours.weights(queries, keys, attention_mask=attention_mask), weights, atol=1e-6, rtol=1e-5
    )


def test_the_initial_spread_is_that_of_one_joint_matrix():
    bound = math.sqrt(6 / (64 + 3 * 64))
    for layer in (Attention(64, 4).q_proj, Attention(64, 4).v_proj):
        assert 0.9 * bound < float(layer.weight.detach().abs().max()) <= bound


def bilinear(x: torch.Tensor, u: float, v: float) -> torch.Tensor:
    """Interpolate a feature map (D, h, w) at pixel coordinates whose integers are pixel centres; 0 outside."""
    total = torch.zeros(x.shape[0])
    for i in (math.floor(v), math.floor(v) + 1):
        for j in (math.floor(u), math.floor(u) + 1):
            if 0 <= i < x.shape[1] and 0 <= j < x.shape[2]:
                total = total + x[:, i, j] * (1 - abs(v - i)) * (1 - abs(u - j))
    return total


def test_deformable_attention_is_a_loop_over_points():
    torch.manual_seed(0)
    layer = DeformableAttention(8, 2, num_levels=2, num_points=3)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.5)
    maps = [torch.randn(2, 8, 6, 5), torch.randn(2, 8, 3, 4)]
    queries, boxes = torch.randn(2, 4, 8), torch.rand(2, 4, 4) * 0.6 + 0.2
    extent = torch.tensor([[1.0, 1.0], [0.7, 0.9]])
    expected = torch.zeros(2, 4, 8)
    for b in range(2):
        for q in range(4):
            offsets = layer.sampling_offsets(queries[b, q]).reshape(2, 2, 3, 2)
            weights = layer.attention_weights(queries[b, q]).reshape(2, 6).softmax(1).reshape(2, 2, 3)
            heads = []
            for head in range(2):
                attended = torch.zeros(4)
                for level, x in enumerate(maps):
                    values = torch.einsum("oc,chw->ohw", layer.value_proj.weight, x[b])
                    for point in range(3):
                        location = boxes[b, q, :2] + offsets[head, level, point] / 3 * boxes[b, q, 2:] / 2
                        u, v = (location * extent[b] * torch.tensor([x.shape[3], x.shape[2]]) - 0.5).tolist()
                        sampled = bilinear(values[head * 4 : head * 4 + 4], u, v)
                        attended = attended + weights[head, level, point] * sampled
                heads.append(attended)
            expected[b, q] = layer.output_proj(torch.cat(heads))
    torch.testing.assert_close(layer(queries, boxes, maps, extent), expected, atol=1e-5, rtol=1e-4)


def test_padding_says_as_little_as_what_lies_outside_the_map():
    torch.manual_seed(0)
    layer = DeformableAttention(8, 2, num_levels=1, num_points=3)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.5)
    x, queries, boxes = torch.randn(1, 8, 6, 4), torch.randn(1, 4, 8), torch.rand(1, 4, 4) * 0.6 + 0.4
    padded = torch.nn.functional.pad(x, (0, 4, 0, 2))
    alone, in_batch = layer(queries, boxes, [x], torch.ones(1, 2)), torch.tensor([[0.5, 0.75]])
    torch.testing.assert_close(layer(queries, boxes, [padded], in_batch), alone, atol=1e-5, rtol=1e-4)


def test_deformable_attention_begins_by_looking_around():
    locations, weights = DeformableAttention(8, 4, num_levels=1, num_points=2).sampling_locations(
        torch.randn(1, 1, 8), torch.tensor([[[0.5, 0.5, 0.2, 0.4]]])
    )
    torch.testing.assert_close(weights, torch.full_like(weights, 0.5))
    expected = torch.tensor([[0.6, 0.5], [0.5, 0.7], [0.4, 0.5], [0.5, 0.3]])
    torch.testing.assert_close(locations[0, :, 0, 0, 1], expected, atol=1e-6, rtol=0)


def test_encodings_tell_places_apart_and_do_not_see_padding():
    alone, padded = torch.ones(1, 3, 4, dtype=torch.bool), torch.zeros(1, 5, 6, dtype=torch.bool)
    padded[:, :3, :4] = True
    torch.testing.assert_close(sine_positional_encoding(padded, 16)[..., :3, :4], sine_positional_encoding(alone, 16))
    vectors = sine_positional_encoding(alone, 16)[0].flatten(1).t()
    apart = torch.cdist(vectors, vectors) + torch.eye(12)
    assert float(apart.min()) > 0.1
    wave = sine_embedding(torch.tensor([[0.3]]), 4)[0]
    angles = 0.3 * 2 * math.pi / torch.tensor([1.0, 100.0])
    expected = [float(f(angle)) for angle in angles for f in (math.sin, math.cos)]
    assert wave.tolist() == pytest.approx(expected, abs=1e-6)
