"""The scores of a model on a split: what validation, evaluation and the ensemble all print.

Each image is scored alone, at its mask's own size, on one rank. What is kept of it is its confusion
matrix and its Tversky sums. Every score follows from the table of these, so no score depends on a
batch size or on the number of ranks.
"""

import sys
import time
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from ..distributed import all_reduce_sum, rank, world_size
from ..losses import class_sums, tversky_loss
from ..metrics import IGNORED, ConfusionMatrix, confusion_matrix, image_scores
from .inference import PLAIN, Prediction, predict_strips

Table = tuple[Tensor, Tensor]  # of N images: confusion matrices N x K x K, Tversky sums N x 3 x K


class LabelledImages(Protocol):
    """What scoring and the search for weights ask of a data set."""

    classes: list[str]
    splits: dict[str, list[str]]  # "train", "val", "test" -> names

    def image(self, name: str) -> np.ndarray:
        """uint8 H x W x 3."""

    def mask(self, name: str) -> np.ndarray:
        """uint8 h x w: labels 0..K-1, and 255 where a pixel is ignored."""


def score_split(
    model: nn.Module,
    data: LabelledImages,
    split: str,
    how: Prediction = PLAIN,
    *,
    alpha: float = 0.3,
    beta: float = 0.7,
    before_each: Callable[[], object] = lambda: None,
) -> dict:
    """Scores of the images of data.splits[split]: loss, miou, mpa, pixel_accuracy, fwiou,
    image_miou, image_mpa, iou and accuracy by class, confusion (K x K), images [{name, miou, mpa}].

    Of an empty split loss, miou and mpa are None. Collective: all ranks call it together and get
    the same answer. before_each: called by all ranks before each round of images; what it raises
    ends the scoring.
    """
    names = data.splits[split]
    if not names:
        return {"loss": None, "miou": None, "mpa": None}
    table = score_table(model, data, names, split, how, before_each)
    return scores_of(table, names, data.classes, alpha, beta)


def score_table(
    model: nn.Module,
    data: LabelledImages,
    names: Sequence[str],
    split: str,
    how: Prediction,
    before_each: Callable[[], object] = lambda: None,
) -> Table:
    """Collective: the table that scores follow from, a row for each image of `names`, on the CPU.

    split: for the line that shows the progress on a terminal.
    """
    K = len(data.classes)
    matrices = torch.zeros(len(names), K, K, dtype=torch.int64)
    sums = torch.zeros(len(names), 3, K, dtype=torch.float64)
    began = time.monotonic()
    shown = sys.stdout.isatty() and rank() == 0
    for first in range(0, len(names), world_size()):
        before_each()
        index = first + rank()
        if shown and time.monotonic() - began > 2:
            print(f"\r\033[Kscoring {split} image {index + 1} of {len(names)}", end="", flush=True)
        if index < len(names):
            matrices[index], sums[index] = score_image(model, data, names[index], how)
    if shown:
        print("\r\033[K", end="", flush=True)
    return all_reduce_sum(matrices), all_reduce_sum(sums)


def scores_of(
    table: Table,
    names: Sequence[str],
    classes: list[str],
    alpha: float,
    beta: float,
) -> dict:
    """The scores of `score_split` from the table of the images `names`."""
    matrices, sums = table
    total = ConfusionMatrix(len(classes))
    total.matrix = matrices.sum(0)
    by_image = image_scores(matrices)
    images = zip(names, by_image.pop("images"), strict=True)
    scores = total.scores(classes)
    by_class = {name: scores.pop(name) for name in ("iou", "accuracy")}
    return {
        "loss": tversky_loss(sums.sum(0), alpha, beta).item(),
        **scores,
        **by_image,
        **by_class,
        "confusion": total.matrix.tolist(),
        "images": [{"name": name, **scores} for name, scores in images],
    }


def score_image(
    model: nn.Module,
    data: LabelledImages,
    name: str,
    how: Prediction,
) -> tuple[Tensor, Tensor]:
    """One image's confusion matrix (K x K int64) and Tversky sums (3 x K float64), on the CPU."""
    K = len(data.classes)
    image, mask = data.image(name), data.mask(name)
    matrix = torch.zeros(K, K, dtype=torch.int64)
    sums = torch.zeros(3, K, dtype=torch.float64)
    for top, probability in predict_strips(model, image, how, mask.shape):
        target = target_of(mask, top, probability)
        matrix += confusion_matrix(probability.max(0).indices, target, K).cpu()
        valid = (target != IGNORED)[None, None]
        label = torch.where(valid, target, 0)
        sums += class_sums(probability[None] * valid, label, valid)[:3].cpu()
    return matrix, sums


def target_of(
    mask: np.ndarray,
    top: int,
    strip: Tensor,
) -> Tensor:
    """The labels of the rows of a strip from `top` on, int64 h x w, on the strip's device."""
    rows = mask[top : top + strip.shape[1]]
    return torch.tensor(rows, dtype=torch.int64, device=strip.device)
