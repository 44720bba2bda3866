"""Samples, order, loader: all follows from (seed, epoch, index), whatever ranks and workers."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from segmentation.data.samples import EpochOrder, TrainingSamples
from segmentation.errors import BadInput
from segmentation.recipes import RECIPES
from train import make_loader

CPU = torch.device("cpu")

DECK = replace(RECIPES["deck"], augment=6)
FAST = replace(RECIPES["fast"], augment=6)


class Pairs:
    def __init__(self, count=10, size=(40, 50), odd_one=None):
        self.splits = {"train": [f"{i}.png" for i in range(count)], "val": []}
        self.sizes = {
            name: odd_one if odd_one and name == "3.png" else size for name in self.splits["train"]
        }

    def image(self, name):
        return np.random.default_rng(int(name[:-4])).integers(
            0, 256, (*self.sizes[name], 3), dtype=np.uint8
        )

    def mask(self, name):
        return self.image(name)[:, :, 0] % 5


def make_samples(crop=(24, 32), recipe=DECK, **pairs):
    return TrainingSamples(Pairs(**pairs), "train", recipe, crop=crop, seed=7)


def equal(a, b):
    return a["name"] == b["name"] and all(
        torch.equal(torch.as_tensor(a[k]), torch.as_tensor(b[k])) for k in a if k != "name"
    )


def test_the_originals_come_once_and_exact_then_the_extra_ones():
    samples, pairs = make_samples(crop=None), Pairs()
    assert len(samples) == 16
    for index, name in enumerate(pairs.splits["train"]):
        sample = samples[0, index, 1]
        assert sample["name"] == name
        assert np.array_equal(sample["image"].permute(1, 2, 0), pairs.image(name))
        assert np.array_equal(sample["mask"], pairs.mask(name))
    extra = [samples[epoch, index, 1] for epoch in range(20) for index in range(10, 16)]
    assert {sample["name"] for sample in extra} == set(pairs.splits["train"])
    assert not any(
        np.array_equal(s["image"].permute(1, 2, 0), pairs.image(s["name"])) for s in extra
    )


@pytest.mark.parametrize("index", [2, 12])
def test_a_sample_repeats_for_its_key_and_differs_between_epochs_and_seeds(index):
    samples = make_samples()
    assert equal(samples[3, index, 1], samples[3, index, 1])
    assert not equal(samples[3, index, 1], samples[4, index, 1])
    other = TrainingSamples(Pairs(), "train", DECK, crop=(24, 32), seed=8)
    assert not equal(samples[3, index, 1], other[3, index, 1])


def test_a_coarse_sample_is_the_same_view_at_half_the_size():
    class Blocks(Pairs):
        def image(self, name):
            return super().image(name)[:8, :10].repeat(16, 0).repeat(16, 1)

    samples = TrainingSamples(Blocks(), "train", FAST, crop=(64, 96), seed=7)
    for index in range(16):
        fine, coarse = samples[1, index, 1], samples[1, index, 2]
        assert coarse["image"].shape == (3, 32, 48) and coarse["mask"].shape == (32, 48)
        assert (fine["name"], fine["key"]) == (coarse["name"], coarse["key"])
        means = torch.nn.functional.avg_pool2d(fine["image"].float(), 2)
        both = torch.stack((means.flatten(), coarse["image"].float().flatten()))
        assert torch.corrcoef(both)[0, 1] > 0.8


def test_the_scale_of_the_fast_recipe_is_what_was_asked_for():
    class Columns(Pairs):
        def mask(self, name):
            return np.broadcast_to(np.arange(50, dtype=np.uint8), (40, 50))

    for scale, seen in ((1, 24), (2, 12), (4, 6)):
        recipe = replace(FAST, augment=0, scales=(scale, scale))
        samples = TrainingSamples(Columns(), "train", recipe, crop=(16, 24), seed=7)
        assert all(
            len(samples[0, i, 1]["mask"].unique()) in (seen, seen + 1) for i in range(len(samples))
        )


def test_samples_stay_as_large_as_a_model_takes():
    samples = TrainingSamples(Pairs(), "train", FAST, crop=(70, 200), seed=7)
    assert [samples[0, 0, divisor]["mask"].shape for divisor in (1, 2, 4)] == [
        (70, 200),
        (35, 100),
        (35, 100),
    ]


def test_the_size_is_asked_for_each_step():
    order = EpochOrder(16, 4, seed=7)
    order.set_epoch(1, start=1, divisor_at=lambda step: (4, 2, 2, 1)[step])
    places = [key for batch in order for key in batch]
    assert [key[2] for key in places] == [2] * 8 + [1] * 4
    order.set_epoch(1, start=1)
    # The same samples, coarser.
    assert [(*key[:2], 1) for key in places] == [key for batch in order for key in batch]


def test_keys_are_distinct_and_survive_batching():
    samples = make_samples()
    keys = {
        (epoch, index, 1): samples[epoch, index, 1]["key"]
        for epoch in range(5)
        for index in range(16)
    }
    assert len(set(keys.values())) == 80
    assert min(keys.values()) >= 0
    assert 2**62 < max(keys.values()) < 2**63
    order = EpochOrder(16, 4, seed=7)
    for places, batch in zip(order, make_loader(samples, order, 0, CPU), strict=True):
        assert batch["key"].dtype == torch.int64
        assert batch["key"].tolist() == [keys[place] for place in places]
        assert batch["image"].shape == (4, 3, 24, 32) and batch["mask"].shape == (4, 24, 32)
        assert batch["image"].dtype == batch["mask"].dtype == torch.uint8
        assert len(batch["name"]) == 4


def test_an_epoch_is_a_new_permutation_without_its_last_partial_batch():
    order = EpochOrder(17, 4, seed=0)
    first = list(order)
    assert len(order) == len(first) == 4 and {len(batch) for batch in first} == {4}
    assert len({index for batch in first for _, index, _ in batch}) == 16
    assert list(order) == first
    order.set_epoch(1)
    second = list(order)
    assert {epoch for batch in second for epoch, _, _ in batch} == {1}
    assert [i for batch in first for _, i, _ in batch] != [
        i for batch in second for _, i, _ in batch
    ]
    left_out = set()
    for epoch in range(40):
        order.set_epoch(epoch)
        left_out |= set(range(17)) - {index for batch in order for _, index, _ in batch}
    assert len(left_out) > 5


@pytest.mark.parametrize("world", [1, 2, 3, 4])
@pytest.mark.parametrize("batch_size", [4, 7])
def test_ranks_share_the_batch_of_one_process(world, batch_size):
    whole = list(EpochOrder(30, batch_size, seed=3))
    ranks = [
        list(EpochOrder(30, batch_size, seed=3, rank=rank, world=world)) for rank in range(world)
    ]
    for step, batch in enumerate(whole):
        slices = [rank[step] for rank in ranks]
        assert [place for part in slices for place in part] == batch
        assert max(map(len, slices)) - min(map(len, slices)) <= 1 and min(map(len, slices)) >= 1


def test_workers_change_nothing():
    def two_epochs(workers):
        order = EpochOrder(16, 4, seed=7)
        loader = make_loader(make_samples(), order, workers, CPU)
        for epoch in (0, 1):
            order.set_epoch(epoch)
            yield from loader

    batches = list(two_epochs(0))
    assert len(batches) == 8
    assert all(equal(a, b) for a, b in zip(batches, two_epochs(1), strict=True))


@pytest.mark.parametrize("workers", [0, 1])
def test_resuming_gives_exactly_the_rest_of_the_epoch(workers):
    order = EpochOrder(16, 3, seed=7)
    loader = make_loader(make_samples(), order, workers, CPU)
    order.set_epoch(2)
    whole = list(loader)
    order.set_epoch(2, start=3)
    assert len(loader) == 2
    assert all(equal(a, b) for a, b in zip(whole[3:], loader, strict=True))


def test_memory_is_pinned_for_cuda_alone():
    order = EpochOrder(16, 4, seed=7)
    for kind in ("cpu", "cuda", "mps"):
        loader = make_loader(make_samples(), order, 0, torch.device(kind))
        assert loader.pin_memory == (kind == "cuda")


def test_bad_input_is_told_with_the_way_out():
    with pytest.raises(
        BadInput,
        match=r"3\.png has 20 x 30 pixels but 0\.png has 40 x 50.*--crop H W.*--image-size H W",
    ):
        make_samples(crop=None, odd_one=(20, 30))
    assert make_samples(odd_one=(20, 30))[0, 3, 1]["mask"].shape == (24, 32)
    with pytest.raises(BadInput, match="'val' has no images"):
        TrainingSamples(Pairs(), "val", DECK, crop=None, seed=0)
    with pytest.raises(
        BadInput, match="9 training samples do not fill one batch of 10; use --batch-size 9 or less"
    ):
        EpochOrder(9, 10, seed=0)
    with pytest.raises(
        BadInput,
        match="--batch-size 3 is smaller than the 4 ranks that share it; use --batch-size 4 or",
    ):
        EpochOrder(9, 3, seed=0, rank=0, world=4)
