"""Numbers on their way from the device: they are read some steps later, so that the host never waits for a GPU."""

from collections import deque
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

LAG = 2  # steps that are under way on a GPU: it always has the next one to do, and the log is hardly behind


class Readings:
    """A queue of named numbers with what belongs to them; on a CPU they are ready at once."""

    def __init__(self, device: torch.device):
        self.device = device
        self.waiting: deque[tuple] = deque()
        self.lag = LAG if device.type == "cuda" else 0

    def put(self, about: Any, numbers: dict[Any, Tensor]) -> None:
        """Take single numbers from the device, together with what they are about."""
        values = torch.stack([number.detach().double() for number in numbers.values()])
        copied = None
        if self.device.type == "cuda":
            values = torch.empty(values.shape, dtype=values.dtype, pin_memory=True).copy_(values, non_blocking=True)
            copied = torch.cuda.Event()
            copied.record()
        self.waiting.append((about, tuple(numbers), values, copied))

    def ready(self, everything: bool = False) -> Iterator[tuple[Any, dict[Any, float]]]:
        """What was put in LAG and more puts ago, in its order; everything: all, waited for."""
        while len(self.waiting) > (0 if everything else self.lag):
            about, names, values, copied = self.waiting.popleft()
            if copied is not None:
                copied.synchronize()
            yield about, dict(zip(names, values.tolist(), strict=True))
