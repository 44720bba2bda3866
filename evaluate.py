"""Score checkpoints, show what they see, predict images: a checkpoint knows its data, its classes and its image size.

python evaluate.py runs/segformer/best.pt
python evaluate.py runs/segformer/best.pt --out report                      # report.html, its pictures and tables
python evaluate.py runs/unet/best.pt runs/segformer/best.pt --out report    # side by side
python evaluate.py runs/segformer/best.pt --images DIR --out predictions    # images without masks
torchrun --nproc_per_node=4 evaluate.py runs/segformer/best.pt
"""

import argparse
import json
import shlex
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from segmentation import distributed
from segmentation.arguments import evaluation_arguments
from segmentation.checkpoint import load_checkpoint
from segmentation.data.datasets import SegmentationDataset, reopen_dataset
from segmentation.errors import BadInput, exit_on_bad_input
from segmentation.evaluation.scoring import score_split
from segmentation.files import write_atomically
from segmentation.folders import make_folder, predict_folder
from segmentation.report import write_report
from segmentation.report.pictures import bounded, difference, palette_image, predict_labels
from segmentation.report.sections import hardware_of
from segmentation.report.tables import Entry, Example, aligned, choose_examples, comparison_table, number
from segmentation.training.run_folder import environment


def main() -> None:
    args = evaluation_arguments(__doc__.split("\n\n")[0])
    device = distributed.setup(args.device)
    if args.out:
        make_folder(Path(args.out))
    if args.images:
        predict_folder(
            args.checkpoints[0], Path(args.images), Path(args.out), tile=args.tile, flips=args.flips, device=device
        )
        return
    started = time.monotonic()
    models, metas = zip(*map(load_checkpoint, args.checkpoints), strict=True)
    sets = [distributed.first_rank_first(partial(reopen_dataset, meta, args.data)) for meta in metas]
    split = choose_split(sets[0], args.split)
    check_comparable(args.checkpoints, sets, split)
    entries = []
    for path, label, model, meta, data in zip(
        args.checkpoints, short_names(args.checkpoints), models, metas, sets, strict=True
    ):
        settings = meta["args"]
        scores = score_split(
            model.to(device),
            data,
            split,
            device=device,
            alpha=settings["alpha"],
            beta=settings["beta"],
            tile=args.tile,
            flips=args.flips,
        )
        parameters = sum(parameter.numel() for parameter in model.parameters())
        entries.append(Entry(label, path, parameters, meta, scores))
        if distributed.rank() == 0:
            print_scores(scores, split, path)
    if distributed.rank() == 0:
        if len(entries) > 1:
            print(aligned(comparison_table(entries)))
        if args.json:
            by_path = {entry.path: entry.scores for entry in entries}
            write_json(Path(args.json), entries[0].scores if len(entries) == 1 else by_path)
        if args.out:
            draw = partial(draw_example, models=models, sets=sets, args=args, device=device)
            examples = {
                heading: [draw(name) for name in names] for heading, names in choose_examples(entries, args.top).items()
            }
            where = f"{sets[0].layout}: {len(sets[0].splits[split])} {split} images"
            evaluation = facts_of(args, device, time.monotonic() - started)
            try:
                write_report(Path(args.out), entries, examples, where=where, evaluation=evaluation)
            except OSError as error:
                raise BadInput(f"--out {args.out} cannot be written ({error.strerror}): choose another") from error
            print(f"report in {Path(args.out) / 'report.html'}")


def choose_split(data: SegmentationDataset, split: str) -> str:
    """The split asked for, or val where the data set has no test images. BadInput where it is empty."""
    if split == "test" and not data.splits["test"]:
        distributed.say("the data set has no test images: scores are on val, which chose the checkpoint")
        split = "val"
    if not data.splits[split]:
        raise BadInput(f"{data.root}: the {split} split is empty: choose another with --split")
    return split


def check_comparable(paths: list[str], sets: list[SegmentationDataset], split: str) -> None:
    """BadInput unless all score the same classes on the same pixels."""
    for path, data in zip(paths, sets, strict=True):
        if data.classes != sets[0].classes:
            raise BadInput(f"{path} has other classes than {paths[0]}: compare checkpoints of the same task")
        images = [(each.splits[split], each.pixel_counts[split]) for each in (data, sets[0])]
        if images[0] != images[1]:
            raise BadInput(f"{path} has other {split} images than {paths[0]}: compare checkpoints of the same split")


def short_names(paths: list[str]) -> list[str]:
    """Names for columns: the runs' folders, other files' own names; more of the paths if these are not enough."""
    full = [Path(path).resolve() for path in paths]
    runs = [path.parent.name if path.stem in ("best", "last") else path.stem for path in full]
    choices = (runs, ["/".join(path.parts[-2:]) for path in full])
    return next((names for names in choices if len(set(names)) == len(paths) and all(names)), list(paths))


def draw_example(
    name: str,
    *,
    models: tuple[nn.Module, ...],
    sets: list[SegmentationDataset],
    args: argparse.Namespace,
    device: torch.device,
) -> Example:
    """The pictures of one image for a report, predicted again: scores keep no prediction."""
    size, palette = sets[0].mask(name).shape[:2], sets[0].palette
    image = max((data.image(name) for data in sets), key=lambda pixels: pixels.size)
    picture = bounded(Image.fromarray(np.asarray(image)), size)
    truth = bounded(palette_image(np.array(sets[0].mask(name)), palette), size)
    predictions = []
    for model, data in zip(models, sets, strict=True):
        labels, _ = predict_labels(model, data.image(name), size, tile=args.tile, flips=args.flips, device=device)
        predictions.append(bounded(palette_image(labels, palette), size))
    return Example(name, picture, truth, predictions, [difference(picture, truth, each) for each in predictions])


def facts_of(args: argparse.Namespace, device: torch.device, seconds: float) -> dict[str, str]:
    machine = environment(device)
    tiles = f"tiles of {args.tile}" if args.tile else "whole, very large images in tiles"
    flips = {False: "", True: ", averaged over flips", "horizontal": ", averaged with their mirror images"}
    return {
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "images": tiles + flips[args.flips],
        "hardware": hardware_of(machine),
        "software": f"torch {machine['torch']}, Python {machine['python']}",
        "time": f"{seconds:.0f} s",
    }


def print_scores(scores: dict, split: str, name: str) -> None:
    present = sum(value is not None for value in scores["iou"].values())
    print(f"{name} on {len(scores['images'])} {split} images")
    print(f"loss            {scores['loss']:.4f}   Tversky, one loss over all pixels")
    print(f"mIoU            {number(scores['miou'])}   of all pixels, over {present} of {len(scores['iou'])} classes")
    print(f"mPA             {number(scores['mpa'])}")
    print(f"pixel accuracy  {number(scores['pixel_accuracy'])}")
    print(f"image mIoU      {number(scores['image_miou'])}   mean over images for each class, then over classes")
    print(f"image mPA       {number(scores['image_mpa'])}")
    classes = [[name, iou, scores["accuracy"][name]] for name, iou in scores["iou"].items()]
    print(f"\n{aligned([['class', 'IoU', 'accuracy'], *classes])}\n", flush=True)


def write_json(path: Path, scores: dict) -> None:
    try:
        write_atomically(path, json.dumps(scores, indent=1).encode())
    except OSError as error:
        raise BadInput(f"--json {path} cannot be written ({error.strerror}): choose another file") from error


if __name__ == "__main__":
    exit_on_bad_input(main)
