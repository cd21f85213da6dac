"""CUDA graphs: a forward pass of many small kernels, launched as one."""

import functools
import threading
import warnings
from collections import OrderedDict
from typing import NamedTuple

import torch
from torch import Tensor, nn

SIZES = 4  # kept; a folder of photographs of all sizes costs no more memory than that
LOCK = threading.Lock()  # one pass is recorded or launched at a time

Output = Tensor | tuple[Tensor, ...]


class Captured(NamedTuple):
    """A recorded forward pass, which reads and writes the same memory at each replay."""

    graph: torch.cuda.CUDAGraph
    images: Tensor
    output: Output


class Replayed(nn.Module):
    """A network without randomness, in eval mode, whose forward pass is recorded for sizes that come again.

    The first time that a size and type of images comes, the network runs as it is. The second time its kernels are
    recorded, and from then on they are launched all at once, without Python between them.
    Outputs are copies, the caller's to keep. Of the sizes that came last, SIZES are kept; their graphs share one pool
    of memory, which is safe since they run one after another. Where a pass cannot be recorded, for want of memory or
    because something in it waits for the GPU, the network runs as it is, after a warning.

    Not on CUDA, with gradients, or while somebody else records, this is the network and nothing else. The network knows
    what it computes in: autocast around it changes nothing. Safe to use from several threads and streams. Weights that
    are changed in place count at once; .to() and its like move them, and forget what was recorded.
    """

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network
        self.forget()

    def forget(self) -> None:
        self.sizes: OrderedDict[tuple, Captured | None] = OrderedDict()  # the one used last stands last; None: seen
        self.gave_up = False
        self.replayed: torch.cuda.Event | None = None  # after which the graphs' memory may be written again

    def _apply(self, *args, **kwargs) -> "Replayed":
        self.forget()
        return super()._apply(*args, **kwargs)

    def forward(self, images: Tensor) -> Output:
        with torch.autocast(images.device.type, enabled=False):
            if not images.is_cuda or torch.is_grad_enabled() or capturing():
                return self.network(images)
            return self.run(images)

    def run(self, images: Tensor) -> Output:
        with LOCK:
            captured = None if self.gave_up else self.captured(images)
            if captured is not None:
                return self.replay(captured, images)
        try:
            return self.network(images)
        except torch.OutOfMemoryError as error:
            if not any(self.sizes.values()):
                raise
            self.give_up(images, error)  # what was recorded holds memory
        return self.network(images)

    def captured(self, images: Tensor) -> Captured | None:
        """The recorded pass for such images; None where they come for the first time, or where it failed."""
        key = (images.shape, images.dtype, images.device)
        if key not in self.sizes:
            self.sizes[key] = None
        elif self.sizes[key] is None:
            try:
                self.sizes[key] = self.capture(images)
            except RuntimeError as error:
                self.give_up(images, error)
                return None
        self.sizes.move_to_end(key)
        captured = self.sizes[key]
        while len(self.sizes) > SIZES:
            self.sizes.popitem(last=False)  # after the new one: a pool must never be without a graph
        return captured

    def give_up(self, images: Tensor, error: RuntimeError) -> None:
        height, width = images.shape[2:]
        warnings.warn(
            f"no CUDA graphs from here on, which is slower where images are small: images of {width} x {height} pixels "
            f"failed with one ({str(error).splitlines()[0]})",
            stacklevel=2,
        )
        self.forget()
        self.gave_up = True

    def capture(self, images: Tensor) -> Captured:
        pool = next((known.graph.pool() for known in self.sizes.values() if known), None)
        graph, stream = torch.cuda.CUDAGraph(), recording_stream(images.device)
        callers = torch.cuda.current_stream(images.device)
        # Tensors made in inference mode could not be written outside of it later.
        with torch.inference_mode(False), torch.no_grad():
            static = torch.empty_like(images)
            stream.wait_stream(callers)
            with torch.cuda.stream(stream):
                self.network(images)  # for what a thread and a stream need once, such as cuBLAS's memory
            # thread_local: other threads go on using the GPU, as those that copy frames and compute metrics do.
            with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
                output = self.network(static)
            callers.wait_stream(stream)
        return Captured(graph, static, output)

    def replay(self, captured: Captured, images: Tensor) -> Output:
        stream = torch.cuda.current_stream(images.device)
        if self.replayed is not None:
            stream.wait_event(self.replayed)
        captured.images.copy_(images)
        captured.images.record_stream(stream)  # of another stream perhaps, and may be let go while it is read
        captured.graph.replay()
        output = captured.output
        copies = tuple(logits.clone() for logits in output) if isinstance(output, tuple) else output.clone()
        self.replayed = stream.record_event()
        return copies


@functools.cache
def recording_stream(device: torch.device) -> torch.cuda.Stream:
    """One for all networks, since cuBLAS keeps memory for each stream that it has been used in."""
    return torch.cuda.Stream(device)


def capturing() -> bool:
    return torch.compiler.is_compiling() or torch.cuda.is_current_stream_capturing()
