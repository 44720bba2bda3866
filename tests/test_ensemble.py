"""ensemble.py: weights where they are known, no loss on val, an honest gain, a checkpoint."""

import copy
import itertools
import json
import math
import os
import re
import subprocess
import sys
import weakref
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import assert_same_counts, run_script
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import ensemble
from segmentation import UFormer, build_model, load_checkpoint
from segmentation.checkpoint import read_checkpoint, save_checkpoint
from segmentation.data.datasets import reopen_dataset
from segmentation.evaluation import weight_search as mixing
from segmentation.evaluation.inference import Prediction
from segmentation.evaluation.scoring import score_split
from segmentation.evaluation.weight_search import (
    Fit,
    candidate_weights,
    fit_weights,
    gain_interval,
    matrices_of_averages,
    matrices_of_class_changes,
    next_trial,
)
from segmentation.metrics import class_scores, confusion_matrix

pytestmark = pytest.mark.usefixtures("small_models")

ROOT = Path(__file__).parents[1]


class Channel(nn.Module):
    """Reads the probability of class 1 of 2 from one channel of the image."""

    def __init__(self, channel: int):
        super().__init__()
        self.channel = channel

    def forward(self, image: torch.Tensor, keys: torch.Tensor | None = None) -> torch.Tensor:
        p = image[:, self.channel].clamp(1e-6, 1 - 1e-6)
        return torch.stack((1 - p, p), 1).log()


class Random(nn.Module):
    """Noisy logits, more often right than not: the label is the image's red over 20."""

    def __init__(self, seed: int, classes: int):
        super().__init__()
        self.noise = torch.rand(classes, 64, 64, generator=torch.Generator().manual_seed(seed)) * 3
        self.classes = classes

    def forward(self, image: torch.Tensor, keys: torch.Tensor | None = None) -> torch.Tensor:
        label = (image[:, 0] * 255 / 20).round().long()
        noise = self.noise.roll(int(image[0, 1, 0, 0] * 255), 2)  # another for each image
        return nn.functional.one_hot(label, self.classes).permute(0, 3, 1, 2) + noise


def pictures(images: list[np.ndarray], masks: list[np.ndarray], classes: int) -> SimpleNamespace:
    names = [str(number) for number in range(len(images))]
    return SimpleNamespace(
        classes=[f"class {k}" for k in range(classes)],
        splits={"train": [], "val": names, "test": []},
        image=lambda name: images[int(name)],
        mask=lambda name: masks[int(name)],
    )


def noisy_data(count: int, classes: int) -> SimpleNamespace:
    generator = np.random.default_rng(0)
    masks = [generator.integers(0, classes, (64, 64), np.uint8) for _ in range(count)]
    images = [np.stack((20 * mask, np.full_like(mask, i), mask), 2) for i, mask in enumerate(masks)]
    for mask in masks:
        mask[:3] = 255
    return pictures(images, masks, classes)


def test_candidates_cover_the_mixtures_evenly():
    two = candidate_weights(2)
    assert sorted(two[:, 0].tolist()) == pytest.approx([n / 20 for n in range(21)])
    assert two[0].tolist() == [0.5, 0.5]
    for members in range(2, 9):
        grid = candidate_weights(members)
        assert len(grid) <= 71
        assert torch.allclose(grid.sum(1), torch.ones(len(grid)))
        assert grid[0].tolist() == pytest.approx([1 / members] * members)
        assert all((grid == torch.eye(members)[m]).all(1).any() for m in range(members))
        assert len({tuple(row) for row in grid.tolist()}) == len(grid)


def test_the_search_finds_a_known_optimum():
    # 204 w + 3 (1 - w) > 127.5 for class 1 and 184 w + 3 (1 - w) < 127.5 for class 0:
    # only 0.619 < w < 0.688 is right.
    generator = np.random.default_rng(1)
    masks = [generator.integers(0, 2, (40, 50), np.uint8) for _ in range(3)]
    images = [
        np.stack((np.where(mask == 1, 204, 184), np.full_like(mask, 3), mask), 2).astype(np.uint8)
        for mask in masks
    ]
    data = pictures(images, masks, 2)
    [fit] = fit_weights([Channel(0), Channel(1)], data, [data.splits["val"]])
    assert fit.weights.flatten().tolist() == pytest.approx([0.65, 0.35])
    assert fit.miou == 1
    assert fit.members[0] < 0.5
    average = UFormer(Channel(0), Channel(1), weights=fit.weights)
    assert score_split(average, data, "val")["miou"] == 1


def eighths(members: int) -> torch.Tensor:
    """C x M weights, all mixtures in steps of 1/8: products with binary fractions are exact."""
    rows = itertools.product(range(9), repeat=members)
    return torch.tensor([row for row in rows if sum(row) == 8]) / 8


def assert_matrices_are_those_of_each_average(
    probability: torch.Tensor, candidates: torch.Tensor
) -> None:
    """M x K x P, C x M: of `matrices_of_averages` and of `matrices_of_class_changes`.

    All numbers are such that every order of the sums is exact.
    """
    K, P = probability.shape[1:]
    generator = torch.Generator().manual_seed(0)
    label = torch.randint(0, K, (P,), generator=generator)
    found = matrices_of_averages(probability, label, candidates)
    for c, weights in enumerate(candidates):
        average = (weights[:, None, None] * probability).sum(0)
        assert torch.equal(found[c], confusion_matrix(average.argmax(0), label, K))
    trial = candidates[torch.randint(0, len(candidates), (K,), generator=generator)].T  # M x K
    found = matrices_of_class_changes(probability, label, candidates, trial)
    for k, c in itertools.product(range(K), range(len(candidates))):
        changed = trial.clone()
        changed[:, k] = candidates[c]
        average = (changed[:, :, None] * probability).sum(0)
        assert torch.equal(found[k, c], confusion_matrix(average.argmax(0), label, K))


@pytest.mark.parametrize("count", [2, 3])
def test_matrices_of_candidates_are_those_of_each_average(count):
    generator = torch.Generator().manual_seed(count)
    probability = torch.randint(0, 2**12, (count, 4, 500), generator=generator) / 2**12
    assert_matrices_are_those_of_each_average(probability, eighths(count))


@pytest.mark.parametrize("count", [2, 3])
def test_of_equal_averages_the_first_class_wins(count):
    """Certain members, 1.0 for one class, that disagree: equal weights tie at most pixels."""
    generator = torch.Generator().manual_seed(count)
    choices = torch.randint(0, 4, (count, 500), generator=generator)
    certain = nn.functional.one_hot(choices, 4).transpose(1, 2).float()  # M x K x P
    assert_matrices_are_those_of_each_average(certain, eighths(count))
    label = choices[-1]
    # Weights need no sum of 1 here, and thirds would not be exact.
    equal = torch.full((1, count), 0.5)
    expected = matrices_of_averages(certain, label, equal)[0]
    found = matrices_of_class_changes(certain, label, equal, equal.T.expand(-1, 4))
    assert (found == expected).all()


@pytest.mark.parametrize("count", [2, pytest.param(3, marks=pytest.mark.slow)])
@pytest.mark.parametrize("per_class", [False, True])
def test_the_average_is_never_worse_than_a_member_where_it_was_fitted(count, per_class):
    data, members = noisy_data(4, 5), [Random(seed, 5) for seed in range(count)]
    names = data.splits["val"]
    folds = [names, names[:2], names[2:]]
    fits = fit_weights(members, data, folds, per_class=per_class)
    for fold, fit in zip(folds, fits, strict=True):
        part = copy.copy(data)
        part.splits = {"val": fold}
        own = [score_split(member, part, "val")["miou"] for member in members]
        mixed = score_split(UFormer(*members, weights=fit.weights), part, "val")["miou"]
        assert fit.members == pytest.approx(own, abs=1e-4)
        assert fit.miou == pytest.approx(mixed, abs=1e-4)
        assert mixed > max(own) + 0.01  # independent noise: an average helps
        assert fit.weights.shape == (count, 5 if per_class else 1)
        [alone] = fit_weights(members, data, [fold], per_class=per_class)
        assert torch.equal(alone.weights, fit.weights)
    if per_class:
        single = fit_weights(members, data, folds)
        assert all(fit.miou > one.miou for fit, one in zip(fits, single, strict=True))


def test_one_useless_member_gets_no_weight():
    data = noisy_data(2, 3)
    [fit] = fit_weights([Random(0, 3), Channel3()], data, [data.splits["val"]])
    assert fit.weights.flatten().tolist() == [0, 1]
    assert fit.best_member().flatten().tolist() == [0, 1]
    assert fit.miou == fit.members[1] == 1


class Channel3(nn.Module):
    """Always right: reads the label from the image."""

    def forward(self, image: torch.Tensor, keys: torch.Tensor | None = None) -> torch.Tensor:
        label = (image[:, 0] * 255 / 20).round().long()
        # Right by a hair: others would outvote it.
        return nn.functional.one_hot(label, 3).permute(0, 3, 1, 2) * 0.1


def test_a_search_by_class_goes_back_when_joint_changes_lose():
    candidates = candidate_weights(2)
    trial, other = (
        candidates[0][:, None].repeat(1, 2),
        int((candidates == torch.tensor([1.0, 0.0])).all(1).nonzero()),
    )
    best = Fit(trial, 0.5, [0.4, 0.4])
    scores = torch.full((2, len(candidates)), 0.4)
    scores[:, 0] = 0.5  # the trial itself
    scores[0, other], scores[1, other] = 0.6, 0.55
    best, following = next_trial(best, trial, scores, candidates)
    assert best.miou == pytest.approx(0.6)
    assert best.weights.T.tolist() == [[1, 0], [0.5, 0.5]]
    assert following.T.tolist() == [[1, 0], [1, 0]]  # both at once
    scores = torch.full((2, len(candidates)), 0.3)  # which loses
    best, following = next_trial(best, following, scores, candidates)
    assert best.miou == pytest.approx(0.6)
    assert torch.equal(following, best.weights)
    scores[:] = 0.2
    scores[0, other] = scores[1, 0] = best.miou
    assert torch.equal(next_trial(best, following, scores, candidates)[1], best.weights)  # the end


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the tensors that are alive, and notes the most there were."""

    live = most = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                size = leaf.numel() * leaf.element_size()
                self.live += size
                self.most = max(self.most, self.live)
                weakref.finalize(leaf, self.free, size)
        return result

    def free(self, size: int) -> None:
        self.live -= size


@pytest.mark.parametrize("per_class", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_memory_does_not_grow_with_the_images(monkeypatch, per_class):
    monkeypatch.setattr(mixing, "PASSES", 1)
    data, members, most = noisy_data(24, 5), [Random(seed, 5) for seed in range(2)], []
    fit_weights(members, data, [["0"]])
    for count in (3, 24):
        with LiveBytes() as memory:
            fit_weights(members, data, [data.splits["val"][:count]], per_class=per_class)
        most.append(memory.most)
    split = 24 * 2 * 5 * 64 * 64 * 4
    assert most[1] < 1.1 * most[0]  # how many pixels the members dispute differs a little
    assert most[1] < split


def matrices(*rows: list[list[int]]) -> torch.Tensor:
    return torch.tensor(rows)


def test_the_interval_of_two_images_by_hand():
    # Two images, drawn twice: both (half of the resamples), or one of them twice (a quarter each).
    better = matrices([[10, 0], [0, 10]], [[10, 0], [0, 10]])
    worse = matrices([[10, 0], [0, 10]], [[5, 5], [0, 10]])
    second = 1 - (5 / 10 + 10 / 15) / 2
    both = 1 - (15 / 20 + 20 / 25) / 2
    gain, low, high = gain_interval(better, worse)
    assert gain == pytest.approx(both)
    assert (low, high) == pytest.approx((0, second))
    assert gain_interval(better, better) == (0, 0, 0)
    assert gain_interval(better, worse) == gain_interval(better, worse)
    assert gain_interval(worse, better) == pytest.approx((-both, -second, 0))


def test_the_interval_covers_what_it_should():
    # One class wrong in a binomial share of each image:
    # accuracy differences are nearly normal, of known variance.
    generator = np.random.default_rng(0)
    hits = generator.binomial(1000, 0.8, (400, 2))
    tables = [
        matrices(*([[h, 1000 - h], [1000 - h, h]] for h in column.tolist())) for column in hits.T
    ]
    gain, low, high = gain_interval(*tables)
    # IoU = h / (2000 - h) at h = 800: derivative 2000 / 1200^2
    spread = 2000 / 1200**2 * np.std(hits[:, 0] - hits[:, 1]) / math.sqrt(400)
    assert low < gain < high
    assert high - low == pytest.approx(2 * 1.96 * spread, rel=0.05)


@pytest.mark.parametrize(
    ("average", "verdict"),
    [(9, "a gain"), (5, "a loss"), (7, "no gain: the interval covers zero"), (None, "no gain")],
)
def test_the_verdict(capsys, average, verdict):
    def table(right: list[int]) -> torch.Tensor:
        return matrices(*([[r, 10 - r], [10 - r, r]] for r in right))

    member, other = table([7, 7, 7, 7]), table([4, 4, 4, 4])
    mixed = table([average] * 4 if average else [6, 9, 6, 8])
    tables = [(counts, torch.zeros(0)) for counts in (other, member, mixed)]
    scores = [{"miou": class_scores(counts.sum(0))[0].mean().item()} for counts, _ in tables]
    ensemble.print_gain(tables, scores, ["unet", "segformer", "UFormer"])
    printed = capsys.readouterr().out
    assert printed.count("\n") == 1
    assert "over segformer, the best member" in printed
    assert verdict in printed


@pytest.fixture(scope="module")
def runs(tmp_path_factory, tiny_folder, trained):
    """best.pt of a U-Net and two SegFormers, trained for a moment."""
    mlp = tmp_path_factory.mktemp("runs") / "mlp"
    flags = "--decoder mlp --encoder-weights none --epochs 2 --augment 0 --batch-size 8 --seed 3"
    paths = ("--data", tiny_folder, "--out", mlp)
    assert run_script("train", *flags.split(), "--workers", 0, *paths) == 0
    return [folder / "best.pt" for folder in (trained("unet"), trained("segformer"), mlp)]


@pytest.fixture
def rows(monkeypatch):
    """The scores of the rows that ensemble.py prints, unrounded."""
    seen = []
    original = ensemble.print_table

    def note(runs, scores, labels, split):
        seen.append(scores)
        original(runs, scores, labels, split)

    monkeypatch.setattr(ensemble, "print_table", note)
    return seen


def evaluated(file: Path, folder: Path, *flags: object) -> dict:
    assert run_script("evaluate", file, "--json", folder / "scores.json", *flags) == 0
    return json.loads((folder / "scores.json").read_text())


@pytest.mark.parametrize(
    "flags",
    [
        (),
        ("--per-class",),
        ("--weights", 0.2, 0.8),
        ("--amp",),
        pytest.param(("--flips", "--tile", 32), marks=pytest.mark.slow),
    ],
)
def test_every_row_is_what_evaluate_says_of_the_checkpoint(tmp_path, capsys, runs, rows, flags):
    out = tmp_path / "made" / "uformer.pt"
    assert run_script("ensemble", *runs[:2], "--out", out, *flags) == 0
    lines = capsys.readouterr().out.splitlines()
    table = [line.split() for line in lines if re.match(r"(model|unet|segformer|UFormer) ", line)]
    assert table[0] == [
        "model",
        "test",
        "loss",
        "test",
        "mIoU",
        "test",
        "mPA",
        "GPUs",
        "training",
        "time",
    ]
    assert [row[0] for row in table[1:]] == ["unet", "segformer", "UFormer"]
    prediction = flags if flags and flags[0] in ("--flips", "--amp") else ()
    for file, scores, row in zip([*runs[:2], out], rows[0], table[1:], strict=True):
        assert evaluated(file, tmp_path, *prediction) == scores
        assert row[1:4] == [f"{scores[key]:.4f}" for key in ("loss", "miou", "mpa")]
    assert any(line.startswith("mIoU ") and "best member" in line for line in lines)

    model, meta = load_checkpoint(out)
    metas = [load_checkpoint(file)[1] for file in runs[:2]]
    assert meta["seconds"] == sum(each["seconds"] for each in metas)
    assert meta["data"] == metas[0]["data"]
    assert meta["scores"] == evaluated(out, tmp_path, "--split", "val", *prediction)
    assert model.log_weights.shape == ((2, 3) if "--per-class" in flags else (2, 1))
    if "--weights" in flags:
        assert model.weights.flatten().tolist() == pytest.approx([0.2, 0.8])
    elif not prediction:
        assert meta["scores"]["miou"] >= max(each["scores"]["miou"] for each in metas)
    again = build_model(meta["config"])
    again.load_state_dict(read_checkpoint(out)["model"])
    assert torch.equal(again.weights, model.weights)


def test_the_search_sees_the_members_as_amp_scores_them(runs, tiny_folder):
    models, metas = zip(*map(load_checkpoint, runs[:2]), strict=True)
    data = reopen_dataset(metas[0], tiny_folder, ("val",))
    seen = []
    for model in models:
        model.register_forward_hook(lambda *_: seen.append(torch.is_autocast_enabled("cpu")))
    for amp in (True, False):
        seen.clear()
        [fit] = fit_weights(models, data, [data.splits["val"]], Prediction(amp=amp))
        assert set(seen) == {amp}
        own = [score_split(model, data, "val", Prediction(amp=amp))["miou"] for model in models]
        assert fit.members == pytest.approx(own, abs=1e-7)


def test_three_members_and_an_average_as_a_member(tmp_path, capsys, runs, rows):
    out = tmp_path / "three.pt"
    assert run_script("ensemble", *runs, "--out", out) == 0
    printed = capsys.readouterr().out
    assert re.search(r"^segformer 2 ", printed, re.MULTILINE)
    assert evaluated(out, tmp_path) == rows[0][-1]
    assert len(load_checkpoint(out)[0].members) == 3
    assert run_script("ensemble", out, runs[0], "--weights", 1, 0) == 0
    assert_same_counts(rows[1][-1]["confusion"], rows[0][-1]["confusion"])


def test_the_same_command_prints_the_same(capsys, runs):
    printed = []
    for _ in range(2):
        assert run_script("ensemble", *runs[:2], "--per-class") == 0
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1]


def doctored(file: Path, out: Path, **data: object) -> Path:
    """A copy of a checkpoint that says something else of its data."""
    checkpoint = read_checkpoint(file)
    classes = data.pop("classes", checkpoint["classes"])
    save_checkpoint(out, checkpoint | {"classes": classes, "data": checkpoint["data"] | data})
    return out


def without_test(file: Path, out: Path) -> Path:
    splits = read_checkpoint(file)["data"]["splits"]
    return doctored(file, out, splits=splits | {"val": splits["val"] + splits["test"], "test": []})


def test_without_test_images_each_half_of_val_is_scored_with_the_others_weights(
    tmp_path, capsys, runs, rows
):
    files = [without_test(file, tmp_path / f"{file.parent.name}.pt") for file in runs[:2]]
    assert run_script("ensemble", *files) == 0
    printed = capsys.readouterr().out
    assert "val mIoU" in printed and "test mIoU" not in printed
    assert "no test images: each half of the 8 of val" in printed
    members = [load_checkpoint(file)[0] for file in files]
    data = reopen_dataset(load_checkpoint(files[0])[1])
    names = sorted(data.splits["val"])
    total = torch.zeros(3, 3, dtype=torch.int64)
    for fitted, scored in ((names[:4], names[4:]), (names[4:], names[:4])):
        [fit] = fit_weights(members, data, [fitted])
        data.splits["val"] = scored
        confusion = score_split(UFormer(*members, weights=fit.weights), data, "val")["confusion"]
        total += torch.tensor(confusion)
    assert rows[0][-1]["confusion"] == total.tolist()
    assert [image["name"] for image in rows[0][-1]["images"]] == names

    assert run_script("ensemble", *files, "--weights", 1, 1) == 0
    assert "scores are on val, on which" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"classes": ["class 0", "class 2", "class 1"]}, "give checkpoints of the same classes"),
        (
            {"splits": {"train": ["images/00.png"], "val": ["images/01.png"], "test": []}},
            "differ in the data's splits",
        ),
        ({"image_size": [64, 64]}, "the images' own size and 64 x 64"),
        ({"root": "/elsewhere"}, "say with --data"),
    ],
)
def test_members_that_do_not_fit_together_end_with_one_line(tmp_path, capsys, runs, change, said):
    other = doctored(runs[1], tmp_path / "other.pt", **change)
    assert run_script("ensemble", runs[0], other) == 2
    error = capsys.readouterr().err
    assert said in error and str(other) in error
    assert error.count("\n") == 1


def test_data_that_moved_are_found_by_the_flag(tmp_path, runs, tiny_folder):
    other = doctored(runs[1], tmp_path / "other.pt", root="/elsewhere")
    assert run_script("ensemble", other, runs[0], "--weights", 1, 1, "--data", tiny_folder) == 0


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--weights 0.5", "2 checkpoints need as many --weights, not 1"),
        ("--weights 0 0", "--weights are all 0"),
        ("--weights -1 2", "-1 is not 0 or a positive number"),
        ("--weights nan 1", "nan is not 0 or a positive number"),
        ("--weights 1 1 --per-class", "--per-class is for weights that are searched"),
        ("--weights 1 1 --search", "--search: not allowed with argument --weights"),
    ],
)
def test_contradictory_weight_flags_exit_2(capsys, runs, flags, said):
    assert run_script("ensemble", *runs[:2], *flags.split()) == 2
    assert said in capsys.readouterr().err


def test_a_member_is_never_overwritten(tmp_path, capsys, runs):
    before = runs[1].read_bytes()
    assert run_script("ensemble", *runs[:2], "--out", runs[1]) == 2
    assert runs[1].read_bytes() == before
    assert run_script("ensemble", *runs[:2], "--out", tmp_path) == 2
    assert run_script("ensemble", runs[0]) == 2


# ensemble.py in a process that knows the small models, of which the members are.
SMALL = """
import pytest
from conftest import shrink_models

import ensemble
from segmentation.errors import exit_on_bad_input

shrink_models(pytest.MonkeyPatch())
exit_on_bad_input(ensemble.main)
"""


@pytest.mark.slow
def test_two_ranks_print_what_one_prints(runs, tmp_path):
    script = tmp_path / "small.py"
    script.write_text(SMALL)
    command = [str(script), *map(str, runs[:2]), "--per-class"]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    # For both, as sums of more threads have another order.
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    alone, both = (
        subprocess.run(
            [sys.executable, *launch, *command],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        for launch in ([], torchrun)
    )
    assert alone.returncode == 0, alone.stderr
    assert both.returncode == 0, both.stderr
    lines = [done.stdout.splitlines() for done in (alone, both)]
    assert "1 process of" in lines[0][0] and "2 processes of" in lines[1][0]
    assert lines[0][1:] == lines[1][1:] != []


@pytest.mark.slow
@pytest.mark.parametrize("task", ["multiclass", "binary"])
def test_scenes_from_the_first_run_to_the_average(tmp_path, capsys, rows, task):
    flags = ("--task", task, "--image-size", 64, 64, "--epochs", 2, "--augment", 0, "--workers", 0)
    for model in ("unet", "segformer"):
        assert run_script("train", "--model", model, *flags, "--out", tmp_path / model) == 0
    members = [tmp_path / model / "best.pt" for model in ("unet", "segformer")]
    assert run_script("ensemble", *members, "--per-class", "--out", tmp_path / "uformer.pt") == 0
    printed = capsys.readouterr().out
    assert "landable" in printed and ("water" in printed) == (task == "multiclass")
    assert evaluated(tmp_path / "uformer.pt", tmp_path) == rows[0][-1]
    further = ("--model", "uformer", "--init", *members, "--freeze-members")
    assert run_script("train", *further, *flags, "--out", tmp_path / "further") == 0
    best = tmp_path / "further" / "best.pt"
    assert run_script("ensemble", best, members[0], "--weights", 1, 1) == 0
