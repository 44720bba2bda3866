"""What do two ranks gain, and where does the rest go? train.py's own steps on a CPU, gloo.

    python tests/benchmarks/scaling.py
    python tests/benchmarks/scaling.py --model unet --size 128 --steps 20

One rank and two ranks of one thread each, and one process of two threads: images/s at the same
global batch (strong scaling) and at the same batch a rank (weak scaling). A step's communication
is what it sends, timed by itself; the part of it that is not hidden behind the backward is what
the step takes longer than without any.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from segmentation import distributed
from segmentation.hardware import keep_freed_memory
from segmentation.losses import TverskyLoss
from segmentation.models import build_model
from segmentation.recipes import RECIPES, optimizer_for
from segmentation.training import parallel
from train import training_step


def measure(model: str, size: int, batch: int, steps: int) -> dict:
    """Median seconds of a step of a global batch on all ranks, and of its communication."""
    torch.manual_seed(0)
    bare = build_model({"model": model, "num_classes": 5}).train()
    criterion, cpu = TverskyLoss(), torch.device("cpu")
    spread = parallel.distribute_model(bare, "ddp", cpu, criterion)
    optimizer = optimizer_for(RECIPES["deck"], spread.named_parameters(), cpu)
    share = batch // distributed.world_size()
    own = {
        "image": torch.randint(256, (share, 3, size, size), dtype=torch.uint8),
        "mask": torch.randint(5, (share, size, size), dtype=torch.uint8),
        "key": torch.arange(share),
    }

    def step(silent: bool = False) -> None:
        with ExitStack() as stack:
            if silent:
                stack.enter_context(distributed.alone())
                stack.enter_context(spread.no_sync())
            training_step(spread, criterion, optimizer, own)

    found = {
        "step": median(step, steps),
        "gradient_bytes": 4 * sum(p.numel() for p in spread.parameters()),
    }
    if distributed.world_size() > 1:
        sums = [x.new_zeros(x.shape) for x in sums_of(step)]
        gradient = torch.zeros(found["gradient_bytes"] // 4)
        found["silent"] = median(lambda: step(silent=True), steps)
        found["gradient"] = median(lambda: dist.all_reduce(gradient), steps)
        found["sums"] = median(lambda: [dist.all_reduce(x) for x in sums], steps)
        found["count"] = len(sums)
    return found


def median(action: Callable[[], object], steps: int) -> float:
    """Seconds of an action that all ranks begin together: of the slowest, the median of steps."""
    times = []
    for _ in range(steps + 3):
        if distributed.world_size() > 1:
            dist.barrier()
        began = time.perf_counter()
        action()
        times.append(max(distributed.gather([time.perf_counter() - began])))
    return torch.tensor(times[3:]).median().item()


def sums_of(step: Callable[[], None]) -> list[torch.Tensor]:
    """What a step sums over ranks beside the gradient: of the loss and BatchNorms, both ways."""
    sent, all_reduce = [], dist.all_reduce

    def noted(x: torch.Tensor, **options: object) -> None:
        sent.append(x)
        all_reduce(x, **options)

    dist.all_reduce = noted
    try:
        step()
    finally:
        dist.all_reduce = all_reduce
    return sent


def launch(ranks: int, threads: int, case: dict) -> dict:
    """Measure in new processes, so that each has its threads from the start."""
    with tempfile.TemporaryDirectory() as folder:
        torchrun = f"-m torch.distributed.run --standalone --nproc_per_node={ranks}".split()
        start = [sys.executable, *(torchrun if ranks > 1 else [])]
        command = [*start, __file__, "--worker", f"{folder}/result.json", json.dumps(case)]
        subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": str(threads)}, check=True)
        return json.loads(Path(folder, "result.json").read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--model", choices=["segformer", "unet"], default="segformer")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--batch", type=int, default=8, help="of all ranks together; even")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        distributed.setup("cpu")
        keep_freed_memory()  # as train.py does
        found = measure(**json.loads(args.worker[1]))
        if distributed.rank() == 0:
            Path(args.worker[0]).write_text(json.dumps(found))
        return
    whole = {"model": args.model, "size": args.size, "batch": args.batch, "steps": args.steps}
    half = whole | {"batch": args.batch // 2}
    runs = {
        "1 rank of 1 thread": (launch(1, 1, whole), args.batch),
        "1 rank of 1 thread, half the batch": (launch(1, 1, half), args.batch // 2),
        "2 ranks of 1 thread": (two := launch(2, 1, whole), args.batch),
        "1 process of 2 threads": (launch(1, 2, whole), args.batch),
    }
    batch = f"{args.model}, {args.size} x {args.size}, global batch {args.batch}"
    print(f"{batch}, median of {args.steps} steps\n")
    print("| run | images a step | s a step | images/s | 2 ranks against it |")
    print("|---|--:|--:|--:|--:|")
    for name, (found, images) in runs.items():
        rate = images / found["step"]
        gain = args.batch / two["step"] / rate
        print(f"| {name} | {images} | {found['step']:.3f} | {rate:.2f} | {gain:.2f} x |")
    alone, exposed = two["gradient"] + two["sums"], max(0.0, two["step"] - two["silent"])
    print(
        f"\na step sends {two['gradient_bytes'] / 1e6:.1f} MB of gradient "
        f"({1e3 * two['gradient']:.1f} ms by itself) "
        f"and {two['count']} small sums ({1e3 * two['sums']:.1f} ms); "
        f"without them it takes {two['silent']:.3f} s: "
        f"{exposed / two['step']:.1%} of the step is communication or waiting for the other rank, "
        f"and {max(0.0, 1 - exposed / alone):.0%} of what is sent is hidden"
    )


if __name__ == "__main__":
    main()
