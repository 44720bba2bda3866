"""Do exported files answer as the model does, and how fast is each runtime?

    python tests/benchmarks/exported.py                                # equality, then speed
    python tests/benchmarks/exported.py --only equality --data camvid  # on its val images too
    python tests/benchmarks/exported.py --only speed --sizes 4x256x256
    python tests/benchmarks/exported.py --only speed --peers --keep /tmp/graphs  # written once

Needs onnx, onnxscript, onnxruntime, openvino, transformers and segmentation_models_pytorch.

Equality: SegFormers with both decoders, U-Net and UFormer, with shuffled weights, as .pt2, in
ONNX Runtime and OpenVINO (float32), and the mlp decoder in transformers: the largest difference of
the logits over the largest logit, and the pixels whose argmax differs though their two best logits
lie further apart than twice that difference. On 20 odd sizes, and on all images of val.

Speed: median ms and peak memory of a process that runs one row alone, and the ratio to
transformers' eager float32, the median over such processes before each graph's rows. Ours run as
evaluate.py does, with malloc told to keep freed memory; peers as they come. bfloat16 rows are left
out where the processor has no such instructions. Peers are traced at the size that is measured.
Ours are traced once for all sizes; "fixed" rows give OpenVINO the size by model.reshape.
With --peers each graph of ours alternates with its peer's in the same runtime and process instead:
the SegFormers with transformers', the U-Net with segmentation_models_pytorch's.
"""

import argparse
import contextlib
import math
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segmentation.data.datasets import open_dataset
from segmentation.evaluation.export import export
from segmentation.hardware import has_bfloat16, keep_freed_memory
from segmentation.models import build_model
from segmentation.models.layers import Normalise

Run = Callable[[Tensor], Tensor]
CLASSES, ROUNDS = 11, 7
NORMS = {"model": "segformer", "num_classes": CLASSES, "norm_eps": 1e-5}
UNET = {"model": "unet", "num_classes": CLASSES}
CONFIGS = {
    "conv": NORMS,
    "mlp": {**NORMS, "decoder": "mlp"},
    "unet": UNET,
    "uformer": {
        "model": "uformer",
        "members": [UNET, NORMS],
        "weights": [
            [k / CLASSES for k in range(CLASSES)],
            [1 - k / CLASSES for k in range(CLASSES)],
        ],
    },
}
SPEED_GRAPHS = ("transformers", "mlp", "conv", "smp unet", "unet")
PEERS = {"mlp": "transformers", "conv": "transformers", "unet": "smp unet"}
RUNTIMES = (
    "eager",
    "eager bf16",
    "compiled",
    "compiled bf16",
    "pt2",
    "onnxruntime",
    "openvino",
    "openvino bf16",
    "openvino fixed",
    "openvino bf16 fixed",
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=["equality", "speed"])
    parser.add_argument("--models", nargs="+", default=list(CONFIGS), choices=list(CONFIGS))
    parser.add_argument("--data", metavar="DIR", help="compare on the val images of this set too")
    parser.add_argument("--images", type=int, metavar="N", help="so many of them (default: all)")
    parser.add_argument("--graphs", nargs="+", default=list(SPEED_GRAPHS), choices=SPEED_GRAPHS)
    parser.add_argument("--runtimes", nargs="+", default=list(RUNTIMES), choices=RUNTIMES)
    parser.add_argument("--sizes", nargs="+", default=["4x256x256", "2x512x512"], metavar="NxHxW")
    parser.add_argument("--keep", metavar="DIR", help="write graphs here, and time what lies here")
    parser.add_argument("--peers", action="store_true", help="ratios to the peer's own graph")
    parser.add_argument("--alone", nargs=4, help=argparse.SUPPRESS)  # one row's own process
    args = parser.parse_args()
    torch.manual_seed(0)
    if args.alone:
        print(*time_alone(*args.alone))
        return
    threads = torch.get_num_threads()
    load = os.getloadavg()[0]
    print(f"torch {torch.__version__}, {threads} threads, load average {load:.1f}\n", flush=True)
    if args.only != "speed":
        for name in args.models:
            print_equality(name, args.data, args.images)
    if args.only != "equality":
        for size in args.sizes:
            if args.peers:
                print_peers(size, args.graphs, args.runtimes, args.keep)
            else:
                print_speed(size, args.graphs, args.runtimes, args.keep)


# --- Equality ---


def shuffled(model: nn.Module) -> nn.Module:
    """No parameter and no statistic as it starts, so that none is forgotten unseen."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "log_weights" not in name:
                parameter += 0.02 * torch.randn(parameter.shape)
        for name, buffer in model.named_buffers():
            if "running" in name:
                buffer += 0.1 * torch.rand(buffer.shape)
    return model.eval()


def batches(folder: str | None, count: int | None) -> Iterator[Tensor]:
    """20 batches of noise of odd sizes, then the images of val."""
    generator = torch.Generator().manual_seed(0)
    for number in range(20):
        H, W = (int(side) for side in torch.randint(16, 150, (2,), generator=generator) * 2 + 1)
        yield torch.rand(1 + number % 3, 3, H, W, generator=generator)
    if folder:
        data = open_dataset(folder)
        for name in data.splits["val"][:count]:
            pixels = torch.from_numpy(np.array(data.image(name)))
            yield pixels.permute(2, 0, 1)[None].float() / 255


@torch.no_grad()
def print_equality(name: str, folder: str | None, count: int | None) -> None:
    model = shuffled(build_model(CONFIGS[name]))
    with tempfile.TemporaryDirectory() as place:
        runs = written(model, Path(place), huggingface=name == "mlp")
        worst = dict.fromkeys(runs, 0.0)
        wrong = dict.fromkeys(runs, 0)
        seen = 0
        for image in batches(folder, count):
            expected = model(image)
            seen += len(image)
            best, second = expected.topk(2, dim=1).values.unbind(1)
            for runtime, run in runs.items():
                found = run(image)
                error = (found - expected).abs().max()
                worst[runtime] = max(worst[runtime], (error / expected.abs().max()).item())
                clear = best - second > 2 * error
                wrong[runtime] += int((found.argmax(1) != expected.argmax(1))[clear].sum())
    for runtime in runs:
        verdict = "ok" if worst[runtime] <= 1e-4 and not wrong[runtime] else "DIFFERS"
        print(
            f"{name:9}{runtime:14}{seen:5} images, largest difference {worst[runtime]:.1e}, "
            f"{wrong[runtime]} clear pixels of another class: {verdict}",
            flush=True,
        )


def written(model: nn.Module, place: Path, huggingface: bool) -> dict[str, Run]:
    """The model's files, each in its runtime."""
    export(model, place / "model.pt2")
    export(model, place / "model.onnx")
    runs = {
        "torch.export": torch.export.load(place / "model.pt2").module(),
        "onnxruntime": in_onnxruntime(place / "model.onnx"),
        "openvino": in_openvino(place / "model.onnx", "f32"),
    }
    if huggingface:
        export(model, place / "folder")
        runs["transformers"] = Published(place / "folder")
    return runs


class Published(nn.Module):
    """transformers' model of an image in [0, 1], its logits interpolated as its pipeline does."""

    def __init__(self, folder: Path):
        from transformers import SegformerForSemanticSegmentation

        super().__init__()
        self.normalise = Normalise()
        self.model = SegformerForSemanticSegmentation.from_pretrained(folder).eval()

    def forward(self, image: Tensor) -> Tensor:
        normalised = (image - self.normalise.mean) / self.normalise.std
        logits = self.model(normalised).logits
        return F.interpolate(logits, size=image.shape[-2:], mode="bilinear", align_corners=False)


def in_onnxruntime(file: Path) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    return lambda image: torch.from_numpy(session.run(None, {"image": image.numpy()})[0])


def in_openvino(file: Path, precision: str, shape: tuple[int, ...] | None = None) -> Run:
    import openvino

    core = openvino.Core()
    model = core.read_model(file)
    if shape:
        model.reshape(list(shape))
    settings = {
        "INFERENCE_PRECISION_HINT": precision,
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
    }
    compiled = core.compile_model(model, "CPU", settings)
    return lambda image: torch.from_numpy(compiled(image.numpy())[0])


# --- Speed ---


def graph_of(name: str) -> nn.Module:
    if name == "smp unet":
        import segmentation_models_pytorch as smp

        unet = smp.Unet("resnet18", encoder_weights=None, classes=CLASSES)
        return nn.Sequential(Standardise(), unet).eval()
    if name == "transformers":
        with tempfile.TemporaryDirectory() as place:
            build_model(CONFIGS["mlp"]).save_huggingface(place)
            return Published(Path(place))
    return build_model(CONFIGS[name]).eval()


class Standardise(Normalise):
    """The normalisation in torch's own memory format, as users of the peers write it."""

    def forward(self, image: Tensor) -> Tensor:
        return (image - self.mean) / self.std


def runner(model: nn.Module, runtime: str, shape: tuple[int, ...], place: Path) -> Run:
    """The graph in a runtime. Peers are traced at this one size, ours by `export`."""
    kind, *words = runtime.split()
    precision = "bf16" in words
    if kind in ("eager", "compiled"):
        call = torch.compile(model) if kind == "compiled" else model

        def run(image: Tensor) -> Tensor:
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=precision):
                return call(image)

        return run
    ours = not isinstance(model, Published | nn.Sequential)
    if kind == "pt2":
        file = place / "model.pt2"
        if ours and not file.exists():
            export(model, file)
        elif not file.exists():
            torch.export.save(torch.export.export(model, (torch.rand(shape),)), file)
        module = torch.export.load(file).module()
        return lambda image: module(image)
    file = place / "model.onnx"
    if not file.exists():
        if ours:
            export(model, file)
        else:
            names = {"input_names": ["image"], "output_names": ["logits"]}
            program = torch.onnx.export(
                model, (torch.rand(shape),), dynamo=True, verbose=False, **names
            )
            program.save(file)
    if kind == "onnxruntime":
        return in_onnxruntime(file)
    fixed = shape if "fixed" in words else None
    return in_openvino(file, "bf16" if precision else "f32", fixed)


@torch.no_grad()
def print_peers(size: str, graphs: list[str], runtimes: list[str], keep: str | None) -> None:
    shape = batch_shape(size)
    image = torch.rand(shape)
    print(f"\n{size}, ratios to the peer's graph in the same runtime")
    for graph in (each for each in graphs if each in PEERS):
        peer = PEERS[graph]
        with (
            folder_of(keep, f"{peer} {size}") as theirs,
            folder_of(keep, f"{graph} {size}") as ours,
        ):
            models = graph_of(peer), graph_of(graph)
            for runtime in runtimes:
                first = runner(models[0], runtime, shape, Path(theirs))
                second = runner(models[1], runtime, shape, Path(ours))
                ms, ratio = alternate(first, second, image)
                print(f"{graph:14}{runtime:20}{ms:8.1f} ms{ratio:7.2f}", flush=True)


def print_speed(size: str, graphs: list[str], runtimes: list[str], keep: str | None) -> None:
    shape = batch_shape(size)
    fast = has_bfloat16(torch.device("cpu"))
    wanted = [each for each in runtimes if fast or "bf16" not in each]
    rows, baselines = [], []
    for graph in graphs:
        with folder_of(keep, f"{graph} {size}") as place:
            for kind in {"pt2", "onnxruntime"} & {each.split()[0] for each in wanted}:
                runner(graph_of(graph), kind, shape, Path(place))  # writes the file
            baselines.append(alone("transformers", "eager", size, place)[0])
            for runtime in wanted:
                if runtime.endswith("fixed") and is_peer(graph):
                    continue  # all of the peers' are
                rows.append((graph, runtime, *alone(graph, runtime, size, place)))
    usual = statistics.median(baselines)
    print(f"\n{size}: median ms, ratio, peak MiB of the process; transformers' eager float32 took")
    print(f"{usual:.0f} ms, the median of {min(baselines):.0f} to {max(baselines):.0f}")
    for graph, runtime, ms, peak in rows:
        print(f"{graph:14}{runtime:20}{ms:8.1f}{usual / ms:7.2f}{peak:8.0f}", flush=True)


def is_peer(graph: str) -> bool:
    return graph in PEERS.values()


def alone(*row: str) -> tuple[float, float]:
    """Median ms and peak MiB of a row in a process of its own; NaN where it cannot run."""
    command = [sys.executable, __file__, "--alone", *row]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        return math.nan, math.nan
    ms, peak = done.stdout.split()[-2:]
    return float(ms), float(peak)


def folder_of(keep: str | None, name: str) -> contextlib.AbstractContextManager[str]:
    """A temporary folder, or one of this name in the folder that is kept."""
    if keep is None:
        return tempfile.TemporaryDirectory()
    place = Path(keep, name.replace(" ", "-"))
    place.mkdir(parents=True, exist_ok=True)
    return contextlib.nullcontext(str(place))


def batch_shape(size: str) -> tuple[int, int, int, int]:
    N, H, W = map(int, size.split("x"))
    return N, 3, H, W


def alternate(first: Run, second: Run, image: Tensor) -> tuple[float, float]:
    """Median ms of the second, and the median of the ratios of pairs, after two that warm up."""
    pairs = []
    for _ in range(ROUNDS + 2):
        start = time.perf_counter()
        first(image)
        middle = time.perf_counter()
        second(image)
        pairs.append((middle - start, time.perf_counter() - middle))
    pairs = pairs[2:]
    return 1e3 * statistics.median(b for _, b in pairs), statistics.median(a / b for a, b in pairs)


def time_alone(graph: str, runtime: str, size: str, place: str) -> tuple[float, float]:
    """Median ms and peak MiB while it predicts; place has the graph's files."""
    if not is_peer(graph):
        keep_freed_memory()
    shape = batch_shape(size)
    image = torch.rand(shape)
    run = runner(graph_of(graph), runtime, shape, Path(place))
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the peak starts anew
    times = []
    with torch.no_grad():
        for _ in range(ROUNDS + 2):
            start = time.perf_counter()
            run(image)
            times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times[2:]), resident("VmHWM") / 1024


def resident(field: str) -> int:
    """KiB of this process, as Linux states them; elsewhere its largest size so far."""
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    line = next(line for line in status.read_text().splitlines() if line.startswith(field))
    return int(line.split()[1])


if __name__ == "__main__":
    main()
