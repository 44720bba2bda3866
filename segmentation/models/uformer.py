"""UFormer: the weighted average of the class probabilities of a U-Net and a SegFormer, or of any other models."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

Weights = Sequence[float] | Sequence[Sequence[float]] | Tensor


class UFormer(nn.Module):
    """Weighted mean of its members' softmax outputs: UFormer(unet, segformer, weights=(0.5, 0.5)).

    weights: one non-negative number a member, or one K-vector a member; they are scaled to sum to 1 over the members,
        in each class. Equal without them; they may also stand last without their name.
    They are trained as logarithms, so that they stay positive; a weight of exactly 0 stays 0.
    Raises ValueError when they are not such numbers, or not as many as members.
    """

    members: nn.ModuleList

    def __init__(self, *members: Any, weights: Weights | None = None):
        super().__init__()
        if weights is None and members and not isinstance(members[-1], nn.Module):
            members, weights = members[:-1], members[-1]
        self.members = nn.ModuleList(members)
        if not members or (weights is not None and len(weights) != len(members)):
            raise ValueError(
                f"{len(members)} members and the weights {weights}: give one weight, or K, a member"
            )
        table = (
            torch.ones(len(members))
            if weights is None
            else torch.as_tensor(weights, dtype=torch.float32)
        )
        table = table.view(len(members), -1)  # M x 1 or M x K
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
        outputs = [member(image, keys) for member in self.members]
        wide = torch.promote_types(outputs[0].dtype, torch.float32)
        log_probabilities = torch.stack(
            [logits.log_softmax(1, dtype=wide) for logits in outputs]
        )  # M x N x K x H x W
        log_weights = self.log_weights.log_softmax(0).view(len(outputs), 1, -1, 1, 1)
        # logsumexp, for its gradient stays finite where weights are 0, whose logarithms are infinite
        return (
            (log_probabilities + log_weights).logsumexp(0).log_softmax(1)
        )  # weights by class do not sum to one
