"""How often the host waits for a GPU, and how many operators it launches there. Needs no GPU.

    python tests/benchmarks/operators.py

Prints two tables, counted on tests/accelerator.py: what waits, and the operators of a training step
beside those of the peers, and over ranks. All with this project's Tversky loss, and its count of
what is predicted. Views do not count; an operator may be several kernels.
"""

import io
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import nullcontext, redirect_stdout
from itertools import pairwise
from pathlib import Path

import numpy as np
import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from transformers import SegformerConfig, SegformerForSemanticSegmentation

sys.path.extend(map(str, Path(__file__).resolve().parents[1:3]))
from accelerator import Pretended, ranks, train_on

from segmentation import ResNet18UNet, SegFormer, TverskyLoss, predict
from segmentation.data.datasets import SegmentationDataset, open_dataset
from segmentation.evaluation.scoring import score_split
from segmentation.evaluation.weight_search import fit_weights
from segmentation.training.parallel import distribute_model
from segmentation.training.step_loss import CountingLoss

CUDA = torch.device("cuda", 0)
CLASSES, RANKS, SIDE = 3, 4, 64


class TransformersSegFormer(nn.Module):
    """transformers' SegFormer-B0, its logits interpolated to the image's size."""

    def __init__(self) -> None:
        super().__init__()
        config = {"drop_path_rate": 0.0, "classifier_dropout_prob": 0.0}
        config = SegformerConfig(num_labels=CLASSES, **config)
        self.model = SegformerForSemanticSegmentation(config)

    def forward(self, image: Tensor) -> Tensor:
        logits = self.model(image).logits
        return F.interpolate(logits, size=image.shape[-2:], mode="bilinear", align_corners=False)


def drawn() -> nn.Module:
    return SegFormer(CLASSES, drop_path=0.1, dropout=0.1)


# name: (how to make it, over how many ranks)
ROWS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "SegFormer-B0, conv (ours)": (lambda: SegFormer(CLASSES), 1),
    "SegFormer-B0, mlp (ours)": (lambda: SegFormer(CLASSES, decoder="mlp"), 1),
    "conv, drop_path 0.1, dropout 0.1": (drawn, 1),
    "transformers SegFormer-B0": (TransformersSegFormer, 1),
    "U-Net (ours)": (lambda: ResNet18UNet(CLASSES), 1),
    "smp.Unet resnet18": (lambda: smp.Unet("resnet18", encoder_weights=None, classes=CLASSES), 1),
    "SegFormer-B0, conv, ddp": (lambda: SegFormer(CLASSES), RANKS),
    "conv, drop_path, dropout, ddp": (drawn, RANKS),
    "U-Net, ddp": (lambda: ResNet18UNet(CLASSES), RANKS),
}


def main() -> None:
    torch.manual_seed(0)
    print(f"{'what waits for the GPU':50}{'how often':>12}")
    with tempfile.TemporaryDirectory() as folder:
        for name, waits in all_waits(Path(folder)):
            print(f"{name:50}{waits:>12}", flush=True)
    titles = ("forward", "loss", "backward", "Adam", "step", "bf16")
    print(f"\n{'operators':34}" + "".join(f"{title:>9}" for title in titles))
    for name, (make, count) in ROWS.items():
        parts = operators(make(), count)
        columns = [*parts, sum(parts), sum(operators(make(), count, amp=True))]
        print(f"{name:34}" + "".join(f"{column:9}" for column in columns), flush=True)


def operators(model: nn.Module, count: int, amp: bool = False) -> list[int]:
    """Of the forward, the loss, the backward and the optimizer of a step."""
    with ranks(count) if count > 1 else nullcontext(), Pretended() as seen:
        criterion = CountingLoss(TverskyLoss(), CLASSES, images=2).to(CUDA)
        parallel = (
            distribute_model(model.to(CUDA), "ddp", CUDA, criterion)
            if count > 1
            else model.to(CUDA)
        )
        optimizer = torch.optim.Adam(parallel.parameters(), fused=True)
        image = torch.rand(2, 3, SIDE, SIDE).to(CUDA)
        mask = torch.randint(CLASSES, (2, SIDE, SIDE)).to(CUDA)
        keys = (torch.arange(2).to(CUDA),) if isinstance(model, SegFormer) else ()
        for _ in range(3):  # the first steps make the optimizer's state and sort the buckets
            optimizer.zero_grad()
            counts = [seen.operators]
            with torch.autocast("cuda", torch.bfloat16, enabled=amp):
                logits = parallel(image, *keys)
            counts.append(seen.operators)
            loss = criterion(logits, mask)
            counts.append(seen.operators)
            loss.backward()
            counts.append(seen.operators)
            optimizer.step()
            counts.append(seen.operators)
    return [after - before for before, after in pairwise(counts)]


def all_waits(folder: Path) -> Iterator[tuple[str, int | str]]:
    data = pictures(folder / "data")
    models = {"segformer": SegFormer(CLASSES), "unet": ResNet18UNet(CLASSES)}
    for model in models:
        for recipe in ("deck", "fast"):
            waits, events, saves = waits_of_training(folder, model, recipe)
            yield f"training step, {model}, {recipe}", f"{waits} + {events} event"
        yield f"saves of an epoch, {model}: is it a number", saves["run_folder.py"]
        yield f"saves of an epoch, {model}: the copies", saves["checkpoint.py"]
    with Pretended() as seen:
        members = [model.to(CUDA).eval() for model in models.values()]
        seen.waits.clear()
        score_split(members[0], data, "val")
        yield "score_split, an image", seen.waits.total()
        seen.waits.clear()
        predict(members[0], torch.rand(1, 3, SIDE, SIDE), tile=SIDE - 16)
        yield "predict, a tile (of 4)", f"{seen.waits.total() / 4:g}"
        seen.waits.clear()
        fit_weights(members, data, [data.splits["val"]], per_class=True)
        yield "ensemble --per-class, an image, two members", seen.waits.total()


def pictures(folder: Path) -> SegmentationDataset:
    """Noise and squares; one image in val."""
    generator = np.random.default_rng(0)
    for number in range(8):
        mask = np.zeros((SIDE, SIDE), np.uint8)
        mask[8:24, 8:24], mask[40:, 30:] = 1, 2
        image = generator.integers(0, 60, (SIDE, SIDE, 3)) + 80 * mask[..., None]
        for kind, array in (("images", image.astype(np.uint8)), ("masks", mask)):
            (folder / kind).mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(folder / kind / f"{number}.png")
    data = open_dataset(str(folder))
    data.splits["val"] = data.splits["val"][:1]
    return data


def waits_of_training(folder: Path, model: str, recipe: str) -> tuple[int, int, dict[str, int]]:
    """Of a step: full waits and events; of the saves of last.pt and best.pt, by file."""
    flags = ("--data", folder / "data", "--model", model, "--recipe", recipe, "--workers", 0)
    flags += ("--encoder-weights", "none", "--epochs", 1, "--augment", 0, "--batch-size", 2)
    with Pretended() as seen, redirect_stdout(io.StringIO()):
        first, second, *_ = train_on(seen, *flags, "--out", folder / f"{model}-{recipe}")
    files = ("run_folder.py", "checkpoint.py")
    saves = {file: sum(n for at, n in seen.waits.items() if at.startswith(file)) for file in files}
    step = (second.waits - first.waits).total(), second.events - first.events
    return *step, saves


if __name__ == "__main__":
    main()
