"""Scores of a prediction, all of them from one integer confusion matrix.

mIoU and mPA (mean pixel accuracy) are defined by Long, Shelhamer, Darrell, "Fully convolutional networks for semantic
segmentation", 2015, arXiv:1411.4038, section 5; here classes without pixels leave the mean. Rows are the target,
columns the prediction. Only the target decides what is ignored.
"""

import torch
from torch import Tensor

from .distributed import all_reduce_sum


def confusion_matrix(prediction: Tensor, target: Tensor, num_classes: int, ignore_index: int = 255) -> Tensor:
    """prediction, target: int64 of one shape, any -> int64 K x K, counts of (target, prediction) pairs.

    ValueError for a label that is neither a class nor ignored.
    """
    if prediction.shape != target.shape:
        raise ValueError(f"prediction {tuple(prediction.shape)} and target {tuple(target.shape)} differ in shape")
    K = num_classes
    prediction, target = prediction.flatten(), target.flatten()
    valid = target != ignore_index
    if target.numel() == 0:
        return torch.zeros(K, K, dtype=torch.int64, device=target.device)
    extremes = torch.stack((*prediction.aminmax(), *torch.where(valid, target, 0).aminmax()))
    lowest, highest, *of_target = extremes.tolist()  # a GPU is waited for once
    for name, low, high in (("prediction", lowest, highest), ("target", *of_target)):
        if low < 0 or high >= K:
            raise ValueError(f"{name} holds labels {low}..{high}, the {K} classes are 0..{K - 1}")
    pairs = torch.where(valid, target * K + prediction, K * K)  # the last bin takes what is ignored
    return torch.bincount(pairs, minlength=K * K + 1)[:-1].view(K, K)


class ConfusionMatrix:
    """Accumulates K x K counts (rows target, columns prediction) and derives every score from them."""

    def __init__(self, num_classes: int, ignore_index: int = 255):
        self.num_classes, self.ignore_index = num_classes, ignore_index
        self.matrix = torch.zeros(num_classes, num_classes, dtype=torch.int64)

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """prediction, target: int64, N x H x W; predictions where the target is ignored count nowhere."""
        counts = confusion_matrix(prediction, target, self.num_classes, self.ignore_index)
        self.matrix = self.matrix.to(counts.device) + counts

    def reduce(self) -> None:
        """Sum over ranks: call once, on all ranks, when each has seen its share of the images."""
        self.matrix = all_reduce_sum(self.matrix)

    def scores(self, classes: list[str] | None = None) -> dict:
        """miou, mpa, pixel_accuracy in [0, 1] (None where no pixel counts); iou, accuracy by class (None if absent)."""
        iou, accuracy = class_scores(self.matrix)
        names = classes or [str(k) for k in range(self.num_classes)]
        total = self.matrix.sum()
        return {
            "miou": _number(iou.nanmean()),
            "mpa": _number(accuracy.nanmean()),
            "pixel_accuracy": _number(self.matrix.diagonal().sum().double() / total),
            "iou": {name: _number(v) for name, v in zip(names, iou, strict=True)},
            "accuracy": {name: _number(v) for name, v in zip(names, accuracy, strict=True)},
        }


def class_scores(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """... x K x K counts -> IoU and accuracy, ... x K float64 each; NaN where the union, or the target, is empty."""
    matrix = matrix.double()
    tp, target, predicted = matrix.diagonal(dim1=-2, dim2=-1), matrix.sum(-1), matrix.sum(-2)
    return tp / (target + predicted - tp), tp / target


def image_scores(matrices: Tensor) -> dict:
    """One confusion matrix an image, N x K x K -> per-image scores: a mean over images a class, then over classes.

    image_miou and image_mpa in [0, 1], and `images`: a list of each image's own {miou, mpa}. None where nothing counts.
    """
    iou, accuracy = class_scores(matrices)
    return {
        "image_miou": _number(iou.nanmean(0).nanmean()),
        "image_mpa": _number(accuracy.nanmean(0).nanmean()),
        "images": [
            {"miou": _number(i), "mpa": _number(a)} for i, a in zip(iou.nanmean(-1), accuracy.nanmean(-1), strict=True)
        ],
    }


def _number(value: Tensor) -> float | None:
    return None if value.isnan() else value.item()
