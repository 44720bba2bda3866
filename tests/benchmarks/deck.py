r"""Two choices of the deck that this project made otherwise: what they are worth.

    python tests/benchmarks/deck.py logits UNET.pt SEGFORMER.pt [--split test]
    python tests/benchmarks/deck.py separable --data DIR --max-minutes 30 --out runs/separable

logits: the deck averages the members' logits, ensemble.py their probabilities. Prints both averages
at equal weights and at those of highest mIoU among 21, found on val, scored on the split.
separable: trains a U-Net whose decoder has a depthwise and a pointwise convolution for each full
one, as the deck's, and scores it on test. Takes train.py's flags, --out among them.
"""

import argparse
import sys
from pathlib import Path
from unittest.mock import patch

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import train
from segmentation import UFormer
from segmentation.checkpoint import load_checkpoint
from segmentation.data.datasets import SegmentationDataset, open_dataset
from segmentation.errors import exit_on_bad_input
from segmentation.evaluation.inference import Prediction
from segmentation.evaluation.scoring import score_split
from segmentation.models import unet

STEPS = 20  # of a weight from 0 to 1


class LogitMean(nn.Module):
    """The members' logits, averaged with the weights."""

    def __init__(self, *members: nn.Module, weights: tuple[float, float]):
        super().__init__()
        self.members = nn.ModuleList(members)
        self.weights = weights

    def forward(self, image: Tensor, keys: Tensor | None = None) -> Tensor:
        """N x 3 x H x W -> N x K x H x W."""
        logits = [member(image, keys) for member in self.members]
        return sum(weight * each for weight, each in zip(self.weights, logits, strict=True))


class SeparableExpansion(unet.Expansion):
    """A step of the expansive path whose 3x3 convolution is depthwise, then pointwise."""

    def __init__(self, in_channels: int, skip_channels: int, channels: int):
        super().__init__(in_channels, skip_channels, channels)
        joined = channels + skip_channels
        self.conv = nn.Sequential(
            nn.Conv2d(joined, joined, 3, padding=1, groups=joined, bias=False),
            nn.Conv2d(joined, channels, 1, bias=False),
        )


def compare_averages(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=compare_averages.__name__)
    parser.add_argument("checkpoints", nargs=2)
    parser.add_argument("--split", default="test")
    args = parser.parse_args(arguments)
    members, metas = zip(*map(load_checkpoint, args.checkpoints), strict=True)
    data = data_of(metas[0])
    print(f"| average | weights | val mIoU | {args.split} mIoU | loss |\n|---|---|--:|--:|--:|")
    for kind in (UFormer, LogitMean):
        models = [kind(*members, weights=(1 - k / STEPS, k / STEPS)) for k in range(STEPS + 1)]
        on_val = [scores(model, data, "val")["miou"] for model in models]
        best = max(range(STEPS + 1), key=on_val.__getitem__)
        for k in (STEPS // 2, best):
            found = scores(models[k], data, args.split)
            row = f"{on_val[k]:.4f} | {found['miou']:.4f} | {found['loss']:.4f}"
            print(f"| {kind.__name__} | {1 - k / STEPS:.2f} / {k / STEPS:.2f} | {row} |")


def data_of(meta: dict) -> SegmentationDataset:
    """The data a checkpoint was trained on."""
    known = meta["data"]
    return open_dataset(
        known["root"],
        task=known["task"],
        image_size=known["image_size"],
        splits=known["splits"],
    )


def scores(model: nn.Module, data: SegmentationDataset, split: str) -> dict:
    with torch.inference_mode():
        return score_split(model.eval(), data, split, Prediction(amp=True), alpha=0.3, beta=0.7)


def train_separable(arguments: list[str]) -> None:
    sys.argv[1:] = ["--model", "unet", *arguments]
    with patch.object(unet, "Expansion", SeparableExpansion):
        train.main()
        out = Path(arguments[arguments.index("--out") + 1])
        model, meta = load_checkpoint(out / "best.pt")  # which no other script can rebuild
    found = scores(model, data_of(meta), "test")
    print(" ".join(f"{key} {found[key]:.4f}" for key in ("miou", "image_miou", "mpa")))


if __name__ == "__main__":
    what, *rest = sys.argv[1:] or ["--help"]
    work = {"logits": compare_averages, "separable": train_separable}.get(what)
    if work is None:
        sys.exit(__doc__)
    exit_on_bad_input(lambda: work(rest))
