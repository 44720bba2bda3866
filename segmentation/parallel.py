"""How a model is spread over ranks: copies (ddp), shards of every weight (fsdp), or parts one after another (pipeline).

Whatever the way, N ranks compute what one process computes on the global batch, and what is saved is the plain state of
one process: whole weights by name, the optimizer's whole state by the parameter's place in the model.
"""

import copy
from collections.abc import Iterator
from inspect import signature
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.pipelining import PipelineStage, ScheduleGPipe
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from .distributed import alone, gather, rank, say, synchronise_batchnorm, world_size
from .errors import BadInput
from .mix_transformer import Stage
from .models import build_model
from .segformer import SegFormer
from .uformer import UFormer
from .unet import ResNet18UNet

Single = SegFormer | ResNet18UNet  # what has one encoder and one decoder
MICRO_BATCHES_PER_RANK = 4  # Huang et al., "GPipe", 2019: from four times the ranks on, waiting hardly counts


def batch_share(way: str) -> tuple[int, int]:
    """Which part of each global batch this rank loads, of how many: all of it if its part of the model sees all."""
    return (0, 1) if way == "pipeline" else (rank(), world_size())


def spread(
    model: nn.Module, way: str, device: torch.device, criterion: nn.Module, amp: bool = False
) -> "nn.Module | Pipeline":
    """Spread a model that is on `device` over the ranks; with one rank the model as it is. Changes `model` in place.

    ddp and fsdp give a module to call, which averages gradients over ranks in its backward (`TverskyLoss` counts on
    it); pipeline gives a `Pipeline`. BadInput for what cannot be spread in that way.
    """
    if world_size() == 1:
        return model
    if way == "pipeline":
        return Pipeline(model, device, criterion, amp)
    synchronise_batchnorm(model)
    if way == "fsdp":
        mesh = init_device_mesh(device.type, (world_size(),))
        model.to(memory_format=torch.contiguous_format)  # fully_shard takes no channels-last weights
        for unit in [*units(model), model]:
            fully_shard(unit, mesh=mesh)
        return model
    ids = [device.index] if device.type == "cuda" else None
    # The buffers are equal, so no forward has to send them; torch has renamed the argument.
    buffers = {"forward_sync_buffers", "broadcast_buffers"} & signature(DistributedDataParallel).parameters.keys()
    options: dict[str, Any] = {max(buffers): False}
    return DistributedDataParallel(model, ids, gradient_as_bucket_view=True, **options)


def encoder_levels(model: Single) -> list[list[nn.Module]]:
    """The layers from the image to the first map, from the first map to the second, and so on."""
    if isinstance(model, SegFormer):
        levels = [[stage] for stage in model.encoder.stages]
    else:
        e = model.encoder
        levels = [[e.conv1, e.bn1, nn.ReLU()], [e.maxpool, e.layer1], [e.layer2], [e.layer3], [e.layer4]]
    return [[model.normalise, *levels[0]], *levels[1:]]


def units(model: nn.Module) -> list[nn.Module]:
    """The modules whose weights fsdp gathers together. SegFormer's decoder is one: it multiplies layers' weights."""
    if isinstance(model, UFormer):
        return [unit for member in model.members for unit in units(member)]
    assert isinstance(model, Single)
    layers = [layer for level in encoder_levels(model) for layer in level if isinstance(layer, Stage | nn.Sequential)]
    return [*layers, *(model.decoder if isinstance(model.decoder, nn.ModuleList) else [model.decoder])]


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
                    is_stage = isinstance(layer, Stage)
                    x = layer(x.permute(0, 2, 3, 1), keys).permute(0, 3, 1, 2) if is_stage else layer(x)
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
            raise BadInput("--parallel pipeline trains every layer: leave --freeze-encoder out, or use ddp or fsdp")
        levels = encoder_levels(model)
        pieces, ranks = len(levels) + 1, world_size()  # the decoder is the last piece
        if ranks > pieces:
            raise BadInput(f"--parallel pipeline has {pieces} parts for {ranks} ranks: use at most {pieces} ranks")
        cuts = [r * pieces // ranks for r in range(ranks + 1)]
        self.model: Single = model
        self.device, last = device, rank() == ranks - 1
        self.first_level, self.end = cuts[rank()], min(cuts[rank() + 1], len(levels))
        self.part = Part(levels[self.first_level : self.end], amp)
        self.last = LastPart(model, self.part, criterion) if last else None
        before_last = [layer for level in levels[: cuts[-2]] for layer in level]
        self.splits = not any(isinstance(m, nn.BatchNorm2d) for layer in before_last for m in layer.modules())
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

    def compile(self) -> None:
        for layer in self.part.layers:
            layer.compile()

    def forward_backward(self, image: Tensor, mask: Tensor, keys: Tensor) -> Tensor:
        """The global batch, given on every rank -> its loss, on every rank. Adds to this rank's gradients."""
        if image.shape != self.shape:
            self.shape, self.schedule, self.micro_batches = image.shape, *self.plan(image)
        loss = image.new_zeros(())
        if self.last:
            self.last.begin(image, mask, keys, self.micro_batches)
        self.schedule.step(*([image] if rank() == 0 else []), keys=keys, target=mask if self.last else None)
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
        say(f"pipeline: {count} micro-batch{'es' if count > 1 else ''} of {N // count} images{reason}")
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
            output_args=image.new_empty(1, device="meta").requires_grad_() if self.last else tuple(maps[: self.end]),
        )
        return ScheduleGPipe(stage, count, loss_fn=lambda output, _: output.sum(), scale_grads=False), count


def whole_weights(parallel: "nn.Module | Pipeline") -> dict[str, Tensor]:
    """The whole model's state dict, as one process would have it. All ranks call this together and get it."""
    if isinstance(parallel, Pipeline):
        state = parallel.model.state_dict()
        parts = gather([{name: value.cpu() for name, value in state.items() if not value.is_meta}])
        found = {name: value for part in parts for name, value in part.items()}
        return {name: found[name] for name in state}
    module = parallel.module if isinstance(parallel, DistributedDataParallel) else parallel
    return {name: whole(value) for name, value in module.state_dict().items()}


def whole(value: Any) -> Any:
    return value.full_tensor() if isinstance(value, DTensor) else value


def whole_model(parallel: "nn.Module | Pipeline", config: dict) -> nn.Module:
    """The model on every rank, to be called by each as it likes; a copy where it is spread. All ranks call this."""
    if isinstance(parallel, DistributedDataParallel):
        return parallel.module
    if not isinstance(parallel, FSDPModule | Pipeline):
        return parallel
    model = build_model(config)
    model.load_state_dict(whole_weights(parallel))
    return model.to(next(parallel.parameters()).device)


def whole_optimizer_state(parallel: "nn.Module | Pipeline", optimizer: torch.optim.Optimizer) -> dict:
    """The optimizer's whole state_dict, as one process would have it. All ranks call this together and get it."""
    saved = optimizer.state_dict()
    state = {i: {key: whole(value) for key, value in entry.items()} for i, entry in saved["state"].items()}
    groups = saved["param_groups"]
    if isinstance(parallel, Pipeline):
        places = own_places(parallel)
        mine = {places[i]: {key: value.cpu() for key, value in entry.items()} for i, entry in state.items()}
        state = dict(sorted(item for part in gather([mine]) for item in part.items()))
        groups = [groups[0] | {"params": list(range(len(list(parallel.model.parameters()))))}]
    return {"state": state, "param_groups": groups}


def load_optimizer_state(parallel: "nn.Module | Pipeline", optimizer: torch.optim.Optimizer, saved: dict) -> None:
    """Take this rank's part of what `whole_optimizer_state` gave, whatever way the model was spread then."""
    state, groups = saved["state"], saved["param_groups"]
    if isinstance(parallel, Pipeline):
        places = own_places(parallel)
        state = {mine: state[place] for mine, place in enumerate(places) if place in state}
        groups = [groups[0] | {"params": list(range(len(places)))}]
    trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state = {i: {key: like(value, trained[i]) for key, value in entry.items()} for i, entry in state.items()}
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def like(value: Tensor, parameter: nn.Parameter) -> Tensor:
    """A parameter's moment in the parameter's shards and memory format; a count of steps as it is.

    fully_shard makes channels-last weights contiguous, and a fused Adam pairs numbers by their place in memory.
    """
    if value.dim() == 0:
        return value
    value = value.to(parameter.device)
    if isinstance(parameter, DTensor):
        return distribute_tensor(value.contiguous(), parameter.device_mesh, parameter.placements)
    return torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def own_places(pipeline: Pipeline) -> list[int]:
    """The places of this rank's parameters in the whole model."""
    return [i for i, parameter in enumerate(pipeline.model.parameters()) if not parameter.is_meta]
