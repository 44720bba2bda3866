"""What the two recipes of training differ in: loss, optimizer, learning rate, and the size of the samples.

deck: Tversky loss, Adam, a tenth of the learning rate on a plateau of val; with --max-minutes a fall to 0 at the end.
fast: Tversky loss and cross entropy that weighs rare classes more, AdamW, a learning rate that warms up and then falls
all the way, and samples that grow from a quarter of height and width to half to all of it, as a coarse step costs a
fraction of a fine one. (What the samples show is in `samples.TrainingSamples`.)
"""

from collections.abc import Iterable, Sequence

import torch
from torch import nn

from .losses import TverskyCrossEntropy, TverskyLoss

ANNEAL = 0.5  # deck: the learning rate falls to 0 over this last share of the time
WARM_UP = 0.02  # fast: it rises from 0 over this share of the training
POWER = 0.9  # ... and falls as this power of what is left
COARSE = (4, 2)  # what height and width are divided by in the first and second part of the training
WEIGHT_DECAY = 0.01  # fast
BALANCE = 0.5  # fast: cross entropy weighs a class by (the median class's pixels / its own) to this power, at most 10


def criterion_for(recipe: str, alpha: float, beta: float, pixels: list[int]) -> nn.Module:
    """pixels: how many each class has in the training masks."""
    if recipe != "fast":
        return TverskyLoss(alpha, beta)
    counts = torch.tensor(pixels, dtype=torch.float32)
    median = counts[counts > 0].median()
    return TverskyCrossEntropy(alpha, beta, class_weights=(median / counts).pow(BALANCE).clamp(max=10))


def optimizer_for(
    recipe: str, parameters: Iterable[nn.Parameter], lr: float, device: torch.device
) -> torch.optim.Optimizer:
    fused = device.type in ("cpu", "cuda")
    if recipe == "fast":
        return torch.optim.AdamW(parameters, lr=lr, weight_decay=WEIGHT_DECAY, fused=fused)
    return torch.optim.Adam(parameters, lr=lr, fused=fused)


def learning_rate_factor(recipe: str, spent: float, progress: float) -> float:
    """In [0, 1]. spent: the share of the time limit that is used, 0 without one; progress: that or that of the epochs,
    whichever is more."""
    if recipe == "fast":
        return min(1.0, progress / WARM_UP) * max(0.0, 1 - progress) ** POWER
    return min(1.0, max(0.0, (1 - spent) / ANNEAL))


def shrink(progress: float, coarse: Sequence[float]) -> int:
    """What height and width of the samples are divided by. coarse: the shares of the training that end its first two
    parts."""
    return next((n for until, n in zip(coarse, COARSE, strict=True) if progress < until), 1)
