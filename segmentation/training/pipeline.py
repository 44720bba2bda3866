"""A model as a pipeline: encoder levels and decoder on different ranks, micro-batches passing through them.

Huang et al., "GPipe: Efficient Training of Giant Neural Networks using Pipeline Parallelism", 2019, arXiv:1811.06965.
The schedule and the transport are torch.distributed.pipelining's. Written here is where BatchNorm and a loss over the
whole batch are computed (`LastPart`), so that a pipeline too computes what one process computes.
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
MICRO_BATCHES_PER_RANK = (
    4  # GPipe, section 2.3: from four times the ranks on, waiting hardly counts
)


def encoder_levels(model: Single) -> list[list[nn.Module]]:
    """The layers from the image to the first map, from the first map to the second, and so on."""
    if isinstance(model, SegFormer):
        levels = [[stage] for stage in model.encoder.stages]
    else:
        e = model.encoder
        levels = [
            [e.conv1, e.bn1, nn.ReLU()],
            [e.maxpool, e.layer1],
            [e.layer2],
            [e.layer3],
            [e.layer4],
        ]
    return [[model.normalise, *levels[0]], *levels[1:]]


class Part(nn.Module):
    """Some levels of an encoder: the maps so far (at first the image) -> the same and those of these levels.

    On the wire every map is N x C x H x W contiguous; the models work channels last.
    """

    def __init__(self, levels: list[list[nn.Module]], amp: bool):
        super().__init__()
        self.levels, self.amp = levels, amp
        self.layers = nn.ModuleList(layer for level in levels for layer in level)

    def forward(self, *maps: Tensor, keys: Tensor) -> tuple[Tensor, ...]:
        dtype = maps[0].dtype
        with torch.autocast(maps[0].device.type, torch.bfloat16, enabled=self.amp):
            for level in self.levels:
                x = maps[-1].contiguous(memory_format=torch.channels_last)
                for layer in level:
                    if isinstance(layer, Stage):
                        draws = iter(draw_depth(layer, keys, x))
                        x = layer(x.permute(0, 2, 3, 1), draws).permute(0, 3, 1, 2)
                    else:
                        x = layer(x)
                maps = (*maps, x)
        if rank() == 0:
            maps = maps[1:]  # without the image
        return tuple(x.to(dtype).contiguous() for x in maps)


class Arrived(nn.Module):
    """In the encoder's place on the last rank: the maps that the ranks before it computed."""

    maps: list[Tensor]

    def forward(self, image: Tensor, keys: Tensor | None = None) -> list[Tensor]:
        return self.maps


class HandBack(torch.autograd.Function):
    """A micro-batch's maps -> a number that stands for its loss; the gradients are those its leaves have got by then.

    leaves: copies of the maps, cut from the graph, from which the whole batch's loss is computed elsewhere.
    """

    @staticmethod
    def forward(ctx: Any, leaves: list[Tensor], *maps: Tensor) -> Tensor:
        ctx.leaves = leaves
        return maps[0].new_zeros(1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return None, *(leaf.grad for leaf in ctx.leaves)


class LastPart(nn.Module):
    """The last rank's levels and decoder, before which each micro-batch waits for the others.

    The decoder (with its BatchNorm) and the loss belong to the whole batch. GPipe ends every forward before the first
    backward, so the last micro-batch to arrive completes the batch: decoder, loss and their backward run once, and each
    micro-batch's backward starts from its part of the gradient. What the schedule takes for losses are stand-ins.
    """

    def __init__(self, model: Single, part: Part, criterion: nn.Module):
        super().__init__()
        self.part, self.criterion, self.arrived = part, criterion, Arrived()
        head = copy.copy(model)  # shares the decoder and the way to the logits, has no encoder
        head._modules = {**model._modules, "normalise": nn.Identity(), "encoder": self.arrived}
        self.head = head

    def begin(self, image: Tensor, mask: Tensor, keys: Tensor, micro_batches: int) -> None:
        self.batch, self.micro_batches = (image, mask, keys), micro_batches
        self.leaves: list[list[Tensor]] = []

    def forward(self, *maps: Tensor, keys: Tensor) -> Tensor:
        maps = self.part(*maps, keys=keys)
        self.leaves.append([x.detach().requires_grad_() for x in maps])
        stand_in = HandBack.apply(self.leaves[-1], *maps)
        if len(self.leaves) == self.micro_batches:
            self.loss = self.complete(*self.batch)
        return stand_in

    def complete(self, image: Tensor, mask: Tensor, keys: Tensor) -> Tensor:
        """The loss of the whole batch, its gradients in the leaves and in the decoder."""
        self.arrived.maps = [torch.cat(parts) for parts in zip(*self.leaves, strict=True)]
        with torch.autocast(image.device.type, torch.bfloat16, enabled=self.part.amp):
            logits = self.head(image, keys)
        with alone():  # the other ranks have no share of this sum
            loss = self.criterion(logits, mask)
        loss.backward()
        self.arrived.maps = []
        return loss.detach()


class Pipeline:
    """Encoder levels and decoder on different ranks; the weights of other ranks' parts are dropped ("meta").

    Micro-batches need an encoder without BatchNorm but for the last rank's: its statistics are those of all that passes
    at once. With other encoders the whole batch is the one micro-batch, and the ranks work one after another.
    """

    def __init__(self, model: nn.Module, device: torch.device, criterion: nn.Module, amp: bool):
        if not isinstance(model, Single):
            raise BadInput("--parallel pipeline is for one model, not uformer: use ddp or fsdp")
        if not all(parameter.requires_grad for parameter in model.parameters()):
            raise BadInput(
                "--parallel pipeline trains every layer: leave --freeze-encoder out, or use ddp or fsdp"
            )
        levels = encoder_levels(model)
        pieces, ranks = len(levels) + 1, world_size()  # the decoder is the last piece
        if ranks > pieces:
            raise BadInput(
                f"--parallel pipeline has {pieces} parts for {ranks} ranks: use at most {pieces} ranks"
            )
        cuts = [r * pieces // ranks for r in range(ranks + 1)]
        self.model: Single = model
        self.device, last = device, rank() == ranks - 1
        self.first_level, self.end = cuts[rank()], min(cuts[rank() + 1], len(levels))
        self.part = Part(levels[self.first_level : self.end], amp)
        self.last = LastPart(model, self.part, criterion) if last else None
        before_last = [layer for level in levels[: cuts[-2]] for layer in level]
        self.splits = not any(
            isinstance(m, nn.BatchNorm2d) for layer in before_last for m in layer.modules()
        )
        for layer in levels[: self.first_level] + levels[self.end :]:
            nn.ModuleList(layer).to("meta")
        if not last:
            for name, child in model.named_children():
                if name not in ("normalise", "encoder"):
                    child.to("meta")
        self.shape: torch.Size | None = None

    def parameters(self) -> Iterator[nn.Parameter]:
        """This rank's, in the model's order."""
        return (parameter for parameter in self.model.parameters() if not parameter.is_meta)

    def compile(self, **options: Any) -> None:
        """As nn.Module's."""
        for layer in self.part.layers:
            layer.compile(**options)

    def forward_backward(self, image: Tensor, mask: Tensor, keys: Tensor) -> Tensor:
        """The global batch, given on every rank -> its loss, on every rank. Adds to this rank's gradients."""
        if image.shape != self.shape:
            self.shape, self.schedule, self.micro_batches = image.shape, *self.plan(image)
        loss = image.new_zeros(())
        if self.last:
            self.last.begin(image, mask, keys, self.micro_batches)
        self.schedule.step(
            *([image] if rank() == 0 else []), keys=keys, target=mask if self.last else None
        )
        if self.last:
            loss = self.last.loss.to(loss)
        dist.broadcast(loss, world_size() - 1)
        return loss

    def plan(self, image: Tensor) -> tuple[ScheduleGPipe, int]:
        """The schedule for batches of this shape and its number of micro-batches, which divides the batch."""
        N, _, H, W = image.shape
        most = MICRO_BATCHES_PER_RANK * world_size() if self.splits else 1
        count = next(m for m in range(min(most, N), 0, -1) if N % m == 0)
        reason = "" if self.splits else ": the encoder's BatchNorm needs the whole batch at once"
        say(
            f"pipeline: {count} micro-batch{'es' if count > 1 else ''} of {N // count} images{reason}"
        )
        channels = self.model.encoder.channels
        strides = [32 >> (len(channels) - 1 - level) for level in range(len(channels))]
        maps = [
            image.new_empty(N // count, c, -(-H // s), -(-W // s), device="meta").requires_grad_()
            for c, s in zip(channels, strides, strict=True)
        ]
        first = (image[: N // count].to("meta"),)
        stage = PipelineStage(
            self.last or self.part,
            rank(),
            world_size(),
            self.device,
            input_args=first if rank() == 0 else tuple(maps[: self.first_level]),
            output_args=image.new_empty(1, device="meta").requires_grad_()
            if self.last
            else tuple(maps[: self.end]),
        )
        return ScheduleGPipe(
            stage, count, loss_fn=lambda output, _: output.sum(), scale_grads=False
        ), count


def own_places(pipeline: Pipeline) -> list[int]:
    """The places of this rank's parameters in the whole model."""
    return [i for i, parameter in enumerate(pipeline.model.parameters()) if not parameter.is_meta]
