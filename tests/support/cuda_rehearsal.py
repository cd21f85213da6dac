"""A GPU that is rehearsed on a CPU: code for CUDA runs to its end, and trips over what a real one would trip over.

Inside rehearsed_cuda() tensors on "cuda" are CudaTensors, and what is computed with them is computed on the CPU. The
Python of torch.cuda with its checks, autograd and CUDA's autocast are torch's own. What a GPU refuses is refused:
tensors of two devices in one operation, numpy() of a GPU's tensor, a generator of another device, waiting while a CUDA
graph is recorded. What makes the host wait is counted. A copy to the CPU that is not waited for has not arrived: it is
garbage until its stream or event is waited for.

Not rehearsed: the arithmetic of a GPU (results are the CPU's), its speed and memory, kernels of Triton, torch.compile,
several processes, and whether streams wait for each other before they share a tensor.
"""

import contextlib
import copy
import ctypes
import itertools
import sys
import threading
import time
import types
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing

aten = torch.ops.aten
CPU = torch.device("cpu")
ON_A_GPU = ("cuda", "xla")  # see CudaTensor
TOTAL_MEMORY = 80 * 2**30
SEED_OF_THE_GPU = 0x5EED  # so that its numbers are not the CPU's

# Operations whose result's size, or whose errors, the host must know.
WAITING = {
    aten._local_scalar_dense,
    aten.nonzero,
    aten.masked_select,
    aten.equal,
    aten._unique2,
    aten.unique_dim,
    aten.unique_consecutive,
    aten.bincount,
    aten._linalg_check_errors,
}
INDEXING = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_}
# In inference mode these come in one piece; what they are made of is what is looked at.
COMPOSED = {aten.to, aten.item, aten.is_nonzero, aten.nonzero_numpy, aten.pin_memory, aten.type_as}
CHECKED_SHAPES = {aten.cat, aten.stack}  # where a tensor without dimensions must be on the GPU, too


class Sync(NamedTuple):
    """One time that the host waited for the GPU."""

    what: str
    where: str  # file:line, of the first caller outside torch


class CudaTensor(Tensor):
    """A tensor that says it is on a GPU; `inner` is the CPU tensor that holds its values.

    Underneath, torch takes it for one of another device, xla: that is the one that autocast treats as it treats CUDA,
    while backward() leaves the driver of a GPU alone.
    """

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner: Tensor, device: torch.device):
        made = Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=torch.device("xla", device.index),
            _extra_dispatch_keys=torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCUDA),
        )
        made.inner, made.gpu = inner, device
        return made

    device = property(lambda self: self.gpu)
    is_cuda = property(lambda self: True)
    is_xla = property(lambda self: False)

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return MACHINE.run(func, args, kwargs or {})

    def to(self, *args, **kwargs):
        device, *_ = torch._C._nn._parse_to(*args, **{key: kwargs[key] for key in kwargs if key != "copy"})
        if device is not None and device.type in ON_A_GPU and MACHINE.indexed(device) == self.device:
            args = [arg for arg in args if not isinstance(arg, (str, int, torch.device)) or isinstance(arg, bool)]
            kwargs.pop("device", None)
            if not args and not {*kwargs} - {"non_blocking"}:
                return self
        return super().to(*args, **kwargs)

    def cuda(self, device=None, non_blocking=False):
        return self.to(MACHINE.indexed(device), non_blocking=non_blocking)

    def get_device(self):
        return self.gpu.index

    # By these two, Module.to() knows that it has to exchange the whole tensors.
    def __tensor_flatten__(self):
        return ["inner"], self.device

    @staticmethod
    def __tensor_unflatten__(inner, device, size, stride):
        return CudaTensor(inner["inner"], device)

    def numpy(self, *, force=False):
        if force:
            return self.detach().cpu().numpy()
        raise TypeError(
            f"can't convert {self.device} device type tensor to numpy. Use Tensor.cpu() to copy the tensor to host "
            "memory first."
        )

    def tolist(self):
        return self.cpu().tolist()

    def data_ptr(self):
        return self.inner.data_ptr()

    def record_stream(self, stream):
        assert isinstance(stream, Stream)

    def __deepcopy__(self, memo):
        assert self.is_leaf
        if id(self) not in memo:
            copied = CudaTensor(copy.deepcopy(self.inner, memo), self.gpu).requires_grad_(self.requires_grad)
            copied.__dict__.update({name: value for name, value in self.__dict__.items() if name == "_is_param"})
            copied.grad = copy.deepcopy(self.grad, memo)
            memo[id(self)] = copied
        return memo[id(self)]

    def __reduce_ex__(self, protocol):
        return self.inner.__reduce_ex__(protocol)  # a file of it is a CPU tensor's

    def __repr__(self):
        return f"{self.inner!r} on {self.device}"


class Stream:
    """Stands for torch.cuda.Stream. Work is done at once, so all that is in it are copies nobody has waited for."""

    numbers = itertools.count(1)

    def __init__(self, device=None, priority=0):
        self.device = MACHINE.indexed(torch.device("cuda") if device is None else torch.device(device))
        self.stream_id = self.cuda_stream = next(self.numbers)
        self.copies: list[Copy] = []

    def synchronize(self):
        MACHINE.host_waits("Stream.synchronize")
        arrive(self.copies)

    def query(self):
        arrive(self.copies)
        return True

    def wait_stream(self, stream):
        self.copies += stream.copies

    def wait_event(self, event):
        self.copies += event.copies

    def record_event(self, event=None):
        event = event or Event()
        event.record(self)
        return event


class Event:
    """Stands for torch.cuda.Event."""

    def __init__(self, enable_timing=False, blocking=False, interprocess=False, external=False):
        self.enable_timing, self.copies, self.recorded = enable_timing, [], None

    def record(self, stream=None):
        self.copies, self.recorded = [*(stream or MACHINE.current_stream()).copies], time.perf_counter()

    def wait(self, stream=None):
        (stream or MACHINE.current_stream()).wait_event(self)

    def query(self):
        arrive(self.copies)
        return True

    def synchronize(self):
        MACHINE.forbidden_in_capture("Event.synchronize")
        arrive(self.copies)

    def elapsed_time(self, end):
        if not (self.enable_timing and end.enable_timing and self.recorded and end.recorded):
            raise ValueError("Both events must be created with argument 'enable_timing=True' and recorded.")
        return 1000 * (end.recorded - self.recorded)


class Copy:
    """A copy to the CPU that is on its way."""

    def __init__(self, target: Tensor, values: Tensor):
        self.target, self.values = target, values


def arrive(copies: list[Copy]) -> None:
    for one in copies:
        if one.values is not None:
            one.target.copy_(one.values)
            one.values = None
    copies.clear()


class OfAnyDevice(type(torch._C.Generator)):
    def __instancecheck__(cls, instance):
        return isinstance(instance, torch._C.Generator)


class Generator(torch._C.Generator, metaclass=OfAnyDevice):
    """Stands for torch.Generator: of the CPU it is torch's own, of a GPU one that says so."""

    def __new__(cls, device="cpu"):
        device = torch.device(device)
        if device.type != "cuda":
            return torch._C.Generator(device)
        made = super().__new__(cls)
        made.index = MACHINE.indexed(device).index
        made.manual_seed(67280421310721)  # torch's own default
        MACHINE.generators[made._cdata] = made
        return made

    @property
    def device(self):
        return torch.device("cuda", self.index)

    def manual_seed(self, seed):
        self.seeded = int(seed)
        super().manual_seed((self.seeded ^ SEED_OF_THE_GPU) & (2**63 - 1))
        return self

    def initial_seed(self):
        return self.seeded


class CUDAGraph:
    """Stands for torch.cuda.CUDAGraph: what is done while it captures is done again, in the same memory, by replay().

    As on a GPU, capturing computes nothing: afterwards memory that was there is as it was, and new memory garbage.
    """

    def __init__(self, keep_graph=False):
        self.reset()

    def reset(self):
        self.calls: list[tuple] = []
        self.made: dict[int, Tensor] = {}  # storage -> a result that lies in it
        self.before: list[tuple[Tensor, Tensor]] = []  # what was written to, and its values until then
        self.whole = False

    def capture_begin(self, pool=None, capture_error_mode="global", check_input_liveness=False):
        if MACHINE.current_stream() is MACHINE.default_stream():
            raise RuntimeError("CUDA graphs must be captured on a non-default stream.")
        self.reset()
        self.error_mode = capture_error_mode
        self.random = [generator.get_state() for generator in torch.cuda.default_generators]
        MACHINE.thread.capturing = self
        MACHINE.captures.append((threading.get_ident(), self))

    @torch.inference_mode()
    def capture_end(self):
        MACHINE.captures.remove((threading.get_ident(), self))
        MACHINE.thread.capturing = None
        for tensor, values in reversed(self.before):
            tensor.copy_(values)
        for *_, new in self.calls:
            for _, tensor in new:
                tensor.copy_(garbage(tensor))
        for generator, state in zip(torch.cuda.default_generators, self.random, strict=True):
            generator.set_state(state)
        self.whole = True

    def call(self, func, args: tuple, kwargs: dict) -> Any:
        """An operation on the CPU while this graph captures."""
        arguments = dict(zip((argument.name for argument in func._schema.arguments), args, strict=False)) | kwargs
        written = [arguments.get(name) for name in written_by(func)]
        for tensor in tensors_in(written):
            if tensor.untyped_storage()._cdata not in self.made:
                self.before.append((tensor, tensor.clone()))
        given = {tensor.untyped_storage()._cdata for tensor in tensors_in((args, kwargs))}
        result = func(*args, **kwargs)
        new = []
        for place, tensor in enumerate(tensors_in(result)):
            storage = tensor.untyped_storage()._cdata
            if storage not in given:
                self.made[storage] = tensor
                new.append((place, tensor))
        self.calls.append((func, args, kwargs, new))
        return result

    @torch.inference_mode()  # what was captured in it may be written in it alone
    def replay(self):
        if not self.whole:
            raise RuntimeError("Called CUDAGraph::replay without a preceding successful capture.")
        MACHINE.replays += 1
        for func, args, kwargs, new in self.calls:
            with MACHINE.numbers_of_the_gpu(func, kwargs, MACHINE.indexed(None)):
                again = tensors_in(func(*args, **kwargs))
            for place, tensor in new:
                tensor.copy_(again[place])

    def pool(self):
        return (0, 1)


def written_by(func) -> list[str]:
    """Names of the arguments that an operation writes to."""
    if func.overloadpacket is aten.native_batch_norm:
        return ["running_mean", "running_var"]  # of which its schema says nothing
    return [
        argument.name for argument in func._schema.arguments if argument.alias_info and argument.alias_info.is_write
    ]


class Everywhere(TorchDispatchMode):
    """Shows the machine every operation of a thread, for tensors are made and moved by those that have none yet."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return MACHINE.run(func, args, kwargs or {})


class PerThread(threading.local):
    """What CUDA knows of each thread by itself."""

    def __init__(self):
        self.device, self.streams, self.capturing = 0, {}, None


class Machine:
    """One that has GPUs.

    syncs      all times that the host waited for them
    allocated  numbers of those that tensors were on
    replays    of CUDA graphs, how many
    """

    def __init__(self, gpus: int):
        self.gpus, self.thread = gpus, PerThread()
        self.syncs: list[Sync] = []
        self.allocated: set[int] = set()
        self.replays = 0
        self.captures: list[tuple[int, CUDAGraph]] = []
        self.sync_debug_mode, self.limit = 0, TOTAL_MEMORY
        self.default_streams: dict[int, Stream] = {}
        self.generators: dict[int, Generator] = {}
        self.drawing = threading.Lock()

    # Devices, streams and generators

    def indexed(self, device: torch.device | str | int | None) -> torch.device:
        """With the index of this thread's device where it has none, as a tensor's device has it."""
        index = self.thread.device if device is None else device if isinstance(device, int) else None
        if index is None:
            index = torch.device(device).index
        index = self.thread.device if index is None else index
        if not 0 <= index < self.gpus:
            raise RuntimeError(f"CUDA error: invalid device ordinal (cuda:{index} of {self.gpus} rehearsed GPUs)")
        return torch.device("cuda", index)

    def set_device(self, index: int) -> None:
        self.thread.device = self.indexed(index).index

    def exchange_device(self, index: int) -> int:
        before = self.thread.device
        if index >= 0:
            self.set_device(index)
        return before

    def default_stream(self, device=None) -> Stream:
        device = self.indexed(device)
        if device.index not in self.default_streams:
            self.default_streams[device.index] = Stream(device)
        return self.default_streams[device.index]

    def current_stream(self, device=None) -> Stream:
        return self.thread.streams.get(self.indexed(device).index) or self.default_stream(device)

    def set_stream(self, stream: Stream | None) -> None:
        if stream is not None:
            self.thread.streams[stream.device.index] = stream

    # Waiting

    def host_waits(self, what: str) -> None:
        self.forbidden_in_capture(what)
        self.syncs.append(Sync(what, caller()))
        if self.sync_debug_mode == 1:
            warnings.warn("called a synchronizing CUDA operation", stacklevel=3)
        elif self.sync_debug_mode == 2:
            raise RuntimeError("called a synchronizing CUDA operation")

    def forbidden_in_capture(self, what: str) -> None:
        for thread, graph in self.captures:
            if thread == threading.get_ident() or graph.error_mode == "global":
                raise RuntimeError(f"CUDA error: operation not permitted when stream is capturing: {what}")

    def synchronize(self) -> None:
        self.forbidden_in_capture("torch.cuda.synchronize")
        for stream in (self.default_stream(), self.current_stream()):
            arrive(stream.copies)

    @contextlib.contextmanager
    def syncs_of(self) -> Iterator[list[Sync]]:
        """What makes the host wait inside, by any thread; the list is filled at the end."""
        found, before = [], len(self.syncs)
        try:
            yield found
        finally:
            found += self.syncs[before:]

    # Memory

    def memory_stats(self, device: int) -> dict:
        return {"allocated_bytes": {"all": {"current": 2**20, "peak": 2**21, "allocated": 2**21, "freed": 2**20}}}

    def set_memory_fraction(self, fraction: float, device: int) -> None:
        self.limit = int(fraction * TOTAL_MEMORY)

    def properties(self, device=None):
        return types.SimpleNamespace(
            name="a rehearsed GPU", major=9, minor=0, total_memory=TOTAL_MEMORY, multi_processor_count=132
        )

    # Operations

    def run(self, func, args: tuple, kwargs: dict) -> Any:
        """An operation of any thread, on tensors of any device."""
        kind, tensors = func.overloadpacket, tensors_in((args, kwargs))
        ours = [tensor for tensor in tensors if isinstance(tensor, CudaTensor)]
        named = kwargs.get("device")
        if kind in COMPOSED:
            with Everywhere():
                return func.decompose(*args, **kwargs)
        if kind is aten._pin_memory:
            return as_pinned(aten.clone(args[0]))
        if kind is aten.is_pinned:
            return getattr(args[0], "is_in_pinned_memory", False)
        if not ours and (named is None or named.type not in ON_A_GPU):
            self.check_generator(kwargs.get("generator"), CPU)
            if kwargs.get("pin_memory"):
                made = func(*args, **kwargs | {"pin_memory": False})
                return as_pinned(garbage(made) if kind is aten.empty else made)
            return func(*args, **kwargs)
        if kind is aten._to_copy:
            return self.moved(func, args, kwargs)
        if kind is aten.copy_:
            return self.copied(func, args, kwargs)
        if kind is aten._foreach_copy_:
            for target, values in zip(args[0], args[1], strict=True):
                target.copy_(values, *args[2:], **kwargs)
            return args[0]

        self.check_devices(kind, args, ours, tensors)
        self.check_waiting(kind, args)
        device = self.indexed(named) if named is not None and named.type in ON_A_GPU else named or ours[0].device
        self.check_generator(kwargs.get("generator"), device)
        if device.type == "cuda" and "device" in kwargs:
            kwargs = kwargs | {"device": CPU} | ({"pin_memory": False} if "pin_memory" in kwargs else {})
        inner_args, inner_kwargs = unwrapped((args, kwargs))
        with self.numbers_of_the_gpu(func, kwargs, device):
            result = self.computed(func, inner_args, inner_kwargs)
        if device.type != "cuda":
            return result
        outer = {id(tensor.inner): tensor for tensor in ours}
        wrapped = each(lambda value: self.wrapped(value, device, outer) if isinstance(value, Tensor) else value, result)
        if torch.Tag.inplace_view in func.tags:
            return return_and_correct_aliasing(func, args, kwargs, wrapped)
        return wrapped

    def computed(self, func, args: tuple, kwargs: dict) -> Any:
        capturing = self.thread.capturing
        return capturing.call(func, args, kwargs) if capturing else func(*args, **kwargs)

    def wrapped(self, inner: Tensor, device: torch.device, outer: dict[int, CudaTensor]) -> CudaTensor:
        """On the GPU; what an operation wrote into is the very tensor that it was given."""
        if id(inner) in outer:
            return outer[id(inner)]
        if inner.nbytes > self.limit:
            raise torch.OutOfMemoryError(
                f"CUDA out of memory. Tried to allocate {inner.nbytes} bytes. GPU {device.index} has a total capacity "
                f"of {self.limit} bytes of which 0 bytes is free."
            )
        self.allocated.add(device.index)
        with torch.inference_mode(inner.is_inference()):  # a view of a weight is none of an inference's
            return CudaTensor(inner, device)

    def moved(self, func, args: tuple, kwargs: dict) -> Tensor:
        """Tensor.to(): to or from a GPU, or between two."""
        (source,) = args
        named = kwargs.get("device")
        to_gpu = named is None or named.type in ON_A_GPU
        waits = not kwargs.get("non_blocking", False)
        if isinstance(source, CudaTensor) and not to_gpu:
            values = func(source.inner, **kwargs | {"device": CPU})
            return self.received(values, waits)
        if not isinstance(source, CudaTensor):
            if waits:
                self.host_waits("copy to the GPU")
            elif self.thread.capturing:
                self.forbidden_in_capture("copy of a new tensor to the GPU")
        device = source.device if named is None else self.indexed(named)
        inner_kwargs = kwargs | ({"device": CPU} if named is not None else {})
        inner_kwargs.pop("pin_memory", None)
        inner = unwrapped(source)
        return self.wrapped(self.computed(func, (inner,), inner_kwargs), device, {})

    def received(self, values: Tensor, waits: bool) -> Tensor:
        """On the CPU, now or later."""
        stream = self.current_stream()
        if waits:
            self.host_waits("copy to the CPU")
            arrive(stream.copies)
            return values
        target = garbage(values)
        stream.copies.append(Copy(target, values))
        return target

    def copied(self, func, args: tuple, kwargs: dict) -> Tensor:
        """target.copy_(source, non_blocking), where either is on a GPU."""
        target, source = args[:2]
        non_blocking = args[2] if len(args) > 2 else kwargs.get("non_blocking", False)
        if isinstance(target, CudaTensor):
            if not isinstance(source, CudaTensor) and not non_blocking:
                self.host_waits("copy to the GPU")
            self.computed(func, unwrapped((target, source)), {})
        elif non_blocking:
            self.current_stream().copies.append(Copy(target, source.inner.clone()))
        else:
            self.host_waits("copy to the CPU")
            arrive(self.current_stream().copies)
            func(target, source.inner)
        return target

    def check_devices(self, kind, args: tuple, ours: list[CudaTensor], tensors: list[Tensor]) -> None:
        devices = {tensor.device for tensor in ours}
        strange = [tensor for tensor in tensors if not isinstance(tensor, CudaTensor)]
        if kind in INDEXING and isinstance(args[0], CudaTensor):
            indices = {id(index) for index in args[1]}
            strange = [tensor for tensor in strange if id(tensor) not in indices]
        devices |= {tensor.device for tensor in strange if tensor.dim() or kind in CHECKED_SHAPES}
        if len(devices) > 1:
            raise RuntimeError(
                "Expected all tensors to be on the same device, but found at least two devices, "
                f"{' and '.join(sorted(map(str, devices)))}! (in {kind})"
            )

    def check_waiting(self, kind, args: tuple) -> None:
        what = str(kind).removeprefix("aten.")
        if kind in WAITING:
            self.host_waits(what)
            arrive(self.current_stream().copies)
        elif kind in INDEXING:
            given = [index for index in args[1] if index is not None]
            masks = [index for index in given if index.dtype in (torch.bool, torch.uint8)]
            filled = kind is not aten.index and len(masks) == len(given) == 1 and args[2].numel() == 1
            if masks and not filled:
                self.host_waits(f"{what} by a mask")
            elif any(not isinstance(index, CudaTensor) for index in given):
                self.host_waits(f"{what} from the CPU")
        elif kind in (aten.repeat_interleave, aten.where) and len(args) == 1:  # how often, or where
            self.host_waits(what)

    def check_generator(self, generator: torch._C.Generator | None, device: torch.device) -> None:
        if generator is not None:
            found = "cuda" if generator._cdata in self.generators else "cpu"
            if found != device.type:
                raise RuntimeError(f"Expected a '{device.type}' device type for generator but found '{found}'")

    @contextlib.contextmanager
    def numbers_of_the_gpu(self, func, kwargs: dict, device: torch.device) -> Iterator[None]:
        """What is random inside comes from the GPU's generator, and takes nothing from the CPU's."""
        seeded = torch.Tag.nondeterministic_seeded in func.tags and kwargs.get("generator") is None
        if not seeded or device.type != "cuda":
            yield
            return
        generator = torch.cuda.default_generators[device.index]
        with self.drawing:
            before = torch.default_generator.get_state()
            torch.default_generator.set_state(generator.get_state())
            try:
                yield
            finally:
                generator.set_state(torch.default_generator.get_state())
                torch.default_generator.set_state(before)


def each(change: Callable[[Any], Any], values: Any) -> Any:
    """The same nested lists, tuples and dicts of changed values."""
    if isinstance(values, (list, tuple)):
        changed = [each(change, value) for value in values]
        return changed if isinstance(values, list) else tuple(changed)
    if isinstance(values, dict):
        return {key: each(change, value) for key, value in values.items()}
    return change(values)


def tensors_in(values: Any) -> list[Tensor]:
    """All that lie in nested lists, tuples and dicts."""
    found = []
    each(lambda value: found.append(value) if isinstance(value, Tensor) else None, values)
    return found


def unwrapped(values: Any) -> Any:
    return each(lambda value: value.inner if isinstance(value, CudaTensor) else value, values)


def as_pinned(tensor: Tensor) -> Tensor:
    tensor.is_in_pinned_memory = True
    return tensor


def garbage(values: Tensor) -> Tensor:
    """A tensor of the same kind, of which no value is right."""
    if values.is_floating_point():
        return torch.full_like(values, torch.nan)
    return values.bitwise_not()


def caller() -> str:
    """The line that called torch"""
    inside = (__file__, str(Path(torch.__file__).parent))
    frame = sys._getframe(1)
    while frame.f_back and frame.f_code.co_filename.startswith(inside):
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"


MACHINE: Machine | None = None


@contextlib.contextmanager
def device_guards() -> Iterator[None]:
    """torch's guards of devices, in C++: for the two types that have none here, those that do nothing."""
    cuda, xla, meta = 1, 9, 14  # places in the registry, c10::DeviceType
    (library,) = Path(torch.__file__).parent.glob("lib/libc10.*")
    c10 = ctypes.CDLL(str(library))
    guards = (ctypes.c_void_p * 15).in_dll(c10, "_ZN3c104impl26device_guard_impl_registryE")
    before = guards[cuda], guards[xla]
    torch._C._ensureCUDADeviceGuardSet()
    guards[xla] = guards[meta]
    try:
        yield
    finally:
        guards[cuda], guards[xla] = before


def stand_ins(machine: Machine, gpus: int) -> dict[Any, dict[str, Any]]:
    """What takes the place of torch's own: {module or class: {name: stand-in}}"""
    return {
        torch.cuda: {
            "_lazy_init": lambda: None,
            "_initialized": True,
            "is_available": lambda: True,
            "device_count": lambda: gpus,
            "current_device": lambda: machine.thread.device,
            "_exchange_device": machine.exchange_device,
            "_maybe_exchange_device": lambda index: machine.exchange_device(index),
            "_get_device_properties": machine.properties,
            "default_generators": tuple(Generator(f"cuda:{index}") for index in range(gpus)),
            "Stream": Stream,
            "Event": Event,
            "default_stream": machine.default_stream,
            "current_stream": machine.current_stream,
            "set_stream": machine.set_stream,
            "CUDAGraph": CUDAGraph,
            "graph_pool_handle": lambda: (0, 1),
            "is_current_stream_capturing": lambda: machine.thread.capturing is not None,
            "mem_get_info": lambda device=None: (TOTAL_MEMORY, TOTAL_MEMORY),
        },
        torch.cuda.graphs: {"CUDAGraph": CUDAGraph},
        torch.cuda.graphs.graph: {"default_capture_stream": None},
        torch._C: {
            "_cuda_getDeviceCount": lambda: gpus,
            "_cuda_getDevice": lambda: machine.thread.device,
            "_cuda_setDevice": machine.set_device,
            "_cuda_synchronize": machine.synchronize,
            "_cuda_emptyCache": lambda: machine.forbidden_in_capture("empty_cache"),
            "_host_emptyCache": lambda: None,
            "_cuda_memoryStats": machine.memory_stats,
            "_cuda_resetPeakMemoryStats": lambda device: None,
            "_cuda_resetAccumulatedMemoryStats": lambda device: None,
            "_cuda_setMemoryFraction": machine.set_memory_fraction,
            "_cuda_set_sync_debug_mode": lambda mode: setattr(machine, "sync_debug_mode", mode),
            "_cuda_get_sync_debug_mode": lambda: machine.sync_debug_mode,
        },
        torch.accelerator: {
            "is_available": lambda: True,
            "current_accelerator": lambda check_available=False: torch.device("cuda"),
            "current_device_index": lambda: machine.thread.device,
        },
        sys.modules["torch.optim.optimizer"]: {"_foreach_supported_types": [Tensor, torch.nn.Parameter, CudaTensor]},
        torch: {"Generator": Generator},
    }


@contextlib.contextmanager
def rehearsed_cuda(gpus: int = 1) -> Iterator[Machine]:
    """A machine with GPUs, in this thread and in those that are started inside; as it was afterwards."""
    global MACHINE
    assert MACHINE is None and not torch.cuda.is_available()
    MACHINE = machine = Machine(gpus)
    run_thread = threading.Thread.run

    @contextlib.contextmanager
    def entered():
        # A GPU's share of backward would go to a thread that torch starts only where there is one.
        with Everywhere(), torch.autograd.set_multithreading_enabled(False):
            yield

    def run_entered(thread):
        with entered():
            run_thread(thread)

    with contextlib.ExitStack() as stack:
        stack.enter_context(device_guards())
        stack.callback(torch._C._set_only_lift_cpu_tensors, torch._C._only_lift_cpu_tensors())
        torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(..., device="cuda") is then a copy that can be seen
        stack.callback(forget_machine)
        instead = stand_ins(machine, gpus) | {threading.Thread: {"run": run_entered}}
        for owner, attributes in instead.items():
            for name, value in attributes.items():
                stack.enter_context(mock.patch.object(owner, name, value, create=True))
        for settings in (torch.backends.cuda.matmul, torch.backends.cudnn.conv):
            stack.callback(setattr, settings, "fp32_precision", settings.fp32_precision)
        stack.enter_context(entered())
        yield machine


def forget_machine() -> None:
    global MACHINE
    MACHINE = None
