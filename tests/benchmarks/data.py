"""Does the model wait for data? Images/s of samples, beside torchvision v2 and albumentations.

    python tests/benchmarks/data.py                   # the built-in scenes, a minute on two cores
    python tests/benchmarks/data.py --data camvid     # any folder that train.py takes

The first table compares preparing samples, one thread, the same operations: the deck's recipe
(both flips, rotation, central crop, resized back) and the fast one (flip, scale, window, light),
at the images' size and at half of it. Images are bilinear, masks nearest, what is outside is 255
in the mask; a sample ends as contiguous uint8 3 x h x w and h x w. The peers get decoded arrays
in memory, and a composition of their own transforms, in the order of the recipe, light last, on
the small view; ours are `TrainingSamples`, maps of the cache and keyed draws included. At half
size ours averages 2 x 2 pixels before it samples where the step is that long, and torchvision
antialiases; albumentations (OpenCV) does not. Images/s are medians of alternating rounds, ratios
the medians over the rounds.

The second table is the real loader, batches of 8 of the fast recipe at half size, beside what the
fastest model consumes: the training step of SegFormer-B0 in bfloat16 (--amp), in the same
process, with all its threads.

albumentations is for this file alone, not in the `test` extra: pip install albumentations
"""

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from segmentation import SegFormer
from segmentation.data.datasets import SegmentationDataset, open_dataset
from segmentation.data.samples import EpochOrder, TrainingSamples
from segmentation.hardware import keep_freed_memory
from segmentation.recipes import RECIPES, criterion_for, optimizer_for
from train import make_loader

os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # it asks the network for its newest version
try:
    import albumentations as A
    import cv2
    from albumentations.pytorch import ToTensorV2
except ImportError:
    print("error: this comparison needs albumentations: pip install albumentations")
    sys.exit(2)

ROUNDS, IMAGES, BATCH, STEPS = 7, 32, 8, 8
LIGHT, SCALES = (0.7, 1.3), (0.76, 1.32)  # of the fast recipe
BILINEAR, OUTSIDE = v2.InterpolationMode.BILINEAR, {tv_tensors.Image: 0, tv_tensors.Mask: 255}

Prepare = Callable[[int], Any]  # the number of an image -> a sample


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data", default="scenes", help="scenes (built in) or a folder, as for train.py"
    )
    data = open_dataset(parser.parse_args().data)
    keep_freed_memory()  # as train.py does
    threads = torch.get_num_threads()
    height, width = data.image(data.splits["train"][0]).shape[:2]
    processor = torch.backends.cpu.get_cpu_capability()
    print(f"torch {torch.__version__}, {processor}; {data.layout}, {height} x {width}\n")

    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    peers = f"{'torchvision':>13}{'ratio':>7}{'albumentations':>16}{'ratio':>7}"
    print(f"{'images/s, one thread':24}{'ours':>8}{peers}")
    for recipe in ("deck", "fast"):
        for shrink in (1, 2):
            ours = prepare_ours(data, recipe, shrink)
            name = f"{recipe}, {height // shrink} x {width // shrink}"
            row = ""
            for peer in (prepare_torchvision, prepare_albumentations):
                theirs = peer(data, recipe, (height, width), shrink)
                ours_rate, rate, ratio = compare(
                    lambda o=ours: images_per_s(o), lambda t=theirs: images_per_s(t)
                )
                row += f"{rate:{13 if not row else 16}.0f}{ratio:6.2f}x"
            print(f"{name:24}{ours_rate:8.0f}{row}", flush=True)

    torch.set_num_threads(threads)
    step = model_step(data)
    title = f"fast, {height // 2} x {width // 2}, images/s"
    print(f"\n{title:28}{'loader':>8}{'model':>8}{'ratio':>7}")
    for workers in (0, 1):
        batches = loader_of(data, workers)
        loader_rate, model_rate, ratio = compare(lambda b=batches: timed(b), lambda: timed(step))
        print(
            f"{f'--workers {workers}':28}{loader_rate:8.0f}{model_rate:8.0f}{ratio:6.2f}x",
            flush=True,
        )


def prepare_ours(data: SegmentationDataset, recipe: str, shrink: int) -> Prepare:
    """Augmented samples alone; keys like those of the sampler."""
    many = replace(RECIPES[recipe], augment=10**6)
    samples = TrainingSamples(data, "train", many, crop=None, seed=0)
    keys = iter(range(len(samples.names), len(samples)))
    return lambda _: samples[0, next(keys), shrink]


def prepare_torchvision(
    data: SegmentationDataset, recipe: str, size: tuple[int, int], shrink: int
) -> Prepare:
    small, part = [side // shrink for side in size], [round(0.7 * side) for side in size]
    if recipe == "deck":
        flips = v2.RandomHorizontalFlip(), v2.RandomVerticalFlip()
        turn = v2.RandomRotation(30, BILINEAR, fill=OUTSIDE)
        transform = v2.Compose([*flips, turn, v2.CenterCrop(part), v2.Resize(small, BILINEAR)])
    else:
        scale = v2.ScaleJitter(small, SCALES, BILINEAR)
        window = v2.RandomCrop(small, pad_if_needed=True, fill=OUTSIDE)
        light = v2.ColorJitter(LIGHT, LIGHT, LIGHT)
        transform = v2.Compose([scale, window, v2.RandomHorizontalFlip(), light])
    pairs = [
        (
            tv_tensors.Image(torch.from_numpy(image).permute(2, 0, 1).contiguous()),
            tv_tensors.Mask(mask),
        )
        for image, mask in arrays(data)
    ]
    return lambda index: [part.contiguous() for part in transform(*pairs[index])]


def prepare_albumentations(
    data: SegmentationDataset, recipe: str, size: tuple[int, int], shrink: int
) -> Prepare:
    small, part = [side // shrink for side in size], [round(0.7 * side) for side in size]
    if recipe == "deck":
        flips = A.HorizontalFlip(p=0.5), A.VerticalFlip(p=0.5)
        turn = A.Rotate(30, border_mode=cv2.BORDER_CONSTANT, fill_mask=255, p=1)
        steps = [*flips, turn, A.CenterCrop(*part), A.Resize(*small)]
    else:
        scale = A.RandomScale([side / shrink - 1 for side in SCALES], p=1)
        pad = A.PadIfNeeded(*small, border_mode=cv2.BORDER_CONSTANT, fill_mask=255)
        light = A.ColorJitter(LIGHT, LIGHT, LIGHT, hue=(0, 0), p=1)
        steps = [scale, pad, A.RandomCrop(*small), A.HorizontalFlip(p=0.5), light]
    transform, pairs = A.Compose([*steps, ToTensorV2()]), arrays(data)

    def prepare(index: int) -> list[Tensor]:
        image, mask = pairs[index]
        sample = transform(image=image, mask=mask)
        return [sample["image"].contiguous(), sample["mask"].contiguous()]

    return prepare


def arrays(data: SegmentationDataset) -> list[tuple[np.ndarray, np.ndarray]]:
    return [
        (np.array(data.image(name)), np.array(data.mask(name)))
        for name in data.splits["train"][:IMAGES]
    ]


def model_step(data: SegmentationDataset) -> Callable[[], int]:
    """STEPS steps of --recipe fast --amp on one batch of half size, which count their images."""
    model = SegFormer(len(data.classes))
    criterion = criterion_for(RECIPES["fast"], data.pixel_counts["train"])
    optimizer = optimizer_for(RECIPES["fast"], model.named_parameters(), torch.device("cpu"))
    batch = next(iter(loader(data, workers=0)))

    def steps() -> int:
        for _ in range(STEPS):
            image, mask = batch["image"].float() / 255, batch["mask"].long()
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16):
                logits = model(image, batch["key"])
            criterion(logits, mask).backward()
            optimizer.step()
        return STEPS * BATCH

    return steps


def loader_of(data: SegmentationDataset, workers: int) -> Callable[[], int]:
    """Another epoch of the loader, as a function that counts images."""
    ours = loader(data, workers)
    return lambda: sum(len(batch["image"]) for batch in ours)


def loader(data: SegmentationDataset, workers: int) -> torch.utils.data.DataLoader:
    recipe = replace(RECIPES["fast"], augment=1200)
    samples = TrainingSamples(data, "train", recipe, crop=None, seed=0)
    order = EpochOrder(3 * STEPS * BATCH, BATCH, seed=0)
    order.set_epoch(0, divisor_at=lambda step: 2)
    return make_loader(samples, order, workers, torch.device("cpu"))


def images_per_s(prepare: Prepare) -> float:
    start = time.perf_counter()
    for index in range(IMAGES):
        prepare(index)
    return IMAGES / (time.perf_counter() - start)


def timed(count: Callable[[], int]) -> float:
    start = time.perf_counter()
    images = count()
    return images / (time.perf_counter() - start)


def compare(ours: Callable[[], float], other: Callable[[], float]) -> tuple[float, float, float]:
    """Median rate of each, and median ratio: ROUNDS alternating pairs after one that warms up."""
    pairs = [(ours(), other()) for _ in range(ROUNDS + 1)][1:]
    return (
        statistics.median(a for a, _ in pairs),
        statistics.median(b for _, b in pairs),
        statistics.median(a / b for a, b in pairs),
    )


if __name__ == "__main__":
    main()
