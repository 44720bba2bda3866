"""Do N ranks compute what one process computes? Prints a table: model x way to spread it x ranks.

    python tests/benchmarks/parity.py               # 1, 2, 3 and 4 ranks on this CPU, gloo
    python tests/benchmarks/parity.py --ranks 1 2 --steps 5

Each run starts from the same weights and takes train.py's own steps on the same global batches,
in float64, so that what remains is error and not rounding: batches of 7, which no number of ranks
divides, the first three images of every third batch with nothing but ignored pixels. Beside the
exact runs stand the deck's two mistakes.
"""

import argparse
import copy
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from segmentation import distributed, losses
from segmentation.checkpoint import read_checkpoint, save_checkpoint
from segmentation.data.samples import EpochOrder
from segmentation.evaluation.scoring import score_split
from segmentation.models import build_model
from segmentation.recipes import RECIPES, criterion_for, optimizer_for, set_learning_rate
from segmentation.training import parallel
from segmentation.training.pipeline import Pipeline
from train import training_step

WAYS = ("ddp", "fsdp", "pipeline")
TENSORS = ("gradient", "weights", "moments")  # of what `run` gives
CLASSES, SIDE, BATCH = 5, 40, 7
CONFIGS = {
    "segformer": {"model": "segformer", "num_classes": CLASSES, "drop_path": 0.1, "dropout": 0.1},
    "segformer mlp": {"model": "segformer", "num_classes": CLASSES, "decoder": "mlp"},
    "unet": {"model": "unet", "num_classes": CLASSES},
    "uformer": {
        "model": "uformer",
        "members": [
            {"model": "unet", "num_classes": CLASSES},
            {"model": "segformer", "num_classes": CLASSES},
        ],
        "weights": None,
    },
}
MISTAKES = {
    "loss": "loss of each rank, averaged",
    "batchnorm": "BatchNorm of each rank",
    "deck": "both",
    "half": "gradient not summed over ranks",
}


class Pictures:
    """Noise with rectangles as bright as their class says, in the form `score_split` wants."""

    def __init__(self) -> None:
        self.classes = [str(k) for k in range(CLASSES)]
        self.splits = {"val": ["0", "1", "2", "3", "4"], "single": ["0"]}

    def mask(self, name: str) -> np.ndarray:
        generator = np.random.default_rng(int(name))
        mask = np.zeros((SIDE, SIDE), np.uint8)
        for _ in range(4):
            top, left = generator.integers(0, SIDE - 10, 2)
            mask[top : top + 16, left : left + 16] = generator.integers(CLASSES)
        return mask

    def image(self, name: str) -> np.ndarray:
        noise = np.random.default_rng([int(name), 1]).integers(0, 60, (SIDE, SIDE, 3))
        return (noise + 45 * self.mask(name)[..., None]).clip(0, 255).astype(np.uint8)


def batch_of(step: int) -> dict[str, Tensor]:
    """The global batch of a step, as train.py's loader gives batches, but without names."""
    names = [str(1000 + BATCH * step + i) for i in range(BATCH)]
    images = torch.stack([torch.from_numpy(Pictures().image(name)) for name in names])
    masks = torch.stack([torch.from_numpy(Pictures().mask(name)) for name in names])
    masks[:, :4] = 255
    if step % 3 == 0:
        masks[:3] = 255  # all that the first of 2, 3 or 4 ranks gets
    keys = torch.arange(BATCH) * 1_000_003 + step
    return {"image": images.permute(0, 3, 1, 2), "mask": masks, "key": keys}


class Alone(nn.Module):
    """A criterion of this rank's images, whatever the others have."""

    def __init__(self, criterion: nn.Module) -> None:
        super().__init__()
        self.criterion = criterion

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        with distributed.alone():
            return self.criterion(logits, target)


def not_summed(x: Tensor) -> Tensor:
    """all_reduce_sum without the sum in its backward."""
    return x + (distributed.all_reduce_sum(x.detach()) - x.detach())


def planted(mistake: str | None) -> AbstractContextManager:
    """Within it the package itself makes a mistake; those of the criterion are `Alone`'s."""
    if mistake == "half":
        return patch.object(losses, "all_reduce_sum", not_summed)
    if mistake in ("batchnorm", "deck"):
        return patch.object(parallel, "synchronise_batchnorm", lambda model: model)
    return nullcontext()


def run(
    model: str = "segformer",
    way: str = "ddp",
    steps: int = 20,
    dtype: str = "float64",
    mistake: str | None = None,
    start: str | None = None,
    save: str | None = None,
    first: int = 0,
    device: str = "cpu",
    recipe: str = "deck",
) -> dict:
    """Train on this rank, with all others. Called in every rank alike; see `launch`.

    start and save: checkpoints to go on from and to write. first: the step to begin with.
    Gives gradient (of the first step), weights and moments (all whole, by name), their digest,
    losses, lr, confusion, bytes (of this rank's weights) and images_per_s.
    """
    torch.set_default_dtype(getattr(torch, dtype))
    torch.manual_seed(0)
    place, config = torch.device(device), CONFIGS[model]
    bare = build_model(config)
    saved = read_checkpoint(start) if start else None
    if saved:
        bare.load_state_dict(saved["model"])
    bare.to(place, torch.get_default_dtype()).train()  # a UFormer's weights are float32 at first
    criterion = criterion_for(RECIPES[recipe], [9, 4, 3, 2, 1])
    if mistake in ("loss", "deck"):
        criterion = Alone(criterion)
    history, gradient, began = [], {}, 0.0
    with planted(mistake):
        spread = parallel.distribute_model(bare, way, place, criterion)
        optimizer = optimizer_for(RECIPES[recipe], spread.named_parameters(), place)
        plateau = {"factor": 0.5, "patience": 0, "threshold": 0.5}
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, **plateau)
        if saved:
            parallel.load_optimizer_state(spread, optimizer, saved["resume"]["optimizer"])
            scheduler.load_state_dict(saved["resume"]["scheduler"])
            set_learning_rate(optimizer, scheduler.get_last_lr()[0])
        share, shares = parallel.rank_slice(way)
        rows = EpochOrder(BATCH, BATCH, seed=0, rank=share, world=shares).slice
        batches = [batch_of(step) for step in range(first, first + steps)]
        for step, batch in enumerate(batches):
            began = began if step > 1 else time.perf_counter()  # the first steps plan and allocate
            own = {name: value[rows] for name, value in batch.items()}
            loss = training_step(spread, criterion, optimizer, own)
            if step == 0:
                gradient = whole_gradient(bare, spread)
            history.append(loss.item())
            if (first + step) % 8 == 7:
                scheduler.step(distributed.all_reduce_sum(loss).item() / distributed.world_size())
        seconds = time.perf_counter() - began
    weights = {name: value.clone() for name, value in parallel.whole_weights(spread).items()}
    state = parallel.whole_optimizer_state(spread, optimizer)
    if save and distributed.rank() == 0:
        resume = {"optimizer": state, "scheduler": scheduler.state_dict()}
        save_checkpoint(
            save,
            {"model": weights, "config": config, "classes": Pictures().classes, "resume": resume},
        )
    whole = copy.deepcopy(parallel.whole_model(spread, config)).float().eval()
    scores = {split: score_split(whole, Pictures(), split) for split in Pictures().splits}
    held = [getattr(p, "_local_tensor", p) for p in spread.parameters()]
    moments = {
        f"{i}.{key}": value for i, entry in state["state"].items() for key, value in entry.items()
    }
    return {
        "gradient": gradient,
        "weights": weights,
        "moments": moments,
        "digest": digest(gradient, weights, moments),
        "losses": history,
        "lr": optimizer.param_groups[0]["lr"],
        "confusion": scores["val"]["confusion"],
        "single": scores["single"]["confusion"],
        "loss": scores["val"]["loss"],
        "bytes": sum(p.numel() * p.element_size() for p in held),
        "images_per_s": BATCH * (steps - 1) / seconds,
    }


def whole_gradient(bare: nn.Module, spread: nn.Module | Pipeline) -> dict[str, Tensor]:
    """What the last step left, by name. All ranks call this together and get it."""
    gradients = {name: p.grad for name, p in bare.named_parameters() if p.grad is not None}
    own = {name: parallel.full_tensor(value).cpu().clone() for name, value in gradients.items()}
    parts = distributed.gather([own]) if isinstance(spread, Pipeline) else [own]
    return {name: value for part in parts for name, value in part.items()}


def digest(*sets: dict[str, Tensor]) -> str:
    """The same for the same numbers, bit for bit."""
    values = (
        value.cpu().contiguous().numpy() for tensors in sets for _, value in sorted(tensors.items())
    )
    return hashlib.sha256(b"".join(hashlib.sha256(value).digest() for value in values)).hexdigest()


def distance(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """Norm of the difference of two sets of tensors, over the norm of the second."""
    assert one.keys() == other.keys()
    difference = sum((one[k].double() - other[k].double()).square().sum() for k in other)
    return float(
        (difference / sum(value.double().square().sum() for value in other.values())).sqrt()
    )


def launch(ranks: int, cases: list[dict], start: Callable | None = None) -> list[list[dict]]:
    """Run cases one after another in one start of so many ranks: [case][rank] -> what `run` gives.

    Other ranks than the first leave out the tensors, which would fill gigabytes: a digest will do.
    start: of `worker` on so many ranks; None: torchrun's.
    """
    with tempfile.TemporaryDirectory() as folder:
        (start or torchrun)(ranks, worker, folder, cases)
        files = [
            [Path(folder) / f"{case}-{rank}.pt" for rank in range(ranks)]
            for case in range(len(cases))
        ]
        return [[torch.load(file) for file in row] for row in files]


def torchrun(ranks: int, _: Callable, folder: str, cases: list[dict]) -> None:
    flags = f"-m torch.distributed.run --standalone --nproc_per_node={ranks}".split()
    work = [__file__, "--worker", folder, json.dumps(cases)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, *flags, *work], env=environment, timeout=900, check=True)


def worker(folder: str, cases: list[dict]) -> None:
    distributed.setup("cpu", timeout_minutes=2)
    for number, case in enumerate(cases):
        result = run(**case)
        kept = (
            result
            if distributed.rank() == 0
            else {k: v for k, v in result.items() if k not in TENSORS}
        )
        torch.save(kept, Path(folder) / f"{number}-{distributed.rank()}.pt")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 3, 4])
    parser.add_argument("--models", nargs="+", default=["segformer", "unet"])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        worker(args.worker[0], json.loads(args.worker[1]))
        return
    exact = [{"model": m, "way": way, "steps": args.steps} for m in args.models for way in WAYS]
    wrong = [
        {"model": m, "mistake": k, "steps": args.steps}
        for m in args.models
        for k in list(MISTAKES)[:3]
    ]
    one = {m: launch(1, [{"model": m, "steps": args.steps}])[0][0] for m in args.models}
    after = f"weights after {args.steps} steps"
    print(f"| model | way | ranks | gradient | {after} | loss | confusion | images/s |")
    print("|---|---|--:|--:|--:|--:|---|--:|")
    for ranks in args.ranks:
        cases = exact if ranks > 1 else exact[:: len(WAYS)]
        if ranks == max(args.ranks):
            cases = cases + wrong
        for case, results in zip(cases, launch(ranks, cases), strict=True):
            reference, result = one[case["model"]], results[0]
            way = MISTAKES[case["mistake"]] if "mistake" in case else case["way"]
            same = "equal" if result["confusion"] == reference["confusion"] else "differs"
            gradient, weights = (distance(result[k], reference[k]) for k in ("gradient", "weights"))
            loss = abs(result["loss"] - reference["loss"])
            print(
                f"| {case['model']} | {way} | {ranks} | {gradient:.1e} | {weights:.1e} | "
                f"{loss:.1e} | {same} | {result['images_per_s']:.1f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
