"""Train one model: on a CPU or GPU, in one process or in many.

    python train.py                                                  # built-in scenes, nothing to download
    python train.py --model unet --data DIR --task binary
    torchrun --nproc_per_node=4 train.py --model segformer           # one node, four GPUs; the same flags
    python train.py ... --resume                                     # go on where the run in --out was stopped

The defaults are the recipe of the student deck this project follows: Tversky loss 0.3 / 0.7, Adam, reduce on plateau,
600 augmented samples an epoch; `--recipe fast` learns more in the same minutes. The batch size is global: N ranks
compute what one computes.
"""

import argparse
import shlex
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from segmentation import distributed
from segmentation.allocator import keep_freed_memory
from segmentation.arguments import training_arguments
from segmentation.checkpoint import restore_model
from segmentation.data.datasets import SegmentationDataset, open_dataset
from segmentation.data.samples import EpochOrder, TrainingSamples, make_loader
from segmentation.errors import BadInput, exit_on_bad_input
from segmentation.evaluation.scoring import score_split
from segmentation.pretrained.initial import start_fresh, start_from
from segmentation.recipes import criterion_for, learning_rate_factor, optimizer_for, shrink
from segmentation.training.clock import Clock, Stopped, ignore_signals
from segmentation.training.log import introduce, print_epoch, show_progress
from segmentation.training.parallel import batch_share, load_optimizer_state, spread, whole_model
from segmentation.training.pipeline import Pipeline
from segmentation.training.run_folder import (
    HISTORY,
    MARKER,
    environment,
    open_run,
    save_run,
    write_config,
    write_history,
)


def main() -> None:
    args = training_arguments(__doc__.split("\n\n")[0])
    clock = Clock(args.max_minutes)  # first of all: from here on a signal is noted, whatever goes on
    device = distributed.setup(args.device)
    torch.manual_seed(args.seed)
    keep_freed_memory()
    out = Path(args.out)
    saved = distributed.first_rank_first(lambda: open_run(out, vars(args)))
    if saved:
        clock.go_on_from(saved["resume"]["seconds"])

    # Data
    data = distributed.first_rank_first(
        lambda: open_dataset(
            args.data,
            task=args.task,
            seed=args.seed,
            label_map=args.label_map,
            skip_bad=args.skip_bad,
            image_size=args.image_size,
            splits=saved["data"]["splits"] if saved else None,
        )
    )
    for split in ("train", "val"):
        if not any(data.pixel_counts[split]):
            raise BadInput(f"{data.root}: all pixels of the {split} masks are 255, ignored: label some of them")
    samples = TrainingSamples(
        data, "train", crop=args.crop, augment=args.augment, seed=args.seed, recipe=args.recipe, sizes=args.sizes
    )
    share, shares = batch_share(args.parallel)
    order = EpochOrder(len(samples), args.batch_size, seed=args.seed, rank=share, world=shares)
    height, width = samples[0, 0]["image"].shape[1:]
    if args.batch_size == 1 and max(height, width) <= 32:
        sentence = "leaves BatchNorm a single value to take statistics of: use --batch-size 2 or more"
        raise BadInput(f"--batch-size 1 of {height} x {width} pixels {sentence}")
    loader = make_loader(samples, order, args.workers, device)
    steps = len(order)

    # Model
    model, config, weights_from = distributed.first_rank_first(lambda: start_model(args, data, saved))
    model.to(device)
    frozen = frozen_parts(model, args)
    for part in frozen:
        part.requires_grad_(False)
    criterion = criterion_for(args.recipe, args.alpha, args.beta, data.pixel_counts["train"])
    criterion.to(device)
    parallel = spread(model, args.parallel, device, criterion, args.amp)
    if args.compile:
        parallel.compile(dynamic=False)  # sizes are few, and torch's compiler fails on a map whose sides are unknown

    # Recipe
    trained = [parameter for parameter in parallel.parameters() if parameter.requires_grad]
    optimizer = optimizer_for(args.recipe, trained, args.lr, device)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.1, patience=3)
    state: dict = {"epoch": 0, "step": 0, "loss_sum": 0.0, "lr": args.lr, "best": -1.0, "history": []}
    state |= {"started": clock.now(), "time_up": 0.0}
    if saved:
        load_optimizer_state(parallel, optimizer, saved["resume"]["optimizer"])
        scheduler.load_state_dict(saved["resume"]["scheduler"])
        state = saved["resume"]["state"]

    about = {
        "config": config,
        "classes": data.classes,
        "palette": data.palette,
        "data": data.describe(),
        "args": vars(args),
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "encoder_weights": weights_from,
        "environment": environment(device),
    }
    save = partial(save_run, out, parallel, optimizer, scheduler, state, clock, about)
    if distributed.rank() == 0:
        write_config(out, about)
        if saved:
            write_history(out, state["history"])
        introduce(data, model, steps, out)

    def shrink_at(step: int) -> int:
        """All ranks ask when they order a step's samples, after the same step, so their clocks agree."""
        return shrink(progress_at(step, steps, state, clock, args), args.coarse)

    written = True
    try:
        while not finished(state, args):
            order.set_epoch(state["epoch"], start=state["step"], shrink=shrink_at)
            waited = train_one_epoch(model, parallel, frozen, loader, criterion, optimizer, state, clock, save, args)
            trained_until, agreed = clock.now(), clock.agreed
            whole = whole_model(parallel, config)
            with torch.compiler.set_stance("force_eager"):  # every size would be compiled anew
                scores = score_split(
                    whole,
                    data,
                    "val",
                    device=device,
                    alpha=args.alpha,
                    beta=args.beta,
                    amp=args.amp,
                    stop=clock.poll,
                )
            clock.poll()
            clock.reserve = clock.agreed - agreed  # the time limit leaves room for the last validation
            best_before = state["best"]
            finish_epoch(state, scores, scheduler, clock, trained_until, args)
            written = state["best"] == best_before or save("best.pt", scores)
            if not written:
                state["best"] = best_before  # of the file best.pt, so that the next good epoch replaces it
            written = save("last.pt", scores) and written
            if distributed.rank() == 0:
                written = write_history(out, state["history"]) and written
                print_epoch(state, args.epochs, waited)
            if clock.poll() and not finished(state, args):
                raise Stopped
    except Stopped:
        if not save("last.pt"):
            sys.exit(f"error: interrupted in epoch {state['epoch'] + 1}, and the last save failed")
        distributed.say(f"interrupted in epoch {state['epoch'] + 1}: the same command with --resume goes on")
        ignore_signals()  # the interpreter's own end has no handlers, and a second signal would make it a failure
        if torch.distributed.is_torchelastic_launched():  # which hides a code, or starts the ranks again
            (out / MARKER).touch()
            return
        sys.exit(99)
    if not written:
        sys.exit(f"error: done, but the last save failed: the files in {out} are of an earlier moment")
    distributed.say(f"done in {clock.now() / 60:.1f} minutes: best val mIoU {state['best']:.4f}, {out / 'best.pt'}")


def train_one_epoch(
    model: nn.Module,
    parallel: nn.Module | Pipeline,
    frozen: list[nn.Module],
    loader: DataLoader,
    criterion: nn.Module,
    optimizer: torch.optim.Optimizer,
    state: dict,
    clock: Clock,
    save: Callable[[str], bool],
    args: argparse.Namespace,
) -> float:
    """From state["step"] to the end of the epoch or of the time. Raises Stopped, `state` complete, after a signal.

    Returns the share of this rank's time that it waited for data.
    """
    model.train()
    for part in frozen:
        part.eval()  # BatchNorm's statistics are frozen too
    device = next(parallel.parameters()).device
    state["loss_sum"] = torch.as_tensor(state["loss_sum"], device=device)
    before: LossOfStep | None = None
    steps = state["step"] + len(loader)
    began = asked = clock.now()
    waited = 0.0

    for batch in loader:
        waited += clock.now() - asked
        progress = progress_at(state["step"], steps, state, clock, args)
        for group in optimizer.param_groups:
            group["lr"] = state["lr"] * learning_rate_factor(args.recipe, clock.spent(), progress)
        loss = training_step(parallel, criterion, optimizer, batch, amp=args.amp)
        state["loss_sum"] += loss
        state["step"] += 1
        if before:
            before.check()
            show_progress(state, steps, args.epochs, args.batch_size, before.loss, clock)
        before = LossOfStep(loss, batch["name"])

        if clock.poll():
            before.check()
            raise Stopped
        if clock.spent() >= 1:
            break
        if args.save_every is not None and clock.since_save() >= 60 * args.save_every:
            before.check()
            save("last.pt")
        asked = clock.now()
    if before:
        before.check()
    return waited / (clock.now() - began)


def training_step(
    parallel: nn.Module | Pipeline,
    criterion: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: dict,
    amp: bool = False,
) -> Tensor:
    """One step of the optimizer. All ranks call it with their share of a global batch and get the global loss.

    batch: image uint8 N x 3 x H x W, mask uint8 N x H x W, key int64 N. The gradients stay until the next step.
    """
    device = next(parallel.parameters()).device
    image = batch["image"].to(device, non_blocking=True).to(torch.get_default_dtype()) / 255
    mask = batch["mask"].to(device, non_blocking=True).long()
    key = batch["key"].to(device, non_blocking=True)
    optimizer.zero_grad()
    if isinstance(parallel, Pipeline):
        loss = parallel.forward_backward(image, mask, key)
    else:
        with torch.autocast(device.type, torch.bfloat16, enabled=amp):
            logits = parallel(image, key)
        loss = criterion(logits, mask)
        loss.backward()
    optimizer.step()
    return loss.detach()


def progress_at(step: int, steps: int, state: dict, clock: Clock, args: argparse.Namespace) -> float:
    """The share of the training that is done at a step of this epoch: of the time limit or of the epochs, if larger."""
    return max(clock.spent(), (state["epoch"] + step / steps) / args.epochs)


class LossOfStep:
    """A step's loss and the files of its batch, to be looked at when the next step is under way.

    CUDA works through what it is given in order. So the loss is sent to the host right behind its
    step, and to look at it waits for that step alone, not for what has been given since.
    """

    def __init__(self, loss: Tensor, files: list[str]):
        self.loss, self.files, self.sent = loss, files, None
        if loss.device.type == "cuda":
            self.loss = loss.to("cpu", non_blocking=True)
            self.sent = torch.cuda.Event()
            self.sent.record()

    def check(self) -> None:
        """RuntimeError naming the files, before anything is saved, if the loss is not a number."""
        if self.sent:
            self.sent.synchronize()
        if not self.loss.isfinite():
            files = ", ".join(distributed.gather(self.files))
            advice = "look at these images, or lower --lr"
            raise RuntimeError(f"the loss is {self.loss.item()} on {files}: {advice}")


def start_model(
    args: argparse.Namespace, data: SegmentationDataset, saved: dict | None
) -> tuple[nn.Module, dict, dict | None]:
    """The model as it starts, its configuration, and the source and licence of weights trained elsewhere.

    The weights are the stopped run's, or those of --init, or an encoder's from --encoder-weights and random elsewhere.
    """
    if saved:
        return restore_model(saved, f"{args.out}/last.pt"), saved["config"], saved["encoder_weights"]
    if args.init:
        return start_from(args.init, args.model, data)
    shape = {"variant": args.variant, "decoder": args.decoder, "drop_path": args.drop_path, "dropout": args.dropout}
    return start_fresh(args.model, len(data.classes), shape, args.encoder_weights)


def frozen_parts(model: nn.Module, args: argparse.Namespace) -> list[nn.Module]:
    """The modules that are not trained."""
    if args.freeze_members:
        return [model.members]
    if args.freeze_encoder:
        return [part.encoder for part in (model.members if args.model == "uformer" else [model])]
    return []


def finished(state: dict, args: argparse.Namespace) -> bool:
    """All epochs are trained, or the time limit is used up; on resume either may have been raised."""
    return state["epoch"] >= args.epochs or (args.max_minutes is not None and state["time_up"] >= args.max_minutes)


def finish_epoch(
    state: dict,
    scores: dict,
    scheduler: torch.optim.lr_scheduler.ReduceLROnPlateau,
    clock: Clock,
    trained_until: float,
    args: argparse.Namespace,
) -> None:
    """Write the epoch's row, step the scheduler, move on to the next epoch."""
    group = scheduler.optimizer.param_groups[0]
    row = (
        state["epoch"] + 1,
        float(state["loss_sum"]) / state["step"],
        scores["loss"],
        scores["miou"],
        scores["mpa"],
        group["lr"],
        clock.now() - state["started"],
        state["step"] * args.batch_size / (trained_until - state["started"]),
    )
    state["history"].append(dict(zip(HISTORY, row, strict=True)))
    for each in scheduler.optimizer.param_groups:
        each["lr"] = state["lr"]  # the plateau's own rate, without the annealing
    if args.recipe == "deck":
        scheduler.step(scores["loss"])
    state["best"] = max(state["best"], scores["miou"] or 0.0)
    state |= {"lr": group["lr"], "epoch": state["epoch"] + 1, "step": 0, "loss_sum": 0.0, "started": clock.now()}
    if clock.spent() >= 1:
        state["time_up"] = args.max_minutes


if __name__ == "__main__":
    exit_on_bad_input(main)
