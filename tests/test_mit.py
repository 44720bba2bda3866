"""MiT and SegFormer: parameter counts, shapes, gradients, equations, both decoders, keyed randomness."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import SegformerConfig, SegformerModel

from segmentation.models.layers import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    DropPath,
    KeyedDropout,
    Normalise,
    keyed_uniform,
)
from segmentation.models.mix_transformer import (
    VARIANTS,
    Block,
    EfficientSelfAttention,
    MixTransformer,
    attend,
    draw_depth,
)
from segmentation.models.segformer import ConvDecoder, MLPDecoder, SegFormer

DECODERS = ("conv", "mlp")


def parameter_count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def test_mit_b0_has_the_published_number_of_parameters():
    assert parameter_count(MixTransformer("b0")) == 3_319_392


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_has_as_many_parameters_as_transformers(variant):
    channels, depths = VARIANTS[variant]
    with torch.device("meta"):
        theirs = SegformerModel(SegformerConfig(hidden_sizes=list(channels), depths=list(depths)))
        assert parameter_count(MixTransformer(variant)) == parameter_count(theirs)


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match=r"b6.*b0, b1, b2, b3, b4, b5"):
        MixTransformer("b6")
    with pytest.raises(ValueError, match=r"unet.*conv, mlp"):
        SegFormer(2, decoder="unet")


@pytest.mark.parametrize("size", [(64, 96), (33, 65), (75, 101)])
def test_features_have_strides_4_to_32_rounded_up(size):
    features = MixTransformer("b0").eval()(torch.rand(2, 3, *size))
    for feature, channels, stride in zip(features, (32, 64, 160, 256), (4, 8, 16, 32), strict=True):
        assert feature.shape == (2, channels, -(-size[0] // stride), -(-size[1] // stride))


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("size", [(32, 32), (33, 65), (47, 100), (96, 64), (500, 375)])
@torch.no_grad()
def test_logits_have_the_size_of_the_image(decoder, size):
    assert SegFormer(5, decoder=decoder).eval()(torch.rand(1, 3, *size)).shape == (1, 5, *size)


@pytest.mark.parametrize("size", [(31, 64), (64, 31), (1, 1)])
def test_smaller_images_are_refused(size):
    with pytest.raises(ValueError, match=f"{size[0]}x{size[1]}.*32x32"):
        SegFormer(5)(torch.rand(1, 3, *size))


def test_other_channel_counts():
    assert SegFormer(3, in_channels=5).eval()(torch.rand(1, 5, 32, 40)).shape == (1, 3, 32, 40)


def test_random_weights_start_with_their_spread_and_no_bias():
    torch.manual_seed(0)
    first = MixTransformer("b0").stages[0]
    block = first.blocks[0]
    for layer, std in (
        (block.attention.query, 0.02),
        (block.ffn.contract, 0.02),
        (
            first.merging.merge,
            (2 / (7 * 7 * 32)) ** 0.5,
        ),  # 7 x 7 x 32 weights lead from an input to the outputs
        (block.ffn.mix, (2 / (3 * 3)) ** 0.5),  # depthwise: 3 x 3
    ):
        assert layer.weight.std().item() == pytest.approx(
            std, rel=0.1
        )  # of 1024 weights at least: 4 deviations
        assert abs(layer.weight.mean().item()) < 0.15 * std
        assert not layer.bias.any()


@pytest.mark.parametrize("decoder", DECODERS)
def test_every_parameter_gets_a_gradient(decoder):
    torch.manual_seed(0)
    model = SegFormer(
        3, decoder=decoder
    ).eval()  # batch statistics would cancel the biases before them
    model(torch.rand(2, 3, 64, 96)).square().sum().backward()
    assert [
        name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()
    ] == []


def test_normalisation_is_in_the_model_and_not_in_its_state():
    model = SegFormer(2)
    assert {"normalise.mean", "normalise.std"} <= {name for name, _ in model.named_buffers()}
    assert not any("normalise" in name for name in model.state_dict())
    mean, std = (torch.tensor(x).view(1, 3, 1, 1) for x in (IMAGENET_MEAN, IMAGENET_STD))
    assert IMAGENET_MEAN == (0.485, 0.456, 0.406)
    assert IMAGENET_STD == (0.229, 0.224, 0.225)
    ones = Normalise()((mean + std).expand(1, 3, 2, 2))
    torch.testing.assert_close(ones, torch.ones(1, 3, 2, 2))


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


def test_attention_on_a_cpu_is_in_single_precision_under_autocast():
    query, key, value = torch.randn(3, 2, 4, 9, 8)
    expected = attend(query, key, value)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(attend(query, key, value), expected)


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


@pytest.mark.parametrize(("variant", "width"), [("b0", 256), ("b2", 768)])
def test_conv_decoder_is_smaller_than_the_papers(variant, width):
    channels = VARIANTS[variant][0]
    with torch.device("meta"):
        ours, papers = ConvDecoder(channels, 19, width), MLPDecoder(channels, 19, width)
        assert parameter_count(ours) < parameter_count(papers)
        assert parameter_count(SegFormer(19, variant)) < parameter_count(
            SegFormer(19, variant, decoder="mlp")
        )


def test_conv_decoder_upsamples_by_transposed_convolutions_and_has_no_gelu(monkeypatch):
    decoder = ConvDecoder((8, 16, 24, 32), 3, width=16).eval()
    kinds = [type(m) for m in decoder.modules()]
    assert kinds.count(nn.ConvTranspose2d) == 3
    assert nn.GELU not in kinds
    assert isinstance(decoder.classify, nn.Conv2d)
    for name in ("gelu", "interpolate"):
        monkeypatch.setattr(F, name, lambda *_, name=name, **__: pytest.fail(f"{name} was called"))
    features = [
        torch.rand(1, c, 32 // s, 64 // s)
        for c, s in zip((8, 16, 24, 32), (1, 2, 4, 8), strict=True)
    ]
    assert decoder(features, None).shape == (1, 3, 32, 64)


def test_transposed_convolutions_start_as_bilinear_interpolation():
    x = torch.randn(2, 16, 5, 7)
    for upsample in ConvDecoder((8, 16, 24, 32), 3, width=16).upsample:
        expected = F.interpolate(x, scale_factor=2, mode="bilinear")
        torch.testing.assert_close(upsample(x)[..., 1:-1, 1:-1], expected[..., 1:-1, 1:-1])


@pytest.mark.parametrize("size", [(8, 16), (9, 15)])
def test_papers_decoder_fused_is_the_papers_decoder_written_out(size):
    """Equation 4 step by step: project, upsample, concatenate, fuse; the same value, and the same gradients."""
    torch.manual_seed(0)
    decoder = MLPDecoder((4, 6, 8, 10), 3, width=12).double().eval()
    for tensor in (*decoder.parameters(), decoder.norm.running_mean):
        tensor.data.normal_()  # a bias that is zero, or that batch statistics cancel, could be forgotten unseen
    features = [
        torch.randn(2, c, -(-size[0] // s), -(-size[1] // s), dtype=torch.float64)
        for c, s in zip((4, 6, 8, 10), (1, 2, 4, 8), strict=True)
    ]

    def written_out():
        maps = [
            p(f.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
            for p, f in zip(decoder.project, features, strict=True)
        ]
        maps = [F.interpolate(m, size=size, mode="bilinear") for m in maps]
        x = F.conv2d(torch.cat(maps, dim=1), decoder.fuse.weight[..., None, None])
        return F.conv2d(
            F.relu(decoder.norm(x)), decoder.classify.weight[..., None, None], decoder.classify.bias
        )

    parameters = [p for name, p in decoder.named_parameters() if name != "classify.bias"]
    weight = torch.randn(2, 3, *size, dtype=torch.float64)
    results = []
    for function in (lambda: decoder(features, None), written_out):
        logits = function()
        results.append((logits, torch.autograd.grad((logits * weight).sum(), parameters)))
    torch.testing.assert_close(results[0][0], results[1][0])
    for ours, papers in zip(results[0][1], results[1][1], strict=True):
        torch.testing.assert_close(ours, papers, rtol=1e-7, atol=1e-10)


def test_keyed_numbers_are_uniform_and_each_images_own():
    keys = torch.arange(64)
    numbers = keyed_uniform(keys, salt=3, shape=(10, 100))
    assert numbers.shape == (64, 10, 100)
    assert numbers.min() >= 0
    assert numbers.max() < 1
    assert abs(numbers.mean() - 0.5) < 0.005
    assert abs(numbers.var() - 1 / 12) < 0.002
    assert torch.equal(numbers[5:7], keyed_uniform(keys[5:7], salt=3, shape=(10, 100)))
    rows = torch.cat((numbers.flatten(1), keyed_uniform(keys, 4, (10, 100)).flatten(1)))
    correlation = torch.corrcoef(rows) - torch.eye(len(rows))
    assert correlation.abs().max() < 0.2  # 128 rows of 1000: six standard deviations
    neighbours = torch.stack(
        (numbers.flatten(1)[:, :-1].flatten(), numbers.flatten(1)[:, 1:].flatten())
    )
    assert abs(torch.corrcoef(neighbours)[0, 1]) < 0.02
    next_key = torch.stack(
        (numbers.flatten(1)[:-1, 1:].flatten(), numbers.flatten(1)[1:, :-1].flatten())
    )
    assert abs(torch.corrcoef(next_key)[0, 1]) < 0.02  # not the last key's numbers, one place on


def test_keyed_dropout_keeps_the_mean_and_is_off_in_eval_mode():
    dropout, x, keys = (
        KeyedDropout(0.3, salt=0),
        torch.ones(4, 8, 50, 50),
        torch.tensor([7, 8, 9, 2**62]),
    )
    y = dropout(x, keys)
    assert y.unique().tolist() == pytest.approx([0, 1 / 0.7])
    assert abs((y == 0).float().mean() - 0.3) < 0.01
    assert torch.equal(y, dropout(x, keys))
    assert not torch.equal(y, dropout(x, keys + 1))
    assert not torch.equal(y, KeyedDropout(0.3, salt=1)(x, keys))
    assert torch.equal(dropout.eval()(x, keys), x)


def test_dropout_without_keys_follows_torchs_generator():
    dropout, x = KeyedDropout(0.5, salt=0), torch.ones(2, 100)
    torch.manual_seed(1)
    first, second = dropout(x, None), dropout(x, None)
    torch.manual_seed(1)
    assert torch.equal(dropout(x, None), first)
    assert not torch.equal(first, second)


def test_stochastic_depth_decides_per_image():
    numbers = keyed_uniform(torch.arange(4000), salt=2, shape=(1, 1, 1))
    y = DropPath(0.25)(torch.ones(4000, 3, 2, 1), numbers).flatten(1)
    assert (y == y[:, :1]).all()
    assert abs((y[:, 0] == 0).float().mean() - 0.25) < 0.03
    assert abs(y.mean() - 1) < 0.04


def test_a_block_leaves_each_branch_out_for_whole_images():
    block = Block(8, heads=1, reduction=1, norm_eps=1e-6, drop_path=0.5, place=0)
    x, keys = torch.randn(400, 2, 3, 8), torch.arange(400)
    [draws] = draw_depth(block, keys, x)
    untouched = (block(x, draws) == x).flatten(1).all(1)
    assert (
        abs(untouched.float().mean() - 0.25) < 0.09
    )  # both branches, by a draw each: four standard deviations


def test_stochastic_depth_grows_linearly_to_its_rate():
    model = MixTransformer("b0", drop_path=0.14)
    rates = [block.drop_path2.p for stage in model.stages for block in stage.blocks]
    assert rates == pytest.approx([0.0, 0.02, 0.04, 0.06, 0.08, 0.10, 0.12, 0.14])


def test_one_draw_gives_each_branch_the_numbers_of_its_own():
    model, keys = MixTransformer("b0", drop_path=0.1), torch.tensor([5, 2**62, 7])
    drawn = torch.cat(draw_depth(model, keys, keys))
    expected = [keyed_uniform(keys, salt, (1, 1, 1)) for salt in range(16)]
    assert torch.equal(drawn, torch.stack(expected))
    assert len(set(drawn.flatten().tolist())) == drawn.numel()
    of_stage = torch.cat(draw_depth(model.stages[2], keys, keys))
    assert torch.equal(of_stage, drawn[8:12])
    assert draw_depth(model.eval(), keys, keys) == [(None, None)] * 8


@pytest.mark.parametrize("decoder", DECODERS)
@torch.no_grad()
def test_the_same_keys_draw_the_same_however_the_batch_is_split(decoder):
    torch.manual_seed(0)
    model = SegFormer(3, decoder=decoder, drop_path=0.5, dropout=0.5).double().train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    # In float64, as a batch of another size may be summed in another order.
    image, keys = torch.rand(4, 3, 40, 32, dtype=torch.float64), torch.tensor([11, 22, 33, 44])
    whole = model(image, keys)
    halves = torch.cat([model(image[i], keys[i]) for i in (slice(0, 1), slice(1, 4))])
    torch.testing.assert_close(whole, halves, rtol=1e-9, atol=1e-9)
    assert not torch.allclose(whole, model(image, keys + 1), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("decoder", DECODERS)
def test_no_graph_break(decoder):
    torch._dynamo.reset()
    model = SegFormer(3, decoder=decoder, drop_path=0.1, dropout=0.1)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    compiled(torch.rand(2, 3, 64, 64), torch.tensor([1, 2])).sum().backward()


@pytest.mark.slow
@pytest.mark.parametrize("decoder", DECODERS)
def test_compiled_is_the_same_function(decoder):
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = SegFormer(3, decoder=decoder, drop_path=0.1, dropout=0.1).train()
    image, keys = torch.rand(2, 3, 64, 64), torch.tensor([1, 2])
    expected = model(image, keys)
    torch.testing.assert_close(
        torch.compile(model, fullgraph=True)(image, keys), expected, rtol=1e-3, atol=1e-5
    )
