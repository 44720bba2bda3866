"""The UFormer: a weighted average of a U-Net and a SegFormer, or of other checkpoints.

python ensemble.py runs/unet/best.pt runs/segformer/best.pt              # weights found on val
python ensemble.py runs/unet/best.pt runs/segformer/best.pt --weights 0.5 0.5 --out uformer.pt
torchrun --nproc_per_node=4 ensemble.py runs/unet/best.pt runs/segformer/best.pt --per-class

Weights are fitted on val and the scores are those of test. A data set without test images has its
val cut in two: each half is scored with the weights fitted on the other.
"""

from datetime import timedelta
from pathlib import Path

import torch
from torch import Tensor, nn

from segmentation import distributed
from segmentation.arguments import command_line, ensemble_arguments
from segmentation.checkpoint import save_checkpoint, tell_seen
from segmentation.data.datasets import SegmentationDataset, reopen_dataset
from segmentation.errors import BadInput, exit_on_bad_input, writing
from segmentation.evaluation.inference import Prediction, device_of
from segmentation.evaluation.scoring import Table, score_split, score_table, scores_of
from segmentation.evaluation.weight_search import RESAMPLES, Fit, fit_weights, gain_interval
from segmentation.hardware import announce, out_of_memory_is_bad_input, prepare
from segmentation.models.uformer import UFormer
from segmentation.pretrained.initial import load_model
from segmentation.report.tables import format_table
from segmentation.training.frozen import count_parameters

Metas = tuple[dict, ...]  # of each member what its checkpoint holds beside the weights
# What is kept of a member's checkpoint: a report of the UFormer says how it was trained.
OF_MEMBERS = ("config", "args", "command", "epoch", "encoder_weights", "environment", "seconds")


@out_of_memory_is_bad_input("predict in tiles, with --tile 512 or less, or with --amp")
def main() -> None:
    args = ensemble_arguments(__doc__.split("\n\n")[0])
    device = distributed.setup(args.device)
    prepare(device, args.amp)
    announce(device, args.device)
    how = Prediction(args.tile, args.flips, args.amp)

    # Members and their data
    models, metas = zip(*map(load_model, args.checkpoints), strict=True)
    check_members(args.checkpoints, metas, args.data)
    if args.out:
        distributed.first_rank_first(lambda: check_out(Path(args.out), args.checkpoints))
    data = distributed.first_rank_first(
        lambda: reopen_dataset(metas[0], args.data, ("val", "test"))
    )
    members = [model.to(device) for model in models]
    loss = metas[0]["loss"]
    if any(meta["loss"] != loss for meta in metas):
        numbers = f"alpha {loss['alpha']}, beta {loss['beta']}"
        distributed.say(f"all losses are those of the first: {numbers}")

    # Weights
    folds: list[list[str]] = []
    fits: list[Fit] = []
    if not data.splits["val"] and not args.weights:
        if args.search or args.per_class or not data.splits["test"]:
            raise BadInput(
                f"{data.root}: no val images are left to find weights on (--fit-all): "
                "give --weights, and data with test images"
            )
        distributed.say("no val images are left to find weights on: they are equal")
        args.weights = [1.0] * len(members)
    if not args.weights:
        folds = folds_of(data)
        fits = fit_weights(members, data, folds, how, per_class=args.per_class)
    average = mix(members, args.weights or fits[0].weights)
    val_scores = score_split(average, data, "val", how, **loss)
    # The search averages at mask resolution, UFormer at network resolution. If the average loses to
    # a member at the latter, fall back to that member.
    if fits and (val_scores["miou"] or 0.0) < max(fits[0].members):
        average = mix(members, fits[0].best_member())
        val_scores = score_split(average, data, "val", how, **loss)

    # Scores
    split = "test" if data.splits["test"] else "val"
    names = sorted(data.splits[split])
    for file, meta in zip(args.checkpoints, metas, strict=True):
        tell_seen(file, meta, names)
    tables = [score_table(member, data, names, split, how) for member in members]
    scored = [(average, names)]
    if len(folds) > 1:  # each half is scored with the weights fitted on the other
        first, second = (mix(members, fit.weights) for fit in fits[1:])
        scored = [(second, folds[1]), (first, folds[2])]
    parts = [score_table(model, data, part, split, how) for model, part in scored]
    matrices, sums = zip(*parts, strict=True)
    tables.append((torch.cat(matrices), torch.cat(sums)))
    scores = [scores_of(table, names, data.classes, **loss) for table in tables]
    if distributed.rank() != 0:
        return

    # What is printed and written
    labels = [*member_labels(metas), "UFormer"]
    checkpoint = describe_average(average, val_scores, data, metas, vars(args))
    images = len(data.splits["val"])
    if split == "val":
        why = "scores are on val, on which the members' checkpoints were chosen"
        if fits:
            why = f"each half of the {images} of val is scored with the weights fitted on the other"
        print(f"no test images: {why}")
    print_table([*metas, checkpoint], scores, labels, split)
    print_classes(average.weights, scores, labels)
    if fits:
        alone = ", ".join(map("{} {:.4f}".format, labels, fits[0].members))
        there = f"mIoU {val_scores['miou']:.4f} there; {alone}"
        print(f"weights fitted on {images} val images: {there}")
    print_gain(tables, scores, labels)
    if args.out:
        with writing("--out", args.out):
            save_checkpoint(args.out, checkpoint)
        print(f"written: {args.out}")


def folds_of(data: SegmentationDataset) -> list[list[str]]:
    """Images to fit weights on: val, and each half of it where there are no test images.

    BadInput if one is empty.
    """
    # Sorted: in a video neighbours look alike, so the halves are not interleaved.
    names = sorted(data.splits["val"])
    middle = len(names) // 2
    folds = [names] if data.splits["test"] else [names, names[:middle], names[middle:]]
    if not all(folds):
        raise BadInput(
            f"{data.root}: {len(names)} val images are too few to fit weights on: give --weights"
        )
    return folds


def mix(members: list[nn.Module], weights: Tensor | list[float]) -> UFormer:
    """The average, on the device of its members."""
    return UFormer(*members, weights=weights).to(device_of(members[0]))


def check_members(
    files: list[str],
    metas: Metas,
    folder: str | None,
) -> None:
    """BadInput unless all checkpoints know the same classes, and the same images in one size.

    folder: where the data lie now, if that was given: members may have found them elsewhere.
    """
    first = metas[0]
    keys = ["task", "label_map", "splits"]
    if first["data"]["root"] == "scenes":
        keys.append("seed")
    if not folder:
        keys.append("root")
    for file, meta in zip(files, metas, strict=True):
        both = f"{files[0]} and {file}"
        if not meta["data"]["root"]:
            raise BadInput(f"{file} knows no data: give checkpoints as train.py writes them")
        if meta["classes"] != first["classes"]:
            known, other = (", ".join(each["classes"]) for each in (first, meta))
            raise BadInput(
                f"{files[0]} knows {known}, but {file} {other}: "
                "give checkpoints of the same classes"
            )
        sizes = [m["data"]["image_size"] for m in (first, meta)]
        if sizes[0] != sizes[1]:
            words = ["{} x {}".format(*size) if size else "the images' own size" for size in sizes]
            raise BadInput(
                f"{both} were trained at {' and '.join(words)}: "
                "train both with the same --image-size"
            )
        differ = [key for key in keys if meta["data"][key] != first["data"][key]]
        if differ == ["root"]:
            roots = f"{first['data']['root']} and {meta['data']['root']}"
            raise BadInput(f"{both} had their data in {roots}: say with --data where they lie now")
        if differ:
            raise BadInput(
                f"{both} differ in the data's {', '.join(differ)}, so one may have trained on what "
                "the other is scored on: train both with the same --data, --task, --label-map, "
                "--seed and --fit-all"
            )


def check_out(out: Path, files: list[str]) -> None:
    """BadInput if the file cannot be written, or would replace a member."""
    is_member = out.resolve() in [Path(file).resolve() for file in files]
    if out.is_dir() or is_member:
        kind = "a member" if is_member else "a folder"
        raise BadInput(f"--out {out} is {kind}: give another file")
    with writing("--out", out):
        out.parent.mkdir(parents=True, exist_ok=True)


def member_labels(metas: Metas) -> list[str]:
    """Short names of the members, numbered where a model comes twice."""
    models = [meta["config"]["model"] for meta in metas]
    return [
        f"{model} {models[:index].count(model) + 1}" if models.count(model) > 1 else model
        for index, model in enumerate(models)
    ]


def gpus(environment: dict) -> int:
    return environment["ranks"] if environment["device"] == "cuda" else 0


def describe_average(
    average: UFormer,
    scores: dict,
    data: SegmentationDataset,
    metas: Metas,
    args: dict,
) -> dict:
    """The checkpoint of the average of the models at args["checkpoints"]. scores: of val."""
    members = []
    known, first = data.describe(), metas[0]["data"]  # train is not opened here
    sources = zip(member_labels(metas), args["checkpoints"], average.members, metas, strict=True)
    for label, path, model, meta in sources:
        facts = {"label": label, "path": path, "parameters": count_parameters(model)["total"]}
        members.append(facts | {key: meta[key] for key in OF_MEMBERS})
    return {
        "model": average.state_dict(),
        "config": {
            "model": "uformer",
            "members": [meta["config"] for meta in metas],
            "weights": average.weights.tolist(),
        },
        "classes": data.classes,
        "palette": data.palette,
        "data": known | {key: first.get(key, {}) | known[key] for key in ("splits", "pixels")},
        "loss": metas[0]["loss"],
        "epoch": 0,
        "history": [],
        "scores": scores,
        "args": args | {"model": "uformer"},
        "environment": max((meta["environment"] for meta in metas), key=gpus),
        "seconds": sum(meta["seconds"] for meta in metas),
        "encoder_weights": {"members": [meta["encoder_weights"] for meta in metas]},
        "command": command_line(),
        "members": members,
    }


def print_table(
    runs: list[dict],
    scores: list[dict],
    labels: list[str],
    split: str,
) -> None:
    """The deck's table: model, loss, mIoU, mPA, GPUs, training time."""
    rows = [["model", f"{split} loss", f"{split} mIoU", f"{split} mPA", "GPUs", "training time"]]
    for label, run, row in zip(labels, runs, scores, strict=True):
        time = str(timedelta(seconds=round(run["seconds"])))
        count = str(gpus(run["environment"]))
        rows.append([label, row["loss"], row["miou"], row["mpa"], count, time])
    print(f"\n{format_table(rows)}")


def print_classes(
    weights: Tensor,
    scores: list[dict],
    labels: list[str],
) -> None:
    """One row per class: the IoU of each model, then the weight of each member."""
    rows = [["class IoU", *labels, *(f"{label} weight" for label in labels[:-1])]]
    classes = scores[0]["iou"]
    columns = weights.expand(-1, len(classes)).T.tolist()
    for name, shares in zip(classes, columns, strict=True):
        ious = [row["iou"][name] for row in scores]
        rows.append([name, *ious, *map("{:.3f}".format, shares)])
    print(f"\n{format_table(rows)}\n")


def print_gain(
    tables: list[Table],
    scores: list[dict],
    labels: list[str],
) -> None:
    """The gain in mIoU over the best member on these images, and whether chance explains it."""
    *members, average = [matrices for matrices, _ in tables]
    best = max(range(len(members)), key=lambda m: scores[m]["miou"] or 0.0)
    gain, low, high = gain_interval(average, members[best])
    verdict = "a gain" if low > 0 else "a loss" if high < 0 else "no gain: the interval covers zero"
    print(
        f"mIoU {gain:+.4f} over {labels[best]}, the best member; "
        f"95 % interval {low:+.4f} to {high:+.4f} "
        f"(paired bootstrap, {RESAMPLES:,} resamples of {len(average)} images): {verdict}"
    )


if __name__ == "__main__":
    exit_on_bad_input(main)
