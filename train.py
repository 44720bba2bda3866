"""Train one model: on a CPU or GPU, in one process or in many.

    python train.py                                           # built-in scenes, no download
    python train.py --model unet --data DIR --task binary
    torchrun --nproc_per_node=4 train.py --model segformer    # four GPUs, the same flags
    python train.py ... --resume                              # go on where the run stopped

The defaults are the recipe of the student project that this one follows ("the deck"): Tversky loss
0.3 / 0.7, Adam, reduce on plateau, 600 augmented samples an epoch; `--recipe fast` learns more in
the same minutes.
The batch size is global: N ranks compute what one computes.
"""

import sys
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.utils.data import DataLoader

from segmentation import distributed
from segmentation.arguments import command_line, recipe_of, training_arguments
from segmentation.checkpoint import restore_model
from segmentation.data.datasets import SegmentationDataset, open_dataset
from segmentation.data.samples import EpochOrder, TrainingSamples
from segmentation.errors import exit_on_bad_input
from segmentation.evaluation.inference import Prediction
from segmentation.evaluation.scoring import score_split
from segmentation.files import write_atomically, write_csv
from segmentation.hardware import (
    announce,
    environment,
    out_of_memory_is_bad_input,
    prepare,
    usual_workers,
)
from segmentation.pretrained.initial import start_fresh, start_from
from segmentation.recipes import (
    Recipe,
    criterion_for,
    learning_rate_factor,
    optimizer_for,
    sample_divisor,
    set_learning_rate,
)
from segmentation.report.curves import curves_svg
from segmentation.report.pictures import sample_sheet
from segmentation.training.clock import Clock, Stopped
from segmentation.training.dry_run import dry_run
from segmentation.training.frozen import count_parameters, freeze, train_mode
from segmentation.training.log import print_epoch, print_summary, show_progress
from segmentation.training.memory import check_memory, step_memory
from segmentation.training.pace import fit_recipe, fits_time, set_dropout
from segmentation.training.parallel import (
    ParallelModel,
    distribute_model,
    load_optimizer_state,
    rank_slice,
    whole_model,
)
from segmentation.training.pipeline import Pipeline
from segmentation.training.progress import HISTORY, Progress
from segmentation.training.run_folder import (
    Run,
    check_classes,
    open_run,
    try_write,
    write_config,
)
from segmentation.training.step_loss import CountingLoss, LossOfStep
from segmentation.training.workers import check_batch, check_labelled, make_loader


@out_of_memory_is_bad_input("use --crop H W, a smaller --image-size or --batch-size, or --amp")
def main() -> None:
    """The stages of a training in their order. Long, because each is a few calls made once."""
    args = training_arguments(__doc__.split("\n\n")[0])
    recipe = recipe_of(args)
    clock = Clock(args.max_minutes, args.save_every)  # from here on a signal is noted

    # 1. One process, or one of many.
    device = distributed.setup(args.device)
    announce(device, args.device)
    torch.manual_seed(args.seed)

    # 2. The run's folder, and the run in it, if one is to go on.
    out = Path(args.out)
    saved = distributed.first_rank_first(lambda: open_run(out, vars(args)))
    if saved:
        clock.go_on_from(saved["seconds"])
    if args.amp is None and (saved or not fits_time(recipe, args)):
        args.amp = bool(saved) and saved["args"].get("amp", False)
    prepare(device, args.amp)

    # 3. Data. Order and draws are keyed by (seed, epoch, image), not by rank or worker.
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
    if args.fit_all:
        data = data.without_val()
    check_labelled(data)
    if saved:
        check_classes(saved, data.classes, out / "last.pt")

    # 4. Model: the stopped run's, or a new one.
    if saved:
        model = restore_model(saved, out / "last.pt")
        config, source = saved["config"], saved["encoder_weights"]
    else:
        segformer = {
            "variant": args.variant,
            "decoder": args.decoder,
            "drop_path": recipe.drop_path,
            "dropout": recipe.dropout,
        }
        if args.init:
            start = partial(start_from, args.init, args.model, data.classes, segformer)
        else:
            count = len(data.classes)
            start = partial(start_fresh, args.model, count, segformer, args.encoder_weights)
        model, config, source = distributed.first_rank_first(start)
    model.to(device)
    freeze(model, args.freeze_members, args.freeze_encoder)
    train_mode(model)

    # 5. What the recipe leaves to the time limit.
    size = args.crop or data.image(data.splits["train"][0]).shape[:2]
    check_batch(recipe.batch_size, *size)
    if saved:
        stored = saved.get("recipe", asdict(recipe))  # older checkpoints have none
        recipe = replace(Recipe(**stored), epochs=recipe.epochs)
    elif fits_time(recipe, args):
        recipe, clock.validation_seconds = fit_recipe(recipe, args, model, data)
        set_dropout(model, config, recipe)
    samples = TrainingSamples(data, "train", recipe, crop=args.crop, seed=args.seed)
    place, places = rank_slice(args.parallel)
    order = EpochOrder(len(samples), recipe.batch_size, seed=args.seed, rank=place, world=places)
    workers = usual_workers(device) if args.workers is None else args.workers
    loader = make_loader(samples, order, workers, device)

    # 6. Loss, memory, ranks.
    criterion = criterion_for(recipe, data.pixel_counts["train"]).to(device)
    ranks = distributed.world_size()
    needed = step_memory(
        model,
        criterion,
        recipe.batch_size / ranks,  # a pipeline's ranks share the memory: this is their mean
        size,
        amp=args.amp,
        compiled=args.compile,
        shards=1 if args.parallel == "ddp" else ranks,
    )
    memory = check_memory(needed, device, args.amp)
    counting = CountingLoss(criterion, len(data.classes), recipe.batch_size).to(device)
    parallel = distribute_model(model, args.parallel, device, counting, args.amp)
    if args.compile:
        # Sizes are few, and torch's compiler fails on a map whose sides are unknown.
        parallel.compile(dynamic=False)

    # 7. Optimizer and schedule.
    optimizer = optimizer_for(recipe, parallel.named_parameters(), device)
    scheduler = ReduceLROnPlateau(optimizer, factor=0.1, patience=3)
    progress = Progress(lr=recipe.lr, epoch_began=clock.now())
    if saved:
        resume = saved["resume"]
        load_optimizer_state(parallel, optimizer, resume["optimizer"])
        scheduler.load_state_dict(resume["scheduler"])
        progress = Progress(**resume["progress"], history=saved["history"])
        counting.go_on_from(resume.get("confusion"))

    # 8. What every checkpoint of this run holds; checkpoint.py lists the keys.
    about = {
        "config": config,
        "classes": data.classes,
        "palette": data.palette,
        "data": data.describe(),
        "loss": {"alpha": recipe.alpha, "beta": recipe.beta},
        "recipe": asdict(recipe),
        "args": vars(args),
        "command": command_line(),
        "encoder_weights": source,
        "environment": environment(device),
        "parameter_counts": count_parameters(model),
    }
    run = Run(out, about, recipe, parallel, counting, optimizer, scheduler, progress, clock)
    if distributed.rank() == 0:
        if not args.dry_run:
            write_config(out, about)
            if saved:
                write_history(run)
        if not saved:
            spread = [samples[0, i * len(samples) // 8, 1] for i in range(8)]
            sheet = sample_sheet(spread, data.palette)
            try_write(out / "samples.png", lambda path, image: image.save(path), sheet)
        print_summary(data, model, source, len(order), memory, out)
    if args.dry_run:
        step = partial(training_step, parallel, counting, optimizer, amp=args.amp)
        dry_run(step, loader, len(order), device)
        return

    # 9. Train.
    clock.begin_training(fresh=not saved)
    try:
        how = Prediction(amp=args.amp)
        written = train_epochs(run, model, data, order, loader, how)
    except Stopped:
        run.leave_resumable()
        return
    if not written:
        sys.exit(f"error: done, but the last save failed: {out} holds files of an earlier moment")
    best = "the last weights" if args.fit_all else f"best val mIoU {progress.best_miou:.4f}"
    distributed.say(f"done in {clock.now() / 60:.1f} minutes: {best}, {out / 'best.pt'}")


def train_epochs(
    run: Run,
    model: nn.Module,
    data: SegmentationDataset,
    order: EpochOrder,
    loader: DataLoader,
    how: Prediction,
) -> bool:
    """Train, score val and save, epoch by epoch, to the last or to the time limit.

    Collective. model: what run.parallel has spread over ranks. False if the last save failed.
    Raises Stopped after a signal, `run.progress` complete.
    """
    recipe, progress, clock = run.recipe, run.progress, run.clock
    steps = len(order)

    def divisor_at(step: int) -> int:
        """All ranks call it after the same poll, so they get the same answer."""
        share = progress.share(step, steps, recipe.epochs, clock.time_used())
        return sample_divisor(recipe, share)

    written = True
    while not progress.is_finished(recipe.epochs, clock.limit_minutes):
        order.set_epoch(progress.epoch, start=progress.step, divisor_at=divisor_at)
        train_mode(model)
        data_wait = train_one_epoch(run, loader, how.amp)
        trained_until = clock.now()
        # Validation images have many sizes, and each would be compiled anew.
        with clock.validation(), torch.compiler.set_stance("force_eager"):
            whole = whole_model(run.parallel, run.about["config"])
            scores = score_split(
                whole, data, "val", how, **run.about["loss"], before_each=clock.check
            )
        finish_epoch(run, scores, trained_until)
        if clock.time_used() >= 1:
            progress.limit_reached = clock.limit_minutes
        written = save_epoch(run, scores)
        if distributed.rank() == 0:
            print_epoch(progress, recipe.epochs, data_wait)
        if clock.poll() and not progress.is_finished(recipe.epochs, clock.limit_minutes):
            raise Stopped
    return written


def train_one_epoch(run: Run, loader: DataLoader, amp: bool) -> float:
    """Train from progress.step to the end of the epoch or of the time.

    Collective. Gives the share of the time that was spent waiting for data. Raises Stopped after a
    signal, `run.progress` complete.
    """
    recipe, progress, clock = run.recipe, run.progress, run.clock
    device = next(run.parallel.parameters()).device
    progress.loss_sum = torch.as_tensor(progress.loss_sum, device=device)
    steps = progress.step + len(loader)
    before: LossOfStep | None = None
    began = asked = clock.now()
    waited = 0.0

    for batch in loader:
        waited += clock.now() - asked
        time_used = clock.time_used()
        share = progress.share(progress.step, steps, recipe.epochs, time_used)
        rate = progress.lr * learning_rate_factor(recipe, time_used, share)
        set_learning_rate(run.optimizer, rate)
        loss = training_step(run.parallel, run.criterion, run.optimizer, batch, amp)
        progress.loss_sum += loss
        progress.step += 1
        if before:  # this step is queued, so the device works while the host looks at the last loss
            before.check()
            show_progress(progress, steps, recipe, before.loss, clock)
        before = LossOfStep(loss, batch["name"])

        if clock.poll():
            before.check()
            raise Stopped
        if clock.time_used() >= 1:
            break
        if clock.save_is_due():
            before.check()
            run.save("last.pt")
        asked = clock.now()
    if before:
        before.check()
    return waited / (clock.now() - began)


def training_step(
    parallel: ParallelModel,
    criterion: nn.Module,
    optimizer: Optimizer,
    batch: dict,
    amp: bool = False,
) -> Tensor:
    """One step of the optimizer. Collective: each rank gives its share of a global batch.

    batch: image uint8 N x 3 x H x W, mask uint8 N x H x W, key int64 N. Gives the global loss. The
    gradients stay until the next step.
    """
    device = next(parallel.parameters()).device
    image, mask, key = (
        batch[name].to(device, non_blocking=True) for name in ("image", "mask", "key")
    )
    image, mask = image / 255, mask.long()
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


def finish_epoch(run: Run, scores: dict, trained_until: float) -> None:
    """Collective: write the epoch's row, step the scheduler, move on to the next epoch."""
    recipe, progress, groups = run.recipe, run.progress, run.optimizer.param_groups
    now = run.clock.now()
    trained_images = progress.step * recipe.batch_size
    trained = run.criterion.take_scores()
    row = (
        progress.epoch + 1,
        float(progress.loss_sum) / progress.step,
        scores["loss"],
        scores["miou"],
        scores["mpa"],
        groups[0]["lr"] / groups[0]["lr_share"],
        now - progress.epoch_began,
        trained_images / (trained_until - progress.epoch_began),
        trained["miou"],
        trained["mpa"],
    )
    for group in groups:
        group["lr"] = progress.lr  # the plateau's own, without annealing
    if recipe.decay is None:
        run.scheduler.step(scores["loss"])
    progress.complete_epoch(dict(zip(HISTORY, row, strict=True)), groups[0]["lr"], now)


def save_epoch(run: Run, scores: dict) -> bool:
    """Collective: best.pt if the epoch is the best, last.pt, history. False if one is missing.

    progress.best_miou is that of the file best.pt: a good epoch that was lost is not the best.
    Without val every epoch is taken for the best.
    """
    written = True
    miou = scores["miou"] or 0.0
    if scores["loss"] is None or miou > run.progress.best_miou:
        written = run.save("best.pt", scores)
        if written:
            run.progress.best_miou = miou
    written = run.save("last.pt", scores) and written
    if distributed.rank() == 0:
        written = write_history(run) and written
    return written


def write_history(run: Run) -> bool:
    """history.csv in full precision and curves.svg. False, and said, if one is not written."""
    history = run.progress.history
    # Older checkpoints have fewer columns.
    rows = [HISTORY, *([row.get(column) for column in HISTORY] for row in history)]
    curves = curves_svg({run.out.resolve().name: history})
    written = try_write(run.out / "history.csv", write_csv, rows)
    drawn = try_write(run.out / "curves.svg", write_atomically, curves)
    return written and drawn


if __name__ == "__main__":
    exit_on_bad_input(main)
