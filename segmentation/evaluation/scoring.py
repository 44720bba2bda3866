"""The scores of a model on a split: what validation, evaluation and the ensemble all print.

One image at a time, each at its mask's own size, each on one rank; what is kept of an image is its confusion matrix and
its Tversky sums, so that every score follows from one table whatever the batch or the number of ranks.
"""

import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..distributed import all_reduce_sum, rank, world_size
from ..losses import tversky_loss, tversky_sums
from ..metrics import ConfusionMatrix, confusion_matrix, image_scores
from ..training.clock import Stopped
from .inference import Flips, predict_strips, usual_tile


def score_split(
    model: nn.Module,
    data: Any,
    split: str,
    *,
    device: torch.device,
    alpha: float = 0.3,
    beta: float = 0.7,
    tile: int | None = None,
    flips: Flips = False,
    amp: bool = False,
    stop: Callable[[], bool] = lambda: False,
) -> dict:
    """Scores of the images of data.splits[split]: loss, miou, mpa, pixel_accuracy, iou and accuracy by class,
    image_miou, image_mpa, confusion (K x K) and images [{name, miou, mpa}].

    All ranks call it together and get the same answer; `stop` is called by all of them once for each round of images,
    and if it says True, Stopped is raised.
    """
    names, K = data.splits[split], len(data.classes)
    began, shown = time.monotonic(), sys.stdout.isatty() and rank() == 0
    table = torch.zeros(len(names), K * K + 3 * K, dtype=torch.float64)
    for first in range(0, len(names), world_size()):
        if stop():
            raise Stopped
        index = first + rank()
        if shown and time.monotonic() - began > 2:
            print(f"\r\033[Kscoring {split} image {index + 1} of {len(names)}", end="", flush=True)
        if index < len(names):
            matrix, sums = score_image(model, data, names[index], device=device, tile=tile, flips=flips, amp=amp)
            table[index] = torch.cat((matrix.flatten().double(), sums.flatten().double()))
    if shown:
        print("\r\033[K", end="", flush=True)
    table = all_reduce_sum(table)
    matrices = table[:, : K * K].long().view(-1, K, K)
    return scores_of(matrices, table[:, K * K :].view(-1, 3, K), names, data.classes, alpha, beta)


def scores_of(matrices: Tensor, sums: Tensor, names: list[str], classes: list[str], alpha: float, beta: float) -> dict:
    """Confusion matrices N x K x K and Tversky sums N x 3 x K of N images -> the scores of `score_split`."""
    total = ConfusionMatrix(len(classes))
    total.matrix = matrices.sum(0)
    by_image = image_scores(matrices)
    images = [{"name": name, **scores} for name, scores in zip(names, by_image.pop("images"), strict=True)]
    loss = tversky_loss(sums.sum(0), alpha, beta).item()
    return {"loss": loss, **total.scores(classes), **by_image, "confusion": total.matrix.tolist(), "images": images}


def score_image(
    model: nn.Module, data: Any, name: str, *, device: torch.device, tile: int | None, flips: Flips, amp: bool
) -> tuple[Tensor, Tensor]:
    """One image's confusion matrix (K x K int64) and Tversky sums (3 x K float64), on the CPU."""
    K = len(data.classes)
    image, mask = data.image(name), data.mask(name)
    tile = tile or usual_tile(image)
    matrix, sums = torch.zeros(K, K, dtype=torch.int64), torch.zeros(3, K, dtype=torch.float64)
    with torch.autocast(device.type, torch.bfloat16, enabled=amp):
        strips = predict_strips(model, image, output_size=mask.shape[:2], tile=tile, flips=flips, device=device)
        for top, probability in strips:
            target = torch.tensor(mask[top : top + probability.shape[1]], dtype=torch.int64, device=device)
            matrix += confusion_matrix(probability.argmax(0), target, K).cpu()
            valid = (target != 255)[None, None]
            label = torch.where(valid, target, 0)
            sums_here = tversky_sums(probability[None] * valid, label, valid)
            sums += sums_here.cpu().double()  # mps has no double
    return matrix, sums
