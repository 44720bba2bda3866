"""Training samples, their order and the loader: every draw is keyed by (seed, epoch, index), not by rank or worker."""

import multiprocessing
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from multiprocessing import forkserver, resource_tracker
from multiprocessing.context import BaseContext
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from ..errors import BadInput
from ..training.clock import ignore_signals, signals_held
from .transforms import SIZES, draw_augmentation, draw_crop, draw_fast, transform_pair


class TrainingSamples(Dataset):
    """The images of a split once each, then `augment` extra samples, each a random image under a random augmentation.

    With the recipe "fast" the images themselves are augmented too, at a scale in `sizes` (the deck's draws have none).

    data: anything with .splits (names), .image(name) -> uint8 H x W x 3 and .mask(name) -> uint8 labels. crop: (h, w)
    of a random window of every sample, or None for windows of the images' size, which must then be one (else BadInput).
    """

    def __init__(
        self,
        data: Any,
        split: str,
        *,
        crop: tuple[int, int] | None,
        augment: int,
        seed: int,
        recipe: str = "deck",
        sizes: tuple[float, float] = SIZES,
    ) -> None:
        self.data, self.names = data, list(data.splits[split])
        self.crop, self.augment, self.seed = crop, augment, seed
        fast = partial(draw_fast, sizes=sizes)
        # of the images themselves, of the extra samples
        draws: dict[str, tuple[Callable, Callable]] = {"deck": (draw_crop, draw_augmentation), "fast": (fast, fast)}
        self.draw_image, self.draw_extra = draws[recipe]
        if not self.names:
            raise BadInput(f"the split {split!r} has no images; put some there or choose another split")
        if crop is None:
            self._check_sizes()

    def _check_sizes(self) -> None:
        first, *others = self.names
        size = self.data.image(first).shape[:2]
        for name in others:
            other = self.data.image(name).shape[:2]
            if other != size:
                raise BadInput(
                    f"{name} has {other[0]} x {other[1]} pixels but {first} has {size[0]} x {size[1]}, and a batch "
                    "needs one size; use --crop H W for random windows or --image-size H W to resize all images"
                )

    def __len__(self) -> int:
        return len(self.names) + self.augment

    def __getitem__(self, key: tuple[int, ...]) -> dict[str, Any]:
        """(epoch, index) -> image uint8 3 x h x w, mask uint8 h x w, key (63 bits, of seed, epoch and index), name.

        A third number in the key divides h and w, as far as they stay 32 or more: the same view, coarser.
        """
        epoch, index, shrink = (*key, 1)[:3]
        generator = np.random.default_rng([self.seed, epoch, index])
        sample_key = int(generator.integers(2**63))
        if index < len(self.names):
            name, draw = self.names[index], self.draw_image(generator)
        else:
            name, draw = self.names[generator.integers(len(self.names))], self.draw_extra(generator)
        image, mask = self.data.image(name), self.data.mask(name)
        height, width = self.crop or image.shape[:2]
        shrink = max(1, min(shrink, height // 32, width // 32))
        draw = replace(draw, scale=draw.scale / shrink)
        image, mask = transform_pair(image, mask, draw, (height // shrink, width // shrink))
        return {"image": image, "mask": mask, "key": sample_key, "name": name}


class EpochOrder(Sampler[list[tuple[int, ...]]]):
    """This rank's slice of every global batch of an epoch, as lists of (epoch, index), or of (epoch, index, shrink).

    Slices are contiguous and their sizes differ by at most one: joined over ranks they are the batch of one process.
    The last partial batch is dropped. BadInput if no full batch is left, or if a rank would get none of a batch.
    """

    def __init__(self, count: int, batch_size: int, *, seed: int, rank: int = 0, world: int = 1) -> None:
        if batch_size < world:
            raise BadInput(
                f"--batch-size {batch_size} is smaller than the {world} ranks that share it; "
                f"use --batch-size {world} or more, or fewer ranks"
            )
        if count < batch_size:
            raise BadInput(
                f"{count} training samples do not fill one batch of {batch_size}; "
                f"use --batch-size {count} or less, or a larger --augment"
            )
        self.count, self.batch_size, self.seed = count, batch_size, seed
        self.slice = slice(rank * batch_size // world, (rank + 1) * batch_size // world)
        self.set_epoch(0)

    def set_epoch(self, epoch: int, start: int = 0, shrink: Callable[[int], int] = lambda step: 1) -> None:
        """Choose the epoch, the first step of it to give (a resumed run has done those before) and the samples' size.

        shrink: of a step, when it is ordered: what height and width of its samples are divided by.
        """
        self.epoch, self.start, self.shrink = epoch, start, shrink

    def __len__(self) -> int:
        return self.count // self.batch_size - self.start

    def __iter__(self) -> Iterator[list[tuple[int, ...]]]:
        # No sample has the index `count`, so the order shares no stream with a sample.
        order = np.random.default_rng([self.seed, self.epoch, self.count]).permutation(self.count).tolist()
        for step in range(self.start, self.count // self.batch_size):
            batch = order[step * self.batch_size : (step + 1) * self.batch_size]
            size = () if (shrink := self.shrink(step)) == 1 else (shrink,)
            yield [(self.epoch, index, *size) for index in batch[self.slice]]


def make_loader(
    samples: TrainingSamples,
    order: EpochOrder,
    workers: int,
    device: torch.device,
) -> DataLoader:
    """Batches for a device: image uint8 N x 3 x h x w, mask uint8 N x h x w, key int64 N, N names.

    A worker has one thread.
    """
    on_cuda = device.type == "cuda"
    return DataLoader(
        samples,
        batch_sampler=order,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=on_cuda,
        worker_init_fn=ignore_signals,
        multiprocessing_context=fork_server() if on_cuda and workers else None,
    )


def fork_server() -> BaseContext:
    """Workers that are forks of a process without CUDA: forks of one with it may abort.

    That process must outlive the signals that stop a run, as its workers end with it.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    resource_tracker.ensure_running()  # or it would be started below, and lift the mask at once
    with signals_held():
        forkserver.ensure_running()
    return context
