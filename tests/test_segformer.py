"""SegFormer: both decoders beside their equations, and draws that no split of a batch changes."""

import pytest
import torch
import torch.nn.functional as F
from references import parameter_count
from torch import nn

from segmentation.models.mix_transformer import VARIANTS
from segmentation.models.segformer import ConvDecoder, MLPDecoder, SegFormer


def test_unknown_decoders_are_refused():
    with pytest.raises(ValueError, match=r"unet.*conv, mlp"):
        SegFormer(2, decoder="unet")


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
    assert sum(issubclass(kind, nn.ConvTranspose2d) for kind in kinds) == 3
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
        torch.testing.assert_close(upsample(x, 10, 14)[..., 1:-1, 1:-1], expected[..., 1:-1, 1:-1])


@pytest.mark.parametrize("size", [(8, 16), (9, 15)])
def test_papers_decoder_fused_is_the_papers_decoder_written_out(size):
    """Equation 4 step by step, project, upsample, concatenate, fuse: same value, same gradients."""
    torch.manual_seed(0)
    decoder = MLPDecoder((4, 6, 8, 10), 3, width=12).double().eval()
    # A bias that is zero, or that batch statistics cancel, could be forgotten unseen.
    for tensor in (*decoder.parameters(), decoder.norm.running_mean):
        tensor.data.normal_()
    features = [
        torch.randn(2, c, -(-size[0] // s), -(-size[1] // s), dtype=torch.float64)
        for c, s in zip((4, 6, 8, 10), (1, 2, 4, 8), strict=True)
    ]

    def written_out():
        maps = [p(f) for p, f in zip(decoder.project, features, strict=True)]
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


@pytest.mark.parametrize("decoder", ["conv", "mlp"])
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
