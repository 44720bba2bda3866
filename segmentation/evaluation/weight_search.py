"""Search the UFormer's weights on held-out images, and bootstrap its gain.

In a pass each member predicts each image once. What is kept of a fold is one confusion matrix for
each candidate of the weights, so memory grows neither with the number of images nor, beyond one
strip, with their size.
"""

from collections.abc import Iterator, Sequence
from itertools import combinations_with_replacement
from math import comb
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ..distributed import all_reduce_sum, rank, world_size
from ..metrics import IGNORED, class_scores, confusion_matrix
from .inference import PLAIN, Prediction, device_of, predict_strips
from .scoring import LabelledImages, target_of

CANDIDATES = 70  # at most, apart from the equal weights: 21 for two members, 66 for three
PASSES = 6  # over the images, of the search by class
RESAMPLES = 10_000
CHUNK = 500  # resamples drawn at a time, so that memory does not grow with their number


class Fit(NamedTuple):
    """Weights fitted on some images, and scores on these same images.

    weights: M x 1, or M x K by class. miou: of their average. members: mIoU of each member alone.
    """

    weights: Tensor
    miou: float
    members: list[float]

    def best_member(self) -> Tensor:
        """The weights M x 1 of the best member alone."""
        best = self.members.index(max(self.members))
        return torch.eye(len(self.members))[:, [best]]


class SideBySide(nn.ModuleList):
    """The log-probabilities of all members as one model's: N x 3 x H x W -> N x MK x H x W.

    A softmax over all of them is each member's probabilities divided by M, so tiles, flips and
    strips treat every member as they would treat it alone.
    """

    def forward(self, image: Tensor) -> Tensor:
        return torch.cat([member(image).float().log_softmax(1) for member in self], dim=1)


def candidate_weights(members: int) -> Tensor:
    """C x M: an even grid over all weights of M members that sum to 1, and the equal weights.

    Each member alone is among them. Those nearest to equal weights come first, and so win ties.
    """
    steps = 1
    while steps < 20 and comb(steps + members, steps + 1) <= CANDIDATES:
        steps += 1
    chosen = torch.tensor(list(combinations_with_replacement(range(members), steps)))  # C x steps
    grid = nn.functional.one_hot(chosen, members).sum(1) / steps
    if steps % members:
        equal = torch.full((1, members), 1 / members)
        grid = torch.cat((equal, grid))
    return grid[grid.square().sum(1).argsort(stable=True)]


def fit_weights(
    members: Sequence[nn.Module],
    data: LabelledImages,
    folds: Sequence[Sequence[str]],
    how: Prediction = PLAIN,
    *,
    per_class: bool = False,
) -> list[Fit]:
    """For each fold, a list of image names, the weights whose average has the highest mIoU on it.

    One weight per member, from one pass over the images. per_class: then one per member and class,
    by coordinate ascent from there: change every class that would gain on its own; if the joint
    change loses, keep only the single best one; PASSES times, or until nothing gains.
    Each member alone is a candidate, so the result is never worse on its fold than a member.
    Collective: all ranks call it together and get the same answer.
    """
    K = len(data.classes)
    model = SideBySide(members)
    candidates = candidate_weights(len(members)).to(device_of(model))

    def measure(trials: Sequence[Tensor] = ()) -> Tensor:
        """The mIoU of each candidate on each fold, F x C.

        trials: weights M x K for each fold. With them, F x K x C: the mIoU of a fold's trial with
        one class's weights replaced by a candidate.
        """
        shape = [K, len(candidates)] if trials else [len(candidates)]
        matrices = torch.zeros(len(folds), *shape, K, K, dtype=torch.int64)
        names = sorted(set().union(*folds))
        for name in names[rank() :: world_size()]:
            inside = [index for index, fold in enumerate(folds) if name in fold]
            for strip in labelled_strips(model, data, name, how):
                if not trials:
                    matrices[inside] += matrices_of_averages(*strip, candidates).cpu()
                    continue
                for index in inside:
                    found = matrices_of_class_changes(*strip, candidates, trials[index])
                    matrices[index] += found.cpu()
        ious, _ = class_scores(all_reduce_sum(matrices))
        return ious.nanmean(-1).nan_to_num(0)

    alone = (candidates == 1).int().argmax(0).tolist()  # each member's candidate
    columns = K if per_class else 1
    fits = []
    for row in measure():
        weights = candidates[row.argmax()][:, None].repeat(1, columns)
        fits.append(Fit(weights, row.max().item(), row[alone].tolist()))
    trials = [fit.weights for fit in fits]
    for _ in range(PASSES if per_class else 0):
        before = trials
        known = zip(fits, trials, measure(trials), strict=True)
        found = [next_trial(*each, candidates) for each in known]
        fits, trials = map(list, zip(*found, strict=True))
        if all(map(torch.equal, before, trials)):
            break
    return [fit._replace(weights=fit.weights.cpu()) for fit in fits]


def next_trial(
    best: Fit,
    trial: Tensor,
    scores: Tensor,
    candidates: Tensor,
) -> tuple[Fit, Tensor]:
    """One step of coordinate ascent: the best fit known, and the next trial, weights M x K.

    scores: K x C, the mIoU of the trial with one class's weights replaced by a candidate.
    """
    # Class 0 replaced by the weights that it has: the trial itself.
    unchanged = (candidates == trial[:, 0]).all(1).nonzero()[0]
    own = scores[0, int(unchanged)]
    lost = own < best.miou and not torch.equal(trial, best.weights)
    value, choice = scores.max(1)  # K
    k = int(value.argmax())
    if value[k] > best.miou:
        weights = trial.clone()
        weights[:, k] = candidates[choice[k]]
        best = best._replace(weights=weights, miou=value[k].item())
    if lost:
        return best, best.weights
    gains = (value > own).to(trial.device)
    return best, torch.where(gains, candidates[choice].T, trial)


def labelled_strips(
    model: nn.Module,
    data: LabelledImages,
    name: str,
    how: Prediction,
) -> Iterator[tuple[Tensor, Tensor]]:
    """An image's labelled pixels by strips: the members' probabilities M x K x P, the labels P."""
    image, mask = data.image(name), data.mask(name)
    for top, joint in predict_strips(model, image, how, mask.shape):
        target = target_of(mask, top, joint).flatten()
        valid = target != IGNORED
        probability = joint.view(-1, len(data.classes), target.numel())
        probability = probability[:, :, valid]
        yield probability / probability.sum(1, keepdim=True), target[valid]


def matrices_of_averages(
    probability: Tensor,
    label: Tensor,
    candidates: Tensor,
) -> Tensor:
    """The confusion matrix of each candidate's average: C x K x K.

    probability: M x K x P; label: P; candidates: C x M. Where the members agree on a class, so does
    every average of them: only the other pixels are averaged.
    """
    K = probability.shape[1]
    choices = probability.max(1).indices  # M x P
    first = choices[0]
    disputed = (choices != first).any(0)
    agreed = confusion_matrix(first[~disputed], label[~disputed], K)
    probability, label = probability[:, :, disputed], label[disputed]
    averages = (torch.tensordot(weights, probability, 1) for weights in candidates)  # K x P each
    return agreed + torch.stack(
        [confusion_matrix(each.max(0).indices, label, K) for each in averages]
    )


def matrices_of_class_changes(
    probability: Tensor,
    label: Tensor,
    candidates: Tensor,
    trial: Tensor,
) -> Tensor:
    """The confusion matrices of a trial (M x K) with one class's weights replaced: K x C x K x K.

    For each class: decide every pixel without that class, then count which pixels each candidate
    wins back. Of equal averages the first class wins, as in argmax. A pixel where all members are
    below the others' best is won by no candidate.
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
        values = probability[:, k, near]
        highest, other, truth = highest[near], other[near], label[near]
        for c, weights in enumerate(candidates):
            value = weights @ values
            won = torch.where(k < other, value >= highest, value > highest)
            moved = confusion_matrix(other[won], truth[won], K)
            result[k, c] = rest - moved
            result[k, c, :, k] += moved.sum(1)
    return result


def gain_interval(
    average: Tensor,
    member: Tensor,
) -> tuple[float, float, float]:
    """The gain in mIoU of one model over another, and its 95 % interval by a paired bootstrap.

    average, member: confusion matrices of the same N images, N x K x K. A resample draws N images
    with replacement, the same for both; the interval holds the middle 95 % of the differences of
    RESAMPLES resamples.
    """
    N = len(average)
    pairs = torch.stack((average, member), 1).double()  # N x 2 x K x K
    generator = np.random.default_rng(0)
    differences = []
    for _ in range(0, RESAMPLES, CHUNK):
        drawn = generator.multinomial(N, [1 / N] * N, size=CHUNK)  # R x N: how often each image
        sums = torch.tensordot(torch.from_numpy(drawn).double(), pairs, 1)
        ious, _ = class_scores(sums)
        first, second = ious.nanmean(-1).T
        differences.append(first - second)
    low, high = np.nanquantile(torch.cat(differences), (0.025, 0.975)).tolist()
    ious, _ = class_scores(pairs.sum(0))
    own, other = ious.nanmean(-1).tolist()
    return own - other, low, high
