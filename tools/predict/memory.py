"""Whether a picture fits into memory, which is asked before the system would kill the whole run."""

import contextlib
import math
from pathlib import Path

from errors import WrongInput
from models.segmenter import WINDOW

# Bytes of memory on a CPU for each pixel that a network sees at once, at its peak: measured at 1024x1024, rounded up.
# Segmenter's windows are always of one size.
NETWORK_BYTES = {"deeplabv3plus": 1300, "ldn121": 320, "segmenter": 0}
RESULT_BYTES = 100  # for each pixel of the picture: scores, classes, pictures of them


def check_memory(
    height: int, width: int, network: str, num_classes: int, max_side: int | None, tile: int | None
) -> None:
    """Raise ValueError for a picture that takes more memory than is free: the system would kill the whole run."""

    def needed(max_side: int | None, tile: int | None) -> int:
        shrinks = max_side is not None and max(height, width) > max_side
        seen = shrunk((height, width), max_side) if shrinks else [height, width]
        if network == "segmenter":
            seen = [side * max(WINDOW, min(seen)) // min(seen) for side in seen]
        at_once = math.prod(seen if tile is None else [min(side, tile) for side in seen])
        logits = 8 * (num_classes + 2) + 40  # and their sums over windows, in float32
        return NETWORK_BYTES[network] * at_once + logits * math.prod(seen) + RESULT_BYTES * height * width

    free = free_memory()
    if free is None or needed(max_side, tile) <= free:
        return
    ways = [f"--max_side 2048 (about {needed(2048, tile) / 1e9:.1f} GB)"]
    if network != "segmenter":
        ways.append(f"--tile 1024 (about {needed(max_side, 1024) / 1e9:.1f} GB)")
    raise WrongInput(
        f"its {width}x{height} pixels take about {needed(max_side, tile) / 1e9:.1f} GB of memory and "
        f"{free / 1e9:.1f} GB are free; try {' or '.join(ways)}"
    )


def free_memory() -> int | None:
    """Bytes that this process can have before the system kills one, a container's limit included; None: not known."""
    found = []
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
        found.append(1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")))
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        with contextlib.suppress(OSError, ValueError):  # "max" is no number: there is no limit
            most, taken = (int(Path("/sys/fs/cgroup", name).read_text(encoding="utf-8")) for name in (limit, used))
            found.append(most - taken)
    return min(found, default=None)


def shrunk(size: tuple[int, int], max_side: int) -> list[int]:
    return [max(1, round(side * max_side / max(size))) for side in size]
