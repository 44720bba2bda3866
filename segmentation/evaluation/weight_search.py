"""The weights of an average of models: found on images that score nothing else, and what the average gains.

All members see an image once a pass. What is kept of it is confusion matrices, one for each candidate of the weights,
so that memory depends neither on the number of images nor, beyond one strip, on their size.
"""

from collections.abc import Iterator, Sequence
from itertools import combinations_with_replacement
from math import comb
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ..distributed import all_reduce_sum, rank, world_size
from ..metrics import class_scores, confusion_matrix
from .inference import Flips, predict_strips, usual_tile

CANDIDATES = 70  # at most, beside the equal weights: 21 for two members, 66 for three
PASSES = 6  # over the images, of the search by class
RESAMPLES = 10_000
CHUNK = 500  # resamples drawn at a time, so that memory does not grow with their number


class Fit(NamedTuple):
    """Weights, M x 1 or M x K, the mIoU of their average on the images they were fitted on, and the members' own."""

    weights: Tensor
    miou: float
    members: list[float]

    def best_member(self) -> Tensor:
        """The weights M x 1 of the best member alone."""
        return torch.eye(len(self.members))[:, [self.members.index(max(self.members))]]


class SideBySide(nn.Module):
    """The log-probabilities of all members as one model's: N x 3 x H x W -> N x MK x H x W.

    A softmax over all of them is each member's probabilities divided by M, so that tiles, flips and strips of a
    prediction treat every member as they would treat it alone.
    """

    def __init__(self, members: Sequence[nn.Module]):
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, image: Tensor) -> Tensor:
        return torch.cat([member(image).float().log_softmax(1) for member in self.members], dim=1)


def candidate_weights(members: int) -> Tensor:
    """C x M weights: an even grid of all mixtures of M members, each of them alone among them, and equal weights.

    Those nearest to equal weights come first, and so win ties.
    """
    steps = max(n for n in range(1, 21) if n == 1 or comb(n + members - 1, n) <= CANDIDATES)
    chosen = torch.tensor(list(combinations_with_replacement(range(members), steps)))  # C x steps members' numbers
    grid = nn.functional.one_hot(chosen, members).sum(1).float() / steps
    if steps % members:
        grid = torch.cat((torch.full((1, members), 1 / members), grid))
    return grid[grid.square().sum(1).argsort(stable=True)]


def fit_weights(
    members: Sequence[nn.Module],
    data: Any,
    folds: Sequence[Sequence[str]],
    *,
    per_class: bool = False,
    device: torch.device,
    tile: int | None = None,
    flips: Flips = False,
) -> list[Fit]:
    """For each fold, a list of image names, the weights whose average has the highest mIoU on it.

    One number a member (one pass over the images), or per_class a number a member and class: from the best single
    numbers on, all classes whose change alone would gain are changed together, and where that loses, the best of them
    alone; PASSES times, or until nothing gains. Never worse on the fold than any member, which is a candidate.
    All ranks call it together and get the same answer.
    """
    K = len(data.classes)
    candidates = candidate_weights(len(members)).to(device)
    model = SideBySide(members)

    def measure(trials: list[Tensor] | None) -> Tensor:
        """mIoU of each fold's candidates: F x C, or F x K x C where the trial's weights change in one class."""
        shape = (len(candidates),) if trials is None else (K, len(candidates))
        matrices = torch.zeros(len(folds), *shape, K, K, dtype=torch.int64)
        names = sorted(set().union(*folds))
        for name in names[rank() :: world_size()]:
            inside = [index for index, fold in enumerate(folds) if name in fold]
            for probability, label in labelled_strips(model, data, name, device=device, tile=tile, flips=flips):
                if trials is None:
                    matrices[inside] += mixtures(probability, label, candidates).cpu()
                    continue
                for index in inside:
                    matrices[index] += changes(probability, label, candidates, trials[index]).cpu()
        return class_scores(all_reduce_sum(matrices))[0].nanmean(-1).nan_to_num(0)

    single = measure(None)  # F x C
    alone = [int((candidates[:, m] == 1).nonzero()) for m in range(len(members))]
    fits = [Fit(candidates[int(row.argmax())][:, None], row.max().item(), row[alone].tolist()) for row in single]
    if not per_class:
        return [Fit(fit.weights.cpu(), fit.miou, fit.members) for fit in fits]

    best = [Fit(fit.weights.repeat(1, K), fit.miou, fit.members) for fit in fits]
    trials = [fit.weights for fit in best]
    for _ in range(PASSES):
        found = [step(*each, candidates) for each in zip(best, trials, measure(trials), strict=True)]
        best, following = [list(each) for each in zip(*found, strict=True)]
        if all(torch.equal(before, after) for before, after in zip(trials, following, strict=True)):
            break
        trials = following
    return [Fit(fit.weights.cpu(), fit.miou, fit.members) for fit in best]


def step(best: Fit, trial: Tensor, scores: Tensor, candidates: Tensor) -> tuple[Fit, Tensor]:
    """From the mIoU (K x C) of all changes of one class of the trial: the best weights known, and the next trial."""
    own = scores[0, int((candidates == trial[:, 0]).all(1).nonzero()[0])]
    lost = own < best.miou and not torch.equal(trial, best.weights)
    value, choice = scores.max(1)  # K
    k = int(value.argmax())
    if value[k] > best.miou:
        weights = trial.clone()
        weights[:, k] = candidates[choice[k]]
        best = Fit(weights, value[k].item(), best.members)
    if lost:
        return best, best.weights
    return best, torch.where((value > own).to(trial.device), candidates[choice].T, trial)


def labelled_strips(
    model: nn.Module, data: Any, name: str, *, device: torch.device, tile: int | None, flips: Flips
) -> Iterator[tuple[Tensor, Tensor]]:
    """The members' probabilities M x K x P and the labels P of the pixels of an image that count, strip by strip."""
    image, mask = data.image(name), data.mask(name)
    K, tile = len(data.classes), tile or usual_tile(image)
    for top, joint in predict_strips(model, image, output_size=mask.shape, tile=tile, flips=flips, device=device):
        target = torch.tensor(mask[top : top + joint.shape[1]], dtype=torch.int64, device=device).flatten()
        valid = target != 255
        probability = joint.view(-1, K, target.numel())[:, :, valid]
        yield probability / probability.sum(1, keepdim=True), target[valid]


def mixtures(probability: Tensor, label: Tensor, candidates: Tensor) -> Tensor:
    """M x K x P probabilities, P labels, C x M weights -> C x K x K, the confusion matrix of each candidate's average.

    Where the members agree on a class, so does every average of them: only the other pixels are averaged.
    """
    K = probability.shape[1]
    choices = probability.argmax(1)  # M x P
    disputed = (choices != choices[0]).any(0)
    agreed = confusion_matrix(choices[0][~disputed], label[~disputed], K)
    probability, label = probability[:, :, disputed], label[disputed]
    averages = (torch.tensordot(weights, probability, 1) for weights in candidates)  # K x P each
    return torch.stack([agreed + confusion_matrix(average.argmax(0), label, K) for average in averages])


def changes(probability: Tensor, label: Tensor, candidates: Tensor, trial: Tensor) -> Tensor:
    """As `mixtures`, from weights by class (trial, M x K) of which one class's are replaced -> K x C x K x K.

    For each class: the pixels that the other classes would share out, then those that each candidate takes from them.
    A candidate takes none where every member is below the others' best, and all other pixels need no second look.
    Of equal averages the first class wins, as in argmax.
    """
    K = probability.shape[1]
    average = (trial[:, :, None] * probability).sum(0)  # K x P
    result = torch.zeros(K, len(candidates), K, K, dtype=torch.int64, device=label.device)
    for k in range(K):
        others = average.clone()
        others[k] = -1
        highest, other = others.max(0)
        rest = confusion_matrix(other, label, K)
        near = probability[:, k].amax(0) >= highest
        values, highest, other, truth = probability[:, k, near], highest[near], other[near], label[near]
        for c, weights in enumerate(candidates):
            value = weights @ values
            taken = torch.where(k < other, value >= highest, value > highest)
            moved = confusion_matrix(other[taken], truth[taken], K)
            result[k, c] = rest - moved
            result[k, c, :, k] += moved.sum(1)
    return result


def gain_interval(average: Tensor, member: Tensor, seed: int = 0) -> tuple[float, float, float]:
    """The gain in mIoU of one model over another and its 95 % interval by a paired bootstrap over images.

    average, member: confusion matrices of the same N images, N x K x K. A resample draws N images with replacement, the
    same for both; the interval holds the middle 95 % of the differences of RESAMPLES resamples.
    """
    N, K, _ = average.shape
    flat = torch.stack((average, member), 1).double().flatten(1)  # N x 2KK
    generator = np.random.default_rng(seed)
    differences = []
    for _ in range(0, RESAMPLES, CHUNK):
        counts = torch.from_numpy(generator.multinomial(N, [1 / N] * N, size=CHUNK)).double()  # images drawn, R x N
        miou = class_scores((counts @ flat).view(CHUNK, 2, K, K))[0].nanmean(-1)
        differences.append(miou[:, 0] - miou[:, 1])
    low, high = torch.cat(differences).nanquantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    overall = class_scores(flat.sum(0).view(2, K, K))[0].nanmean(-1)
    return (overall[0] - overall[1]).item(), low, high
