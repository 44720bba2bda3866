"""Score a checkpoint: it knows its data, its classes and its image size.

python evaluate.py runs/segformer/best.pt
python evaluate.py runs/segformer/best.pt --split val --json scores.json
torchrun --nproc_per_node=4 evaluate.py runs/segformer/best.pt
"""

import json
from pathlib import Path

from segmentation import distributed
from segmentation.checkpoint import load_checkpoint, write_atomically
from segmentation.datasets import SegmentationDataset, reopen_dataset
from segmentation.errors import BadInput, exit_on_bad_input
from segmentation.flags import evaluation_arguments
from segmentation.scoring import score_split


def main() -> None:
    args = evaluation_arguments(__doc__.split("\n\n")[0])
    device = distributed.setup(args.device)
    model, meta = load_checkpoint(args.checkpoint)
    data = distributed.first_rank_first(lambda: reopen_dataset(meta, args.data))
    split = choose_split(data, args.split)
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
    if distributed.rank() == 0:
        print_scores(scores, split, args.checkpoint)
        if args.json:
            write_json(Path(args.json), scores)


def choose_split(data: SegmentationDataset, split: str) -> str:
    """The split asked for, or val where the data set has no test images. BadInput where it is empty."""
    if split == "test" and not data.splits["test"]:
        distributed.say("the data set has no test images: scores are on val, which chose the checkpoint")
        split = "val"
    if not data.splits[split]:
        raise BadInput(f"{data.root}: the {split} split is empty: choose another with --split")
    return split


def print_scores(scores: dict, split: str, name: str) -> None:
    present = sum(value is not None for value in scores["iou"].values())
    print(f"{name} on {len(scores['images'])} {split} images")
    print(f"loss            {scores['loss']:.4f}   Tversky, one loss over all pixels")
    print(f"mIoU            {number(scores['miou'])}   of all pixels, over {present} of {len(scores['iou'])} classes")
    print(f"mPA             {number(scores['mpa'])}")
    print(f"pixel accuracy  {number(scores['pixel_accuracy'])}")
    print(f"image mIoU      {number(scores['image_miou'])}   mean over images for each class, then over classes")
    print(f"image mPA       {number(scores['image_mpa'])}")
    width = max(map(len, scores["iou"]))
    print(f"\n{'class':{width}}  IoU     accuracy")
    for name, iou in scores["iou"].items():
        print(f"{name:{width}}  {number(iou)}  {number(scores['accuracy'][name])}")


def number(value: float | None) -> str:
    return "absent" if value is None else f"{value:.4f}"


def write_json(path: Path, scores: dict) -> None:
    try:
        write_atomically(path, json.dumps(scores, indent=1).encode())
    except OSError as error:
        raise BadInput(f"--json {path} cannot be written ({error.strerror}): choose another file") from error


if __name__ == "__main__":
    exit_on_bad_input(main)
