"""One run as several processes, started by torchrun: who is who, what they exchange, and how they end.

A run of one process takes the same path: it is process 0 of 1, and there is nothing to exchange.
"""

import contextlib
import datetime
import os
import shlex
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from tqdm import tqdm

from errors import LostProcess, WrongInput

LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")  # what torchrun and others set
PATIENCE = datetime.timedelta(hours=2)  # for a process that is slower; torchrun ends all where one has died
LOST_NEIGHBOUR = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "remote process exited")


def rank() -> int:
    """This process's number, 0 .. world_size() - 1; process 0 alone writes files and talks."""
    return launchers_number("RANK", 0) if world_size() > 1 else 0


def is_main_process() -> bool:
    return rank() == 0


def world_size() -> int:
    return launchers_number("WORLD_SIZE", 1, least=1)


def launchers_number(name: str, otherwise: int, least: int = 0) -> int:
    """A number that a launcher such as torchrun sets in the environment; an empty one is none.

    Raises WrongInput for what is no such number.
    """
    word = os.environ.get(name) or str(otherwise)
    if not word.isdecimal() or int(word) < least:
        raise WrongInput(f"{name}={word} in the environment is no number of processes: unset it, or use torchrun")
    return int(word)


def check_launcher() -> None:
    """Raises WrongInput where WORLD_SIZE asks for several processes, and no launcher has started them."""
    if world_size() == 1:
        return
    missing = [name for name in LAUNCHER if not os.environ.get(name)]
    if missing or rank() >= world_size():
        lacks = f"without {', '.join(missing)}" if missing else f"and RANK={rank()}"
        raise WrongInput(
            f"WORLD_SIZE={world_size()} is set in the environment {lacks}, as a cluster's job leaves it behind: unset "
            f"WORLD_SIZE to run as one process, or start several with torchrun --nproc_per_node {world_size()}"
        )


def launch_command(script: str, argv: list[str] | None) -> str:
    """The command line that started this process, with torchrun where that started it; argv None: the process's own."""
    words = sys.argv if argv is None else [Path(script).name, *argv]
    if "TORCHELASTIC_RUN_ID" not in os.environ and world_size() == 1:
        return shlex.join(["python", *words])
    each = os.environ.get("LOCAL_WORLD_SIZE", str(world_size()))
    machines = os.environ.get("GROUP_WORLD_SIZE", "1")
    several = [] if machines == "1" else ["--nnodes", machines]  # where they meet, each cluster says otherwise
    return shlex.join(["torchrun", *several, "--nproc_per_node", each, *words])


def join_processes(device: torch.device) -> torch.device:
    """Join the other processes of the run; returns this one's device, of several GPUs its own.

    Raises ValueError for a GPU that is not there, ChildProcessError where the others cannot be reached.
    """
    if world_size() == 1 or dist.is_initialized():
        return device
    if device.type == "cuda":
        local_rank = launchers_number("LOCAL_RANK", 0)
        if device.index is not None:
            raise WrongInput(
                f"--device {device} names one GPU for {world_size()} processes; --device cuda gives each its own"
            )
        if local_rank >= torch.cuda.device_count():
            raise WrongInput(
                f"process {local_rank} of this machine has no GPU: there are {torch.cuda.device_count()}; "
                "start as many with --nproc_per_node, or take --device cpu"
            )
        device = torch.device("cuda", local_rank)
        torch.cuda.set_device(device)
    address = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
    try:
        if device.type == "cuda":
            dist.init_process_group("cpu:gloo,cuda:nccl", timeout=PATIENCE, device_id=device)
        else:
            dist.init_process_group("gloo", timeout=PATIENCE)
    except (RuntimeError, ValueError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise LostProcess(
            f"the {world_size()} processes do not find each other at {address} ({reason}): start them with torchrun, "
            "or unset WORLD_SIZE to run as one"
        ) from error
    signal.signal(signal.SIGTERM, end_with_the_others)
    if not is_main_process():
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    return device


def leave_processes() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def end_with_the_others(*_) -> None:
    sys.exit(
        error_line("stopped by SIGTERM; torchrun sends it where another process has ended, or where it is ended itself")
    )


def error_line(message: str) -> str:
    """An error's text, which says whose it is where there are several processes."""
    try:
        alone = world_size() == 1
    except WrongInput:  # which is the error then
        alone = True
    return f"error: {message}" if alone else f"error (process {rank()} of {world_size()}): {message}"


@contextlib.contextmanager
def lost_neighbour_explained() -> Iterator[None]:
    """A clear error where another process has died in the middle of a conversation."""
    try:
        yield
    except RuntimeError as error:
        if world_size() == 1 or not any(words in str(error) for words in LOST_NEIGHBOUR):
            raise
        raise LostProcess(
            "another process of this run has died; what went wrong is in its own lines. The last checkpoint is whole: "
            "a training goes on with --resume, with any number of processes"
        ) from error


@contextlib.contextmanager
def main_process_first() -> Iterator[None]:
    """What is inside is done by process 0, then by the others, which find the files that it wrote."""
    if not is_main_process():
        wait_for_all()
    yield
    if is_main_process():
        wait_for_all()


def wait_for_all() -> None:
    if dist.is_initialized():
        dist.all_reduce(torch.zeros(1))  # not barrier(), which would take a GPU for it


def all_reduce_sum(numbers: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """The same numbers in every process: by name, summed over all of them. Of one process as they are."""
    if not dist.is_initialized():
        return numbers
    total = torch.stack([torch.as_tensor(number, device=device).double() for number in numbers.values()])
    dist.all_reduce(total)
    return dict(zip(numbers, total, strict=True))


def broadcast(value: Any) -> Any:
    """The value that process 0 has, in every process."""
    if not dist.is_initialized():
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
    return box[0]


def gather(value: Any) -> Iterator[Any]:
    """In process 0 the value of each process, in their order, one at a time; in the others nothing.

    Every process must go through it to the end.
    """
    if not is_main_process():
        dist.send_object_list([value], dst=0, device=torch.device("cpu"))
        return
    yield value
    for process in range(1, world_size() if dist.is_initialized() else 1):
        box = [None]
        dist.recv_object_list(box, src=process, device=torch.device("cpu"))
        yield box[0]


def gather_merged(metrics: Any) -> Any:
    """In process 0 what all processes have counted, by merge(); in the others what they have counted themselves.

    metrics  any object whose merge(other) takes over the counts of another, such as AnomalyMetrics
    """
    for process, other in enumerate(gather(metrics)):
        if process:
            metrics.merge(other)
    return metrics


def average_buffers(modules: Sequence[nn.Module], names: tuple[str, ...]) -> None:
    """The named buffers of the modules become their means over all processes."""
    if dist.is_initialized():
        for buffer in (getattr(module, name) for module in modules for name in names):
            dist.all_reduce(buffer)
            buffer /= world_size()


def same_buffers(network: nn.Module) -> None:
    """Every process gets process 0's buffers, such as BatchNorm's running statistics, which are no one's gradient."""
    if dist.is_initialized():
        for buffer in network.buffers():
            dist.broadcast(buffer, src=0)


def progress_bar(total: int, title: str) -> tqdm:
    """Shown by process 0 alone, and only on a terminal."""
    return tqdm(total=total, desc=title, leave=False, dynamic_ncols=True, disable=None if is_main_process() else True)
