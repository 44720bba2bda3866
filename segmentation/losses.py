"""The Tversky loss, exact over ranks.

Salehi, Erdogmus, Gholipour, "Tversky loss function for image segmentation using 3D fully
convolutional deep networks", 2017, arXiv:1706.05721, equation 3, over all pixels of the global
batch and as a mean over the classes present in it. With p the softmax and y the target, per class
k and over the pixels that are not ignored,

    TP = sum p[y = k]      FP = sum p[y != k] = P - TP      FN = sum (1 - p)[y = k] = T - TP
    TI = (TP + e) / (TP + alpha FP + beta FN + e)
    loss = 1 - mean of TI over the classes with T > 0

so three sums per class are enough: TP, P = sum p, and T = the number of pixels of the class. No
one-hot tensor is made. Cross entropy needs a fourth, C = -sum log p[y = k], of the same softmax.
"""

import torch
from torch import Tensor, nn

from .distributed import all_reduce_sum

EPSILON = 1e-7


def class_sums(probability: Tensor, label: Tensor, valid: Tensor) -> Tensor:
    """TP, P, T, C of a batch: 4 x K, float64 (float32 on mps, which has no float64).

    probability: N x K x H x W, 0 where not valid. label, valid: N x 1 x H x W.
    """
    wide = torch.float32 if probability.device.type == "mps" else torch.float64
    N, K, H, _ = probability.shape
    true_probability = probability.gather(1, label)  # N x 1 x H x W
    smallest = torch.finfo(probability.dtype).tiny
    log_loss = true_probability.clamp(min=smallest).log().neg() * valid
    of_pixels = torch.cat((true_probability, valid.to(probability), log_loss), dim=1)
    # Each row of pixels is summed by itself: rows run in parallel, and no float32 sum is long.
    rows = probability.new_zeros(N, 3, H, K)
    rows = rows.scatter_add(3, label.expand_as(of_pixels), of_pixels)
    tp, t, c = rows.sum((0, 2), dtype=wide)
    p = probability.sum((2, 3)).sum(0, dtype=wide)
    return torch.stack((tp, p, t, c))


class LossSums(torch.autograd.Function):
    """(logits N x K x H x W, target N x H x W int64, ignore_index) -> `class_sums`.

    Written by hand: autograd would keep half a dozen tensors of the logits' size, this keeps one.
    """

    @staticmethod
    def forward(ctx, logits: Tensor, target: Tensor, ignore_index: int) -> Tensor:
        valid = (target != ignore_index)[:, None]  # N x 1 x H x W
        label = torch.where(valid, target[:, None], 0)
        wide = torch.promote_types(logits.dtype, torch.float32)
        probability = logits.softmax(1, dtype=wide).mul_(valid)
        ctx.save_for_backward(probability, label, valid)
        ctx.logits_dtype = logits.dtype
        return class_sums(probability, label, valid)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None]:
        """Softmax: dlogit_k = p_k (g_k - sum_j p_j g_j), g = dP + [k = y] (dTP - dC / p_y)."""
        probability, label, valid = ctx.saved_tensors
        d_tp, d_p, _, d_c = gradient.to(probability.dtype)
        true_probability = probability.gather(1, label)  # N x 1 x H x W
        true_part = true_probability * d_tp[label] - d_c[label] * valid  # p_y (dTP_y - dC_y / p_y)
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
        sums = all_reduce_sum(LossSums.apply(logits, target, self.ignore_index))
        return self.of_sums(sums).to(torch.promote_types(logits.dtype, torch.float32))

    def of_sums(self, sums: Tensor) -> Tensor:
        """TP, P, T, C (4 x K) of the global batch -> scalar."""
        return tversky_loss(sums[:3], self.alpha, self.beta)


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

    def of_sums(self, sums: Tensor) -> Tensor:
        """TP, P, T, C (4 x K) of the global batch -> scalar."""
        _, _, pixels, log_loss = sums
        weights = self.class_weights
        weights = torch.ones_like(pixels) if weights is None else weights.to(sums)
        total_weight = weights @ pixels
        entropy = weights @ log_loss / torch.where(total_weight > 0, total_weight, 1)
        return super().of_sums(sums) + entropy
