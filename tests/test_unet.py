"""U-Net: torchvision's own ResNet18 features, and every skip in use."""

import torch
from references import parameter_count
from torch import nn
from torchvision.models import resnet18
from torchvision.models.feature_extraction import create_feature_extractor

from segmentation.models.unet import ResNet18UNet


def shuffle_statistics(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.3)
            module.running_var.uniform_(0.5, 2)


@torch.no_grad()
def test_encoder_features_are_torchvisions():
    torch.manual_seed(0)
    # float64: in float32 two orders of sums differ visibly.
    reference = resnet18(weights=None).double().eval()
    shuffle_statistics(reference)
    taps = create_feature_extractor(reference, ["relu", "layer1", "layer2", "layer3", "layer4"])
    encoder = ResNet18UNet(2).encoder.double().eval()
    encoder.load_state_dict(
        {k: v for k, v in reference.state_dict().items() if not k.startswith("fc.")}
    )
    image = torch.randn(2, 3, 75, 101, dtype=torch.float64)
    features = encoder(image)
    for ours, theirs, channels in zip(
        features, taps(image).values(), encoder.channels, strict=True
    ):
        assert ours.shape[1] == channels
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def test_encoder_has_no_classifier():
    classifier = 512 * 1000 + 1000
    encoder = ResNet18UNet(2).encoder
    total = parameter_count(resnet18(weights=None))
    assert parameter_count(encoder) == total - classifier


def test_every_channel_of_every_skip_is_used():
    torch.manual_seed(0)
    model = ResNet18UNet(3).train()  # normalised by the batch, no channel is dead
    model(torch.rand(2, 3, 64, 96)).square().sum().backward()
    for expansion in model.decoder:
        assert expansion.conv.weight.grad.abs().sum((0, 2, 3)).all()
