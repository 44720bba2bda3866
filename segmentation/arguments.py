"""The command line of the scripts: one set of words, their types and their defaults."""

import argparse
import math
import os
from typing import Any

from .data.labels import parse_label_map
from .errors import BadInput
from .models.mix_transformer import VARIANTS
from .models.segformer import DECODERS

# What differs for the built-in scenes: nothing to download, and epochs that fit five minutes on two cores.
SCENES_DEFAULTS = {"encoder_weights": "none", "epochs": 24, "batch_size": 8, "augment": 120, "max_minutes": 5.0}

# What differs for --recipe fast: it ends with the minutes or the epochs, whichever come first, and its epochs are long,
# as early samples are small and validation is not. Convolutions learn from smaller batches and larger steps.
FAST_DEFAULTS: dict[str, Any] = {"epochs": 1000, "batch_size": 16, "lr": 2e-3, "augment": 3000}
FAST_DEFAULTS |= {"coarse": [0.4, 0.8], "sizes": [0.76, 1.32]}
FAST_UNET = {"batch_size": 8, "lr": 4e-3}


def parser_for(description: str, epilog: str | None = None) -> argparse.ArgumentParser:
    """An argparse parser whose help shows defaults and fits a terminal."""

    def formatter(prog: str) -> argparse.HelpFormatter:
        return argparse.ArgumentDefaultsHelpFormatter(prog, max_help_position=34, width=110)

    return argparse.ArgumentParser(description=description, epilog=epilog, formatter_class=formatter)


def training_arguments(description: str) -> argparse.Namespace:
    """Parse train.py's command line. Exits with 2 and argparse's message where it is wrong."""
    scenes, fast, unet = (
        ", ".join(f"--{k.replace('_', '-')} {str(v).strip('[]').replace(',', '')}" for k, v in defaults.items())
        for defaults in (SCENES_DEFAULTS, FAST_DEFAULTS, FAST_UNET)
    )
    fast = f"For --recipe fast: {fast}; with --model unet: {unet}."
    parser = parser_for(description, epilog=f"Defaults for the built-in scenes: {scenes}. {fast}")

    model = parser.add_argument_group("model")
    model.add_argument("--model", choices=["segformer", "unet", "uformer"], default="segformer", help="what to train")
    model.add_argument("--variant", choices=list(VARIANTS), default="b0", help="SegFormer's encoder")
    model.add_argument("--decoder", choices=list(DECODERS), default="conv", help="SegFormer's: ours or the paper's")
    model.add_argument("--drop-path", type=share, default=0.0, metavar="P", help="stochastic depth; the paper's 0.1")
    model.add_argument("--dropout", type=share, default=0.0, metavar="P", help="before SegFormer's logits; paper: 0.1")
    model.add_argument("--init", nargs="+", metavar="FILE", help="start from checkpoints; uformer: one a member")
    model.add_argument("--encoder-weights", default="imagenet", metavar="W", help="imagenet, none, or a file")
    model.add_argument("--freeze-encoder", action="store_true", help="train the decoder alone")
    model.add_argument("--freeze-members", action="store_true", help="uformer: train the mixing weights alone")

    data = parser.add_argument_group("data")
    data.add_argument("--data", default="scenes", help="scenes (built in) or a folder of images and masks")
    data.add_argument("--task", choices=["multiclass", "binary"], default="multiclass", help="binary: two classes")
    data.add_argument("--label-map", type=label_map, metavar="A=B,...", help="mask values to labels, as 255=1")
    data.add_argument("--skip-bad", action="store_true", help="leave bad pairs out instead of stopping")
    data.add_argument("--image-size", type=positive, nargs=2, metavar=("H", "W"), help="resize images to this")
    data.add_argument("--crop", type=positive, nargs=2, metavar=("H", "W"), help="train on random windows")
    data.add_argument("--augment", type=natural, default=600, metavar="N", help="extra augmented samples an epoch")
    data.add_argument("--workers", type=natural, default=1, metavar="N", help="processes that prepare samples")

    recipe = parser.add_argument_group("recipe")
    how = "deck: Adam, Tversky loss; fast: AdamW, warm-up and decay, Tversky + cross entropy, small samples at first"
    recipe.add_argument("--recipe", choices=["deck", "fast"], default="deck", help=how)
    recipe.add_argument("--epochs", type=positive, default=50, metavar="N", help="times through the samples")
    recipe.add_argument("--batch-size", type=positive, default=32, metavar="N", help="of all ranks together")
    recipe.add_argument("--lr", type=positive_float, default=1e-3, help="Adam's, divided by 10 on a plateau")
    recipe.add_argument("--alpha", type=weight, default=0.3, help="Tversky's weight of false positives")
    recipe.add_argument("--beta", type=weight, default=0.7, help="Tversky's weight of false negatives")
    coarse = "shares of the training after which samples of a quarter of the size, then of half of it, end"
    recipe.add_argument("--coarse", type=share, nargs=2, default=[0.0, 0.0], metavar=("Q", "H"), help=coarse)
    sizes = "range of the samples' scale, fast alone"
    recipe.add_argument("--sizes", type=positive_float, nargs=2, metavar=("LOW", "HIGH"), help=sizes)
    recipe.add_argument("--amp", action="store_true", help="bfloat16 autocast")
    recipe.add_argument("--compile", action="store_true", help="torch.compile")
    recipe.add_argument("--seed", type=natural, default=0, help="of weights, order and samples")
    minutes = "end after so long, the learning rate falling to 0; such a run cannot resume bit for bit; 0: no limit"
    recipe.add_argument("--max-minutes", type=weight, default=0, metavar="M", help=minutes)

    run = parser.add_argument_group("run")
    run.add_argument("--out", metavar="DIR", help="the run's folder (default: runs/MODEL)")
    run.add_argument("--resume", action="store_true", help="go on from last.pt in --out, if it is there")
    run.add_argument("--save-every", type=positive_float, metavar="M", help="minutes between saves inside an epoch")
    ways = ["ddp", "fsdp", "pipeline"]
    run.add_argument("--parallel", choices=ways, default="ddp", help="ranks share a model as copies, shards or parts")
    run.add_argument("--device", help="cpu, cuda or mps (default: the best there is)")

    known = parser.parse_known_args()[0]
    if known.data == "scenes":
        parser.set_defaults(**SCENES_DEFAULTS)
    if known.recipe == "fast":
        parser.set_defaults(**FAST_DEFAULTS | (FAST_UNET if known.model == "unet" else {}))
    args = parser.parse_args()
    if args.freeze_members and args.model != "uformer":
        parser.error("--freeze-members is for --model uformer")
    if args.init and len(args.init) > 1 and args.model != "uformer":
        parser.error("--init takes one checkpoint, but for --model uformer")
    if args.init and args.model == "uformer" and len(args.init) < 2:
        parser.error("--init takes two checkpoints or more for --model uformer, one a member")
    if args.coarse[0] > args.coarse[1]:
        parser.error("--coarse Q H: samples of half the size come after those of a quarter, so H is Q or more")
    if args.sizes and args.recipe != "fast":
        parser.error("--sizes is for --recipe fast: the deck's samples have the images' own scale")
    if args.sizes and args.sizes[0] > args.sizes[1]:
        parser.error("--sizes LOW HIGH: LOW is not above HIGH")
    if args.alpha == args.beta == 0:
        parser.error("--alpha 0 --beta 0 counts no error: one of them must be more than 0")
    args.max_minutes = args.max_minutes or None
    args.out = args.out or f"runs/{args.model}"
    if int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0:
        args.resume = True
    return args


def evaluation_arguments(description: str) -> argparse.Namespace:
    """Parse evaluate.py's command line."""
    parser = parser_for(description)
    parser.add_argument("checkpoints", nargs="+", help="what train.py or ensemble.py wrote; several are compared")
    add_scoring_flags(parser)
    parser.add_argument("--split", choices=["test", "val", "train"], default="test", help="val where there is no test")
    parser.add_argument("--json", metavar="FILE", help="write all scores to this file")
    parser.add_argument("--out", metavar="DIR", help="write report.html with its pictures and tables to this folder")
    parser.add_argument("--top", type=natural, default=5, metavar="N", help="best and worst images in the report")
    parser.add_argument("--images", metavar="DIR", help="predict these images, which need no masks, into --out")
    args = parser.parse_args()
    if args.images and not args.out:
        parser.error("--images needs --out, the folder for the predictions")
    if args.images and len(args.checkpoints) > 1:
        parser.error("--images takes one checkpoint")
    if args.images and args.json:
        parser.error("--json is for scores, which --images does not give")
    return args


def ensemble_arguments(description: str) -> argparse.Namespace:
    """Parse ensemble.py's command line."""
    parser = parser_for(description)
    parser.add_argument("checkpoints", nargs="+", help="two or more of train.py's, of the same data and classes")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--weights", type=weight, nargs="+", metavar="W", help="one a checkpoint")
    how.add_argument("--search", action="store_true", help="find the weights of best mIoU on val (without --weights)")
    parser.add_argument("--per-class", action="store_true", help="find a weight for each checkpoint and class")
    parser.add_argument("--out", metavar="FILE", help="write the average as a checkpoint")
    add_scoring_flags(parser)
    args = parser.parse_args()
    if len(args.checkpoints) < 2:
        parser.error("an average needs two checkpoints or more")
    if args.weights and len(args.weights) != len(args.checkpoints):
        parser.error(f"{len(args.checkpoints)} checkpoints need as many --weights, not {len(args.weights)}")
    if args.weights and not any(args.weights):
        parser.error("--weights are all 0: give one above 0")
    if args.weights and args.per_class:
        parser.error("--per-class is for weights that are searched, leave --weights out")
    return args


def add_scoring_flags(parser: argparse.ArgumentParser) -> None:
    """What evaluate.py and ensemble.py share."""
    parser.add_argument("--data", metavar="DIR", help="where the data lie now (default: where they were in training)")
    parser.add_argument("--tile", type=positive, metavar="S", help="predict in overlapping tiles of this side")
    flips = parser.add_mutually_exclusive_group()
    flips.add_argument("--flips", action="store_true", help="average over all flips, as --recipe deck trains on them")
    mirror = "average over the image and its mirror image, as --recipe fast trains on them"
    flips.add_argument("--mirror", dest="flips", action="store_const", const="horizontal", default=False, help=mirror)
    parser.add_argument("--device", help="cpu, cuda or mps (default: the best there is)")


def natural(text: str) -> int:
    if not 0 <= (value := int(text)) < 2**63:
        raise argparse.ArgumentTypeError(f"{text} is negative or beyond 63 bits")
    return value


def positive(text: str) -> int:
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return value


def positive_float(text: str) -> float:
    if not 0 < (value := float(text)) < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return value


def weight(text: str) -> float:
    if not 0 <= (value := float(text)) < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not 0 or a positive number")
    return value


def share(text: str) -> float:
    if not 0 <= (value := float(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not in [0, 1)")
    return value


def label_map(text: str) -> dict[int, int]:
    try:
        return parse_label_map(text)
    except BadInput as error:
        raise argparse.ArgumentTypeError(str(error)) from error
