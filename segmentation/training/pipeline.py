"""A model as a pipeline: encoder levels and decoder on different ranks, fed with micro-batches.

Huang et al., "GPipe: Efficient Training of Giant Neural Networks using Pipeline Parallelism", 2019,
arXiv:1811.06965. The schedule and the transport are torch.distributed.pipelining's. Written here is
where BatchNorm and a loss over the whole batch are computed (`LastPart`), so that a pipeline too
computes what one process computes.
"""

import copy
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage, ScheduleGPipe

from ..distributed import alone, rank, say, world_size
from ..errors import BadInput
from ..models.mix_transformer import Stage, draw_depth
from ..models.segformer import SegFormer
from ..models.unet import ResNet18UNet

Single = SegFormer | ResNet18UNet  # what has one encoder and one decoder
MICRO_BATCHES_PER_RANK = 4  # GPipe, section 2.3: ranks then wait for a negligible time


def encoder_levels(model: Single) -> list[list[nn.Module]]:
    """The layers from the image to the first map, from the first map to the second, and so on."""
    if isinstance(model, SegFormer):
        first, *others = model.encoder.stages
        return [[model.normalise, first], *([stage] for stage in others)]
    e = model.encoder
    return [
        [model.normalise, e.conv1, e.bn1, nn.ReLU()],
        [e.maxpool, e.layer1],
        [e.layer2],
        [e.layer3],
        [e.layer4],
    ]


class Part(nn.Module):
    """Consecutive levels of an encoder.

    Takes the maps of the levels before it, or the image on the first rank, and gives these maps and
    its own. Between ranks every map is N x C x H x W contiguous; the models work channels last.
    """

    def __init__(self, levels: list[list[nn.Module]], amp: bool):
        super().__init__()
        self.levels = levels
        self.amp = amp
        self.layers = nn.ModuleList(layer for level in levels for layer in level)

    def forward(self, *maps: Tensor, keys: Tensor) -> tuple[Tensor, ...]:
        dtype = maps[0].dtype
        device = maps[0].device.type
        with torch.autocast(device, torch.bfloat16, enabled=self.amp):
            for level in self.levels:
                x = maps[-1].contiguous(memory_format=torch.channels_last)
                for layer in level:
                    if isinstance(layer, Stage):
                        x = layer(x, iter(draw_depth(layer, keys, x)))
                    else:
                        x = layer(x)
                maps += (x,)
        if rank() == 0:
            maps = maps[1:]  # without the image
        return tuple(x.to(dtype).contiguous() for x in maps)


class Arrived(nn.Module):
    """Stands for the encoder on the last rank: gives the maps that all ranks have computed."""

    maps: list[Tensor]

    def forward(self, image: Tensor, keys: Tensor | None = None) -> list[Tensor]:
        return self.maps


class HandBack(torch.autograd.Function):
    """A micro-batch's maps -> a dummy loss, whose backward injects the gradients of `leaves`.

    leaves: copies of the maps, cut from the graph. The whole batch's loss is computed from them
    elsewhere, and its backward fills their gradients first.
    """

    @staticmethod
    def forward(ctx: Any, leaves: list[Tensor], *maps: Tensor) -> Tensor:
        ctx.leaves = leaves
        return maps[0].new_zeros(1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return None, *(leaf.grad for leaf in ctx.leaves)


class LastPart(nn.Module):
    """The last encoder levels per micro-batch, then decoder and loss once on the whole batch.

    The decoder, for its BatchNorm, and the loss need the whole batch. GPipe ends every forward
    before the first backward, so the last micro-batch to arrive completes the batch: decoder, loss
    and their backward run once. Each micro-batch's backward starts from its part of the gradient.
    The schedule is given dummy losses.
    """

    def __init__(self, model: Single, part: Part, criterion: nn.Module):
        super().__init__()
        self.part = part
        self.criterion = criterion
        self.arrived = Arrived()
        self.head = copy.copy(model)  # shares the decoder and the way to the logits
        self.head._modules = {
            **model._modules,
            "normalise": nn.Identity(),
            "encoder": self.arrived,
        }

    def begin(self, image: Tensor, mask: Tensor, keys: Tensor) -> None:
        """Before the first micro-batch of a global batch, which is given whole."""
        self.batch = image, mask, keys
        self.leaves: list[list[Tensor]] = []

    def forward(self, *maps: Tensor, keys: Tensor) -> Tensor:
        """The maps of a micro-batch -> its dummy loss. The last one triggers `complete`."""
        maps = self.part(*maps, keys=keys)
        leaves = [x.detach().requires_grad_() for x in maps]
        self.leaves.append(leaves)
        arrived = sum(len(first) for first, *_ in self.leaves)
        if arrived == len(self.batch[0]):
            self.loss = self.complete(*self.batch)
        return HandBack.apply(leaves, *maps)

    def complete(self, image: Tensor, mask: Tensor, keys: Tensor) -> Tensor:
        """The loss of the whole batch, its gradients in the leaves and in the decoder."""
        levels = zip(*self.leaves, strict=True)
        self.arrived.maps = [torch.cat(parts) for parts in levels]
        with torch.autocast(image.device.type, torch.bfloat16, enabled=self.part.amp):
            logits = self.head(image, keys)
        with alone():  # the other ranks have no share of this sum
            loss = self.criterion(logits, mask)
        loss.backward()
        self.arrived.maps = []
        return loss.detach()


class Pipeline:
    """Encoder levels and decoder on different ranks; the weights of other ranks' parts are dropped.

    BatchNorm on an earlier rank needs the whole batch, so such models use one micro-batch: the
    ranks then work one after another. BadInput for a model that cannot be cut like this.
    """

    def __init__(
        self,
        model: nn.Module,
        device: torch.device,
        criterion: nn.Module,
        amp: bool,
    ):
        if not isinstance(model, Single):
            raise BadInput("--parallel pipeline is for one model, not uformer: use ddp or fsdp")
        if not all(parameter.requires_grad for parameter in model.parameters()):
            raise BadInput(
                "--parallel pipeline trains every layer: "
                "leave --freeze-encoder out, or use ddp or fsdp"
            )
        levels = encoder_levels(model)
        pieces = len(levels) + 1  # the decoder is the last
        ranks = world_size()
        if ranks > pieces:
            raise BadInput(
                f"--parallel pipeline has {pieces} parts for {ranks} ranks: "
                f"use at most {pieces} ranks"
            )
        cuts = [r * pieces // ranks for r in range(ranks + 1)]
        first, end = cuts[rank() : rank() + 2]
        self.model = model
        self.device = device
        self.first_level = first
        self.end = end
        self.part = Part(levels[first:end], amp)
        self.last = LastPart(model, self.part, criterion) if end == pieces else None
        before_last = Part(levels[: cuts[-2]], amp).modules()
        self.splits = not any(isinstance(module, nn.BatchNorm2d) for module in before_last)
        # The whole encoder on the meta device, to compute shapes with.
        self.without_memory = copy.deepcopy(model.encoder).to("meta").eval()
        Part(levels[:first] + levels[end:], amp).to("meta")  # frees what other ranks compute
        if not self.last:
            for name, child in model.named_children():
                if name not in ("normalise", "encoder"):
                    child.to("meta")
        self.shape: torch.Size | None = None

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """This rank's, in the model's order."""
        return ((name, own) for name, own in self.model.named_parameters() if not own.is_meta)

    def parameters(self) -> Iterator[nn.Parameter]:
        return (parameter for _, parameter in self.named_parameters())

    def compile(self, **options: Any) -> None:
        for layer in self.part.layers:
            layer.compile(**options)

    def forward_backward(self, image: Tensor, mask: Tensor, keys: Tensor) -> Tensor:
        """The global batch, given on every rank -> its loss, on every rank.

        Adds to this rank's gradients.
        """
        if image.shape != self.shape:
            self.shape = image.shape
            self.schedule = self.plan(image)
        loss = image.new_zeros(())
        if self.last:
            self.last.begin(image, mask, keys)
        inputs = [image] if rank() == 0 else []
        self.schedule.step(*inputs, keys=keys, target=mask)  # which the dummy losses ignore
        if self.last:
            loss = self.last.loss.to(loss)
        dist.broadcast(loss, world_size() - 1)
        return loss

    def plan(self, image: Tensor) -> ScheduleGPipe:
        """The schedule for batches of the image's shape, cut into equal micro-batches."""
        N = len(image)
        most = min(N, MICRO_BATCHES_PER_RANK * world_size()) if self.splits else 1
        count = next(m for m in range(most, 0, -1) if N % m == 0)
        size = N // count
        ending = "es" if count > 1 else ""
        reason = "" if self.splits else ": the encoder's BatchNorm needs the whole batch at once"
        say(f"pipeline: {count} micro-batch{ending} of {size} images{reason}")
        # Tensors without memory tell the schedule the shapes between the parts.
        image = torch.empty_like(image[:size], device="meta")
        maps = [image.new_empty(x.shape).requires_grad_() for x in self.without_memory(image)]
        inputs = maps[: self.first_level] or [image]
        outputs = maps[: self.end]
        if self.last:
            outputs = [image.new_empty(1).requires_grad_()]  # a dummy loss
        stage = PipelineStage(
            self.last or self.part,
            rank(),
            world_size(),
            self.device,
            input_args=tuple(inputs),
            output_args=tuple(outputs),
        )
        return ScheduleGPipe(
            stage,
            count,
            loss_fn=lambda dummy_loss, _: dummy_loss.sum(),
            scale_grads=False,
        )
