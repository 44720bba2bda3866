"""Train on any device for the minutes that one core of this machine would need.

    OMP_NUM_THREADS=1 python tests/benchmarks/counted.py costs COSTS.json    # eight minutes, idle
    python tests/benchmarks/counted.py train COSTS.json --data DIR --max-minutes 6 ...

costs: seconds of a training step (sample, forward, backward, optimizer), in all and an image, by
the pixels of an image, and seconds of scoring one, for both models, in bfloat16. train: train.py
with these flags and a clock that only counts such seconds: it takes the steps, sizes and learning
rates that the core would have come to, and the same command takes the same again. The costs are
those of one process, the default variant and decoder, nothing frozen.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import train
from segmentation.errors import BadInput, exit_on_bad_input
from segmentation.evaluation.inference import Prediction, predict_labels
from segmentation.hardware import prepare
from segmentation.models import build_model
from segmentation.recipes import criterion_for, optimizer_for, recipe_for
from segmentation.training import pace
from segmentation.training.clock import Clock
from segmentation.training.frozen import train_mode
from segmentation.training.step_loss import CountingLoss

CLASSES = 11
SIZES = [(64, 64), (90, 120), (100, 150), (180, 240), (200, 300), (360, 480), (400, 600)]
BATCHES = (8, 16)  # the second is twice the first
SECONDS = 8.0  # that a size is timed for, after one step
SAMPLE = 0.003  # seconds to prepare a sample


def measure(out: str) -> None:
    """Write model -> step, image, score: pixels and seconds; pace: pixels a second."""
    device = torch.device("cpu")
    prepare(device, True)
    torch.set_num_threads(1)
    how = Prediction(amp=True)
    costs: dict[str, dict] = {}
    for name in ("segformer", "unet"):
        recipe = recipe_for("fast", name, "")
        model = build_model({"model": name, "num_classes": CLASSES})
        criterion = criterion_for(recipe, [1] * CLASSES)
        rows = costs[name] = {"step": [], "image": [], "score": []}
        rows["pace"] = pace.pixels_a_second(model, criterion, True, pace.ON_A_CPU)
        optimizer = optimizer_for(recipe, model.named_parameters(), device)
        for height, width in SIZES:
            pixels, steps = height * width, []
            train_mode(model)
            for images in BATCHES:
                counting = CountingLoss(criterion, CLASSES, images)
                image = torch.randint(256, (images, 3, height, width), dtype=torch.uint8)
                mask = torch.randint(CLASSES, (images, height, width), dtype=torch.uint8)
                batch = {"image": image, "mask": mask, "key": torch.arange(images)}
                steps.append(
                    timed(partial(train.training_step, model, counting, optimizer, batch, True))
                )
            once = max(0.0, 2 * steps[0] - steps[1])  # what a step of no images would take
            rows["step"].append((pixels, once))
            rows["image"].append((pixels, (steps[1] - once) / BATCHES[1] + SAMPLE))
            model.eval()
            one = image[0].permute(1, 2, 0).numpy()
            with torch.inference_mode():
                scored = timed(partial(predict_labels, model, one, (height, width), how))
            rows["score"].append((pixels, scored))
            print(name, height, width, f"{steps[0]:.4f} {steps[1]:.4f} {scored:.4f}", flush=True)
    Path(out).write_text(json.dumps(costs, indent=1) + "\n")


def timed(work: Callable[[], object]) -> float:
    """Seconds of a call: the median over SECONDS of calls, after one."""
    work()
    found: list[float] = []
    while sum(found) < SECONDS:
        began = time.monotonic()
        work()
        found.append(time.monotonic() - began)
    return statistics.median(found)


def train_counted(costs_file: str, flags: list[str]) -> None:
    """train.py with these flags, its clock counted."""
    name = flags[flags.index("--model") + 1] if "--model" in flags else "segformer"
    costs = json.loads(Path(costs_file).read_text()).get(name)
    if costs is None or "--resume" in flags:
        raise BadInput("only whole runs of segformer and unet can be counted")
    used = 0.0

    def charge(kind: str, image: Sequence[int], images: int = 1) -> None:
        nonlocal used
        pixels, seconds = zip(*costs[kind], strict=True)
        if not pixels[0] <= image[-2] * image[-1] <= pixels[-1]:
            raise BadInput(f"{costs_file} has no costs of {image[-2]} x {image[-1]} pixels")
        used += images * float(np.interp(image[-2] * image[-1], pixels, seconds))

    def counted_step(*args: Any, **kwargs: Any) -> torch.Tensor:
        shape = args[3]["image"].shape
        charge("step", shape)
        charge("image", shape, shape[0])
        return real_step(*args, **kwargs)

    def counted_scores(model: Any, data: Any, split: str, *args: Any, **kwargs: Any) -> dict:
        names = data.splits[split]
        for each in names:
            charge("score", data.image(each).shape[:2])
        return real_scores(model, data, split, *args, **kwargs)

    real_step, real_scores = train.training_step, train.score_split
    sys.argv[1:] = flags
    with (
        patch.object(Clock, "now", lambda self: used),
        patch.object(train, "training_step", counted_step),
        patch.object(train, "score_split", counted_scores),
        patch.object(pace, "pixels_a_second", lambda *args: costs["pace"]),
    ):
        train.main()


if __name__ == "__main__":
    what, *rest = sys.argv[1:] or ["--help"]
    if what == "costs" and len(rest) == 1:
        measure(rest[0])
    elif what == "train" and rest:
        exit_on_bad_input(lambda: train_counted(rest[0], rest[1:]))
    else:
        sys.exit(__doc__)
