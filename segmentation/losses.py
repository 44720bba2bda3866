"""The Tversky loss, exact over ranks.

Salehi, Erdogmus, Gholipour, "Tversky loss function for image segmentation using 3D fully
convolutional deep networks", 2017, arXiv:1706.05721, equation 3, over all pixels of the global
batch and as a mean over the classes present in it. With p the softmax and y the target, per class
k and over the pixels that are not ignored,

    TP = sum p[y = k]      FP = sum p[y != k] = P - TP      FN = sum (1 - p)[y = k] = T - TP
    TI = (TP + e) / (TP + alpha FP + beta FN + e)
    loss = 1 - mean of TI over the classes with T > 0

so three sums per class are enough: TP, P = sum p, and T = the number of pixels of the class. No
one-hot tensor is made.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .distributed import all_reduce_sum

EPSILON = 1e-7


def tversky_sums(probability: Tensor, label: Tensor, valid: Tensor) -> Tensor:
    """TP, P, T of a batch: 3 x K, float64 (float32 on mps, which has no float64).

    probability: N x K x H x W, 0 where not valid. label, valid: N x 1 x H x W.
    """
    wide = torch.float32 if probability.device.type == "mps" else torch.float64
    N, K, H, _ = probability.shape
    # Each row of pixels is summed by itself: rows run in parallel, and no float32 sum is long.
    rows = probability.new_zeros(N, H, K)
    true_probability = probability.gather(1, label)
    tp = rows.scatter_add(2, label[:, 0], true_probability[:, 0])
    p = probability.sum((2, 3))
    t = rows.scatter_add(2, label[:, 0], valid[:, 0].to(rows))
    sums = (
        tp.sum((0, 1), dtype=wide),
        p.sum(0, dtype=wide),
        t.sum((0, 1), dtype=wide),
    )
    return torch.stack(sums)


class TverskySums(torch.autograd.Function):
    """(logits N x K x H x W, target N x H x W int64, ignore_index) -> TP, P, T as `tversky_sums`.

    Written by hand: autograd would keep half a dozen tensors of the logits' size, this keeps one.
    """

    @staticmethod
    def forward(ctx, logits: Tensor, target: Tensor, ignore_index: int) -> Tensor:
        valid = (target != ignore_index)[:, None]  # N x 1 x H x W
        label = torch.where(valid, target[:, None], 0)
        wide = torch.promote_types(logits.dtype, torch.float32)
        probability = logits.softmax(1, dtype=wide).mul_(valid)
        ctx.save_for_backward(probability, label)
        ctx.logits_dtype = logits.dtype
        return tversky_sums(probability, label, valid)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None]:
        """With g = dP + [k = y] dTP, the softmax gives dlogit_k = p_k (g_k - sum_j p_j g_j)."""
        probability, label = ctx.saved_tensors
        d_tp, d_p, _ = gradient.to(probability.dtype)
        true_probability = probability.gather(1, label)  # N x 1 x H x W
        true_part = true_probability * d_tp[label]  # p_y dTP_y
        all_parts = d_p @ probability.flatten(2)  # sum_j p_j dP_j
        mean = all_parts.view_as(true_part) + true_part  # sum_j p_j g_j
        d_logits = d_p.view(1, -1, 1, 1) - mean
        d_logits.mul_(probability)
        d_logits.scatter_add_(1, label, true_part)
        return d_logits.to(ctx.logits_dtype), None, None


def tversky_loss(sums: Tensor, alpha: float, beta: float) -> Tensor:
    """TP, P, T (3 x K) of a batch or a whole split -> the loss, a scalar in [0, 1].

    The loss is 0 where no pixel counts.
    """
    tp, p, t = sums
    numerator = tp + EPSILON
    denominator = tp + alpha * (p - tp) + beta * (t - tp) + EPSILON  # P - TP = FP, T - TP = FN
    index = numerator / denominator
    present = t > 0
    losses = (1 - index) * present
    return losses.sum() / present.sum().clamp(min=1)


class TverskyLoss(nn.Module):
    """Tversky loss of the global batch: alpha weighs false positives, beta false negatives.

    alpha = beta = 0.5 is the Dice loss, alpha = beta = 1 the Jaccard loss. Classes absent from the
    target leave the mean. A batch whose pixels are all ignored gives 0, with a graph and zero
    gradients. Computed in float32 at least, whatever autocast says.

    With several ranks the sums are those of all ranks, and their backward sums over ranks too. So
    each of N ranks has N times its part of the gradient, and DDP's mean over ranks is the gradient
    of the one global loss.
    """

    def __init__(self, alpha: float = 0.3, beta: float = 0.7, ignore_index: int = 255):
        super().__init__()
        self.alpha = alpha
        self.beta = beta
        self.ignore_index = ignore_index

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """logits N x K x H x W, target int64 N x H x W of 0..K-1 or ignore_index -> scalar."""
        sums = all_reduce_sum(TverskySums.apply(logits, target, self.ignore_index))
        loss = tversky_loss(sums, self.alpha, self.beta)
        return loss.to(torch.promote_types(logits.dtype, torch.float32))


class TverskyCrossEntropy(TverskyLoss):
    """Tversky loss plus cross entropy, its mean over all labelled pixels of the global batch.

    Cross entropy has a gradient wherever a pixel is wrong; the Tversky loss weighs classes as the
    metric does. class_weights: K numbers, a pixel's weight in cross entropy's mean by its true
    class; None weighs all pixels alike.
    """

    class_weights: Tensor | None

    def __init__(
        self,
        alpha: float = 0.3,
        beta: float = 0.7,
        ignore_index: int = 255,
        class_weights: Tensor | None = None,
    ):
        super().__init__(alpha, beta, ignore_index)
        self.register_buffer("class_weights", class_weights, persistent=False)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """logits N x K x H x W, target int64 N x H x W of 0..K-1 or ignore_index -> scalar."""
        tversky = super().forward(logits, target)
        logits = logits.to(tversky.dtype)
        weights = self.class_weights
        if weights is None:
            weights = logits.new_ones(logits.shape[1])
        weights = weights.to(logits)
        total = F.cross_entropy(
            logits,
            target,
            weights,
            ignore_index=self.ignore_index,
            reduction="sum",
        )
        valid = target != self.ignore_index
        pixel_weights = weights[torch.where(valid, target, 0)] * valid
        sums = torch.stack((total, pixel_weights.sum()))
        total, total_weight = all_reduce_sum(sums)
        return tversky + total / torch.where(total_weight > 0, total_weight, 1)
