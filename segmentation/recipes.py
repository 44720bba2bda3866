"""The recipes of training: one table of numbers, and what is made of them.

deck: the student project's. Tversky loss, Adam, a tenth of the learning rate on a plateau of val.
fast: for a time limit. Cross entropy beside the Tversky loss, AdamW, warm-up and polynomial decay,
    and samples that grow from a quarter of their height and width to all of it: coarse steps are
    cheap. Its row is for minutes; `for_time` makes of it what a longer training takes.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import nn
from torch.optim import Adam, AdamW, Optimizer

from .losses import TverskyCrossEntropy, TverskyLoss

ANNEAL = 0.5  # without a decay, the learning rate falls to 0 over this last share of a time limit
HIGHEST_CLASS_WEIGHT = 10.0


@dataclass(frozen=True)
class Recipe:
    """One row: what a training does where no flag says otherwise."""

    # Flags of the same names override these.
    epochs: int
    batch_size: int  # of all ranks together
    lr: float
    augment: int  # extra augmented samples an epoch
    encoder_lr: float = 1.0  # the encoder's learning rate, as a share of lr
    alpha: float = 0.3  # Tversky's weight of false positives
    beta: float = 0.7  # and of false negatives
    drop_path: float = 0.0  # SegFormer: stochastic depth
    dropout: float = 0.0  # SegFormer: before the logits

    # No flag overrides these.
    augmentation: str = "deck"  # of data.samples: "deck" draws extra samples alone, "fast" all
    scales: tuple[float, float] = (1.0, 1.0)  # of a sample, lowest and highest, log-uniform
    recoloured: float = 0.0  # share of the samples with a gamma and a tint (data.transforms)
    # Samples have 1/4 of each side until the first share of the training, 1/2 until the second.
    coarse: tuple[float, float] = (0.0, 0.0)
    # Adds cross entropy with class weights (median / own pixels) ** this. None: Tversky alone.
    class_balance: float | None = None
    weight_decay: float | None = None  # None: Adam; a number: AdamW
    warm_up: float = 0.0  # share of the training over which the learning rate rises
    decay: float | None = None  # power of 1 - progress by which it falls; None: on a plateau
    longer_batch: int = 0  # batch_size with time for more than PASSES[0] passes; 0: the same


DECK = Recipe(epochs=50, batch_size=32, lr=1e-3, augment=600)
FAST = Recipe(
    epochs=1000,  # the time limit ends it; long epochs, because validation is not cheap
    batch_size=8,
    lr=2e-3,
    augment=3000,
    augmentation="fast",
    scales=(0.76, 1.32),
    coarse=(0.4, 0.8),
    class_balance=0.5,
    weight_decay=0.01,
    warm_up=0.02,
    decay=0.9,
    longer_batch=16,
)
RECIPES = {"deck": DECK, "fast": FAST}
# What `fast` takes instead from PASSES[1] passes over the images on; below PASSES[0] nothing.
LONGER: dict = {
    "alpha": 0.5,
    "beta": 0.5,
    "drop_path": 0.1,
    "dropout": 0.1,
    "scales": (0.76, 1.6),
    "coarse": (0.0, 0.3),
    "recoloured": 0.5,
}
PASSES = (10.0, 80.0)

UNET = {"fast": {"lr": 4e-3, "longer_batch": 0}}  # convolutions learn from larger steps
# From trained weights: the encoder learns slowly, and never saw photographs of a quarter the size.
TRAINED = {
    "fast": {
        "encoder_lr": 0.1,
        "alpha": 0.5,
        "beta": 0.5,
        "coarse": (0.0, 0.5),
        "longer_batch": 0,
    }
}
# The built-in scenes: epochs that fit five minutes on two cores.
SCENES = {"deck": {"epochs": 24, "batch_size": 8, "augment": 120}}


def recipe_for(name: str, model: str, data: str, trained: bool = False) -> Recipe:
    """The row of a recipe, with what differs for a U-Net and for the built-in scenes.

    trained: whether the encoder starts from trained weights.
    """
    changes: dict = {}
    if trained:
        changes |= TRAINED.get(name, {})
    if model == "unet":
        changes |= UNET.get(name, {})
    if data == "scenes":
        changes |= SCENES.get(name, {})
    return replace(RECIPES[name], **changes)


def criterion_for(recipe: Recipe, pixels: list[int]) -> nn.Module:
    """pixels: how many each class has in the training masks."""
    if recipe.class_balance is None:
        return TverskyLoss(recipe.alpha, recipe.beta)
    counts = torch.tensor(pixels, dtype=torch.float32)
    median = counts[counts > 0].median()
    weights = (median / counts).pow(recipe.class_balance).clamp(max=HIGHEST_CLASS_WEIGHT)
    return TverskyCrossEntropy(recipe.alpha, recipe.beta, class_weights=weights)


def optimizer_for(
    recipe: Recipe, parameters: Iterable[tuple[str, nn.Parameter]], device: torch.device
) -> Optimizer:
    """Adam or AdamW over those of the named parameters that are trained.

    A group's `lr_share` is the share of the learning rate that its parameters take. Biases and the
    weights of normalisation, which are vectors, do not decay.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in parameters:
        share = recipe.encoder_lr if "encoder." in name else 1.0
        decay = recipe.weight_decay if recipe.weight_decay and parameter.dim() > 1 else 0.0
        if parameter.requires_grad:
            groups.setdefault((share, decay), []).append(parameter)
    options = [
        {"params": members, "lr_share": share, "weight_decay": decay}
        for (share, decay), members in groups.items()
    ]
    kind = Adam if recipe.weight_decay is None else AdamW
    return kind(options, recipe.lr, fused=device.type in ("cpu", "cuda"))


def set_learning_rate(optimizer: Optimizer, rate: float) -> None:
    """Give each group its share of the rate."""
    for group in optimizer.param_groups:
        group["lr"] = group["lr_share"] * rate


def learning_rate_factor(recipe: Recipe, time_used: float, progress: float) -> float:
    """In [0, 1]. time_used: share of the time limit, 0 without one. progress: of the training."""
    if recipe.decay is None:
        return min(1.0, max(0.0, (1 - time_used) / ANNEAL))
    return min(1.0, progress / recipe.warm_up) * max(0.0, 1 - progress) ** recipe.decay


def sample_divisor(recipe: Recipe, progress: float) -> int:
    """What a sample's height and width are divided by at this share of the training."""
    quarter_until, half_until = recipe.coarse
    return 4 if progress < quarter_until else 2 if progress < half_until else 1
