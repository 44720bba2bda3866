"""What of a model is trained, and what keeps its weights."""

from torch import nn


def freeze(model: nn.Module, members: bool, encoders: bool) -> None:
    """Let a UFormer's members keep their weights, or the encoder of each model."""
    if members:
        model.members.requires_grad_(False)
    elif encoders:
        for part in getattr(model, "members", [model]):
            part.encoder.requires_grad_(False)


def train_mode(model: nn.Module) -> None:
    """Training mode, but for frozen parts: their BatchNorm's statistics are frozen too."""
    model.train()
    for part in model.modules():
        weights = list(part.parameters())
        if weights and not any(weight.requires_grad for weight in weights):
            part.eval()


def count_parameters(model: nn.Module) -> dict[str, int]:
    """total, trained, frozen: how many numbers."""
    total = sum(weight.numel() for weight in model.parameters())
    trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    return {"total": total, "trained": trained, "frozen": total - trained}
