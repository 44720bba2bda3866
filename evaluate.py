"""Score checkpoints, show what they see, predict images: a checkpoint knows its data.

python evaluate.py runs/segformer/best.pt
python evaluate.py runs/segformer/best.pt --out report                      # report.html and tables
python evaluate.py runs/unet/best.pt runs/segformer/best.pt --out report    # side by side
python evaluate.py runs/segformer/best.pt --images DIR --out predictions    # images without masks
python evaluate.py runs/segformer/best.pt --export model.onnx    # or .pt2, or a folder
python evaluate.py HF_FOLDER --data DIR                  # a published SegFormer of the same classes
torchrun --nproc_per_node=4 evaluate.py runs/segformer/best.pt
"""

import json
import signal
import sys
import time
import warnings
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image
from torch import nn

from segmentation import distributed
from segmentation.arguments import command_line, evaluation_arguments
from segmentation.checkpoint import tell_seen
from segmentation.data.classes import numbered_classes
from segmentation.data.datasets import SegmentationDataset, open_dataset, reopen_dataset
from segmentation.data.images import read_image
from segmentation.data.names import is_image, list_names, not_read
from segmentation.data.problems import Unreadable
from segmentation.data.splits import choose_scored
from segmentation.errors import BadInput, exit_on_bad_input, writing
from segmentation.evaluation.export import export
from segmentation.evaluation.inference import Prediction, predict_labels
from segmentation.evaluation.scoring import score_split
from segmentation.files import write_atomically
from segmentation.hardware import (
    announce,
    environment,
    hardware_of,
    out_of_memory_is_bad_input,
    prepare,
)
from segmentation.pretrained.files import shorten
from segmentation.pretrained.initial import fit_classes, load_model
from segmentation.report import write_report
from segmentation.report.pictures import (
    Example,
    Picture,
    error_map,
    overlay,
    palette_image,
    thumbnail,
)
from segmentation.report.tables import (
    Entry,
    choose_examples,
    comparison_table,
    format_score,
    format_table,
)
from segmentation.training.frozen import count_parameters

ONE_CLASS = 0.999  # share of an image's pixels beyond which one class is worth a warning


@out_of_memory_is_bad_input("predict in tiles, with --tile 512 or less, or with --amp")
def main() -> None:
    args = evaluation_arguments(__doc__.split("\n\n")[0])
    device = distributed.setup(args.device)
    if args.export is not None:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # and clean up
        if distributed.rank() == 0:
            model, meta = load_model(args.checkpoints[0])
            print(export(model, args.export, meta))
        return
    prepare(device, args.amp)
    announce(device, args.device)
    how = Prediction(args.tile, args.flips, args.amp)
    if args.out:
        with writing("--out", args.out):
            Path(args.out).mkdir(parents=True, exist_ok=True)
    if args.images:
        model, meta = load_model(args.checkpoints[0])
        meta["palette"] = meta["palette"] or numbered_classes(len(meta["classes"])).palette
        predict_folder(model.to(device), meta, Path(args.images), Path(args.out), how)
        return

    # Models and their data
    started = time.monotonic()
    opening = [partial(open_checkpoint, path, args.data, args.split) for path in args.checkpoints]
    models, metas, sets = zip(*map(distributed.first_rank_first, opening), strict=True)
    split = split_of(sets[0], args.split)
    check_comparable(args.checkpoints, sets, split)

    # Scores
    entries = []
    labels = short_names(args.checkpoints)
    runs = zip(args.checkpoints, labels, models, metas, sets, strict=True)
    for path, label, model, meta, data in runs:
        tell_seen(path, meta, data.splits[split])
        scores = score_split(model.to(device), data, split, how, **meta["loss"])
        entries.append(Entry(label, path, count_parameters(model)["total"], meta, scores))
        if distributed.rank() == 0:
            print_scores(scores, split, path)
    if distributed.rank() != 0:
        return

    # What is written
    if len(entries) > 1:
        print(format_table(comparison_table(entries)))
    if args.json:
        write_json(args.json, entries)
    if args.out:
        examples = {}
        for heading, names in choose_examples(entries, args.top).items():
            examples[heading] = [draw_example(name, models, sets, how) for name in names]
        where = f"{sets[0].layout}: {images_of(split, len(sets[0].splits[split]))}"
        facts = facts_of(how, environment(device), time.monotonic() - started)
        with writing("--out", args.out):
            write_report(Path(args.out), entries, examples, where=where, evaluation=facts)
        print(f"report in {Path(args.out) / 'report.html'}")


def open_checkpoint(
    path: str, folder: str | None, split: str | None
) -> tuple[nn.Module, dict, SegmentationDataset]:
    """The model, dict and data of a checkpoint; one that knows no data gets the data's classes.

    BadInput if the data have other classes, or if none are known.
    """
    model, meta = load_model(path)
    wanted = (split,) if split else ()
    if meta["data"]["root"]:
        return model, meta, reopen_dataset(meta, folder, wanted)
    if not folder:
        raise BadInput(
            f"{path} knows no data: say --data DIR to score it, "
            "or --images DIR --out OUT to predict"
        )
    task = "binary" if len(meta["classes"]) == 2 else "multiclass"
    data = open_dataset(folder, task=task, splits=partial(choose_scored, {}, wanted, 0, True))
    model, _, anew = fit_classes(model, meta, data.classes)
    if anew:
        known, found = shorten(meta["classes"], 8), shorten(data.classes, 8)
        if meta["reduced_labels"]:
            known += ", class k being stored value k + 1 (do_reduce_labels)"
        raise BadInput(
            f"{path} knows the classes {known}; {folder} has {found}: "
            "give data whose classes have the same names"
        )
    meta |= {"classes": data.classes, "palette": data.palette, "data": data.describe()}
    return model, meta, data


def write_json(file: str, entries: list[Entry]) -> None:
    """The scores of one checkpoint, or those of several by their paths."""
    by_path = {entry.path: entry.scores for entry in entries}
    content = json.dumps(by_path if len(entries) > 1 else entries[0].scores, indent=1)
    with writing("--json", file):
        write_atomically(file, content)


def split_of(data: SegmentationDataset, asked: str | None) -> str:
    """The split that is scored; says why, if it was not asked for. BadInput where it is empty."""
    [split] = data.splits
    count = len(data.splits[split])
    if not count:
        trained = ": its images were trained on (--fit-all)" if split == "val" else ""
        raise BadInput(
            f"{data.root}: the {split} split is empty{trained}; choose another with --split"
        )
    if not asked and split == "val":
        why = "scores are on val, on which the checkpoint was chosen"
        distributed.say(f"the data set has no test images: {why}")
    if not asked and split == "all":
        distributed.say(f"the checkpoint names none of these {count} images: all are scored")
    if data.skipped:
        more = f" and {len(data.skipped) - 1} more" if data.skipped[1:] else ""
        distributed.say(f"left out: {data.skipped[0]}{more}")
    return split


def images_of(split: str, count: int) -> str:
    return f"{count} images" if split == "all" else f"{count} {split} images"


def check_comparable(paths: list[str], sets: list[SegmentationDataset], split: str) -> None:
    """BadInput unless all score the same classes on the same pixels."""
    first = sets[0]
    for path, data in zip(paths, sets, strict=True):
        if data.classes != first.classes:
            raise BadInput(
                f"{path} has other classes than {paths[0]}: compare checkpoints of the same task"
            )
        same_images = data.splits.get(split) == first.splits[split]
        if not same_images or data.pixel_counts[split] != first.pixel_counts[split]:
            raise BadInput(
                f"{path} has other {split} images than {paths[0]}: "
                "compare checkpoints of the same split, or choose one with --split"
            )


def short_names(paths: list[str]) -> list[str]:
    """Names for columns: the runs' folders, other files' own names; more of the paths if needed."""
    full = [Path(path).resolve() for path in paths]
    runs = [path.parent.name if path.stem in ("best", "last") else path.stem for path in full]
    longer = ["/".join(path.parts[-2:]) for path in full]
    for names in (runs, longer):
        if len(set(names)) == len(paths) and all(names):
            return names
    return paths


def draw_example(
    name: str, models: tuple[nn.Module, ...], sets: list[SegmentationDataset], how: Prediction
) -> Example:
    """The pictures of one image for a report, predicted again: scores keep no prediction."""
    mask, palette = sets[0].mask(name), sets[0].palette
    size = mask.shape[:2]
    largest = max((data.image(name) for data in sets), key=lambda pixels: pixels.size)
    image = thumbnail(Image.fromarray(np.asarray(largest)), size)
    truth = thumbnail(palette_image(np.array(mask), palette), size)
    pictures = [Picture("image", image), Picture("truth", truth)]
    for index, (model, data) in enumerate(zip(models, sets, strict=True)):
        labels, _ = predict_labels(model, data.image(name), size, how)
        prediction = thumbnail(palette_image(labels, palette), size)
        difference = error_map(image, truth, prediction)
        pictures += [
            Picture("prediction", prediction, index),
            Picture("difference", difference, index),
        ]
    return Example(name, pictures)


def facts_of(how: Prediction, machine: dict, seconds: float) -> dict[str, str]:
    """What a report says of this evaluation. machine: its `environment`."""
    tiles = f"tiles of {how.tile}" if how.tile else "whole, very large images in tiles"
    flips = {
        None: "",
        "all": ", averaged over flips",
        "horizontal": ", averaged with their mirror images",
    }
    amp = ", in bfloat16" if how.amp else ""
    return {
        "command": command_line(),
        "images": tiles + flips[how.flips] + amp,
        "hardware": hardware_of(machine),
        "software": f"torch {machine['torch']}, Python {machine['python']}",
        "time": f"{seconds:.0f} s",
    }


def print_scores(scores: dict, split: str, name: str) -> None:
    ious = scores["iou"]
    present = sum(value is not None for value in ious.values())
    rows = {
        "loss": f"{scores['loss']:.4f}   Tversky, one loss over all pixels",
        "mIoU": f"{format_score(scores['miou'])}   of all pixels, "
        f"over {present} of {len(ious)} classes",
        "mPA": format_score(scores["mpa"]),
        "pixel accuracy": format_score(scores["pixel_accuracy"]),
        "fwIoU": f"{format_score(scores['fwiou'])}   "
        "mean IoU, each class weighted by its share of the pixels",
        "image mIoU": f"{format_score(scores['image_miou'])}   "
        "mean over images for each class, then over classes",
        "image mPA": format_score(scores["image_mpa"]),
    }
    print(f"{name} on {images_of(split, len(scores['images']))}")
    for title, text in rows.items():
        print(f"{title:16}{text}")
    classes = [[name, iou, scores["accuracy"][name]] for name, iou in ious.items()]
    print(f"\n{format_table([['class', 'IoU', 'accuracy'], *classes])}\n", flush=True)


def predict_folder(
    model: nn.Module,
    meta: dict,
    images: Path,
    out: Path,
    how: Prediction,
) -> None:
    """Class indices, overlay and confidence of each image as PNG, a printed line for each.

    Each rank takes its share of the images. BadInput at the end if some were bad; the others are
    predicted.
    """
    paths = find_images(images)
    for kind in ("labels", "overlay", "confidence"):
        with writing("--out", out / kind):
            (out / kind).mkdir(parents=True, exist_ok=True)
    anew = "\r\033[K" if sys.stdout.isatty() else ""  # over the line that a terminal shows
    stems = [path.stem for path in paths]
    bad: list[str] = []
    for index in range(distributed.rank(), len(paths), distributed.world_size()):
        path, place = paths[index], f"{index + 1}/{len(paths)}"
        if anew:
            print(f"{anew}{place} {path.name} ...", end="", flush=True)
        try:
            if path.stem in stems[:index]:
                raise Unreadable("has the name of another image but for its ending; rename one")
            line = predict_file(path, out, model, meta, how)
        except Unreadable as reason:
            bad.append(path.name)
            line = f"left out: {path.name} {reason}"
        print(f"{anew}{place} {line}", flush=True)
    bad = distributed.gather(bad)
    if bad:
        raise BadInput(
            f"{images}: {len(bad)} of {len(paths)} images left out: {', '.join(bad)}; "
            "mend or move them"
        )


def find_images(folder: Path) -> list[Path]:
    """The images in a folder; what else lies there is counted aloud."""
    names = list_names(folder)
    found = {name for name in names if is_image(name) and "/" not in name}
    if not found:
        raise BadInput(f"--images {folder} holds no images: give the folder that they are in")
    for sentence in not_read(names, found):
        distributed.say(sentence)
    return [folder / name for name in sorted(found)]


def predict_file(path: Path, out: Path, model: nn.Module, meta: dict, how: Prediction) -> str:
    """Predict one image, write its three PNG files, return a line about it.

    The network sees the image as large as in training. Unreadable if it is no good image.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        image, _ = read_image(path, None)
    trained = meta["data"]["image_size"]
    seen = image.resize(trained[::-1], Image.Resampling.BILINEAR) if trained else image
    size = image.height, image.width
    labels, confidence = predict_labels(model, np.asarray(seen), size, how)
    indexed = palette_image(labels, meta["palette"])
    pictures = {
        "labels": indexed,
        "overlay": overlay(image, indexed),
        "confidence": Image.fromarray(confidence),
    }
    for kind, picture in pictures.items():
        file = out / kind / f"{path.stem}.png"
        level = 6 if kind == "labels" else 1  # what is noisy hardly shrinks, but takes long
        with writing("--out", file):
            picture.save(file, compress_level=level)
    return f"{path.name}  {shares_in_words(labels, meta['classes'])}"


def shares_in_words(labels: np.ndarray, classes: list[str]) -> str:
    """The classes' shares of the pixels, and a warning where nearly all are of one class."""
    shares = np.bincount(labels.ravel(), minlength=len(classes)) / labels.size
    order = [index for index in np.argsort(-shares, kind="stable") if shares[index] >= 0.0005]
    line = ", ".join(f"{classes[i]} {shares[i]:.1%}" for i in order)
    if shares.max() > ONE_CLASS:
        most = classes[shares.argmax()]
        line += f"  warning: {most} is more than {ONE_CLASS:.1%} of the pixels"
    return line


if __name__ == "__main__":
    exit_on_bad_input(main)
