"""N ranks compute what one process computes, in three ways; a rank that fails ends the run.

Ranks that train are started as users start them, by torchrun, and so are those that fail; this file
is also the script that they run. Only ranks that compare numbers are processes of a server.
"""

import math
import os
import re
import signal
import socket
import subprocess
import sys
import time
from datetime import timedelta
from functools import cache, partial
from pathlib import Path

import cuda_kernels
import pytest
import torch
import torch.distributed as dist
from benchmarks import parity
from child_processes import run_ranks
from conftest import assert_same_counts, shrink_models
from PIL import Image
from torch import nn

from segmentation import distributed
from segmentation.checkpoint import load_checkpoint, read_checkpoint
from segmentation.errors import BadInput, exit_on_bad_input
from segmentation.evaluation.scoring import score_split
from segmentation.losses import TverskyLoss
from segmentation.metrics import ConfusionMatrix
from segmentation.training.step_loss import CountingLoss
from segmentation.training.sync_batchnorm import SyncBatchNorm2d

ROOT = Path(__file__).resolve().parents[1]
EXACT = 1e-9  # of all weights after the last step, and of the first gradient, in float64
SINGLE = 1e-4  # of the first gradient in float32
MISTAKES = ("half", "loss", "batchnorm")
SHORT, LONG = 2, 20
LEAVING = 100  # seconds that a pretended NCCL takes to leave while the others are busy


def torchrun(
    ranks: int, *arguments: str, restarts: int = 0, script: str = __file__, **environment: str
):
    """Start ranks of one thread each; their output is captured together."""
    options = ["--standalone", f"--nproc_per_node={ranks}", f"--max-restarts={restarts}"]
    return subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", *options, script, *arguments],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
    )


def ends(process: subprocess.Popen, seconds: float = 120) -> tuple[int, str]:
    """Exit code and output; a hang is a failure of the test."""
    try:
        output, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.terminate()
        raise
    return process.returncode, output


launch = partial(parity.launch, start=run_ranks)


def in_one_process(**case) -> dict:
    before = torch.get_default_dtype()
    try:
        return parity.run(**case)
    finally:
        torch.set_default_dtype(before)


def assert_same_training(results: list[dict], one: dict, bar: float = EXACT) -> None:
    """Every rank ended where one process did: gradient, weights, buffers, moments, lr, scores."""
    first = results[0]
    for tensors in parity.TENSORS:
        assert parity.distance(first[tensors], one[tensors]) <= bar
    buffers = [name for name in one["weights"] if "running" in name or "num_batches" in name]
    for name in buffers:
        torch.testing.assert_close(
            first["weights"][name], one["weights"][name], rtol=bar, atol=1e-12
        )
    for result in results:
        # All its tensors are the first rank's, bit for bit.
        assert result["digest"] == first["digest"]
        assert result["losses"] == pytest.approx(one["losses"], rel=bar)
        assert result["lr"] == one["lr"]
        assert_same_counts(result["confusion"], one["confusion"])
        # One image: all ranks but one have nothing to evaluate.
        assert_same_counts(result["single"], one["single"])
        assert (result["confusion"], result["single"]) == (first["confusion"], first["single"])


@pytest.fixture(scope="module")
def two_ranks() -> dict[str, list[dict]]:
    """Small runs on two ranks, all in one start."""
    cases = {
        "segformer": {"steps": SHORT},
        "unet": {"model": "unet", "recipe": "fast", "steps": SHORT},
        "single": {"dtype": "float32", "steps": 1},
        "single unet": {"dtype": "float32", "model": "unet", "steps": 1},
        **{mistake: {"dtype": "float32", "mistake": mistake, "steps": 1} for mistake in MISTAKES},
    }
    with pytest.MonkeyPatch.context() as patch:
        shrink_models(patch)
        return dict(zip(cases, launch(2, list(cases.values())), strict=True))


@pytest.fixture(scope="module")
def other_ways() -> dict[str, list[dict]]:
    cases = {
        "fsdp": {"way": "fsdp", "steps": SHORT},
        "pipeline": {"way": "pipeline", "steps": SHORT},
        "pipeline unet": {"model": "unet", "recipe": "fast", "way": "pipeline", "steps": 1},
    }
    with pytest.MonkeyPatch.context() as patch:
        shrink_models(patch)
        return dict(zip(cases, launch(2, list(cases.values())), strict=True))


@pytest.fixture(scope="module")
def one_process() -> dict[str, dict]:
    with pytest.MonkeyPatch.context() as patch:
        shrink_models(patch)
        runs = {
            "segformer": in_one_process(steps=SHORT),
            "unet": in_one_process(model="unet", recipe="fast", steps=SHORT),
        }
        runs |= {
            f"single {model}": in_one_process(model=model, steps=1, dtype="float32")
            for model in ("segformer", "unet")
        }
    return runs


@pytest.mark.parametrize("run", ["segformer", "unet"])
def test_two_ranks_train_as_one(two_ranks, one_process, run):
    assert_same_training(two_ranks[run], one_process[run])


@pytest.mark.slow
@pytest.mark.parametrize("run", ["fsdp", "pipeline"])
def test_two_ranks_that_share_a_model_train_as_one(other_ways, one_process, run):
    assert_same_training(other_ways[run], one_process["segformer"])


@pytest.mark.slow
def test_pipeline_takes_a_model_with_batchnorm_in_its_encoder(other_ways, one_process):
    first, second = other_ways["pipeline unet"]
    assert parity.distance(first["gradient"], one_process["unet"]["gradient"]) <= EXACT
    assert second["digest"] == first["digest"]


@pytest.mark.parametrize("run, model", [("single", "segformer"), ("single unet", "unet")])
def test_first_gradient_in_single_precision(two_ranks, one_process, run, model):
    first, second = two_ranks[run]
    assert parity.distance(first["gradient"], one_process[f"single {model}"]["gradient"]) <= SINGLE
    assert second["digest"] == first["digest"]


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_far_over_the_bars(two_ranks, one_process, mistake):
    right = one_process["single segformer"]["gradient"]
    assert parity.distance(two_ranks[mistake][0]["gradient"], right) > 100 * SINGLE


@pytest.mark.slow
def test_fsdp_holds_a_share_of_the_weights(other_ways, one_process):
    whole = one_process["segformer"]["bytes"]
    held = [result["bytes"] for result in other_ways["fsdp"]]
    assert sum(held) == whole
    assert max(held) < 1.05 * whole / 2


@pytest.mark.slow
def test_pipeline_holds_its_part_of_the_weights(other_ways, one_process):
    held = [result["bytes"] for result in other_ways["pipeline"]]
    assert sum(held) == one_process["segformer"]["bytes"]
    assert min(held) > 0


@pytest.mark.slow
def test_arithmetic_over_three_ranks():
    code, output = ends(torchrun(3, "arithmetic"))
    assert code == 0, output


def check_batchnorm(sizes: list[int], on_cuda: bool) -> None:
    """SyncBatchNorm2d on unequal shares (one empty) is BatchNorm2d on the whole.

    So are output, gradients and buffers. on_cuda: as on GPUs, with stand-ins for CUDA's kernels.
    """
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(sum(sizes), 3, 4, 5, generator=generator, dtype=torch.float64) * 3 + 100
    cotangent = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    whole, sync = nn.BatchNorm2d(3).double(), SyncBatchNorm2d(3).double()
    for norm in (whole, sync):
        nn.init.uniform_(norm.weight, generator=torch.Generator().manual_seed(1))
        nn.init.uniform_(norm.bias, generator=torch.Generator().manual_seed(2))
    if on_cuda:
        sync.with_any_operators = sync.with_cuda_kernels
    start = sum(sizes[: distributed.rank()])
    rows = slice(start, start + sizes[distributed.rank()])
    for _ in range(2):  # the second time about a running mean that is not 0
        all_x, own_x = x.clone().requires_grad_(), x[rows].clone().requires_grad_()
        expected, found = whole(all_x), sync(own_x)
        torch.testing.assert_close(found, expected[rows], rtol=1e-9, atol=1e-11)
        whole.zero_grad(), sync.zero_grad()
        (expected * cotangent).sum().backward()
        (found * cotangent[rows]).sum().backward()
        torch.testing.assert_close(own_x.grad, all_x.grad[rows], rtol=1e-9, atol=1e-11)
        for name in ("weight", "bias"):
            gradient = distributed.all_reduce_sum(getattr(sync, name).grad)
            torch.testing.assert_close(gradient, getattr(whole, name).grad, rtol=1e-9, atol=1e-11)
    for name, buffer in whole.named_buffers():
        torch.testing.assert_close(getattr(sync, name), buffer, rtol=1e-9, atol=0)
    torch.testing.assert_close(sync.eval()(x), whole.eval()(x), rtol=1e-9, atol=1e-11)


def check_bad_input() -> None:
    """Whichever rank has it, all raise it, and say whose it is unless it is the first's."""
    for culprit in range(3):

        def action(culprit: int = culprit) -> int:
            if distributed.rank() == culprit:
                raise BadInput("no such folder")
            return culprit

        of_whom = f"rank {culprit} ({socket.gethostname()}): " if culprit else ""
        with pytest.raises(BadInput, match=f"^{re.escape(of_whom)}no such folder$"):
            distributed.first_rank_first(action)
    assert distributed.first_rank_first(distributed.rank) == distributed.rank()


def check_sums() -> None:
    rank = distributed.rank()
    x = torch.tensor([1.0 + rank], requires_grad=True)
    total = distributed.all_reduce_sum(x)
    (total * (1 + rank)).sum().backward()
    assert (total.item(), x.grad.item()) == (6, 6)  # 1 + 2 + 3, forward and backward
    with distributed.alone():
        assert (distributed.world_size(), distributed.all_reduce_sum(x).item()) == (1, 1 + rank)
    assert distributed.world_size() == 3
    assert distributed.gather([rank] * rank) == [1, 2, 2]


def check_confusion() -> None:
    """A pixel of class 0 on each rank, which rank k calls k: reduced, every rank holds all."""
    matrix = ConfusionMatrix(3)
    matrix.update(torch.tensor([[[distributed.rank()]]]), torch.tensor([[[0]]]))
    matrix.reduce()
    assert matrix.matrix.tolist() == [[1, 1, 1], [0, 0, 0], [0, 0, 0]]


def check_training_counts() -> None:
    """Summed over ranks once, however often they are saved and gone on from."""
    loss = CountingLoss(TverskyLoss(), 3, 1)
    logits = nn.functional.one_hot(torch.tensor([[[distributed.rank()]]]), 3)
    loss(logits.permute(0, 3, 1, 2).float(), torch.zeros(1, 1, 1, dtype=torch.int64))
    saved = loss.whole_matrix()
    other = CountingLoss(TverskyLoss(), 3, 1)
    other.go_on_from(saved)
    assert torch.equal(other.whole_matrix(), saved)
    assert saved.tolist() == [[1, 1, 1], [0, 0, 0], [0, 0, 0]]
    assert other.take_scores()["pixel_accuracy"] == pytest.approx(1 / 3)
    assert other.take_scores()["miou"] is None


def check_ignored_everywhere() -> None:
    logits = torch.randn(2, 3, 4, 4, requires_grad=True)
    loss = TverskyLoss()(logits, torch.full((2, 4, 4), 255))
    loss.backward()
    assert loss.item() == 0 and not logits.grad.any()


def check_scores() -> None:
    """Five images, and one, on three ranks: integer for integer what one rank counts by itself."""
    torch.manual_seed(0)
    model = parity.build_model(parity.CONFIGS["segformer"]).eval()
    for split in ("val", "single"):
        found = score_split(model, parity.Pictures(), split)
        with distributed.alone():
            expected = score_split(model, parity.Pictures(), split)
        assert found == expected
        images = len(parity.Pictures().splits[split])
        assert sum(map(sum, found["confusion"])) == images * parity.SIDE**2


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_matrix(ranks):
    """Twenty steps, unequal shards, a first rank whose crops are all ignored; every way."""
    cases = [{"model": "segformer", "way": way, "steps": LONG} for way in parity.WAYS]
    cases += [{"model": "unet", "way": "ddp", "steps": LONG}]
    cases += [{"model": "unet", "way": way, "steps": SHORT} for way in ("fsdp", "pipeline")]
    cases += [{"model": m, "way": "fsdp", "steps": SHORT} for m in ("segformer mlp", "uformer")]
    cases += [{"model": "segformer", "way": "ddp", "recipe": "fast", "steps": SHORT}]
    one = cache(in_one_process)
    for case, results in zip(cases, launch(ranks, cases), strict=True):
        expected = one(**case | {"way": "ddp"})
        assert_same_training(results, expected)
        if case["way"] == "fsdp":
            share = expected["bytes"] / ranks
            assert max(result["bytes"] for result in results) < 1.1 * share


@pytest.mark.slow
def test_a_checkpoint_goes_from_way_to_way(tmp_path):
    """fsdp on 4 ranks, pipeline on 3, ddp on 2, one process; each goes on from the one before."""
    legs = [(4, "fsdp", 10), (3, "pipeline", 4), (2, "ddp", 4)]
    first, start = 0, None
    for ranks, way, steps in legs:
        file = str(tmp_path / f"{way}.pt")
        case = {"way": way, "steps": steps, "first": first, "start": start, "save": file}
        [results] = launch(ranks, [case])
        model, _ = load_checkpoint(file)  # the plain file of one process
        found = score_split(model.float(), parity.Pictures(), "val")
        assert_same_counts(found["confusion"], results[0]["confusion"])
        first, start = first + steps, file
    last = in_one_process(steps=LONG - first, first=first, start=start)
    whole = in_one_process(steps=LONG)
    assert parity.distance(last["weights"], whole["weights"]) <= EXACT
    assert parity.distance(last["moments"], whole["moments"]) <= EXACT
    assert last["lr"] == whole["lr"]


@pytest.fixture
def train_flags(tmp_path) -> list[str]:
    """train.py's command line for a few steps on a few small pictures."""
    for folder in ("images", "masks"):
        (tmp_path / "data" / folder).mkdir(parents=True)
    pictures = parity.Pictures()
    for i in range(14):
        Image.fromarray(pictures.image(str(i))).save(tmp_path / "data" / "images" / f"{i:02}.png")
        Image.fromarray(pictures.mask(str(i))).save(tmp_path / "data" / "masks" / f"{i:02}.png")
    table = "".join(f"{k},class {k},{k},0,0\n" for k in range(parity.CLASSES))
    (tmp_path / "data" / "classes.csv").write_text("index,name,r,g,b\n" + table)
    flags = {
        "data": tmp_path / "data",
        "encoder-weights": "none",
        "augment": 0,
        "batch-size": 3,
        "workers": 0,
    }
    flags |= {"epochs": 2, "out": tmp_path / "run", "save-every": 1e-6}
    return [word for name, value in flags.items() for word in (f"--{name}", str(value))]


@pytest.mark.slow
def test_a_failing_rank_ends_all_with_its_message(train_flags, tmp_path):
    began = time.monotonic()
    code, output = ends(
        torchrun(2, "failing_train", *train_flags, FAILURE="raise", XDG_CACHE_HOME=str(tmp_path))
    )
    assert code == 1
    assert "RuntimeError: the disk of rank 1 is gone" in output
    assert time.monotonic() - began < 90


@pytest.mark.slow
def test_a_killed_rank_is_restarted_from_the_last_checkpoint(train_flags, tmp_path):
    environment = {"XDG_CACHE_HOME": str(tmp_path)}
    killed = torchrun(2, "failing_train", *train_flags, restarts=1, FAILURE="kill", **environment)
    code, output = ends(killed)
    assert code == 0, output
    assert "done in" in output
    other = [*train_flags, "--out", str(tmp_path / "undisturbed")]
    assert ends(torchrun(2, *other, script="train.py", **environment))[0] == 0
    found, expected = (
        read_checkpoint(tmp_path / run / "last.pt") for run in ("run", "undisturbed")
    )
    assert parity.distance(found["model"], expected["model"]) < 1e-6
    assert len(found["history"]) == 2


@pytest.mark.slow
def test_two_runs_on_one_host_do_not_collide(train_flags, tmp_path):
    environment = {"XDG_CACHE_HOME": str(tmp_path), "script": "train.py"}
    runs = [
        torchrun(2, *train_flags, "--out", str(tmp_path / name), **environment)
        for name in ("a", "b")
    ]
    for process in runs:
        code, output = ends(process)
        assert code == 0, output
    first, second = (read_checkpoint(tmp_path / name / "last.pt")["model"] for name in ("a", "b"))
    assert parity.distance(first, second) < 1e-6


@pytest.mark.slow
def test_train_resumes_another_way_and_on_other_ranks(train_flags, tmp_path):
    environment = {"XDG_CACHE_HOME": str(tmp_path), "script": "train.py"}
    for ranks, way, epochs in ((2, "fsdp", "1"), (3, "pipeline", "2"), (2, "ddp", "3")):
        flags = [*train_flags, "--parallel", way, "--epochs", epochs, "--resume"]
        code, output = ends(torchrun(ranks, *flags, **environment))
        assert code == 0, output
        assert f"epoch {epochs}/{epochs}" in output
    _, meta = load_checkpoint(tmp_path / "run" / "last.pt")
    assert len(meta["history"]) == 3
    assert all(math.isfinite(row["val_loss"]) for row in meta["history"])
    code, output = ends(
        torchrun(6, *train_flags, "--parallel", "pipeline", "--resume", **environment)
    )
    assert code != 0 and "5 parts for 6 ranks" in output


@pytest.mark.slow
@pytest.mark.parametrize("way", parity.WAYS)
def test_a_dry_run_over_ranks_is_said_once_and_leaves_no_run(train_flags, tmp_path, way):
    flags = [*train_flags, "--parallel", way, "--dry-run"]
    code, output = ends(torchrun(2, *flags, script="train.py", XDG_CACHE_HOME=str(tmp_path)))
    assert code == 0, output
    assert output.count("dry run: ") == 1
    left = {path.name for path in (tmp_path / "run").iterdir()}
    assert left == {"samples.png"}


@pytest.mark.slow
def test_what_one_rank_cannot_find_is_said_once(train_flags, tmp_path):
    environment = {"XDG_CACHE_HOME": str(tmp_path), "ONLY_RANK_1": f"--data {tmp_path / 'nothing'}"}
    code, output = ends(torchrun(2, "train_otherwise", *train_flags, **environment))
    assert code != 0
    sentence = f"{tmp_path / 'nothing'}: no such folder"
    assert output.count(sentence) == 1
    assert f"rank 1 ({socket.gethostname()}): {sentence}" in output
    assert "[rank0]: Traceback" not in output
    assert "SIGKILL" not in output  # half a minute after a rank that waits was asked to end


@pytest.mark.slow
def test_a_device_that_one_rank_has_not_is_said_once(train_flags, tmp_path):
    environment = {"XDG_CACHE_HOME": str(tmp_path), "ONLY_RANK_1": "--device cuda:99"}
    code, output = ends(
        torchrun(2, "train_otherwise", *train_flags, "--device", "cpu", **environment)
    )
    assert code != 0
    assert output.count("--device cuda:99") == 1
    assert f"error: rank 1 ({socket.gethostname()}): --device cuda:99: " in output
    assert "[rank0]: Traceback" not in output
    assert "SIGKILL" not in output


@pytest.mark.slow
@pytest.mark.parametrize("who", ["1", "0 1"])
def test_bad_input_that_ranks_meet_alone_is_said_once(who):
    code, output = ends(torchrun(2, "meet_bad_input", WHO=who))
    assert code != 0
    assert output.count("no such weights") == 1
    of_whom = "" if who == "0 1" else f"rank 1 ({socket.gethostname()}): "
    assert f"error: {of_whom}no such weights" in output


@pytest.mark.slow
def test_ranks_wait_for_the_slowest_as_long_as_it_takes_and_leave():
    code, output = ends(torchrun(2, "wait"))
    assert code == 0, output
    assert output.count("left") == 2


@pytest.mark.slow
def test_a_rank_that_fails_does_not_leave_the_group():
    """NCCL's leaving is a call of all ranks, and the others are in another one."""
    began = time.monotonic()
    code, output = ends(torchrun(2, "fail"))
    assert code == 1
    assert "RuntimeError: the disk of rank 1 is gone" in output
    assert "left" not in output
    assert time.monotonic() - began < LEAVING


def failing_train() -> None:
    """train.py, whose rank 1 fails in the sixth step, at the first try."""
    import train

    steps = 0
    forward = TverskyLoss.forward

    def fails(self, logits, target):
        nonlocal steps
        steps += 1
        if (
            steps == 6
            and distributed.rank() == 1
            and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
        ):
            if os.environ["FAILURE"] == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            raise RuntimeError("the disk of rank 1 is gone")
        return forward(self, logits, target)

    TverskyLoss.forward = fails
    train.main()


def train_otherwise() -> None:
    """train.py, with other flags on rank 1."""
    import train

    if os.environ["RANK"] == "1":
        sys.argv += os.environ["ONLY_RANK_1"].split()
    exit_on_bad_input(train.main)


def meet_bad_input() -> None:
    distributed.setup("cpu")

    def main() -> None:
        if os.environ["RANK"] in os.environ["WHO"].split():
            raise BadInput("no such weights")
        dist.barrier()

    exit_on_bad_input(main)


def slow_to_leave() -> None:
    """As NCCL may be, whose ranks leave together."""

    def leave() -> None:
        print("left", flush=True)
        time.sleep(LEAVING)

    dist.destroy_process_group = leave


def wait() -> None:
    """One second stands in for the ten minutes after which collectives give up."""
    distributed.setup("cpu")
    dist.destroy_process_group = lambda: print("left", flush=True)
    dist.distributed_c10d._set_pg_timeout(timedelta(seconds=1), dist.group.WORLD)

    def sleep_on(slow: int) -> int:
        if distributed.rank() == slow:
            time.sleep(3)
        return distributed.rank()

    assert distributed.first_rank_first(lambda: sleep_on(0)) == distributed.rank()
    assert distributed.gather([sleep_on(1)]) == [0, 1]
    assert distributed.all_reduce_sum(torch.tensor([sleep_on(0)])).item() == 1


def fail() -> None:
    slow_to_leave()
    distributed.setup("cpu")
    if distributed.rank() == 1:
        raise RuntimeError("the disk of rank 1 is gone")
    dist.all_reduce(torch.zeros(1))


def arithmetic() -> None:
    distributed.setup("cpu", timeout_minutes=1)
    check_bad_input()
    check_sums()
    check_confusion()
    check_training_counts()
    for sizes in ([4, 0, 2], [0, 4, 2]):
        check_batchnorm(sizes, on_cuda=False)
        with cuda_kernels.stand_ins():
            check_batchnorm(sizes, on_cuda=True)
    check_ignored_everywhere()
    check_scores()


if __name__ == "__main__":
    globals()[sys.argv.pop(1)]()
