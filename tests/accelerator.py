"""A pretended accelerator: its tensors say that they are on a GPU, and are computed on the CPU.

Within `with Pretended() as seen:` whatever is made on the device, or moved there, is `Far`. Noted
are, each with the line of the project that did it:

    waits      the host waits until the device has done all that it was given
    behind     the host waits for an event: how many operators were launched after it
    mixed      one operation on tensors of both places
    wide       float64 on the device, which mps has not
    launched   operators that launch something there, by name; views and allocations do not

What a copy sent to the host holds is wrong until somebody waits for it, as it would be. Under
`ranks` the device is the first of some, and all ranks hold the same numbers.

Private parts of torch are used; they are the same in 2.6 and 2.14.
"""

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import cuda_kernels
import torch
import torch.distributed as dist
import torch.nn.functional as F
from conftest import run_script
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode

import segmentation
from segmentation import distributed
from segmentation.training.clock import Clock

PACKAGE = Path(segmentation.__file__).parent
aten = torch.ops.aten
KERNELS = {getattr(aten, name).default: getattr(cuda_kernels, name) for name in cuda_kernels.NAMES}
MOVES = (aten._to_copy.default, aten.copy_.default)
INDEXED = (aten.index.Tensor, aten.index_put.default, aten.index_put_.default)
WAITING = {  # how often: a number is read, or counted what the size of the result depends on
    aten._local_scalar_dense.default: 1,
    aten.nonzero.default: 1,
    aten.masked_select.default: 1,
    aten.equal.default: 1,
    aten.bincount.default: 2,
}


class Far(Tensor):
    """A tensor of the device. `near` holds its numbers in main memory.

    What torch's C++ side takes for its device is "meta", the one whose streams the autograd engine
    does not look for.
    """

    near: Tensor
    place: torch.device

    device = property(lambda self: self.place)
    is_cuda = property(lambda self: self.place.type == "cuda")
    is_mps = property(lambda self: self.place.type == "mps")
    is_meta = property(lambda self: False)
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, near: Tensor, place: torch.device) -> "Far":
        layout = {"strides": near.stride(), "storage_offset": near.storage_offset()}
        layout |= {"dtype": near.dtype, "device": "meta"}
        self = Tensor._make_wrapper_subclass(cls, near.size(), **layout)
        self.near, self.place = near, place
        return self

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise AssertionError(f"{func} outside of Pretended")

    def tolist(self) -> list:
        return self.cpu().tolist()

    def __reduce_ex__(self, protocol: int):
        """What torch.save writes, which copies it first."""
        return self.cpu().__reduce_ex__(protocol)


class Pretended(TorchDispatchMode):
    """See above. kind: "cuda" or "mps"."""

    def __init__(self, kind: str = "cuda"):
        super().__init__()
        self.place = torch.device(kind, 0)
        self.waits, self.mixed, self.wide = Counter(), Counter(), Counter()
        self.launched: Counter[str] = Counter()
        self.behind: list[int] = []
        self.on_their_way: list[tuple[Tensor, Tensor]] = []  # copies to the host, and their numbers
        self.autocast = Autocast(kind)

    def __enter__(self):
        self.undo = ExitStack()
        # torch.tensor(..., device=...) makes it on the CPU and moves it where this mode sees it
        lifted = torch._C._only_lift_cpu_tensors()
        torch._C._set_only_lift_cpu_tensors(True)
        self.undo.callback(torch._C._set_only_lift_cpu_tensors, lifted)
        overwrite = torch.__future__.set_overwrite_module_params_on_conversion
        overwrite(True)
        self.undo.callback(overwrite, False)
        stand_ins = {
            (torch.cuda, "_lazy_init"): lambda: None,
            (torch.cuda, "get_device_name"): lambda device=None: "pretended",
            (torch.cuda, "synchronize"): self.wait,
            (torch.cuda, "Event"): type("Event", (Event,), {"seen": self}),
            (F, "scaled_dot_product_attention"): self.attend,
            (torch, "autocast"): self.autocast.within,
        }
        for (owner, name), value in stand_ins.items():
            self.undo.enter_context(mock.patch.object(owner, name, value))
        self.undo.enter_context(self.autocast)
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        self.undo.close()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func.namespace == "c10d":
            return self.collect(func, args)
        tensors = list(tensors_of((*args, *kwargs.values())))
        far = [x for x in tensors if isinstance(x, Far)]
        near = [x for x in tensors if not isinstance(x, Far)]
        device = kwargs.pop("device", None)
        if device is not None:
            is_there = torch.device(device).type != "cpu"
            kwargs["device"] = torch.device("cpu")
        else:
            is_there = isinstance(args[0], Far) if func in MOVES else bool(far)
        leaves = self.note(func, args, kwargs, far, near, is_there)
        kwargs.pop("pin_memory", None)
        kernel = KERNELS.get(func, func) if far else func
        near_kwargs = {name: changed(near_of, value) for name, value in kwargs.items()}
        result = kernel(*changed(near_of, args), **near_kwargs)
        if leaves:
            self.on_their_way.append((result, result.clone()))
            result.fill_(torch.nan if result.is_floating_point() else -1)
        # What was written in place stays the tensor it was.
        known = {id(x.near): x for x in far} | {id(x): x for x in near}
        if not is_there:
            return result
        return changed(partial(self.there, func, far, known), result)

    def there(self, func, far: list[Far], known: dict[int, Tensor], x):
        """A result, on the device."""
        if not isinstance(x, Tensor):
            return x
        if x.dtype == torch.float64:
            self.wide[where()] += 1
        if id(x) in known:
            return known[id(x)]
        found = Far(x, self.place)
        if is_view(func):  # torch's C++ side asks whether two tensors share memory
            torch._functionalize_unsafe_set(found, far[0])
        return found

    def note(self, func, args, kwargs, far, near, is_there: bool) -> bool:
        """Note what an operation does. True if it is a copy to the host that nobody waits for."""
        waits = WAITING.get(func, 0) if far else 0
        leaves = False
        if func in MOVES:
            source = args[1] if func is aten.copy_.default else args[0]
            no_wait = kwargs.pop("non_blocking", False) or True in args[2:]
            crosses = isinstance(source, Far) != is_there
            leaves = crosses and no_wait and not is_there
            waits = int(crosses and not no_wait)
        elif func in INDEXED and far:  # a mask is counted first, an index in main memory is sent
            indices = [index for index in args[1] if index is not None]
            waits = sum(i.dtype == torch.bool or not isinstance(i, Far) for i in indices)
        elif far and any(x.dim() or torch.Tag.pointwise not in func.tags for x in near):
            self.mixed[f"{func} at {where()}"] += 1
        if waits:
            self.wait(times=waits)
        if is_there and not (is_view(func) or "empty" in func.__name__):
            self.launched[str(func)] += 1
        return leaves

    def wait(self, device=None, times: int = 1) -> None:
        """The host waits for all that was launched."""
        self.waits[where()] += times
        self.arrive(self.on_their_way)

    def arrive(self, copies: list[tuple[Tensor, Tensor]]) -> None:
        for copy, numbers in copies:
            copy.copy_(numbers)
        self.on_their_way = [x for x in self.on_their_way if not any(x is y for y in copies)]

    @property
    def operators(self) -> int:
        """How many were launched."""
        return self.launched.total()

    def attend(self, query: Tensor, key: Tensor, value: Tensor, **_) -> Tensor:
        """One fused operator, as on a GPU; torch's own choice among them asks the driver."""
        given = self.autocast.lowered((query, key, value))
        return aten._scaled_dot_product_flash_attention_for_cpu(*given)[0]

    def collect(self, func, args: tuple):
        """A collective operation: every rank holds what this one holds."""
        results = args[0]
        name, world = func.__name__.split(".")[0], dist.get_world_size()
        if name == "allreduce_":
            for x in results:
                near_of(x).mul_(world)
        elif name == "_allgather_base_":
            near_of(results).view(world, -1).copy_(near_of(args[1]).view(1, -1))
        elif name == "allgather_":
            for outputs, x in zip(*args[:2], strict=True):
                for output in outputs:
                    near_of(output).copy_(near_of(x))
        else:
            assert name == "broadcast_", name
        self.launched[str(func)] += any(isinstance(x, Far) for x in tensors_of(results))
        done: torch.futures.Future = torch.futures.Future()
        done.set_result(results)
        return results, torch._C._distributed_c10d._create_work_from_future(done).boxed()


class Event:
    """torch.cuda.Event: a place behind all that was launched before."""

    seen: Pretended

    def record(self, stream=None) -> None:
        self.place, self.copies = self.seen.operators, list(self.seen.on_their_way)

    def synchronize(self) -> None:
        self.seen.behind.append(self.seen.operators - self.place)
        self.seen.arrive(self.copies)


class Autocast(TorchFunctionMode):
    """CUDA's autocast, by torch's lists, for what models and losses here call.

    torch's own asks the tensor's C++ side, which is not on the device.
    """

    LOWERED = (
        F.conv2d,
        F.conv_transpose2d,
        F.linear,
        torch.matmul,
        torch.bmm,
        Tensor.matmul,
        Tensor.__matmul__,
    )
    RAISED = (
        F.layer_norm,
        F.cross_entropy,
        F.interpolate,
        F.softmax,
        F.log_softmax,
        torch.softmax,
        torch.log_softmax,
        Tensor.log_softmax,
        Tensor.logsumexp,
    )

    def __init__(self, kind: str):
        super().__init__()
        self.kind, self.original = kind, torch.autocast
        self.dtype: torch.dtype | None = None

    @contextmanager
    def within(self, kind: str, dtype: torch.dtype | None = None, enabled: bool = True):
        """In place of torch.autocast."""
        if kind != self.kind:
            with self.original(kind, dtype, enabled):
                yield
            return
        before, self.dtype = self.dtype, dtype if enabled else None
        try:
            yield
        finally:
            self.dtype = before

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in self.LOWERED:
            args = self.lowered(args)
        elif func in self.RAISED and self.dtype:
            args = changed(partial(to, before=self.dtype, after=torch.float32), args)
        return func(*args, **(kwargs or {}))

    def lowered(self, args: tuple) -> tuple:
        if self.dtype is None:
            return args
        return changed(partial(to, before=torch.float32, after=self.dtype), args)


def to(x, before: torch.dtype, after: torch.dtype):
    return x.to(after) if isinstance(x, Tensor) and x.dtype == before else x


def changed(change: Callable, x):
    """x, or what lists and tuples in x hold, changed."""
    if isinstance(x, list | tuple):
        return type(x)(changed(change, each) for each in x)
    return change(x)


def tensors_of(x) -> Iterator[Tensor]:
    if isinstance(x, list | tuple):
        for each in x:
            yield from tensors_of(each)
    elif isinstance(x, Tensor):
        yield x


def near_of(x):
    return x.near if isinstance(x, Far) else x


@cache
def is_view(func) -> bool:
    """Its result is memory of its first argument, which it does not write to."""
    if func is aten._unsafe_view.default:  # which says so of itself to nobody
        return True
    results = [result.alias_info for result in func._schema.returns]
    return any(alias is not None and not alias.is_write for alias in results)


def where() -> str:
    """The innermost line of the project that is running, the backward of its functions included."""
    frame = sys._getframe(1)
    while frame is not None:
        name = in_project(frame.f_code.co_filename)
        if name:
            return f"{name}:{frame.f_lineno}"
        frame = frame.f_back
    return "elsewhere"


@cache
def in_project(filename: str) -> str:
    """The name of a file of the package, or of a script beside it, or ""."""
    file = Path(filename)
    return file.name if PACKAGE in file.parents or file.parent == PACKAGE.parent else ""


class Poll(NamedTuple):
    """What was noted when the ranks agree whether to go on, which in training is once a step."""

    waits: Counter
    events: int
    operators: int


def train_on(seen: Pretended, *flags: object) -> list[Poll]:
    """train.py on the device, within `seen`."""
    polls: list[Poll] = []
    poll = Clock.poll

    def noted(clock: Clock) -> bool:
        polls.append(Poll(Counter(seen.waits), len(seen.behind), seen.operators))
        return poll(clock)

    card = {
        "get_device_capability": lambda *_: (9, 0),
        "get_device_name": lambda *_: "pretended",
        "get_arch_list": lambda: ["sm_90"],
        "mem_get_info": lambda *_: (2**36, 2**36),
    }
    with (
        mock.patch.object(distributed, "setup", lambda *_: seen.place),
        mock.patch.object(Clock, "poll", noted),
        mock.patch.multiple(torch.cuda, **card),
    ):
        assert run_script("train", *flags) == 0
    return polls[1:]  # the first is before the first step


@contextmanager
def ranks(count: int) -> Iterator[None]:
    """Within it this process is the first of so many ranks."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=count)
    try:
        yield
    finally:
        dist.destroy_process_group()
