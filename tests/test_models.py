"""What every model keeps: sizes, channels, gradients, normalisation, one graph for a compiler."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import nn

from segmentation.models.mix_transformer import VARIANTS
from segmentation.models.segformer import SegFormer
from segmentation.models.unet import ResNet18UNet

MODELS: dict[str, Callable[..., nn.Module]] = {
    "unet": ResNet18UNet,
    "segformer": SegFormer,
    "segformer mlp": partial(SegFormer, decoder="mlp"),
}
every_model = pytest.mark.parametrize("build", MODELS.values(), ids=MODELS)
DROPS = {"drop_path": 0.1, "dropout": 0.1}


@every_model
@pytest.mark.parametrize("size", [(32, 32), (33, 65), (47, 100), (96, 64), (500, 375)])
@torch.no_grad()
def test_logits_have_the_size_of_the_image(build, size):
    assert build(5).eval()(torch.rand(1, 3, *size)).shape == (1, 5, *size)


@every_model
@pytest.mark.parametrize("size", [(31, 64), (64, 31), (1, 1)])
def test_smaller_images_are_refused(build, size):
    with pytest.raises(ValueError, match=f"{size[0]}x{size[1]}.*32x32"):
        build(5)(torch.rand(1, 3, *size))


@every_model
def test_other_channel_counts(build):
    assert build(3, in_channels=5).eval()(torch.rand(1, 5, 32, 40)).shape == (1, 3, 32, 40)


@every_model
def test_every_parameter_gets_a_gradient(build):
    torch.manual_seed(0)
    model = build(3).eval()  # batch statistics would cancel the biases before them
    model(torch.rand(2, 3, 64, 96)).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name


@every_model
def test_normalisation_is_in_the_model_and_not_in_its_state(build):
    model = build(2)
    assert {"normalise.mean", "normalise.std"} <= {name for name, _ in model.named_buffers()}
    assert not any("normalise" in name for name in model.state_dict())


@every_model
def test_no_graph_break(build, monkeypatch):
    # A second block is traced in one stage as in all, and each takes a second.
    monkeypatch.setitem(VARIANTS, "b0", (VARIANTS["b0"][0], (2, 1, 1, 1)))
    torch._dynamo.reset()
    model = build(3) if build is ResNet18UNet else build(3, **DROPS)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    compiled(torch.rand(2, 3, 64, 64), torch.tensor([1, 2])).sum().backward()


@pytest.mark.slow
@every_model
def test_compiled_is_the_same_function(build):
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = build(3).eval() if build is ResNet18UNet else build(3, **DROPS).train()
    image, keys = torch.rand(2, 3, 64, 64), torch.tensor([1, 2])
    expected = model(image, keys)
    compiled = torch.compile(model, fullgraph=True)
    torch.testing.assert_close(compiled(image, keys), expected, rtol=1e-3, atol=1e-5)
