"""Is it faster than what one would use instead? One table against the peers installed here.

    python tests/benchmarks/speed.py                   # all of it, two minutes on two cores
    python tests/benchmarks/speed.py --only mlp loss   # the rows whose names hold such a word
    python tests/benchmarks/speed.py --only profile    # where a step of ours spends its time

Peers: transformers' SegFormer-B0, segmentation_models.pytorch's Unet("resnet18") and TverskyLoss,
torchmetrics' confusion matrix, each as its users run it: default memory layout, default (fused)
attention, logits interpolated to the size of the labels. Times are medians of alternating pairs
in one process, ratios the medians over the pairs. Where the weights can be the same they are, and
the outputs are asserted equal first; the ConvDecoder and the U-Net decoder are this project's own
shapes, so there only the task is the same. A train step is forward, cross entropy, backward;
dropout is off on both sides. The peers get an image normalised beforehand, these models normalise
it themselves.

FLOPs are those of matrix products and convolutions (torch.utils.flop_counter), a train step's
three times its forward's: each product has two gradients, and the counter takes a depthwise
convolution's for a dense one's. The share of peak is FLOPs over time over this machine's fastest
float32 matrix product in this run: torch.mm, or the same product as a 1x1 convolution.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable

import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode
from torchmetrics.classification import MulticlassConfusionMatrix
from transformers import SegformerConfig, SegformerForSemanticSegmentation
from transformers.utils import logging

from segmentation import ConfusionMatrix, MixTransformer, ResNet18UNet, SegFormer, TverskyLoss
from segmentation.hardware import keep_freed_memory
from segmentation.models.layers import Normalise

PAIRS, BATCH, CLASSES = 7, 4, 19
LABELS = (8, 11, 360, 480)  # N, K, H, W of the rows about loss and metric: CamVid
KINDS = {  # of a profile: what the names of torch's operators hold
    "products, convolutions": ("convolution", "aten::mm", "aten::addmm", "aten::bmm"),
    "attention": ("scaled_dot_product",),
    "interpolation, loss": ("upsample", "log_softmax", "nll_loss"),
    "GELU, ReLU, norms": ("gelu", "threshold", "clamp", "norm"),
    "sums, copies, the rest": ("",),
}


class TransformersSegFormer(nn.Module):
    """transformers' model, its logits interpolated as its own loss and post-processing do."""

    def __init__(self):
        super().__init__()
        config = SegformerConfig(
            num_labels=CLASSES, drop_path_rate=0.0, classifier_dropout_prob=0.0
        )
        self.model = SegformerForSemanticSegmentation(config)

    def forward(self, image: Tensor) -> Tensor:
        """Normalised image N x 3 x H x W -> logits N x K x H x W."""
        return F.interpolate(
            self.model(image).logits, size=image.shape[-2:], mode="bilinear", align_corners=False
        )


class EncoderAlone(nn.Module):
    """What no decoder can beat: the encoder, a 1x1 convolution of its first map, interpolated."""

    def __init__(self):
        super().__init__()
        self.normalise, self.encoder = Normalise(), MixTransformer()
        self.classify = nn.Conv2d(self.encoder.channels[0], CLASSES, 1).to(
            memory_format=torch.channels_last
        )

    def forward(self, image: Tensor) -> Tensor:
        """RGB in [0, 1], N x 3 x H x W -> N x K x H x W."""
        first, *others = self.encoder(self.normalise(image))
        # So that every stage has a gradient.
        logits = self.classify(first) + sum(other.mean() for other in others)
        return F.interpolate(logits.contiguous(), size=image.shape[-2:], mode="bilinear")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only", nargs="+", metavar="WORD", default=[""], help="rows whose name holds one of these"
    )
    only = parser.parse_args().only
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.manual_seed(0)
    keep_freed_memory()  # for both sides, or the time of a step hangs on what ran before it
    products = matrix_product_rates()
    peak = max(products)
    processor = torch.backends.cpu.get_cpu_capability()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {processor}")
    rates = f"torch.mm {products[0]:.0f}, 1x1 convolution {products[1]:.0f} GFLOP/s"
    print(f"float32 product of 2048 x 2048: {rates}\n")
    times = f"{'peer ms':>9}{'ours ms':>9}{'ratio':>7}{'bar':>6}"
    print(f"{'work':38}{times}{'peer GF':>9}{'ours GF':>9}{'of peak':>9}")
    for name, bar, make in rows():
        if any(word in name for word in only):
            peer, ours = make()
            peer_ms, ours_ms, ratio = compare(peer, ours)
            peer_flops, ours_flops = flops(peer), flops(ours)
            share = f"{ours_flops / ours_ms / 1e6 / peak:9.0%}" if ours_flops else f"{'-':>9}"
            print(
                f"{name:38}{peer_ms:9.1f}{ours_ms:9.1f}{ratio:6.2f}x{bar:5.1f}x"
                f"{peer_flops / 1e9:9.1f}{ours_flops / 1e9:9.1f}{share}",
                flush=True,
            )
    if any(word in "loss memory" for word in only):
        peer, ours = (extra_memory(step) for step in losses())
        sizes = f"peer {peer / 2**20:.0f} MiB, ours {ours / 2**20:.0f} MiB"
        share = f"{ours / peer:.2f} of it (bar: 0.50)"
        print(f"\nTversky loss, extra peak memory: {sizes}, {share}")
    for train in (True, False):
        if any(word in "profile" for word in only):
            print_profile(train)


def rows() -> list[tuple[str, float, Callable[[], tuple[Callable, Callable]]]]:
    """Name, bar, and what makes the two functions to compare, peer first."""
    table: list[tuple[str, float, Callable[[], tuple[Callable, Callable]]]] = []
    for decoder, size, train in (
        ("mlp", 256, True),
        ("mlp", 512, True),
        ("mlp", 256, False),
        ("mlp", 512, False),
        ("conv", 256, True),
        ("encoder alone", 256, True),
        ("encoder alone", 256, False),
    ):
        name = f"SegFormer-B0 {decoder}, {'train' if train else 'infer'}, {BATCH}x{size}x{size}"
        bar = {"conv": 4.0, "mlp": 3.0 if train else 2.5}.get(decoder, 0.0)
        table.append((name, bar, lambda d=decoder, s=size, t=train: segformers(d, s, t)))
    for train in (True, False):
        name = f"U-Net ResNet18, {'train' if train else 'infer'}, {BATCH}x256x256"
        table.append((name, 1.5, lambda t=train: unets(256, t)))
    shape = "x".join(map(str, LABELS))
    table.append((f"Tversky loss, fwd+bwd, {shape}", 2.0, losses))
    table.append((f"confusion matrix, {shape}", 5.0, confusions))
    return table


def segformers(decoder: str, size: int, train: bool) -> tuple[Callable, Callable]:
    peer = TransformersSegFormer().eval()
    image = torch.rand(BATCH, 3, size, size)
    normalised = Normalise()(image).contiguous()
    if decoder == "mlp":
        with tempfile.TemporaryDirectory() as folder:
            peer.model.save_pretrained(folder)
            ours = SegFormer.from_huggingface(folder)
        with torch.inference_mode():
            torch.testing.assert_close(ours(image), peer(normalised), rtol=1e-4, atol=1e-5)
    elif decoder == "conv":
        ours = SegFormer(CLASSES, decoder=decoder)
    else:
        ours = EncoderAlone()
    target = torch.randint(CLASSES, (BATCH, size, size))
    return Step(peer, normalised, target, train), Step(ours, image, target, train)


def unets(size: int, train: bool) -> tuple[Callable, Callable]:
    image, target = torch.rand(BATCH, 3, size, size), torch.randint(CLASSES, (BATCH, size, size))
    peer = smp.Unet("resnet18", encoder_weights=None, classes=CLASSES)
    return Step(peer, Normalise()(image).contiguous(), target, train), Step(
        ResNet18UNet(CLASSES), image, target, train
    )


class Step:
    """Forward, loss and backward; or forward alone, in eval mode."""

    def __init__(self, model: nn.Module, image: Tensor, target: Tensor, train: bool):
        self.model, self.image, self.target, self.train = model.train(train), image, target, train

    @torch.inference_mode()
    def forward(self) -> None:
        self.model(self.image)

    def __call__(self) -> None:
        if self.train:
            self.model.zero_grad()
            F.cross_entropy(self.model(self.image), self.target).backward()
        else:
            self.forward()


def losses() -> tuple[Callable, Callable]:
    N, K, H, W = LABELS
    logits, target = torch.randn(N, K, H, W, requires_grad=True), torch.randint(K, (N, H, W))
    peer = smp.losses.TverskyLoss(
        "multiclass", alpha=0.3, beta=0.7, ignore_index=255, smooth=0.0, eps=1e-7
    )
    ours = TverskyLoss(alpha=0.3, beta=0.7)

    def gradient(criterion: nn.Module) -> Callable[[], Tensor]:
        return lambda: torch.autograd.grad(criterion(logits, target), logits)[0]

    # The peer's sums are float32.
    torch.testing.assert_close(ours(logits, target), peer(logits, target), rtol=1e-4, atol=0)
    torch.testing.assert_close(gradient(ours)(), gradient(peer)(), rtol=1e-3, atol=1e-10)
    return gradient(peer), gradient(ours)


def confusions() -> tuple[Callable, Callable]:
    N, K, H, W = LABELS
    prediction, target = torch.randint(K, (N, H, W)), torch.randint(K, (N, H, W))
    target[:, :20] = 255
    peer, ours = MulticlassConfusionMatrix(K, ignore_index=255), ConfusionMatrix(K)
    peer.update(prediction, target)
    ours.update(prediction, target)
    assert torch.equal(peer.confmat, ours.matrix)
    return lambda: peer.update(prediction, target), lambda: ours.update(prediction, target)


def compare(peer: Callable, ours: Callable) -> tuple[float, float, float]:
    """Median ms of each, and median ratio: PAIRS alternating pairs after one that warms up."""
    times = []
    for _ in range(PAIRS + 1):
        start = time.perf_counter()
        peer()
        middle = time.perf_counter()
        ours()
        times.append((1e3 * (middle - start), 1e3 * (time.perf_counter() - middle)))
    pairs = times[1:]
    return (
        statistics.median(a for a, _ in pairs),
        statistics.median(b for _, b in pairs),
        statistics.median(a / b for a, b in pairs),
    )


def flops(function: Callable) -> int:
    """Of a model's step, else 0; fused attention counts as the products that it consists of."""
    if not isinstance(function, Step):
        return 0
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        function.forward()
    return counter.get_total_flops() * (3 if function.train else 1)


def extra_memory(function: Callable) -> int:
    """Bytes: the highest sum of what the function allocates and has not yet freed."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        function()
    held = peak = 0
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def print_profile(train: bool, steps: int = 7) -> None:
    """Where a step of SegFormer-B0 with the paper's decoder spends its time, beside its peer's."""
    peer, ours = segformers("mlp", 256, train)
    peer_ms, ours_ms, _ = compare(peer, ours)
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for _ in range(steps):
            ours()
    spent = dict.fromkeys(KINDS, 0.0)
    for event in profiler.key_averages():
        kind = next(
            kind for kind, names in KINDS.items() if any(name in event.key for name in names)
        )
        spent[kind] += event.self_cpu_time_total / 1e3 / steps
    work = "train" if train else "infer"
    times = f"peer {peer_ms:.0f} ms, ours {ours_ms:.0f} ms"
    print(f"\nSegFormer-B0 mlp, {work}, {BATCH}x256x256: {times}; of ours, profiled:")
    for kind, ms in spent.items():
        share, beside = ms / sum(spent.values()), ms / peer_ms
        print(f"{kind:28}{ms:7.1f} ms{share:6.0%}{beside:8.1%} of the peer's whole step")


def matrix_product_rates(side: int = 2048) -> tuple[float, float]:
    """GFLOP/s of the best of ten side x side products, by torch.mm and as a 1x1 convolution."""
    a, b = torch.rand(side, side), torch.rand(side, side)
    image = a.view(1, 32, side // 32, side).permute(0, 3, 1, 2)
    rates = []
    for product in (lambda: a @ b, lambda: F.conv2d(image, b[:, :, None, None])):
        times = []
        for _ in range(10):
            start = time.perf_counter()
            with torch.inference_mode():
                product()
            times.append(time.perf_counter() - start)
        rates.append(2e-9 * side**3 / min(times))
    return rates[0], rates[1]


if __name__ == "__main__":
    main()
