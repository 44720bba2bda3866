"""MiT: parameter counts, shapes, equation 1, and the draws of stochastic depth."""

import pytest
import torch
import torch.nn.functional as F
import transformers
from references import parameter_count

from segmentation.models.layers import keyed_uniform
from segmentation.models.mix_transformer import (
    VARIANTS,
    Block,
    EfficientSelfAttention,
    MixTransformer,
    attend,
    draw_depth,
)


def test_mit_b0_has_the_published_number_of_parameters():
    assert parameter_count(MixTransformer("b0")) == 3_319_392


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_has_as_many_parameters_as_transformers(variant):
    channels, depths = VARIANTS[variant]
    with torch.device("meta"):
        theirs = transformers.SegformerModel(
            transformers.SegformerConfig(hidden_sizes=list(channels), depths=list(depths))
        )
        assert parameter_count(MixTransformer(variant)) == parameter_count(theirs)


def test_unknown_variants_are_refused():
    with pytest.raises(ValueError, match=r"b6.*b0, b1, b2, b3, b4, b5"):
        MixTransformer("b6")


@pytest.mark.parametrize("size", [(64, 96), (33, 65), (75, 101)])
def test_features_have_strides_4_to_32_rounded_up(size):
    features = MixTransformer("b0").eval()(torch.rand(2, 3, *size))
    for feature, channels, stride in zip(features, (32, 64, 160, 256), (4, 8, 16, 32), strict=True):
        assert feature.shape == (2, channels, -(-size[0] // stride), -(-size[1] // stride))


def test_random_weights_start_with_their_spread_and_no_bias():
    torch.manual_seed(0)
    first = MixTransformer("b0").stages[0]
    block = first.blocks[0]
    for layer, inputs, scale in (
        (block.attention.query, 32, 1),
        (block.attention.project, 32, 0.1),  # the last map of a residual branch
        (block.ffn.contract, 4 * 32, 0.1),
        (first.merging.merge, 7 * 7 * 3, 1),
        (block.ffn.mix, 3 * 3, 1),  # depthwise: one channel
    ):
        std = scale / inputs**0.5
        # Of 1024 weights at least: 4 deviations.
        assert layer.weight.std().item() == pytest.approx(std, rel=0.1)
        assert abs(layer.weight.mean().item()) < 0.15 * std
        assert not layer.bias.any()


@pytest.mark.parametrize("reduction", [1, 2])
def test_attention_is_the_softmax_of_equation_1(reduction):
    torch.manual_seed(0)
    attention = EfficientSelfAttention(12, heads=3, reduction=reduction).double()
    x = torch.randn(2, 4, 6, 12, dtype=torch.float64)
    reduced = attention.reduce_sequence(x) if reduction > 1 else x
    query = attention.query(x).flatten(1, 2)
    weight, bias = attention.key_value.weight, attention.key_value.bias
    key = F.linear(reduced, weight[:12], bias[:12]).flatten(1, 2)
    value = F.linear(reduced, weight[12:], bias[12:]).flatten(1, 2)
    heads = []
    for head in range(3):
        d = slice(4 * head, 4 * head + 4)
        scores = query[..., d] @ key[..., d].transpose(1, 2) / 4**0.5
        heads.append(scores.softmax(-1) @ value[..., d])
    expected = attention.project(torch.cat(heads, dim=-1)).view(2, 4, 6, 12)
    torch.testing.assert_close(attention(x), expected)


def test_under_autocast_attention_on_a_cpu_is_in_single_precision_where_it_is_trained():
    query, key, value = torch.randn(3, 2, 4, 9, 8)
    expected = attend(query, key, value)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(attend(query, key, value), expected)
        with torch.no_grad():
            predicted = attend(query, key, value)
    assert predicted.dtype == torch.bfloat16
    torch.testing.assert_close(predicted.float(), expected, atol=0.02, rtol=0.02)


@pytest.mark.parametrize("size", [(8, 8), (9, 15), (4, 7)])
def test_sequence_reduction_is_a_strided_convolution(size):
    torch.manual_seed(0)
    attention = EfficientSelfAttention(6, heads=1, reduction=4)
    x = torch.randn(2, *size, 6)
    kernel = attention.reduce.weight.view(6, 4, 4, 6).permute(0, 3, 1, 2)
    expected = F.conv2d(x.permute(0, 3, 1, 2), kernel, attention.reduce.bias, stride=4).permute(
        0, 2, 3, 1
    )
    torch.testing.assert_close(
        attention.reduce_sequence(x), attention.norm(expected), rtol=1e-4, atol=1e-5
    )


def test_a_block_leaves_each_branch_out_for_whole_images():
    block = Block(8, heads=1, reduction=1, norm_eps=1e-6, drop_path=0.5, place=0)
    x, keys = torch.randn(400, 2, 3, 8), torch.arange(400)
    [draws] = draw_depth(block, keys, x)
    untouched = (block(x, draws) == x).flatten(1).all(1)
    # Both branches, by a draw each: four standard deviations.
    assert abs(untouched.float().mean() - 0.25) < 0.09


def test_stochastic_depth_grows_linearly_to_its_rate():
    model = MixTransformer("b0", drop_path=0.14)
    rates = [block.drop_path.p for stage in model.stages for block in stage.blocks]
    assert rates == pytest.approx([0.0, 0.02, 0.04, 0.06, 0.08, 0.10, 0.12, 0.14])


def test_one_draw_gives_each_branch_the_numbers_of_its_own():
    model, keys = MixTransformer("b0", drop_path=0.1), torch.tensor([5, 2**62, 7])
    drawn = torch.cat(draw_depth(model, keys, keys))
    expected = [keyed_uniform(keys, salt) for salt in range(16)]
    assert torch.equal(drawn, torch.stack(expected))
    assert len(set(drawn.flatten().tolist())) == drawn.numel()
    of_stage = torch.cat(draw_depth(model.stages[2], keys, keys))
    assert torch.equal(of_stage, drawn[8:12])
    assert draw_depth(model.eval(), keys, keys) == [(None, None)] * 8
