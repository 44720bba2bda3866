"""UFormer: the weighted average of the class probabilities of a U-Net and a SegFormer, or of any other models."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class UFormer(nn.Module):
    """Weighted mean of its members' softmax outputs.

    weights: one non-negative number a member, or one K-vector a member; they are scaled to sum to 1 over the members,
    in each class. They are trained as logarithms, so that they stay positive; a weight of exactly 0 stays 0.
    """

    def __init__(self, *members: nn.Module, weights: Sequence[float] | Sequence[Sequence[float]] | None = None):
        super().__init__()
        self.members = nn.ModuleList(members)
        table = torch.ones(len(members), 1) if weights is None else torch.as_tensor(weights, dtype=torch.float32)
        table = table.view(len(members), -1)  # M x 1 or M x K
        if (table < 0).any() or (table.sum(0) <= 0).any():
            raise ValueError(f"weights must not be negative, nor all 0 in a class: {table.tolist()}")
        self.log_weights = nn.Parameter((table / table.sum(0)).log())

    @property
    def weights(self) -> Tensor:
        """M x 1 or M x K, summing to 1 over the M members."""
        return self.log_weights.softmax(0)

    def forward(self, image: Tensor, keys: Tensor | None = None) -> Tensor:
        """RGB in [0, 1], N x 3 x H x W -> N x K x H x W log-probabilities of the weighted mean."""
        log_weights = self.log_weights.log_softmax(0)
        total = None
        for member, log_weight in zip(self.members, log_weights, strict=True):
            logits = member(image, keys)
            weighted = logits.float().log_softmax(1) if logits.dtype.itemsize < 4 else logits.log_softmax(1)
            weighted = weighted + log_weight.view(1, -1, 1, 1)
            total = weighted if total is None else torch.logaddexp(total, weighted)
        return total.log_softmax(1)  # weights that differ by class do not sum to one
