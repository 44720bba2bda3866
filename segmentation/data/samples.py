"""Training samples and their order.

Every random draw depends on (seed, epoch, index) alone, not on a rank, a worker or a process.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from torch.utils.data import Dataset, Sampler

from ..errors import BadInput
from ..recipes import Recipe
from .transforms import draw_deck, draw_fast, draw_window, transform_pair

SMALLEST = 32  # side of a sample: models take no less

Key = tuple[int, int, int]  # epoch, index, divisor: what the loader asks for


class TrainingSamples(Dataset):
    """The images of a split once each, then extra samples of random images.

    Args:
        data: anything with .splits (names), .image(name) -> uint8 H x W x 3 and .mask(name) ->
            uint8 labels.
        recipe: says how many extra samples there are, what is augmented and how.
        crop: (h, w) of the random window that a sample shows; None: the images' size.

    Raises:
        BadInput: if the split is empty, or its images differ in size and `crop` is None.
    """

    def __init__(
        self,
        data: Any,
        split: str,
        recipe: Recipe,
        *,
        crop: tuple[int, int] | None,
        seed: int,
    ) -> None:
        self.data = data
        self.names = data.splits[split]
        self.crop = crop
        self.augment = recipe.augment
        self.seed = seed
        # What draws the augmentation of an image itself, and that of an extra sample.
        self.draw_image, self.draw_extra = draw_window, draw_deck
        if recipe.augmentation == "fast":
            fast = partial(draw_fast, scale_range=recipe.scales, recoloured=recipe.recoloured)
            self.draw_image = self.draw_extra = fast
        if not self.names:
            raise BadInput(
                f"the split {split!r} has no images; put some there or choose another split"
            )
        if crop is None:
            self._check_sizes()

    def _check_sizes(self) -> None:
        """BadInput if the images differ in size."""
        first, *others = self.names
        size = self.data.image(first).shape[:2]
        for name in others:
            other = self.data.image(name).shape[:2]
            if other != size:
                raise BadInput(
                    f"{name} has {other[0]} x {other[1]} pixels but {first} has "
                    f"{size[0]} x {size[1]}, and a batch needs one size; "
                    "use --crop H W for random windows or --image-size H W to resize all images"
                )

    def __len__(self) -> int:
        return len(self.names) + self.augment

    def __getitem__(self, key: Key) -> dict[str, Any]:
        """The sample of (epoch, index, divisor): image, mask, key, name.

        image: uint8 3 x h x w; mask: uint8 h x w; key: 63 random bits of this sample, from which
        the model draws dropout; name: of the image. The divisor shrinks the view: it divides h and
        w, but leaves them 32 or more.
        """
        epoch, index, divisor = key
        generator = np.random.default_rng([self.seed, epoch, index])
        sample_key = int(generator.integers(2**63))
        if index < len(self.names):
            name = self.names[index]
            drawn = self.draw_image(generator)
        else:
            name = self.names[generator.integers(len(self.names))]
            drawn = self.draw_extra(generator)
        image = self.data.image(name)
        mask = self.data.mask(name)
        height, width = self.crop or image.shape[:2]
        divisor = max(1, min(divisor, height // SMALLEST, width // SMALLEST))
        drawn = replace(drawn, scale=drawn.scale / divisor)
        image, mask = transform_pair(image, mask, drawn, (height // divisor, width // divisor))
        return {"image": image, "mask": mask, "key": sample_key, "name": name}


class EpochOrder(Sampler[list[Key]]):
    """This rank's slice of every global batch of an epoch, as lists of keys of samples.

    Slices are contiguous and their sizes differ by at most one: joined over ranks they are the
    batch of one process. The last partial batch is dropped.

    Raises:
        BadInput: if there is no full batch, or a rank would get none of a batch.
    """

    def __init__(
        self,
        count: int,
        batch_size: int,
        *,
        seed: int,
        rank: int = 0,
        world: int = 1,
    ) -> None:
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
        self.count = count
        self.batch_size = batch_size
        self.seed = seed
        self.slice = slice(rank * batch_size // world, (rank + 1) * batch_size // world)
        self.set_epoch(0)

    def set_epoch(
        self,
        epoch: int,
        start: int = 0,
        divisor_at: Callable[[int], int] = lambda step: 1,
    ) -> None:
        """Choose the epoch.

        start: the first step to give; a resumed run has done those before.
        divisor_at: step -> divisor of its samples, asked when the step is ordered.
        """
        self.epoch = epoch
        self.start = start
        self.divisor_at = divisor_at

    def __len__(self) -> int:
        return self.count // self.batch_size - self.start

    def __iter__(self) -> Iterator[list[Key]]:
        # No sample has the index `count`, so the order shares no stream with a sample.
        generator = np.random.default_rng([self.seed, self.epoch, self.count])
        order = generator.permutation(self.count).tolist()
        for step in range(self.start, self.count // self.batch_size):
            batch = order[step * self.batch_size : (step + 1) * self.batch_size]
            divisor = self.divisor_at(step)
            yield [(self.epoch, index, divisor) for index in batch[self.slice]]
