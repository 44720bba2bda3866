"""U-Net: torchvision's own ResNet18 features, sizes, gradients."""

import pytest
import torch
from torch import nn
from torchvision.models import resnet18
from torchvision.models.feature_extraction import create_feature_extractor

from segmentation.models.layers import start_undecided
from segmentation.models.unet import ResNet18UNet


def shuffle_statistics(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.3)
            module.running_var.uniform_(0.5, 2)


@torch.no_grad()
def test_encoder_features_are_torchvisions():
    torch.manual_seed(0)
    reference = resnet18(weights=None).double().eval()  # float64: in float32 two orders of sums differ visibly
    shuffle_statistics(reference)
    taps = create_feature_extractor(reference, ["relu", "layer1", "layer2", "layer3", "layer4"])
    encoder = ResNet18UNet(2).encoder.double().eval()
    encoder.load_state_dict({k: v for k, v in reference.state_dict().items() if not k.startswith("fc.")})
    image = torch.randn(2, 3, 75, 101, dtype=torch.float64)
    features = encoder(image)
    for ours, theirs, channels in zip(features, taps(image).values(), encoder.channels, strict=True):
        assert ours.shape[1] == channels
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def test_encoder_has_no_classifier():
    classifier = 512 * 1000 + 1000
    encoder = ResNet18UNet(2).encoder
    total = sum(p.numel() for p in resnet18(weights=None).parameters())
    assert sum(p.numel() for p in encoder.parameters()) == total - classifier


@pytest.mark.parametrize("size", [(32, 32), (33, 65), (47, 100), (96, 64), (500, 375)])
@torch.no_grad()
def test_logits_have_the_size_of_the_image(size):
    assert ResNet18UNet(5).eval()(torch.rand(1, 3, *size)).shape == (1, 5, *size)


@pytest.mark.parametrize("size", [(31, 64), (64, 31), (1, 1)])
def test_smaller_images_are_refused(size):
    with pytest.raises(ValueError, match=f"{size[0]}x{size[1]}.*32x32"):
        ResNet18UNet(5)(torch.rand(1, 3, *size))


def test_other_channel_counts():
    assert ResNet18UNet(3, in_channels=4).eval()(torch.rand(1, 4, 32, 40)).shape == (1, 3, 32, 40)


def test_every_parameter_gets_a_gradient():
    torch.manual_seed(0)
    model = ResNet18UNet(3).eval()
    model(torch.rand(2, 3, 64, 96)).square().sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_every_channel_of_every_skip_is_used():
    torch.manual_seed(0)
    model = ResNet18UNet(3).train()  # normalised by the batch, no channel is dead
    model(torch.rand(2, 3, 64, 96)).square().sum().backward()
    for expansion in model.decoder:
        assert expansion.conv.weight.grad.abs().sum((0, 2, 3)).all()


def test_normalisation_is_in_the_model_and_not_in_its_state():
    model = ResNet18UNet(2)
    assert {"normalise.mean", "normalise.std"} <= {name for name, _ in model.named_buffers()}
    assert not any("normalise" in name for name in model.state_dict())


def test_classifier_starts_undecided():
    torch.manual_seed(0)
    classifier = nn.Conv2d(32, 5, 1)
    start_undecided(classifier)
    probability = classifier(torch.randn(2, 32, 8, 8)).softmax(1)
    assert (probability - 1 / 5).abs().max() < 0.1


def test_no_graph_break():
    torch._dynamo.reset()
    torch.compile(ResNet18UNet(3), fullgraph=True, backend="eager")(torch.rand(2, 3, 64, 64)).sum().backward()


@pytest.mark.slow
def test_compiled_is_the_same_function():
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = ResNet18UNet(3).eval()
    image = torch.rand(2, 3, 64, 64)
    torch.testing.assert_close(torch.compile(model, fullgraph=True)(image), model(image), rtol=1e-3, atol=1e-5)
