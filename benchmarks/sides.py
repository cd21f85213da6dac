"""What the benchmarks share: sides timed in turns, peak memory, what machine it was, and the table as JSON."""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from itertools import pairwise
from pathlib import Path

import torch

CPU = torch.device("cpu")
MIB = 2**20


def benchmark_parser(description: str) -> argparse.ArgumentParser:
    """A parser with the flag that every benchmark has."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the table there, too")
    return parser


def in_turns(
    sides: dict[str, Callable],
    rounds: int,
    device: torch.device = CPU,
    passes: int = 1,
    before: Callable[[str], None] = lambda _name: None,
) -> dict[str, list[float]]:
    """Seconds of each pass of each side: `rounds` times `passes` of each, which side is first alternating.

    sides   functions by name; run each once before, so that nothing is timed that happens once
    before  called with a side's name before its passes of a round, untimed
    """
    times: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds):
        for name in list(sides)[:: 1 if number % 2 == 0 else -1]:
            before(name)
            times[name] += seconds(sides[name], device, passes)
    return times


def seconds(function: Callable, device: torch.device = CPU, passes: int = 1) -> list[float]:
    """Of each pass; on a GPU as its own clock has it, which is not waited for between the passes."""
    if device.type != "cuda":
        marks = [time.perf_counter()]
        for _ in range(passes):
            function()
            marks.append(time.perf_counter())
        return [end - start for start, end in pairwise(marks)]
    torch.cuda.synchronize(device)
    events = [torch.cuda.Event(enable_timing=True) for _ in range(passes + 1)]
    events[0].record()
    for event in events[1:]:
        function()
        event.record()
    torch.cuda.synchronize(device)
    return [start.elapsed_time(end) / 1e3 for start, end in pairwise(events)]


def compared(what: str, times: dict[str, list[float]], ours: str, other: str, **more) -> dict:
    """A row of the table: medians of both sides, and of the other's seconds through ours, pass by pass."""
    ratios = [theirs / mine for mine, theirs in zip(times[ours], times[other], strict=True)]
    return {
        "what": what,
        "ours_seconds": statistics.median(times[ours]),
        "other": other,
        "other_seconds": statistics.median(times[other]),
        "ratio": statistics.median(ratios),
        "smallest_ratio": min(ratios),
        "largest_ratio": max(ratios),
        **more,
    }


def shown_times(times: list[float]) -> str:
    return f"{statistics.median(times):8.3f} s " + f"({min(times):.3f} to {max(times):.3f})".ljust(20)


def shown_ratio(row: dict) -> str:
    return f"{row['ratio']:.2f} ({row['smallest_ratio']:.2f} to {row['largest_ratio']:.2f})"


def peak_bytes() -> int:
    """The most bytes that this process has held at once."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def from_own_process(script: str, *flags) -> object:
    """What a script prints as JSON, run with these flags in a process whose peak memory is its own.

    On Linux the peak of a process begins at that of the one that starts it: call this before anything is large.
    """
    command = [sys.executable, script, *map(str, flags)]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)


def installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def machine(device: torch.device = CPU, packages: tuple[str, ...] = ("torch",)) -> str:
    """A line: processor, cores and threads, the GPU where it is one, and versions."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    processor = models[0] if models else platform.processor() or platform.machine()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    gpu = f"{torch.cuda.get_device_name(device)}; " if device.type == "cuda" else ""
    threads = f"OMP_NUM_THREADS {os.environ.get('OMP_NUM_THREADS', 'unset')}"
    versions = ", ".join(f"{package} {installed(package)}" for package in packages)
    return f"{gpu}{processor}, {cores} cores, {threads}; Python {platform.python_version()}, {versions}"


def write_table(path: Path | None, benchmark: str, setting: str, rows: list[dict], **more) -> None:
    """The table as JSON, where a path is given."""
    if path is not None:
        table = {"benchmark": benchmark, "setting": setting, "rows": rows, **more}
        path.write_text(json.dumps(table, indent=2) + "\n")


def column_table(rows: list[dict], columns: list[str], other: str = "", ours: str = "") -> list[str]:
    """Markdown lines of rows whose sides are columns, with the other's milliseconds through ours at the end."""
    with_ratio = {other, ours} <= {*columns}
    heads = [*columns, f"{other} / {ours}"] if with_ratio else columns
    lines = [f"| ms (peak MiB) | {' | '.join(heads)} |", "|" + "---|" * (len(heads) + 1)]
    for row in rows:
        cells = [row["cells"].get(column, {}).get("text", "") for column in columns]
        if with_ratio:
            theirs, mine = (row["cells"].get(column, {}).get("ms") for column in (other, ours))
            cells.append(f"{theirs / mine:.2f}" if theirs and mine else "")
        lines.append(f"| {row['what']} | {' | '.join(cells)} |")
    return lines
