"""The UFormer: a weighted average of a U-Net and a SegFormer, or of any checkpoints of the same data and classes.

    python ensemble.py runs/unet/best.pt runs/segformer/best.pt                        # weights found on val
    python ensemble.py runs/unet/best.pt runs/segformer/best.pt --weights 0.5 0.5 --out runs/uformer.pt
    torchrun --nproc_per_node=4 ensemble.py runs/unet/best.pt runs/segformer/best.pt --per-class

Weights are fitted on val and the scores are those of test. A data set without test images has its val cut in two: each
half is scored with the weights fitted on the other.
"""

import shlex
import sys
from datetime import timedelta
from pathlib import Path

import torch
from torch import Tensor, nn

from segmentation import distributed
from segmentation.arguments import ensemble_arguments
from segmentation.checkpoint import load_checkpoint, save_checkpoint
from segmentation.data.datasets import SegmentationDataset, reopen_dataset
from segmentation.errors import BadInput, exit_on_bad_input
from segmentation.evaluation.inference import Flips
from segmentation.evaluation.scoring import score_image, score_split, scores_of
from segmentation.evaluation.weight_search import RESAMPLES, Fit, fit_weights, gain_interval
from segmentation.models.uformer import UFormer
from segmentation.report.tables import format_table

Table = tuple[Tensor, Tensor]  # of N images: confusion matrices N x K x K and Tversky sums N x 3 x K


def main() -> None:
    args = ensemble_arguments(__doc__.split("\n\n")[0])
    device = distributed.setup(args.device)
    models, metas = zip(*map(load_checkpoint, args.checkpoints), strict=True)
    check_members(args.checkpoints, metas, args.data)
    if args.out:
        distributed.first_rank_first(lambda: check_out(Path(args.out), args.checkpoints))
    data = distributed.first_rank_first(lambda: reopen_dataset(metas[0], args.data))
    members = [model.to(device) for model in models]
    how = {"device": device, "tile": args.tile, "flips": args.flips}
    loss = {name: metas[0]["args"][name] for name in ("alpha", "beta")}
    if any(meta["args"][name] != value for meta in metas for name, value in loss.items()):
        distributed.say(f"all losses are those of the first: alpha {loss['alpha']}, beta {loss['beta']}")

    # Weights
    val, test = data.splits["val"], data.splits["test"]
    ordered = sorted(val)  # halves are not shuffled: neighbours by name may look alike, as in a video
    halves = [ordered[: len(val) // 2], ordered[len(val) // 2 :]]
    fits: list[Fit] = []
    trials = [torch.tensor(args.weights)] if args.weights else []
    if not args.weights:
        if not (val if test else halves[0]):
            raise BadInput(f"{data.root}: {len(val)} val images are too few to fit weights on: give --weights")
        fits = fit_weights(members, data, [val] if test else [val, *halves], per_class=args.per_class, **how)
        # The search averages at the masks' size, a UFormer at the size the networks see: should it lose there, a member
        trials = [fits[0].weights, fits[0].best_member()]
    for weights in trials:
        average = UFormer(*members, weights=weights).to(device)
        val_scores = score_split(average, data, "val", **how, **loss)
        if not fits or (val_scores["miou"] or 0.0) >= max(fits[0].members):
            break

    # Scores
    names, split = (test, "test") if test else (ordered, "val")
    tables = [score_table(member, data, names, **how) for member in members]
    if test or not fits:
        tables.append(score_table(average, data, names, **how))
    else:
        others = [UFormer(*members, weights=fit.weights).to(device) for fit in fits[:0:-1]]
        parts = [score_table(model, data, half, **how) for model, half in zip(others, halves, strict=True)]
        tables.append((torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])))
    scores = [scores_of(*table, names, data.classes, **loss) for table in tables]
    if distributed.rank() != 0:
        return

    labels = [*member_labels(metas), "UFormer"]
    if not test:
        print(
            f"no test images: each half of the {len(val)} of val is scored with the weights fitted on the other"
            if fits
            else "no test images: scores are on val, which chose the members' checkpoints"
        )
    trained = {
        "environment": max((meta["environment"] for meta in metas), key=gpus),
        "seconds": sum(meta["seconds"] for meta in metas),
        "encoder_weights": {"members": [meta["encoder_weights"] for meta in metas]},
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "members": [describe_member(*each) for each in zip(labels[:-1], args.checkpoints, models, metas, strict=True)],
    }
    print_table([*metas, trained], scores, labels, split)
    print_classes(average.weights, scores, labels)
    if fits:
        own = ", ".join(f"{label} {miou:.4f}" for label, miou in zip(labels, fits[0].members, strict=False))
        print(f"weights fitted on {len(val)} val images: mIoU {val_scores['miou']:.4f} there; {own}")
    print_gain(tables, scores, labels)
    if args.out:
        config = {"model": "uformer", "members": [m["config"] for m in metas], "weights": average.weights.tolist()}
        about = {"config": config, "classes": data.classes, "palette": data.palette, "data": data.describe()}
        state = {"model": average.state_dict(), "epoch": 0, "history": [], "scores": val_scores}
        save(Path(args.out), state | about | trained | {"args": vars(args) | {"model": "uformer"} | loss})


def check_members(files: list[str], metas: tuple[dict, ...], folder: str | None) -> None:
    """BadInput unless all checkpoints know the same classes, and the same images in the same splits and size.

    folder: where the data lie now, if that was given: the members may then have found them in different places.
    """
    first = metas[0]
    for file, meta in zip(files[1:], metas[1:], strict=True):
        if meta["classes"] != first["classes"]:
            known, other = (", ".join(m["classes"]) for m in (first, meta))
            raise BadInput(f"{files[0]} knows {known}, but {file} {other}: give checkpoints of the same classes")
        sizes = [m["data"]["image_size"] for m in (first, meta)]
        if sizes[0] != sizes[1]:
            seen = " and ".join("the images' own size" if s is None else "{} x {}".format(*s) for s in sizes)
            raise BadInput(f"{files[0]} and {file} were trained at {seen}: train both with the same --image-size")
        keys = ["task", "label_map", "splits"]
        keys += ["seed"] if first["data"]["root"] == "scenes" else []
        keys += [] if folder else ["root"]
        differ = [key for key in keys if meta["data"][key] != first["data"][key]]
        if differ == ["root"]:
            roots = f"{first['data']['root']} and {meta['data']['root']}"
            raise BadInput(f"{files[0]} and {file} had their data in {roots}: say with --data where they lie now")
        if differ:
            raise BadInput(
                f"{files[0]} and {file} differ in the data's {', '.join(differ)}, so one may have trained on what the "
                "other is scored on: train both with the same --data, --task, --label-map and --seed"
            )


def check_out(out: Path, files: list[str]) -> None:
    """BadInput if the file cannot be written, or would replace a member."""
    if out.is_dir() or out.resolve() in [Path(file).resolve() for file in files]:
        raise BadInput(f"--out {out} is {'a folder' if out.is_dir() else 'a member'}: give another file")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"--out {out} cannot be written ({error.strerror}): choose another file") from error


def score_table(
    model: nn.Module,
    data: SegmentationDataset,
    names: list[str],
    *,
    device: torch.device,
    tile: int | None,
    flips: Flips,
) -> Table:
    """What evaluate.py counts of each image, the images shared out over ranks; all ranks get the whole table."""
    K = len(data.classes)
    matrices = torch.zeros(len(names), K, K, dtype=torch.int64)
    sums = torch.zeros(len(names), 3, K, dtype=torch.float64)
    for i in range(distributed.rank(), len(names), distributed.world_size()):
        matrices[i], sums[i] = score_image(model, data, names[i], device=device, tile=tile, flips=flips, amp=False)
    return distributed.all_reduce_sum(matrices), distributed.all_reduce_sum(sums)


def member_labels(metas: tuple[dict, ...]) -> list[str]:
    """Short names of the members, numbered where a model comes twice."""
    models = [meta["config"]["model"] for meta in metas]
    return [f"{m} {models[:i].count(m) + 1}" if models.count(m) > 1 else m for i, m in enumerate(models)]


def describe_member(label: str, path: str, model: nn.Module, meta: dict) -> dict:
    """What a report of the UFormer says about how a member was trained."""
    kept = ("config", "args", "command", "epoch", "encoder_weights", "environment", "seconds")
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return {"label": label, "path": path, "parameters": parameters} | {key: meta[key] for key in kept}


def gpus(trained_in: dict) -> int:
    return trained_in["ranks"] if trained_in["device"] == "cuda" else 0


def print_table(runs: list[dict], scores: list[dict], labels: list[str], split: str) -> None:
    rows = [["model", f"{split} loss", f"{split} mIoU", f"{split} mPA", "GPUs", "training time"]]
    for label, run, row in zip(labels, runs, scores, strict=True):
        time = str(timedelta(seconds=round(run["seconds"])))
        rows.append([label, row["loss"], row["miou"], row["mpa"], str(gpus(run["environment"])), time])
    print(f"\n{format_table(rows)}")


def print_classes(weights: Tensor, scores: list[dict], labels: list[str]) -> None:
    """A row a class: the IoU of each model, then the weight of each member (in every row the same if there is one)."""
    rows = [["class IoU", *labels, *(f"{label} weight" for label in labels[:-1])]]
    columns = weights.expand(-1, len(scores[0]["iou"])).T.tolist()
    for name, shares in zip(scores[0]["iou"], columns, strict=True):
        rows.append([name, *(row["iou"][name] for row in scores), *(f"{share:.3f}" for share in shares)])
    print(f"\n{format_table(rows)}\n")


def print_gain(tables: list[Table], scores: list[dict], labels: list[str]) -> None:
    """The UFormer's gain in mIoU over the member that is best on these very images, and whether chance explains it."""
    best = max(range(len(tables) - 1), key=lambda m: scores[m]["miou"] or 0.0)
    gain, low, high = gain_interval(tables[-1][0], tables[best][0])
    verdict = "a gain" if low > 0 else "a loss" if high < 0 else "no gain: the interval covers zero"
    print(
        f"mIoU {gain:+.4f} over {labels[best]}, the best member; 95 % interval {low:+.4f} to {high:+.4f} "
        f"(paired bootstrap, {RESAMPLES:,} resamples of {len(tables[-1][0])} images): {verdict}"
    )


def save(out: Path, checkpoint: dict) -> None:
    try:
        save_checkpoint(out, checkpoint)
    except OSError as error:
        raise BadInput(f"--out {out} cannot be written ({error.strerror}): choose another file") from error
    print(f"written: {out}")


if __name__ == "__main__":
    exit_on_bad_input(main)
