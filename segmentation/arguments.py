"""The command line of the three scripts: one set of words, their types and their defaults."""

import math
import os
import shlex
import sys
from argparse import (
    Action,
    ArgumentDefaultsHelpFormatter,
    ArgumentParser,
    ArgumentTypeError,
    BooleanOptionalAction,
    Namespace,
    RawDescriptionHelpFormatter,
)
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from .data.labels import parse_label_map
from .models.mix_transformer import VARIANTS
from .models.segformer import DECODERS
from .recipes import LONGER, RECIPES, Recipe, recipe_for

SCENES_DEFAULTS = {"encoder_weights": "none", "max_minutes": 5.0}  # nothing to download


class HelpFormatter(ArgumentDefaultsHelpFormatter, RawDescriptionHelpFormatter):
    """Defaults where a flag has one, and the epilog's table as it is."""

    def _get_help_string(self, action: Action) -> str | None:
        if action.default is None or action.default is False:
            return action.help
        return super()._get_help_string(action)


def parser_for(description: str, **options: Any) -> ArgumentParser:
    """An argparse parser whose help shows defaults and fits a terminal."""
    formatter = partial(HelpFormatter, max_help_position=34, width=110)
    return ArgumentParser(description=description, formatter_class=formatter, **options)


def recipe_rows() -> str:
    """The table of recipes as --help prints it: a column a recipe, U-Net and scenes beside it."""
    columns = {name: asdict(recipe) for name, recipe in RECIPES.items()}
    fast = RECIPES["fast"]
    columns["fast, longest"] = asdict(replace(fast, **LONGER, batch_size=fast.longer_batch))
    columns["fast, U-Net"] = asdict(recipe_for("fast", "unet", ""))
    columns["fast, trained"] = asdict(recipe_for("fast", "segformer", "", trained=True))
    columns["deck, scenes"] = asdict(recipe_for("deck", "segformer", "scenes"))
    rows = {"": list(columns)}
    for field in columns["deck"]:
        rows[field] = [as_text(column[field]) for column in columns.values()]
    lines = [
        "recipes (flags override the rows down to dropout; docs/recipes.md explains each; "
        "--max-minutes moves fast",
        "towards its longest, by the speed of this machine, and sets augment, --amp):",
    ]
    for field, cells in rows.items():
        lines.append(f"{field:16}" + "".join(f"{cell:>15}" for cell in cells))
    scenes = ", ".join(f"--{name} {value}" for name, value in SCENES_DEFAULTS.items())
    return "\n".join([*lines, f"for the built-in scenes also: {scenes.replace('_', '-')}"])


def as_text(value: Any) -> str:
    """A number of a recipe, or two of them: 0.4-0.8."""
    if isinstance(value, tuple):
        return "-".join(map(as_text, value))
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def command_line() -> str:
    """The command as it was typed, but for the script's folder."""
    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])


def training_arguments(description: str) -> Namespace:
    """Parse train.py's command line. Exits with 2 and argparse's message where it is wrong."""
    parser = parser_for(description, epilog=recipe_rows(), add_help=False)
    add_training_flags(parser)
    # Parsed without --help, which is to show the defaults that are set here.
    if parser.parse_known_args()[0].data == "scenes":
        parser.set_defaults(**SCENES_DEFAULTS)
    args = parser.parse_known_args()[0]
    row = asdict(row_of(args))
    given = [name for name in row if getattr(args, name, None) is not None]
    parser.set_defaults(**{name: value for name, value in row.items() if name in args})
    parser.add_argument("-h", "--help", action="help", help="show this help message and exit")
    args = parser.parse_args()
    args.given = given
    check_training(parser, args)
    if isinstance(args.encoder_weights, list) and len(args.encoder_weights) == 1:
        [args.encoder_weights] = args.encoder_weights
    if not args.init:
        args.decoder = args.decoder or "conv"
    args.max_minutes = args.max_minutes or None
    args.out = args.out or f"runs/{args.model}"
    if int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0:
        args.resume = True
    return args


def recipe_of(args: Namespace) -> Recipe:
    """The row that was asked for, its numbers replaced by the flags'."""
    row = row_of(args)
    return replace(row, **{name: value for name, value in vars(args).items() if hasattr(row, name)})


def row_of(args: Namespace) -> Recipe:
    """The row of the recipe that was asked for, as it is for this model, data and start."""
    weights = args.encoder_weights  # one for all encoders, or a list
    trained = bool(args.init) or not (weights == "none" or {*weights} == {"none"})
    return recipe_for(args.recipe, args.model, args.data, trained)


def add_training_flags(parser: ArgumentParser) -> None:
    """The flags of train.py; those of a recipe's numbers get their defaults later."""
    add = parser.add_argument_group("model").add_argument
    add(
        "--model",
        choices=["segformer", "unet", "uformer"],
        default="segformer",
        help="what to train",
    )
    add("--variant", choices=VARIANTS, default="b0", help="SegFormer's encoder")
    add(
        "--decoder",
        choices=DECODERS,
        help="SegFormer's: conv is this project's, mlp the paper's (default: conv, or --init's)",
    )
    add(
        "--drop-path",
        type=fraction,
        metavar="P",
        help="stochastic depth; the paper's is 0.1",
    )
    add(
        "--dropout",
        type=fraction,
        metavar="P",
        help="before SegFormer's logits; the paper's is 0.1",
    )
    add(
        "--init",
        nargs="+",
        metavar="FILE",
        help="start from a checkpoint or a published SegFormer; uformer: one a member",
    )
    add(
        "--encoder-weights",
        nargs="+",
        default="imagenet",
        metavar="W",
        help="imagenet, none, or a file; uformer: also two, the U-Net's and the SegFormer's",
    )
    add("--freeze-encoder", action="store_true", help="train the decoder alone")
    add("--freeze-members", action="store_true", help="uformer: train the mixing weights alone")

    add = parser.add_argument_group("data").add_argument
    add("--data", default="scenes", help="scenes (built in) or a folder of images and masks")
    add(
        "--task",
        choices=["multiclass", "binary"],
        default="multiclass",
        help="binary: two classes, of drone sets obstacles and landable",
    )
    add(
        "--label-map",
        type=parse_label_map,
        metavar="A=B,...",
        help="stored values to labels: 255=1",
    )
    add("--skip-bad", action="store_true", help="leave bad pairs out instead of stopping")
    sides: dict[str, Any] = {"type": positive_int, "nargs": 2, "metavar": ("H", "W")}
    add("--image-size", **sides, help="resize images to this; masks keep their size")
    add("--crop", **sides, help="train on random windows of this size")
    add(
        "--augment",
        type=non_negative_int,
        metavar="N",
        help="extra augmented samples an epoch",
    )
    add(
        "--workers",
        type=non_negative_int,
        metavar="N",
        help="processes that prepare samples (default: 1, or 0 on one core; on a GPU from cores "
        "and ranks)",
    )

    add = parser.add_argument_group("recipe").add_argument
    add("--recipe", choices=RECIPES, default="deck", help="a column of the table below")
    add(
        "--epochs",
        type=positive_int,
        metavar="N",
        help="passes over the images and the extra samples",
    )
    add(
        "--batch-size",
        type=positive_int,
        metavar="N",
        help="of all ranks together",
    )
    add("--lr", type=positive_float, help="highest learning rate")
    add(
        "--encoder-lr",
        type=positive_float,
        metavar="F",
        help="the encoder's learning rate, as a share of --lr",
    )
    add(
        "--alpha",
        type=non_negative_float,
        help="Tversky's weight of false positives",
    )
    add(
        "--beta",
        type=non_negative_float,
        help="Tversky's weight of false negatives",
    )
    add("--fit-all", action="store_true", help="train on val too; the last weights are the result")
    add(
        "--amp",
        action=BooleanOptionalAction,
        help="bfloat16 autocast (default: no; recipe fast with --max-minutes: where it is faster)",
    )
    add("--compile", action="store_true", help="torch.compile")
    add("--seed", type=non_negative_int, default=0, help="of first weights, order, samples, splits")
    add(
        "--max-minutes",
        type=non_negative_float,
        default=0,
        metavar="M",
        help="end after so many minutes, the learning rate falling to 0; 0: no limit; "
        "such a run cannot resume bit for bit",
    )

    add = parser.add_argument_group("run").add_argument
    add("--out", metavar="DIR", help="the run's folder (default: runs/MODEL)")
    add("--resume", action="store_true", help="go on from last.pt in --out, if it is there")
    add("--dry-run", action="store_true", help="measure a few steps; writes samples.png alone")
    add(
        "--save-every",
        type=positive_float,
        metavar="M",
        help="minutes between saves inside an epoch",
    )
    add(
        "--parallel",
        choices=["ddp", "fsdp", "pipeline"],
        default="ddp",
        help="ranks share a model as copies, shards or parts",
    )
    add("--device", help="cpu, cuda or mps (default: the best there is)")


def check_training(parser: ArgumentParser, args: Namespace) -> None:
    """End with argparse's message where flags contradict each other."""
    is_uformer = args.model == "uformer"
    checkpoints = len(args.init or [])
    if args.freeze_members and not is_uformer:
        parser.error("--freeze-members is for --model uformer")
    if checkpoints and (checkpoints > 1) != is_uformer:
        parser.error("--init takes one checkpoint, and for --model uformer two or more")
    sources = args.encoder_weights
    one_for_all = isinstance(sources, str) or sources in (["imagenet"], ["none"])
    if not one_for_all and len(sources) != 1 + is_uformer:
        parser.error(
            "--encoder-weights takes one value, or for --model uformer imagenet, none, or two "
            "files, the U-Net's and the SegFormer's"
        )
    if checkpoints and sources not in ("imagenet", "none", ["none"]):  # texts are the defaults
        parser.error("--init brings its encoders: leave --encoder-weights out")
    if args.freeze_encoder and "encoder_lr" in args.given:
        parser.error("--freeze-encoder leaves --encoder-lr nothing to train: drop one of them")
    of_segformer = {"drop_path", "dropout"} & {*args.given}
    if args.model == "unet" and (args.variant != "b0" or args.decoder or of_segformer):
        parser.error(
            "--variant, --decoder, --drop-path and --dropout are SegFormer's: "
            "leave them out for a U-Net"
        )
    if args.fit_all and row_of(args).decay is None:
        parser.error(
            "--fit-all leaves no val, on which --recipe deck lowers its learning rate: "
            "choose --recipe fast"
        )
    if args.alpha == args.beta == 0:
        parser.error("--alpha 0 --beta 0 counts no error: one of them must be more than 0")


def evaluation_arguments(description: str) -> Namespace:
    """Parse evaluate.py's command line. Exits with 2 and argparse's message where it is wrong."""
    parser = parser_for(description)
    add = parser.add_argument
    add(
        "checkpoints",
        nargs="+",
        help="what train.py or ensemble.py wrote, or published SegFormers; several are compared",
    )
    add_scoring_flags(parser)
    add(
        "--split",
        choices=["test", "val", "train", "all"],
        help="of the images to score (default: test, or val where there is no test; "
        "all of a set that is not the checkpoint's own)",
    )
    add("--json", metavar="FILE", help="write all scores to this file")
    add(
        "--out", metavar="DIR", help="write report.html with its pictures and tables to this folder"
    )
    add(
        "--top",
        type=non_negative_int,
        default=5,
        metavar="N",
        help="best and worst images in the report",
    )
    add("--images", metavar="DIR", help="predict these images, which need no masks, into --out")
    add(
        "--export",
        metavar="FILE",
        help="write the model for other programs, alone: .pt2, .onnx, or a folder for transformers",
    )
    args = parser.parse_args()
    if args.export is not None:
        usual = vars(parser.parse_args([args.checkpoints[0], "--export", args.export]))
        if vars(args) != usual:
            parser.error("--export takes one checkpoint and no other flag")
    scoring = len(args.checkpoints) > 1 or args.json or args.split or args.data
    if scoring and args.images:
        parser.error(
            "--images takes one checkpoint, and neither --json, --split nor --data, "
            "which are for scores"
        )
    if args.json in args.checkpoints:
        parser.error("--json would replace the checkpoint: name another file")
    if args.images and not args.out:
        parser.error("--images needs --out, the folder for the predictions")
    return args


def ensemble_arguments(description: str) -> Namespace:
    """Parse ensemble.py's command line. Exits with 2 and argparse's message where it is wrong."""
    parser = parser_for(description)
    add = parser.add_argument
    add("checkpoints", nargs="+", help="two or more of train.py's, of the same data and classes")
    weights = parser.add_mutually_exclusive_group()
    weights.add_argument(
        "--weights", type=non_negative_float, nargs="+", metavar="W", help="one per checkpoint"
    )
    weights.add_argument(
        "--search",
        action="store_true",
        help="find the weights of best mIoU on val, as without --weights",
    )
    add("--per-class", action="store_true", help="find one weight per checkpoint and class")
    add("--out", metavar="FILE", help="write the average as a checkpoint")
    add_scoring_flags(parser)
    args = parser.parse_args()
    count = len(args.checkpoints)
    if count < 2:
        parser.error("an average needs two checkpoints or more")
    if args.weights:
        if len(args.weights) != count:
            parser.error(f"{count} checkpoints need as many --weights, not {len(args.weights)}")
        if not any(args.weights):
            parser.error("--weights are all 0: give one above 0")
        if args.per_class:
            parser.error("--per-class is for weights that are searched, leave --weights out")
    return args


def add_scoring_flags(parser: ArgumentParser) -> None:
    """What evaluate.py and ensemble.py share."""
    add = parser.add_argument
    add(
        "--data",
        metavar="DIR",
        help="where the data lie now (default: where they were in training)",
    )
    add(
        "--tile",
        type=positive_int,
        metavar="S",
        help="predict in overlapping tiles of this side (default: only images beyond 4 megapixels)",
    )
    add(
        "--flips",
        nargs="?",
        const="all",
        choices=["all", "horizontal"],
        help="average over flipped views: all, as --recipe deck trains on, or horizontal",
    )
    add("--amp", action="store_true", help="bfloat16 autocast")
    add("--device", help="cpu, cuda or mps (default: the best there is)")


def non_negative_int(text: str) -> int:
    if not 0 <= (value := int(text)) < 2**63:
        raise ArgumentTypeError(f"{text} is negative or beyond 63 bits")
    return value


def positive_int(text: str) -> int:
    if (value := int(text)) < 1:
        raise ArgumentTypeError(f"{text} is not 1 or more")
    return value


def positive_float(text: str) -> float:
    if not 0 < (value := float(text)) < math.inf:
        raise ArgumentTypeError(f"{text} is not a positive number")
    return value


def non_negative_float(text: str) -> float:
    if not 0 <= (value := float(text)) < math.inf:
        raise ArgumentTypeError(f"{text} is not 0 or a positive number")
    return value


def fraction(text: str) -> float:
    if not 0 <= (value := float(text)) < 1:
        raise ArgumentTypeError(f"{text} is not in [0, 1)")
    return value
