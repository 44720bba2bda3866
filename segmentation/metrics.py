"""Scores of a prediction, all of them from one integer confusion matrix.

Rows are the target, columns the prediction; only the target decides what is ignored. mIoU, mPA
(mean pixel accuracy) and fwIoU (frequency-weighted IoU) are defined by Long, Shelhamer, Darrell,
"Fully convolutional networks for semantic segmentation", 2015, arXiv:1411.4038, section 5. Here
classes without pixels leave the mean.
"""

import torch
from torch import Tensor

from .distributed import all_reduce_sum

IGNORED = 255  # the label of pixels that count nowhere


def confusion_matrix(
    prediction: Tensor, target: Tensor, num_classes: int, ignore_index: int = IGNORED
) -> Tensor:
    """prediction, target: int64 of one shape, any -> int64 K x K, counts of (target, prediction).

    ValueError for a label that is neither a class nor ignored.
    """
    if prediction.shape != target.shape:
        shapes = f"prediction {tuple(prediction.shape)} and target {tuple(target.shape)}"
        raise ValueError(f"{shapes} differ in shape")
    K = num_classes
    if target.numel() == 0:
        return target.new_zeros(K, K, dtype=torch.int64)
    valid = target != ignore_index
    labels = torch.where(valid, target, 0)
    extremes = torch.stack((*prediction.aminmax(), *labels.aminmax()))
    ranges = extremes.view(2, 2).tolist()  # one transfer: a GPU is waited for once
    for name, (low, high) in zip(("prediction", "target"), ranges, strict=True):
        if low < 0 or high >= K:
            raise ValueError(f"{name} holds labels {low}..{high}, the {K} classes are 0..{K - 1}")
    bins = torch.where(valid, target * K + prediction, K * K)  # the last takes what is ignored
    counts = torch.bincount(bins.flatten(), minlength=K * K + 1)
    return counts[:-1].view(K, K)


class ConfusionMatrix:
    """Accumulates K x K counts (rows target, columns prediction) and derives every score."""

    def __init__(self, num_classes: int, ignore_index: int = IGNORED):
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self.matrix = torch.zeros(num_classes, num_classes, dtype=torch.int64)

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """prediction, target: int64, N x H x W. Pixels whose target is ignored count nowhere."""
        counts = confusion_matrix(
            prediction,
            target,
            self.num_classes,
            self.ignore_index,
        )
        self.matrix = self.matrix.to(counts.device) + counts

    def reduce(self) -> None:
        """Sum over ranks: call once, on all ranks, when each has seen its share of the images."""
        self.matrix = all_reduce_sum(self.matrix)

    def scores(self, classes: list[str] | None = None) -> dict:
        """miou, mpa, pixel_accuracy, fwiou in [0, 1], None where no pixel counts.

        fwiou: the mean IoU, each class weighted by its share of the target's pixels.
        iou, accuracy: by class, None for an absent one.
        """
        iou, accuracy = class_scores(self.matrix)
        names = classes or [str(k) for k in range(self.num_classes)]
        right = self.matrix.diagonal().sum()
        pixel_accuracy = right.double() / self.matrix.sum()
        pixels = self.matrix.sum(1).double()
        fwiou = (pixels * iou).nansum() / pixels.sum()
        return {
            "miou": _number(iou.nanmean()),
            "mpa": _number(accuracy.nanmean()),
            "pixel_accuracy": _number(pixel_accuracy),
            "fwiou": _number(fwiou),
            "iou": dict(zip(names, map(_number, iou), strict=True)),
            "accuracy": dict(zip(names, map(_number, accuracy), strict=True)),
        }


def class_scores(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """... x K x K counts -> IoU and accuracy, ... x K float64 each.

    NaN where the union, or the target, is empty.
    """
    matrix = matrix.double()
    tp = matrix.diagonal(dim1=-2, dim2=-1)
    target = matrix.sum(-1)
    predicted = matrix.sum(-2)
    union = target + predicted - tp
    return tp / union, tp / target


def image_scores(matrices: Tensor) -> dict:
    """N confusion matrices of one image each, N x K x K -> scores of images.

    image_miou, image_mpa: in [0, 1], for each class a mean over images, then over classes.
    images: each image's own {miou, mpa}. None where nothing counts.
    """
    iou, accuracy = class_scores(matrices)
    means = zip(iou.nanmean(-1), accuracy.nanmean(-1), strict=True)
    return {
        "image_miou": _number(iou.nanmean(0).nanmean()),
        "image_mpa": _number(accuracy.nanmean(0).nanmean()),
        "images": [{"miou": _number(miou), "mpa": _number(mpa)} for miou, mpa in means],
    }


def _number(value: Tensor) -> float | None:
    return None if value.isnan() else value.item()
