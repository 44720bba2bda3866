"""Data sets whose test images look unlike their training images: recipes are chosen on these.

    python tests/benchmarks/unseen.py --camvid DIR --drone DIR --out DIR

CamVid's own val is the drive that most of train is from. Here each of three drives is the test set
once, with the others to train on: OUT/0001TP, OUT/0006R0, OUT/0016E5. val is the last eighth, by
name, of each of the others. The drone set, whose names follow the flight, is cut into blocks by
name: OUT/drone, 5/8 train, 1/8 val, 2/8 test. Images are links; the drone masks are written anew,
in five classes.
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from segmentation.data.datasets import open_dataset

DRIVES = ("0001TP", "0006R0", "0016E5")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    for name in ("camvid", "drone", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    args = parser.parse_args()
    for drive in DRIVES:
        hold_out_drive(args.camvid, drive, args.out / drive)
    cut_into_blocks(args.drone, args.out / "drone")


def hold_out_drive(camvid: Path, held_out: str, out: Path) -> None:
    """CamVid's layout: one drive is test, the others are train and val."""
    images = sorted([*camvid.glob("train/*.png"), *camvid.glob("val/*.png")], key=lambda p: p.name)
    for drive in DRIVES:
        of_drive = [image for image in images if image.name.startswith(drive)]
        last = len(of_drive) - len(of_drive) // 8
        for number, image in enumerate(of_drive):
            split = "test" if drive == held_out else "train" if number < last else "val"
            mask = image.parent.with_name(f"{image.parent.name}annot") / image.name
            link(image, out / split / image.name)
            link(mask, out / f"{split}annot" / image.name)


def cut_into_blocks(drone: Path, out: Path) -> None:
    """The generic layout: blocks of names."""
    data = open_dataset(str(drone), task="multiclass", seed=0)
    names = sorted(data.pairs)
    bounds = {"train": (0, 5), "val": (5, 6), "test": (6, 8)}
    for split, (first, last) in bounds.items():
        for name in names[len(names) * first // 8 : len(names) * last // 8]:
            image = drone / name
            link(image, out / split / "images" / image.name)
            mask = out / split / "masks" / f"{image.stem}.png"
            mask.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.asarray(data.mask(name))).save(mask)
    rows = [
        ",".join(map(str, (index, name, *colour)))
        for index, (name, colour) in enumerate(zip(data.classes, data.palette, strict=True))
    ]
    (out / "classes.csv").write_text("\n".join(rows) + "\n")


def link(file: Path, to: Path) -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    to.unlink(missing_ok=True)
    to.symlink_to(file.resolve())


if __name__ == "__main__":
    main()
