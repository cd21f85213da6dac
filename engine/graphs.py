"""Training steps as CUDA graphs: the thousands of kernels of a forward and backward pass, launched all at once."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from errors import WrongInput

WARM_UP = 3  # passes before one is recorded: in the first ones libraries choose their kernels, and Triton compiles

Counts = dict[str, Any]
Compute = Callable[[list[Tensor], Counts], dict[str, Tensor]]


class Replay:
    """compute(inputs, counts), which leaves gradients in the optimizer's weights and returns loss terms, on a GPU.

    Launched kernel by kernel, many networks wait for Python. The WARM_UP + 1st time that inputs of one shape come, the
    pass is recorded, and from then on replayed for them; inputs of another shape, such as an epoch's last, run as they
    are. Gradients and terms of a replayed pass lie in memory that the next one writes to. Where a pass
    cannot be recorded, because something in it waits for the GPU or memory does not suffice beside the recording,
    all passes are computed as they are, after a note.
    """

    def __init__(self, compute: Compute, optimizer: torch.optim.Optimizer):
        self.compute, self.optimizer = compute, optimizer
        self.possible = True
        self.forget()

    def forget(self) -> None:
        """Let go of the recording and its memory, as a validation needs it; the next passes record anew."""
        self.seen: Counter = Counter()
        self.key: tuple | None = None  # of what is recorded
        self.graph: torch.cuda.CUDAGraph | None = None
        self.inputs: list[Tensor] = []
        self.counts: Counts = {}
        self.terms: dict[str, Tensor] = {}
        self.gradients: list[tuple[Tensor, Tensor]] = []

    def __call__(self, inputs: list[Tensor], counts: Counts) -> dict[str, Tensor]:
        if not self.possible or not all(tensor.is_cuda for tensor in inputs):
            return self.compute(inputs, counts)
        key = (*(description(tensor) for tensor in inputs), *map(description, counts.values()))
        self.seen[key] += 1
        if self.graph is None and self.seen[key] > WARM_UP:
            self.record(key, inputs, counts)
        if self.graph is None:
            return self.compute(inputs, counts)
        if key != self.key:
            try:
                return self.compute(inputs, counts)
            except torch.OutOfMemoryError as error:  # for what is recorded keeps its memory
                self.give_up(error, inputs[0].device)
            return self.compute(inputs, counts)  # BatchNorm may see this batch twice
        for recorded, new in zip(self.tensors(self.inputs, self.counts), self.tensors(inputs, counts), strict=True):
            recorded.copy_(new)
        self.graph.replay()
        for weight, gradient in self.gradients:
            weight.grad = gradient  # a pass that was not replayed has put another one there
        return self.terms

    def tensors(self, inputs: list[Tensor], counts: Counts) -> list[Tensor]:
        return [*inputs, *(count for count in counts.values() if isinstance(count, Tensor))]

    def record(self, key: tuple, inputs: list[Tensor], counts: Counts) -> None:
        self.inputs = [tensor.clone() for tensor in inputs]
        self.counts = {name: count.clone() if isinstance(count, Tensor) else count for name, count in counts.items()}
        graph = torch.cuda.CUDAGraph()
        try:
            # thread_local: the thread that pins batches goes on using the GPU.
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                self.terms = self.compute(self.inputs, self.counts)
        except RuntimeError as error:  # also for want of memory
            self.give_up(error, inputs[0].device)
            return
        weights = [weight for group in self.optimizer.param_groups for weight in group["params"]]
        self.gradients = [(weight, weight.grad) for weight in weights if weight.grad is not None]
        self.graph, self.key = graph, key

    def give_up(self, error: RuntimeError, device: torch.device) -> None:
        """Raises ValueError where the failure has left the GPU's random numbers unusable, as it may."""
        reason = str(error).splitlines()[0]
        self.forget()
        self.possible = False
        torch.cuda.empty_cache()
        try:
            torch.rand(1, device=device)
        except RuntimeError:
            raise WrongInput(
                f"a training step cannot be recorded as a CUDA graph ({reason}); add --no_graphs"
            ) from error
        tqdm.write(f"note: training steps are launched kernel by kernel, for they cannot be recorded: {reason}")


def description(value: Tensor | int) -> tuple:
    if isinstance(value, Tensor):
        return value.shape, value.dtype, value.stride()
    return (value,)
