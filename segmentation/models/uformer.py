"""UFormer: the weighted average of the class probabilities of a U-Net and a SegFormer.

Any other models of the same classes may be its members.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class UFormer(nn.Module):
    """Weighted mean of its members' softmax outputs: UFormer(unet, segformer, weights=(0.5, 0.5)).

    weights: one non-negative number per member, or K numbers per member, one for each class; None
        weighs all alike. They are scaled to sum to 1 over the members. They are trained as
        logarithms, so they stay positive; a weight of exactly 0 stays 0.
    ValueError when they are not such numbers, or not as many as members.
    """

    def __init__(self, *members: nn.Module, weights: Sequence | Tensor | None = None):
        super().__init__()
        count = len(members)
        if weights is None:
            weights = [1.0] * count
        if count == 0 or len(weights) != count:
            raise ValueError(
                f"{count} members and the weights {weights}: give one weight, or K, a member"
            )
        self.members = nn.ModuleList(members)
        numbers = torch.as_tensor(weights, dtype=torch.float32, device="cpu")  # to be looked at
        table = numbers.view(count, -1)  # M x 1 or M x K
        if not table.isfinite().all() or (table < 0).any() or (table.sum(0) <= 0).any():
            raise ValueError(
                f"weights must be numbers, not negative, nor all 0 in a class: {table.tolist()}"
            )
        self.log_weights = nn.Parameter((table / table.sum(0)).log())

    @property
    def weights(self) -> Tensor:
        """M x 1 or M x K, summing to 1 over the M members."""
        return self.log_weights.softmax(0)

    def forward(self, image: Tensor, keys: Tensor | None = None) -> Tensor:
        """RGB in [0, 1], N x 3 x H x W -> N x K x H x W log-probabilities of the weighted mean."""
        outputs = torch.stack([member(image, keys) for member in self.members])  # M x N x K x H x W
        wide = torch.promote_types(outputs.dtype, torch.float32)
        log_probability = outputs.log_softmax(2, dtype=wide)
        log_weights = self.log_weights.log_softmax(0)[:, None, :, None, None]
        # A weight of 0 has an infinite logarithm; logsumexp's gradient is finite even there.
        mean = (log_probability + log_weights).logsumexp(0)
        return mean.log_softmax(1)  # with weights by class the K means do not sum to 1
