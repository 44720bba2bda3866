"""Which images are trained on, validated and scored: new splits, or those of a checkpoint."""

import numpy as np

from ..errors import BadInput
from .layouts import Layout, Splits
from .names import SPLITS
from .problems import listing


def new_splits(root: str, layout: Layout, seed: int) -> Splits:
    """Those of the folder; val is drawn from train where it is missing, all where none is given.

    BadInput where there is no train, or nothing to draw from.
    """
    if len(layout.pairs) < 2:
        alone = "a single pair cannot be split into train and val: add images"
        raise BadInput(
            listing(f"{root}: {len(layout.pairs)} images with a mask", layout.problems or [alone])
        )
    train, val, test = (layout.splits[split] for split in SPLITS)
    if not val and not test:
        return split_names(train or list(layout.pairs), seed)
    if not train:
        raise BadInput(
            f"{root}: no image of train has a mask, and {layout.masks}/ is val or test by its "
            "name: add train, or give --data the folder inside"
        )
    if not val:
        train, val = _shuffled(train, seed)
    return {"train": train, "val": val, "test": test}


def split_names(names: list[str], seed: int) -> Splits:
    """Of the sorted names the last eighth is test; the rest, shuffled, is 80 % train, 20 % val."""
    ordered = sorted(names)
    rest = len(ordered) - len(ordered) // 8
    train, val = _shuffled(ordered[:rest], seed)
    return {"train": train, "val": val, "test": ordered[rest:]}


def _shuffled(names: list[str], seed: int) -> tuple[list[str], list[str]]:
    """Four fifths of the names, and the rest."""
    shuffled = np.random.default_rng(seed).permutation(names).tolist()
    train = len(names) * 4 // 5
    return sorted(shuffled[:train]), sorted(shuffled[train:])


def choose_scored(
    stored: Splits, wanted: tuple[str, ...], seed: int, elsewhere: bool, layout: Layout
) -> Splits:
    """What an evaluation reads, one split or more, or "all".

    stored: a checkpoint's splits; {} where it was trained on no data known here. wanted: splits, or
    "all"; (): all of another set, else test, or val where there is no test. seed: draws the splits
    of another set that gives none. elsewhere: whether this may be another set, which it is if it
    has none of the stored images.
    """
    known = {name for names in stored.values() for name in names}
    strange = [name for name in layout.pairs if name not in known]
    another = elsewhere and len(strange) == len(layout.pairs)
    if wanted == ("all",) or (another and not wanted):
        return {"all": list(layout.pairs)}
    splits = dict(stored)
    if another:
        given = any(layout.splits.values())
        splits = layout.splits if given else split_names(strange, seed)
    elif not stored["test"]:  # the folder may have one that was not there in training
        splits["test"] = sorted({*layout.splits["test"]} & {*strange})
    wanted = wanted or ("test" if splits["test"] else "val",)
    return {split: splits[split] for split in wanted}


def check_present(root: str, layout: Layout, splits: Splits) -> None:
    """BadInput if images of the splits are not in the folder, or have no mask there."""
    gone = [
        f"{name}: in the stored {split} split"
        for split, names in splits.items()
        for name in names
        if name not in layout.pairs
    ]
    if gone:
        title = f"{root}: {len(gone)} images of the stored splits have no pair there"
        way = "copy them there; evaluate.py --split all scores what is there"
        raise BadInput(listing(f"{title}: {way}", gone))
