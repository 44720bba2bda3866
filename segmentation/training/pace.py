"""What a time limit is enough for on this machine, and the recipe that makes most of it."""

import math
import time
from argparse import Namespace
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.func import functional_call

from ..arguments import as_text
from ..distributed import all_reduce_sum, alone, say, world_size
from ..hardware import has_bfloat16
from ..models import build_model
from ..models.layers import DropPath, KeyedDropout
from ..recipes import LONGER, PASSES, Recipe, criterion_for

ON_A_CPU = (4, 256, 256)  # images, height, width of the step that is timed there
WARM_UP = 2  # steps before it
FEWEST = 300  # images: a smaller set takes as many steps to learn as one of so many
SCORING_SPEEDUP = 3  # how much faster an image is scored than trained on (docs/speed.md)
# Samples of an epoch, at least, and per image of val and of its size: scoring val takes as long as
# 2 % of an epoch of samples of half their height and width.
LEAST_SAMPLES = 1000
SAMPLES_PER_SCORE = 64


def fits_time(recipe: Recipe, args: Namespace) -> bool:
    """Whether the recipe's numbers follow from the time limit, as its learning rate does."""
    return recipe.decay is not None and args.max_minutes is not None


def fit_recipe(
    recipe: Recipe, args: Namespace, model: nn.Module, data: Any
) -> tuple[Recipe, float]:
    """Collective: the recipe for this model, these images and this time limit; says what it is.

    Beside it, how many seconds a validation will take.
    args: of train.py; numbers that its flags set stay. Its amp, where None, becomes what is faster.
    data: a SegmentationDataset.
    """
    names = data.splits["train"]
    whole = data.image(names[0]).shape[:2]
    height, width = args.crop or whole
    scored = len(data.splits["val"]) * math.prod(whole) / (height * width)  # in samples
    criterion = criterion_for(recipe, data.pixel_counts["train"])
    # A GPU waits for the host in small steps: there a rank's share of a batch is timed, of two
    # images or more for BatchNorm.
    shape = (max(2, recipe.batch_size // world_size()), height, width)
    device = next(model.parameters()).device
    if device.type == "cpu":
        shape = ON_A_CPU
    ways = [args.amp]
    if args.amp is None:
        ways = [True, False] if has_bfloat16(device) else [False]
    own_speeds = [pixels_a_second(model, criterion, amp, shape) for amp in ways]
    # Of all ranks, images a second.
    speeds = all_reduce_sum(torch.tensor(own_speeds) / (height * width)).tolist()
    speed = max(speeds)
    args.amp = ways[speeds.index(speed)]
    images = max(FEWEST, len(names))
    passes = 60 * args.max_minutes * speed / images

    samples = max(LEAST_SAMPLES, round(SAMPLES_PER_SCORE * scored))
    fitted = replace(for_time(recipe, passes), augment=max(0, samples - len(names)))
    fitted = replace(fitted, **{name: getattr(recipe, name) for name in args.given})
    shown = (*LONGER, "batch_size", "augment")
    chosen = [f"{name} {as_text(getattr(fitted, name))}" for name in shown]
    say(
        f"recipe: {speed:.3g} images/s at full size, {passes:.3g} passes over {images}: "
        f"{', '.join(chosen)}, amp {args.amp}"
    )
    return fitted, scored / (SCORING_SPEEDUP * speed)


def for_time(recipe: Recipe, passes: float) -> Recipe:
    """What the time allows: the row as it is, that with LONGER, or numbers between the two.

    passes: how often the time would be enough to train on each image at its full size.
    """
    low, high = PASSES
    share = min(1.0, math.log(max(passes, low) / low) / math.log(high / low))

    def between(short: Any, longer: Any) -> Any:
        if isinstance(short, tuple):
            return tuple(map(between, short, longer))
        return (1 - share) * short + share * longer

    changes = {name: between(getattr(recipe, name), value) for name, value in LONGER.items()}
    if passes > low and recipe.longer_batch:
        changes["batch_size"] = recipe.longer_batch
    return replace(recipe, **changes)


def pixels_a_second(
    model: nn.Module, criterion: nn.Module, amp: bool, shape: tuple[int, int, int]
) -> float:
    """How many this rank trains on, but for the optimizer's part; the model stays as it is.

    shape: images, height and width of the step that is timed.
    """
    weights = dict(model.named_parameters())
    device = next(iter(weights.values())).device
    trained = [weight for weight in weights.values() if weight.requires_grad]
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    images, height, width = shape
    image = torch.rand(images, 3, height, width, device=device)
    mask = torch.zeros(shape, dtype=torch.int64, device=device)
    criterion.to(device)
    for _ in range(1 + WARM_UP):
        began = time.monotonic()
        with alone():
            with torch.autocast(device.type, torch.bfloat16, enabled=amp):
                logits = functional_call(model, buffers, image)
            loss = criterion(logits, mask)
        gradients = torch.autograd.grad(loss, trained)
        gradients[0].sum().item()  # waits for the device
    return images * height * width / (time.monotonic() - began)


def set_dropout(model: nn.Module, config: dict, recipe: Recipe) -> None:
    """Give SegFormers, and what builds them, the recipe's drop path and dropout."""
    for each in config.get("members", [config]):
        if each["model"] == "segformer":
            each |= {"drop_path": recipe.drop_path, "dropout": recipe.dropout}
    with torch.device("meta"):
        wanted = build_model(config)
    kinds = (DropPath, KeyedDropout)
    chances = [layer.p for layer in wanted.modules() if isinstance(layer, kinds)]
    layers = [layer for layer in model.modules() if isinstance(layer, kinds)]
    for layer, chance in zip(layers, chances, strict=True):
        layer.p = chance
