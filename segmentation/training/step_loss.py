"""The loss of a training's steps: what it counts beside its value, and when the host reads it."""

import torch
from torch import Tensor, nn

from ..distributed import all_reduce_sum, gather, rank
from ..metrics import ConfusionMatrix


class CountingLoss(nn.Module):
    """A loss that counts in passing what its logits predict: the epoch's confusion matrix.

    The counts stay on the device, where nothing waits for them, until they are asked for.
    num_classes: at most 255. images: a rank's batch has no more.
    """

    # One row per place in the batch, so that few threads of a GPU wait to add to the same number:
    # K * K counts as `confusion_matrix` orders them, then what is ignored.
    counts: Tensor

    def __init__(self, criterion: nn.Module, num_classes: int, images: int):
        super().__init__()
        self.criterion = criterion
        self.num_classes = num_classes
        counts = torch.zeros(images, num_classes**2 + 1, dtype=torch.int64)
        self.register_buffer("counts", counts)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """logits N x K x H x W, target int64 N x H x W of 0..K-1 or 255 -> the loss, a scalar."""
        K = self.num_classes
        with torch.no_grad():
            prediction = logits.max(1).indices  # on CPUs nine times as fast as argmax
            bins = torch.add(prediction, target, alpha=K).flatten(1)
            bins.clamp_(max=K * K)  # 255 K is no class's
            self.counts.scatter_add_(1, bins, bins.new_ones(()).expand_as(bins))
        return self.criterion(logits, target)

    def whole_matrix(self) -> Tensor:
        """Collective: K x K, the counts of all ranks, on the CPU."""
        counts = self.counts.sum(0)[:-1].cpu()
        return all_reduce_sum(counts.view(self.num_classes, -1))

    def go_on_from(self, matrix: Tensor | None) -> None:
        """Take what `whole_matrix` gave in a stopped epoch; None: of an older checkpoint."""
        if matrix is not None and rank() == 0:  # alone, because ranks are summed
            self.counts[0, :-1] = matrix.flatten()

    def take_scores(self) -> dict:
        """Collective: the scores of the epoch, whose counts begin anew."""
        total = ConfusionMatrix(self.num_classes)
        total.matrix = self.whole_matrix()
        self.counts.zero_()
        return total.scores()


class LossOfStep:
    """A step's loss, to be looked at when the next step is under way.

    CUDA works in order. The loss is sent to the host right behind its step, so looking at it waits
    for that step alone, not for what was given since.
    """

    def __init__(self, loss: Tensor, files: list[str]):
        self.loss, self.files, self.sent = loss, files, None
        if loss.device.type == "cuda":
            self.loss = loss.to("cpu", non_blocking=True)
            self.sent = torch.cuda.Event()
            self.sent.record()

    def check(self) -> None:
        """RuntimeError naming the files, before anything is saved, if the loss is not a number."""
        if self.sent:
            self.sent.synchronize()
        if not self.loss.isfinite():
            files = ", ".join(gather(self.files))
            raise RuntimeError(
                f"the loss is {self.loss.item()} on {files}: look at these images, or lower --lr"
            )
