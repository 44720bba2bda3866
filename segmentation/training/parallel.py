"""A model over ranks: copies (ddp), shards of its weights (fsdp), or consecutive parts (pipeline).

Whatever the strategy, N ranks compute what one process computes on the global batch. What is saved
is the plain state of one process: whole weights by name, the optimizer's whole state by the
parameter's place in the model.
"""

from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from ..distributed import gather, rank, world_size
from ..models import build_model
from ..models.mix_transformer import Stage
from ..models.uformer import UFormer
from .pipeline import Pipeline, Single, encoder_levels
from .sync_batchnorm import synchronise_batchnorm

ParallelModel = nn.Module | Pipeline  # what `distribute_model` gives


def rank_slice(strategy: str) -> tuple[int, int]:
    """(i, n): this rank loads the i-th of n slices of a global batch; in a pipeline, all of it."""
    if strategy == "pipeline":
        return 0, 1
    return rank(), world_size()


def distribute_model(
    model: nn.Module,
    strategy: str,
    device: torch.device,
    criterion: nn.Module,
    amp: bool = False,
) -> ParallelModel:
    """Spread a model that is on `device` over the ranks, in place; with one rank it stays as it is.

    ddp and fsdp give a module to call; its backward averages gradients over ranks, which
    `TverskyLoss` relies on. A pipeline has `forward_backward` instead. BadInput for a model that
    the strategy cannot spread.
    """
    if world_size() == 1:
        return model
    if strategy == "pipeline":
        return Pipeline(model, device, criterion, amp)
    synchronise_batchnorm(model)
    if strategy == "fsdp":
        mesh = init_device_mesh(device.type, (world_size(),))
        # fully_shard takes no channels-last weights.
        model.to(memory_format=torch.contiguous_format)
        for unit in [*fsdp_units(model), model]:
            fully_shard(unit, mesh=mesh)
        return model
    ids = [device.index] if device.type == "cuda" else None
    options: dict[str, Any] = {"gradient_as_bucket_view": True}
    known = signature(DistributedDataParallel).parameters
    # The buffers are equal, so no forward has to send them; torch 2.13 renamed the option.
    new_name = "forward_sync_buffers"
    options[new_name if new_name in known else "broadcast_buffers"] = False
    if "batched_grad_copy" in known:
        options["batched_grad_copy"] = True  # a bucket's gradients go into it by one kernel
    return DistributedDataParallel(model, ids, **options)


def fsdp_units(model: nn.Module) -> list[nn.Module]:
    """The modules whose weights fsdp gathers together.

    SegFormer's decoder is one of them, because it multiplies weights of several layers.
    """
    if isinstance(model, UFormer):
        return [unit for member in model.members for unit in fsdp_units(member)]
    assert isinstance(model, Single)
    found: list[nn.Module] = []
    for level in encoder_levels(model):
        found += [layer for layer in level if isinstance(layer, Stage | nn.Sequential)]
    decoder = model.decoder
    found += decoder if isinstance(decoder, nn.ModuleList) else [decoder]
    return found


def whole_weights(parallel: ParallelModel) -> dict[str, Tensor]:
    """Collective: the whole model's state dict, as one process has it, on every rank."""
    if isinstance(parallel, Pipeline):
        state = parallel.model.state_dict()
        own = [(name, value.cpu()) for name, value in state.items() if not value.is_meta]
        found = dict(gather(own))
        return {name: found[name] for name in state}
    module = parallel.module if isinstance(parallel, DistributedDataParallel) else parallel
    return {name: full_tensor(value) for name, value in module.state_dict().items()}


def full_tensor(value: Tensor) -> Tensor:
    """Collective for a tensor in shards: the whole of it. Any other tensor itself."""
    if isinstance(value, DTensor):
        return value.full_tensor()
    return value


def whole_model(parallel: ParallelModel, config: dict) -> nn.Module:
    """Collective: the whole model on every rank, which a rank may call alone.

    A copy of the present weights with fsdp and pipeline, else the model itself.
    """
    if isinstance(parallel, DistributedDataParallel):
        return parallel.module
    if not isinstance(parallel, FSDPModule | Pipeline):
        return parallel
    model = build_model(config)
    model.load_state_dict(whole_weights(parallel))
    return model.to(next(parallel.parameters()).device)


def whole_optimizer_state(parallel: ParallelModel, optimizer: Optimizer) -> dict:
    """Collective: a state_dict of the whole optimizer, the same on every rank.

    Numbers stand for trained parameters in the model's order, however groups and ranks share them.
    """
    places: dict[Tensor, int] = {
        parameter: place for place, parameter in enumerate(trained_parameters(parallel))
    }
    state = [
        (places[parameter], {key: full_tensor(value) for key, value in entry.items()})
        for parameter, entry in optimizer.state.items()
    ]
    groups = [
        group | {"params": [places[parameter] for parameter in group["params"]]}
        for group in optimizer.param_groups
    ]
    if isinstance(parallel, Pipeline):
        on_cpu = [(place, {k: v.cpu() for k, v in entry.items()}) for place, entry in state]
        state = gather(on_cpu)
        groups = gather(groups)
    return {"state": dict(sorted(state)), "param_groups": groups}


def load_optimizer_state(parallel: ParallelModel, optimizer: Optimizer, saved: dict) -> None:
    """Take this rank's part of what `whole_optimizer_state` gave, by any strategy."""
    state: dict = saved["state"]
    own = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    numbers = {parameter: number for number, parameter in enumerate(own)}
    own_state = {
        numbers[parameter]: {
            key: as_parameter(value, parameter) for key, value in state[place].items()
        }
        for place, parameter in enumerate(trained_parameters(parallel))
        if parameter in numbers and place in state
    }
    optimizer.load_state_dict(optimizer.state_dict() | {"state": own_state})


def trained_parameters(parallel: ParallelModel) -> list[nn.Parameter]:
    """Of the whole model, in its order; in a pipeline those of other ranks are on meta."""
    whole = parallel.model if isinstance(parallel, Pipeline) else parallel
    return [parameter for parameter in whole.parameters() if parameter.requires_grad]


def as_parameter(value: Tensor, parameter: nn.Parameter) -> Tensor:
    """Adam's moment of a parameter in that parameter's shards and memory format.

    value: a moment, or the count of steps, which stays as it is. fully_shard makes channels-last
    weights contiguous, and fused Adam pairs the numbers of two tensors by their place in memory.
    """
    if value.dim() == 0:
        return value
    if isinstance(parameter, DTensor):
        return distribute_tensor(
            value.contiguous(),
            parameter.device_mesh,
            parameter.placements,
        )
    return torch.empty_like(parameter).copy_(value)
